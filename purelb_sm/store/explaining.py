"""Why a Service is as it is: all that the book has of it, read in one snapshot by a constant number of statements.

What it says is facts; the sentences are made of them by who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, case, func, select

from purelb_sm.domain.addresses import Address
from purelb_sm.domain.book import BookedAllocation, BookedAnnouncement, Releasing
from purelb_sm.domain.states import AllocationState, AnnouncementState, ServiceState
from purelb_sm.domain.views import ServiceKey
from purelb_sm.models import Allocation, Announcement, History, Membership, Service, table
from purelb_sm.store.engine import Db
from purelb_sm.store.loading import LIVE, NOT_HELD, NOT_RELEASED, literal, named
from purelb_sm.store.pooling import GroupState, group_states

_A, _H, _M, _N, _S = table(Allocation), table(History), table(Membership), table(Announcement), table(Service)

LAST_MOVES = 5
MEMBERS_SHOWN = 1000
STUCK_SHOWN = 20

_NAMED = named(bindparam("namespace"), bindparam("name"))
_SERVICE = select(_S).where(_NAMED).order_by(case((LIVE, 0), else_=1), _S.c.since.desc()).limit(1)
_KEPT = select(_A).where(NOT_RELEASED, NOT_HELD, _A.c.claim == bindparam("claim"))
_JOINED = (
    select(_A)
    .join(_M, _M.c.allocation_id == _A.c.id)
    .where(_M.c.service_number == bindparam("number"), _M.c.until_at.is_(None), NOT_RELEASED)
)
_MEMBERS = (
    select(_M.c.allocation_id, _S.c.namespace, _S.c.name, _M.c.until_at)
    .join(_S, _S.c.uid == _M.c.service_uid)
    .where(_M.c.allocation_id.in_(bindparam("ids", expanding=True)))
    .order_by(_S.c.namespace, _S.c.name)
    .limit(MEMBERS_SHOWN)
)
_ANNOUNCED = (
    select(_N)
    .where(_N.c.allocation_id.in_(bindparam("ids", expanding=True)), _N.c.until_at.is_(None))
    .order_by(_N.c.node, _N.c.interface)
)
_SAID_LAST = (
    select(func.max(_H.c.seq))
    .where(_H.c.kind == literal("announcement"), _H.c.address.in_(bindparam("addresses", expanding=True)))
    .group_by(_H.c.address, _H.c.node)
)
_FAILED = (
    select(_H.c.address, _H.c.node, _H.c.at, _H.c.reason)
    .where(_H.c.seq.in_(_SAID_LAST), _H.c.to_state == literal(AnnouncementState.FAILED.value))
    .order_by(_H.c.node)
)
_LAST = (
    select(_H.c.seq, _H.c.at, _H.c.kind, _H.c.trigger, _H.c.to_state, _H.c.address, _H.c.reason)
    .where(_H.c.namespace == bindparam("namespace"), _H.c.name == bindparam("name"))
    .order_by(_H.c.seq.desc())
    .limit(LAST_MOVES)
)
_AHEAD = (
    select(func.count())
    .select_from(_S)
    .where(
        _S.c.cluster == bindparam("cluster"),
        _S.c.state == literal(ServiceState.PENDING.value),
        _S.c.since < bindparam("since"),
    )
)
_STUCK = (
    select(_A)
    .where(_A.c.state == literal(AllocationState.RELEASING.value), _A.c.since <= bindparam("before"))
    .order_by(_A.c.id)
    .limit(STUCK_SHOWN)
)


@dataclass(frozen=True, slots=True)
class AskedService:
    """The Service as booked: its live row, or, of one that is gone, the last."""

    uid: str
    state: ServiceState
    reason: str
    message: str
    group: str
    since: datetime
    observed_at: datetime


@dataclass(frozen=True, slots=True)
class Failure:
    """A node that should announce an address, and whose last word of it is that it cannot."""

    node: str
    since: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class HeldAddress:
    """An address of this Service, or one on its way back that is kept for it.

    `members`: the Services that have it now; `failures`: the nodes that cannot announce it, and why; `releasing` says
    what its release may wait for, where it is on its way.
    """

    address: Address
    group: str
    state: AllocationState
    since: datetime
    quarantined_until: datetime | None
    members: tuple[ServiceKey, ...]
    announcements: tuple[BookedAnnouncement, ...]
    failures: tuple[Failure, ...] = ()
    releasing: Releasing | None = None


@dataclass(frozen=True, slots=True)
class LastMove:
    """One of the last rows of history about this Service."""

    seq: int
    at: datetime
    kind: str
    trigger: str
    to_state: str | None
    address: str
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """`groups` and `stuck` (releases that take long, of any Service) only where the Service is waiting for an address,
    and `ahead` too: how many Services have waited longer."""

    key: ServiceKey
    service: AskedService
    addresses: tuple[HeldAddress, ...]
    moves: tuple[LastMove, ...]
    groups: tuple[GroupState, ...] = ()
    stuck: tuple[HeldAddress, ...] = ()
    ahead: int = 0


def explain(db: Db, key: ServiceKey, now: datetime) -> Explanation | None:
    named = {"namespace": key.namespace, "name": key.name}
    row = db.row(_SERVICE, named)
    if row is None:
        return None
    service = AskedService(row.uid, row.state, row.reason, row.message, row.group_name, row.since, row.observed_at)
    found = [*db.rows(_KEPT, {"claim": str(key)}), *db.rows(_JOINED, {"number": row.number})]
    mine = _addresses(db, list({each.id: each for each in found}.values()))
    moves = tuple(_move(each) for each in reversed(db.rows(_LAST, named)))
    if row.state is not ServiceState.PENDING:
        return Explanation(key, service, mine, moves)
    ahead = db.row(_AHEAD, {"cluster": row.cluster, "since": row.since})
    assert ahead is not None
    groups, stuck = tuple(group_states(db, now)), _addresses(db, db.rows(_STUCK, {"before": now}))
    return Explanation(key, service, mine, moves, groups, stuck, int(ahead[0]))


def _addresses(db: Db, rows: Sequence[Any]) -> tuple[HeldAddress, ...]:
    numbers = [row.id for row in rows]
    if not numbers:
        return ()
    ever: dict[int, list[ServiceKey]] = {}
    now: dict[int, list[ServiceKey]] = {}
    for row in db.rows(_MEMBERS, {"ids": numbers}):
        member = ServiceKey(row.namespace, row.name)
        ever.setdefault(row.allocation_id, []).append(member)
        if row.until_at is None:
            now.setdefault(row.allocation_id, []).append(member)
    announced: dict[int, list[BookedAnnouncement]] = {}
    address_of = {row.id: row.address for row in rows}
    for row in db.rows(_ANNOUNCED, {"ids": numbers}):
        announced.setdefault(row.allocation_id, []).append(_announcement(row, address_of[row.allocation_id]))
    failed: dict[str, list[Failure]] = {}
    for row in db.rows(_FAILED, {"addresses": [row.address_text for row in rows]}):
        failed.setdefault(row.address, []).append(Failure(row.node, row.at, row.reason))
    return tuple(
        _held(
            row,
            ever.get(row.id, ()),
            now.get(row.id, ()),
            tuple(announced.get(row.id, ())),
            # What was before it was held was about somebody else's.
            tuple(one for one in failed.get(row.address_text, ()) if one.since >= row.held_at),
        )
        for row in rows
    )


def _held(
    row: Any,
    ever: Sequence[ServiceKey],
    now: Sequence[ServiceKey],
    announced: tuple[BookedAnnouncement, ...],
    failed: tuple[Failure, ...],
) -> HeldAddress:
    releasing = None
    if row.state is AllocationState.RELEASING:
        booked = BookedAllocation(row.id, row.address, row.group_name, row.claim, row.state, row.held_at)
        releasing = Releasing(booked, row.since, tuple(dict.fromkeys(ever)), announced)
    return HeldAddress(
        row.address,
        row.group_name,
        row.state,
        row.since,
        row.quarantined_until,
        tuple(now),
        announced,
        failed,
        releasing,
    )


def _announcement(row: Any, address: Address) -> BookedAnnouncement:
    return BookedAnnouncement(
        row.id,
        row.allocation_id,
        address,
        row.node,
        row.interface,
        row.prefix_length,
        row.state,
        row.from_at,
        row.valid_s,
    )


def _move(row: Any) -> LastMove:
    return LastMove(row.seq, row.at, row.kind, row.trigger, row.to_state, row.address or "", row.reason)
