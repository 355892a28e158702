"""Who owns which field: `metadata.managedFields`, and server-side apply on top of it.

Sources: the server-side apply page of the Kubernetes documentation, KEP-555.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from purelb_sm.sandbox.apiserver import fieldsets
from purelb_sm.sandbox.apiserver.fieldsets import Path
from purelb_sm.sandbox.apiserver.objects import JSON, now
from purelb_sm.sandbox.apiserver.registry import Resource
from purelb_sm.sandbox.apiserver.schema import Schema
from purelb_sm.sandbox.apiserver.status import StatusError

NOTHING: JSON = {"metadata": {}}


class Writer(Protocol):
    """What ownership needs to know of a request."""

    @property
    def resource(self) -> Resource: ...

    @property
    def manager(self) -> str: ...

    @property
    def subresource(self) -> str: ...

    @property
    def force(self) -> bool: ...


@dataclass
class Applied:
    """An apply that is decided: the merged object, the fields its manager now owns, and the other managers' entries."""

    result: JSON
    fields: JSON
    others: list[JSON]


def _entries(obj: JSON) -> list[JSON]:
    """The entries of an object; a list with an empty entry is how a client asks to forget them all."""
    entries = obj.get("metadata", {}).get("managedFields") or []
    if not isinstance(entries, list) or any(not isinstance(e, dict) or "manager" not in e for e in entries):
        return []
    return entries


def _mine(writer: Writer, operation: str, entry: JSON) -> bool:
    identity = (entry.get("manager"), entry.get("operation"), entry.get("subresource", ""))
    return identity == (writer.manager, operation, writer.subresource)


def _entry(writer: Writer, operation: str, fields: JSON) -> JSON:
    entry: JSON = {
        "manager": writer.manager,
        "operation": operation,
        "apiVersion": writer.resource.api_version,
        "time": now(),
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }
    if writer.subresource:
        entry["subresource"] = writer.subresource
    return entry


def _written(writer: Writer, obj: JSON) -> JSON:
    """The part of an object that a request can write: the main resource not the status, the status not the rest."""
    if writer.subresource == "status":
        return {key: obj[key] for key in ("metadata", "status") if key in obj}
    if writer.resource.has_status:
        return {key: value for key, value in obj.items() if key != "status"}
    return obj


def record(writer: Writer, before: JSON, after: JSON, applied: Applied | None) -> None:
    """Set the entries of `after`, in place; the entries of `before` are shared and never changed."""
    entries = _after_update(writer, before, after) if applied is None else _after_apply(writer, before, applied)
    if entries:
        after["metadata"]["managedFields"] = entries
    else:
        after["metadata"].pop("managedFields", None)


def _after_update(writer: Writer, before: JSON, after: JSON) -> list[JSON]:
    """The writer owns what it changed, nobody else does any more."""
    entries = _entries(after)
    changed, removed = fieldsets.difference(writer.resource.schema, _written(writer, before), _written(writer, after))
    if not changed and not removed:
        return entries
    result = []
    mine: JSON = {}
    for entry in entries:
        own = _mine(writer, "Update", entry)
        fields = entry.get("fieldsV1") or {}
        lost = [p for p in removed if fieldsets.covers(fields, p)]
        gone = [] if own else [p for p in changed if fieldsets.covers(fields, p)]
        gained = [p for p in changed if not fieldsets.contains(fields, p)] if own else []
        if lost or gone or gained:
            fields = fieldsets.copied(fields)
            for path in (*lost, *gone):
                _take(fields, path, whole=path in lost)
            for path in gained:
                fieldsets.insert(fields, path)
            entry = {**entry, "fieldsV1": fields}
            if own:
                entry["time"] = now()
        if own:
            mine = entry
        if fields:
            result.append(entry)
    if not mine and changed:
        fields = {}
        for path in changed:
            fieldsets.insert(fields, path)
        result.append(_entry(writer, "Update", fields))
    return result


def _take(fields: JSON, path: Path, *, whole: bool) -> None:
    """Another's write takes a field; what lies below it stays owned unless the field itself went."""
    if whole or fieldsets.contains(fields, path):
        below = [] if whole else [p for p in fieldsets.members(fields) if p[: len(path)] == path and p != path]
        fieldsets.discard(fields, path)
        for each in below:
            fieldsets.insert(fields, each)


def _after_apply(writer: Writer, before: JSON, applied: Applied) -> list[JSON]:
    """The writer owns what it applied; an apply that changes nothing keeps its time too."""
    entries = list(applied.others)
    former = next((e for e in _entries(before) if _mine(writer, "Apply", e)), None)
    if former is not None and former.get("fieldsV1") == applied.fields:
        return _ordered(before, [*entries, former])
    if applied.fields:
        entries.append(_entry(writer, "Apply", applied.fields))
    return _ordered(before, entries)


