"""Which range(s) of a group serve a Service: the first that has a free address, the emptiest, or each of them.

Knows nothing of who asks. The work is by range, never by address.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from enum import Enum

from purelb_sm.domain.addresses import Address, AddressRange, Family, Network
from purelb_sm.domain.freespace import FreeSpace, PoolSpace
from purelb_sm.domain.groups import Group, PoolType


class Reach:
    """The subnets of the live nodes, as their Leases name them. Never changed once made; equal to one made of the
    same."""

    __slots__ = ("_firsts", "_lasts", "subnets")

    def __init__(self, subnets: Iterable[Network] = ()) -> None:
        self.subnets = frozenset(subnets)
        self._firsts: dict[int, list[int]] = {4: [], 6: []}
        self._lasts: dict[int, list[int]] = {4: [], 6: []}
        for subnet in sorted(self.subnets, key=lambda s: (s.version, int(s.network_address), s.prefixlen)):
            first, last = int(subnet.network_address), int(subnet.broadcast_address)
            lasts = self._lasts[subnet.version]
            # Two networks are disjoint or one contains the other, and the larger comes first.
            if not lasts or first > lasts[-1]:
                self._firsts[subnet.version].append(first)
                lasts.append(last)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reach) and self.subnets == other.subnets

    def __hash__(self) -> int:
        return hash(self.subnets)

    def touches(self, range_: AddressRange) -> bool:
        """Whether some live node has a subnet with addresses of this range."""
        version = range_.first.version
        index = bisect_right(self._firsts[version], int(range_.last)) - 1
        return index >= 0 and self._lasts[version][index] >= int(range_.first)


NOWHERE = Reach()


class Nodes(Enum):
    """What a Service waits for whose group no live node can announce."""

    ELSEWHERE = "nodes in other subnets"


def announceable(space: PoolSpace, group: Group, reach: Reach) -> bool:
    """Whether a node answers for the addresses of this range now.

    Those of a remote group are held by every node, and so are those of a group written as v1 that no node has the
    subnet of.
    """
    return group.pool_type is PoolType.REMOTE or group.agent_decides or reach.touches(space.pool.range)


def open_ranges(
    group: Group, family: Family, kept: Collection[Address], free: FreeSpace, reach: Reach
) -> list[PoolSpace]:
    """The ranges from which a multi-pool Service that keeps `kept` lacks an address, in the order written."""
    return [
        space
        for space in free.spaces(group.name, family)
        if announceable(space, group, reach) and not any(address in space.pool.range for address in kept)
    ]
