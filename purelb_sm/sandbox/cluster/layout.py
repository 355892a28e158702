"""Where everything is in an emulated cluster: names, addresses, ports. All constants of the cluster are here.

The defaults show the addresses of PureLB's documentation: local addresses from 172.30.250.0/24, routed ones from
172.31.1.0/24, interface enp1s0, nodes node1 to node5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from purelb_sm.net import IPAddress, IPNetwork

NODE_INTERFACE = "enp1s0"
CLIENT_INTERFACE = "lan0"
BRIDGE = "br0"
CLIENT, FABRIC = "client", "fabric"

# No interface of the cluster has it: what is sent there is lost.
NOBODYS_MAC = "02:00:00:00:00:fe"

# Where a node finds the API server, on its own loopback.
API_PORT = 6443
API_ADDRESSES = ("127.0.0.1", "::1")

LOCAL_V4 = IPv4Network("172.30.250.0/24")
LOCAL_V6 = IPv6Network("fd30:250::/64")
ROUTED: tuple[IPNetwork, ...] = (ip_network("172.31.1.0/24"), ip_network("fd31:1::/64"))

# The router is the first address of the local subnet, node k the one at this offset plus k (hexadecimal for IPv6, so
# that node3 ends in 13 in both families). What is above is free for Services.
ROUTER_OFFSET = 1
NODE_OFFSET = {4: 10, 6: 0x10}

# How long a process may take from SIGTERM to its end before it is killed.
STOP_TIMEOUT_S = 5.0

STATE_DIRECTORY = Path("/run/purelb-sandbox")
PREFIX_START = "plb"


@dataclass(frozen=True, slots=True)
class Layout:
    """A cluster's plan: node names and who has which address. Raises ValueError when the nodes do not fit."""

    nodes: tuple[str, ...]
    local: tuple[IPNetwork, ...]
    routed: tuple[IPNetwork, ...]

    def __post_init__(self) -> None:
        for subnet in self.local:
            if NODE_OFFSET[subnet.version] + len(self.nodes) >= subnet.num_addresses - 1:
                raise ValueError(f"{len(self.nodes)} nodes do not fit in {subnet}")
        if {subnet.version for subnet in self.routed} - {subnet.version for subnet in self.local}:
            raise ValueError("a routed network needs a local subnet of its family for the way to the nodes")

    def router(self, subnet: IPNetwork) -> IPAddress:
        return _at(subnet, ROUTER_OFFSET)

    def address(self, node: str, subnet: IPNetwork) -> IPAddress:
        """The node's own address in a local subnet."""
        number = self.nodes.index(node) + 1
        offset = NODE_OFFSET[subnet.version] + (number if subnet.version == 4 else int(str(number), 16))
        return _at(subnet, offset)

    def addresses(self, node: str) -> list[IPAddress]:
        return [self.address(node, subnet) for subnet in self.local]


def plan(nodes: int, local: Sequence[IPNetwork], routed: Sequence[IPNetwork]) -> Layout:
    """The layout of a cluster with nodes `node1` to `nodeN`."""
    return Layout(tuple(f"node{k}" for k in range(1, nodes + 1)), tuple(local), tuple(routed))


def _at(subnet: IPNetwork, offset: int) -> IPAddress:
    return subnet.network_address + offset
