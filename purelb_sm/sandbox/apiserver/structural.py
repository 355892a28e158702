"""The schema of a CRD version: structure, defaults, and the checks of values.

The structure becomes a `Schema`; the value checks run in jsonschema on a translated copy, and its findings are told the
way an API server tells them. Rules are in `cel_rules.py`.
Source: the structural schema section of the CRD documentation.
"""

from __future__ import annotations

import copy
import ipaddress
import re
from collections.abc import Iterator
from typing import Any

import jsonschema

from purelb_sm.sandbox.apiserver import cel_rules
from purelb_sm.sandbox.apiserver.builtin import metadata_schema
from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.schema import Schema
from purelb_sm.sandbox.apiserver.status import (
    INVALID,
    NOT_SUPPORTED,
    REQUIRED,
    TOO_LONG,
    TOO_MANY,
    TYPE_INVALID,
    FieldError,
    not_supported,
    shown,
)

# After one of these the rules are not run, since they may rely on what is missing.
_BLOCKING = {NOT_SUPPORTED, REQUIRED, TOO_LONG, TOO_MANY, TYPE_INVALID}
_NOT_RUN = (
    "Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation"
)
_FORMATS = jsonschema.FormatChecker(formats=())


def _checks_format(name: str, check: Any) -> None:
    _FORMATS.checks(name, raises=ValueError)(lambda value: not isinstance(value, str) or check(value))


