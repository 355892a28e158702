"""Bad days on demand: answers that are late, wrong, cut off, or never come.

In-process tests put a `Fault` into a `Faults`; others POST the same as JSON to `/sandbox/faults` from loopback. A fault
counts down the requests that it hits, so that a test can say "the next two lists fail".
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.status import StatusError, bad_request
from purelb_sm.sandbox.apiserver.storage import encode

# too_many: 429 with Retry-After; error: 500; unavailable: 503; hang: no answer, or a watch without a byte;
# abort: the connection is reset at once, or after some events of a watch; truncate: half of the JSON, then the end;
# delay: the right answer, later; gone: 410; forbidden: 403; close: a watch ends at once.
KINDS = ("too_many", "error", "unavailable", "hang", "abort", "truncate", "delay", "gone", "forbidden", "close")
_numbers = itertools.count(1)


@dataclass
class Fault:
    """One way of going wrong, and the requests that it hits.

    `method`, `path` (a regular expression, searched in path and query) and `predicate` must all match; `watch` True or
    False picks watches or the others. `times` counts the hits that are left, None is no end. `delay_s` is for `delay`
    and, as Retry-After in whole seconds, for `too_many` and `unavailable`. `after` is the number of watch events that
    still get through before `abort`, `hang` or `truncate`.
    """

    kind: str
    method: str = ""
    path: str = ""
    watch: bool | None = None
    times: int | None = None
    delay_s: float = 1.0
    after: int = 0
    predicate: Callable[[web.Request], bool] | None = None
    number: int = field(default_factory=lambda: next(_numbers))
    hits: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of fault {self.kind!r}: one of {', '.join(KINDS)}")

    def matches(self, request: web.Request) -> bool:
        if self.times == 0 or (self.method and request.method != self.method.upper()):
            return False
        if self.watch is not None and self.watch != is_watch(request):
            return False
        if self.path and not re.search(self.path, request.path_qs):
            return False
        return self.predicate is None or self.predicate(request)

    def hit(self) -> None:
        self.hits += 1
        if self.times is not None:
            self.times -= 1

    def shown(self) -> JSON:
        keys = ("number", "kind", "method", "path", "watch", "times", "delay_s", "after", "hits")
        return {key: getattr(self, key) for key in keys}


def is_watch(request: web.Request) -> bool:
    return request.query.get("watch", "") in ("true", "1")


class Faults:
    """The faults in force; the first that matches a request hits it."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault

    def remove(self, number: int) -> None:
        self._faults = [f for f in self._faults if f.number != number]

    def clear(self) -> None:
        self._faults = []

    def shown(self) -> list[JSON]:
        return [f.shown() for f in self._faults]

    def take(self, request: web.Request) -> Fault | None:
        for fault in self._faults:
            if fault.matches(request):
                fault.hit()
                return fault
        return None


def parse(body: Any) -> Fault:
    """A Fault from JSON; raises 400."""
    if not isinstance(body, dict):
        raise bad_request("a fault is a JSON object")
    known = {"kind", "method", "path", "watch", "times", "delay_s", "after"}
    unknown = sorted(set(body) - known)
    if unknown:
        raise bad_request(f"unknown fields of a fault: {', '.join(unknown)}")
    try:
        return Fault(**body)
    except (TypeError, ValueError) as error:
        raise bad_request(str(error)) from error


async def answer(fault: Fault, request: web.Request) -> web.StreamResponse | None:
    """What the client gets instead; None where the right answer follows (late, or spoilt on its way out)."""
    match fault.kind:
        case "delay":
            await asyncio.sleep(fault.delay_s)
            return None
        case "too_many":
            text = "too many requests, please try again later"
            raise StatusError(429, "TooManyRequests", text, retry_after_s=max(1, round(fault.delay_s)))
        case "error":
            raise StatusError(500, "InternalError", "Internal error occurred: a fault was asked for", {})
        case "unavailable":
            text = "the server is currently unable to handle the request"
            raise StatusError(503, "ServiceUnavailable", text, retry_after_s=max(1, round(fault.delay_s)))
        case "forbidden":
            raise StatusError(403, "Forbidden", "somebody may not do this: a fault was asked for")
        case "gone":
            raise StatusError(410, "Expired", "The resourceVersion for the provided list is too old.")
    if is_watch(request) and fault.kind in ("hang", "abort", "truncate", "close"):
        # The watch itself goes wrong, after its first `after` events.
        return None
    if fault.kind == "hang":
        await asyncio.Event().wait()
    if fault.kind == "abort":
        abort(request)
        return web.Response()
    return None


def abort(request: web.Request) -> None:
    """Reset the connection, without an end that a client could take for one."""
    if request.transport is not None:
        request.transport.abort()


async def truncated(request: web.Request, response: web.Response) -> web.StreamResponse:
    """The headers of the right answer, half of its body, and a reset."""
    whole = response.body if isinstance(response.body, bytes) else encode({})
    half = web.StreamResponse(status=response.status, headers={"Content-Type": "application/json"})
    half.content_length = len(whole)
    await half.prepare(request)
    await half.write(whole[: len(whole) // 2])
    abort(request)
    return half
