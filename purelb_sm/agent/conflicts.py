"""Foreign hosts that use an address: looked for before it is first announced, and while it is (C20).

Sources: RFC 5227 sections 2.1 (probing) and 2.4 (c) (going on with an address that somebody else uses, too), RFC 4862
section 5.4 (duplicate address detection). Both families are probed here rather than by the kernel, whose duplicate
detection tells no MAC, takes a second or two, and leaves a dead address or none.

Invariants:
* Whether an address is in use is said at the end of its probes, never before, and a conflict while it is announced only
  after a while: whoever was heard may be a node of ours whose Lease is still on its way to us.
* A foreign host that goes on using an address cannot make us send more than one announcement of it in 10 s.

One task probes for all addresses, by when they are due; an address that waits costs an entry in a heap.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import structlog

from purelb_sm.agent.ledger import Where
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.agent_config import ProbeConfig
from purelb_sm.net import KernelProtocol, NetError, Sighting

log = structlog.get_logger(__name__)

NOBODY: Final = b""
BATCH: Final = 64
PAUSE_S: Final = 0.005
"""After so many probes, so long a pause: a thousand addresses must be no storm of broadcasts."""
LINK_DOWN_S: Final = 1.0
"""While a link is down, nobody can be asked; it is tried again so often."""
CONFIRM_S: Final = 1.0
"""Long enough for the Lease of a node that has just joined to come by."""
DEFEND_S: Final = 10.0
"""DEFEND_INTERVAL of RFC 5227."""
DEFENCES_MAX: Final = 20
"""... and within that time so many of all addresses together: what takes them all is no single host's mistake."""
TELL_AGAIN_S: Final = 300.0
HEARD_MAX: Final = 16
SUSPECTS_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the rest of the agent knows of the link and of the address.

    is_ours     whether this MAC is a node's of ours
    announced   whether a node of ours has announced the address already: then it comes from there, and is not probed
    may_defend  whether the others count on this node, so that no node of ours has taken over from it
    """

    is_ours: Callable[[bytes], bool] = lambda mac: False
    announced: Callable[[Address], bool] = lambda address: False
    may_defend: Callable[[], bool] = lambda: True


@dataclass(slots=True)
class Counters:
    """Since start. `found`: probes that ended with a foreign host; `announced`: foreign hosts heard meanwhile."""

    found: int = 0
    announced: int = 0
    probes: int = 0
    defences: int = 0


@dataclass(slots=True, order=True)
class _Series:
    """The probes for one address. `due` is on the loop's clock; `over`: nothing is sent or heard any more."""

    due: float
    where: Where = field(compare=False)
    left: int = field(compare=False)
    interval_s: float = field(compare=False)
    heard: dict[bytes, None] = field(compare=False, default_factory=dict)
    over: bool = field(compare=False, default=False)


Suspicion = tuple[Where, bytes]


