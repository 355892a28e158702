"""The subset of JSON path that printer columns of CRDs use: fields, indices, `[*]`, and equality filters."""

from __future__ import annotations

import re
from typing import Any

_STEP = re.compile(
    r"""\.(?P<field>(?:[^.\[\]\\]|\\.)+)"""
    r"""|\[(?:'(?P<quoted>(?:[^'\\]|\\.)*)'|"(?P<double>(?:[^"\\]|\\.)*)")\]"""
    r"""|\[(?P<index>-?\d+)\]"""
    r"""|\[(?P<star>\*)\]"""
    r"""|\[\?\(@\.(?P<key>[\w./-]+)\s*==\s*(?P<value>"[^"]*"|'[^']*'|[\w.-]+)\)\]"""
)


def find(obj: Any, path: str) -> list[Any]:
    """All values at the path; none where it leads nowhere or cannot be read."""
    found = [obj]
    at = 0
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None:
            return []
        at = match.end()
        found = [child for value in found for child in _step(value, match)]
    return found


def _step(value: Any, match: re.Match[str]) -> list[Any]:
    field = match["field"] or match["quoted"] or match["double"]
    if field is not None:
        field = re.sub(r"\\(.)", r"\1", field)
        return [value[field]] if isinstance(value, dict) and field in value else []
    if not isinstance(value, list):
        return list(value.values()) if match["star"] and isinstance(value, dict) else []
    if match["index"] is not None:
        at = int(match["index"])
        return [value[at]] if -len(value) <= at < len(value) else []
    if match["star"]:
        return value
    wanted = match["value"].strip("\"'")
    return [item for item in value if isinstance(item, dict) and str(item.get(match["key"])) == wanted]
