"""Reservations: addresses kept from everybody, or for one Service (spec A26). Who may have a reserved address.

A reservation never takes an address from its holder. It says who gets it next: nobody, or the Service it is for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import summarize_address_range

from purelb_sm.domain.addresses import (
    Address,
    AddressRange,
    Family,
    family_of,
    parse_range,
    parse_service_address,
    unusable_within,
)
from purelb_sm.domain.freespace import FreeSpace
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import InvalidAddress


@dataclass(frozen=True, slots=True)
class Reservation:
    """A row of `reservation` that is not ended. `claim` is who may have it (namespace/name); None: nobody."""

    id: int
    range: AddressRange
    claim: str | None
    reason: str
    created_by: str
    from_at: datetime
    expires_at: datetime | None = None


class Reservations:
    """Those in force, which do not overlap: a question is a binary search, whatever their number and size."""

    def __init__(self, those: Iterable[Reservation] = ()) -> None:
        self._sorted: dict[Family, list[Reservation]] = {family: [] for family in Family}
        self._of: dict[str, list[Reservation]] = {}
        for each in sorted(those, key=lambda r: int(r.range.first)):
            self._sorted[each.range.family].append(each)
            if each.claim is not None:
                self._of.setdefault(each.claim, []).append(each)
        self._firsts = {f: [int(r.range.first) for r in found] for f, found in self._sorted.items()}
        self.ranges = [each.range for found in self._sorted.values() for each in found]
        self.ids = frozenset(each.id for found in self._sorted.values() for each in found)

    def __iter__(self) -> Iterator[Reservation]:
        return (each for found in self._sorted.values() for each in found)

    def at(self, address: Address) -> Reservation | None:
        """The reservation that covers this address."""
        family = family_of(address)
        index = bisect_right(self._firsts[family], int(address)) - 1
        if index < 0 or address not in self._sorted[family][index].range:
            return None
        return self._sorted[family][index]

    def keeps_from(self, address: Address, key: ServiceKey) -> bool:
        """Whether this Service may not have this address: it is reserved, and not for it."""
        found = self.at(address)
        return found is not None and found.claim != str(key)

    def of(self, key: ServiceKey) -> Sequence[Reservation]:
        """What is reserved for this Service, the lowest first."""
        return self._of.get(str(key), ()) if self._of else ()

    def next_end(self) -> datetime | None:
        """When the first of them ends by itself."""
        return min((r.expires_at for found in self._sorted.values() for r in found if r.expires_at), default=None)


NOTHING_RESERVED = Reservations()


def lowest_reserved(
    key: ServiceKey,
    group: str,
    family: Family,
    free: FreeSpace,
    reservations: Reservations,
    only: AddressRange | None = None,
) -> Address | None:
    """The lowest address of the group, or of one range of it, that is reserved for this Service and that nobody has."""
    for reservation in reservations.of(key):
        range_ = reservation.range if only is None else reservation.range.common(only)
        if range_ is not None and range_.family is family:
            address = free.lowest_kept(group, range_)
            if address is not None:
                return address
    return None


def parse_reserved(text: str) -> AddressRange:
    """An address, `first-last` or a CIDR without host bits, as a person types what is to be reserved.

    Raises InvalidAddress; also for what no Service may have, which needs no reservation.
    """
    text = text.strip()
    if "/" in text or "-" in text:
        found, warning = parse_range(text)
        if warning is not None:
            raise InvalidAddress(text, f"has host bits set: write {found}, or the network's own address")
    else:
        address = parse_service_address(text)
        return AddressRange(address, address)
    why = unusable_within(found)
    if why is not None:
        raise InvalidAddress(text, why)
    return found


def range_text(range_: AddressRange) -> str:
    """The shortest way to write it: an address, a CIDR, or first-last."""
    if range_.size == 1:
        return str(range_.first)
    networks = list(summarize_address_range(range_.first, range_.last))
    return str(networks[0]) if len(networks) == 1 else str(range_)
