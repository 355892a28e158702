"""One notation for what an object may hold, for built-in kinds and custom resources alike.

A Schema node says what a value is, which fields it has, and how lists merge. Pruning, type checks, patches, field
ownership and the OpenAPI documents all walk these nodes. Built-in kinds come from `data/builtin_types.json`; custom
resources from their CRD (see `structural.py`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.status import bad_request


@dataclass(slots=True, eq=False)
class Schema:
    """What a value may be. `type` is object, array, string, integer, number, boolean, time or any."""

    type: str = "any"
    fields: dict[str, Schema] = field(default_factory=dict)
    values: Schema | None = None  # of an object that is a map
    items: Schema | None = None
    required: tuple[str, ...] = ()
    open: bool = False  # unknown fields are kept
    embedded: bool = False  # a whole Kubernetes object with apiVersion, kind and metadata
    nullable: bool = False
    list_type: str = "atomic"  # for field ownership: atomic, set or map
    map_keys: tuple[str, ...] = ()
    atomic: bool = False  # an object that one manager owns as a whole
    merge_key: str | None = None  # for strategic merge; "" merges a list of scalars as a set
    checks: JSON = field(default_factory=dict)  # value checks, defaults and rules of a custom resource

    def child(self, key: str) -> Schema:
        """The schema of a field of an object, or of a map's value."""
        return self.fields.get(key) or self.values or ANY


ANY = Schema(open=True)


@dataclass(frozen=True)
class _List:
    """How a list field of a built-in type behaves: its SSA list type and keys, and its strategic merge key."""

    list_type: str = "atomic"
    keys: tuple[str, ...] = ()
    merge_key: str | None = None


def _by(*keys: str, merge: str | None = None) -> _List:
    return _List("map", keys, keys[0] if merge is None else merge)


# From the `listType`, `listMapKey` and `patchMergeKey` marks of the API types.
_LISTS = {
    "V1ObjectMeta.finalizers": _List("set", (), ""),
    "V1ObjectMeta.ownerReferences": _by("uid"),
    "V1ServiceSpec.ports": _by("port", "protocol"),
    "V1ServiceStatus.conditions": _by("type"),
    "V1NodeStatus.conditions": _by("type"),
    "V1NodeStatus.addresses": _by("type"),
    "V1NodeSpec.podCIDRs": _List("set", (), ""),
    "V1NamespaceStatus.conditions": _by("type"),
    "V1PodStatus.conditions": _by("type"),
    "V1PodStatus.podIPs": _by("ip"),
    "V1PodSpec.containers": _by("name"),
    "V1PodSpec.initContainers": _by("name"),
    "V1PodSpec.ephemeralContainers": _by("name"),
    "V1PodSpec.volumes": _by("name"),
    "V1PodSpec.imagePullSecrets": _by("name"),
    "V1PodSpec.hostAliases": _by("ip"),
    "V1PodSpec.topologySpreadConstraints": _by("topologyKey", "whenUnsatisfiable"),
    "V1Container.env": _by("name"),
    "V1Container.ports": _by("containerPort", "protocol"),
    "V1Container.volumeMounts": _by("mountPath"),
    "V1Container.volumeDevices": _by("devicePath"),
    "V1ServiceAccount.secrets": _by("name"),
    "V1ServiceAccount.imagePullSecrets": _List("atomic", (), "name"),
    "V1DeploymentStatus.conditions": _by("type"),
    "V1DaemonSetStatus.conditions": _by("type"),
    "V1ReplicaSetStatus.conditions": _by("type"),
    "V1StatefulSetStatus.conditions": _by("type"),
    "V1CustomResourceDefinitionStatus.conditions": _List("map", ("type",)),
}
_ATOMIC = {
    "V1LabelSelector",
    "V1ObjectReference",
    "V1LocalObjectReference",
    "V1SecretKeySelector",
    "V1ConfigMapKeySelector",
    "V1ObjectFieldSelector",
    "V1ResourceFieldSelector",
    "V1RoleRef",
    "RbacV1Subject",
    "V1NodeSelector",
    "V1TypedLocalObjectReference",
}
_ATOMIC_MAPS = {"V1ServiceSpec.selector", "V1PodSpec.nodeSelector"}
_SCALARS = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "time": "time"}


