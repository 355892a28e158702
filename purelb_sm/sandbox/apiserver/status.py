"""The answers of kind Status: how an API server says no.

Owns the shape of refusals (code, reason, details, causes). Knows nothing of HTTP or of what is stored.
Source: apimachinery's `meta/v1.Status`, and the recordings in tests/contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from purelb_sm.sandbox.apiserver.objects import JSON

INVALID = "FieldValueInvalid"
REQUIRED = "FieldValueRequired"
FORBIDDEN = "FieldValueForbidden"
NOT_SUPPORTED = "FieldValueNotSupported"
DUPLICATE = "FieldValueDuplicate"
TOO_LONG = "FieldValueTooLong"
TOO_MANY = "FieldValueTooMany"
TYPE_INVALID = "FieldValueTypeInvalid"


class StatusError(Exception):
    """A refusal; `body` is the Status object to answer with and `retry_after_s` goes into the header."""

    def __init__(
        self, code: int, reason: str, message: str, details: JSON | None = None, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> JSON:
        body: JSON = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if self.details is not None:
            body["details"] = self.details
        body["code"] = self.code
        return body


@dataclass(frozen=True)
class FieldError:
    """One thing wrong with one field of an object; `text` follows the colon that ends the field's path."""

    field: str
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.field}: {self.text}"


def shown(value: Any) -> str:
    """A value as it is quoted in a refusal: strings in quotes, the rest as JSON."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def invalid_value(field: str, value: Any, why: str) -> FieldError:
    return FieldError(field, INVALID, f"Invalid value: {shown(value)}: {why}")


def required(field: str, why: str = "") -> FieldError:
    return FieldError(field, REQUIRED, "Required value" + (f": {why}" if why else ""))


def forbidden(field: str, why: str) -> FieldError:
    return FieldError(field, FORBIDDEN, f"Forbidden: {why}")


def duplicate(field: str, value: Any) -> FieldError:
    return FieldError(field, DUPLICATE, f"Duplicate value: {shown(value)}")


def not_supported(field: str, value: Any, supported: Sequence[str]) -> FieldError:
    values = ", ".join(shown(s) for s in sorted(supported))
    return FieldError(field, NOT_SUPPORTED, f"Unsupported value: {shown(value)}: supported values: {values}")


def _details(name: str, group: str, kind: str, **more: Any) -> JSON:
    details: JSON = {"name": name} if name else {}
    if group:
        details["group"] = group
    if kind:
        details["kind"] = kind
    return {**details, **{k: v for k, v in more.items() if v}}


def qualified(name: str, group: str) -> str:
    return f"{name}.{group}" if group else name


def not_found(plural: str, group: str, name: str) -> StatusError:
    return StatusError(404, "NotFound", f'{qualified(plural, group)} "{name}" not found', _details(name, group, plural))


def already_exists(plural: str, group: str, name: str) -> StatusError:
    message = f'{qualified(plural, group)} "{name}" already exists'
    return StatusError(409, "AlreadyExists", message, _details(name, group, plural))


def conflict(plural: str, group: str, name: str, why: str = "") -> StatusError:
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {why}'
    return StatusError(409, "Conflict", message, _details(name, group, plural))


def invalid(kind: str, group: str, name: str, errors: Sequence[FieldError], *, doubled: bool = False) -> StatusError:
    """422 with one cause per field; `doubled` lists the causes twice, as some checks of a real server run twice."""
    text = str(errors[0]) if len(errors) == 1 else "[" + ", ".join(str(e) for e in errors) + "]"
    causes = [{"reason": e.reason, "message": e.text, "field": e.field} for e in errors]
    message = f'{qualified(kind, group)} "{name}" is invalid: {text}'
    return StatusError(422, "Invalid", message, _details(name, group, kind, causes=causes * (2 if doubled else 1)))


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def unsupported_media_type(message: str, details: JSON | None = None) -> StatusError:
    return StatusError(415, "UnsupportedMediaType", message, details)


def method_not_allowed() -> StatusError:
    message = "the server does not allow this method on the requested resource"
    return StatusError(405, "MethodNotAllowed", message, {})


def expired(message: str) -> StatusError:
    return StatusError(410, "Expired", message)


def too_old(asked: int, oldest: int) -> StatusError:
    """What a watch, or an exact list, gets that begins before the history that is kept."""
    return expired(f"too old resource version: {asked} ({oldest})")


def too_large(asked: int, current: int) -> StatusError:
    """A resourceVersion from the future: 504 with a hint to try again in a second."""
    causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    return StatusError(504, "Timeout", message, {"causes": causes, "retryAfterSeconds": 1})


def unauthorized() -> StatusError:
    return StatusError(401, "Unauthorized", "Unauthorized")


def terminating(plural: str, group: str, name: str, namespace: str) -> StatusError:
    """403 for a create in a namespace that is being deleted."""
    text = f"unable to create new content in namespace {namespace} because it is being terminated"
    cause = {
        "reason": "NamespaceTerminating",
        "message": f"namespace {namespace} is being terminated",
        "field": "metadata.namespace",
    }
    message = f'{qualified(plural, group)} "{name}" is forbidden: {text}'
    return StatusError(403, "Forbidden", message, _details(name, group, plural, causes=[cause]))


def success(plural: str, group: str, name: str, uid: str) -> JSON:
    """The answer to a DELETE of a kind that does not return the object itself."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": _details(name, group, plural, uid=uid),
    }
