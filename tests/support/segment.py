"""A link in memory, for agents in one process: what is sent from one address reaches another, unless it is cut."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from itertools import permutations

from purelb_sm.net import IPAddress


class Segment:
    """`cut` holds (from, to), by the names of the plugs. `carried` is everything that was sent, lost or not."""

    def __init__(self) -> None:
        self.cut: set[tuple[str, str]] = set()
        self.carried: list[tuple[str, bytes]] = []
        self._plugs: list[Plug] = []

    def plug(self, name: str, port: int = 7473) -> Plug:
        """A new one: what an earlier one of the name listened on is its own no more."""
        plug = Plug(self, name, port)
        self._plugs = [one for one in self._plugs if one.name != name] + [plug]
        return plug

    def part(self, *names: str) -> None:
        """Each of these loses all links with the others, both ways."""
        everybody = {plug.name for plug in self._plugs}
        self.cut |= {(a, b) for a, b in permutations(everybody, 2) if a in names or b in names}

    def carry(self, source: Plug, to: IPAddress, port: int, datagram: bytes) -> None:
        self.carried.append((source.name, datagram))
        for plug in self._plugs:
            if plug.port == port and to in plug.addresses and (source.name, plug.name) not in self.cut:
                plug.take(datagram)


class Plug:
    """A `DatagramProtocol`. `room` is how many datagrams wait, at most: what comes then is lost."""

    def __init__(self, segment: Segment, name: str, port: int, room: int = 300) -> None:
        self.name = name
        self.port = port
        self.addresses: frozenset[IPAddress] = frozenset()
        self.waiting: deque[bytes] = deque()
        self.closed = False
        self._segment = segment
        self._room = room
        self._callback: Callable[[], None] | None = None

    def take(self, datagram: bytes) -> None:
        if not self.closed and len(self.waiting) < self._room:
            self.waiting.append(datagram)
            self._ring()

    def listen(self, addresses: Collection[IPAddress]) -> None:
        self.addresses = frozenset(addresses)

    def on_readable(self, callback: Callable[[], None] | None) -> None:
        self._callback = callback
        self._ring()

    def send(self, datagram: bytes, source: IPAddress, to: IPAddress, port: int) -> bool:
        if self.closed or source not in self.addresses:
            return False
        self._segment.carry(self, to, port, datagram)
        return True

    def receive(self, size: int) -> bytes | None:
        return self.waiting.popleft()[:size] if self.waiting else None

    def close(self) -> None:
        self.closed, self.addresses = True, frozenset()

    def _ring(self) -> None:
        if self._callback is not None and self.waiting:
            asyncio.get_running_loop().call_soon(self._rung)

    def _rung(self) -> None:
        if self._callback is not None and self.waiting:
            self._callback()
            # As a selector does: as long as something waits.
            self._ring()
