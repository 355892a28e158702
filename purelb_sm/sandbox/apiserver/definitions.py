"""CustomResourceDefinitions: their own checks, and the resources that come of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import structlog

from purelb_sm.sandbox.apiserver import structural
from purelb_sm.sandbox.apiserver.custom import CustomStrategy
from purelb_sm.sandbox.apiserver.objects import JSON, now
from purelb_sm.sandbox.apiserver.registry import CUSTOM_VERBS, Resource, Subresource
from purelb_sm.sandbox.apiserver.status import FieldError, invalid_value, not_supported, required
from purelb_sm.sandbox.apiserver.strategy import LABEL, SUBDOMAIN, Strategy, keep_status

log = structlog.get_logger(__name__)

BUCKET = "customresourcedefinitions.apiextensions.k8s.io"
FINALIZER = "customresourcecleanup.apiextensions.k8s.io"


class Definitions(Strategy):
    generation: ClassVar[bool] = True
    returns_deleted: ClassVar[bool] = True
    unconditional_update: ClassVar[bool] = False

    def defaults(self, obj: JSON) -> None:
        spec = obj.setdefault("spec", {})
        names = spec.setdefault("names", {})
        if names.get("kind"):
            names.setdefault("singular", names["kind"].lower())
            names.setdefault("listKind", names["kind"] + "List")
        spec.setdefault("conversion", {"strategy": "None"})
        for version in spec.get("versions") or ():
            _drop_nulls((version.get("schema") or {}).get("openAPIV3Schema"))

    def prepare_create(self, obj: JSON) -> None:
        stored = [v.get("name") for v in obj["spec"].get("versions") or () if v.get("storage")]
        obj["status"] = {"storedVersions": stored}

    def prepare_update(self, obj: JSON, old: JSON) -> None:
        keep_status(obj, old)
        stored = [v.get("name") for v in obj["spec"].get("versions") or () if v.get("storage")]
        known = old["status"].get("storedVersions") or []
        if any(name not in known for name in stored):
            obj["status"] = {**old["status"], "storedVersions": [*known, *(n for n in stored if n not in known)]}

    def validate(self, obj: JSON, old: JSON | None) -> list[FieldError]:
        spec = obj["spec"]
        names = spec["names"]
        errors = []
        expected = f"{names.get('plural')}.{spec.get('group')}"
        name = obj["metadata"].get("name")
        if name != expected:
            errors.append(invalid_value("metadata.name", name, 'must be spec.names.plural+"."+spec.group'))
        if not SUBDOMAIN.fullmatch(spec.get("group") or "") or "." not in spec["group"]:
            errors.append(invalid_value("spec.group", spec.get("group"), "should be a domain with at least one dot"))
        if spec.get("scope") not in ("Namespaced", "Cluster"):
            errors.append(not_supported("spec.scope", spec.get("scope"), ("Cluster", "Namespaced")))
        errors += [required(f"spec.names.{key}") for key in ("plural", "kind") if not names.get(key)]
        strategy = spec["conversion"].get("strategy")
        if strategy != "None":
            # A real server takes Webhook too; the sandbox would have to call it.
            errors.append(not_supported("spec.conversion.strategy", strategy, ("None",)))
        errors += _check_versions(spec.get("versions") or [])
        if old is not None:
            errors += _check_update(obj, old)
        return errors


def _drop_nulls(schema: Any) -> None:
    """A null in a schema is as good as nothing, besides where it is a value."""
    if isinstance(schema, dict):
        for key in [k for k, v in schema.items() if v is None and k not in ("default", "example")]:
            del schema[key]
        for key, sub in schema.items():
            if key not in ("default", "example", "enum"):
                _drop_nulls(sub)
    elif isinstance(schema, list):
        for sub in schema:
            _drop_nulls(sub)


def _check_versions(versions: list[JSON]) -> list[FieldError]:
    if sum(bool(v.get("storage")) for v in versions) != 1:
        names = [v.get("name") for v in versions]
        return [invalid_value("spec.versions", str(names), "must have exactly one version marked as storage version")]
    errors = []
    for i, version in enumerate(versions):
        path = f"spec.versions[{i}]"
        if not LABEL.fullmatch(version.get("name") or ""):
            errors.append(invalid_value(f"{path}.name", version.get("name"), "must be a lowercase RFC 1035 label"))
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        at = f"{path}.schema.openAPIV3Schema"
        if not isinstance(schema, dict):
            errors.append(required(at, "schemas are required"))
            continue
        misshapen = list(_misshapen(schema, at))
        if misshapen:
            errors += misshapen
            continue
        if schema.get("type") != "object":
            errors.append(invalid_value(f"{at}.type", schema.get("type", ""), 'must be "object" at the root'))
        errors += list(_not_structural(schema, at))
    return errors


_NUMBER = (int, float)
_SHAPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("type", "format", "pattern", "description", "title", "x-kubernetes-list-type"), str),
    **dict.fromkeys(("maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties"), int),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), _NUMBER),
    **dict.fromkeys(("nullable", "uniqueItems", "exclusiveMinimum", "exclusiveMaximum"), bool),
    **dict.fromkeys(("required", "enum", "allOf", "anyOf", "oneOf", "x-kubernetes-list-map-keys"), list),
    **dict.fromkeys(("properties", "items", "not"), dict),
    "additionalProperties": (dict, bool),
    "x-kubernetes-validations": list,
    "x-kubernetes-map-type": str,
}
_TYPES = ("array", "boolean", "integer", "number", "object", "string")


def _misshapen(schema: Any, path: str) -> Iterator[FieldError]:
    """What is no schema at all, which a decoder of the Go type would refuse."""
    if not isinstance(schema, dict):
        yield invalid_value(path, str(schema), "must be an object")
        return
    for key, kind in _SHAPES.items():
        value = schema.get(key)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, _NUMBER))):
            yield invalid_value(f"{path}.{key}", str(value), "is of the wrong type")
            return
    if schema.get("type") and schema["type"] not in _TYPES:
        yield not_supported(f"{path}.type", schema["type"], _TYPES)
    for key in ("required", "x-kubernetes-list-map-keys"):
        if any(not isinstance(each, str) for each in schema.get(key) or ()):
            yield invalid_value(f"{path}.{key}", str(schema[key]), "must be a list of strings")
    for i, rule in enumerate(schema.get("x-kubernetes-validations") or ()):
        if not isinstance(rule, dict) or any(not isinstance(v, str | bool) for v in rule.values()):
            yield invalid_value(f"{path}.x-kubernetes-validations[{i}]", str(rule), "must be an object of strings")
    try:
        re.compile(schema.get("pattern") or "")
    except re.error as error:
        yield invalid_value(f"{path}.pattern", schema["pattern"], f"must be a valid regular expression: {error}")
    for at, sub in _nested(schema, path):
        yield from _misshapen(sub, at)


def _nested(schema: JSON, path: str) -> Iterator[tuple[str, Any]]:
    for key, sub in (schema.get("properties") or {}).items():
        yield f"{path}.properties[{key}]", sub
    for key in ("items", "not", "additionalProperties"):
        if schema.get(key) is not None and not isinstance(schema[key], bool):
            yield f"{path}.{key}", schema[key]
    for key in ("allOf", "anyOf", "oneOf"):
        for i, sub in enumerate(schema.get(key) or ()):
            yield f"{path}.{key}[{i}]", sub


def _not_structural(schema: JSON, path: str) -> Iterator[FieldError]:
    """Every node says its type, and properties are not mixed with additionalProperties."""
    loose = schema.get("x-kubernetes-int-or-string") or schema.get("x-kubernetes-preserve-unknown-fields")
    if not schema.get("type") and not loose:
        yield required(f"{path}.type", "must not be empty for specified object fields")
    if schema.get("properties") and schema.get("additionalProperties"):
        yield FieldError(
            f"{path}.additionalProperties", "FieldValueForbidden", "Forbidden: mutual exclusive with properties"
        )
    if schema.get("type") == "array" and not schema.get("items"):
        yield required(f"{path}.items", "must be specified")
    if schema.get("x-kubernetes-list-type") == "map":
        known = (schema.get("items") or {}).get("properties") or {}
        for i, key in enumerate(schema.get("x-kubernetes-list-map-keys") or ()):
            if key not in known:
                yield invalid_value(f"{path}.x-kubernetes-list-map-keys[{i}]", key, "entries have to be in properties")
    for key, sub in (schema.get("properties") or {}).items():
        yield from _not_structural(sub, f"{path}.properties[{key}]")
    if isinstance(schema.get("items"), dict):
        yield from _not_structural(schema["items"], f"{path}.items")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _not_structural(schema["additionalProperties"], f"{path}.additionalProperties")
    for i, rule in enumerate(schema.get("x-kubernetes-validations") or ()):
        if not str(rule.get("rule", "")).strip():
            yield required(f"{path}.x-kubernetes-validations[{i}].rule", "rule is not specified")


def _check_update(obj: JSON, old: JSON) -> list[FieldError]:
    errors = []
    names = {v.get("name") for v in obj["spec"].get("versions") or ()}
    for i, stored in enumerate(old["status"].get("storedVersions") or ()):
        if stored not in names:
            why = "missing from spec.versions; it was previously a storage version, and must remain in spec.versions"
            errors.append(invalid_value(f"status.storedVersions[{i}]", stored, why))
    for path in (("group",), ("scope",), ("names", "kind"), ("names", "plural")):
        value: Any = obj["spec"]
        before: Any = old["spec"]
        for key in path:
            value, before = value.get(key), before.get(key)
        if value != before:
            errors.append(invalid_value("spec." + ".".join(path), value, "field is immutable"))
    return errors


def condition(kind: str, reason: str, message: str) -> JSON:
    return {"type": kind, "status": "True", "lastTransitionTime": now(), "reason": reason, "message": message}


def established(obj: JSON) -> JSON:
    """The status that the naming and establishing controllers give a new definition."""
    status = dict(obj.get("status") or {})
    status["acceptedNames"] = obj["spec"]["names"]
    kinds = {c["type"] for c in status.get("conditions") or ()}
    conditions = list(status.get("conditions") or ())
    if "NamesAccepted" not in kinds:
        conditions.append(condition("NamesAccepted", "NoConflicts", "no conflicts found"))
    if "Established" not in kinds:
        conditions.append(condition("Established", "InitialNamesAccepted", "the initial names have been accepted"))
    status["conditions"] = conditions
    return status


def begin_deletion(obj: JSON) -> None:
    """What a definition shows while its objects are being removed."""
    finalizers = obj["metadata"].setdefault("finalizers", [])
    if FINALIZER not in finalizers:
        finalizers.append(FINALIZER)
    text = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon"
    status = obj.setdefault("status", {})
    status["conditions"] = [
        *(status.get("conditions") or ()),
        condition("Terminating", "InstanceDeletionPending", text),
    ]


def resources_of(obj: JSON) -> list[tuple[Resource, CustomStrategy]]:
    """What a definition serves: one resource for each served version."""
    spec = obj["spec"]
    names = spec["names"]
    versions = spec["versions"]
    storage = next(v["name"] for v in versions if v["storage"])
    schemas = [v["schema"]["openAPIV3Schema"] for v in versions]
    # Objects stored under an earlier schema must be pruned and defaulted when they are read.
    uniform = all(s == schemas[0] for s in schemas) and obj["metadata"].get("generation", 1) == 1
    made = []
    for version in versions:
        raw = version["schema"]["openAPIV3Schema"]
        schema = structural.structure(raw, root=True)
        for problem in structural.unevaluated(schema):
            log.warning("rule_not_evaluated", crd=obj["metadata"]["name"], version=version["name"], rule=problem)
        parts = version.get("subresources") or {}
        selectable = tuple(f["jsonPath"].lstrip(".") for f in version.get("selectableFields") or ())
        resource = Resource(
            spec["group"],
            version["name"],
            names["plural"],
            names["kind"],
            spec["scope"] == "Namespaced",
            names.get("singular") or names["kind"].lower(),
            names.get("listKind") or names["kind"] + "List",
            CUSTOM_VERBS,
            tuple(names.get("shortNames") or ()),
            tuple(names.get("categories") or ()),
            tuple(Subresource("status", names["kind"]) for _ in range("status" in parts)),
            schema,
            custom=True,
            columns=tuple(version.get("additionalPrinterColumns") or ()),
            storage_version=storage,
            uniform=uniform,
            selectable=selectable,
            deprecation=_deprecation(spec, version),
        )
        made.append((resource, CustomStrategy(raw, schema, has_status="status" in parts, selectable=selectable)))
    return made


def _deprecation(spec: JSON, version: JSON) -> str:
    if not version.get("deprecated"):
        return ""
    usual = f"{spec['group']}/{version['name']} {spec['names']['kind']} is deprecated"
    return str(version.get("deprecationWarning") or usual)


def served(obj: JSON) -> frozenset[str]:
    return frozenset(v["name"] for v in obj["spec"]["versions"] if v.get("served"))
