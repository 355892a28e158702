"""Waiting for a condition with a deadline: the only kind of waiting that tests do."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

T = TypeVar("T")

DEADLINE_S = 30.0


@overload
async def eventually(
    probe: Callable[[], Coroutine[Any, Any, T | None]], what: str = "", *, deadline_s: float = DEADLINE_S
) -> T: ...


@overload
async def eventually(probe: Callable[[], T | None], what: str = "", *, deadline_s: float = DEADLINE_S) -> T: ...


async def eventually(probe: Callable[[], Any], what: str = "", *, deadline_s: float = DEADLINE_S) -> Any:
    """The first true answer of `probe`, asked again and again. Fails the test after the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        answer = probe()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what or _source(probe)}")
        await asyncio.sleep(0.01)


def _source(probe: Callable[..., object]) -> str:
    try:
        return inspect.getsource(probe).strip()
    except (TypeError, OSError):
        return repr(probe)
