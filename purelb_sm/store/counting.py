"""Counts of live allocations, and those in no range of any group: what the leader's counters start from.

Read when a leader starts or a set of groups changes, never for a single Service. Intervals are of the 16 bytes under
which addresses are stored, as integers, so that both families are one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import LargeBinary, bindparam, func, select, type_coerce

from purelb_sm.domain.addresses import Address, Family
from purelb_sm.domain.addresses import AddressRange as Range
from purelb_sm.domain.outlook import Quarantined
from purelb_sm.domain.states import AllocationState
from purelb_sm.models import Allocation, pack, table, unpack
from purelb_sm.store.engine import Db
from purelb_sm.store.loading import NOT_RELEASED, QUARANTINED

_A = table(Allocation)

Interval = tuple[int, int]
"""First and last key, both included."""

MAPPED: tuple[Interval, ...] = ((0xFFFF << 32, (0xFFFF << 32) + 2**32 - 1),)
"""Where the IPv4 addresses are."""

ROWS = 10_000
"""So many rows are in memory at a time while all that is in use is read."""

ALL: tuple[Interval, ...] = ((0, 2**128 - 1),)

_LIVE_COUNTS = (
    select(_A.c.group_name, _A.c.family, _A.c.state, func.count().label("number"))
    .where(NOT_RELEASED)
    .group_by(_A.c.group_name, _A.c.family, _A.c.state)
)
_QUARANTINED = select(_A.c.group_name, _A.c.address, _A.c.quarantined_until).where(QUARANTINED)
_LIVE_BETWEEN = (
    select(_A.c.address, _A.c.address_text, _A.c.group_name, _A.c.claim, _A.c.family, _A.c.state)
    .where(NOT_RELEASED, _A.c.address.between(bindparam("first"), bindparam("last")))
    .order_by(_A.c.address)
)
# The bytes as they are stored: to make an address object of each takes as long as all the rest.
_KEYS_BETWEEN = (
    select(type_coerce(_A.c.address, LargeBinary))
    .where(NOT_RELEASED, _A.c.address.between(bindparam("first"), bindparam("last")))
    .order_by(_A.c.address)
)


def held_ranges(db: Db, ranges: Iterable[Range]) -> Iterator[Range]:
    """Every address in these ranges that is not released, neighbours together: in as many pieces as they are in."""
    for each in ranges:
        whole = (_key(each.first), _key(each.last))
        for first, last in subtract([whole], [] if each.family is Family.IPV4 else MAPPED):
            yield from (Range(_address(low), _address(high)) for low, high in _runs(db, first, last))


def _runs(db: Db, first: int, last: int) -> Iterator[Interval]:
    low, high = -1, -2
    for (raw,) in db.stream(_KEYS_BETWEEN, ROWS, {"first": _address(first), "last": _address(last)}):
        key = int.from_bytes(raw, "big")
        if key != high + 1:
            if low >= 0:
                yield low, high
            low = key
        high = key
    if low >= 0:
        yield low, high


def live_counts(db: Db) -> dict[tuple[str, Family, AllocationState], int]:
    """How many allocations are not released, by group, family and state."""
    return {(row.group_name, row.family, row.state): int(row.number) for row in db.rows(_LIVE_COUNTS)}


def quarantined(db: Db) -> list[Quarantined]:
    """All that is in quarantine."""
    return [Quarantined(row.group_name, row.address, row.quarantined_until) for row in db.rows(_QUARANTINED)]


def orphans(db: Db, ranges: Iterable[Range]) -> dict[Address, str]:
    """Addresses that are not released and in none of these ranges, with the group that they were given from."""
    return {row.address: row.group_name for row in live_within(db, subtract(ALL, intervals(ranges)))}


def live_within(db: Db, wanted: Iterable[Interval]) -> Iterator[Any]:
    """Allocations that are not released, with their address in one of these intervals."""
    for first, last in wanted:
        yield from db.stream(_LIVE_BETWEEN, parameters={"first": _address(first), "last": _address(last)})


def intervals(ranges: Iterable[Range]) -> list[Interval]:
    """The keys of these ranges: sorted, disjoint, neighbours joined."""
    found: list[Interval] = []
    for first, last in sorted((_key(r.first), _key(r.last)) for r in ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def subtract(wanted: Sequence[Interval], without: Sequence[Interval]) -> list[Interval]:
    """What is in `wanted` and not in `without`; both sorted and disjoint, and so is the answer."""
    found: list[Interval] = []
    start = 0
    for first, last in wanted:
        while start < len(without) and without[start][1] < first:
            start += 1
        index = start
        while index < len(without) and without[index][0] <= last:
            if without[index][0] > first:
                found.append((first, without[index][0] - 1))
            first = without[index][1] + 1
            index += 1
        if first <= last:
            found.append((first, last))
    return found


def within(some: Sequence[Interval], others: Sequence[Interval]) -> list[Range]:
    """What is in both, as ranges. Neither may reach from one family into the other."""
    common = subtract(others, subtract(others, some))
    return [Range(_address(first), _address(last)) for first, last in common]


def _key(address: Address) -> int:
    return int.from_bytes(pack(address), "big")


def _address(key: int) -> Address:
    return unpack(key.to_bytes(16, "big"))
