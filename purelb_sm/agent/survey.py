"""Where this node stands in the network: its interfaces for local addresses, and the subnets on them.

Asked of the kernel anew whenever it tells of a change. Decides nothing.
"""

from __future__ import annotations

from typing import Final

from purelb_sm.domain.addresses import Network
from purelb_sm.domain.agent_config import AgentConfig
from purelb_sm.net import Family, KernelProtocol

FAMILIES: Final[tuple[Family, ...]] = (4, 6)
OwnSubnets = tuple[tuple[str, Network], ...]
"""(interface, subnet), in order of preference."""


async def own_subnets(kernel: KernelProtocol, config: AgentConfig) -> OwnSubnets:
    """The subnets of the interfaces that the configuration selects: those of the default routes before the others.

    Raises NetError.
    """
    names: dict[str, None] = {}
    if config.wants_default_route:
        for family in FAMILIES:
            name = await kernel.default_interface(family)
            if name is not None and name != config.dummy_interface:
                names[name] = None
    for interface in await kernel.interfaces():
        if interface.mac is not None and config.selects(interface.name):
            names[interface.name] = None
    found = await kernel.subnets(list(names))
    return tuple((name, subnet) for name in names for subnet in found[name])
