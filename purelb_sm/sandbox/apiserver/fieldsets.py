"""Sets of fields in the form of `managedFields[].fieldsV1`: nested maps, a leaf is `{}`, `.` is the node itself.

Paths are tuples of elements: `f:NAME` a field, `k:{…}` an element of a list by its keys, `v:VALUE` an element of a
set. Pure. Source: the FieldsV1 type of the API reference, structured-merge-diff.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.schema import Schema

Path = tuple[str, ...]

# What the server sets itself is owned by nobody.
_UNOWNED = frozenset(
    ("f:metadata", f"f:{key}")
    for key in (
        *("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp"),
        *("selfLink", "managedFields", "deletionGracePeriodSeconds", "generateName"),
    )
) | {("f:apiVersion",), ("f:kind",), ("f:metadata",)}
_METADATA: Path = ("f:metadata",)


def unowned(path: Path) -> bool:
    return path in _UNOWNED or path[:2] in _UNOWNED


def copied(fields: JSON) -> JSON:
    return {part: copied(node) if node else {} for part, node in fields.items()}


def contains(fields: JSON, path: Path) -> bool:
    node: JSON | None = fields
    for part in path:
        node = node.get(part) if node is not None else None
    if node is None:
        return False
    return not node or "." in node


def covers(fields: JSON, path: Path) -> bool:
    """Whether the set has the path or anything below it."""
    node: JSON | None = fields
    for part in path:
        node = node.get(part) if node is not None else None
    return node is not None


def insert(fields: JSON, path: Path) -> None:
    node, fresh = fields, True
    for part in path:
        if not node and not fresh:
            node["."] = {}
        fresh = part not in node
        node = node.setdefault(part, {})
    if node:
        node["."] = {}


def discard(fields: JSON, path: Path) -> None:
    """Take out a path and all below it, and what is left without content above it."""
    trail = [fields]
    for part in path:
        node = trail[-1].get(part)
        if node is None:
            return
        trail.append(node)
    for part, parent in zip(reversed(path), reversed(trail[:-1]), strict=True):
        del parent[part]
        if parent.keys() == {"."}:
            del parent["."]
            return
        if parent:
            return


def members(fields: JSON, path: Path = ()) -> Iterator[Path]:
    """Every path in the set, deepest first within a branch."""
    for part, node in fields.items():
        if part == ".":
            yield path
        elif not node:
            yield (*path, part)
        else:
            yield from members(node, (*path, part))


def element(schema: Schema, item: Any) -> str:
    """The path element of an item of a list that is a map or a set."""
    if schema.list_type == "map" and isinstance(item, dict):
        keys = {key: item.get(key, _key_default(schema, key)) for key in schema.map_keys}
        text = msgspec.json.encode({k: v for k, v in keys.items() if v is not None}, order="sorted").decode()
        return f"k:{text}"
    return f"v:{msgspec.json.encode(item).decode()}"


def _key_default(schema: Schema, key: str) -> Any:
    sub = schema.items.child(key) if schema.items else None
    if sub is not None and "default" in sub.checks:
        return sub.checks["default"]
    # The one key of a built-in list that may be left out.
    return "TCP" if key == "protocol" else None


def granular(schema: Schema, value: Any) -> bool:
    """Whether the parts of a value are owned one by one."""
    if isinstance(value, dict):
        return not schema.atomic and bool(value)
    return isinstance(value, list) and schema.list_type in ("map", "set") and bool(value)


def parts(schema: Schema, value: Any) -> Iterator[tuple[str, Schema, Any]]:
    """(element, schema, value) of each part of a granular value."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield f"f:{key}", schema.child(key), child
    else:
        for item in value:
            yield element(schema, item), schema.items or Schema(), item


