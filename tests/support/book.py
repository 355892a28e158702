"""A desk at the book: a leader with a clock, and the few moves that tests make over and over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from purelb_sm.domain.book import Action, Allocate, Booked, Hold, Leave, Observe, Plan, Reclaim, Revive, Withdraw
from purelb_sm.domain.reports import NodeReport, ReportedAddress, ReportedTransition
from purelb_sm.domain.states import AnnouncementState, AnnouncementTrigger
from purelb_sm.domain.views import Port, ServiceKey
from purelb_sm.store import Book, ReportOutcome, Unit

NOW = datetime(2026, 11, 24, 3, 12, tzinfo=UTC)
WEB = ServiceKey("shop", "web")
DNS = ServiceKey("infra", "dns")
HTTP = (Port("TCP", 80, "http"),)


class Desk:
    """One leader. Every method that changes something is one committed transaction, a second after the last."""

    def __init__(self, url: str, actor: str = "allocator-0", now: datetime = NOW) -> None:
        self.url, self.actor, self.now = url, actor, now
        self.book = Book.open(url, actor=actor)
        self.term = self.book.raise_term(now)

    def close(self) -> None:
        self.book.close()

    @contextmanager
    def unit(self, now: datetime | None = None) -> Iterator[Unit]:
        if now is None:
            self.now += timedelta(seconds=1)
        with self.book.transaction(self.term, now or self.now) as unit:
            yield unit

    def booked(self, key: ServiceKey, uid: str | None = None) -> Booked:
        with self.unit(self.now) as unit:
            return unit.load({key: uid})[key]

    def do(self, key: ServiceKey, *actions: Action, uid: str | None = None) -> None:
        with self.unit() as unit:
            unit.load({key: uid or (actions[0].uid if actions else None)})
            unit.apply(Plan(key, actions))
            unit.commit()

    def allocate(
        self,
        key: ServiceKey = WEB,
        address: str = "10.0.0.1",
        uid: str | None = None,
        ports: tuple[Port, ...] = HTTP,
        group: str = "default",
    ) -> int:
        """A Service that was never seen gets an address. Returns the id of the allocation."""
        uid = uid or f"uid-{key.name}"
        hold = Hold(key, uid, ip_address(address), group, ports)
        self.do(key, Observe(key, uid), hold, Allocate(key, uid, group))
        return self.booked(key).held[0].id

    def withdraw(self, key: ServiceKey = WEB, reason: str = "deleted") -> None:
        booked = self.booked(key)
        assert booked.service is not None
        uid = booked.service.uid
        leaves = [Leave(key, uid, a.id, a.address, reason) for a in booked.held]
        self.do(key, *leaves, Withdraw(key, uid, reason))

    def ask_again(self, key: ServiceKey = WEB, uid: str | None = None) -> None:
        """The Service is there again and takes back what is reclaimable."""
        uid = uid or f"uid-{key.name}"
        booked = self.booked(key, uid)
        back = [Reclaim(key, uid, a.id, a.address, HTTP) for a in booked.reclaimable]
        begin = Revive(key, uid) if booked.former is not None else Observe(key, uid)
        self.do(key, begin, *back, Allocate(key, uid, "default"))

    def report(self, report: NodeReport) -> ReportOutcome:
        with self.unit() as unit:
            outcome = unit.take_report(report)
            unit.commit()
        return outcome

    def confirm(self, allocation_id: int, quarantine_s: float = 300) -> None:
        with self.unit() as unit:
            unit.confirm_release(allocation_id, self.now + timedelta(seconds=quarantine_s))
            unit.commit()

    def expire(self, later_s: float = 301) -> int:
        self.now += timedelta(seconds=later_s)
        with self.unit() as unit:
            count = len(unit.expire(1000))
            unit.commit()
        return count


class Agent:
    """A node's agent as the book sees it: it moves, and makes reports of its moves."""

    def __init__(self, node: str = "node1", incarnation: str = "a", started_at: datetime = NOW) -> None:
        self.node, self.incarnation, self.started_at = node, incarnation, started_at
        self.moves: list[ReportedTransition] = []
        self.shown: dict[tuple[str, str], ReportedAddress] = {}

    def move(
        self,
        trigger: AnnouncementTrigger,
        dest: AnnouncementState,
        address: str = "10.0.0.1",
        interface: str = "eth0",
        valid_s: int | None = 300,
        reason: str = "",
    ) -> Agent:
        at = self.started_at + timedelta(seconds=len(self.moves))
        before = self.shown.get((address, interface))
        ip = ip_address(address)
        self.moves.append(
            ReportedTransition(
                len(self.moves) + 1, at, ip, interface, 24, trigger, before.state if before else None, dest, reason
            )
        )
        if dest is AnnouncementState.ABSENT:
            self.shown.pop((address, interface), None)
        else:
            self.shown[(address, interface)] = ReportedAddress(ip, interface, 24, dest, at, valid_s, reason)
        return self

    def add(self, address: str = "10.0.0.1", interface: str = "eth0", valid_s: int | None = 300) -> Agent:
        self.move(AnnouncementTrigger.ADD, AnnouncementState.ADDING, address, interface, valid_s)
        return self.move(AnnouncementTrigger.ADDED, AnnouncementState.PRESENT, address, interface, valid_s)

    def remove(self, address: str = "10.0.0.1", interface: str = "eth0") -> Agent:
        self.move(AnnouncementTrigger.REMOVE, AnnouncementState.REMOVING, address, interface)
        return self.move(AnnouncementTrigger.REMOVED, AnnouncementState.ABSENT, address, interface)

    def report(self, last: int | None = None) -> NodeReport:
        """What the agent would write now; `last` moves of it only, as when the object had to be cut."""
        moves = self.moves if last is None else self.moves[len(self.moves) - last :]
        return NodeReport(
            self.node, self.incarnation, self.started_at, len(self.moves), tuple(self.shown.values()), tuple(moves)
        )
