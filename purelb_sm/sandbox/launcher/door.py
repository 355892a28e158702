"""The way from the host's loopback into a user namespace: a socket opened outside, served inside."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_CHUNK = 1 << 16


@asynccontextmanager
async def served(door: socket.socket, upstream: Callable[[], tuple[str, int]]) -> AsyncIterator[None]:
    """While the block runs, every connection to `door` is passed on to `upstream`, byte by byte."""
    running: set[asyncio.Task[None]] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        # A connection that breaks on one side is closed on the other; nobody here need know why.
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            far_reader, far_writer = await asyncio.open_connection(*upstream())
            with contextlib.closing(far_writer):
                await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        running.discard(task)

    server = await asyncio.start_server(pass_on, sock=door)
    try:
        yield
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof() and not writer.is_closing():
        writer.write_eof()
