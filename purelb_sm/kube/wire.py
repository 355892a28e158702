"""What the writing modules share: times as the API writes them, answers as plain objects, the part of the client used.

Objects that we read in order to write them back stay plain JSON: a typed form would drop the fields of newer servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from purelb_sm.errors import Unavailable
from purelb_sm.kube.client import JSON


class Requests(Protocol):
    """What of a KubeClient the writers need."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = JSON,
        timeout_s: float | None = None,
    ) -> bytes: ...


def utc_now() -> datetime:
    return datetime.now(UTC)


def plain_time(at: datetime) -> str:
    """A meta/v1 Time: seconds, in UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_time(at: datetime) -> str:
    """A meta/v1 MicroTime. The server refuses one without its six digits of fraction."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def plain_object(data: bytes, what: str) -> dict[str, Any]:
    """The object of an answer, as JSON, with its `metadata`. Raises Unavailable if it is none."""
    try:
        read = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unavailable(f"{what}: answer not understood: {error}") from error
    if not isinstance(read, dict) or not isinstance(read.get("metadata"), dict):
        raise Unavailable(f"{what}: answer is no object")
    return read


def version_of(item: Mapping[str, Any]) -> str:
    """The resourceVersion of a plain object."""
    return str(item["metadata"].get("resourceVersion") or "")
