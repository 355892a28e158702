"""What nodes report, booked: every numbered move once, what was missed made up for from the full state.

A node is not trusted with the book: a report that is late, repeated, of an earlier start of the agent, or that claims
moves which no machine has changes nothing that a true one would not. The times of these rows are the allocator's: one
clock orders the history, and a node cannot date itself into the past. What the node's clock said is in the details.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import bindparam, insert, select, update

from purelb_sm.domain.addresses import Address, family_of
from purelb_sm.domain.reports import NodeReport, ReportedAddress, ReportedTransition, render_time
from purelb_sm.domain.states import AllocationState, AnnouncementState, AnnouncementTrigger
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import IllegalTransition
from purelb_sm.models import Announcement, NodeReported, table
from purelb_sm.store import loading
from purelb_sm.store.applying import settle
from purelb_sm.store.entries import AllocationEntry, AnnouncementEntry
from purelb_sm.store.workspace import Workspace

MAX_INTERFACE = 64
"""Linux allows 15 characters; anything much longer is not an interface."""

_State, _Trigger = AnnouncementState, AnnouncementTrigger

_R = table(NodeReported)
_N = table(Announcement)
_HOLDING = (_State.ADDING, _State.PRESENT, _State.REMOVING)
_HOLDING_NODES = select(_N.c.node).where(_N.c.until_at.is_(None), _N.c.state.in_(_HOLDING)).distinct()
_LAST = select(_R).where(_R.c.node == bindparam("node"))


@dataclass(frozen=True, slots=True)
class ReportOutcome:
    """What a report did.

    stale      it is older than what was taken before; nothing was looked at
    changed    Services of whose addresses an announcement moved: to publish again
    releasing  ids of allocations on their way out of which an announcement moved: worth asking `releasing` again
    booked     the report's own moves that were booked
    made_up    moves the full state showed and no numbered move told
    ignored    moves booked before, or that no machine has
    unknown    addresses that the book does not hold; while there are any, the same report may be taken again
    """

    stale: bool = False
    changed: frozenset[ServiceKey] = frozenset()
    releasing: frozenset[int] = frozenset()
    booked: int = 0
    made_up: int = 0
    ignored: int = 0
    unknown: tuple[Address, ...] = ()


STALE = ReportOutcome(stale=True)


def take_report(ws: Workspace, report: NodeReport, newest: bool) -> ReportOutcome:
    """Books a report. See ReportOutcome.

    `newest`: the caller knows that this incarnation came after the one taken last, whatever the node's clock says.
    """
    ws.flush()
    before = ws.db.row(_LAST, {"node": report.node})
    taking = _Taking.of(ws, report, before, newest)
    if taking is None:
        return STALE
    taking.book()
    _remember(ws, report, known=before is not None, resync=bool(taking.unknown))
    changed, releasing = _tell_services(ws, taking.touched, report.node)
    return ReportOutcome(
        False,
        changed,
        releasing,
        taking.booked,
        taking.made_up,
        taking.ignored,
        tuple(sorted(taking.unknown, key=lambda a: (a.version, int(a)))),
    )


def lose_node(ws: Workspace, node: str, reason: str) -> ReportOutcome:
    """The node's Lease lapsed: of what it held nobody can say. Its next report is taken as a full state."""
    ws.flush()
    touched: set[int] = set()
    for entry in loading.load_announcements_on(ws, node):
        if entry.state in _HOLDING:
            ws.fire_announcement(entry, _Trigger.LOSE, reason)
            touched.add(entry.allocation_id)
    ws.doubt({node})
    changed, releasing = _tell_services(ws, touched, node)
    return ReportOutcome(False, changed, releasing, len(touched))


def announcing_nodes(ws: Workspace) -> set[str]:
    """Names of the nodes with an announcement that is being added, is present, or is being removed."""
    ws.flush()
    return {row[0] for row in ws.db.rows(_HOLDING_NODES)}


