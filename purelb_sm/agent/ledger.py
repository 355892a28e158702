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
from purelb_sm.machines import ANNOUNCEMENT, Fired, fire

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
        self._records: dict[Address, tuple[Record, ...]] = {}
        self._moves: deque[ReportedTransition] = deque(maxlen=MAX_TRANSITIONS)
        self._seq = 0

    def on_move(self, callback: Callable[[], None]) -> None:
        """`callback()` after each move to a state that lasts. It must not raise, wait or take long."""
        self._on_move = callback

    def __iter__(self) -> Iterator[Record]:
        return iter([record for records in self._records.values() for record in records])

    def __len__(self) -> int:
        return sum(map(len, self._records.values()))

    def get(self, address: Address, interface: str) -> Record | None:
        for record in self._records.get(address, ()):
            if record.interface == interface:
                return record
        return None

    def of(self, address: Address) -> tuple[Record, ...]:
        """All records of the address, on whatever interfaces."""
        return self._records.get(address, ())

    def state(self, address: Address, interface: str) -> AnnouncementState:
        record = self.get(address, interface)
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
        known = self.get(address, interface)
        record = known or Record(address, interface, prefix_length, AnnouncementState.ABSENT, now)
        fired = fire(ANNOUNCEMENT, record, trigger)
        if known is None:
            self._records[address] = (*self.of(address), record)
        record.prefix_length, record.valid_s, record.reason, record.since = prefix_length, valid_s, reason[:512], now
        if record.state is AnnouncementState.ABSENT:
            self._drop(record)
        self._number(record, fired, now, record.reason)
        return record

    def contest(self, address: Address, interface: str, reason: str) -> None:
        """A foreign host uses an address that is present here, and stays: told as a move, though nothing of the record
        changes. Where it is not present that is no move of ours."""
        record = self.get(address, interface)
        if record is not None and record.state is AnnouncementState.PRESENT:
            self._number(record, fire(ANNOUNCEMENT, record, AnnouncementTrigger.CONTEST), self._now(), reason[:512])

    def _number(self, record: Record, fired: Fired, at: datetime, reason: str) -> None:
        self._seq += 1
        trigger, source, dest = AnnouncementTrigger(fired.trigger), AnnouncementState(fired.source), record.state
        self._moves.append(
            ReportedTransition(
                self._seq, at, record.address, record.interface, record.prefix_length, trigger, source, dest, reason
            )
        )
        if record.state not in _PASSING:
            self._on_move()

    def renewed(self, address: Address, interface: str, valid_s: int | None) -> None:
        """The kernel was given this lifetime anew. That is no move, but another lifetime than before is reported."""
        record = self.get(address, interface)
        if record is not None and record.valid_s != valid_s:
            record.valid_s = valid_s
            self._on_move()

    def _drop(self, gone: Record) -> None:
        rest = tuple(record for record in self.of(gone.address) if record is not gone)
        if rest:
            self._records[gone.address] = rest
        else:
            del self._records[gone.address]

    def report(self) -> NodeReport:
        """What is reported now: the records as they are after the move with the number `sequence`."""
        return NodeReport(
            node=self._node,
            incarnation=self._incarnation,
            started_at=self._started_at,
            sequence=self._seq,
            addresses=tuple(
                ReportedAddress(r.address, r.interface, r.prefix_length, r.state, r.since, r.valid_s, r.reason)
                for r in self
            ),
            transitions=tuple(self._moves),
        )
