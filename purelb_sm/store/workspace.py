"""What a transaction knows and has yet to write. Fires the machines, keeps the history, writes by table at `flush`.

Every query flushes first, so a query always sees what was done before it. The order of writes keeps the database's own
constraints satisfied at each statement: what ends is written before what begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update

from purelb_sm.domain.addresses import Address
from purelb_sm.domain.book import BookedAnnouncement
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
from purelb_sm.domain.views import Port, ServiceKey
from purelb_sm.machines import ALLOCATION, ANNOUNCEMENT, SERVICE, fire
from purelb_sm.models import Allocation, Announcement, Membership, NodeReported, PortClaim, Service, ServiceGroup, table
from purelb_sm.store.engine import Db
from purelb_sm.store.entries import AllocationEntry, AnnouncementEntry, ServiceEntry
from purelb_sm.store.history import Entry, Ledger, plain

AnnouncementKey = tuple[int, str, str]
"""(allocation id, node, interface)."""


class Workspace:
    """One transaction's memory. Not for use after its connection has committed or rolled back."""

    def __init__(self, db: Db, cluster: str, term: int, now: datetime, actor: str) -> None:
        self.db, self.cluster, self.now = db, cluster, now
        self.services: dict[str, ServiceEntry] = {}
        self.allocations: dict[int, AllocationEntry] = {}
        self.announcements: dict[AnnouncementKey, AnnouncementEntry] = {}
        self.ledger = Ledger(term, now, actor)
        self._joins: dict[tuple[int, str], tuple[Port, ...]] = {}
        self._leaves: set[tuple[int, str]] = set()
        self._doubted: set[str] = set()
        self._ids: dict[str, int] = {}

    # -- transitions ------------------------------------------------------------------------------------------------

    def observe(self, key: ServiceKey, uid: str) -> ServiceEntry:
        """A new row, in the state that Services are born in."""
        initial = ServiceState(SERVICE.initial)
        entry = ServiceEntry(uid, key, initial, "", "", "", self.now, self.now, stored=False, changed=True)
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

    def hold(self, address: Address, group: str, key: ServiceKey, uid: str, reason: str) -> AllocationEntry:
        """A new row: the database refuses it at `flush` where the address is not free."""
        initial = AllocationState(ALLOCATION.initial)
        number = self.next_id(Allocation)
        entry = AllocationEntry(
            number, address, group, str(key), initial, self.now, self.now, stored=False, changed=True
        )
        self.allocations[number] = entry
        self._note_allocation(entry, HOLD, None, key, uid, reason)
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
        self._note_allocation(entry, trigger, fired.source, entry.claimed_by(), uid, reason, details)

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
        entry.moved = True
        self._note_announcement(entry, trigger, fired.source, reason, actor, details)

    # -- members ----------------------------------------------------------------------------------------------------

    def join(self, allocation: AllocationEntry, service: ServiceEntry, ports: tuple[Port, ...]) -> None:
        """`service` has this address from now on, on these ports."""
        self._joins[(allocation.id, service.uid)] = ports
        allocation.members.add(service.uid)
        service.held.add(allocation.id)

    def leave(self, allocation: AllocationEntry, service: ServiceEntry) -> None:
        """`service` has this address no more."""
        if (allocation.id, service.uid) in self._joins:
            self.flush()
        self._leaves.add((allocation.id, service.uid))
        allocation.members.discard(service.uid)
        service.held.discard(allocation.id)

    def doubt(self, nodes: Iterable[str]) -> None:
        """The next report of each of these nodes is compared as a whole, whatever its number says."""
        self._doubted.update(nodes)

    # -- writing ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Writes all that is pending. Raises Clash where a constraint refuses it."""
        self._flush_services()
        self._flush_allocations()
        self._flush_members()
        self._flush_announcements()
        self.db.many(_DOUBT, [{"node_": node} for node in sorted(self._doubted)])
        self._doubted.clear()
        self.ledger.flush(self.db)

    def next_id(self, model: type[Any]) -> int:
        """A key nobody has: all writers take turns, so the highest one cannot change under us."""
        name = table(model).name
        if name not in self._ids:
            row = self.db.row(_HIGHEST[name])
            self._ids[name] = int(row[0] or 0) if row is not None else 0
        self._ids[name] += 1
        return self._ids[name]

    def _flush_services(self) -> None:
        changed = [entry for entry in self.services.values() if entry.changed]
        if not changed:
            return
        # The withdrawn first: their names may be taken by others of the same batch.
        changed.sort(key=lambda entry: entry.state is not ServiceState.WITHDRAWN)
        rows = [(entry.stored, _service_row(entry, self.cluster)) for entry in changed]
        self.db.many(_UPDATE_SERVICE, [{"key_": row["uid"], **row} for stored, row in rows if stored])
        self.db.many(_INSERT_SERVICE, [row for stored, row in rows if not stored])
        for entry in changed:
            entry.stored, entry.changed = True, False

    def _flush_allocations(self) -> None:
        changed = [entry for entry in self.allocations.values() if entry.changed]
        if not changed:
            return
        rows = [(entry.stored, _allocation_row(entry)) for entry in changed]
        self.db.many(_UPDATE_ALLOCATION, [{"key_": row["id"], **row} for stored, row in rows if stored])
        self.db.many(_INSERT_ALLOCATION, [row for stored, row in rows if not stored])
        for entry in changed:
            entry.stored, entry.changed = True, False

    def _flush_members(self) -> None:
        ended = [{"allocation_": a, "service_": uid, "now_": self.now} for a, uid in sorted(self._leaves)]
        self.db.many(_END_MEMBERSHIP, ended)
        self.db.many(_END_PORT_CLAIM, ended)
        members, ports = [], []
        for (allocation, uid), claims in self._joins.items():
            row = {"allocation_id": allocation, "service_uid": uid, "from_at": self.now}
            members.append(row)
            unique = dict.fromkeys((p.protocol, p.port) for p in claims)
            ports += [{**row, "protocol": protocol, "port": port} for protocol, port in unique]
        self.db.many(_INSERT_MEMBERSHIP, members)
        self.db.many(_INSERT_PORT_CLAIM, ports)
        self._joins, self._leaves = {}, set()

    def _flush_announcements(self) -> None:
        moved = [entry for entry in self.announcements.values() if entry.moved]
        touched = [entry for entry in self.announcements.values() if entry.touched and not entry.moved and entry.id]
        self.db.many(_END_ANNOUNCEMENT, [{"key_": entry.id, "now_": self.now} for entry in moved if entry.id])
        self.db.many(
            _UPDATE_ANNOUNCEMENT,
            [{"key_": e.id, "prefix_length": e.prefix_length, "valid_s": e.valid_s} for e in touched],
        )
        rows = []
        for entry in moved:
            if entry.state is AnnouncementState.ABSENT:
                del self.announcements[(entry.allocation_id, entry.node, entry.interface)]
                continue
            entry.id, entry.since = self.next_id(Announcement), self.now
            rows.append(_announcement_row(entry))
        self.db.many(_INSERT_ANNOUNCEMENT, rows)
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


