"""`externalTrafficPolicy: Local` where it cannot work: set back to Cluster, or kept as the user insists (A16, C10).

A shared address is on nodes that have an endpoint of one member and none of another; a local one is on a single node,
which is not elected by endpoints. Traffic that comes to a node without endpoints would be dropped there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address, AddressRange
from purelb_sm.domain.book import EventNote, PolicyReset
from purelb_sm.domain.choose import World
from purelb_sm.domain.groups import PoolType
from purelb_sm.domain.publication import current_condition
from purelb_sm.domain.views import ServiceView

KEPT = f"externalTrafficPolicy Local is kept on a local address, as {names.ALLOW_LOCAL} says"


@dataclass(frozen=True, slots=True)
class PolicyVerdict:
    """What becomes of the policy. `remark` is for the condition, which thereby knows what its owner was told."""

    reset: PolicyReset | None = None
    remark: str = ""
    events: tuple[EventNote, ...] = ()


AS_IT_IS = PolicyVerdict()


def judge_policy(view: ServiceView, addresses: Iterable[Address], shared: bool, world: World) -> PolicyVerdict:
    """`shared`: under a key, be it by this Service alone; that rules out Local whatever else is asked for."""
    if view.external_traffic_policy != "Local":
        return AS_IT_IS
    if shared:
        return _reset(view, "a shared address")
    if not any(_is_local(address, world) for address in addresses):
        return AS_IT_IS
    if view.annotation(names.ALLOW_LOCAL) != "true":
        return _reset(view, "a local address")
    current = current_condition(view)
    told = current is not None and KEPT in current.message
    text = f"{KEPT}: traffic is lost where the node that announces it has no endpoint"
    return PolicyVerdict(remark=KEPT, events=() if told else (EventNote("Warning", "LocalOverride", text),))


def _reset(view: ServiceView, what: str) -> PolicyVerdict:
    note = EventNote("Warning", "LocalOverride", f"externalTrafficPolicy Local cannot go with {what}: set to Cluster")
    return PolicyVerdict(PolicyReset(view.key, view.uid, view.resource_version, note))


def _is_local(address: Address, world: World) -> bool:
    """Whether one node answers for it: that of a group written as v1 where a live node has its subnet."""
    group = world.groups.get(world.free.group_of(address) or "")
    if group is None or group.pool_type is not PoolType.LOCAL:
        return False
    return not group.agent_decides or world.reach.touches(AddressRange(address, address))
