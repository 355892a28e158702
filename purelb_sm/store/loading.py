"""Reading rows into a workspace: a constant number of statements for a batch, whatever its size up to `CHUNK`.

Statements are built once, here, since building one costs several times what running it does. Literal conditions such
as `state <> 'withdrawn'` are written into the SQL and not bound: with a bound value neither database can tell that a
partial index answers the question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import JSON, ColumnElement, Select, bindparam, exists, func, literal_column, or_, select

from purelb_sm.domain.addresses import Address
from purelb_sm.domain.book import Booked
from purelb_sm.domain.states import AllocationState, AnnouncementState, ServiceState
from purelb_sm.domain.views import PortKey, ServiceKey
from purelb_sm.models import Allocation, Announcement, Membership, PortClaim, Service, table
from purelb_sm.store.entries import AllocationEntry, AnnouncementEntry, ServiceEntry
from purelb_sm.store.workspace import Workspace

CHUNK = 1000
"""Values in one IN list; SQLite takes 32,766 and PostgreSQL 65,535, but long lists cost more to parse than to ask."""

T = TypeVar("T")

_S, _A, _M, _N = table(Service), table(Allocation), table(Membership), table(Announcement)
_P = table(PortClaim)


def literal(value: str) -> ColumnElement[Any]:
    """A constant of ours, in the text of the statement."""
    return literal_column(f"'{value}'")


def _list(name: str) -> Any:
    return bindparam(name, expanding=True)


LIVE = _S.c.state != literal(ServiceState.WITHDRAWN.value)
WITHDRAWN = _S.c.state == literal(ServiceState.WITHDRAWN.value)
NOT_RELEASED = _A.c.released_at.is_(None)
NOT_HELD = _A.c.state != literal(AllocationState.HELD.value)
RELEASING = _A.c.state == literal(AllocationState.RELEASING.value)
QUARANTINED = _A.c.state == literal(AllocationState.QUARANTINED.value)
MEMBER = _M.c.until_at.is_(None)
CURRENT = _N.c.until_at.is_(None)
PRESENT = _N.c.state == literal(AnnouncementState.PRESENT.value)

OF_SERVICES = _M.c.service_number.in_(select(_S.c.number).where(_S.c.uid.in_(_list("uids"))))
"""Of a membership: that of one of the Services with these uids."""

ANNOUNCED = exists().where(_N.c.allocation_id == _A.c.id, CURRENT, PRESENT).label("announced")

_OVER = [literal(state.value) for state in (AnnouncementState.ABSENT, AnnouncementState.FAILED)]
MAY_BE_HELD = exists().where(_N.c.allocation_id == _A.c.id, CURRENT, _N.c.state.not_in(_OVER))
"""Of an allocation: some node's kernel holds it, or nobody can say."""

ALLOCATIONS = select(_A, ANNOUNCED)
"""To be given a condition: what `load_allocations` takes."""

ANNOUNCEMENTS = select(_N, _A.c.address, _A.c.group_name).join(_A, _A.c.id == _N.c.allocation_id).where(CURRENT)
"""To be given a condition: what `load_announcements` takes."""

# Each key is looked up by the index of names, which SQLite does not do for a list of pairs: it reads all that are live.
_WANTED = func.json_each(bindparam("keys", type_=JSON)).table_valued("value").alias("wanted")
_LIVE_BY_KEY = select(_S).where(
    _S.c.cluster == bindparam("cluster"),
    _S.c.namespace == _WANTED.c.value.op("->>")(literal_column("0")),
    _S.c.name == _WANTED.c.value.op("->>")(literal_column("1")),
    LIVE,
)
_BY_UID = select(_S).where(_S.c.uid.in_(_list("uids")))
_HELD_BY = (
    select(_A, ANNOUNCED, _M.c.service_uid)
    .join(_M, (_M.c.allocation_id == _A.c.id) & MEMBER)
    .where(_A.c.id.in_(select(_M.c.allocation_id).where(OF_SERVICES, MEMBER)))
)
_PORTS_OF = select(_P.c.allocation_id, _P.c.service_uid, _P.c.protocol, _P.c.port).where(
    _P.c.allocation_id.in_(_list("ids")), _P.c.service_uid.in_(_list("uids")), _P.c.until_at.is_(None)
)
_MEMBERS_OF = select(_M.c.service_uid).where(_M.c.allocation_id.in_(_list("ids")), MEMBER).distinct()
_CLAIMED = ALLOCATIONS.where(_A.c.claim.in_(_list("claims")), NOT_RELEASED, NOT_HELD).order_by(_A.c.id)
_BY_ADDRESS = ALLOCATIONS.where(_A.c.address.in_(_list("addresses")), NOT_RELEASED)
_ANNOUNCEMENTS_OF = ANNOUNCEMENTS.where(_N.c.allocation_id.in_(_list("ids")))
_ANNOUNCEMENTS_OF_ON = _ANNOUNCEMENTS_OF.where(_N.c.node == bindparam("node"))
_ANNOUNCEMENTS_ON = ANNOUNCEMENTS.where(_N.c.node == bindparam("node"))


