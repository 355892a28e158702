"""What a workspace has changed, as rows: one statement per table and kind of change, however many rows there are.

Within a table what ends is written before what begins, so that the database's own constraints hold at each statement.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update

from purelb_sm.domain.states import ServiceState
from purelb_sm.domain.views import Port, PortKey
from purelb_sm.models import (
    Allocation,
    Announcement,
    Membership,
    NodeReported,
    PortClaim,
    Service,
    ServiceGroup,
    table,
)
from purelb_sm.store.engine import Db
from purelb_sm.store.entries import AllocationEntry, AnnouncementEntry, ServiceEntry
from purelb_sm.store.history import plain

_S, _A, _N = table(Service), table(Allocation), table(Announcement)
_M, _P, _R = table(Membership), table(PortClaim), table(NodeReported)

_HIGHEST = {t.name: select(func.max(t.c.id)) for t in (_A, _N, table(ServiceGroup))}
_HIGHEST[_S.name] = select(func.max(_S.c.number))

# What an UPDATE sets is said by the values that are sent with it.
_INSERT_SERVICE, _UPDATE_SERVICE = insert(_S), update(_S).where(_S.c.uid == bindparam("key_"))
_INSERT_ALLOCATION, _UPDATE_ALLOCATION = insert(_A), update(_A).where(_A.c.id == bindparam("key_"))
_INSERT_ANNOUNCEMENT, _UPDATE_ANNOUNCEMENT = insert(_N), update(_N).where(_N.c.id == bindparam("key_"))
_INSERT_MEMBERSHIP, _INSERT_PORT_CLAIM = insert(_M), insert(_P)
_END_MEMBERSHIP, _END_PORT_CLAIM = (
    update(t)
    .where(t.c.allocation_id == bindparam("allocation_"), t.c.service_uid == bindparam("service_"))
    .where(t.c.until_at.is_(None))
    for t in (_M, _P)
)
_END_ONE_PORT_CLAIM = _END_PORT_CLAIM.where(_P.c.protocol == bindparam("protocol_"), _P.c.port == bindparam("port_"))
_DOUBT = update(_R).where(_R.c.node == bindparam("node_"))


def highest_id(db: Db, name: str) -> int:
    """The highest key that a table has given; 0 where it has none."""
    row = db.row(_HIGHEST[name])
    return int(row[0] or 0) if row is not None else 0


def write_services(db: Db, cluster: str, entries: Iterable[ServiceEntry]) -> None:
    changed = [entry for entry in entries if entry.changed]
    # The withdrawn first: their names may be taken by others of the same batch.
    changed.sort(key=lambda entry: entry.state is not ServiceState.WITHDRAWN)
    db.many(_UPDATE_SERVICE, [{"key_": e.uid, **_service_change(e)} for e in changed if e.stored])
    db.many(_INSERT_SERVICE, [_service_row(e, cluster) for e in changed if not e.stored])
    for entry in changed:
        entry.stored, entry.changed = True, False


def write_allocations(db: Db, entries: Iterable[AllocationEntry]) -> None:
    changed = [entry for entry in entries if entry.changed]
    db.many(_UPDATE_ALLOCATION, [{"key_": e.id, **_allocation_change(e)} for e in changed if e.stored])
    db.many(_INSERT_ALLOCATION, [_allocation_row(e) for e in changed if not e.stored])
    for entry in changed:
        entry.stored, entry.changed = True, False


def end_members(
    db: Db,
    now: datetime,
    leaves: Collection[tuple[int, str]],
    closed: Mapping[tuple[int, str], Collection[PortKey]],
) -> None:
    """Memberships that are over with all their ports, and single ports, by (allocation id, uid of the Service)."""
    ended = [{"allocation_": number, "service_": uid, "until_at": now} for number, uid in sorted(leaves)]
    db.many(_END_MEMBERSHIP, ended)
    db.many(_END_PORT_CLAIM, ended)
    db.many(
        _END_ONE_PORT_CLAIM,
        [
            {"allocation_": number, "service_": uid, "protocol_": protocol, "port_": port, "until_at": now}
            for (number, uid), ports in closed.items()
            for protocol, port in sorted(ports)
        ],
    )


def begin_members(
    db: Db,
    now: datetime,
    joins: Mapping[tuple[int, str], tuple[Port, ...]],
    opened: Mapping[tuple[int, str], Collection[PortKey]],
    numbers: Mapping[str, int],
) -> None:
    """New memberships with their ports, and new ports of those there are, by (allocation id, uid of the Service);
    `numbers` has those of the Services that join."""
    members, ports = [], []
    for (number, uid), claims in joins.items():
        row = {"allocation_id": number, "service_uid": uid, "from_at": now}
        members.append({**row, "service_number": numbers[uid]})
        unique = dict.fromkeys((p.protocol, p.port) for p in claims)
        ports += [{**row, "protocol": protocol, "port": port} for protocol, port in unique]
    for (number, uid), added in opened.items():
        row = {"allocation_id": number, "service_uid": uid, "from_at": now}
        ports += [{**row, "protocol": protocol, "port": port} for protocol, port in sorted(added)]
    db.many(_INSERT_MEMBERSHIP, members)
    db.many(_INSERT_PORT_CLAIM, ports)


def end_announcements(db: Db, now: datetime, moved: Iterable[AnnouncementEntry]) -> None:
    """The rows of the states that these have left."""
    db.many(_UPDATE_ANNOUNCEMENT, [{"key_": entry.id, "until_at": now} for entry in moved if entry.id])


def begin_announcements(db: Db, moved: Iterable[AnnouncementEntry]) -> None:
    """The rows of the states that these are in now."""
    db.many(_INSERT_ANNOUNCEMENT, [_announcement_row(entry) for entry in moved])


def change_announcements(db: Db, touched: Iterable[AnnouncementEntry]) -> None:
    """What the agent says of an entry that did not move."""
    rows = [{"key_": e.id, "prefix_length": e.prefix_length, "valid_s": e.valid_s} for e in touched]
    db.many(_UPDATE_ANNOUNCEMENT, rows)


def write_doubts(db: Db, nodes: Iterable[str]) -> None:
    """The next report of each of these nodes is compared as a whole."""
    db.many(_DOUBT, [{"node_": node, "resync": True} for node in sorted(nodes)])


def _service_change(entry: ServiceEntry) -> dict[str, Any]:
    """The columns that change. Not the key: to set it, even to itself, has all that refer to it looked for."""
    return {
        "state": entry.state,
        "reason": plain(entry.reason),
        "message": plain(entry.message),
        "group_name": entry.group,
        "since": entry.since,
    }


def _service_row(entry: ServiceEntry, cluster: str) -> dict[str, Any]:
    return {
        "uid": entry.uid,
        "number": entry.number,
        "cluster": cluster,
        "namespace": entry.key.namespace,
        "name": entry.key.name,
        "observed_at": entry.observed_at,
        **_service_change(entry),
    }


def _allocation_change(entry: AllocationEntry) -> dict[str, Any]:
    return {
        "group_name": entry.group,
        "claim": entry.claim,
        "sharing_key": entry.sharing_key,
        "state": entry.state,
        "since": entry.since,
        "quarantined_until": entry.quarantined_until,
        "released_at": entry.released_at,
    }


def _allocation_row(entry: AllocationEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "address": entry.address,
        "address_text": str(entry.address),
        "family": entry.family,
        "group_name": entry.group,
        "held_at": entry.held_at,
        **_allocation_change(entry),
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