def _ordered(before: JSON, entries: list[JSON]) -> list[JSON]:
    """Keep the order of entries stable, so that an unchanged object compares equal."""
    order = [(e.get("manager"), e.get("operation"), e.get("subresource")) for e in _entries(before)]

    def place(entry: JSON) -> int:
        key = (entry.get("manager"), entry.get("operation"), entry.get("subresource"))
        return order.index(key) if key in order else len(order)

    return sorted(entries, key=place)


def apply(writer: Writer, live: JSON, config: JSON) -> Applied:
    """Merge an applied configuration into the live object; 409 where another manager owns a field it changes."""
    schema = writer.resource.schema
    config = _without_nulls(_written(writer, config))
    wanted = list(fieldsets.leaves(schema, config, nodes=False))
    fields: JSON = {}
    for path, _ in wanted:
        fieldsets.insert(fields, path)
    others = [e for e in _entries(live) if not _mine(writer, "Apply", e)]
    taken = list(_conflicts(schema, live, wanted, others))
    if taken and not writer.force:
        raise _conflict(taken)
    for entry, path in taken:
        at = next(i for i, e in enumerate(others) if e is entry or e.get("was") is entry)
        altered = fieldsets.copied(others[at].get("fieldsV1") or {})
        _take(altered, path, whole=False)
        others[at] = {**others[at], "fieldsV1": altered, "was": entry}
    others = [{k: v for k, v in e.items() if k != "was"} for e in others if e.get("fieldsV1")]
    merged = _merged(schema, copy.deepcopy(live), config)
    former = next((e for e in _entries(live) if _mine(writer, "Apply", e)), None)
    if former is not None:
        _drop_abandoned(schema, merged, former.get("fieldsV1") or {}, fields, others)
    return Applied(merged, fields, others)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _conflicts(
    schema: Schema, live: JSON, wanted: list[tuple[Path, Any]], others: list[JSON]
) -> Iterator[tuple[JSON, Path]]:
    for path, value in wanted:
        there, current = fieldsets.lookup(schema, live, path)
        if (there and current == value) or (path[-1].startswith("k:") and there):
            continue
        for entry in others:
            if fieldsets.contains(entry.get("fieldsV1") or {}, path):
                yield entry, path


def _conflict(taken: list[tuple[JSON, Path]]) -> StatusError:
    causes = []
    lines = []
    for entry, path in taken:
        who = f'conflict with "{entry["manager"]}"'
        if entry.get("operation") != "Apply":
            who += f" using {entry.get('apiVersion')}"
            if entry.get("subresource"):
                who = f'conflict with "{entry["manager"]}" with subresource "{entry["subresource"]}"'
        field = fieldsets.dotted(path)
        causes.append({"reason": "FieldManagerConflict", "message": who, "field": field})
        lines.append(f"{who}: {field}")
    number = f"{len(taken)} conflict" + ("s" if len(taken) > 1 else "")
    text = lines[0] if len(lines) == 1 else "conflicts:\n- " + "\n- ".join(lines)
    return StatusError(409, "Conflict", f"Apply failed with {number}: {text}", {"causes": causes})


def _merged(schema: Schema, live: Any, config: Any) -> Any:
    """The live value with the configuration laid over it, by the schema's kinds of lists and maps."""
    if isinstance(config, dict) and isinstance(live, dict) and not schema.atomic:
        for key, value in config.items():
            live[key] = _merged(schema.child(key), live[key], value) if key in live else value
        return live
    if isinstance(config, list) and isinstance(live, list) and schema.list_type in ("map", "set"):
        places = {fieldsets.element(schema, item): i for i, item in enumerate(live)}
        for item in config:
            at = places.get(fieldsets.element(schema, item))
            if at is None:
                live.append(item)
            else:
                live[at] = _merged(schema.items or Schema(), live[at], item)
        return live
    return config


def _drop_abandoned(schema: Schema, merged: JSON, former: JSON, fields: JSON, others: list[JSON]) -> None:
    """What the manager applied before, applies no longer, and nobody else owns, goes."""
    gone = [p for p in fieldsets.members(former) if not fieldsets.covers(fields, p)]
    # An element of a list goes before its fields, as it is found by some of them.
    for path in sorted(gone, key=len):
        if not any(fieldsets.covers(e.get("fieldsV1") or {}, path) for e in others):
            fieldsets.remove(schema, merged, path)
