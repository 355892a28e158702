"""An orderly end: a signal cancels the work, and the work cleans up after itself."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

import structlog

log = structlog.get_logger(__name__)


async def until_told_to_stop(work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` until it ends or a signal asks for the end; then cancels it and waits for its orderly end."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.info("stopped")
