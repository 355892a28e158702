"""The loop of a node: what changed in the cluster or in the kernel is looked at, and the difference closed.

Driven by changes, by the kernel's notices and by a slow timer; a turn without a change does nothing.

Invariant: until every watch has seen a whole list and this node's own Lease has been seen, nothing is put anywhere or
taken away. An empty cache must not pass for an empty cluster. What the kernel holds is kept, and its lifetimes renewed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Final

import structlog

from purelb_sm.agent.announcer import CHUNK, Announcer, Listener
from purelb_sm.agent.conflicts import Surroundings
from purelb_sm.agent.handover import Handover
from purelb_sm.agent.ledger import Ledger
from purelb_sm.agent.survey import OwnHomes, OwnSubnets, own_homes, own_macs, subnets_of
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.agent_config import LOCAL_DEFAULT, AddressConfig, AgentConfig
from purelb_sm.domain.announce import Announcements, Desired, Keep, Kind, Place, Verdict
from purelb_sm.net import KernelProtocol, NetError

log = structlog.get_logger(__name__)

LOOK_PAUSE_S: Final = 0.05
"""Least time between two looks at the whole kernel: our own changes cause notices, too."""
LOOK_SHARE: Final = 5.0
"""... and at least so many times as long as the last look took, where there is much to look at."""
AFTER_ERROR_S: Final = 1.0
NEVER: Final = float("inf")
FALLBACK_LIFETIME_S: Final = LOCAL_DEFAULT.lifetime_s or 300


@dataclass(frozen=True, slots=True)
class Bearings:
    """What the rest of the agent tells the loop, asked for at every turn.

    configured         whether the node's LBNodeAgent has been looked for
    config             it; None where it cannot be read
    place              where the node stands, given its own subnets; None until that can be known
    lease_valid_until  on the loop's clock
    cut_off            whether the others must have taken over all that is local; `Upkeep.wake` when that changes
    vouched            whether the others still count on this node though its Lease ran out, by what they say
    """

    configured: Callable[[], bool]
    config: Callable[[], AgentConfig | None]
    place: Callable[[OwnSubnets], Place | None]
    lease_valid_until: Callable[[], float]
    cut_off: Callable[[], bool] = lambda: False
    vouched: Callable[[], bool] = lambda: False


class Hold(Enum):
    """What our Lease lets us do; other than SAFE only if we are strict."""

    SAFE = "safe"
    LOST = "lost"
    LAPSED = "lapsed"


class Upkeep:
    """Run `run()` and `watch_kernel()` as tasks. What is not `async` may be called at any time.

    `strict`: give everything up a lifetime after our Lease ran out; otherwise keep it while the API server is away.
    `surveyed` is set when the node's own subnets are known; `settled` when the first whole comparison is done.
    """

    def __init__(
        self,
        kernel: KernelProtocol,
        ledger: Ledger,
        table: Announcements,
        bearings: Bearings,
        listener: Listener,
        clock: Callable[[], float],
        *,
        resync_s: float,
        strict: bool,
        around: Surroundings,
        handover: Handover,
    ) -> None:
        self.announcer = Announcer(kernel, ledger, self.decide, listener, clock, around, self.touch, handover)
        self.handover = handover
        self.announcer.frames.counted = lambda: clock() < bearings.lease_valid_until() or bearings.vouched()
        self.homes: OwnHomes = ()
        self.subnets: OwnSubnets = ()
        self.macs: tuple[bytes, ...] = ()
        self.surveyed = asyncio.Event()
        self.settled = asyncio.Event()
        self._kernel = kernel
        self._table = table
        self._bearings = bearings
        self._clock = clock
        self._resync_s = resync_s
        self._strict = strict
        self._started = clock()
        self.ready = False
        self._hold = Hold.SAFE
        self._cut_off = False
        self._wake = asyncio.Event()
        self._quiet = asyncio.Event()
        self._on_quiet: Callable[[], None] = lambda: None
        self._first: dict[Address, None] = {}
        self._later: dict[Address, None] = {}
        self._moved = True
        self._look = True
        self._may_look = self._next_resync = self._next_renewal = float("-inf")

    # What changed.

    def touch(self, addresses: Iterable[Address]) -> None:
        """These have to be looked at: a Service of theirs changed."""
        self._first.update(dict.fromkeys(addresses))
        if self._first:
            self._wake.set()

    def move(self) -> None:
        """Nodes, groups or configuration changed: the node may stand elsewhere."""
        self._moved = True
        self._quiet.clear()
        self._wake.set()

    def returned(self) -> None:
        """For a while the others did not count on this node: what it holds, another may have answered for."""
        log.info("returned", held=len(self.announcer.holdings))
        self.announcer.tell_again()
        self._later.update(dict.fromkeys(self.announcer.holdings.addresses()))
        self._wake.set()

    @property
    def safe(self) -> bool:
        """Whether we may go on holding what another node is to have: our Lease, if we are strict, and our neighbours
        let us. Else that one has it by now, or must not find it here."""
        return self._hold is Hold.SAFE and not self._cut_off

    def on_quiet(self, callback: Callable[[], None]) -> None:
        """`callback()` after each turn that leaves nothing to be done, and no address that waits for an heir."""
        self._on_quiet = callback

    async def handed_over(self) -> None:
        """Waits until what was to be done is done, and no address waits for an heir."""
        await self._quiet.wait()

    def decide(self, address: Address) -> Verdict:
        """What belongs on this node now."""
        if self._hold is Hold.LAPSED or (self._cut_off and self._has_heirs(address)):
            return None
        if self._hold is Hold.LOST:
            return Keep(address, "our Lease ran out", ())
        if not self.ready:
            return Keep(address, "the cluster has not been seen whole yet", ())
        return self._table.decide(address)

    def _has_heirs(self, address: Address) -> bool:
        """Whether it is local, so that another node answers for it when this one is taken for dead."""
        verdict = self._table.decide(address) if self.ready else None
        return isinstance(verdict, Desired) and verdict.kind is Kind.LOCAL

    async def watch_kernel(self) -> None:
        """Has the kernel looked at after each of its notices, until cancelled."""
        while True:
            try:
                async with aclosing(self._kernel.changes()) as changes:
                    async for _ in changes:
                        self._look = True
                        self._wake.set()
            except (NetError, OSError) as error:
                log.error("kernel_notices_broken", error=str(error))
            await asyncio.sleep(AFTER_ERROR_S)

    # The loop.

    async def run(self) -> None:
        """Turns until cancelled. What the kernel layer cannot do is tried again."""
        while True:
            pause_s = self._due() - self._clock()
            if pause_s > 0:
                # Not wait_for: in Python 3.11 it can swallow a cancellation that comes together with the wake-up.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if pause_s == NEVER else pause_s):
                        await self._wake.wait()
            self._wake.clear()
            try:
                await self._turn()
            except NetError as error:
                log.error("kernel_not_reached", error=str(error))
                self._look = True
                await asyncio.sleep(AFTER_ERROR_S)
            # Others need the loop, too: a Lease must be renewed while ten thousand addresses come.
            await asyncio.sleep(0)

    def _due(self) -> float:
        """When the next turn has something to do without being woken."""
        if self._first or self._later or (self._moved and self.ready):
            return float("-inf")
        retry, end = self.announcer.holdings.next_retry(), self.handover.next_end()
        return min(
            self._may_look if self._look else NEVER,
            NEVER if retry is None else retry,
            NEVER if end is None else end,
            self._next_resync,
            self._next_renewal,
            self._hold_ends_at(),
        )

    async def _turn(self) -> None:
        now = self._clock()
        if now >= self._next_resync:
            self._look, self._next_resync = True, now + self._resync_s
        if self._look and now >= self._may_look:
            await self._look_at_kernel()
        self._follow_lease()
        if self._moved:
            self._follow_place()
        self._later.update(dict.fromkeys([*self.announcer.holdings.due(), *self.handover.due()]))
        await self.announcer.work(self._take())
        if self.ready and not self._first and not self._later:
            self.settled.set()
            if not self._moved and not self.handover.waiting:
                self._quiet.set()
                self._on_quiet()
        if self._clock() >= self._next_renewal:
            await self._renew()

    def _take(self) -> list[Address]:
        """What Services' own changes named, and a share of what a change of everything else left to do."""
        batch = list(self._first) + [a for a in islice(self._later, CHUNK) if a not in self._first]
        for address in batch:
            self._later.pop(address, None)
        self._first.clear()
        return batch

    async def _look_at_kernel(self) -> None:
        started, self._look = self._clock(), False
        surprising = await self.announcer.look()
        await self._survey()
        # An interface may have come (back): what failed for want of it is tried at once.
        self._later.update(dict.fromkeys(surprising | self.announcer.holdings.due(all_of_them=True)))
        now = self._clock()
        self._may_look = now + max(LOOK_PAUSE_S, LOOK_SHARE * (now - started))

    async def _survey(self) -> None:
        if not self._bearings.configured():
            return
        config = self._bearings.config()
        interfaces = await self._kernel.interfaces()
        homes = await own_homes(self._kernel, config, interfaces) if config is not None else ()
        macs = own_macs(interfaces, [name for name, _ in homes])
        if (homes, macs) != (self.homes, self.macs) or not self.surveyed.is_set():
            log.info("own_subnets", subnets=[f"{name} {home.subnet}" for name, home in homes])
            self.homes, self.subnets, self.macs, self._moved = homes, subnets_of(homes), macs, True
            self.surveyed.set()

    def _follow_place(self) -> None:
        place = self._bearings.place(self.subnets)
        if place is None:
            return
        self._moved = False
        if place.config is not None:
            self.announcer.frames.config = place.config.garp
            self.announcer.conflicts.config = place.config.probe
            self.announcer.conflicts.defends = place.config.garp.enabled
        if _lifetimes(place.config) != _lifetimes(self._table.place.config):
            # What is held gets the new ones at once; the next renewal may come after the end of a shorter one.
            self._next_renewal = float("-inf")
        concerned = self._table.move(place)
        if not self.ready:
            self.ready = True
            concerned = [*self._table.addresses(), *self.announcer.holdings.addresses()]
        self._later.update(dict.fromkeys(concerned))

    def resurvey(self) -> None:
        """The configuration changed: other interfaces may be meant."""
        self._look, self._may_look = True, float("-inf")
        self.move()

    def wake(self) -> None:
        """Has the loop look around: our Lease was renewed, say."""
        self._wake.set()

    # Lifetimes and our Lease.

    async def _renew(self) -> None:
        """Well before their end: after a third of the shortest lifetime."""
        if self._hold is not Hold.SAFE:
            self._next_renewal = self._clock() + AFTER_ERROR_S
            return
        lifetimes = [how.lifetime_s for how in _lifetimes(self._table.place.config) if how.lifetime_s]
        self._next_renewal = self._clock() + min([*lifetimes, FALLBACK_LIFETIME_S]) / 3
        await self.announcer.renew(self.announcer.holdings.addresses(), FALLBACK_LIFETIME_S)

    def _follow_lease(self) -> None:
        hold, cut_off = self._held_how(), self._bearings.cut_off()
        if hold is not self._hold:
            log.warning("own_lease", state=hold.value)
        if (hold, cut_off) != (self._hold, self._cut_off):
            self._hold, self._cut_off = hold, cut_off
            self._later.update(dict.fromkeys([*self._table.addresses(), *self.announcer.holdings.addresses()]))

    def _held_how(self) -> Hold:
        """Strict: without our Lease nothing is added or renewed, and after a lifetime nothing is held."""
        now = self._clock()
        if not self._strict or now < self._bearings.lease_valid_until():
            return Hold.SAFE
        return Hold.LOST if now < self._lapses_at() else Hold.LAPSED

    def _hold_ends_at(self) -> float:
        match self._hold if self._strict else None:
            case Hold.SAFE:
                return self._bearings.lease_valid_until()
            case Hold.LOST:
                return self._lapses_at()
            case _:
                return NEVER

    def _lapses_at(self) -> float:
        config = self._table.place.config
        lifetime_s = (config.local.lifetime_s if config else None) or FALLBACK_LIFETIME_S
        return max(self._bearings.lease_valid_until(), self._started) + lifetime_s


def _lifetimes(config: AgentConfig | None) -> tuple[AddressConfig, ...]:
    return () if config is None else (config.local, config.remote)
