"""Reading the fields of a ServiceGroup: each answer has its type, or InvalidGroup names the field and its value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from purelb_sm.errors import InvalidGroup


def read_flag(where: str, value: object) -> bool:
    """False where the field is not there."""
    if value is None or isinstance(value, bool):
        return bool(value)
    raise InvalidGroup(where, value, "must be true or false")


def read_mapping(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidGroup(where, value, "must be an object")
    return value


def read_list(where: str, value: object) -> list[Any]:
    """Empty where the field is not there."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidGroup(where, value, "must be a list")
    return value


def read_text(where: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidGroup(where, value, "must be a text")
    return value.strip()
