"""Which addresses of the groups are free, as intervals: nothing is materialised, so an IPv6 /64 costs one interval.

Owned by the leader, rebuilt from the book whenever it starts to lead, whenever groups change, and whenever a
transaction fails. It only proposes: the database's unique index decides.

Costs: the lowest free address, taking and giving back are a binary search plus, where an interval appears or goes, one
memory move of the list behind it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping

from purelb_sm.domain.addresses import Address, AddressRange, Family, address_at, family_of
from purelb_sm.domain.groups import Group, Pool


class IntervalSet:
    """A set of integers as sorted disjoint intervals [low, high]."""

    __slots__ = ("_highs", "_lows", "size")

    def __init__(self, low: int, high: int) -> None:
        self._lows = [low]
        self._highs = [high]
        self.size = high - low + 1

    def __contains__(self, value: int) -> bool:
        index = bisect_right(self._lows, value) - 1
        return index >= 0 and value <= self._highs[index]

    def remove(self, value: int) -> bool:
        """Takes `value` out; False if it was not in."""
        index = bisect_right(self._lows, value) - 1
        if index < 0 or value > self._highs[index]:
            return False
        low, high = self._lows[index], self._highs[index]
        if low == high:
            del self._lows[index], self._highs[index]
        elif value == low:
            self._lows[index] = value + 1
        elif value == high:
            self._highs[index] = value - 1
        else:
            self._highs[index] = value - 1
            self._lows.insert(index + 1, value + 1)
            self._highs.insert(index + 1, high)
        self.size -= 1
        return True

    def add(self, value: int) -> bool:
        """Puts `value` in, joining neighbours; False if it was in."""
        index = bisect_left(self._lows, value)
        if (index < len(self._lows) and self._lows[index] == value) or (index and value <= self._highs[index - 1]):
            return False
        left = index > 0 and self._highs[index - 1] == value - 1
        right = index < len(self._lows) and self._lows[index] == value + 1
        if left and right:
            self._highs[index - 1] = self._highs[index]
            del self._lows[index], self._highs[index]
        elif left:
            self._highs[index - 1] = value
        elif right:
            self._lows[index] = value
        else:
            self._lows.insert(index, value)
            self._highs.insert(index, value)
        self.size += 1
        return True

    def lowest(self, floor: int, *, skip_edges: bool) -> int | None:
        """The lowest member at or above `floor`; with `skip_edges`, one whose last octet is neither 0 nor 255."""
        index = max(0, bisect_right(self._lows, floor) - 1)
        while index < len(self._lows):
            value = max(self._lows[index], floor)
            if skip_edges:
                value += {255: 2, 0: 1}.get(value & 0xFF, 0)
            if value <= self._highs[index]:
                return value
            index += 1
        return None


class PoolSpace:
    """The free addresses of one pool. `_floor` is below every address that `lowest` may answer."""

    __slots__ = ("_edges", "_floor", "avoid", "free", "group", "pool")

    def __init__(self, group: Group, pool: Pool) -> None:
        self.group = group.name
        self.pool = pool
        self.avoid = group.avoid_first_last
        self.free = IntervalSet(int(pool.range.first), int(pool.range.last))
        self._floor = int(pool.range.first)
        self._edges = (int(pool.subnet.network_address), int(pool.subnet.broadcast_address))

    def lowest(self) -> Address | None:
        value = self._lowest(self._floor)
        self._floor = int(self.pool.range.last) + 1 if value is None else value
        return None if value is None else address_at(self.pool.family, value)

    def _lowest(self, floor: int) -> int | None:
        skip_octets = self.avoid and self.pool.family is Family.IPV4
        while (value := self.free.lowest(floor, skip_edges=skip_octets)) is not None:
            if not (self.avoid and value in self._edges):
                return value
            floor = value + 1
        return None

    def give_back(self, address: Address) -> bool:
        value = int(address)
        self._floor = min(self._floor, value)
        return self.free.add(value)


class FreeSpace:
    """All pools of the accepted groups, in the order written, with what is free in each."""

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self._of_group: dict[tuple[str, Family], list[PoolSpace]] = {}
        self._sorted: dict[Family, list[PoolSpace]] = {family: [] for family in Family}
        for group in groups.values():
            for pool in group.pools:
                space = PoolSpace(group, pool)
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
        space = self.locate(address)
        return space is not None and int(address) in space.free

    def lowest(self, group: str, family: Family) -> Address | None:
        """The lowest free address of the first range that has one (A5)."""
        for space in self._of_group.get((group, family), ()):
            address = space.lowest()
            if address is not None:
                return address
        return None

    def take(self, address: Address) -> bool:
        """True if it was free, and is not any more."""
        space = self.locate(address)
        return space is not None and space.free.remove(int(address))

    def give_back(self, address: Address) -> bool:
        space = self.locate(address)
        return space is not None and space.give_back(address)

    def counts(self, group: str, family: Family) -> tuple[int, int]:
        """(size, free) over the group's ranges of this family."""
        spaces = self._of_group.get((group, family), ())
        return sum(s.pool.range.size for s in spaces), sum(s.free.size for s in spaces)
