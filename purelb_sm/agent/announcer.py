"""Closes the difference between what this node should announce and what its kernel holds, one pass at a time.

A pass that finds no difference asks the kernel for nothing. Knows nothing of the cluster: what an address's verdict is,
and who wants to hear what became of it, comes from outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import structlog

from purelb_sm.agent.conflicts import NOBODY, Conflicts, Surroundings
from purelb_sm.agent.frames import Frames
from purelb_sm.agent.holdings import Holdings, as_held, wanted
from purelb_sm.agent.ledger import Ledger, Where
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.announce import Desired, Keep, Kind, Verdict
from purelb_sm.domain.states import AnnouncementState
from purelb_sm.net import AddressConflict, Held, KernelProtocol, NetError, Wanted

log = structlog.get_logger(__name__)

CHUNK: Final = 1000
"""Addresses asked of the kernel at once: a stop, or the next decision, waits for no more than that."""

T = TypeVar("T")


class Listener(Protocol):
    """Who is told of what became of an address."""

    def announced(self, desired: Desired, *, new: bool) -> None:
        """The kernel holds it. `new`: we have just put it there."""
        ...

    def heard(self, address: Address) -> None:
        """The neighbours have been told of it, if they are to be told at all."""
        ...

    def withdrawn(self, address: Address) -> None:
        """The kernel holds it no more on some interface."""
        ...

    def elsewhere(self, address: Address) -> None:
        """It has been looked at, and does not belong on this node."""
        ...

    def conflict(self, where: Where, mac: bytes, announced: bool) -> None:
        """A foreign host with this MAC uses the address. `announced`: we do, too; else we leave it alone."""
        ...

    def bridged(self, interface: str, kind: str) -> None:
        """The kernel has no dummy links, so the interface for remote addresses is of this kind."""
        ...


@dataclass(slots=True)
class _Plan:
    """What a pass will do, in this order: `leave` are those that are wanted on another interface."""

    remove: list[Held] = field(default_factory=list)
    add: list[Desired] = field(default_factory=list)
    leave: list[Held] = field(default_factory=list)
    renew: list[Desired] = field(default_factory=list)


class Handing(Protocol):
    """What other nodes have to do with an address."""

    def keeps(self, address: Address) -> bool:
        """Whether an address that does not belong here any more must stay for now, until its heir announces it."""
        ...

    def takes_over(self, address: Address) -> bool:
        """Whether another node has answered for it until now."""
        ...

    def forget(self, address: Address) -> None:
        """It belongs here, or is not here any more."""
        ...


class Alone:
    """There are no other nodes."""

    def keeps(self, address: Address) -> bool:
        return False

    def takes_over(self, address: Address) -> bool:
        return False

    def forget(self, address: Address) -> None: ...


class Announcer:
    """Not safe for two passes at once: one task calls `look`, `work`, `renew` and `withdraw_all`.

    `probed` is told which addresses have been waiting for an answer of the link, and are to be worked on again.
    """

    def __init__(
        self,
        kernel: KernelProtocol,
        ledger: Ledger,
        decide: Callable[[Address], Verdict],
        listener: Listener,
        clock: Callable[[], float],
        around: Surroundings,
        probed: Callable[[Iterable[Address]], None],
        handing: Handing | None = None,
    ) -> None:
        self.holdings = Holdings(kernel, ledger, clock)
        self.frames = Frames(kernel, self._still_ours, lambda where: listener.heard(where[0]))
        self.conflicts = Conflicts(kernel, around, probed, self._conflict)
        self._around = around
        self._handing: Handing = handing or Alone()
        self._kernel = kernel
        self._ledger = ledger
        self._decide = decide
        self._listener = listener
        self._bridges: set[str] = set()
        self._told: set[Where] = set()

    async def look(self) -> set[Address]:
        """Takes in what the kernel holds; answers with the addresses that have to be worked on for it.

        Raises NetError: then we believe what we did.
        """
        surprising, gone = await self.holdings.look()
        for where in gone:
            self._gone(where)
        return surprising

    async def work(self, addresses: Collection[Address]) -> None:
        """Closes the difference for these addresses; local ones come first, since traffic waits for them. One that
        moves to another interface is there before it leaves the old one."""
        plan = _Plan()
        for address in addresses:
            self._plan(address, plan)
        plan.add.sort(key=lambda desired: desired.kind is Kind.REMOTE)
        for removals in _chunks(plan.remove):
            await _unbroken(self._remove(removals))
        for additions in _chunks(plan.add):
            await _unbroken(self._add(additions))
        for left in _chunks(plan.leave):
            await _unbroken(self._remove(left))
        for renewals in _chunks(plan.renew):
            await self.holdings.renew([wanted(desired) for desired in renewals])

    def _plan(self, address: Address, plan: _Plan) -> None:
        verdict = self._decide(address)
        if isinstance(verdict, Keep):
            self.holdings.leave(address)
            self.conflicts.forget(address)
            self._handing.forget(address)
            return
        held = self.holdings.of(address)
        if verdict is None and held and self._handing.keeps(address):
            self._wait(held)
            return
        if verdict is not None or not held:
            self._handing.forget(address)
        right = [one for one in held if verdict is not None and _fits(one, verdict)]
        self.holdings.settle(address, None if verdict is None else verdict.interface, right=bool(right))
        for one in held:
            if one not in right:
                # The kernel cannot change prefix length and flags of an address that it has: it must go, and come anew.
                moves = verdict is not None and one.interface != verdict.interface
                (plan.leave if moves else plan.remove).append(one)
        if verdict is None or held:
            self.conflicts.forget(address)
        if verdict is None:
            self._listener.elsewhere(address)
            return
        if not right:
            if held or self._may_have(verdict):
                plan.add.append(verdict)
            return
        if (right[0].valid_s is None) != (verdict.lifetime_s is None):
            plan.renew.append(verdict)
        self._tell_neighbours(verdict)
        self._guard(verdict)
        self._listener.announced(verdict, new=False)

    def _may_have(self, desired: Desired) -> bool:
        """Whether it may be put here now, as far as the link is concerned. One that a node of ours has announced
        before may: a failover waits for nobody, and the peer that still answers for it is no foreign host."""
        if not desired.guarded or self._around.announced(desired.address):
            self.conflicts.forget(desired.address)
            return True
        mac = self.conflicts.ask((desired.address, desired.interface))
        if mac is None:
            self.holdings.wait(desired.address)
        elif mac:
            self.holdings.refuse([desired], AddressConflict(desired.address, desired.interface, mac))
        return mac == NOBODY

    def _conflict(self, where: Where, mac: bytes, announced: bool) -> None:
        """One that is announced stays, so that only this tells the book of it."""
        if announced:
            error = AddressConflict(*where, mac)
            self._ledger.contest(*where, f"{error.reason}: {error}")
        self._listener.conflict(where, mac, announced)

    def _guard(self, desired: Desired) -> None:
        where = (desired.address, desired.interface)
        if desired.guarded:
            self.conflicts.guard(where)
        else:
            self.conflicts.let_go(where)

    def _wait(self, held: Sequence[Held]) -> None:
        """Another node is to have it: this one answers on, and tells nobody. Should it be ours again, all are told."""
        for one in held:
            self.frames.stop((one.address, one.interface))
            self.conflicts.let_go((one.address, one.interface))
            self._told.discard((one.address, one.interface))
        self.holdings.leave(held[0].address)

    async def _remove(self, removals: Sequence[Held]) -> None:
        for held in removals:
            self.frames.stop((held.address, held.interface))
            self.conflicts.let_go((held.address, held.interface))
            self._told.discard((held.address, held.interface))
        for held in await self.holdings.remove(removals):
            log.info("withdrawn", address=str(held.address), interface=held.interface)
            self._gone((held.address, held.interface))

    async def _add(self, additions: Sequence[Desired]) -> None:
        refused = await self._ensure_dummies({d.interface for d in additions if d.kind is Kind.REMOTE})
        for name, error in refused.items():
            self.holdings.refuse([d for d in additions if d.interface == name], error)
        for desired in await self.holdings.add([d for d in additions if d.interface not in refused]):
            self._tell_neighbours(desired)
            self._guard(desired)
            where = {"address": str(desired.address), "interface": desired.interface}
            log.info("announcing", kind=desired.kind.value, **where)
            self._listener.announced(desired, new=True)

    async def _ensure_dummies(self, interfaces: Collection[str]) -> dict[str, NetError]:
        refused: dict[str, NetError] = {}
        for name in interfaces:
            try:
                kind = await self._kernel.ensure_dummy(name)
            except NetError as error:
                refused[name] = error
                continue
            if kind != "dummy" and name not in self._bridges:
                self._bridges.add(name)
                log.warning("no_dummy_links_in_this_kernel", interface=name, used_instead=kind)
                self._listener.bridged(name, kind)
        return refused

    async def renew(self, addresses: Collection[Address], fallback_s: int) -> None:
        """Gives each of these that has a lifetime a whole one again. `fallback_s`: where nothing can be decided."""
        renewals: list[Wanted] = []
        for address in addresses:
            verdict = self._decide(address)
            for held in self.holdings.of(address):
                if isinstance(verdict, Keep) and held.valid_s is not None:
                    renewals.append(as_held(held, fallback_s))
                elif isinstance(verdict, Desired) and verdict.interface == held.interface and verdict.lifetime_s:
                    renewals.append(wanted(verdict))
        for chunk in _chunks(renewals):
            await self.holdings.renew(chunk)

    async def withdraw_all(self) -> None:
        """Removes everything of ours, whatever is decided: the agent stops. Raises NetError.

        Local addresses first, since they have an heir, and each kind at once: there is nothing left to do in between.
        """
        await self.look()
        held = self.holdings.all()
        await self._remove([one for one in held if one.valid_s is not None])
        await self._remove([one for one in held if one.valid_s is None])

    def tell_again(self) -> None:
        """Another node may have answered meanwhile: the neighbours have to be told of all that is worked on next."""
        self._told.clear()

    def _tell_neighbours(self, desired: Desired) -> None:
        """Once for each time that a local address comes to this node, be it that it was here when we started: then
        another node may have had it in the meantime."""
        where = (desired.address, desired.interface)
        if desired.kind is Kind.LOCAL and where not in self._told:
            self._told.add(where)
            self.frames.start(where, at_once=self._handing.takes_over(desired.address))

    def _gone(self, where: Where) -> None:
        self.frames.stop(where)
        self.conflicts.let_go(where)
        self._told.discard(where)
        if not self.holdings.of(where[0]):
            self._handing.forget(where[0])
        self._listener.withdrawn(where[0])

    def _still_ours(self, where: Where) -> bool:
        verdict = self._decide(where[0])
        ours = isinstance(verdict, Keep) or (isinstance(verdict, Desired) and verdict.interface == where[1])
        return ours and self._ledger.state(*where) is AnnouncementState.PRESENT


def _fits(held: Held, desired: Desired) -> bool:
    return (held.interface, held.prefix_length, held.noprefixroute) == (
        desired.interface,
        desired.prefix_length,
        desired.noprefixroute,
    )


async def _unbroken(work: Coroutine[None, None, None]) -> None:
    """Waits for the end of it, also if we are cancelled meanwhile: the next look would take for somebody else's doing
    what we have asked the kernel for, and not heard of."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
