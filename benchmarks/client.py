"""A client that asks one address so many times a second, whatever becomes of the answers; one line for each.

`python -m benchmarks.client ADDRESS PORT RATE`: `SENT ANSWERED NODE` on the monotonic clock, which all processes of a
machine share, or `SENT - -` for a request without an answer in time. Each has a connection of its own.
"""

from __future__ import annotations

import asyncio
import sys
import time

ANSWER_S = 0.5
"""A request that has no answer by then is lost. The kernel would send a lost SYN again after a second."""


async def ask(address: str, port: int) -> None:
    sent = time.monotonic()
    try:
        async with asyncio.timeout(ANSWER_S):
            node = await _get(address, port)
        line = f"{sent:.6f} {time.monotonic():.6f} {node}"
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        line = f"{sent:.6f} - -"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _get(address: str, port: int) -> str:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(f"GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        return (await reader.readline()).decode().strip()
    finally:
        writer.transport.abort()


async def main(address: str, port: int, rate: float) -> None:
    due = time.monotonic()
    running: set[asyncio.Task[None]] = set()
    while True:
        task = asyncio.create_task(ask(address, port))
        running.add(task)
        task.add_done_callback(running.discard)
        due += 1 / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
