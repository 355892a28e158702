"""Waiting for a condition with a deadline: the only kind of waiting that tests do."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 30.0


async def eventually(
    probe: Callable[[], T | Awaitable[T | None] | None], what: str = "", *, deadline_s: float = DEADLINE_S
) -> T:
    """The first true answer of `probe`, asked again and again. Fails the test after the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        answer = probe()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what or inspect.getsource(probe).strip()}")
        await asyncio.sleep(0.01)
