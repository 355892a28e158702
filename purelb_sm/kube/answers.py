"""What the API server's refusals mean: from status and Status object to the error tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from purelb_sm.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    Throttled,
    Unavailable,
)


class _Details(msgspec.Struct):
    retry_after_s: float | None = msgspec.field(default=None, name="retryAfterSeconds")


class _Status(msgspec.Struct):
    """The meta/v1 Status object that carries every refusal."""

    message: str | None = None
    reason: str | None = None
    code: int | None = None
    details: _Details | None = None


_decode_status = msgspec.json.Decoder(_Status).decode


def error_of(status: int, data: bytes, headers: Mapping[str, str], what: str) -> KubeError:
    """The error for an answer of `status`, with message, reason and Retry-After of the server."""
    try:
        said = _decode_status(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        said = _Status()
    return _error(said, status, _retry_after(headers.get("Retry-After"), said), what)


def watch_error(data: bytes | msgspec.Raw, what: str) -> KubeError:
    """The error for the Status object of a watch's ERROR event."""
    try:
        said = _decode_status(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        said = _Status()
    return _error(said, said.code or 500, _retry_after(None, said), what)


def _error(said: _Status, status: int, retry_after_s: float | None, what: str) -> KubeError:
    reason = said.reason or ""
    message = f"{what}: {status} {said.message or reason or 'no reason given'}"
    return _kind(status, reason)(message, status=status, kind_reason=reason, retry_after_s=retry_after_s)


_BY_STATUS: Final[dict[int, type[KubeError]]] = {
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    408: Unavailable,
    409: Conflict,
    410: Gone,
    429: Throttled,
}


def _kind(status: int, reason: str) -> type[KubeError]:
    if status == 409 and reason == "AlreadyExists":
        return AlreadyExists
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    # A server that redirects is no API server we know how to talk to, and may become one later.
    return Invalid if 400 <= status < 500 else Unavailable


def _retry_after(header: str | None, said: _Status) -> float | None:
    """Seconds from the header (RFC 9110 10.2.3; its date form is not used by API servers) or the Status object."""
    try:
        seconds = float(header) if header else None
    except ValueError:
        seconds = None
    if seconds is None and said.details is not None:
        seconds = said.details.retry_after_s
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None
