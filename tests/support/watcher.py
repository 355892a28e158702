"""Watches every node's kernel and the wire while a test runs, and says what was never to be.

Every change of an address is seen, since the kernels' own notices are read, not samples. On the wire the watcher has a
port of its own: there it hears what is announced, and asks ten times a second who has each local address that should
be somewhere, as a neighbour of its own, so that what the client believes is not corrected by the watching.

A thread of its own does that: a busy test does not make it blind, and it costs the test next to nothing.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf
from types import TracebackType
from typing import Self

from purelb_sm.domain.addresses import Address
from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.ownership import ADDRESS_PROTOCOL
from purelb_sm.net.rows import Entry, entry_of
from purelb_sm.sandbox.cluster import Cluster
from tests.support.invariants import Bounds, Record, Region, Span, Told, Violation, Wish, judge, report, subtract
from tests.support.notices import IFINFO, IFLA_ADDRESS, IFLA_IFNAME, RTM_DELLINK, RTM_NEWLINK, Kernel
from tests.support.wiretap import Wire

ASK_EVERY_S = 0.1
MOST_ASKED = 40
"""More addresses than this are not asked for at once."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of an address must not change when somebody else owns it."""

    index: int
    prefix_length: int
    protocol: int
    noprefixroute: bool
    permanent: bool

    @classmethod
    def of(cls, entry: Entry) -> Self:
        return cls(entry.index, entry.prefix_length, entry.protocol, entry.noprefixroute, entry.valid_s is None)


