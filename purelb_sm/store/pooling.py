"""How full the groups are, for a person who asks: read from the book itself, on indexes of what is live.

The allocator's own counters are not asked: this answers without it, and shows what they should say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, or_, select

from purelb_sm.domain.addresses import AddressRange as Range
from purelb_sm.domain.addresses import Family, family_of
from purelb_sm.domain.states import AllocationState
from purelb_sm.models import AddressRange, Allocation, Reservation, ServiceGroup, table
from purelb_sm.store.counting import intervals, live_counts, orphans, within
from purelb_sm.store.engine import Db
from purelb_sm.store.loading import NOT_RELEASED, QUARANTINED

_A, _G, _R, _K = table(Allocation), table(ServiceGroup), table(AddressRange), table(Reservation)

_GROUPS = select(_G).where(_G.c.until_at.is_(None)).order_by(_G.c.name)
_RANGES = (
    select(_R, _G.c.name)
    .join(_G, _G.c.id == _R.c.group_id)
    .where(_G.c.until_at.is_(None))
    .order_by(_G.c.name, _R.c.position)
)
_NEXT_FREE = (
    select(_A.c.group_name, _A.c.family, func.min(_A.c.quarantined_until).label("at"))
    .where(QUARANTINED)
    .group_by(_A.c.group_name, _A.c.family)
)
_USED_BETWEEN = (
    select(func.count())
    .select_from(_A)
    .where(NOT_RELEASED, _A.c.address.between(bindparam("first"), bindparam("last")))
)
_RESERVED = select(_K.c.first, _K.c.last).where(
    _K.c.until_at.is_(None), or_(_K.c.expires_at.is_(None), _K.c.expires_at > bindparam("now"))
)


@dataclass(frozen=True, slots=True)
class RangeState:
    """A range of a group: its size, and how many of its addresses are in use, reserved and not in use, or free."""

    range: Range
    subnet: str
    used: int
    reserved: int

    @property
    def size(self) -> int:
        return self.range.size

    @property
    def free(self) -> int:
        return max(0, self.size - self.used - self.reserved)


@dataclass(frozen=True, slots=True)
class FamilyState:
    """The addresses of one family of a group. `next_free_at`: when the first of those in quarantine leaves it."""

    ranges: tuple[RangeState, ...] = ()
    held: int = 0
    releasing: int = 0
    quarantined: int = 0
    orphaned: int = 0
    next_free_at: datetime | None = None

    @property
    def size(self) -> int:
        return sum(each.size for each in self.ranges)

    @property
    def reserved(self) -> int:
        return sum(each.reserved for each in self.ranges)

    @property
    def free(self) -> int:
        return sum(each.free for each in self.ranges)


@dataclass(frozen=True, slots=True)
class GroupState:
    """A group of the cluster as last booked, or one that is gone and still has addresses in use (`gone`).

    `refusal`: why it cannot be used; empty where it can.
    """

    name: str
    refusal: str = ""
    gone: bool = False
    pool_type: str = ""
    agent_decides: bool = False
    avoid_first_last: bool = False
    quarantine_s: float = 0.0
    families: Mapping[Family, FamilyState] = field(default_factory=dict)


def group_states(db: Db, now: datetime) -> list[GroupState]:
    """Every group by name."""
    ranges: dict[str, list[Any]] = {}
    for row in db.rows(_RANGES):
        ranges.setdefault(row.name, []).append(row)
    spans = [Range(row.first, row.last) for rows in ranges.values() for row in rows]
    orphaned: dict[tuple[str, Family], int] = {}
    for address, group in orphans(db, spans).items():
        key = (group, family_of(address))
        orphaned[key] = orphaned.get(key, 0) + 1
    reserved = intervals(Range(row.first, row.last) for row in db.rows(_RESERVED, {"now": now}))
    counts = live_counts(db)
    due = {(row.group_name, row.family): row.at for row in db.rows(_NEXT_FREE)}
    known = {row.name: row for row in db.rows(_GROUPS)}

    def family(name: str, which: Family) -> FamilyState:
        mine = [row for row in ranges.get(name, ()) if row.family is which]
        return FamilyState(
            tuple(_range_state(db, row, reserved) for row in mine),
            counts.get((name, which, AllocationState.HELD), 0),
            counts.get((name, which, AllocationState.RELEASING), 0),
            counts.get((name, which, AllocationState.QUARANTINED), 0),
            orphaned.get((name, which), 0),
            due.get((name, which)),
        )

    found = []
    for name in sorted({*known, *(name for name, _, _ in counts)}):
        families = {which: family(name, which) for which in Family}
        found.append(_group_state(name, known.get(name), families))
    return found


def _group_state(name: str, row: Any | None, families: Mapping[Family, FamilyState]) -> GroupState:
    if row is None:
        return GroupState(name, gone=True, families=families)
    return GroupState(
        name,
        row.refusal,
        False,
        row.pool_type,
        row.agent_decides,
        row.avoid_first_last,
        row.quarantine_s,
        families,
    )


def _range_state(db: Db, row: Any, reserved: Sequence[tuple[int, int]]) -> RangeState:
    span = Range(row.first, row.last)
    kept = 0
    for part in within(reserved, intervals([span])):
        kept += part.size - _used(db, part)
    return RangeState(span, row.subnet, _used(db, span), kept)


def _used(db: Db, span: Range) -> int:
    row = db.row(_USED_BETWEEN, {"first": span.first, "last": span.last})
    assert row is not None
    return int(row[0])