class Conflicts:
    """Run `run()` as a task; what is not `async` may be called at any time. `defends`: whether frames may be sent about
    an address that is announced and that a foreign host uses.

    `probed` is told of addresses whose probes have ended; `tell` of each foreign host, now and then: where, its MAC,
    and whether we announce the address.
    """

    def __init__(
        self,
        kernel: KernelProtocol,
        around: Surroundings,
        probed: Callable[[Iterable[Address]], None],
        tell: Callable[[Where, bytes, bool], None],
    ) -> None:
        self.counters = Counters()
        self.config = ProbeConfig()
        self.defends = True
        self._kernel = kernel
        self._around = around
        self._probed = probed
        self._tell = tell
        self._series: dict[Address, _Series] = {}
        self._due: list[_Series] = []
        self._guarded: set[Where] = set()
        self._suspects: dict[Suspicion, float] = {}
        self._told: dict[tuple[Where, bytes, bool], float] = {}
        self._defended: dict[Where, float] = {}
        self._wake = asyncio.Event()
        kernel.on_sighting(self._saw)

    # Before an address is announced.

    def ask(self, where: Where) -> bytes | None:
        """The MAC of the foreign host that uses the address, or NOBODY; None: that is being found out. The answer is
        given once: to ask again is to probe again."""
        series = self._series.get(where[0])
        if series is None or series.where != where:
            return self._begin(where)
        if not series.over:
            return None
        self.forget(where[0])
        foreign = next((mac for mac in series.heard if not self._around.is_ours(mac)), NOBODY)
        if foreign:
            self.counters.found += 1
            self._say(where, foreign, announced=False)
        return foreign

    def forget(self, address: Address) -> None:
        """Nobody wants to know of this address any more."""
        series = self._series.pop(address, None)
        if series is not None and series.where not in self._guarded:
            self._kernel.stop_listening([address], series.where[1])

    def _begin(self, where: Where) -> bytes | None:
        self.forget(where[0])
        if not self._listen(where):
            # No Ethernet, or none at all: there is nobody to ask, and what is wrong with it the addition will show.
            return NOBODY
        series = _Series(asyncio.get_running_loop().time(), where, self.config.count, self.config.interval_s)
        self._series[where[0]] = series
        self._queue(series)
        return None

    # While it is announced.

    def guard(self, where: Where) -> None:
        """The address is here, and announced."""
        if where not in self._guarded and self._listen(where):
            self._guarded.add(where)

    def let_go(self, where: Where) -> None:
        """It is not, or nobody else is to be looked for."""
        if where in self._guarded:
            self._guarded.discard(where)
            if where[0] not in self._series:
                self._kernel.stop_listening([where[0]], where[1])

    def _listen(self, where: Where) -> bool:
        try:
            self._kernel.listen([where[0]], where[1])
        except NetError as error:
            log.warning("link_not_listened_to", interface=where[1], error=str(error))
            return False
        return True

    def _saw(self, sighting: Sighting) -> None:
        where = (sighting.address, sighting.interface)
        series = self._series.get(sighting.address)
        if series is not None and series.where == where:
            # Who asks for the same address at the same time is in conflict with us, too: RFC 5227 section 2.1.1.
            if not series.over and len(series.heard) < HEARD_MAX:
                series.heard[sighting.mac] = None
            return
        suspicion = (where, sighting.mac)
        # Who only asks is answered by the kernel, and goes away.
        if sighting.asks or where not in self._guarded or suspicion in self._suspects:
            return
        if len(self._suspects) < SUSPECTS_MAX and not self._around.is_ours(sighting.mac):
            self._suspects[suspicion] = asyncio.get_running_loop().time() + CONFIRM_S
            self._wake.set()

    # The task.

    async def run(self) -> None:
        """Sends and judges what is due, until cancelled; then nothing is listened for any more."""
        try:
            while True:
                self._wake.clear()
                pause_s = self._next() - asyncio.get_running_loop().time()
                if pause_s > 0:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(None if pause_s == float("inf") else pause_s):
                            await self._wake.wait()
                    continue
                ended = self._probe_some()
                if ended:
                    self._probed(ended)
                await self._judge_suspects()
                await asyncio.sleep(PAUSE_S)
        finally:
            self._close()

    def _next(self) -> float:
        probes = self._due[0].due if self._due else float("inf")
        return min(probes, next(iter(self._suspects.values()), float("inf")))

    def _probe_some(self) -> list[Address]:
        """Sends what is due of the probes, a batch at most; answers with the addresses whose series have ended."""
        ended: list[Address] = []
        now = asyncio.get_running_loop().time()
        for _ in range(BATCH):
            if not self._due or self._due[0].due > now:
                break
            series = heapq.heappop(self._due)
            # One that was given up is still in the heap, and nothing more than that.
            if self._series.get(series.where[0]) is not series:
                continue
            if series.left and self._probe(series):
                self._queue(series)
            else:
                series.over = True
                ended.append(series.where[0])
        return ended

    def _probe(self, series: _Series) -> bool:
        """False: there is nobody to ask."""
        try:
            sent = self._kernel.probe(*series.where)
        except NetError as error:
            log.warning("not_probed", address=str(series.where[0]), interface=series.where[1], error=str(error))
            return False
        self.counters.probes += sent
        series.left -= sent
        series.due = asyncio.get_running_loop().time() + (series.interval_s if sent else LINK_DOWN_S)
        return True

    def _queue(self, series: _Series) -> None:
        heapq.heappush(self._due, series)
        self._wake.set()

    async def _judge_suspects(self) -> None:
        now = asyncio.get_running_loop().time()
        for (where, mac), due in list(self._suspects.items()):
            # In order of time, since all wait equally long.
            if due > now:
                return
            del self._suspects[where, mac]
            if where in self._guarded and not self._around.is_ours(mac):
                self.counters.announced += 1
                self._say(where, mac, announced=True)
                await self._defend(where, now)

    async def _defend(self, where: Where, now: float) -> None:
        """One announcement, so that neighbours find us again; not more, lest two that both insist flood the link."""
        # Kept though the address may have left and come back since: the link has not forgotten.
        self._defended = {what: at for what, at in self._defended.items() if now - at < DEFEND_S}
        lately = where in self._defended or len(self._defended) >= DEFENCES_MAX
        if lately or not (self.defends and self._around.may_defend()):
            return
        self._defended[where] = now
        try:
            self.counters.defences += await self._kernel.announce(
                *where, 0.0, 1, still_ours=lambda: where in self._guarded
            )
        except NetError as error:
            log.warning("not_defended", address=str(where[0]), interface=where[1], error=str(error))

    def _say(self, where: Where, mac: bytes, *, announced: bool) -> None:
        now, what = asyncio.get_running_loop().time(), (where, mac, announced)
        if len(self._told) >= SUSPECTS_MAX:
            self._told = {told: at for told, at in self._told.items() if now - at < TELL_AGAIN_S}
        if now - self._told.get(what, float("-inf")) < TELL_AGAIN_S or len(self._told) >= SUSPECTS_MAX:
            return
        self._told[what] = now
        log.warning(
            "address_conflict", address=str(where[0]), interface=where[1], mac=mac.hex(":"), announced=announced
        )
        self._tell(where, mac, announced)

    def _close(self) -> None:
        for address in list(self._series):
            self.forget(address)
        for where in list(self._guarded):
            self.let_go(where)
