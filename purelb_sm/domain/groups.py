"""ServiceGroup objects, read into Group or refused by name of field and value.

Reads what PureLB users have: `v1` (local; subnet/pool/aggregation, v4pool(s), v6pool(s)) and `v2` (exactly one of
local, remote, external). Decides nothing about Services.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise
from typing import Any

from purelb_sm.domain.addresses import (
    Address,
    AddressRange,
    Family,
    Network,
    family_of,
    parse_network,
    parse_range,
    unusable_within,
)
from purelb_sm.domain.durations import parse_duration_s
from purelb_sm.domain.fields import read_flag, read_list, read_mapping, read_text
from purelb_sm.domain.namespaces import FOR_ALL, Bindings, NamespaceRule, parse_namespace_rule
from purelb_sm.domain.views import ObjectView
from purelb_sm.errors import InvalidAddress, InvalidGroup

DEFAULT_QUARANTINE_S = 300.0
MAX_QUARANTINE_S = 365 * 86400.0
"""A longer one is a mistake, and may be more than a date can say."""
MAX_POOLS = 1024
"""More pools than this in one group is a mistake, and would make every decision about it slow."""
MAX_MULTI_POOLS = 64
"""A Service gets one address of each pool of a multi-pool group; agents look at no more than this of one Service."""


class PoolType(StrEnum):
    LOCAL = "local"
    REMOTE = "remote"


@dataclass(frozen=True, slots=True)
class Pool:
    """One range of a group. `prefix_length` is the aggregation: that of a remote address on `kube-lb0`."""

    range: AddressRange
    subnet: Network
    prefix_length: int

    @property
    def family(self) -> Family:
        return self.range.family


@dataclass(frozen=True, slots=True)
class Group:
    """A ServiceGroup that can be used.

    `agent_decides` is true of a group written as v1: whether its addresses are local or remote depends on whether any
    node has the subnet. `quarantine_s` is how long a released address is kept from other claims. `multi_pool` gives a
    Service one address from each range, `balance_pools` one from the range with the fewest in use; never both.
    `shares_across_namespaces`: a sharing key means the same in every namespace (A15).
    `skip_ipv6_dad`: nobody asks whether a foreign host uses an IPv6 address before it is announced.
    `conflict` is what it and other groups leave open between them, in a sentence. `fields` are where in the object its
    pools are written.
    """

    name: str
    namespace: str
    uid: str
    resource_version: str
    generation: int
    created_at: datetime
    pool_type: PoolType
    agent_decides: bool
    pools: tuple[Pool, ...]
    avoid_first_last: bool = False
    quarantine_s: float = DEFAULT_QUARANTINE_S
    multi_pool: bool = False
    balance_pools: bool = False
    rule: NamespaceRule = FOR_ALL
    shares_across_namespaces: bool = False
    skip_ipv6_dad: bool = False
    conflict: str = ""
    warnings: tuple[str, ...] = ()
    fields: tuple[str, ...] = field(default=(), compare=False)

    def pools_of(self, family: Family) -> tuple[Pool, ...]:
        return tuple(pool for pool in self.pools if pool.family is family)

    def families(self) -> frozenset[Family]:
        return frozenset(pool.family for pool in self.pools)

    def pool_with(self, address: Address) -> Pool | None:
        return next((pool for pool in self.pools if address in pool.range), None)


def parse_group(view: ObjectView) -> Group:
    """Raises InvalidGroup, naming field and value."""
    spec = read_mapping("spec", view.spec)
    kind, body = _kind_of(view.api_version.rpartition("/")[2], spec)
    pools, warnings = _pools(f"spec.{kind}", body)
    if not pools:
        raise InvalidGroup(f"spec.{kind}", "", "has no pool: v4pools or v6pools must name at least one range")
    _refuse_overlaps_within(pools)
    multi_pool, balance_pools = _way_of_choosing(f"spec.{kind}", body, len(pools))
    return Group(
        name=view.name,
        namespace=view.namespace,
        uid=view.uid,
        resource_version=view.resource_version,
        generation=view.generation,
        created_at=view.created_at or datetime.min.replace(tzinfo=UTC),
        pool_type=PoolType.REMOTE if kind == "remote" else PoolType.LOCAL,
        agent_decides=kind == "local" and _agent_decides(view.api_version, body),
        pools=tuple(pool for _, pool in pools),
        avoid_first_last=read_flag(f"spec.{kind}.avoidFirstLast", body.get("avoidFirstLast")),
        quarantine_s=_quarantine(f"spec.{kind}.quarantine", body.get("quarantine")),
        multi_pool=multi_pool,
        balance_pools=balance_pools,
        rule=parse_namespace_rule(spec),
        shares_across_namespaces=_cluster_wide(f"spec.{kind}.sharing", body.get("sharing")),
        # Routed addresses are on an interface without neighbours: whoever else has one, a router decides.
        skip_ipv6_dad=kind == "remote" or read_flag("spec.local.skipIPv6DAD", body.get("skipIPv6DAD")),
        warnings=tuple(warnings),
        fields=tuple(where for where, _ in pools),
    )


def accept_groups(
    groups: Iterable[Group], before: Mapping[str, tuple[Pool, ...]]
) -> tuple[dict[str, Group], dict[str, InvalidGroup]]:
    """Of groups that overlap, one is accepted: the one that was accepted before with the same pools, else the older.

    `before` holds the pools of the groups accepted so far. Returns the accepted by name, and why the others are not.
    The order does not depend on the order of arrival, so that a restart decides alike.
    """
    order = sorted(groups, key=lambda g: (before.get(g.name) != g.pools, g.created_at, g.name))
    accepted: dict[str, Group] = {}
    refused: dict[str, InvalidGroup] = {}
    taken = _Taken()
    for group in order:
        clash = taken.first_clash(group)
        if clash is None:
            accepted[group.name] = group
            taken.add(group)
        else:
            number, theirs, other = clash
            refused[group.name] = InvalidGroup(
                group.fields[number],
                str(group.pools[number].range),
                f"overlaps {theirs.range} of ServiceGroup {other}",
            )
    conflicts = Bindings(accepted).conflicts()
    told = {name: replace(group, conflict=conflicts.get(name, "")) for name, group in accepted.items()}
    return told, refused


class _Taken:
    """The pools of the groups accepted so far: disjoint, and sorted, so that a clash is found by bisection."""

    def __init__(self) -> None:
        self._pools: list[tuple[Pool, str]] = []

    def first_clash(self, group: Group) -> tuple[int, Pool, str] | None:
        """Which of the group's pools, with which pool of which group."""
        for number, pool in enumerate(group.pools):
            index = bisect_right(self._pools, _place(pool.range.last), key=lambda one: _place(one[0].range.first)) - 1
            if index >= 0 and pool.range.overlaps(self._pools[index][0].range):
                return number, *self._pools[index]
        return None

    def add(self, group: Group) -> None:
        self._pools.extend((pool, group.name) for pool in group.pools)
        self._pools.sort(key=lambda one: _place(one[0].range.first))


