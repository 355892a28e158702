"""What the kernel holds of ours, and each change of it: a move of the announcement machine around the kernel's answer.

Invariants:
* What the kernel holds is looked at and compared, never assumed for longer than until its next notice.
* Foreign addresses are not even seen: the kernel layer answers with ours only, and refuses to touch the others.
* What fails again for the same reason is no move: a state that does not change is not told twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import structlog

from purelb_sm.agent.ledger import Ledger, Where
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.announce import Desired
from purelb_sm.domain.states import AnnouncementState, AnnouncementTrigger
from purelb_sm.net import AddressConflict, Held, KernelProtocol, NetError, Wanted

log = structlog.get_logger(__name__)

FIRST_RETRY_S: Final = 1.0
LAST_RETRY_S: Final = 30.0

_S, _T = AnnouncementState, AnnouncementTrigger
W = TypeVar("W", Desired, Held)


@dataclass(slots=True)
class Counters:
    """Since start, for metrics and tests. `vanished`: addresses that left without us."""

    added: int = 0
    removed: int = 0
    failed: int = 0
    vanished: int = 0
    renewed: int = 0


@dataclass(slots=True)
class _Retry:
    due: float
    delay_s: float


class Holdings:
    """The addresses of ours on this node's interfaces. One task at a time may call what is `async` here.

    `clock` is monotonic, and only times the retries of what failed.
    """

    def __init__(self, kernel: KernelProtocol, ledger: Ledger, clock: Callable[[], float]) -> None:
        self.counters = Counters()
        self._kernel = kernel
        self._ledger = ledger
        self._clock = clock
        self._held: dict[Address, tuple[Held, ...]] = {}
        self._retries: dict[Address, _Retry] = {}
        self._seen: list[Held] | None = None
        """What the last look saw, if all that was believed since came from there."""

    # What there is.

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def all(self) -> list[Held]:
        return [held for where in self._held.values() for held in where]

    def of(self, address: Address) -> tuple[Held, ...]:
        """The address on each interface that has it."""
        return self._held.get(address, ())

    def get(self, address: Address, interface: str) -> Held | None:
        for held in self._held.get(address, ()):
            if held.interface == interface:
                return held
        return None

    def addresses(self) -> set[Address]:
        """All that the kernel holds, and all that failed."""
        return {*self._held, *self._retries}

    # What failed.

    def next_retry(self) -> float | None:
        """When something that failed should be tried again, on our clock."""
        return min((retry.due for retry in self._retries.values()), default=None)

    def due(self, *, all_of_them: bool = False) -> set[Address]:
        """What failed and should be tried again now; all of it after something happened to the interfaces."""
        now = self._clock()
        return {address for address, retry in self._retries.items() if all_of_them or retry.due <= now}

    def settle(self, address: Address, wanted_on: str | None, *, right: bool) -> None:
        """The address is wanted on this interface only (None: on none); `right`: the kernel holds it there as wanted.

        What failed elsewhere, and is not there, has no state any more; what is right though a removal of it failed
        is present.
        """
        if right or (wanted_on is None and not self.of(address)):
            self._retries.pop(address, None)
        for record in self._ledger.of(address):
            held = self.get(address, record.interface)
            if record.state is not _S.FAILED:
                continue
            if right and held is not None and record.interface == wanted_on:
                self._fire(held, _T.FOUND_PRESENT, valid_s=held.valid_s)
            elif held is None and record.interface != wanted_on:
                self._ledger.fire(address, record.interface, _T.FOUND_ABSENT, prefix_length=record.prefix_length)

    def leave(self, address: Address) -> None:
        """Nothing can be decided about the address: nothing of it is to be tried again."""
        self._retries.pop(address, None)

    def wait(self, address: Address) -> None:
        """It is not to be tried again before it is known whether a foreign host uses it."""
        retry = self._retries.get(address)
        if retry is not None:
            retry.due = float("inf")

    # Looking.

    async def look(self) -> tuple[set[Address], list[Where]]:
        """Takes in what the kernel holds. Answers with the addresses of which that was not what we believed, and with
        what has gone. Raises NetError: then we believe what we did."""
        there = await self._kernel.held()
        if self._same(there):
            return set(), []
        seen: dict[Address, tuple[Held, ...]] = {}
        surprising: set[Address] = set()
        for held in there:
            seen[held.address] = (*seen.get(held.address, ()), held)
            known, state = self.get(held.address, held.interface), self._ledger.state(held.address, held.interface)
            if known is None or _shape(known) != _shape(held):
                surprising.add(held.address)
            if state is not _S.PRESENT and not (state is _S.FAILED and known is not None):
                surprising.add(held.address)
                self._fire(held, _T.FOUND_PRESENT, valid_s=held.valid_s)
        self._held, self._seen = seen, there
        gone = [
            (record.address, record.interface)
            for record in self._ledger
            if record.state is not _S.FAILED and self.get(record.address, record.interface) is None
        ]
        for where in gone:
            surprising.add(where[0])
            self._vanished(where)
        return surprising, gone

    def _same(self, there: list[Held]) -> bool:
        """Whether that is what was seen at the last look, and nothing else was believed since: then there is nothing to
        compare. A kernel without changes lists its addresses in one order, most of them as the same objects."""
        seen = self._seen
        return seen is not None and len(there) == len(seen) and all(map(_alike, there, seen))

    def _vanished(self, where: Where) -> None:
        self.counters.vanished += 1
        log.warning("address_vanished", address=str(where[0]), interface=where[1])
        record = self._ledger.get(*where)
        assert record is not None, "only what has a record can vanish"
        reason = "removed by somebody else, or its lifetime ended"
        self._ledger.fire(*where, _T.FOUND_ABSENT, prefix_length=record.prefix_length, reason=reason)

    # Changing.

    async def add(self, additions: Sequence[Desired]) -> list[Desired]:
        """Puts these on their interfaces; answers with those that are there now."""
        for desired in additions:
            self._begin(desired, _T.ADD)
        answers = await self._apply([wanted(desired) for desired in additions], ())
        done = self._sort_out(additions, answers, _T.ADD)
        for desired in done:
            self._succeeded(desired, _T.ADD, _T.ADDED, desired.lifetime_s)
            self._take(desired)
        self.counters.added += len(done)
        return done

    def refuse(self, additions: Iterable[Desired], error: NetError) -> None:
        """These cannot even be asked for."""
        for desired in additions:
            self._begin(desired, _T.ADD)
            self._failed(desired, _T.ADD, error)

    async def remove(self, removals: Sequence[Held]) -> list[Held]:
        """Takes these away; answers with those that are gone."""
        for held in removals:
            self._begin(held, _T.REMOVE)
        answers = await self._apply((), removals)
        done = self._sort_out(removals, answers, _T.REMOVE)
        for held in done:
            self._succeeded(held, _T.REMOVE, _T.REMOVED)
            self._drop(held)
        self.counters.removed += len(done)
        return done

    async def renew(self, renewals: Sequence[Wanted]) -> None:
        """Gives each a whole lifetime (another one, or none, as it says), without a gap."""
        answers = await self._apply(renewals, ())
        for renewed in renewals:
            failed = answers[renewed.address]
            if failed is None:
                self.counters.renewed += 1
                self._renewed(renewed)
            else:
                log.warning("lifetime_not_renewed", address=str(renewed.address), error=str(failed))

    def _renewed(self, renewed: Wanted) -> None:
        where = renewed.address, renewed.interface
        self._ledger.renewed(*where, renewed.lifetime_s)
        if held := self.of(renewed.address):
            self._held[renewed.address] = tuple(
                replace(one, valid_s=renewed.lifetime_s) if one.interface == renewed.interface else one for one in held
            )

    async def _apply(self, add: Sequence[Wanted], remove: Sequence[Held]) -> dict[Address, NetError | None]:
        if not add and not remove:
            return {}
        self._seen = None
        try:
            return await self._kernel.apply(add, remove)
        except NetError as error:
            named: Iterable[Wanted | Held] = [*add, *remove]
            return {one.address: error for one in named}

    def _sort_out(
        self, asked: Sequence[W], answers: dict[Address, NetError | None], began: AnnouncementTrigger
    ) -> list[W]:
        done: list[W] = []
        for what in asked:
            error = answers.get(what.address)
            if error is None:
                done.append(what)
            else:
                self._failed(what, began, error)
        return done

    def _begin(self, what: Desired | Held, trigger: AnnouncementTrigger) -> None:
        """What failed stays failed while it is tried again."""
        if self._ledger.state(what.address, what.interface) is not _S.FAILED:
            self._fire(what, trigger)

    def _succeeded(
        self, what: Desired | Held, began: AnnouncementTrigger, ended: AnnouncementTrigger, valid_s: int | None = None
    ) -> None:
        if self._ledger.state(what.address, what.interface) is _S.FAILED:
            self._fire(what, began)
        self._fire(what, ended, valid_s=valid_s)
        self._retries.pop(what.address, None)

    def _failed(self, what: Desired | Held, began: AnnouncementTrigger, error: NetError) -> None:
        # A foreign host's conflict is none of the kernel's, and counted where it is found.
        self.counters.failed += not isinstance(error, AddressConflict)
        retry = self._retries.get(what.address)
        delay_s = FIRST_RETRY_S if retry is None else min(LAST_RETRY_S, retry.delay_s * 2)
        self._retries[what.address] = _Retry(self._clock() + delay_s, delay_s)
        record, reason = self._ledger.get(what.address, what.interface), f"{error.reason}: {error}"
        if record is not None and record.state is _S.FAILED:
            if record.reason == reason:
                return
            self._fire(what, began)
        self._fire(what, _T.FAIL, reason=reason)
        if not isinstance(error, AddressConflict):
            log.warning("kernel_refused", address=str(what.address), interface=what.interface, error=reason)

    def _fire(
        self, what: Desired | Held, trigger: AnnouncementTrigger, valid_s: int | None = None, reason: str = ""
    ) -> None:
        self._seen = None
        self._ledger.fire(
            what.address, what.interface, trigger, prefix_length=what.prefix_length, valid_s=valid_s, reason=reason
        )

    def _take(self, desired: Desired) -> None:
        held = Held(
            desired.address,
            desired.prefix_length,
            desired.interface,
            mine=True,
            valid_s=desired.lifetime_s,
            noprefixroute=desired.noprefixroute,
        )
        others = tuple(one for one in self.of(desired.address) if one.interface != desired.interface)
        self._held[desired.address] = (*others, held)

    def _drop(self, gone: Held) -> None:
        rest = tuple(one for one in self.of(gone.address) if _key(one) != _key(gone))
        if rest:
            self._held[gone.address] = rest
        else:
            self._held.pop(gone.address, None)


def wanted(desired: Desired) -> Wanted:
    """What is desired, in the kernel layer's words."""
    return Wanted(
        desired.address,
        desired.prefix_length,
        desired.interface,
        lifetime_s=desired.lifetime_s,
        noprefixroute=desired.noprefixroute,
        # Duplicate address detection would keep an IPv6 address unusable for a second or more at every failover; and
        # where one is announced for the first time, it was probed before: see `agent.conflicts`.
        nodad=True,
        preferred_s=desired.preferred_s,
    )


def as_held(held: Held, lifetime_s: int) -> Wanted:
    """What is held, with a lifetime from now on."""
    return Wanted(held.address, held.prefix_length, held.interface, lifetime_s, held.noprefixroute, nodad=True)


def _key(held: Held) -> tuple[str, int]:
    return held.interface, held.prefix_length


def _alike(one: Held, other: Held) -> bool:
    return one is other or (
        one.address is other.address and one.interface == other.interface and _shape(one) == _shape(other)
    )


def _shape(held: Held) -> tuple[int, bool, bool]:
    return held.prefix_length, held.noprefixroute, held.valid_s is None
