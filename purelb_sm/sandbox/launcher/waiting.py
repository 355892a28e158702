"""Waiting for something to become true, with a deadline and a word for what was waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class NotInTime(AssertionError):
    """What was waited for did not come true. The message says what that was and what was seen last."""


async def wait_until(check: Callable[[], Awaitable[T]], timeout_s: float, what: str, *, every_s: float = 0.1) -> T:
    """The first true answer of `check`, asked every `every_s`. Raises `NotInTime` after `timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        answer = await check()
        if answer:
            return answer
        if loop.time() >= deadline:
            raise NotInTime(f"waited {timeout_s:g} s for {what}; last seen: {answer!r}")
        await asyncio.sleep(every_s)
