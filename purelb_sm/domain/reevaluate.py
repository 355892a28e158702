"""What a Service has and would not get if it asked for the first time now (A23).

Looked at only when its owner wants it planned anew: nothing moves by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from purelb_sm.domain.book import BookedAllocation
from purelb_sm.domain.choose import World, group_for, is_multi_pool
from purelb_sm.domain.requests import Request
from purelb_sm.domain.reservations import lowest_reserved


def misplaced(request: Request, kept: Sequence[BookedAllocation], world: World) -> list[BookedAllocation]:
    """Of the addresses that a Service has, those to be given up for others: outside the group that serves it now,
    reserved for somebody else, or not the one that is reserved for it and free.

    An address that it asks for by name stays, and so does one that is shared where one of the same key is to be had. Of
    several of a family, the first stays where the group and the Service want one only, and not one of each range (A24).
    Raises Refused where no group may serve it now.
    """
    group = group_for(request, world)
    of_family = Counter(allocation.family for allocation in kept)
    inside = [allocation for allocation in kept if group.pool_with(allocation.address)]
    surplus = [] if is_multi_pool(request, group) else _surplus(inside, world)

    def better(allocation: BookedAllocation) -> bool:
        """One is reserved for it, this is not, and it has but this one to exchange for it."""
        if request.sharing_key is not None or of_family[allocation.family] > 1:
            return False
        if world.reservations.at(allocation.address) is not None:
            return False
        free = lowest_reserved(request.key, group.name, allocation.family, world.free, world.reservations)
        return free is not None

    return [
        allocation
        for allocation in kept
        if allocation.address not in request.addresses
        and (
            group.pool_with(allocation.address) is None
            or world.reservations.keeps_from(allocation.address, request.key)
            or better(allocation)
            or allocation in surplus
        )
    ]


def _surplus(kept: Sequence[BookedAllocation], world: World) -> list[BookedAllocation]:
    """All but the first of each family, in the order in which they are shown."""
    inner = sorted(kept, key=lambda a: (world.free.position(a.address), int(a.address)))
    first = {allocation.family: allocation for allocation in reversed(inner)}
    return [allocation for allocation in kept if allocation is not first[allocation.family]]
