"""One notation for what an object may hold, for built-in kinds and custom resources alike.

A Schema node says what a value is, which fields it has, and how lists merge. Pruning, patches, field ownership and the
OpenAPI documents all walk these nodes. Those of built-in kinds are made in `builtin.py`, those of custom resources in
`structural.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from purelb_sm.sandbox.apiserver.objects import JSON


@dataclass(slots=True, eq=False)
class Schema:
    """What a value may be.

    `type` is object, array, any, a JSON scalar (string, integer, number, boolean), or a scalar with a form of its own
    (time, microtime, duration, quantity, intstr, bytes).
    """

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
    unprinted: frozenset[str] = frozenset()  # fields of a built-in type that are left out when empty
    zeros: dict[str, Any] = field(default_factory=dict)  # fields of a built-in type that are printed even when absent
    checks: JSON = field(default_factory=dict)  # default, enum, description and rules of a custom resource

    def child(self, key: str) -> Schema:
        """The schema of a field of an object, or of a map's value."""
        return self.fields.get(key) or self.values or ANY

    def knows(self, key: str) -> bool:
        if key in self.fields or self.values is not None or self.open:
            return True
        return self.embedded and key in ("apiVersion", "kind", "metadata")


ANY = Schema(open=True)


def unknown_fields(schema: Schema, value: Any, path: str = "") -> list[str]:
    """The paths of fields that the schema does not know, in the order they stand; nothing is changed."""
    found: list[str] = []
    for child_path, known, child, sub in children(schema, value, path):
        if known:
            found += unknown_fields(sub, child, child_path)
        else:
            found.append(child_path)
    return found


def prune(schema: Schema, value: Any) -> None:
    """Remove unknown fields, in place."""
    if schema is ANY:
        return
    if isinstance(value, dict):
        for key in [k for k in value if not schema.knows(k)]:
            del value[key]
        for key, child in value.items():
            if isinstance(child, dict | list):
                prune(schema.child(key), child)
    elif isinstance(value, list) and schema.items is not None:
        for child in value:
            prune(schema.items, child)


def children(schema: Schema, value: Any, path: str) -> Iterator[tuple[str, bool, Any, Schema]]:
    """(path, whether it is known, value, schema) of each part of a value."""
    if isinstance(value, dict) and schema.type in ("object", "any"):
        for key, child in value.items():
            sub_path = f"{path}.{key}" if path else key
            yield sub_path, schema.knows(key), child, schema.child(key)
    elif isinstance(value, list) and schema.items is not None:
        for i, child in enumerate(value):
            yield f"{path}[{i}]", True, child, schema.items
