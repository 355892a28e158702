"""The built-in kinds: their schemas, and how their values are read and printed.

The facts come from `data/builtin_types.json` (see tools/builtin_types.py): for each type a list of fields as
[name, protobuf number, type, flags, merge key]. A real server decodes into Go structs and prints them again, so that
empty values come and go by the tags of the struct; `decode` and `tidy` do the same to plain JSON.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import re
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.schema import ANY, Schema


@dataclass(frozen=True)
class _List:
    """How a list field is owned: its list type for server-side apply, and its keys."""

    list_type: str
    keys: tuple[str, ...] = ()


def _by(*keys: str) -> _List:
    return _List("map", keys)


# The `listType` marks of the API types, which are comments there and so in no program.
_LISTS = {
    "meta/v1.ObjectMeta.finalizers": _List("set"),
    "meta/v1.ObjectMeta.ownerReferences": _by("uid"),
    "core/v1.ServiceSpec.ports": _by("port", "protocol"),
    "core/v1.ServiceStatus.conditions": _by("type"),
    "core/v1.NodeStatus.conditions": _by("type"),
    "core/v1.NodeStatus.addresses": _by("type"),
    "core/v1.NodeSpec.podCIDRs": _List("set"),
    "core/v1.NamespaceStatus.conditions": _by("type"),
    "core/v1.PodStatus.conditions": _by("type"),
    "core/v1.PodStatus.podIPs": _by("ip"),
    "core/v1.PodSpec.containers": _by("name"),
    "core/v1.PodSpec.initContainers": _by("name"),
    "core/v1.PodSpec.ephemeralContainers": _by("name"),
    "core/v1.PodSpec.volumes": _by("name"),
    "core/v1.PodSpec.imagePullSecrets": _by("name"),
    "core/v1.PodSpec.hostAliases": _by("ip"),
    "core/v1.PodSpec.topologySpreadConstraints": _by("topologyKey", "whenUnsatisfiable"),
    "core/v1.Container.env": _by("name"),
    "core/v1.Container.ports": _by("containerPort", "protocol"),
    "core/v1.Container.volumeMounts": _by("mountPath"),
    "core/v1.Container.volumeDevices": _by("devicePath"),
    "core/v1.ServiceAccount.secrets": _by("name"),
    "apps/v1.DeploymentStatus.conditions": _by("type"),
    "apps/v1.DaemonSetStatus.conditions": _by("type"),
    "apps/v1.ReplicaSetStatus.conditions": _by("type"),
    "apps/v1.StatefulSetStatus.conditions": _by("type"),
    "policy/v1.PodDisruptionBudgetStatus.conditions": _by("type"),
    "apiextensions/v1.CustomResourceDefinitionStatus.conditions": _by("type"),
}
_ATOMIC = {
    "meta/v1.LabelSelector",
    "core/v1.ObjectReference",
    "core/v1.LocalObjectReference",
    "core/v1.SecretKeySelector",
    "core/v1.ConfigMapKeySelector",
    "core/v1.ObjectFieldSelector",
    "core/v1.ResourceFieldSelector",
    "core/v1.NodeSelector",
    "core/v1.TypedLocalObjectReference",
    "rbac/v1.RoleRef",
    "rbac/v1.Subject",
}
_ATOMIC_MAPS = {"core/v1.ServiceSpec.selector", "core/v1.PodSpec.nodeSelector"}
_SCALARS = {"string": "string", "int": "integer", "float": "number", "bool": "boolean"}
_ZEROS = {"string": "", "integer": 0, "number": 0, "boolean": False}
# A struct that is printed even when absent is filled in by its own schema.
_STRUCT = object()


@functools.cache
def definitions() -> dict[str, list[list[Any]]]:
    """The table of types as it stands in the data file."""
    text = resources.files(__package__).joinpath("data/builtin_types.json").read_text()
    read: dict[str, list[list[Any]]] = json.loads(text)
    return read


@functools.cache
def builtin(name: str) -> Schema:
    """The schema of a built-in type by its name in the data file (`core/v1.Service`); raises KeyError."""
    made = Schema("object", atomic=name in _ATOMIC)
    unprinted: set[str] = set()
    for key, _, kind, flags, *merge_key in definitions()[name]:
        if "i" in flags:
            inlined = builtin(kind)
            made.fields |= inlined.fields
            made.zeros |= inlined.zeros
            unprinted |= inlined.unprinted
            continue
        sub = made.fields[key] = _field(f"{name}.{key}", kind, merge_key)
        absent = _absent(sub, kind, flags)
        if absent is not None:
            made.zeros[key] = None if absent is ANY else absent
        if "o" in flags and "p" not in flags:
            unprinted.add(key)
    made.unprinted = frozenset(unprinted)
    return made


def _absent(schema: Schema, kind: str, flags: str) -> Any:
    """What is printed for an absent field: None for nothing, ANY for null."""
    if "z" in flags or ("o" in flags and "p" in flags):
        return None
    if "p" in flags:
        return ANY
    if kind in ("time", "microtime"):
        # A struct to the printer, whatever `omitempty` says.
        return ANY
    if schema.type == "object" and schema.values is None:
        return _STRUCT
    if "o" in flags:
        return None
    return _ZEROS.get(schema.type, ANY)


def _field(path: str, kind: str, merge_key: list[str]) -> Schema:
    if kind.startswith("[]"):
        made = Schema("array", items=_field("", kind[2:], []))
        marks = _LISTS.get(path, _List("atomic"))
        made.list_type, made.map_keys = marks.list_type, marks.keys
        made.merge_key = merge_key[0] if merge_key else None
        return made
    if kind.startswith("{}"):
        return Schema("object", values=_field("", kind[2:], []), atomic=path in _ATOMIC_MAPS)
    if kind == "raw":
        return ANY
    if kind in ("time", "microtime", "duration", "quantity", "intstr", "bytes"):
        return Schema(kind)
    return Schema(_SCALARS[kind]) if kind in _SCALARS else builtin(kind)


def metadata_schema() -> Schema:
    return builtin("meta/v1.ObjectMeta")


# --- reading ---------------------------------------------------------------------------------------------------


class DecodeError(ValueError):
    """A value that does not fit its type: 400 in a body that was sent, 422 in what a patch made of an object."""


_PYTHON: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "bytes": str,
    "duration": str,
    "time": str,
    "microtime": str,
    "integer": int,
    "number": (int, float),
    "quantity": (str, int, float),
    "intstr": (str, int),
    "boolean": bool,
}
_FRACTION = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)")


@dataclass
class Reader:
    """One reading of an object; `unknown` collects the paths of fields that its type does not have, which go.

    Most of a patched object is as it was before: what equals its counterpart in `old` is not looked at again.
    `complete` says to leave out and fill in empty values as the type prints them.
    """

    complete: bool = True
    unknown: list[str] = field(default_factory=list)

    def read(self, schema: Schema, value: JSON, old: Any = None, path: str = "") -> None:
        """Check types, bring times and quantities into their usual form, in place; raises DecodeError."""
        for key in list(value):
            child = value[key]
            sub = schema.fields.get(key) or schema.values
            below = f"{path}.{key}" if path else key
            if sub is None:
                if not schema.open:
                    self.unknown.append(below)
                    del value[key]
                continue
            before = old.get(key) if isinstance(old, dict) else None
            if child is before or child is None or sub is ANY:
                continue
            kind = child.__class__
            if kind is dict and sub.type == "object":
                if child != before:
                    self.read(sub, child, before, below)
            elif kind is list and sub.type == "array":
                if child != before and sub.items is not None:
                    self._items(sub.items, child, below)
            else:
                value[key] = _scalar(sub, child, below)
        if self.complete:
            _print(schema, value)

    def _items(self, schema: Schema, value: list[Any], path: str) -> None:
        for i, item in enumerate(value):
            below = f"{path}[{i}]"
            if item is None and schema.fields:
                # To a Go decoder null is an element without content.
                value[i] = item = {}
            if item.__class__ is dict and schema.type == "object":
                self.read(schema, item, None, below)
            elif schema.type != "any":
                value[i] = _ZEROS.get(schema.type) if item is None else _scalar(schema, item, below)


def _scalar(schema: Schema, value: Any, path: str) -> Any:
    """The value in its usual form; raises DecodeError where it is of another type."""
    if not isinstance(value, _PYTHON[schema.type]) or (isinstance(value, bool) and schema.type != "boolean"):
        kind = _GO.get(schema.type, schema.type)
        raise DecodeError(f"json: cannot unmarshal {_json_name(value)} into Go struct field {path} of type {kind}")
    if schema.type == "quantity":
        return str(value)
    if schema.type in ("time", "microtime"):
        return time_text(str(value), micro=schema.type == "microtime")
    return value


_GO = {"integer": "int32", "number": "float64", "boolean": "bool", "array": "[]interface {}", "object": "struct"}


def _json_name(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    names: dict[type, str] = {dict: "object", list: "array", str: "string"}
    return names[type(value)]


def time_text(value: str, *, micro: bool) -> str:
    """A time in UTC with whole seconds, or with six digits; metav1.MicroTime insists on just these six."""
    match = _FRACTION.fullmatch(value)
    if match is None or (micro and len(match[2] or "") != 7):
        layout = "2006-01-02T15:04:05.000000Z07:00" if micro else "2006-01-02T15:04:05Z07:00"
        raise DecodeError(f'parsing time "{value}" as "{layout}": cannot parse "{value}" as "2006"')
    if match[3] == "Z":
        return value if micro or not match[2] else f"{match[1]}Z"
    try:
        moment = dt.datetime.fromisoformat(match[1] + (match[2] or "")[:7] + match[3]).astimezone(dt.UTC)
    except ValueError as error:
        raise DecodeError(f'parsing time "{value}": {error}') from error
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


# --- printing --------------------------------------------------------------------------------------------------


def tidy(schema: Schema, value: JSON, old: Any = None) -> None:
    """Empty values as the type prints them, in place; what equals its counterpart in `old` is so already."""
    for key, child in value.items():
        sub = schema.fields.get(key) or schema.values
        if sub is None or not isinstance(child, dict | list):
            continue
        before = old.get(key) if isinstance(old, dict) else None
        if child is before or child == before:
            continue
        if isinstance(child, dict):
            tidy(sub, child, before)
        elif sub.items is not None and sub.items.fields:
            for item in child:
                if isinstance(item, dict):
                    tidy(sub.items, item)
    _print(schema, value)


def _print(schema: Schema, value: JSON) -> None:
    """Most empty values are left out, some appear as `null`, `""`, `0` or `{}`."""
    for key in schema.unprinted & value.keys() if schema.fields else ():
        child = value[key]
        if child is None or (not child and (not isinstance(child, dict) or schema.fields[key].values is not None)):
            del value[key]
    for key in [key for key, child in value.items() if child is None and key not in schema.zeros]:
        del value[key]
    for key, zero in schema.zeros.items():
        if value.get(key) is None:
            value[key] = empty(schema.fields[key]) if zero is _STRUCT else zero


def empty(schema: Schema) -> JSON:
    """What an object of the type prints that holds nothing."""
    made: JSON = {}
    _print(schema, made)
    return made