def named(namespace: ColumnElement[str] | str, name: ColumnElement[str] | str) -> ColumnElement[bool]:
    """Services of this name, live or not: for each of the two there is an index that has no others."""
    same = (_S.c.namespace == namespace) & (_S.c.name == name)
    return or_(same & LIVE, same & WITHDRAWN)


def load(ws: Workspace, wanted: Mapping[ServiceKey, str | None]) -> dict[ServiceKey, Booked]:
    """All that the book says of these keys; each with the uid that asks now (None: nobody does)."""
    ws.flush()
    live = {entry.key: entry for entry in live_by_key(ws, wanted)}
    asking = [uid for key, uid in wanted.items() if uid and not (key in live and live[key].uid == uid)]
    former = {entry.uid: entry for entry in _by_uid(ws, asking) if entry.state is ServiceState.WITHDRAWN}
    load_held(ws, list(live.values()))
    _load_ports(ws, live.values())
    reclaimable = _reclaimable(ws, wanted)
    return {
        key: _booked(ws, live.get(key), former.get(uid or ""), reclaimable.get(str(key), ()))
        for key, uid in wanted.items()
    }


def load_held(ws: Workspace, services: Sequence[ServiceEntry]) -> None:
    """The allocations of these Services, with all their members and whether a node announces them."""
    for entry in services:
        entry.held.clear()
    for uids in chunks(entry.uid for entry in services):
        for row in ws.db.rows(_HELD_BY, {"uids": uids}):
            allocation = _allocation(ws, row)
            allocation.members.add(row.service_uid)
            service = ws.services.get(row.service_uid)
            if service is not None:
                service.held.add(allocation.id)


def _load_ports(ws: Workspace, services: Iterable[ServiceEntry]) -> None:
    """The ports that these Services have, on each address that they hold."""
    holding = [entry for entry in services if entry.held]
    for some in chunks(holding):
        numbers = sorted({number for entry in some for number in entry.held})
        found: dict[tuple[str, int], set[PortKey]] = {}
        for ids in chunks(numbers):
            for row in ws.db.rows(_PORTS_OF, {"ids": ids, "uids": [entry.uid for entry in some]}):
                found.setdefault((row.service_uid, row.allocation_id), set()).add((row.protocol, row.port))
        for entry in some:
            entry.ports = {number: frozenset(found.get((entry.uid, number), ())) for number in entry.held}


def load_members(ws: Workspace, allocation_ids: Iterable[int]) -> list[ServiceEntry]:
    """The Services that are members of these allocations, each with everything it holds."""
    uids: set[str] = set()
    for ids in chunks(allocation_ids):
        uids.update(row[0] for row in ws.db.rows(_MEMBERS_OF, {"ids": ids}))
    services = _by_uid(ws, sorted(uids))
    load_held(ws, services)
    return services


def load_allocations(
    ws: Workspace, statement: Select[Any], parameters: Mapping[str, Any] | None = None
) -> list[AllocationEntry]:
    """What a statement made of ALLOCATIONS finds; without their members."""
    return [_allocation(ws, row) for row in ws.db.rows(statement, parameters)]