_checks_format("ipv4", lambda v: ipaddress.IPv4Address(v) is not None)
_checks_format("ipv6", lambda v: ipaddress.IPv6Address(v) is not None)
_checks_format("cidr", lambda v: "/" in v and ipaddress.ip_interface(v) is not None)
_checks_format("date-time", lambda v: re.fullmatch(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", v))
_checks_format("uuid", lambda v: re.fullmatch(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}", v))
_checks_format("duration", lambda v: re.fullmatch(r"([+-]?\d+(\.\d*)?(ns|us|µs|ms|s|m|h))+|0", v))


def structure(spec: JSON, *, root: bool = False) -> Schema:
    """The Schema of an `openAPIV3Schema`, with the rules of each node compiled."""
    made = Schema(spec.get("type") or "any")
    if spec.get("x-kubernetes-int-or-string"):
        made.type = "any"
    made.nullable = bool(spec.get("nullable"))
    made.open = bool(spec.get("x-kubernetes-preserve-unknown-fields")) or made.type == "any"
    made.embedded = root or bool(spec.get("x-kubernetes-embedded-resource"))
    made.required = tuple(spec.get("required") or ())
    made.fields = {key: structure(sub) for key, sub in (spec.get("properties") or {}).items()}
    additional = spec.get("additionalProperties")
    if additional:
        made.values = structure(additional) if isinstance(additional, dict) else Schema(open=True)
    if spec.get("items"):
        made.items = structure(spec["items"])
    made.list_type = spec.get("x-kubernetes-list-type") or "atomic"
    made.map_keys = tuple(spec.get("x-kubernetes-list-map-keys") or ())
    made.atomic = spec.get("x-kubernetes-map-type") == "atomic"
    for key in ("default", "description", "enum"):
        if key in spec:
            made.checks[key] = spec[key]
    rules = tuple(cel_rules.compile_rule(rule) for rule in spec.get("x-kubernetes-validations") or ())
    if rules:
        made.checks["rules"] = rules
    if root:
        for key in ("apiVersion", "kind"):
            made.fields.setdefault(key, Schema("string"))
        made.fields["metadata"] = metadata_schema()
    return made


def default(schema: Schema, value: Any) -> None:
    """Fill in defaults, in place; a null that may not be null counts as absent where there is a default."""
    if isinstance(value, dict):
        for key, sub in schema.fields.items():
            if "default" in sub.checks and (key not in value or (value[key] is None and not sub.nullable)):
                value[key] = copy.deepcopy(sub.checks["default"])
        for key, child in value.items():
            if key != "metadata" or not schema.embedded:
                default(schema.child(key), child)
    elif isinstance(value, list) and schema.items is not None:
        for child in value:
            default(schema.items, child)


def has_rules(schema: Schema) -> bool:
    return next(_all_rules(schema), None) is not None


def _all_rules(schema: Schema) -> Iterator[cel_rules.Rule]:
    yield from schema.checks.get("rules", ())
    for sub in (*schema.fields.values(), *(s for s in (schema.values, schema.items) if s is not None)):
        yield from _all_rules(sub)


def unevaluated(schema: Schema) -> list[str]:
    """The rules that cannot be run here, with the reason."""
    return [f"{rule.text!r} {rule.why}" for rule in _all_rules(schema) if rule.program is None]


class Validator:
    """All checks of one CRD version."""

    def __init__(self, spec: JSON, schema: Schema) -> None:
        self._schema = schema
        self._has_rules = has_rules(schema)
        self._validator = jsonschema.Draft4Validator(_translated(spec, root=True), format_checker=_FORMATS)

    def check(self, obj: JSON, old: JSON | None) -> tuple[list[FieldError], list[str]]:
        """(what is wrong, which rules could not be run)."""
        errors = [e for found in self._validator.iter_errors(obj) for e in _told(found)]
        errors += _check_lists(self._schema, obj, "")
        if self._has_rules and any(e.reason in _BLOCKING for e in errors):
            return [*errors, FieldError("<nil>", INVALID, _NOT_RUN)], []
        ruled, not_run = _run_rules(self._schema, obj, old, "")
        return errors + ruled, not_run


def _run_rules(schema: Schema, value: Any, old: Any, path: str) -> tuple[list[FieldError], list[str]]:
    errors: list[FieldError] = []
    not_run: list[str] = []
    if value is None:
        return errors, not_run
    if "rules" in schema.checks:
        errors, not_run = cel_rules.evaluate(schema.checks["rules"], schema, value, old, path)
    for child_path, sub, child, before in _below(schema, value, old, path):
        more, missed = _run_rules(sub, child, before, child_path)
        errors += more
        not_run += missed
    return errors, not_run


def _below(schema: Schema, value: Any, old: Any, path: str) -> Iterator[tuple[str, Schema, Any, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            sub = schema.fields.get(key) or schema.values
            if sub is not None and not (schema.embedded and key == "metadata"):
                before = old.get(key) if isinstance(old, dict) else None
                yield _join(path, key, named=key in schema.fields), sub, child, before
    elif isinstance(value, list) and schema.items is not None:
        for i, child in enumerate(value):
            yield f"{path}[{i}]", schema.items, child, _correlated(schema, child, old)


def _correlated(schema: Schema, item: Any, old: Any) -> Any:
    """The element of the former list that this one continues: only lists that are maps say."""
    if schema.list_type != "map" or not isinstance(old, list) or not isinstance(item, dict):
        return None
    keys = [item.get(k) for k in schema.map_keys]
    return next((o for o in old if isinstance(o, dict) and [o.get(k) for k in schema.map_keys] == keys), None)


def _join(path: str, key: str, *, named: bool = True) -> str:
    if not named:
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _check_lists(schema: Schema, value: Any, path: str) -> list[FieldError]:
    """Lists that are sets or maps have no element twice."""
    errors: list[FieldError] = []
    if isinstance(value, list) and schema.list_type in ("set", "map"):
        seen: list[Any] = []
        for i, item in enumerate(value):
            if schema.list_type == "map" and isinstance(item, dict):
                item = {key: item.get(key) for key in schema.map_keys}
            if item in seen:
                errors.append(FieldError(f"{path}[{i}]", "FieldValueDuplicate", f"Duplicate value: {shown(item)}"))
            seen.append(item)
    for child_path, sub, child, _ in _below(schema, value, None, path):
        errors += _check_lists(sub, child, child_path)
    return errors


_DROPPED = ("default", "description", "title", "example", "externalDocs", "nullable", "format", "type")


def _translated(spec: JSON, *, root: bool = False) -> JSON:
    """An OpenAPI v3 schema as JSON schema draft 4, whose exclusive bounds are booleans too."""
    made: JSON = {k: v for k, v in spec.items() if k not in _DROPPED and not k.startswith("x-kubernetes-")}
    types = spec.get("type")
    if spec.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string", *(["null"] if spec.get("nullable") else [])]
    elif types:
        made["type"] = [types, "null"] if spec.get("nullable") else types
    if spec.get("format") in ("ipv4", "ipv6", "cidr", "date-time", "uuid", "duration"):
        made["format"] = spec["format"]
    if spec.get("nullable") and "enum" in spec:
        made["enum"] = [*spec["enum"], None]
    for key in ("properties", "patternProperties", "definitions"):
        if key in spec:
            made[key] = {name: _translated(sub) for name, sub in spec[key].items()}
    for key in ("items", "not", "additionalProperties"):
        if isinstance(spec.get(key), dict):
            made[key] = _translated(spec[key])
    for key in ("allOf", "anyOf", "oneOf"):
        if key in spec:
            made[key] = [_translated(sub) for sub in spec[key]]
    if root:
        # Metadata is checked as that of every kind.
        made["properties"] = {k: v for k, v in made.get("properties", {}).items() if k != "metadata"}
    return made


def _path(error: jsonschema.ValidationError) -> str:
    text = ""
    for part in error.absolute_path:
        text = f"{text}[{part}]" if isinstance(part, int) else _join(text, part)
    return text


_TYPE_NAMES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}


def _told(error: jsonschema.ValidationError) -> Iterator[FieldError]:
    """A finding of jsonschema in the words, and under the reason, of an API server."""
    path = _path(error)
    value: Any = error.instance
    wanted: Any = error.validator_value
    field = path or "<nil>"
    match error.validator:
        case "required":
            missing = re.match(r"'(.*)' is a required property", error.message)
            yield FieldError(_join(path, missing[1] if missing else "?"), REQUIRED, "Required value")
        case "enum":
            yield not_supported(field, value, [str(v) for v in wanted if v is not None])
        case "type":
            name = "null" if value is None else _TYPE_NAMES[type(value)]
            kind = wanted if isinstance(wanted, str) else ",".join(t for t in wanted if t != "null")
            text = f'Invalid value: "{name}": {path} in body must be of type {kind}: "{name}"'
            yield FieldError(field, TYPE_INVALID, text)
        case "maxLength":
            yield FieldError(field, TOO_LONG, f"Too long: may not be more than {wanted} bytes")
        case "maxItems" | "maxProperties":
            yield FieldError(field, TOO_MANY, f"Too many: {len(value)}: must have at most {wanted} items")
        case "oneOf":
            text = f'"{path}" must validate one and only one schema (oneOf)'
            yield FieldError(field, INVALID, f'Invalid value: "": {text}')
        case "anyOf":
            yield FieldError(field, INVALID, f'Invalid value: "": "{path}" must validate at least one schema (anyOf)')
        case "not":
            yield FieldError(field, INVALID, f'Invalid value: "": "{path}" must not validate the schema (not)')
        case _:
            yield FieldError(field, INVALID, f"Invalid value: {shown(value)}: {path} in body {_says(error)}")


def _says(error: jsonschema.ValidationError) -> str:
    wanted = error.validator_value
    bounds: Any = error.schema
    match error.validator:
        case "minimum":
            strict = bounds.get("exclusiveMinimum")
            return f"should be greater than {wanted}" if strict else f"should be greater than or equal to {wanted}"
        case "maximum":
            strict = bounds.get("exclusiveMaximum")
            return f"should be less than {wanted}" if strict else f"should be less than or equal to {wanted}"
        case "minLength":
            return f"should be at least {wanted} chars long"
        case "pattern":
            return f"should match '{wanted}'"
        case "minItems" | "minProperties":
            return f"should have at least {wanted} items"
        case "uniqueItems":
            return "shouldn't contain duplicates"
        case "multipleOf":
            return f"should be a multiple of {wanted}"
        case "format":
            return f"must be of type {wanted}: {shown(error.instance)}"
        case _:
            return str(error.message)
