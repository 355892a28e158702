"""What a node should announce: a pure function of Services, groups, the live nodes and the node's own place.

Owns the question "which addresses belong on this node, on which interface, for which Services". Knows nothing of the
kernel, and changes nothing: the agent compares the answer with what the kernel holds.

Kept per address and per Service, so that one Service's event costs the work of one Service, not of all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, Protocol

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address, Network, parse_service_address
from purelb_sm.domain.agent_config import DEFAULT_CONFIG, AgentConfig
from purelb_sm.domain.election import NOBODY, Electorate
from purelb_sm.domain.groups import Group, Pool, PoolType
from purelb_sm.domain.requests import Whose, whose
from purelb_sm.domain.views import ServiceKey, ServiceView
from purelb_sm.errors import InvalidAddress

MAX_INGRESS: Final = 64
"""More addresses than this of one Service are not looked at: more than any group can give it."""


class Kind(Enum):
    """How an address is announced: by one node on its own subnet, or by all for a router to find."""

    LOCAL = "local"
    REMOTE = "remote"


@dataclass(frozen=True, slots=True)
class Desired:
    """An address that this node should hold. `lifetime_s` None: permanent; `preferred_s` None: as the lifetime.

    `guarded`: foreign hosts that use it are looked for, before it is first announced and while it is (C20).
    """

    address: Address
    kind: Kind
    interface: str
    prefix_length: int
    lifetime_s: int | None
    preferred_s: int | None
    noprefixroute: bool
    services: tuple[ServiceKey, ...]
    guarded: bool = False


@dataclass(frozen=True, slots=True)
class Keep:
    """It cannot be decided (`why`): what the node holds of this address stays as it is, and nothing is added."""

    address: Address
    why: str
    services: tuple[ServiceKey, ...]


Verdict = Desired | Keep | None
"""None: not on this node."""


class Endpoints(Protocol):
    """Where the endpoints of Services are, as far as this node needs it."""

    def here(self, service: ServiceKey) -> bool | None:
        """Whether the Service has an endpoint on this node that takes traffic; None: not known (yet)."""
        ...

    def nodes(self, service: ServiceKey) -> Collection[str] | None:
        """The nodes that a local address of the Service should rather be on: those with a ready endpoint of it. If it
        has none, those whose endpoints still serve while they terminate. None: not known (yet)."""
        ...


class Elsewhere(Protocol):
    """What other nodes are known to announce; asked for only while this one is being drained."""

    def announced(self, address: Address) -> bool:
        """Whether a node that is not drained says that it announces this remote address."""
        ...


class UnknownElsewhere:
    """Nobody has been asked."""

    def announced(self, address: Address) -> bool:
        return False


class UnknownEndpoints:
    """Without a watch on EndpointSlices nothing is known."""

    def here(self, service: ServiceKey) -> bool | None:
        return None

    def nodes(self, service: ServiceKey) -> Collection[str] | None:
        return None


class Groups:
    """The accepted ServiceGroups, and which one an address is in; found by bisection, as accepted groups never overlap.

    `unusable` are names of groups that exist and cannot be used: their Services keep what they have.
    """

    __slots__ = ("_first", "_meaning", "_pools", "unusable")

    def __init__(self, accepted: Iterable[Group] = (), unusable: Iterable[str] = ()) -> None:
        groups = {group.name: group for group in accepted}
        self.unusable = frozenset(unusable)
        # What decides anything here: a new resourceVersion alone must not make every address be looked at.
        self._meaning = {name: (g.pool_type, g.agent_decides, g.pools, g.skip_ipv6_dad) for name, g in groups.items()}
        pools = [(pool, group) for group in groups.values() for pool in group.pools]
        self._pools = sorted(pools, key=lambda one: (one[0].range.first.version, int(one[0].range.first)))
        self._first = [(pool.range.first.version, int(pool.range.first)) for pool, _ in self._pools]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Groups) and (self._meaning, self.unusable) == (other._meaning, other.unusable)

    def __hash__(self) -> int:
        return hash((frozenset(self._meaning), self.unusable))

    def with_address(self, address: Address) -> tuple[Group, Pool] | None:
        index = bisect_right(self._first, (address.version, int(address))) - 1
        if index < 0 or address not in self._pools[index][0].range:
            return None
        pool, group = self._pools[index]
        return group, pool

    def knows(self, name: str) -> bool:
        """Whether there is a group of this name, usable or not."""
        return name in self._meaning or name in self.unusable


@dataclass(frozen=True, slots=True)
class Place:
    """Where the node stands.

    electorate  the live nodes with their subnets; this node is among them while its own Lease is held
    subnets     this node's own, on interfaces that may take local addresses, in order of preference
    config      None where its LBNodeAgent cannot be read, or none is for it: then it announces nothing
    """

    node: str
    electorate: Electorate = NOBODY
    subnets: tuple[tuple[str, Network], ...] = ()
    config: AgentConfig | None = DEFAULT_CONFIG
    groups: Groups = field(default_factory=Groups)
    load_balancer_class: str = names.LOAD_BALANCER_CLASS


@dataclass(frozen=True, slots=True)
class _Claim:
    """What one Service says of its addresses. `everywhere`: its policy is not `Local`. `near`: it wants its local
    addresses on nodes with an endpoint (C18)."""

    addresses: tuple[Address, ...]
    group: str
    everywhere: bool
    near: bool = False


def claim_of(view: ServiceView, load_balancer_class: str) -> _Claim | None:
    """A Service that we announce: of type LoadBalancer, of our class or none, with our brand; spec C1, C19.

    An ingress that is no usable address is passed over: it cannot be in a group.
    """
    if view.annotation(names.ALLOCATED_BY) != names.BRAND or whose(view, load_balancer_class, True) is not Whose.OURS:
        return None
    found: list[Address] = []
    for ingress in view.ingress[:MAX_INGRESS]:
        try:
            found.append(parse_service_address(ingress.ip))
        except InvalidAddress:
            continue
    if not found:
        return None
    group = view.annotation(names.ALLOCATED_FROM) or ""
    near = view.annotation(names.NODE_AFFINITY) == names.SERVICE_ENDPOINTS
    return _Claim(tuple(dict.fromkeys(found)), group, view.external_traffic_policy != "Local", near)


class Announcements:
    """All Services' claims, by Service and by address, and the verdict on each address.

    `update`, `forget` and `move` answer with the addresses that have to be looked at again; `decide` gives the verdict.
    Two of these with the same Services and the same place give the same verdicts, however they came to them.
    """

    def __init__(self, place: Place, endpoints: Endpoints | None = None) -> None:
        self.place = place
        self.endpoints: Endpoints = endpoints or UnknownEndpoints()
        self.elsewhere: Elsewhere = UnknownElsewhere()
        self._claims: dict[ServiceKey, _Claim] = {}
        self._services: dict[Address, tuple[ServiceKey, ...]] = {}
        self._winners: dict[Address, str | None] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def addresses(self) -> Iterable[Address]:
        """All addresses that a Service of ours shows."""
        return self._services.keys()

    def remote_addresses(self) -> list[Address]:
        """Those that every node announces, or every node with an endpoint."""
        found = ((address, self.place.groups.with_address(address)) for address in self._services)
        return [address for address, where in found if where is not None and not self._is_local(address, where[0])]

    def addresses_of(self, key: ServiceKey) -> tuple[Address, ...]:
        claim = self._claims.get(key)
        return claim.addresses if claim else ()

    def follows_endpoints(self, key: ServiceKey) -> bool:
        """Whether the Service is ours, and where its endpoints are may decide where its addresses belong."""
        claim = self._claims.get(key)
        return claim is not None and (claim.near or not claim.everywhere)

    def following_endpoints(self) -> list[ServiceKey]:
        return [key for key in self._claims if self.follows_endpoints(key)]

    def services_of(self, address: Address) -> tuple[ServiceKey, ...]:
        return self._services.get(address, ())

    def update(self, view: ServiceView) -> tuple[Address, ...]:
        """Takes a Service as it is now; answers with the addresses whose verdict may be another."""
        claim = claim_of(view, self.place.load_balancer_class)
        return self.forget(view.key) if claim is None else self._replace(view.key, claim)

    def forget(self, key: ServiceKey) -> tuple[Address, ...]:
        """The Service is gone."""
        return self._replace(key, None)

    def move(self, place: Place) -> Collection[Address]:
        """The node stands elsewhere now; answers with the addresses that have to be looked at."""
        before, self.place = self.place, place
        if place == before:
            return ()
        won = self._elect(before.electorate) if place.electorate != before.electorate else ()
        return won if replace(before, electorate=place.electorate) == place else self._services.keys()

    def endpoints_moved(self, key: ServiceKey) -> tuple[Address, ...]:
        """The Service's endpoints are elsewhere, or known now; answers with the addresses that have to be looked at."""
        if not self.follows_endpoints(key):
            return ()
        addresses = self.addresses_of(key)
        if self._claims[key].near:
            self._elect_anew(addresses)
        return addresses

    def _elect_anew(self, addresses: Iterable[Address]) -> None:
        """Who answers for these is decided when it is next asked for."""
        for address in addresses:
            self._winners.pop(address, None)

    def _elect(self, before: Electorate) -> list[Address]:
        """Elects anew after nodes came or went; answers with the addresses for which that changes anything here."""
        changed = self.place.electorate.changed_since(before)
        concerned = []
        for address, was in self._winners.items():
            # Which of those that did not change comes first is not known where only some of them count.
            near = self._wants_near(address)
            now = self._elected(address) if near else self.place.electorate.next_winner(address, was, changed)
            # A node that takes part under other subnets may hold the address on another interface now.
            if now != was or now in changed:
                self._winners[address] = now
                concerned.append(address)
        return concerned

    def winner(self, address: Address) -> str | None:
        """The node that answers for a local address, None if no live node has its subnet."""
        if address not in self._services:
            return self.place.electorate.winner(address)
        if address not in self._winners:
            self._winners[address] = self._elected(address)
        return self._winners[address]

    def _elected(self, address: Address) -> str | None:
        return self.place.electorate.winner(address, self._preferred(address) or ())

    def _wants_near(self, address: Address) -> bool:
        return any(self._claims[key].near for key in self._services[address])

    def _preferred(self, address: Address) -> Collection[str] | None:
        """The nodes that the Services of this address would rather have it on: of those that share it, what any of
        them says. Empty: it makes no difference to them. None: that is not known yet."""
        found: set[str] = set()
        for key in self._services[address]:
            if self._claims[key].near:
                nodes = self.endpoints.nodes(key)
                if nodes is None:
                    return None
                found.update(nodes)
        return found

    def heir(self, address: Address) -> str | None:
        """The other node that is to answer for a local address; None if it is for this one, for nobody, or remote."""
        found = self.place.groups.with_address(address) if address in self._services else None
        winner = self.winner(address) if found is not None and self._is_local(address, found[0]) else None
        return None if winner == self.place.node else winner

    def _is_local(self, address: Address, group: Group) -> bool:
        return group.pool_type is PoolType.LOCAL and not (group.agent_decides and self.winner(address) is None)

    def decide(self, address: Address) -> Verdict:
        services, config = self._services.get(address), self.place.config
        if services is None or config is None:
            return None
        found = self.place.groups.with_address(address)
        if found is None:
            return self._orphan(address, services)
        group, pool = found
        local = self._is_local(address, group)
        if local and self._preferred(address) is None:
            return Keep(address, "its endpoints are not known yet", services)
        if local and self.winner(address) != self.place.node:
            return None
        guarded = config.probe.enabled if address.version == 4 else not group.skip_ipv6_dad
        return (
            self._local(address, services, config, guarded) if local else self._remote(address, pool, services, config)
        )

    def _local(self, address: Address, services: tuple[ServiceKey, ...], config: AgentConfig, guarded: bool) -> Verdict:
        own = [(i, net) for i, net in self.place.subnets if net.version == address.version and address in net]
        if not own:
            # Its own Lease still names a subnet that the node has just lost; the next renewal tells the others.
            return None
        interface, subnet = max(own, key=lambda one: one[1].prefixlen)
        how = config.local
        return Desired(
            address,
            Kind.LOCAL,
            interface,
            subnet.prefixlen,
            how.lifetime_s,
            how.preferred_s,
            how.noprefixroute,
            services,
            guarded,
        )

    def _remote(self, address: Address, pool: Pool, services: tuple[ServiceKey, ...], config: AgentConfig) -> Verdict:
        here = [True if self._claims[key].everywhere else self.endpoints.here(key) for key in services]
        if not any(here):
            return Keep(address, "its endpoints are not known yet", services) if None in here else None
        if self.place.node in self.place.electorate.draining and self.elsewhere.announced(address):
            return None
        how = config.remote
        return Desired(
            address,
            Kind.REMOTE,
            config.dummy_interface,
            pool.prefix_length,
            how.lifetime_s,
            how.preferred_s,
            how.noprefixroute,
            services,
        )

    def _orphan(self, address: Address, services: tuple[ServiceKey, ...]) -> Verdict:
        """In no usable group. Its holder keeps it while its group exists (A22): a slip in a group's ranges must not
        silence the Services that live on it. But a node that does not hold it does not begin to."""
        for key in services:
            name = self._claims[key].group
            if self.place.groups.knows(name):
                return Keep(address, f"ServiceGroup {name} does not cover it", services)
        return None

    def _replace(self, key: ServiceKey, claim: _Claim | None) -> tuple[Address, ...]:
        before = self._claims.pop(key, None)
        if claim is not None:
            self._claims[key] = claim
        old = before.addresses if before else ()
        new = claim.addresses if claim else ()
        if before == claim:
            return ()
        if (before and before.near) or (claim and claim.near):
            self._elect_anew((*old, *new))
        for address in old:
            if address not in new:
                self._leave(address, key)
        for address in new:
            members = self._services.get(address, ())
            if key not in members:
                self._services[address] = tuple(sorted((*members, key)))
        return tuple(dict.fromkeys((*old, *new)))

    def _leave(self, address: Address, key: ServiceKey) -> None:
        rest = tuple(member for member in self._services[address] if member != key)
        if rest:
            self._services[address] = rest
        else:
            del self._services[address]
            self._winners.pop(address, None)