def leaves(schema: Schema, value: Any, path: Path = (), *, nodes: bool) -> Iterator[tuple[Path, Any]]:
    """Every owned path of a value; `nodes` adds the maps themselves, as an update owns them and an apply does not."""
    if not granular(schema, value):
        if path and not unowned(path):
            yield path, value
        return
    keyed = bool(path) and path[-1].startswith("k:")
    mapped = isinstance(value, list) or schema.values is not None
    if path and not unowned(path) and (keyed or (nodes and mapped)):
        yield path, value
    if isinstance(value, list) and schema.list_type == "set":
        for item in value:
            yield (*path, element(schema, item)), item
        return
    for part, sub, child in parts(schema, value):
        if not unowned((*path, part)) or part == "f:metadata":
            yield from leaves(sub, child, (*path, part), nodes=nodes)


def difference(schema: Schema, old: Any, new: Any, path: Path = ()) -> tuple[list[Path], list[Path]]:
    """(paths added or changed, paths removed) from old to new; a removed path stands for all below it."""
    changed: list[Path] = []
    removed: list[Path] = []
    if old != new:
        _compare(schema, old, new, path, changed, removed)
    return changed, removed


def _compare(schema: Schema, old: Any, new: Any, path: Path, changed: list[Path], removed: list[Path]) -> None:
    """Both differ; find out where."""
    if not (granular(schema, old) and granular(schema, new) and type(old) is type(new)):
        removed.append(path)
        changed += [p for p, _ in leaves(schema, new, path, nodes=True)]
    elif isinstance(new, dict):
        _compare_dicts(schema, old, new, path, changed, removed)
    else:
        before = {part: child for part, _, child in parts(schema, old)}
        for part, sub, child in parts(schema, new):
            if part not in before:
                changed += [p for p, _ in leaves(sub, child, (*path, part), nodes=True)]
            elif (was := before.pop(part)) != child:
                _compare(sub, was, child, (*path, part), changed, removed)
        removed += [(*path, part) for part in before]


def _compare_dicts(schema: Schema, old: JSON, new: JSON, path: Path, changed: list[Path], removed: list[Path]) -> None:
    for key, child in new.items():
        was = old.get(key)
        if was is child or (was == child and key in old):
            continue
        below = (*path, f"f:{key}")
        if unowned(below) and below != _METADATA:
            continue
        if key in old:
            _compare(schema.child(key), was, child, below, changed, removed)
        else:
            changed += [p for p, _ in leaves(schema.child(key), child, below, nodes=True)]
    removed += [below for key in old if key not in new and not unowned(below := (*path, f"f:{key}"))]


def lookup(schema: Schema, value: Any, path: Path) -> tuple[bool, Any]:
    """(whether it is there, what is there)."""
    for part in path:
        if not isinstance(value, dict | list):
            return False, None
        if isinstance(value, dict):
            if part[2:] not in value or not part.startswith("f:"):
                return False, None
            schema, value = schema.child(part[2:]), value[part[2:]]
        else:
            found = [(sub, child) for name, sub, child in parts(schema, value) if name == part]
            if not found:
                return False, None
            schema, value = found[0]
    return True, value


def remove(schema: Schema, value: Any, path: Path) -> None:
    """Delete what is at the path, in place."""
    there, parent = lookup(schema, value, path[:-1])
    if not there:
        return
    part = path[-1]
    if isinstance(parent, dict):
        parent.pop(part[2:], None)
    elif isinstance(parent, list):
        sub = schema
        for step in path[:-1]:
            sub = sub.child(step[2:]) if step.startswith("f:") else sub.items or Schema()
        parent[:] = [item for item in parent if element(sub, item) != part]


def dotted(path: Path) -> str:
    """A path as refusals show it: `.spec.ports[port=80,protocol="TCP"].targetPort`."""
    text = ""
    for part in path:
        kind, rest = part[:2], part[2:]
        if kind == "f:":
            text += f".{rest}"
        elif kind == "k:":
            keys: JSON = msgspec.json.decode(rest)
            text += "[" + ",".join(f"{k}={msgspec.json.encode(v).decode()}" for k, v in keys.items()) + "]"
        else:
            text += f"[={rest}]"
    return text
