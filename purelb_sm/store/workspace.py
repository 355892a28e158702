"""What a transaction knows and has yet to write. Fires the machines, keeps the history, writes by table at `flush`.

Every query flushes first, so a query always sees what was done before it. The order of writes keeps the database's own
constraints satisfied at each statement: what ends is written before what begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum

from purelb_sm.domain.addresses import Address, Family
from purelb_sm.domain.book import BookedAnnouncement
from purelb_sm.domain.sharing import port_keys
from purelb_sm.domain.states import (
    BIRTH,
    HOLD,
    SEEN,
    AllocationState,
    AllocationTrigger,
    AnnouncementState,
    AnnouncementTrigger,
    ServiceState,
    ServiceTrigger,
)
from purelb_sm.domain.views import Port, PortKey, ServiceKey
from purelb_sm.machines import ALLOCATION, ANNOUNCEMENT, SERVICE, fire
from purelb_sm.models import Allocation, Announcement, Base, Service, table
from purelb_sm.store import writing
from purelb_sm.store.engine import Db
from purelb_sm.store.entries import AllocationEntry, AnnouncementEntry, ServiceEntry
from purelb_sm.store.history import Entry, Ledger

AnnouncementKey = tuple[int, str, str]
"""(allocation id, node, interface)."""


class Workspace:
    """One transaction's memory. Not for use after its connection has committed or rolled back."""

    def __init__(self, db: Db, cluster: str, term: int, now: datetime, actor: str) -> None:
        self.db, self.cluster, self.now = db, cluster, now
        self.services: dict[str, ServiceEntry] = {}
        self.allocations: dict[int, AllocationEntry] = {}
        self.announcements: dict[AnnouncementKey, AnnouncementEntry] = {}
        self.by_address: dict[Address, AllocationEntry] = {}
        """Those that were held here, or loaded for who is to join them."""
        self.ledger = Ledger(term, now, actor)
        self.tally: Counter[tuple[str, Family, AllocationState]] = Counter()
        """By how much the counts of live allocations change, by group, family and state."""
        self.left_quarantine: list[Address] = []
        self.entered_quarantine: list[AllocationEntry] = []
        self._joins: dict[tuple[int, str], tuple[Port, ...]] = {}
        self._leaves: set[tuple[int, str]] = set()
        self._opened: dict[tuple[int, str], frozenset[PortKey]] = {}
        self._closed: dict[tuple[int, str], frozenset[PortKey]] = {}
        self._doubted: set[str] = set()
        self._ids: dict[str, int] = {}

    # -- transitions ------------------------------------------------------------------------------------------------

    def observe(self, key: ServiceKey, uid: str) -> ServiceEntry:
        """A new row, in the state that Services are born in."""
        initial = ServiceState(SERVICE.initial)
        number = self.next_id(Service)
        entry = ServiceEntry(uid, key, initial, "", "", "", self.now, self.now, number, stored=False, changed=True)
        self.services[uid] = entry
        self._note_service(entry, BIRTH, None)
        return entry

    def fire_service(
        self,
        entry: ServiceEntry,
        trigger: ServiceTrigger,
        reason: str = "",
        *,
        node: str = "",
        details: Mapping[str, object] | None = None,
        **facts: bool,
    ) -> None:
        """Moves a Service and keeps the history of it. Raises IllegalTransition."""
        fired = fire(SERVICE, entry, trigger, **facts)
        if fired.source is not fired.dest:
            entry.since = self.now
        entry.changed = True
        self._note_service(entry, trigger, fired.source, reason, node, details)

    def hold(
        self, address: Address, group: str, key: ServiceKey, uid: str, reason: str, sharing_key: str | None
    ) -> AllocationEntry:
        """A new row: the database refuses it at `flush` where the address is not free."""
        initial = AllocationState(ALLOCATION.initial)
        number = self.next_id(Allocation)
        entry = AllocationEntry(
            number, address, group, str(key), initial, self.now, self.now, stored=False, changed=True
        )
        entry.sharing_key = sharing_key
        self.allocations[number] = self.by_address[address] = entry
        self._count(entry)
        details = {} if sharing_key is None else {"sharingKey": sharing_key}
        self._note_allocation(entry, HOLD, None, key, uid, reason, details)
        return entry

    def fire_allocation(
        self,
        entry: AllocationEntry,
        trigger: AllocationTrigger,
        reason: str = "",
        *,
        uid: str = "",
        details: Mapping[str, object] | None = None,
        **facts: bool,
    ) -> None:
        """Moves an allocation and keeps the history of it. Raises IllegalTransition."""
        fired = fire(ALLOCATION, entry, trigger, **facts)
        entry.since, entry.changed = self.now, True
        self._count(entry)
        self._note_allocation(entry, trigger, fired.source, entry.claimed_by(), uid, reason, details)

    def _count(self, entry: AllocationEntry) -> None:
        if entry.counted is not None:
            self.tally[(entry.counted[0], entry.family, entry.counted[1])] -= 1
            if entry.counted[1] is AllocationState.QUARANTINED:
                self.left_quarantine.append(entry.address)
        if entry.state is AllocationState.QUARANTINED:
            self.entered_quarantine.append(entry)
        entry.counted = None if entry.state is AllocationState.RELEASED else (entry.group, entry.state)
        if entry.counted is not None:
            self.tally[(entry.counted[0], entry.family, entry.counted[1])] += 1

    def seen(self, allocation: AllocationEntry, node: str, interface: str, prefix_length: int) -> AnnouncementEntry:
        """An entry that the book has not, in the state that announcements are born in."""
        initial = AnnouncementState(ANNOUNCEMENT.initial)
        entry = AnnouncementEntry(
            0, allocation.id, allocation.address, allocation.group, node, interface, prefix_length, initial, self.now
        )
        self.announcements[(allocation.id, node, interface)] = entry
        self._note_announcement(entry, SEEN, None, "", f"agent/{node}", None)
        return entry

    def fire_announcement(
        self,
        entry: AnnouncementEntry,
        trigger: AnnouncementTrigger,
        reason: str = "",
        *,
        actor: str = "",
        details: Mapping[str, object] | None = None,
    ) -> None:
        """Moves an announcement and keeps the history of it. Raises IllegalTransition."""
        fired = fire(ANNOUNCEMENT, entry, trigger)
        # One that stays in its state goes on with its row.
        entry.moved |= fired.source is not fired.dest
        self._note_announcement(entry, trigger, fired.source, reason, actor, details)

    # -- members ----------------------------------------------------------------------------------------------------

    def join(self, allocation: AllocationEntry, service: ServiceEntry, ports: tuple[Port, ...]) -> None:
        """`service` has this address from now on, on these ports."""
        self._joins[(allocation.id, service.uid)] = ports
        allocation.members.add(service.uid)
        service.held.add(allocation.id)
        service.ports[allocation.id] = port_keys(ports)

    def set_ports(self, allocation: AllocationEntry, service: ServiceEntry, ports: frozenset[PortKey]) -> None:
        """`service` has this address on these ports from now on. The caller has loaded those that it had."""
        before, key = service.ports[allocation.id], (allocation.id, service.uid)
        self._closed[key], self._opened[key] = before - ports, ports - before
        service.ports[allocation.id] = ports

    def leave(self, allocation: AllocationEntry, service: ServiceEntry) -> None:
        """`service` has this address no more."""
        if (allocation.id, service.uid) in self._joins or (allocation.id, service.uid) in self._opened:
            self.flush()
        self._leaves.add((allocation.id, service.uid))
        allocation.members.discard(service.uid)
        service.held.discard(allocation.id)
        service.ports.pop(allocation.id, None)

    def doubt(self, nodes: Iterable[str]) -> None:
        """The next report of each of these nodes is compared as a whole, whatever its number says."""
        self._doubted.update(nodes)

    # -- writing ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Writes all that is pending. Raises Clash where a constraint refuses it."""
        writing.write_services(self.db, self.cluster, self.services.values())
        writing.write_allocations(self.db, self.allocations.values())
        writing.end_members(self.db, self.now, self._leaves, self._closed)
        numbers = {uid: self.services[uid].number for _, uid in self._joins}
        writing.begin_members(self.db, self.now, self._joins, self._opened, numbers)
        self._joins, self._leaves, self._closed, self._opened = {}, set(), {}, {}
        self._flush_announcements()
        writing.write_doubts(self.db, self._doubted)
        self._doubted.clear()
        self.ledger.flush(self.db)

    def next_id(self, model: type[Base]) -> int:
        """A key nobody has: all writers take turns, so the highest one cannot change under us."""
        name = table(model).name
        if name not in self._ids:
            self._ids[name] = writing.highest_id(self.db, name)
        self._ids[name] += 1
        return self._ids[name]

    def _flush_announcements(self) -> None:
        moved = [entry for entry in self.announcements.values() if entry.moved]
        touched = [entry for entry in self.announcements.values() if entry.touched and not entry.moved and entry.id]
        writing.end_announcements(self.db, self.now, moved)
        writing.change_announcements(self.db, touched)
        beginning = []
        for entry in moved:
            if entry.state is AnnouncementState.ABSENT:
                del self.announcements[(entry.allocation_id, entry.node, entry.interface)]
            else:
                entry.id, entry.since = self.next_id(Announcement), self.now
                beginning.append(entry)
        writing.begin_announcements(self.db, beginning)
        for entry in (*moved, *touched):
            entry.moved = entry.touched = False

    # -- history ----------------------------------------------------------------------------------------------------

    def _note_service(
        self,
        entry: ServiceEntry,
        trigger: str,
        source: StrEnum | None,
        reason: str = "",
        node: str = "",
        details: Mapping[str, object] | None = None,
    ) -> None:
        self.ledger.append(
            Entry(
                "service",
                str(trigger),
                _text(source),
                str(entry.state),
                namespace=entry.key.namespace,
                name=entry.key.name,
                uid=entry.uid,
                group=entry.group,
                node=node,
                reason=reason,
                details=details or {},
            )
        )

    def _note_allocation(
        self,
        entry: AllocationEntry,
        trigger: str,
        source: StrEnum | None,
        key: ServiceKey,
        uid: str,
        reason: str,
        details: Mapping[str, object] | None = None,
    ) -> None:
        self.ledger.append(
            Entry(
                "allocation",
                str(trigger),
                _text(source),
                str(entry.state),
                namespace=key.namespace,
                name=key.name,
                uid=uid,
                group=entry.group,
                address=str(entry.address),
                reason=reason,
                details=details or {},
            )
        )

    def _note_announcement(
        self,
        entry: AnnouncementEntry,
        trigger: str,
        source: StrEnum | None,
        reason: str,
        actor: str,
        details: Mapping[str, object] | None,
    ) -> None:
        self.ledger.append(
            Entry(
                "announcement",
                str(trigger),
                _text(source),
                str(entry.state),
                group=entry.group,
                address=str(entry.address),
                node=entry.node,
                actor=actor,
                reason=reason,
                details={"interface": entry.interface, "prefixLength": entry.prefix_length, **(details or {})},
            )
        )

    def note(self, entry: Entry) -> None:
        """A row of history that is no machine's transition: a group's, or a member that joins or leaves others."""
        self.ledger.append(entry)

    def live_announcements(self, allocation_id: int) -> list[BookedAnnouncement]:
        """Those in memory: the caller has loaded them."""
        found = [e.booked() for e in self.announcements.values() if e.allocation_id == allocation_id]
        return [a for a in found if a.state is not AnnouncementState.ABSENT]


def _text(state: StrEnum | None) -> str | None:
    return None if state is None else str(state)
