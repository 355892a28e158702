"""Who may have an address together with whom (A15): the shared addresses, their members, and the ports of each.

Owned by the leader beside the free space, built from the book whenever that is, and kept right by `follow`, which
takes the actions of every plan. It only proposes: the database's unique index on ports decides.

An address whose last member left stays here until it is free: whoever might join it while it was held may have it back,
so that Services which are deleted together and made again together meet on the address that they had.

Costs: everything is found by hash or bisection; only Services that have a sharing key are in here.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from purelb_sm.domain.addresses import Address, AddressRange, Family, family_of
from purelb_sm.domain.book import Action, BookedAllocation, Hold, Join, Leave, Reclaim, SetKey, SetPorts
from purelb_sm.domain.groups import Group
from purelb_sm.domain.views import Port, PortKey, ServiceKey
from purelb_sm.errors import Reason, Refused

MAX_TRIED = 64
"""So many addresses of one key are tried: a Service gets there only by asking for each of them by name."""


class Obstacle(NamedTuple):
    """What a refused Service waits for: this port of this address; with port 0, the address as such."""

    address: Address
    protocol: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class UnderKey:
    """What a Service waits for that has this key, and found its group exhausted: an address that is shared under it."""

    group: str
    family: Family
    sharing_key: str


class Member(NamedTuple):
    """A Service that shares an address, with the ports that the book has it on."""

    uid: str
    key: ServiceKey
    ports: frozenset[PortKey]


@dataclass(frozen=True, slots=True)
class SharedAddress:
    """What the book says of a shared address. `claim` is who may have it back when it has no member."""

    address: Address
    group: str
    sharing_key: str
    claim: ServiceKey
    members: tuple[Member, ...] = ()


@dataclass(slots=True)
class _Place:
    address: Address
    group: str
    sharing_key: str
    claim: ServiceKey
    members: dict[str, Member] = field(default_factory=dict)
    ports: dict[PortKey, str] = field(default_factory=dict)
    namespaces: dict[str, int] = field(default_factory=dict)

    @property
    def vacant(self) -> bool:
        return not self.members

    def within(self, namespace: str) -> bool:
        """Whether it is of this namespace only."""
        return self.claim.namespace == namespace if self.vacant else self.namespaces.keys() == {namespace}

    def clash(self, ports: Iterable[PortKey], uid: str) -> list[PortKey]:
        return sorted(port for port in ports if self.ports.get(port, uid) != uid)

    def add(self, member: Member) -> None:
        self.members[member.uid] = member
        namespace = member.key.namespace
        self.namespaces[namespace] = self.namespaces.get(namespace, 0) + 1
        self.ports.update(dict.fromkeys(member.ports, member.uid))

    def remove(self, uid: str) -> Member | None:
        member = self.members.pop(uid, None)
        if member is None:
            return None
        for port in member.ports:
            self.ports.pop(port, None)
        namespace = member.key.namespace
        self.namespaces[namespace] -= 1
        if not self.namespaces[namespace]:
            del self.namespaces[namespace]
        return member


class Shared:
    """All shared addresses that are not free."""

    def __init__(self, booked: Iterable[SharedAddress] = ()) -> None:
        self._at: dict[Address, _Place] = {}
        self._of_key: dict[tuple[str, Family, str, str], list[Address]] = {}
        for one in booked:
            place = _Place(one.address, one.group, one.sharing_key, one.claim)
            for member in one.members:
                place.add(member)
            self._put(place)

    def __len__(self) -> int:
        return len(self._at)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shared) and self._at == other._at and self._of_key == other._of_key

    __hash__ = None  # type: ignore[assignment]

    # What is asked.

    def others(self, address: Address, uid: str) -> bool:
        """Whether a Service other than this one has the address."""
        place = self._at.get(address)
        return place is not None and any(member != uid for member in _first_two(place.members))

    def taken(self, address: Address) -> bool:
        """Whether some Service has this shared address; a vacant one waits to be had back."""
        place = self._at.get(address)
        return place is not None and not place.vacant

    def clash(self, address: Address, ports: Iterable[PortKey], uid: str) -> list[PortKey]:
        """Which of these ports of the address another member has."""
        place = self._at.get(address)
        return [] if place is None else place.clash(ports, uid)

    def address_of(
        self, key: str, namespace: str, group: Group, family: Family, but: Collection[Address] = ()
    ) -> Address | None:
        """The first address, other than `but`, that a Service of this namespace could share under this key."""
        places = self._places(key, namespace, group, family)
        return next((p.address for p in places if not p.vacant and p.address not in but), None)

    def join(
        self,
        who: Member,
        sharing_key: str,
        group: Group,
        family: Family,
        within: AddressRange | None = None,
        barred: Callable[[Address], bool] = lambda _: False,
    ) -> Address | None:
        """The address of this key in the group and family, or in one range of it, that is not `barred`; None where
        there is none, and the Service begins one.

        Raises Refused where there is one and its ports clash there.
        """
        places = [
            place
            for place in self._places(sharing_key, who.key.namespace, group, family)
            if (within is None or place.address in within) and not barred(place.address)
        ]
        obstacles: list[Obstacle] = []
        for place in places:
            if place.vacant:
                continue
            clash = place.clash(who.ports, who.uid)
            if not clash:
                return place.address
            obstacles += [Obstacle(place.address, *port) for port in clash]
        if obstacles:
            raise port_conflict(obstacles)
        return places[0].address if places else None

    def join_at(self, address: Address, who: Member, sharing_key: str | None, group: Group) -> bool:
        """Whether the Service may have this address beside who has it. Raises Refused with what stands in the way.

        False: sharing has nothing to do with it, the address is in use and that is all.
        """
        place = self._at.get(address)
        if place is None or sharing_key is None or place.sharing_key != sharing_key:
            return False
        if not (group.shares_across_namespaces or place.within(who.key.namespace)):
            text = (
                f"requested address {address} is in use, and ServiceGroup {group.name} shares within a namespace only"
            )
            raise Refused(Reason.SHARING_NOT_ALLOWED, text, (Obstacle(address),))
        if clash := place.clash(who.ports, who.uid):
            raise port_conflict([Obstacle(address, *port) for port in clash])
        return True

    def _places(self, key: str, namespace: str, group: Group, family: Family) -> Iterator[_Place]:
        """Of this key, the lowest address first. One that the group has lost (A22) gets no new members."""
        everywhere = group.shares_across_namespaces
        found = self._of_key.get((group.name, family, key, "" if everywhere else namespace), ())
        for address in found[:MAX_TRIED]:
            place = self._at[address]
            if (everywhere or place.within(namespace)) and group.pool_with(address):
                yield place

    # What is done.

    def follow(self, actions: Iterable[Action]) -> list[Hashable]:
        """Takes what a plan does to shared addresses. Answers with what is no longer in the way of others."""
        gone: list[Hashable] = []
        for action in actions:
            match action:
                case Hold() | Reclaim():
                    gone += self._begin(action)
                case Join():
                    self._join(action)
                case Leave():
                    gone += self._leave(action)
                case SetPorts():
                    gone += self._set_ports(action)
                case SetKey():
                    gone += [*self._begin(action), Obstacle(action.address)]
        return gone

    def forget(self, address: Address) -> None:
        """The address is free."""
        place = self._at.pop(address, None)
        if place is None:
            return
        for name in _names(place):
            addresses = self._of_key[name]
            del addresses[bisect_left(addresses, int(address), key=int)]
            if not addresses:
                del self._of_key[name]

    def _put(self, place: _Place) -> None:
        self._at[place.address] = place
        for name in _names(place):
            insort(self._of_key.setdefault(name, []), place.address, key=int)

    def _begin(self, action: Hold | Reclaim | SetKey) -> list[UnderKey]:
        self.forget(action.address)
        if action.sharing_key is None:
            return []
        place = _Place(action.address, action.group, action.sharing_key, action.key)
        place.add(Member(action.uid, action.key, port_keys(action.ports)))
        self._put(place)
        return [UnderKey(action.group, family_of(action.address), action.sharing_key)]

    def _join(self, action: Join) -> None:
        place = self._at.get(action.address)
        if place is None:
            return
        self.forget(action.address)
        if place.vacant:
            place.group, place.claim = action.group, action.key
        place.add(Member(action.uid, action.key, port_keys(action.ports)))
        self._put(place)

    def _leave(self, action: Leave) -> list[Obstacle]:
        place = self._at.get(action.address)
        if place is None:
            return []
        self.forget(action.address)
        member = place.remove(action.uid)
        if member is not None and place.vacant:
            place.claim = member.key
        self._put(place)
        if member is None:
            return []
        return [Obstacle(action.address), *(Obstacle(action.address, *port) for port in sorted(member.ports))]

    def _set_ports(self, action: SetPorts) -> list[Obstacle]:
        place = self._at.get(action.address)
        before = None if place is None else place.remove(action.uid)
        if place is None or before is None:
            return []
        ports = port_keys(action.ports)
        place.add(before._replace(ports=ports))
        return [Obstacle(action.address, *port) for port in sorted(before.ports - ports)]


def port_keys(ports: Iterable[Port]) -> frozenset[PortKey]:
    """Ports as they are claimed: by protocol and number."""
    return frozenset((port.protocol, port.port) for port in ports)


def port_conflict(obstacles: Sequence[Obstacle]) -> Refused:
    """Says which ports are taken, not by whom."""
    shown = ", ".join(f"{o.protocol}/{o.port} of {o.address}" for o in obstacles[:3])
    more = f" and {len(obstacles) - 3} more" if len(obstacles) > 3 else ""
    text = f"another Service that shares the address has {shown}{more}"
    return Refused(Reason.PORT_CONFLICT, text, tuple(obstacles))


def sort_by_key(
    kept: Sequence[BookedAllocation],
    uid: str,
    key: ServiceKey,
    wanted: str | None,
    groups: Mapping[str, Group],
    shared: Shared,
) -> tuple[list[BookedAllocation], list[BookedAllocation]]:
    """(kept, leaving) of what a Service has, by the sharing key that it has now.

    Who has an address alone keeps it under any key, but for one who changed from a key to another whose address there
    is. Who has it with others, under another key, leaves it to them; and it stays left when they have gone meanwhile.
    """
    moved = {allocation.family for allocation in kept if allocation.sharing_key == wanted}
    staying: list[BookedAllocation] = []
    leaving: list[BookedAllocation] = []
    for allocation in kept:
        before = allocation.sharing_key
        leaves = before != wanted and (allocation.family in moved or shared.others(allocation.address, uid))
        if not leaves and before is not None and wanted is not None and before != wanted:
            group = groups.get(allocation.group)
            mine = {a.address for a in kept}
            leaves = group is not None and bool(
                shared.address_of(wanted, key.namespace, group, allocation.family, mine)
            )
        (leaving if leaves else staying).append(allocation)
    return staying, leaving


def _names(place: _Place) -> list[tuple[str, Family, str, str]]:
    """Under what an address is found: in each namespace that it is of, and in all of them."""
    namespaces = place.namespaces or {place.claim.namespace: 0}
    family = family_of(place.address)
    return [(place.group, family, place.sharing_key, namespace) for namespace in ("", *namespaces)]


def _first_two(members: Iterable[str]) -> Iterator[str]:
    for number, member in enumerate(members):
        if number == 2:
            return
        yield member
