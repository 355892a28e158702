"""Where this node stands in the network: its interfaces for local addresses, the subnets on them, and its MACs.

Asked of the kernel anew whenever it tells of a change. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from purelb_sm.domain.addresses import Network
from purelb_sm.domain.agent_config import AgentConfig
from purelb_sm.domain.macs import MAX_MACS
from purelb_sm.net import Family, Home, Interface, KernelProtocol

FAMILIES: Final[tuple[Family, ...]] = (4, 6)
OwnHomes = tuple[tuple[str, Home], ...]
"""(interface, subnet with our address there), in order of preference."""
OwnSubnets = tuple[tuple[str, Network], ...]
"""(interface, subnet), in order of preference."""


_PODS: Final = ("veth", "dummy", "vxlan", "geneve", "ipip", "tun")
"""Kinds of interfaces that lead to pods and tunnels: what is there is no neighbour of the node's links."""


def subnets_of(homes: OwnHomes) -> OwnSubnets:
    return tuple((name, home.subnet) for name, home in homes)


async def own_homes(kernel: KernelProtocol, config: AgentConfig, interfaces: Iterable[Interface]) -> OwnHomes:
    """The subnets of the interfaces that the configuration selects: those of the default routes before the others,
    which come as it prefers them.

    An interface whose link is down has none: nobody on it could be answered, so another node has to, and the Lease is
    to say so. The kernel keeps IPv4 addresses and routes there. Raises NetError.
    """
    names: dict[str, None] = {}
    if config.wants_default_route:
        for family in FAMILIES:
            name = await kernel.default_interface(family)
            if name is not None and name != config.dummy_interface:
                names[name] = None
    present = [interface.name for interface in interfaces if interface.mac is not None]
    names |= dict.fromkeys(sorted(filter(config.selects, present), key=config.preference))
    dead = {interface.name for interface in interfaces if not (interface.up and interface.carrier)}
    names = {name: None for name in names if name not in dead}
    found = await kernel.homes(list(names))
    return tuple((name, home) for name in names for home in found[name])


def own_macs(interfaces: Iterable[Interface], selected: Collection[str]) -> tuple[bytes, ...]:
    """The MACs by which others know this node: those of the selected interfaces, then of all others that may be on the
    same links, since a kernel answers for its addresses on whatever interface it is asked."""
    known = [one for one in interfaces if one.mac is not None and any(one.mac)]
    first = [one.mac for one in known if one.name in selected]
    others = [one.mac for one in known if one.name not in selected and one.kind not in _PODS]
    return tuple(dict.fromkeys(mac for mac in [*first, *others] if mac is not None))[:MAX_MACS]
