"""Cables, addresses and routes inside namespaces: the typed door to what of pyroute2 only the sandbox needs.

Everything here is synchronous, quick, and to be called inside the namespace that it is about (`namespace.inside`).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from purelb_sm.net import IPAddress, IPNetwork
from purelb_sm.sandbox.cluster import namespace

_IFA_F_NODAD = 0x02


class Wiring:
    """What can be done to the links of the namespace that the calling thread is in."""

    def __init__(self, routes: Any) -> None:
        self._ip = routes

    def index(self, name: str) -> int | None:
        """The interface's index, None when there is no such interface."""
        found: list[int] = self._ip.link_lookup(ifname=name)
        return found[0] if found else None

    def add_bridge(self, name: str) -> None:
        # Without a forwarding delay a new port is heard at once; without snooping every port hears all multicast.
        self._ip.link("add", ifname=name, kind="bridge", br_forward_delay=0, br_mcast_snooping=0)
        self.set_link(name, up=True)

    def add_cable(self, name: str, bridge: str, far_namespace: str, far_name: str) -> None:
        """A cable from a new port of the bridge to a new interface in another namespace. Both ends are down."""
        descriptor = namespace.path_of(far_namespace)
        with descriptor.open() as opened:
            self._ip.link("add", ifname=name, kind="veth", peer={"ifname": far_name, "net_ns_fd": opened.fileno()})
        self._ip.link("set", index=self.index(name), master=self.index(bridge))

    def remove_link(self, name: str) -> None:
        self._ip.link("del", index=self.index(name))

    def set_link(self, name: str, *, up: bool) -> None:
        self._ip.link("set", index=self.index(name), state="up" if up else "down")

    def links(self) -> list[str]:
        """The names of all interfaces but the loopback."""
        return [link.get("ifname") for link in self._ip.get_links() if link.get("ifname") != "lo"]

    def set_address(self, interface: str, address: IPAddress, prefix_length: int) -> None:
        """The address as a machine has it from its configuration; usable at once. There already is no error."""
        extra = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
        self._ip.addr("replace", index=self.index(interface), address=str(address), prefixlen=prefix_length, **extra)

    def set_neighbour(self, interface: str, address: IPAddress, mac: str | None) -> None:
        """What is sent to the address goes to that MAC whatever its owner says; None: to whoever has it, as usual."""
        where = {"dst": str(address), "ifindex": self.index(interface), "family": _family(address.version)}
        if mac is not None:
            self._ip.neigh("replace", lladdr=mac, state="permanent", **where)
        else:
            with suppress_errno(errno.ENOENT):
                self._ip.neigh("del", **where)

    def flush_addresses(self, interface: str) -> None:
        self._ip.flush_addr(index=self.index(interface))

    def set_default_route(self, gateway: IPAddress, interface: str) -> None:
        family = _family(gateway.version)
        where = {"gateway": str(gateway), "oif": self.index(interface)}
        self._ip.route("replace", dst="default", family=family, **where)

    def set_route(self, network: IPNetwork, next_hops: Sequence[IPAddress], interface: str) -> None:
        """One route over all the next hops, each with the same weight; no next hop, no route."""
        family, index = _family(network.version), self.index(interface)
        # A replace would leave some of the old next hops in IPv6, where each is a route of its own.
        with suppress_errno(errno.ESRCH):
            self._ip.route("del", dst=str(network), family=family)
        if next_hops:
            hops = [{"gateway": str(hop), "oif": index} for hop in next_hops]
            self._ip.route("add", dst=str(network), family=family, multipath=hops)


@contextmanager
def suppress_errno(number: int) -> Iterator[None]:
    """Lets this one refusal of the kernel pass."""
    try:
        yield
    except NetlinkError as refused:
        if refused.code != number:
            raise


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


@contextmanager
def wiring() -> Iterator[Wiring]:
    """For the namespace of the calling thread."""
    with IPRoute() as routes:
        yield Wiring(routes)
