"""The book's own thread: the store is synchronous, and its transactions come one after the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")

CLOSE_S = 1.0
"""How long an end waits for the transaction that runs. Cut off after that, it is rolled back by the database."""


class BookThread:
    """Runs functions in one thread, in the order of calls.

    The thread is a daemon: a transaction that waits for a lock of somebody else's must not keep the process alive.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="book", daemon=True).start()

    async def call(self, function: Callable[..., T], *args: object) -> T:
        """The function's result. A cancelled caller leaves what runs to finish, and takes back what has not begun."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                result = function(*args)
            except BaseException as error:
                _tell(loop, future, future.set_exception, error)
            else:
                _tell(loop, future, future.set_result, result)

        self._work.put(work)
        return await future

    async def close(self) -> None:
        """Waits a moment for what runs to finish; then nothing more is taken."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.call(lambda: None)
        except TimeoutError:
            log.warning("transaction_cut_off", waited_s=CLOSE_S)
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


def _tell(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], say: Callable[[Any], None], what: object
) -> None:
    def tell() -> None:
        if not future.done():
            say(what)

    # The loop may have ended: then nobody waits for it.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(tell)
