"""Default routes of the main table: which interface the node goes out by.

Asked for in messages of our own: a node has a route for each IPv6 address that it announces, and to have ten thousand
of them read by a library, only to pass over them, takes a fifth of a second.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from typing import Final

from purelb_sm.net import links, pyroute
from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.errors import KernelRefused
from purelb_sm.net.model import Family

_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
# Family, prefix lengths of destination and source, TOS, table, protocol, scope, type, flags (rtnetlink(7)).
_RTMSG = struct.Struct("=BBBBBBBBI")
_RTA_OIF, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE = 4, 6, 9, 15
_RT_TABLE_MAIN, _RTN_UNICAST = 254, 1
_NEXT_HOP: Final = struct.Struct("=HBBi")  # length, flags, weight, interface


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route of the main table, and the interface that it (or its first next hop) leaves by."""

    metric: int
    index: int


def default_routes(sock: nl.RtnlSocket, family: Family) -> list[DefaultRoute]:
    """Those that can be used, in the kernel's order: of equal ones it prefers the first."""
    number = socket.AF_INET if family == 4 else socket.AF_INET6
    # Kernels that take no notice of the table send all tables; see `rtnetlink`.
    try:
        messages = sock.dump(_RTM_GETROUTE, _RTMSG.pack(number, 0, 0, 0, _RT_TABLE_MAIN, 0, 0, 0, 0))
    except KernelRefused as refused:
        if refused.errno == errno.ENOENT:  # Nobody has ever put a route there.
            return []
        raise
    # Byte 1 is the length of the destination's prefix: most routes are looked at no further than that.
    found = [_default_route(body) for kind, _flags, body in messages if kind == _RTM_NEWROUTE and not body[1]]
    return [route for route in found if route is not None]


def default_interface(sock: nl.RtnlSocket, link_sock: pyroute.Socket, family: Family) -> str | None:
    """The outgoing interface of the default route with the lowest metric in the main table."""
    # min() keeps the first of equals, and the kernel lists the route that it prefers first.
    best = min(default_routes(sock, family), key=lambda route: route.metric, default=None)
    return None if best is None else links.name_of(link_sock, best.index)


def _default_route(body: bytes) -> DefaultRoute | None:
    table, kind = body[4], body[7]
    found = dict(nl.attributes(body, _RTMSG.size))
    if _RTA_TABLE in found:
        table = _number(found[_RTA_TABLE])
    if table != _RT_TABLE_MAIN or kind != _RTN_UNICAST:
        return None
    index = _number(found[_RTA_OIF]) if _RTA_OIF in found else 0
    if not index and len(found.get(_RTA_MULTIPATH, b"")) >= _NEXT_HOP.size:
        index = _NEXT_HOP.unpack_from(found[_RTA_MULTIPATH])[3]
    metric = _number(found[_RTA_PRIORITY]) if _RTA_PRIORITY in found else 0
    return DefaultRoute(metric, index) if index else None


def _number(value: bytes) -> int:
    return int(struct.unpack("=I", value)[0])