def _place(address: Address) -> tuple[int, int]:
    return address.version, int(address)


def _kind_of(version: str, spec: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The one kind of the spec. A group stored as v2 may have been written as v1, so `netbox` is known in both."""
    kinds = ("local", "netbox") if version == "v1" else ("local", "remote", "external")
    present = [kind for kind in ("local", "remote", "external", "netbox") if spec.get(kind) is not None]
    if len(present) != 1 or (version == "v1" and present[0] not in kinds):
        raise InvalidGroup("spec", ", ".join(present), f"must have exactly one of {', '.join(kinds)}")
    kind = present[0]
    if kind in ("netbox", "external"):
        raise InvalidGroup(
            f"spec.{kind}", kind, "addresses from an outside IPAM are not supported yet: list the ranges under local"
        )
    return kind, read_mapping(f"spec.{kind}", spec[kind])


def _agent_decides(api_version: str, body: Mapping[str, Any]) -> bool:
    """True of what was written as v1.

    The API server keeps one version of an object and shows it as any. What tells which one it was written as is
    `announce: auto`, a default that the schema of v1 fills in and that of v2 does not.
    """
    announce = body.get("announce")
    if announce not in (None, "local", "auto"):
        raise InvalidGroup("spec.local.announce", announce, "must be local or auto")
    return announce == "auto" or (announce is None and api_version.endswith("/v1"))


def _pools(path: str, body: Mapping[str, Any]) -> tuple[list[tuple[str, Pool]], list[str]]:
    """All pools in the order: v4pools, v6pools, v4pool, v6pool, and v1's own subnet/pool/aggregation."""
    found: list[tuple[str, Pool]] = []
    warnings: list[str] = []
    for name, family in (("v4pools", Family.IPV4), ("v6pools", Family.IPV6)):
        for index, item in enumerate(read_list(f"{path}.{name}", body.get(name))):
            where = f"{path}.{name}[{index}]"
            found.append((where, _pool(where, read_mapping(where, item), family, warnings)))
    for name, family in (("v4pool", Family.IPV4), ("v6pool", Family.IPV6)):
        if body.get(name) is not None:
            where = f"{path}.{name}"
            found.append((where, _pool(where, read_mapping(where, body[name]), family, warnings)))
    if body.get("pool") is not None:
        found.append((path, _pool(path, body, None, warnings)))
    if len(found) > MAX_POOLS:
        raise InvalidGroup(path, len(found), f"has more than {MAX_POOLS} pools")
    return found, warnings


def _pool(where: str, item: Mapping[str, Any], family: Family | None, warnings: list[str]) -> Pool:
    subnet = _subnet(f"{where}.subnet", read_text(f"{where}.subnet", item.get("subnet")))
    text = read_text(f"{where}.pool", item.get("pool"))
    try:
        range_, warning = parse_range(text)
    except InvalidAddress as error:
        raise InvalidGroup(f"{where}.pool", text, error.why) from None
    if family is not None and range_.family is not family:
        raise InvalidGroup(f"{where}.pool", text, f"is not {family}")
    if not range_.within(subnet):
        raise InvalidGroup(f"{where}.pool", text, f"is not inside the subnet {subnet}")
    why = unusable_within(range_)
    if why:
        raise InvalidGroup(f"{where}.pool", text, why)
    if warning:
        warnings.append(f"{where}.pool: {warning}")
    return Pool(range_, subnet, _aggregation(f"{where}.aggregation", item.get("aggregation"), subnet))


def _subnet(where: str, text: str) -> Network:
    try:
        return parse_network(text)
    except InvalidAddress as error:
        raise InvalidGroup(where, text, error.why) from None


def _aggregation(where: str, value: object, subnet: Network) -> int:
    """`default` (or nothing) is the subnet's own prefix length; `/N` or `N` within the family is taken.

    Never 0: with an address of that length on a node, its kernel takes every host there is for a neighbour.
    """
    bits = family_of(subnet).bits
    if value is None or value in ("default", ""):
        if subnet.prefixlen == 0:
            raise InvalidGroup(where, value, f"must be /N or N, from 1 to {bits}, as the subnet is all of {subnet}")
        return subnet.prefixlen
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    digits = text.removeprefix("/") if isinstance(text, str) else ""
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 3 and 1 <= int(digits) <= bits):
        raise InvalidGroup(where, value, f"must be default, /N or N, from 1 to {bits}")
    return int(digits)


