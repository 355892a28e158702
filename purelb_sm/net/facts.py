"""What a node is connected to: the subnets of its interfaces.

A subnet comes from an address on the interface that is not ours. Not taken: our own addresses (a node must not believe
that it is in a subnet because it answers for a Service there), link-local IPv6, loopback, addresses that are deprecated
or that duplicate detection refused, and /32 and /128 addresses, which name a host and no subnet. So an interface that
has only a /128 from DHCPv6 has no IPv6 subnet here, although a router may have announced an on-link prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from ipaddress import ip_network

from purelb_sm.net import links, pyroute, rows
from purelb_sm.net.model import Home, IPNetwork
from purelb_sm.net.ownership import Ownership

_UNUSABLE = rows.IFA_F_DEPRECATED | rows.IFA_F_DADFAILED


def homes(
    on: Callable[[int], Iterable[rows.Entry]],
    link_sock: pyroute.Socket,
    ownership: Ownership,
    interfaces: Collection[str],
) -> dict[str, tuple[Home, ...]]:
    """The subnets of each named interface, IPv4 first, in numeric order. See above for which addresses count. `on`
    tells what is on the interface with an index."""
    found: dict[str, list[Home]] = {name: [] for name in interfaces}
    for name in interfaces:
        index = links.index_of(link_sock, name)
        for entry in () if index is None else on(index):
            if ownership.is_mine((name, entry.address, entry.prefix_length), entry.protocol):
                continue
            subnet = subnet_of(entry)
            if subnet is not None:
                found[name].append(Home(subnet, entry.address if entry.address in subnet else None))
    return {name: in_order(homes) for name, homes in found.items()}


def subnet_of(entry: rows.Entry) -> IPNetwork | None:
    """The subnet that this address puts its interface in, or None."""
    address = entry.address
    host_only = entry.prefix_length == address.max_prefixlen
    link_local_v6 = address.version == 6 and address.is_link_local
    if host_only or link_local_v6 or address.is_loopback or entry.flags & _UNUSABLE:
        return None
    return ip_network((entry.peer, entry.prefix_length), strict=False)


def in_order(homes: Iterable[Home]) -> tuple[Home, ...]:
    """Each subnet once, with the lowest of the addresses in it: IPv4 before IPv6, then by number."""
    first: dict[IPNetwork, Home] = {}
    for home in sorted(homes, key=lambda home: int(home.address or -1)):
        first.setdefault(home.subnet, home)
    return tuple(sorted(first.values(), key=_place))


def _place(home: Home) -> tuple[int, int, int]:
    return home.subnet.version, int(home.subnet.network_address), home.subnet.prefixlen
