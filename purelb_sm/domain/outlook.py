"""What is in quarantine, by group and family, and when the first of it comes free: what an exhausted group is said to
have (spec A21). Follows each committed transaction, as the counters of use do."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import heappop, heappush

from purelb_sm.domain.addresses import Address, Family, family_of
from purelb_sm.errors import Reason, Refused


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An address, the group that it was given from, and until when it is kept from other claims."""

    group: str
    address: Address
    until: datetime


@dataclass(frozen=True, slots=True)
class NoneFree:
    """What a Service waits for that found the group exhausted: that an address of the family comes free."""

    group: str
    family: Family


class Outlook:
    """Costs of each move and question grow with the logarithm of how much is in quarantine. An entry that has left is
    taken off its heap when it comes to the top."""

    def __init__(self, those: Iterable[Quarantined] = ()) -> None:
        self._now: dict[Address, Quarantined] = {}
        self._counts: dict[tuple[str, Family], int] = {}
        self._heaps: dict[tuple[str, Family], list[tuple[datetime, int, Quarantined]]] = {}
        self.follow((), those)

    def follow(self, left: Iterable[Address], entered: Iterable[Quarantined]) -> None:
        """What one transaction changed."""
        for address in left:
            gone = self._now.pop(address, None)
            if gone is not None:
                self._counts[(gone.group, family_of(address))] -= 1
        for each in entered:
            key = (each.group, family_of(each.address))
            self._now[each.address] = each
            self._counts[key] = self._counts.get(key, 0) + 1
            heappush(self._heaps.setdefault(key, []), (each.until, int(each.address), each))

    def of(self, group: str, family: Family) -> tuple[int, datetime | None]:
        """(how many, when the first of them comes free)."""
        heap = self._heaps.get((group, family), [])
        while heap and self._now.get(heap[0][2].address) is not heap[0][2]:
            heappop(heap)
        return self._counts.get((group, family), 0), heap[0][0] if heap else None


def exhausted(group: str, family: Family, outlook: Outlook, others: tuple[Hashable, ...] = ()) -> Refused:
    """The refusal of a group that has no address to give, with what it has in quarantine. `others` help too."""
    text = f"ServiceGroup {group} has no free {family} address"
    obstacles = (NoneFree(group, family), *others)
    count, until = outlook.of(group, family)
    if until is None:
        return Refused(Reason.POOL_EXHAUSTED, text, obstacles)
    lasting = f"in quarantine, the first until {until.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')}"
    return Refused(Reason.POOL_EXHAUSTED, f"{text}; {count} {lasting}", obstacles, same_if=(text, lasting))