def _service_row(entry: ServiceEntry, cluster: str) -> dict[str, Any]:
    return {
        "uid": entry.uid,
        "cluster": cluster,
        "namespace": entry.key.namespace,
        "name": entry.key.name,
        "state": entry.state,
        "reason": plain(entry.reason),
        "message": plain(entry.message),
        "group_name": entry.group,
        "since": entry.since,
        "observed_at": entry.observed_at,
    }


def _allocation_row(entry: AllocationEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "address": entry.address,
        "address_text": str(entry.address),
        "family": entry.family,
        "group_name": entry.group,
        "claim": entry.claim,
        "state": entry.state,
        "since": entry.since,
        "held_at": entry.held_at,
        "quarantined_until": entry.quarantined_until,
        "released_at": entry.released_at,
    }


def _announcement_row(entry: AnnouncementEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "allocation_id": entry.allocation_id,
        "node": entry.node,
        "interface": entry.interface,
        "prefix_length": entry.prefix_length,
        "state": entry.state,
        "valid_s": entry.valid_s,
        "from_at": entry.since,
    }


_S, _A, _N = table(Service), table(Allocation), table(Announcement)
_M, _P = table(Membership), table(PortClaim)

_HIGHEST = {t.name: select(func.max(t.c.id)) for t in (_A, _N, table(ServiceGroup))}

_INSERT_SERVICE = insert(_S)
_UPDATE_SERVICE = (
    update(_S)
    .where(_S.c.uid == bindparam("key_"))
    .values({name: bindparam(name) for name in ("state", "reason", "message", "group_name", "since")})
)
_INSERT_ALLOCATION = insert(_A)
_UPDATE_ALLOCATION = (
    update(_A)
    .where(_A.c.id == bindparam("key_"))
    .values({name: bindparam(name) for name in ("state", "since", "quarantined_until", "released_at")})
)
_INSERT_MEMBERSHIP, _INSERT_PORT_CLAIM = insert(_M), insert(_P)
_END_MEMBERSHIP, _END_PORT_CLAIM = (
    update(t)
    .where(t.c.allocation_id == bindparam("allocation_"), t.c.service_uid == bindparam("service_"))
    .where(t.c.until_at.is_(None))
    .values(until_at=bindparam("now_"))
    for t in (_M, _P)
)
_R = table(NodeReported)
_DOUBT = update(_R).where(_R.c.node == bindparam("node_")).values(resync=True)
_INSERT_ANNOUNCEMENT = insert(_N)
_END_ANNOUNCEMENT = update(_N).where(_N.c.id == bindparam("key_")).values(until_at=bindparam("now_"))
_UPDATE_ANNOUNCEMENT = (
    update(_N)
    .where(_N.c.id == bindparam("key_"))
    .values(prefix_length=bindparam("prefix_length"), valid_s=bindparam("valid_s"))
)
