"""Which group may serve a request, and which address it gets. Proposes only from what FreeSpace says is free."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address, Family, family_of
from purelb_sm.domain.book import Action, BookedAllocation
from purelb_sm.domain.freespace import FreeSpace, PoolSpace
from purelb_sm.domain.groups import MAX_MULTI_POOLS, Group
from purelb_sm.domain.namespaces import UNBOUND, Bindings
from purelb_sm.domain.outlook import Outlook, exhausted
from purelb_sm.domain.quota import Quota
from purelb_sm.domain.ranges import NOWHERE, Nodes, Reach, open_ranges
from purelb_sm.domain.requests import Request
from purelb_sm.domain.reservations import NOTHING_RESERVED, Reservations, lowest_reserved
from purelb_sm.domain.sharing import Member, Obstacle, Shared, UnderKey, port_keys
from purelb_sm.errors import Reason, Refused

MAX_ADOPTED = 64
"""More addresses than any group gives to one Service."""


@dataclass(frozen=True, slots=True)
class World:
    """What the cluster says besides the Service itself. `broken` maps a group that cannot be used to why.

    `free`, `shared` and `quota` are working state: a choice takes from `free`, so that the next choice of a batch sees
    it gone, and the others follow the actions of each plan. `outlook` is what was in quarantine at the last commit,
    `reach` where live nodes are, `bindings` what the groups say of namespaces.
    """

    groups: Mapping[str, Group]
    free: FreeSpace
    broken: Mapping[str, str] = field(default_factory=dict)
    load_balancer_class: str = names.LOAD_BALANCER_CLASS
    default_class: bool = True
    reservations: Reservations = NOTHING_RESERVED
    reach: Reach = NOWHERE
    shared: Shared = field(default_factory=Shared)
    outlook: Outlook = field(default_factory=Outlook)
    quota: Quota = field(default_factory=Quota)
    bindings: Bindings = UNBOUND

    def __post_init__(self) -> None:
        if self.bindings is UNBOUND:
            object.__setattr__(self, "bindings", Bindings(self.groups))

    def follow(self, actions: Sequence[Action]) -> tuple[Hashable, ...]:
        """Takes what a plan does, for the next to see. Answers with what is no longer in the way of others."""
        return (*self.shared.follow(actions), *self.quota.follow(actions))


@dataclass(frozen=True, slots=True)
class Choice:
    """An address for a family. With `allocation_id` it is one the claim gets back; with `joins` others share it, or
    did; else it was free and is taken.

    `why` is for the history, where it is not what one would expect.
    """

    address: Address
    group: str
    allocation_id: int | None = None
    why: str = ""
    joins: bool = False


def adopt(shown: Sequence[Address], world: World, who: Member, sharing_key: str | None) -> list[Choice]:
    """Of the addresses that a Service shows, those that the book does not know it has: free ones, and ones that are
    held by Services which share them with it."""
    found: list[Choice] = []
    for address in shown[:MAX_ADOPTED]:
        owner = world.free.group_of(address)
        if owner is None:
            continue
        if world.free.take(address):
            found.append(Choice(address, owner))
        elif world.shared.taken(address) and _may_join(address, world.groups[owner], who, sharing_key, world):
            found.append(Choice(address, owner, joins=True))
    return found


def _may_join(address: Address, group: Group, who: Member, sharing_key: str | None, world: World) -> bool:
    try:
        return world.shared.join_at(address, who, sharing_key, group)
    except Refused:
        return False


def choose(
    request: Request,
    missing: Sequence[Family],
    reclaimable: Sequence[BookedAllocation],
    world: World,
    beside: str | None = None,
    kept: Collection[Address] = (),
) -> list[Choice]:
    """An address for each of the families in `missing`, or Refused, and then nothing stays taken.

    `beside` is the group of an address that the Service keeps: what is missing comes from the same. With
    PreferDualStack a family that the group has no pool for is left out. Order of preference: the address asked for,
    that of the sharing key (A15), one reserved for the Service (A26), the one the claim had, the lowest free one (A5).
    In a multi-pool group a family that is missing lacks an address of each range (A24) that has none of `kept`, which
    the Service keeps.
    """
    choices: list[Choice] = []
    # What another of this batch has just had back, as they share it, is not there for its claim alone.
    reclaimable = [a for a in reclaimable if not world.shared.taken(a.address)]
    asked = {family_of(address): address for address in request.addresses}
    group = _group_of(request, [asked[family] for family in missing if family in asked], beside, world)
    # What no waiting helps is said first, so that what is said does not depend on who has what at the moment.
    if request.require_all:
        for family in missing:
            if family not in asked and not world.free.spaces(group.name, family) and not _has(kept, family):
                raise Refused(Reason.NO_POOL_FOR_FAMILY, f"ServiceGroup {group.name} has no {family} pool")
    try:
        choices.extend(_asked(request, asked[family], reclaimable, world) for family in missing if family in asked)
        for family in missing:
            if family in asked:
                continue
            if is_multi_pool(request, group):
                _one_of_each(request, family, group, kept, reclaimable, world, choices)
            elif world.free.spaces(group.name, family) and not _has(kept, family):
                choices.append(_any(request, family, group, reclaimable, world))
        if not choices and not kept:
            wanted = " or ".join(missing)
            raise Refused(Reason.NO_POOL_FOR_FAMILY, f"ServiceGroup {group.name} has no pool for {wanted}")
    except Refused:
        give_back(choices, world)
        raise
    order = {family: place for place, family in enumerate(request.families)}
    return sorted(choices, key=lambda choice: order[family_of(choice.address)])


def lacks_ranges(request: Request, family: Family, kept: Sequence[BookedAllocation], world: World) -> bool:
    """Whether a multi-pool Service that keeps these could have an address of one more range of this family (A24)."""
    group = world.groups.get(kept[0].group)
    if group is None or not is_multi_pool(request, group) or family in {family_of(a) for a in request.addresses}:
        return False
    has = [allocation.address for allocation in kept]
    return any(space.lowest() for space in open_ranges(group, family, has, world.free, world.reach))


def is_multi_pool(request: Request, group: Group) -> bool:
    """The Service's own word goes before its group's."""
    return group.multi_pool if request.multi_pool is None else request.multi_pool


def give_back(choices: Sequence[Choice], world: World) -> None:
    """Undoes the takings of choices that come to nothing."""
    for choice in choices:
        if choice.allocation_id is None and not choice.joins:
            world.free.give_back(choice.address)


def group_for(request: Request, world: World) -> Group:
    """The group that serves this request if nothing is held for it yet. Raises Refused."""
    return _group_of(request, request.addresses, None, world)


def _group_of(request: Request, asked: Sequence[Address], beside: str | None, world: World) -> Group:
    """The group for the families that no address is asked for; every address asked for must be in some group."""
    owners = [world.free.group_of(address) for address in asked]
    namespace = request.key.namespace
    for address, owner in zip(asked, owners, strict=True):
        if owner is None:
            raise Refused(Reason.ADDRESS_OUTSIDE_GROUPS, f"requested address {address} is in no ServiceGroup")
        if barrier := world.bindings.barrier(namespace, owner):
            text = f"requested address {address} is in ServiceGroup {owner}, and {barrier}"
            raise Refused(Reason.NAMESPACE_NOT_ALLOWED, text)
    group = _group(request, owners[0] if owners else beside, world)
    if barrier := world.bindings.barrier(namespace, group.name):
        raise Refused(Reason.NAMESPACE_NOT_ALLOWED, f"ServiceGroup {group.name} is not to be used: {barrier}")
    if request.multi_pool and group.balance_pools:
        text = f"{names.MULTI_POOL} cannot go with balancePools of ServiceGroup {group.name}"
        raise Refused(Reason.INVALID_REQUEST, text)
    return group


def _group(request: Request, bound: str | None, world: World) -> Group:
    """The group of an address asked for or kept decides; else the one named; else that of the namespace; else `default`
    (A1, A2, A10, A25)."""
    if bound is not None and bound in world.groups:
        return world.groups[bound]
    name = request.group or world.bindings.default_group(request.key.namespace)
    group = world.groups.get(name)
    if group is not None:
        return group
    if name in world.broken:
        raise Refused(Reason.INVALID_SERVICE_GROUP, f"ServiceGroup {name} cannot be used: {world.broken[name]}")
    if request.group is None:
        raise Refused(Reason.NO_SERVICE_GROUP, f"there is no ServiceGroup {names.DEFAULT_GROUP}, and none is asked for")
    raise Refused(Reason.UNKNOWN_SERVICE_GROUP, f"there is no ServiceGroup {name}")


def _asked(request: Request, address: Address, reclaimable: Sequence[BookedAllocation], world: World) -> Choice:
    group = world.free.group_of(address)
    assert group is not None
    if world.reservations.keeps_from(address, request.key):
        raise Refused(Reason.ADDRESS_RESERVED, f"requested address {address} is reserved")
    for allocation in reclaimable:
        if allocation.address == address:
            return Choice(address, group, allocation.id)
    if world.free.take(address):
        return Choice(address, group)
    if world.shared.join_at(address, _member(request), request.sharing_key, world.groups[group]):
        return Choice(address, group, joins=True)
    raise Refused(Reason.ADDRESS_IN_USE, f"requested address {address} is in use", (Obstacle(address),))


def _member(request: Request) -> Member:
    return Member(request.uid, request.key, port_keys(request.ports))


def _any(
    request: Request,
    family: Family,
    group: Group,
    reclaimable: Sequence[BookedAllocation],
    world: World,
) -> Choice:
    choice = _back_or_free(request, family, group, None, reclaimable, world)
    if choice is None:
        raise _exhausted(request, group, family, world)
    return choice


def _exhausted(request: Request, group: Group, family: Family, world: World) -> Refused:
    key = request.sharing_key
    shared = () if key is None else (UnderKey(group.name, family, key),)
    return exhausted(group.name, family, world.outlook, shared)


def _one_of_each(
    request: Request,
    family: Family,
    group: Group,
    kept: Collection[Address],
    reclaimable: Sequence[BookedAllocation],
    world: World,
    choices: list[Choice],
) -> None:
    """Adds to `choices` an address of each range that lacks one; a range with none free is passed over.

    As in PureLB, it is a refusal only if the family would have no address at all.
    """
    lacking = open_ranges(group, family, kept, world.free, world.reach)
    if len(lacking) + len(choices) + len(kept) > MAX_MULTI_POOLS:
        text = f"ServiceGroup {group.name} has more than {MAX_MULTI_POOLS} ranges, too many for {names.MULTI_POOL}"
        raise Refused(Reason.INVALID_REQUEST, text)
    before = len(choices)
    for space in lacking:
        choice = _back_or_free(request, family, group, space, reclaimable, world)
        if choice is not None:
            choices.append(choice)
    if len(choices) > before or _has(kept, family) or not world.free.spaces(group.name, family):
        return
    if lacking:
        raise _exhausted(request, group, family, world)
    text = f"no live node is in a subnet of the {family} ranges of ServiceGroup {group.name}"
    raise Refused(Reason.NO_NODE_IN_SUBNET, text, (Nodes.ELSEWHERE,))


def _has(addresses: Collection[Address], family: Family) -> bool:
    return any(family_of(address) is family for address in addresses)


def _back_or_free(
    request: Request,
    family: Family,
    group: Group,
    only: PoolSpace | None,
    reclaimable: Sequence[BookedAllocation],
    world: World,
) -> Choice | None:
    """An address of the group, or of one range of it.

    Where somebody else was promised the address that the Service had, the promise holds, and the history says it.
    """
    key, within = request.key, None if only is None else only.pool.range
    if request.sharing_key is not None:
        barred = partial(world.reservations.keeps_from, key=key)
        shared = world.shared.join(_member(request), request.sharing_key, group, family, within, barred)
        if shared is not None:
            return Choice(shared, group.name, joins=True)
    had = [a for a in reclaimable if a.family is family and group.pool_with(a.address)]
    if within is not None:
        had = [a for a in had if a.address in within]
    back = [a for a in had if not world.reservations.keeps_from(a.address, key)]
    back.sort(key=lambda a: world.reservations.at(a.address) is None)
    if back and world.reservations.at(back[0].address):
        return Choice(back[0].address, group.name, back[0].id)
    reserved = lowest_reserved(key, group.name, family, world.free, world.reservations, within)
    if reserved is not None:
        world.free.take(reserved)
        return Choice(reserved, group.name, why="reserved for it")
    if back:
        return Choice(back[0].address, group.name, back[0].id)
    free = only.lowest() if only else world.free.lowest(group.name, family, balanced=group.balance_pools)
    if free is None:
        return None
    world.free.take(free)
    return Choice(free, group.name, why=f"{had[0].address}, which it had, is reserved" if had else "")
