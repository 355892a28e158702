"""A client that goes on asking while nodes come and go: a request every hundredth of a second, each on a connection of
its own, and what became of each.

Client and servers are one process of their own, which the kernel runs before all others if it may: a request takes a
thousandth of a second however busy the machine is, so that not more of them are under way when an address moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

from purelb_sm.domain.addresses import Address
from purelb_sm.sandbox.cluster import Cluster, namespace
from purelb_sm.sandbox.cluster.layout import CLIENT

EVERY_S = 0.01
PATIENCE_S = 5.0
PORT = 7070
_TOTAL_RETRANS = 100
"""Where `tcpi_total_retrans` stands in `struct tcp_info`."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: when it was made (monotonic), who answered, and else what went wrong. A packet that had to be sent
    again was lost, even if the second was answered."""

    at: float
    by: str
    failure: str = ""


@dataclass
class Traffic:
    """All requests so far, in the order in which they ended."""

    asked: list[Asked] = field(default_factory=list)

    @property
    def lost(self) -> list[Asked]:
        return [one for one in self.asked if one.failure]

    def answerers(self) -> list[str]:
        """Who answered, in turn: a node once for each time that the answers begin to come from it."""
        by = [one.by for one in sorted(self.asked, key=lambda one: one.at) if one.by]
        return by[:1] + [new for old, new in pairwise(by) if new != old]

    def first_by(self, node: str, since: float) -> float | None:
        """When the first request since then was made that this node answered."""
        return min((one.at for one in self.asked if one.by == node and one.at >= since), default=None)

    def longest_gap_s(self) -> float:
        """Between two requests that were answered."""
        times = sorted(one.at for one in self.asked if not one.failure)
        return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


@asynccontextmanager
async def asking(cluster: Cluster, address: Address) -> AsyncIterator[Traffic]:
    """Asks while the block runs."""
    traffic = Traffic()
    names = {place: cluster.namespace_of(place) for place in cluster.nodes}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        str(address),
        cluster.namespace_of(CLIENT),
        json.dumps(names),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    reading = asyncio.create_task(_read(process, traffic))
    try:
        yield traffic
    finally:
        # It ends when nobody listens any more.
        assert process.stdin is not None
        process.stdin.close()
        await reading
        await process.wait()


async def _read(process: asyncio.subprocess.Process, traffic: Traffic) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        traffic.asked.append(Asked(*json.loads(line)))


# The process.


class _Process:
    """Everything in one thread and one loop; a request goes through it in a few turns."""

    def __init__(self, address: Address, client: str, nodes: dict[str, str]) -> None:
        self._to = (str(address), PORT)
        self._family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        self._open = namespace.socket_opener(client)
        self._selector = selectors.DefaultSelector()
        self._asked: dict[socket.socket, float] = {}
        self._selector.register(0, selectors.EVENT_READ)
        for node, name in nodes.items():
            listening = namespace.socket_opener(name)(self._family, socket.SOCK_STREAM, 0)
            listening.setblocking(False)
            listening.bind(("0.0.0.0" if address.version == 4 else "::", PORT))
            listening.listen(64)
            self._selector.register(listening, selectors.EVENT_READ, lambda one, node=node: self._accept(one, node))

    def run(self) -> None:
        due = time.monotonic()
        while True:
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                if key.fd == 0:
                    return
                key.data(key.fileobj)
            now = time.monotonic()
            if now >= due:
                self._ask(now)
                due = max(due + EVERY_S, now)
                for late in [one for one, at in self._asked.items() if now - at > PATIENCE_S]:
                    self._done(late, "", f"no answer within {PATIENCE_S} s")

    def _accept(self, listening: Any, node: str) -> None:
        with contextlib.suppress(OSError):
            connection, _ = listening.accept()
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, lambda one: self._serve(one, node))

    def _serve(self, connection: Any, node: str) -> None:
        self._selector.unregister(connection)
        with contextlib.suppress(OSError), connection:
            connection.recv(64)
            connection.send(node.encode())

    def _ask(self, now: float) -> None:
        connection = self._open(self._family, socket.SOCK_STREAM, 0)
        connection.setblocking(False)
        connection.connect_ex(self._to)
        self._asked[connection] = now
        self._selector.register(connection, selectors.EVENT_WRITE, self._connected)

    def _connected(self, connection: Any) -> None:
        try:
            connection.send(b"who?")
        except OSError as error:
            self._done(connection, "", repr(error))
        else:
            self._selector.modify(connection, selectors.EVENT_READ, self._answered)

    def _answered(self, connection: Any) -> None:
        try:
            by = connection.recv(64).decode()
            again = struct.unpack_from(
                "=I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), _TOTAL_RETRANS
            )
            self._done(connection, by, "a packet was sent again" if any(again) else "" if by else "an empty answer")
        except OSError as error:
            self._done(connection, "", repr(error))

    def _done(self, connection: socket.socket, by: str, failure: str) -> None:
        self._selector.unregister(connection)
        connection.close()
        print(json.dumps([self._asked.pop(connection), by, failure]), flush=True)


def _hurry() -> None:
    for most in (lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)), lambda: os.nice(-15)):
        with contextlib.suppress(OSError):
            most()
            return


if __name__ == "__main__":
    _hurry()
    _Process(ip_address(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])).run()
