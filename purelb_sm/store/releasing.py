"""The way out of the book: releasing → quarantined → released, two-phase (spec B5)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime

from sqlalchemy import bindparam, select

from purelb_sm.domain.book import BookedAllocation, Releasing
from purelb_sm.domain.release import Verdict, may_hold
from purelb_sm.domain.states import AllocationTrigger, AnnouncementState, AnnouncementTrigger
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import StoreError
from purelb_sm.models import Allocation, Membership, Service, table
from purelb_sm.store import loading
from purelb_sm.store.entries import AllocationEntry, AnnouncementEntry
from purelb_sm.store.workspace import Workspace

_A, _M, _S = table(Allocation), table(Membership), table(Service)

_RELEASING = (
    loading.ALLOCATIONS.where(loading.RELEASING, _A.c.id > bindparam("after"))
    .order_by(_A.c.id)
    .limit(bindparam("limit"))
)
_DUE = (
    loading.ALLOCATIONS.where(loading.QUARANTINED, _A.c.quarantined_until <= bindparam("now"))
    .order_by(_A.c.quarantined_until, _A.c.id)
    .limit(bindparam("limit"))
)
_FREE = _DUE.where(~loading.MAY_BE_HELD)
_DOUBTFUL = _DUE.where(loading.MAY_BE_HELD)
_NEXT = (
    select(_A.c.quarantined_until)
    .where(loading.QUARANTINED, ~loading.MAY_BE_HELD)
    .order_by(_A.c.quarantined_until)
    .limit(1)
)


def releasing(ws: Workspace, limit: int, after: int = 0) -> list[Releasing]:
    """Allocations on their way out, by id, those after `after` only: page on, so that a stuck one hides no other.

    `members` are all Services that were ever members of it: any of their statuses may still show the address.
    """
    ws.flush()
    entries = loading.load_allocations(ws, _RELEASING, {"after": after, "limit": limit})
    numbers = [entry.id for entry in entries]
    loading.load_announcements_of(ws, numbers)
    members = _members_ever(ws, numbers)
    return [
        Releasing(e.booked(), e.since, tuple(members.get(e.id, ())), tuple(ws.live_announcements(e.id)))
        for e in entries
    ]


def confirm_release(
    ws: Workspace, allocation_id: int, quarantined_until: datetime, reason: str, gone: Collection[int]
) -> None:
    """No Service shows it and no node announces it: the quarantine begins.

    `gone` are ids of announcements (as `releasing` gave them) whose node holds the address no more although nobody
    reported so: the node left the cluster, or its kernel dropped the address at the end of its lifetime. An
    announcement that has moved since has another id, so a judgement never outlives what it was made of.
    Raises IllegalTransition where another announcement stands in the way.
    """
    allocation = _known(ws, allocation_id)
    announcements = _announcements(ws, allocation_id)
    in_the_way = [
        e
        for e in announcements
        if e.id not in gone and e.state not in (AnnouncementState.FAILED, AnnouncementState.ABSENT)
    ]
    unseen = not in_the_way
    ws.fire_allocation(
        allocation,
        AllocationTrigger.CONFIRM_RELEASE,
        reason,
        details=_judged(announcements),
        unseen=unseen,
    )
    allocation.quarantined_until = quarantined_until
    _end(ws, announcements, "the release of its address was confirmed")


def expire(ws: Workspace, limit: int, nodes: Collection[str] | None) -> list[BookedAllocation]:
    """Those whose quarantine is over at the time of this transaction, at most `limit`, the longest over first.

    A node judged gone may have come back and hold the address again: then it waits on, as a release does.
    """
    ws.flush()
    due = {"now": ws.now, "limit": limit}
    entries = loading.load_allocations(ws, _FREE, due)
    entries += [e for e in loading.load_allocations(ws, _DOUBTFUL, due) if not _waits(ws, e, nodes)]
    loading.load_announcements_of(ws, [entry.id for entry in entries])
    for entry in entries:
        over = entry.quarantined_until is not None and entry.quarantined_until <= ws.now
        ws.fire_allocation(entry, AllocationTrigger.EXPIRE, quarantine_over=over)
        entry.quarantined_until, entry.released_at = None, ws.now
        _end(ws, _announcements(ws, entry.id), "the quarantine of its address is over")
    return [entry.booked() for entry in entries]


def next_expiry(ws: Workspace, nodes: Collection[str] | None) -> datetime | None:
    """When the first quarantine ends, or the lifetime of an address in the kernel of a silent node does; or None."""
    ws.flush()
    row = ws.db.row(_NEXT)
    times = [] if row is None else [row[0]]
    for entry in loading.load_allocations(ws, _DOUBTFUL, {"now": ws.now, "limit": loading.CHUNK}):
        times += [w.again_at for w in _waits(ws, entry, nodes) if w.again_at is not None]
    return min(times, default=None)


def _waits(ws: Workspace, entry: AllocationEntry, nodes: Collection[str] | None) -> list[Verdict]:
    """What its end waits for: nodes that may hold it."""
    loading.load_announcements_of(ws, [entry.id])
    found = (may_hold(a, nodes, ws.now) for a in ws.live_announcements(entry.id))
    return [verdict for verdict in found if verdict is not None]


def _announcements(ws: Workspace, allocation_id: int) -> list[AnnouncementEntry]:
    return [e for e in ws.announcements.values() if e.allocation_id == allocation_id]


def _end(ws: Workspace, announcements: Iterable[AnnouncementEntry], reason: str) -> None:
    """Ends what is left, by our judgement. The node may see it otherwise: its next report is taken as a whole."""
    for entry in announcements:
        ws.fire_announcement(entry, AnnouncementTrigger.FOUND_ABSENT, reason)
        ws.doubt([entry.node])


def _known(ws: Workspace, allocation_id: int) -> AllocationEntry:
    known = ws.allocations.get(allocation_id)
    if known is None:
        ws.flush()
        if not loading.load_allocations(ws, loading.ALLOCATIONS.where(_A.c.id == allocation_id)):
            raise StoreError(f"there is no allocation {allocation_id}")
        loading.load_announcements_of(ws, [allocation_id])
        known = ws.allocations[allocation_id]
    return known


def _judged(announcements: list[AnnouncementEntry]) -> dict[str, object]:
    """What was still in the book of it, for the history."""
    return {"gone": [f"{e.node},{e.interface},{e.state}" for e in announcements]} if announcements else {}


def _members_ever(ws: Workspace, numbers: list[int]) -> dict[int, list[ServiceKey]]:
    found: dict[int, list[ServiceKey]] = {}
    for some in loading.chunks(numbers):
        statement = (
            select(_M.c.allocation_id, _S.c.namespace, _S.c.name)
            .join(_S, _S.c.uid == _M.c.service_uid)
            .where(_M.c.allocation_id.in_(some))
            .distinct()
        )
        for row in ws.db.rows(statement.order_by(_M.c.allocation_id, _S.c.namespace, _S.c.name)):
            found.setdefault(row.allocation_id, []).append(ServiceKey(row.namespace, row.name))
    return found