@dataclass(slots=True)
class _Taking:
    """One report being booked. `full`: the report's state as a whole is compared, not its moves only."""

    ws: Workspace
    report: NodeReport
    fresh: list[ReportedTransition]
    full: bool
    ignored: int
    booked: int = 0
    made_up: int = 0
    touched: set[int] = field(default_factory=set)
    unknown: set[Address] = field(default_factory=set)
    allocations: dict[Address, AllocationEntry] = field(default_factory=dict)

    @classmethod
    def of(cls, ws: Workspace, report: NodeReport, before: object | None, newest: bool) -> _Taking | None:
        """What is new in a report, or None where nothing is."""
        last, resync = 0, True
        if before is not None:
            row: NodeReported = before  # type: ignore[assignment]
            same = report.incarnation == row.incarnation
            if not same and not newest and report.started_at <= row.started_at:
                return None
            last, resync = (row.sequence, row.resync) if same else (0, True)
            if same and (report.sequence < last or (report.sequence == last and not resync)):
                return None
        fresh = sorted({t.seq: t for t in report.transitions if last < t.seq <= report.sequence}.values(), key=_seq)
        whole = [t.seq for t in fresh] == list(range(last + 1, last + 1 + len(fresh))) and (
            last + len(fresh) == report.sequence
        )
        return cls(ws, report, fresh, resync or not whole, len(report.transitions) - len(fresh))

    def book(self) -> None:
        if self.full:
            self._load_all()
        else:
            self._load(t.address for t in self.fresh)
        for transition in self.fresh:
            self._book_move(transition)
        if self.full:
            self._compare()
        self._note_lifetimes()

    def _load_all(self) -> None:
        loading.load_announcements_on(self.ws, self.report.node)
        self._load([*(t.address for t in self.fresh), *(a.address for a in self.report.addresses)])

    def _load(self, addresses: Iterable[Address]) -> None:
        found = loading.load_by_address(self.ws, dict.fromkeys(addresses))
        self.allocations.update(found)
        loading.load_announcements_of(self.ws, [a.id for a in found.values()], self.report.node)

    def _book_move(self, move: ReportedTransition) -> None:
        entry = self._entry(move.address, move.interface, move.prefix_length)
        if entry is None:
            self.ignored += 1
            return
        details = {"reportedAt": render_time(move.at), "seq": move.seq}
        try:
            self._fire(entry, move.trigger, move.reason, details)
        except IllegalTransition:
            # The book knew another state than the agent, or this very one: what is true, the full state will say.
            self.ignored += 1
            self._widen()
        else:
            self.booked += 1

    def _widen(self) -> None:
        if not self.full:
            self.full = True
            self.ws.flush()
            self._load_all()

    def _entry(self, address: Address, interface: str, prefix_length: int) -> AnnouncementEntry | None:
        """The book's entry for this place, a new one if need be; None where the book holds no such address."""
        allocation = self.allocations.get(address)
        if allocation is None:
            self.unknown.add(address)
            return None
        if prefix_length > family_of(address).bits or len(interface) > MAX_INTERFACE or "\0" in interface:
            return None
        known = self.ws.announcements.get((allocation.id, self.report.node, interface))
        if known is not None:
            known.touched |= known.prefix_length != prefix_length
            known.prefix_length = prefix_length
            return known
        return self.ws.seen(allocation, self.report.node, interface, prefix_length)

    def _fire(
        self, entry: AnnouncementEntry, trigger: AnnouncementTrigger, reason: str, details: dict[str, object]
    ) -> None:
        self.ws.fire_announcement(entry, trigger, reason, actor=f"agent/{self.report.node}", details=details)
        self.touched.add(entry.allocation_id)

    def _compare(self) -> None:
        """Brings the book to the full state of the report."""
        shown: dict[tuple[int, str], ReportedAddress] = {}
        for item in self.report.addresses:
            allocation = self.allocations.get(item.address)
            if allocation is None:
                if item.state is not _State.ABSENT:
                    self.unknown.add(item.address)
            elif item.state not in (_State.ABSENT, _State.LOST):
                shown[(allocation.id, item.interface)] = item
        for entry in [e for e in self.ws.announcements.values() if e.node == self.report.node]:
            if (entry.allocation_id, entry.interface) not in shown:
                self._bring(entry, _State.ABSENT, "")
        for item in shown.values():
            found = self._entry(item.address, item.interface, item.prefix_length)
            if found is not None:
                self._bring(found, item.state, item.reason)

    def _bring(self, entry: AnnouncementEntry, target: AnnouncementState, reason: str) -> None:
        for trigger in _way(entry.state, target):
            self._fire(entry, trigger, reason, {"fromFullState": True})
            self.made_up += 1

    def _note_lifetimes(self) -> None:
        """Only the full state carries lifetimes; they decide how long a silent node is waited for."""
        for item in self.report.addresses:
            allocation = self.allocations.get(item.address)
            if allocation is None:
                continue
            entry = self.ws.announcements.get((allocation.id, self.report.node, item.interface))
            if entry is not None and entry.valid_s != item.valid_s:
                entry.valid_s, entry.touched = item.valid_s, True


def _way(state: AnnouncementState, target: AnnouncementState) -> tuple[AnnouncementTrigger, ...]:
    """The moves that lead from one state to another when only the outcome is known."""
    if state is target:
        return ()
    match target:
        case _State.PRESENT:
            return (_Trigger.FOUND_PRESENT,)
        case _State.FAILED:
            return (_Trigger.FOUND_FAILED,)
        case _State.ADDING:
            return (_Trigger.FOUND_ABSENT, _Trigger.ADD) if state is _State.PRESENT else (_Trigger.ADD,)
        case _State.REMOVING:
            return (_Trigger.FOUND_PRESENT, _Trigger.REMOVE) if state is _State.ABSENT else (_Trigger.REMOVE,)
        case _:
            return (_Trigger.FOUND_ABSENT,)


def _seq(transition: ReportedTransition) -> int:
    return transition.seq


def _remember(ws: Workspace, report: NodeReport, *, known: bool, resync: bool) -> None:
    values = {
        "incarnation": report.incarnation,
        "started_at": report.started_at,
        "sequence": report.sequence,
        "resync": resync,
        "taken_at": ws.now,
    }
    if known:
        ws.db.rows_changed(update(_R).where(_R.c.node == report.node).values(**values))
    else:
        ws.db.rows_changed(insert(_R).values(node=report.node, **values))


def _tell_services(ws: Workspace, touched: Iterable[int], node: str) -> tuple[frozenset[ServiceKey], frozenset[int]]:
    """Fires announce and fall_silent where the moves of these allocations made them true."""
    numbers = sorted(touched)
    if not numbers:
        return frozenset(), frozenset()
    ws.flush()
    services = loading.load_members(ws, numbers)
    for service in services:
        settle(ws, service, node)
    leaving = {n for n in numbers if n in ws.allocations and ws.allocations[n].state is AllocationState.RELEASING}
    return frozenset(service.key for service in services), frozenset(leaving)
