"""What is particular to a kind: its defaults, its checks, what a write may change. The base class is the plain kind.

A strategy is pure: it gets the object to store (to complete in place) and the stored one, and never writes. The order
of calls is in `operations.py`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.status import FieldError, forbidden, invalid_value, required

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")

_LABEL_WHY = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
    "with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_SUBDOMAIN_WHY = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
# Total bytes of keys and values of the annotations of one object.
ANNOTATIONS_LIMIT = 256 * 1024


class Strategy:
    """The behaviour of a kind without particular behaviour."""

    generation: ClassVar[bool] = False  # metadata.generation counts changes of the spec
    returns_deleted: ClassVar[bool] = False  # DELETE answers with the object instead of a Status
    unconditional_update: ClassVar[bool] = True  # PUT without resourceVersion is taken
    create_on_update: ClassVar[bool] = False  # PUT of an absent object creates it
    names: ClassVar[str] = "subdomain"
    selectable: ClassVar[Mapping[str, str]] = {"metadata.name": "", "metadata.namespace": ""}

    @property
    def fields(self) -> Mapping[str, str]:
        """The fields that field selectors may name, each with the text of an absent value."""
        return self.selectable

    def defaults(self, obj: JSON) -> None:
        """Fill in what decoding fills in; also runs on what a patch made."""

    def prepare_create(self, obj: JSON) -> None:
        """Drop what a create may not set, and complete the rest."""

    def prepare_update(self, obj: JSON, old: JSON) -> None:
        """Drop or restore what an update of the main resource may not change, and complete the rest."""

    def prepare_status(self, obj: JSON, old: JSON) -> None:
        """Restore what an update of the status may not change."""
        for key in [k for k in (*obj, *old) if k not in ("metadata", "status", "apiVersion", "kind")]:
            if key in old:
                obj[key] = old[key]
            else:
                obj.pop(key, None)

    def validate(self, obj: JSON, old: JSON | None) -> list[FieldError]:
        return []

    def validate_status(self, obj: JSON, old: JSON) -> list[FieldError]:
        return []

    def validate_delete(self, obj: JSON) -> None:
        """Raise a StatusError where this object may not be deleted."""

    def changed(self, obj: JSON, old: JSON) -> bool:
        """Whether the generation grows: something besides metadata and status differs."""
        return any(obj.get(k) != old.get(k) for k in (*obj, *old) if k not in ("metadata", "status"))


def keep_status(obj: JSON, old: JSON) -> None:
    """A status sent through the main resource is ignored."""
    if "status" in old:
        obj["status"] = old["status"]
    else:
        obj.pop("status", None)


def check_name(rule: str, name: str, field: str = "metadata.name") -> list[FieldError]:
    """Names by the rule of their kind: `label`, `subdomain`, or `path` (RBAC, anything but / and %)."""
    if rule == "path":
        if name in (".", "..") or "/" in name or "%" in name:
            return [invalid_value(field, name, "may not be '.', '..' or contain '/' or '%'")]
        return []
    pattern, why, limit = (LABEL, _LABEL_WHY, 63) if rule == "label" else (SUBDOMAIN, _SUBDOMAIN_WHY, 253)
    errors = []
    if not pattern.fullmatch(name):
        errors.append(invalid_value(field, name, why))
    if len(name) > limit:
        errors.append(invalid_value(field, name, f"must be no more than {limit} bytes"))
    return errors


@functools.lru_cache(4096)
def is_qualified(name: str) -> bool:
    """Keys of labels and annotations, finalizers, condition types: an optional DNS prefix, a slash, a name."""
    prefix, slash, rest = name.rpartition("/")
    if slash and (not SUBDOMAIN.fullmatch(prefix) or len(prefix) > 253):
        return False
    return len(rest) <= 63 and QUALIFIED.fullmatch(rest) is not None


_QUALIFIED_WHY = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_LABEL_VALUE_WHY = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)


def check_labels(labels: Mapping[str, Any], field: str) -> list[FieldError]:
    errors = []
    for key, value in labels.items():
        if not is_qualified(key):
            errors.append(invalid_value(field, key, _QUALIFIED_WHY))
        if not isinstance(value, str) or len(value) > 63 or not LABEL_VALUE.fullmatch(value):
            errors.append(invalid_value(field, value, _LABEL_VALUE_WHY))
    return errors


def check_metadata(meta: JSON, rule: str) -> list[FieldError]:
    """The checks that hold for the metadata of every kind."""
    errors: list[FieldError] = []
    if not meta.get("name"):
        errors.append(required("metadata.name", "name or generateName is required"))
    else:
        errors += check_name(rule, meta["name"])
    errors += check_labels(meta.get("labels") or {}, "metadata.labels")
    annotations = meta.get("annotations") or {}
    for key in annotations:
        if not is_qualified(key.lower()):
            errors.append(invalid_value("metadata.annotations", key, _QUALIFIED_WHY))
    if sum(len(k.encode()) + len(str(v).encode()) for k, v in annotations.items()) > ANNOTATIONS_LIMIT:
        text = f"Too long: may not be more than {ANNOTATIONS_LIMIT} bytes"
        errors.append(FieldError("metadata.annotations", "FieldValueTooLong", text))
    for finalizer in meta.get("finalizers") or ():
        if not is_qualified(finalizer):
            errors.append(invalid_value("metadata.finalizers", finalizer, _QUALIFIED_WHY))
    return errors


_FIXED = ("name", "namespace", "uid", "creationTimestamp")


def check_metadata_update(meta: JSON, old: JSON) -> list[FieldError]:
    """What may not change in the metadata of a stored object."""
    changed = [key for key in _FIXED if meta.get(key, old.get(key)) != old.get(key)]
    errors = [invalid_value(f"metadata.{key}", meta[key], "field is immutable") for key in changed]
    if old.get("deletionTimestamp"):
        before = old.get("finalizers") or []
        added = [f for f in meta.get("finalizers") or [] if f not in before]
        if added:
            names = ", ".join(f'"{f}"' for f in added)
            text = (
                "no new finalizers can be added if the object is being deleted, "
                f"found new finalizers []string{{{names}}}"
            )
            errors.append(forbidden("metadata.finalizers", text))
    return errors