def load_by_address(ws: Workspace, addresses: Iterable[Address]) -> dict[Address, AllocationEntry]:
    """The allocation of each address that is not released."""
    found = (e for some in chunks(addresses) for e in load_allocations(ws, _BY_ADDRESS, {"addresses": some}))
    return {entry.address: entry for entry in found}


def load_announcements_on(ws: Workspace, node: str) -> list[AnnouncementEntry]:
    """The announcements of a node that are not over."""
    return [_announcement(ws, row) for row in ws.db.rows(_ANNOUNCEMENTS_ON, {"node": node})]


def load_announcements_of(ws: Workspace, allocation_ids: Iterable[int], node: str | None = None) -> None:
    """The announcements of these allocations that are not over; of one node where it is named."""
    for ids in chunks(allocation_ids):
        if node is None:
            rows = ws.db.rows(_ANNOUNCEMENTS_OF, {"ids": ids})
        else:
            rows = ws.db.rows(_ANNOUNCEMENTS_OF_ON, {"ids": ids, "node": node})
        for row in rows:
            _announcement(ws, row)


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """In lists of at most CHUNK."""
    some: list[T] = []
    for item in items:
        some.append(item)
        if len(some) == CHUNK:
            yield some
            some = []
    if some:
        yield some


def live_by_key(ws: Workspace, keys: Iterable[ServiceKey]) -> list[ServiceEntry]:
    found = []
    for some in chunks(keys):
        # An object and not a list: json_each of PostgreSQL takes no other.
        names = {str(number): key for number, key in enumerate(some)}
        rows = ws.db.rows(_LIVE_BY_KEY, {"cluster": ws.cluster, "keys": names})
        found += [_service(ws, row) for row in rows]
    return found


def _by_uid(ws: Workspace, uids: Iterable[str]) -> list[ServiceEntry]:
    return [_service(ws, row) for some in chunks(uids) for row in ws.db.rows(_BY_UID, {"uids": some})]


def _reclaimable(ws: Workspace, keys: Iterable[ServiceKey]) -> dict[str, list[AllocationEntry]]:
    found: dict[str, list[AllocationEntry]] = {}
    for claims in chunks(str(key) for key in keys):
        for entry in load_allocations(ws, _CLAIMED, {"claims": claims}):
            found.setdefault(entry.claim, []).append(entry)
    return found


def _booked(
    ws: Workspace,
    service: ServiceEntry | None,
    former: ServiceEntry | None,
    reclaimable: Iterable[AllocationEntry],
) -> Booked:
    held = [ws.allocations[number] for number in sorted(service.held)] if service is not None else []
    return Booked(
        service.booked() if service is not None else None,
        former.booked() if former is not None else None,
        tuple(entry.booked(service.ports.get(entry.id)) for entry in held) if service is not None else (),
        tuple(entry.booked() for entry in reclaimable),
    )


def _service(ws: Workspace, row: Any) -> ServiceEntry:
    known = ws.services.get(row.uid)
    if known is None:
        key = ServiceKey(row.namespace, row.name)
        known = ws.services[row.uid] = ServiceEntry(
            row.uid, key, row.state, row.reason, row.message, row.group_name, row.since, row.observed_at, row.number
        )
    return known


def _allocation(ws: Workspace, row: Any) -> AllocationEntry:
    known = ws.allocations.get(row.id)
    if known is None:
        known = ws.allocations[row.id] = AllocationEntry(
            row.id, row.address, row.group_name, row.claim, row.state, row.since, row.held_at
        )
        known.quarantined_until, known.released_at = row.quarantined_until, row.released_at
        known.counted = None if row.released_at is not None else (row.group_name, row.state)
        known.sharing_key = row.sharing_key
    known.announced = bool(row.announced)
    return known


def _announcement(ws: Workspace, row: Any) -> AnnouncementEntry:
    key = (row.allocation_id, row.node, row.interface)
    known = ws.announcements.get(key)
    if known is None:
        known = ws.announcements[key] = AnnouncementEntry(
            row.id,
            row.allocation_id,
            row.address,
            row.group_name,
            row.node,
            row.interface,
            row.prefix_length,
            row.state,
            row.from_at,
            row.valid_s,
        )
    return known