def _refuse_overlaps_within(pools: Sequence[tuple[str, Pool]]) -> None:
    ordered = sorted(range(len(pools)), key=lambda index: (_place(pools[index][1].range.first), index))
    for one, next_ in pairwise(ordered):
        # As long as no two neighbours overlap, each range ends before the next begins.
        if pools[one][1].range.overlaps(pools[next_][1].range):
            (other_where, other), (where, pool) = pools[min(one, next_)], pools[max(one, next_)]
            raise InvalidGroup(where, str(pool.range), f"overlaps {other.range} of {other_where}")


def _way_of_choosing(path: str, body: Mapping[str, Any], pools: int) -> tuple[bool, bool]:
    multi_pool = read_flag(f"{path}.multiPool", body.get("multiPool"))
    balance_pools = read_flag(f"{path}.balancePools", body.get("balancePools"))
    if multi_pool and balance_pools:
        raise InvalidGroup(f"{path}.balancePools", True, "cannot go with multiPool: it is one range or every range")
    if multi_pool and pools > MAX_MULTI_POOLS:
        raise InvalidGroup(f"{path}.multiPool", True, f"cannot go with more than {MAX_MULTI_POOLS} pools")
    return multi_pool, balance_pools


def _quarantine(where: str, value: object) -> float:
    if value is None:
        return DEFAULT_QUARANTINE_S
    try:
        duration_s = parse_duration_s(read_text(where, value))
    except ValueError as error:
        raise InvalidGroup(where, value, str(error)) from None
    if duration_s > MAX_QUARANTINE_S:
        raise InvalidGroup(where, value, "is longer than 365d")
    return duration_s


def _cluster_wide(where: str, value: object) -> bool:
    if value in (None, "Namespace", "Cluster"):
        return value == "Cluster"
    raise InvalidGroup(where, value, "must be Cluster or Namespace")