class Watcher:
    """A context manager, to be entered when the cluster is up; at its end it raises what `check` does, or adds what
    happened to the error that ended the block. Every method may be called at any time.

    `bounds` are those from the beginning on; see `agree`.
    """

    def __init__(self, cluster: Cluster, bounds: Bounds) -> None:
        self._cluster = cluster
        self._lock = threading.RLock()
        self.record = Record(cluster.nodes, time.time(), [(time.time(), bounds)])
        self._kernels: dict[str, Kernel] = {}
        self._macs: dict[str, str] = {}
        self._guarded: dict[tuple[str, Address], Shape] = {}
        self._wire: Wire | None = None
        self._failure: BaseException | None = None
        self._selector = selectors.DefaultSelector()
        self._caught_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._wake, self._woken = socket.socketpair()

    # From the beginning to the end.

    def __enter__(self) -> Self:
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._drain_wake)
        for node in self._cluster.nodes:
            kernel = self._kernels[node] = Kernel(self._cluster.open_socket(node))
            self._look_at(node, (time.time(), time.time()))
            self._selector.register(kernel.notices, selectors.EVENT_READ, partial(self._read, node))
        self._wire = Wire(self._cluster)
        self._selector.register(self._wire.socket, selectors.EVENT_READ, self._hear)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.check()
            else:
                error.add_note(self.report())
        finally:
            self._stop()

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._wake.send(b"x")
            self._thread.join()
        for kernel in self._kernels.values():
            kernel.close()
        if self._wire is not None:
            self._wire.close()
        self._selector.close()
        self._wake.close()
        self._woken.close()

    # What the test says.

    def expect(self, *addresses: Address, everywhere: bool = False) -> None:
        """From now on, these should be held: each by one node, or by every one that counts."""
        with self._lock:
            for address in addresses:
                self.record.wishes[address].append(Wish(time.time(), wanted=True, everywhere=everywhere))

    def expect_gone(self, *addresses: Address) -> None:
        """From now on, these should be held by nobody."""
        with self._lock:
            for address in addresses:
                self.record.wishes[address].append(Wish(time.time(), wanted=False))

    def agree(self, *, two_s: float | None = None, none_s: float | None = None, left_s: float | None = None) -> None:
        """Other bounds, for what begins from now on."""
        with self._lock:
            last = self.record.bounds[-1][1]
            new = Bounds(
                last.two_s if two_s is None else two_s,
                last.none_s if none_s is None else none_s,
                last.left_s if left_s is None else left_s,
            )
            self.record.bounds.append((time.time(), new))

    def remark(self, text: str) -> None:
        """For the reader of the report."""
        with self._lock:
            self.record.remarks.append((time.time(), f"-- {text}"))

    def excuse(self, node: str, why: str) -> None:
        """From now on the node does not count: what it holds is no second holder, is not left behind, and need not be
        there. For nodes whose agent cannot do anything. That the address is held by somebody stays demanded."""
        with self._lock:
            self.record.excused[node].append((time.time(), inf))
        self.remark(f"{node} does not count: {why}")

    def count(self, node: str) -> None:
        """The node counts again."""
        with self._lock:
            regions = self.record.excused[node]
            if regions and regions[-1][1] == inf:
                regions[-1] = (regions[-1][0], time.time())
        self.remark(f"{node} counts again")

    def guard(self, *nodes: str, only: Iterable[Address] | None = None) -> None:
        """What of these nodes (all, if none is named) is somebody else's now must stay as it is from now on."""
        self._catch_up()
        with self._lock:
            for node in nodes or self._cluster.nodes:
                for (_index, address), entry in self._kernels[node].table.items():
                    if not _mine(entry) and (only is None or address in only):
                        self._guarded[node, address] = Shape.of(entry)

    def release(self, *nodes: str) -> None:
        """The test itself is going to change what is somebody else's on these nodes."""
        self._catch_up()
        with self._lock:
            for key in [key for key in self._guarded if key[0] in nodes]:
                del self._guarded[key]

    # What there is to know.

    def holders(self, address: Address) -> list[str]:
        """The nodes that hold it with our mark, by the notices of their kernels so far."""
        self._catch_up()
        with self._lock:
            return self._holders(address)

    def announcements(self, address: Address, node: str, since: float = 0.0) -> list[float]:
        """When the node announced the address without being asked."""
        self._catch_up()
        with self._lock:
            told = self.record.told[address]
            return [one.at for one in told if not one.asked and one.node == node and one.at >= since]

    def changes(self, address: Address, node: str, since: float = 0.0) -> int:
        """How many times the address came to the node or left it."""
        self._catch_up()
        with self._lock:
            ends = [e for s in self.record.spans[address] if s.node == node for e in (s.since[1], s.until[1])]
            return sum(since <= end < inf for end in ends)

    def table(self) -> dict[Address, list[str]]:
        """The holders of every address that has any."""
        self._catch_up()
        with self._lock:
            return {address: nodes for address in self.record.spans if (nodes := self._holders(address))}

    def unannounced(self, since: float) -> list[Address]:
        """What a node holds and has announced to nobody since then without being asked."""
        self._catch_up()
        with self._lock:
            told = {(a, t.node) for a, some in self.record.told.items() for t in some if t.at >= since and not t.asked}
            return [a for a in self.record.spans for node in self._holders(a) if (a, node) not in told]

    def gaps(self, since: float) -> dict[Address, list[Region]]:
        """When since then surely nobody held an address that has been held at all, by the kernels' notices."""
        self._catch_up()
        with self._lock:
            now = time.time()
            found = {a: subtract([(since, now)], [s.possibly for s in spans]) for a, spans in self.record.spans.items()}
        return {address: gaps for address, gaps in found.items() if gaps}

    def _holders(self, address: Address) -> list[str]:
        return sorted({span.node for span in self.record.spans[address] if span.until[0] == inf})

    def violations(self) -> list[Violation]:
        self._catch_up()
        with self._lock:
            return judge(self.record, time.time(), self._locals())

    def report(self) -> str:
        found = self.violations()
        with self._lock:
            return report(self.record, found, time.time())

    def check(self) -> None:
        """Raises AssertionError, with everything that happened, if something was that must not be."""
        if self.violations():
            raise AssertionError(self.report())

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """While the block runs nothing is read, so that the kernels' notices pile up."""
        with self._lock:
            yield

    def _locals(self) -> dict[Address, bool]:
        return {one: self._is_local(one) for one in self.record.addresses()}

    def _is_local(self, address: Address) -> bool:
        return any(address in subnet for subnet in self._cluster.layout.local)

    def _catch_up(self) -> None:
        """Waits until everything that has happened so far is in the record."""
        if not self._thread.is_alive():
            if self._failure is not None:
                raise RuntimeError("the watcher has ended") from self._failure
            return
        self._caught_up.clear()
        self._wake.send(b".")
        if not self._caught_up.wait(30.0):
            raise RuntimeError("the watcher does not answer") from self._failure

    # Its thread.

    def _run(self) -> None:
        try:
            self._watch()
        except BaseException as failed:
            self._failure = failed
            raise

    def _watch(self) -> None:
        drained = time.time()
        next_ask = time.monotonic()
        while True:
            ready = self._selector.select(max(0.0, next_ask - time.monotonic()))
            # What is ready now was not yet when the turn before looked.
            since, drained = drained, time.time()
            going_on = True
            with self._lock:
                for key, _ in ready:
                    going_on &= key.data(since) is not False
                if time.monotonic() >= next_ask:
                    self._ask()
                    next_ask = time.monotonic() + ASK_EVERY_S
            if any(key.fileobj is self._woken for key, _ in ready):
                self._caught_up.set()
            if not going_on:
                return

    def _drain_wake(self, since: float) -> bool:
        return b"x" not in self._woken.recv(4096)

    # Kernels.

    def _read(self, node: str, since: float) -> None:
        kernel = self._kernels[node]
        when = (since, time.time())
        try:
            for kind, body in kernel.read():
                self._take(node, kind, body, when)
        except OSError as lost:
            if lost.errno != errno.ENOBUFS:
                raise
            self.remark(f"notices of {node} lost, its kernel is looked at as a whole")
            # What waits still is older than the look that follows.
            kernel.drop()
            self._look_at(node, when)

    def _take(self, node: str, kind: int, body: bytes, when: Region) -> None:
        table, names = self._kernels[node].table, self._kernels[node].names
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            self._take_link(node, kind, body, when)
            return
        entry = entry_of(body)
        if entry is None:
            return
        key = (entry.index, entry.address)
        if kind == nl.RTM_DELADDR:
            # The same address may be there under two prefix lengths; ours are not.
            if key in table and table[key].prefix_length == entry.prefix_length:
                self._gone(node, table.pop(key), when)
        else:
            before = table.get(key)
            table[key] = entry
            self._came(node, before, entry, names.get(entry.index, f"#{entry.index}"), when)

    def _take_link(self, node: str, kind: int, body: bytes, when: Region) -> None:
        kernel = self._kernels[node]
        family, _type, index, _flags, _change = IFINFO.unpack_from(body)
        if family != socket.AF_UNSPEC:  # A bridge's word about its port.
            return
        found = dict(nl.attributes(body, IFINFO.size))
        if kind == RTM_DELLINK:
            kernel.names.pop(index, None)
            for key in [key for key in kernel.table if key[0] == index]:
                self._gone(node, kernel.table.pop(key), when)
            return
        kernel.names[index] = found.get(IFLA_IFNAME, b"?").rstrip(b"\0").decode()
        if len(found.get(IFLA_ADDRESS, b"")) == 6:
            self._macs[found[IFLA_ADDRESS].hex(":")] = node

    def _look_at(self, node: str, when: Region) -> None:
        """Takes in the whole table, and what is no more in it."""
        kernel = self._kernels[node]
        links, entries = kernel.dump()
        for body in links:
            self._take_link(node, RTM_NEWLINK, body, when)
        present = {(entry.index, entry.address): entry for entry in entries}
        for key in [key for key in kernel.table if key not in present]:
            self._gone(node, kernel.table.pop(key), when)
        for key, entry in present.items():
            before = kernel.table.get(key)
            kernel.table[key] = entry
            self._came(node, before, entry, kernel.names.get(entry.index, f"#{entry.index}"), when)

    def _came(self, node: str, before: Entry | None, entry: Entry, interface: str, when: Region) -> None:
        shape = self._guarded.get((node, entry.address))
        if shape is not None and shape.index == entry.index and Shape.of(entry) != shape:
            self._touched(node, entry.address, f"foreign address changed to {Shape.of(entry)}", when)
        if before is not None and _mine(before) and not _mine(entry):
            self._close(node, before, when)
        if _mine(entry) and (before is None or not _mine(before)):
            self.record.spans[entry.address].append(Span(node, f"{interface}#{entry.index}", when))

    def _gone(self, node: str, entry: Entry, when: Region) -> None:
        shape = self._guarded.get((node, entry.address))
        if shape is not None and shape.index == entry.index:
            self._touched(node, entry.address, "foreign address removed", when)
        if _mine(entry):
            self._close(node, entry, when)

    def _close(self, node: str, entry: Entry, when: Region) -> None:
        for span in self.record.spans[entry.address]:
            if span.node == node and span.until[0] == inf and span.interface.endswith(f"#{entry.index}"):
                span.until = when

    def _touched(self, node: str, address: Address, what: str, when: Region) -> None:
        self.record.touched.append(Violation(what, f"{address} on {node}", (when[1], when[1])))

    # The wire.

    def _ask(self) -> None:
        if self._wire is None:
            return
        latest = {a: wishes[-1] for a, wishes in self.record.wishes.items() if wishes}
        wanted = [a for a, wish in latest.items() if wish.wanted and not wish.everywhere]
        for address in [a for a in wanted if self._is_local(a)][:MOST_ASKED]:
            self.record.asks[address].append(time.time())
            self._wire.ask(address)

    def _hear(self, since: float) -> None:
        assert self._wire is not None
        for sighting, for_us in self._wire.heard():
            node = self._macs.get(sighting.mac)
            if node is None or sighting.kind == "neighbor-solicitation":
                continue
            if (for_us and sighting.address in self.record.wishes) or sighting.gratuitous:
                self.record.told[sighting.address].append(Told(sighting.at, node, asked=for_us))


def _mine(entry: Entry) -> bool:
    return entry.protocol == ADDRESS_PROTOCOL
