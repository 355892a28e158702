"""The states of this node's addresses, moved by the announcement machine only, and the moves that are reported.

One record per address and interface. A record that comes to `absent` is dropped: what is not there has no state to
keep. Every move gets the next number of this incarnation, so that the allocator books each once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from purelb_sm.domain.addresses import Address
from purelb_sm.domain.reports import MAX_TRANSITIONS, NodeReport, ReportedAddress, ReportedTransition
from purelb_sm.domain.states import AnnouncementState, AnnouncementTrigger
from purelb_sm.machines import ANNOUNCEMENT, fire

Where = tuple[Address, str]
"""An address on an interface."""

_PASSING = (AnnouncementState.ADDING, AnnouncementState.REMOVING)
"""The kernel is being asked: a report that waits for its answer says more, and a second later would be the next."""


@dataclass(slots=True)
class Record:
    """An address on an interface of this node. `valid_s`: the lifetime it is given in the kernel, None: permanent."""

    address: Address
    interface: str
    prefix_length: int
    state: AnnouncementState
    since: datetime
    valid_s: int | None = None
    reason: str = ""


class Ledger:
    """All records of one incarnation of the agent."""

    def __init__(self, node: str, incarnation: str, now: Callable[[], datetime]) -> None:
        self._node = node
        self._incarnation = incarnation
        self._now = now
        self._on_move: Callable[[], None] = lambda: None
        self._started_at = now()
        self._records: dict[Where, Record] = {}
        self._by_address: dict[Address, tuple[str, ...]] = {}
        self._moves: deque[ReportedTransition] = deque(maxlen=MAX_TRANSITIONS)
        self._seq = 0

    def on_move(self, callback: Callable[[], None]) -> None:
        """`callback()` after each move to a state that lasts. It must not raise, wait or take long."""
        self._on_move = callback

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)

    def get(self, address: Address, interface: str) -> Record | None:
        return self._records.get((address, interface))

    def of(self, address: Address) -> tuple[Record, ...]:
        """All records of the address, on whatever interfaces."""
        names = self._by_address.get(address, ())
        return tuple(self._records[address, name] for name in names)

    def state(self, address: Address, interface: str) -> AnnouncementState:
        record = self._records.get((address, interface))
        return AnnouncementState.ABSENT if record is None else record.state

    def fire(
        self,
        address: Address,
        interface: str,
        trigger: AnnouncementTrigger,
        *,
        prefix_length: int,
        valid_s: int | None = None,
        reason: str = "",
    ) -> Record:
        """Moves the record of this address by `trigger`, and numbers the move. Raises IllegalTransition."""
        now = self._now()
        key = (address, interface)
        record = self._records.get(key) or Record(address, interface, prefix_length, AnnouncementState.ABSENT, now)
        fired = fire(ANNOUNCEMENT, record, trigger)
        record.prefix_length, record.valid_s, record.reason, record.since = prefix_length, valid_s, reason[:512], now
        if record.state is AnnouncementState.ABSENT:
            self._drop(key)
        elif key not in self._records:
            self._records[key] = record
            self._by_address[address] = (*self._by_address.get(address, ()), interface)
        self._seq += 1
        source, dest = AnnouncementState(fired.source), AnnouncementState(fired.dest)
        self._moves.append(
            ReportedTransition(self._seq, now, address, interface, prefix_length, trigger, source, dest, record.reason)
        )
        if record.state not in _PASSING:
            self._on_move()
        return record

    def _drop(self, where: Where) -> None:
        if self._records.pop(where, None) is not None:
            rest = tuple(name for name in self._by_address[where[0]] if name != where[1])
            if rest:
                self._by_address[where[0]] = rest
            else:
                del self._by_address[where[0]]

    def report(self) -> NodeReport:
        """What is reported now: the records as they are after the move with the number `sequence`."""
        return NodeReport(
            node=self._node,
            incarnation=self._incarnation,
            started_at=self._started_at,
            sequence=self._seq,
            addresses=tuple(
                ReportedAddress(r.address, r.interface, r.prefix_length, r.state, r.since, r.valid_s, r.reason)
                for r in self._records.values()
            ),
            transitions=tuple(self._moves),
        )
