"""How much of each group is in use: counters that follow every move of an allocation, and never a count of addresses.

Owned by the leader beside the free space, and built anew from the book whenever that is. Says nothing of who holds
what; it is what a group's status and the metrics show (spec A28, A22).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from purelb_sm.domain.addresses import Address, Family, family_of
from purelb_sm.domain.freespace import FreeSpace
from purelb_sm.domain.states import AllocationState

Tally = Mapping[tuple[str, Family, AllocationState], int]
"""How many allocations by group, family and state; or by how many that changed."""


@dataclass(frozen=True, slots=True)
class FamilyUsage:
    """The addresses of one family, in numbers.

    size         in the group's ranges
    available    that may be given to a claim that comes now
    held         by Services, those outside every range included
    quarantined  given back, and kept from other claims: on their way out, or in quarantine
    reserved     kept by reservation, and held by nobody
    orphaned     of those held or quarantined, those that no range of any group has any more
    """

    size: int = 0
    available: int = 0
    held: int = 0
    quarantined: int = 0
    reserved: int = 0
    orphaned: int = 0


@dataclass(frozen=True, slots=True)
class GroupUsage:
    """What one group has, by family. `exhausted`: families that have a range, and no address to give."""

    families: Mapping[Family, FamilyUsage] = field(default_factory=dict)
    exhausted: tuple[Family, ...] = ()

    @property
    def empty(self) -> bool:
        """Nothing is in a range, and nothing in use."""
        return all(usage == FamilyUsage() for usage in self.families.values())

    def of(self, family: Family) -> FamilyUsage:
        return self.families.get(family, FamilyUsage())


class Usage:
    """The counters. `orphans` are addresses of the book in no range, with the group that they were given from."""

    def __init__(self, counts: Tally, orphans: Mapping[Address, str]) -> None:
        self._counts: Counter[tuple[str, Family, AllocationState]] = Counter(counts)
        self._orphans = dict(orphans)
        self._orphaned = Counter((group, family_of(address)) for address, group in self._orphans.items())

    def move(self, tally: Tally) -> set[str]:
        """What a committed transaction changed. Returns the groups concerned."""
        self._counts.update(tally)
        return {group for (group, _, _), change in tally.items() if change}

    def release(self, addresses: Iterable[Address]) -> None:
        """These are nobody's any more."""
        for address in addresses:
            group = self._orphans.pop(address, None)
            if group is not None:
                self._orphaned[(group, family_of(address))] -= 1

    def groups(self) -> set[str]:
        """Every group that the book has an address of, those that are gone from the cluster included."""
        return {group for (group, _, _), count in self._counts.items() if count}

    def of(self, group: str, free: FreeSpace) -> GroupUsage:
        families: dict[Family, FamilyUsage] = {}
        exhausted: list[Family] = []
        for family in Family:
            size, available = free.counts(group, family)
            families[family] = FamilyUsage(
                size,
                available,
                self._counts[(group, family, AllocationState.HELD)],
                self._counts[(group, family, AllocationState.RELEASING)]
                + self._counts[(group, family, AllocationState.QUARANTINED)],
                free.reserved(group, family),
                self._orphaned[(group, family)],
            )
            if size and free.lowest(group, family) is None:
                exhausted.append(family)
        return GroupUsage(families, tuple(exhausted))
