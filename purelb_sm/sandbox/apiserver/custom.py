"""Objects of custom resources: what their CRD's schema says, applied to every write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from purelb_sm.sandbox.apiserver import structural
from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.schema import Schema, prune
from purelb_sm.sandbox.apiserver.status import FieldError
from purelb_sm.sandbox.apiserver.strategy import Strategy, keep_status


class CustomStrategy(Strategy):
    """One version of a custom resource."""

    generation: ClassVar[bool] = True
    unconditional_update: ClassVar[bool] = False

    def __init__(self, spec: JSON, schema: Schema, *, has_status: bool, selectable: tuple[str, ...] = ()) -> None:
        self._schema = schema
        self._validator = structural.Validator(spec, schema)
        self._has_status = has_status
        self._not_run: list[str] = []
        self._selectable = {**self.selectable, **dict.fromkeys(selectable, "")}

    @property
    def fields(self) -> Mapping[str, str]:
        return self._selectable

    def defaults(self, obj: JSON) -> None:
        structural.default(self._schema, obj)

    def prepare_create(self, obj: JSON) -> None:
        if self._has_status:
            obj.pop("status", None)

    def prepare_update(self, obj: JSON, old: JSON) -> None:
        if self._has_status:
            keep_status(obj, old)

    def prepare_status(self, obj: JSON, old: JSON) -> None:
        super().prepare_status(obj, old)
        # Unlike built-in kinds, nothing of the metadata can be written through the status.
        managed = obj["metadata"].get("managedFields")
        obj["metadata"] = dict(old["metadata"])
        if managed is not None:
            obj["metadata"]["managedFields"] = managed

    def validate(self, obj: JSON, old: JSON | None) -> list[FieldError]:
        errors, not_run = self._validator.check(obj, old)
        self._not_run += not_run
        return errors

    def validate_status(self, obj: JSON, old: JSON) -> list[FieldError]:
        return self.validate(obj, old)

    def changed(self, obj: JSON, old: JSON) -> bool:
        ignored = ("metadata", "status") if self._has_status else ("metadata",)
        return any(obj.get(k) != old.get(k) for k in (*obj, *old) if k not in ignored)

    def drain_warnings(self) -> list[str]:
        """The rules that were not run since the last call, to be told to the writer."""
        drained, self._not_run = self._not_run, []
        return drained

    def convert(self, obj: JSON) -> JSON:
        """An object of another version of the kind as this one has it: conversion strategy None, so only pruned."""
        prune(self._schema, obj)
        structural.default(self._schema, obj)
        return obj