@functools.cache
def _definitions() -> dict[str, dict[str, str]]:
    text = resources.files(__package__).joinpath("data/builtin_types.json").read_text()
    definitions: dict[str, dict[str, str]] = json.loads(text)
    return definitions


@functools.cache
def builtin(name: str) -> Schema:
    """The schema of a built-in type by its name in the data file (`V1Service`); raises KeyError."""
    made = Schema("object")
    made.atomic = name in _ATOMIC
    wanted = _definitions()[name]
    made.required = tuple(key for key, kind in wanted.items() if kind.endswith("!"))
    for key, kind in wanted.items():
        made.fields[key] = _field(f"{name}.{key}", kind.removesuffix("!"))
    return made


def _field(path: str, kind: str) -> Schema:
    if kind.startswith("[]"):
        made = Schema("array", items=_field("", kind[2:]))
        marks = _LISTS.get(path, _List())
        made.list_type, made.map_keys, made.merge_key = marks.list_type, marks.keys, marks.merge_key
        return made
    if kind.startswith("{}"):
        return Schema("object", values=_field("", kind[2:]), atomic=path in _ATOMIC_MAPS)
    if kind == "any":
        return ANY
    if kind in _SCALARS:
        return Schema(_SCALARS[kind])
    return builtin(kind)


def metadata_schema() -> Schema:
    return builtin("V1ObjectMeta")


def unknown_fields(schema: Schema, value: Any, path: str = "") -> list[str]:
    """The paths of fields that the schema does not know, in the order they stand; nothing is changed."""
    found: list[str] = []
    for child_path, known, child, sub in _children(schema, value, path):
        if known:
            found += unknown_fields(sub, child, child_path)
        else:
            found.append(child_path)
    return found


def prune(schema: Schema, value: Any) -> None:
    """Remove unknown fields, in place."""
    if schema.open and not schema.fields and schema.items is None and schema.values is None:
        return
    if isinstance(value, dict):
        for key in [k for k in value if not _knows(schema, k)]:
            del value[key]
        for key, child in value.items():
            prune(schema.child(key), child)
    elif isinstance(value, list) and schema.items is not None:
        for child in value:
            prune(schema.items, child)


def _knows(schema: Schema, key: str) -> bool:
    if key in schema.fields or schema.values is not None or schema.open:
        return True
    return schema.embedded and key in ("apiVersion", "kind", "metadata")


def _children(schema: Schema, value: Any, path: str) -> Iterable[tuple[str, bool, Any, Schema]]:
    if isinstance(value, dict) and schema.type in ("object", "any"):
        for key, child in value.items():
            sub_path = f"{path}.{key}" if path else key
            yield sub_path, _knows(schema, key), child, schema.child(key)
    elif isinstance(value, list) and schema.items is not None:
        for i, child in enumerate(value):
            yield f"{path}[{i}]", True, child, schema.items


_PYTHON: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "time": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


def check_types(schema: Schema, value: Any, kind: str, version: str, path: str = "") -> None:
    """Raise 400, as the decoder of a built-in type does, where a value is of the wrong JSON type."""
    if value is None or schema.type == "any":
        return
    if not isinstance(value, _PYTHON[schema.type]) or (isinstance(value, bool) and schema.type != "boolean"):
        raise bad_request(
            f'{kind} in version "{version}" cannot be handled as a {kind}: json: cannot unmarshal '
            f"{_json_name(value)} into Go struct field {kind}.{path} of type {schema.type}"
        )
    for child_path, _, child, sub in _children(schema, value, path):
        check_types(sub, child, kind, version, child_path)


def _json_name(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    names: dict[type, str] = {dict: "object", list: "array", str: "string"}
    return names[type(value)]


def drop_empty(schema: Schema, value: JSON) -> None:
    """Remove what a built-in type does not print: nulls, and lists and maps without content, in place."""
    for key in list(value):
        child = value[key]
        sub = schema.child(key)
        if sub is ANY:
            if child is None:
                del value[key]
        elif isinstance(child, dict):
            drop_empty(sub, child)
            if not child and sub.values is not None:
                del value[key]
        elif isinstance(child, list):
            for item in child:
                if isinstance(item, dict) and sub.items is not None:
                    drop_empty(sub.items, item)
            if not child:
                del value[key]
        elif child is None:
            del value[key]
