"""The book's own thread: the store is synchronous, and its transactions come one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class BookThread:
    """Runs functions in one thread, in the order of calls."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="book")

    async def call(self, function: Callable[..., T], *args: object) -> T:
        """The function's result. A cancelled caller leaves a running transaction to finish."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def close(self) -> None:
        """Waits for the transaction that runs, and drops what has not begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)
