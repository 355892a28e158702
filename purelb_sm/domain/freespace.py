"""Which addresses of the groups are free, as intervals: nothing is materialised, so an IPv6 /64 costs one interval.

Owned by the leader, rebuilt from the book whenever it starts to lead, whenever groups change, and whenever a
transaction fails. It only proposes: the database's unique index decides.

Costs: the lowest free address, taking and giving back are a binary search in an IntervalSet, and rebuilding takes what
is in use in as many pieces as it is in. What is reserved is kept apart from what is free: it costs the search nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter

from purelb_sm.domain.addresses import Address, AddressRange, Family, address_at, family_of
from purelb_sm.domain.groups import MAX_POOLS, Group, Pool
from purelb_sm.domain.intervals import IntervalSet

_USED = attrgetter("used")


class PoolSpace:
    """The free addresses of one pool. Every address is in `free` (anybody may have it), in `kept` (reserved, and not
    in the book), or in the book. `_floor` is below every address that `lowest` may answer.
    `position` is its place in the group as written, `used` how many of its addresses the book has."""

    __slots__ = ("_edges", "_floor", "_reserved", "avoid", "free", "group", "kept", "pool", "position", "used")

    def __init__(self, group: Group, pool: Pool, position: int) -> None:
        self.group = group.name
        self.pool = pool
        self.position = position
        self.used = 0
        self.avoid = group.avoid_first_last
        self.free = IntervalSet(int(pool.range.first), int(pool.range.last))
        self.kept = IntervalSet()
        self._reserved = IntervalSet()
        self._floor = int(pool.range.first)
        self._edges = (int(pool.subnet.network_address), int(pool.subnet.broadcast_address))

    def lowest(self) -> Address | None:
        value = self._lowest(self.free, self._floor)
        self._floor = int(self.pool.range.last) + 1 if value is None else value
        return None if value is None else address_at(self.pool.family, value)

    def lowest_kept(self, within: AddressRange) -> Address | None:
        """The lowest reserved address in this range that nobody has. One that is reserved by itself is meant, even
        where the group avoids it."""
        if within.size == 1:
            return within.first if int(within.first) in self.kept else None
        value = self._lowest(self.kept, int(within.first))
        return None if value is None or value > int(within.last) else address_at(self.pool.family, value)

    def _lowest(self, where: IntervalSet, floor: int) -> int | None:
        skip_octets = self.avoid and self.pool.family is Family.IPV4
        while (value := where.lowest(floor, skip_edges=skip_octets)) is not None:
            if not (self.avoid and value in self._edges):
                return value
            floor = value + 1
        return None

    def take(self, address: Address) -> bool:
        taken = self.free.remove(int(address)) or self.kept.remove(int(address))
        self.used += taken
        return taken

    def take_range(self, low: int, high: int) -> None:
        for where in (self.free, self.kept):
            self.used += sum(b - a + 1 for a, b in where.cut(low, high))

    def give_back(self, address: Address) -> bool:
        value = int(address)
        if value in self._reserved:
            given = self.kept.add(value)
        else:
            self._floor = min(self._floor, value)
            given = self.free.add(value)
        self.used -= given
        return given

    def reserve(self, range_: AddressRange) -> None:
        low, high = max(range_.first, self.pool.range.first), min(range_.last, self.pool.range.last)
        self._reserved.join([(int(low), int(high))])
        self.kept.join(self.free.cut(int(low), int(high)))

    def lift_except(self, ranges: Iterable[AddressRange]) -> list[tuple[int, int]]:
        """What is reserved and in none of these is so no more; answers what of it is free by that."""
        staying, lifted = IntervalSet(), IntervalSet()
        for range_ in ranges:
            staying.join([(int(range_.first), int(range_.last))])
        lifted.join(list(self._reserved))
        for low, high in staying:
            lifted.cut(low, high)
        opened: list[tuple[int, int]] = []
        for low, high in lifted:
            self._reserved.cut(low, high)
            opened += self.kept.cut(low, high)
        self.free.join(opened)
        if opened:
            self._floor = min(self._floor, opened[0][0])
        return opened


class FreeSpace:
    """All pools of the accepted groups, in the order written, with what is free in each."""

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self._of_group: dict[tuple[str, Family], list[PoolSpace]] = {}
        self._sorted: dict[Family, list[PoolSpace]] = {family: [] for family in Family}
        for group in groups.values():
            for position, pool in enumerate(group.pools):
                space = PoolSpace(group, pool, position)
                self._of_group.setdefault((group.name, pool.family), []).append(space)
                self._sorted[pool.family].append(space)
        for spaces in self._sorted.values():
            spaces.sort(key=lambda space: int(space.pool.range.first))
        self._firsts = {f: [int(s.pool.range.first) for s in spaces] for f, spaces in self._sorted.items()}

    def ranges(self) -> list[AddressRange]:
        return [space.pool.range for spaces in self._sorted.values() for space in spaces]

    def take_all(self, addresses: Iterable[Address]) -> None:
        """Marks addresses that the book holds; those outside every pool are none of ours to count."""
        for address in addresses:
            self.take(address)

    def take_ranges(self, ranges: Iterable[AddressRange]) -> None:
        """The same of whole ranges: what is outside of every pool is passed over."""
        for range_ in ranges:
            for space in self._within(range_):
                space.take_range(int(range_.first), int(range_.last))

    def locate(self, address: Address) -> PoolSpace | None:
        """The pool that has this address, whether free or not."""
        family = family_of(address)
        index = bisect_right(self._firsts[family], int(address)) - 1
        if index < 0:
            return None
        space = self._sorted[family][index]
        return space if address in space.pool.range else None

    def group_of(self, address: Address) -> str | None:
        space = self.locate(address)
        return None if space is None else space.group

    def is_free(self, address: Address) -> bool:
        """Whether anybody may have it: what is reserved is not free."""
        space = self.locate(address)
        return space is not None and int(address) in space.free

    def spaces(self, group: str, family: Family) -> Sequence[PoolSpace]:
        """The ranges of a group in the order written."""
        return self._of_group.get((group, family), ())

    def position(self, address: Address) -> int:
        """The place of its range in its group as written; one that is in no range comes after all."""
        space = self.locate(address)
        return MAX_POOLS if space is None else space.position

    def lowest(self, group: str, family: Family, *, balanced: bool = False) -> Address | None:
        """The lowest free address of the first range that has one (A5).

        `balanced`: of the range with the fewest in use, the first written of those that have equally many.
        """
        spaces = self.spaces(group, family)
        for space in sorted(spaces, key=_USED) if balanced else spaces:
            address = space.lowest()
            if address is not None:
                return address
        return None

    def take(self, address: Address) -> bool:
        """True if the book had it not; now it has. Who may have what is reserved is for the caller to know."""
        space = self.locate(address)
        return space is not None and space.take(address)

    def give_back(self, address: Address) -> bool:
        space = self.locate(address)
        return space is not None and space.give_back(address)

    # What is reserved.

    def reserve(self, ranges: Iterable[AddressRange]) -> None:
        """None of these is free any more. What the book has of them stays; given back, it is reserved."""
        for range_ in ranges:
            for space in self._within(range_):
                space.reserve(range_)

    def lift_except(self, ranges: Sequence[AddressRange], tell: int) -> list[Address]:
        """Only these stay reserved. Answers the addresses that came free by that, at most `tell` of them."""
        opened: list[Address] = []
        for family, spaces in self._sorted.items():
            staying = [range_ for range_ in ranges if range_.family is family]
            for space in spaces:
                for low, high in space.lift_except(staying):
                    room = tell - len(opened)
                    opened += [address_at(family, value) for value in islice(range(low, high + 1), room)]
        return opened

    def lowest_kept(self, group: str, within: AddressRange) -> Address | None:
        """The lowest address of the group in this range that is reserved and that nobody has."""
        for space in self._of_group.get((group, within.family), ()):
            address = space.lowest_kept(within)
            if address is not None:
                return address
        return None

    def _within(self, range_: AddressRange) -> Iterator[PoolSpace]:
        """The pools that have a part of this range."""
        spaces = self._sorted[range_.family]
        index = bisect_right(self._firsts[range_.family], int(range_.last)) - 1
        while index >= 0 and int(spaces[index].pool.range.last) >= int(range_.first):
            yield spaces[index]
            index -= 1

    # How many.

    def counts(self, group: str, family: Family) -> tuple[int, int]:
        """(size, free) over the group's ranges of this family. What is reserved is not free."""
        spaces = self._of_group.get((group, family), ())
        return sum(s.pool.range.size for s in spaces), sum(s.free.size for s in spaces)

    def reserved(self, group: str, family: Family) -> int:
        """How many of the group's addresses of this family are reserved and nobody has."""
        return sum(space.kept.size for space in self._of_group.get((group, family), ()))
