"""Make before break: a local address that another node is to answer for stays here until that one says that it does.

It says so in the annotation of a Service of the address, which a node writes after its kernel has taken the address and
its neighbours have been told (see `telling`). Until then this node answers as before, but tells nobody of it any more:
no gratuitous ARP, no annotation. So there is no moment in which nobody answers.

That is a write for each Service, and of a thousand the last is long in coming. So an heir that is waited for longer is
asked for its report as well, which tells of all that its kernel has at once.

Invariant: no address waits for one and the same heir for longer than the bound, whatever the heir, the API server or
our way to it do. What waits is held by two at most for that long, and by nobody only if the heir never took it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

import structlog

from purelb_sm.domain.addresses import Address
from purelb_sm.domain.announce import Announcements
from purelb_sm.domain.announcing import holders_of
from purelb_sm.domain.views import ServiceKey, ServiceView
from purelb_sm.errors import KubeError

log = structlog.get_logger(__name__)


ASK_AFTER_S: Final = 1.0
"""A report that an heir wrote before the wait began has been replaced by then: they come once a second."""
ASK_EVERY_S: Final = 0.3


@dataclass(slots=True)
class _Wait:
    """An address that we still hold for `heir`, since `begun`, until `end` on our clock at the latest. `reported`: the
    heir's report has it."""

    heir: str
    begun: float
    end: float
    reported: bool = False
    over: bool = False


class Handover:
    """What waits here for its heir. Implements `announcer.Handing`.

    `service` finds a Service as it was last seen; `may_wait` is asked each time: there are days on which an agent may
    hold nothing. `given` and `overdue` count since start: those that an heir announced, and those that none did.
    """

    def __init__(
        self,
        node: str,
        table: Announcements,
        service: Callable[[ServiceKey], ServiceView | None],
        clock: Callable[[], float],
        *,
        bound_s: float,
        may_wait: Callable[[], bool] = lambda: True,
    ) -> None:
        self.given = 0
        self.overdue = 0
        self._node = node
        self._table = table
        self._service = service
        self._clock = clock
        self._bound_s = bound_s
        self._may_wait = may_wait
        self._waits: dict[Address, _Wait] = {}
        self._begun = asyncio.Event()

    # Handing.

    def keeps(self, address: Address) -> bool:
        """Whether this address, which is not ours any more, must stay for now. Begins to wait when first asked."""
        heir = self._table.heir(address)
        if heir is None or not self._may_wait():
            self.forget(address)
            return False
        wait = self._waits.get(address)
        if wait is None or wait.heir != heir:
            now = self._clock()
            wait = self._waits[address] = _Wait(heir, now, now + self._bound_s)
            self._begun.set()
        if wait.reported or heir in self._named(address):
            self.given += not wait.over
            self.forget(address)
            return False
        if self._clock() >= wait.end and not wait.over:
            wait.over = True
            self.overdue += 1
            log.warning("not_handed_over", address=str(address), to=heir, waited_s=self._bound_s)
        return not wait.over

    def takes_over(self, address: Address) -> bool:
        """Whether another node has said that it announces it: its neighbours have to be told at once of this one."""
        return any(node != self._node for node in self._named(address))

    def forget(self, address: Address) -> None:
        """It is not here any more, or ours again, or nobody's."""
        self._waits.pop(address, None)

    def _named(self, address: Address) -> set[str]:
        """The nodes that the address's Services name as its holder. One Service is enough: an address comes whole."""
        found = set()
        for key in self._table.services_of(address):
            view = self._service(key)
            holders = holders_of(view, self._table.addresses_of(key)) if view is not None else {}
            if address in holders:
                found.add(holders[address].node)
        return found

    # What heirs report.

    async def run(
        self,
        announced_by: Callable[[str], Awaitable[Collection[Address]]],
        changed: Callable[[Iterable[Address]], None],
    ) -> None:
        """Asks what an heir announces by its report, for as long as addresses have waited long for it, until cancelled.
        `changed` is told of those that need not wait any more."""
        while True:
            await self._begun.wait()
            self._begun.clear()
            while self.waiting:
                await asyncio.sleep(ASK_EVERY_S)
                try:
                    changed(await self._ask(announced_by))
                except KubeError as error:
                    log.warning("reports_not_read", error=str(error))

    async def _ask(self, announced_by: Callable[[str], Awaitable[Collection[Address]]]) -> list[Address]:
        latest = self._clock() - ASK_AFTER_S
        late = {a: wait for a, wait in self._waits.items() if wait.begun <= latest and not (wait.over or wait.reported)}
        found: list[Address] = []
        for heir in sorted({wait.heir for wait in late.values()}):
            announced = await announced_by(heir)
            found += [address for address, wait in late.items() if wait.heir == heir and address in announced]
        for address in found:
            late[address].reported = True
        return found

    # What the loop asks.

    @property
    def waiting(self) -> int:
        """How many addresses are held here for an heir."""
        return sum(not wait.over for wait in self._waits.values())

    def concerned(self, addresses: Iterable[Address]) -> list[Address]:
        """Those of them that wait: somebody wrote on their Service."""
        return [address for address in addresses if address in self._waits] if self._waits else []

    def due(self) -> list[Address]:
        """Those whose time is over."""
        now = self._clock()
        return [address for address, wait in self._waits.items() if not wait.over and wait.end <= now]

    def next_end(self) -> float | None:
        """When the next one's time is over, on our clock."""
        return min((wait.end for wait in self._waits.values() if not wait.over), default=None)
