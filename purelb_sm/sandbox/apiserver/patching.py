"""The patch types of the API: JSON patch, merge patch, strategic merge patch. Pure; raises StatusError.

Sources: RFC 6902, RFC 7396, and the strategic merge patch page of the Kubernetes API conventions for the directives
`$patch`, `$retainKeys`, `$deleteFromPrimitiveList/…` and `$setElementOrder/…`.
"""

from __future__ import annotations

from typing import Any

import jsonpatch
import jsonpointer

from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.schema import Schema
from purelb_sm.sandbox.apiserver.status import StatusError, bad_request

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

_SET_ORDER = "$setElementOrder/"
_DELETE_FROM = "$deleteFromPrimitiveList/"
_DIRECTIVES = ("$patch", "$retainKeys")


def json_patch(target: JSON, operations: Any) -> JSON:
    """RFC 6902; 422 when an operation does not apply, 400 when it cannot be read."""
    if not isinstance(operations, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    try:
        patched: JSON = jsonpatch.JsonPatch(operations).apply(target)
    except (jsonpatch.JsonPatchConflict, jsonpatch.JsonPatchTestFailed, jsonpointer.JsonPointerException) as error:
        text = "the server rejected our request due to an error in our request"
        raise StatusError(422, "Invalid", text, {}) from error
    except (jsonpatch.InvalidJsonPatch, TypeError, KeyError) as error:
        raise bad_request(f"unable to decode the patch: {error}") from error
    if not isinstance(patched, dict):
        raise bad_request("the patch does not give an object")
    return patched


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396; `target` may be changed in place."""
    if not isinstance(patch, dict):
        return patch
    merged = target if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = merge_patch(merged.get(key), value)
        else:
            merged[key] = value
    return merged


def strategic_patch(target: Any, patch: JSON, schema: Schema) -> Any:
    """Like a merge patch, but lists with a merge key merge element by element; `target` may be changed in place."""
    directive = patch.get("$patch")
    if directive == "replace":
        return {k: v for k, v in patch.items() if k != "$patch"}
    if directive == "delete":
        return {}
    merged = target if isinstance(target, dict) else {}
    _retain(merged, patch)
    _delete_scalars(merged, patch)
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        sub = schema.child(key)
        order = patch.get(_SET_ORDER + key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            if value.get("$patch") == "delete":
                merged.pop(key, None)
            else:
                merged[key] = strategic_patch(merged.get(key), value, sub)
        elif isinstance(value, list) and sub.merge_key is not None:
            merged[key] = _merge_list(merged.get(key) or [], value, sub, order)
        else:
            merged[key] = value
    _order_untouched(merged, patch, schema)
    return merged


def _retain(merged: JSON, patch: JSON) -> None:
    keep = patch.get("$retainKeys")
    if keep is not None:
        for key in [k for k in merged if k not in keep]:
            del merged[key]


def _delete_scalars(merged: JSON, patch: JSON) -> None:
    for directive, values in patch.items():
        if directive.startswith(_DELETE_FROM):
            key = directive.removeprefix(_DELETE_FROM)
            if key in merged:
                merged[key] = [v for v in merged[key] if v not in values]


def _order_untouched(merged: JSON, patch: JSON, schema: Schema) -> None:
    """A list that has an order directive but no patch of its own is only put in order."""
    for directive, order in patch.items():
        key = directive.removeprefix(_SET_ORDER)
        if key == directive or key in patch or not isinstance(merged.get(key), list):
            continue
        sub = schema.child(key)
        if sub.merge_key is not None:
            merged[key] = _in_order(merged[key], merged[key], order, sub.merge_key)


def _merge_list(current: list[Any], patch: list[Any], schema: Schema, order: list[Any] | None) -> list[Any]:
    key = schema.merge_key
    assert key is not None
    if any(isinstance(p, dict) and p.get("$patch") == "replace" for p in patch):
        return [p for p in patch if not (isinstance(p, dict) and "$patch" in p)]
    items = schema.items or Schema()
    before = list(current)
    merged = list(current)
    wanted = []
    for item in patch:
        if isinstance(item, dict) and key and key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        at = next((i for i, old in enumerate(merged) if _same(old, item, key)), None)
        if isinstance(item, dict) and item.get("$patch") == "delete":
            merged = [old for old in merged if not _same(old, item, key)]
            continue
        wanted.append(item)
        if at is None:
            merged.append(strategic_patch({}, item, items) if isinstance(item, dict) else item)
        elif isinstance(item, dict):
            merged[at] = strategic_patch(merged[at], item, items)
    return _in_order(merged, before, order if order is not None else wanted, key)


def _same(one: Any, other: Any, key: str) -> bool:
    if not key:
        return bool(one == other)
    return isinstance(one, dict) and isinstance(other, dict) and one.get(key) == other.get(key)


def _place(items: list[Any], item: Any, key: str) -> int:
    return next((i for i, other in enumerate(items) if _same(other, item, key)), -1)


def _in_order(merged: list[Any], before: list[Any], order: list[Any], key: str) -> list[Any]:
    """Elements named by the patch in its order, the others between them where they stood as far as that fits."""
    named = sorted((m for m in merged if _place(order, m, key) >= 0), key=lambda m: _place(order, m, key))
    others = [m for m in merged if _place(order, m, key) < 0]
    result = []
    while named and others:
        left, right = _place(before, others[0], key), _place(before, named[0], key)
        source = others if left >= 0 and right >= 0 and left < right else named
        result.append(source.pop(0))
    return result + others + named
