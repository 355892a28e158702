"""Interfaces: what there is, which one the default route uses, and the interface for remote addresses."""

from __future__ import annotations

import errno
import fcntl
import re
import socket
import struct
from collections.abc import Iterable

from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.errors import InterfaceMissing, InterfaceUnsuitable, from_errno
from purelb_sm.net.model import Family, Interface

_IFINFO = struct.Struct("=BxHiII")  # family, device type, index, flags, change mask
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_AF_SPEC, _IFLA_EXT_MASK = 1, 3, 10, 18, 26, 29
_IFLA_INFO_KIND = 1
_RTEXT_FILTER_SKIP_STATS = 8
_ARPHRD_ETHER = 1

_IFLA_INET_CONF, _PROMOTE_SECONDARIES = 1, 20
_NLA_F_NESTED = 0x8000

_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_RTA_OIF, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE = 4, 6, 9, 15
_RT_TABLE_MAIN, _RTN_UNICAST = 254, 1
_RTNH = struct.Struct("=HBBi")

_SIOCGIFNAME, _SIOCGIFINDEX = 0x8910, 0x8933

# A dummy link is meant for this; a bridge without ports behaves alike and is there on kernels built without dummies.
DUMMY_KINDS = ("dummy", "bridge")


def interfaces(sock: nl.RtnlSocket) -> list[Interface]:
    """All interfaces, in index order."""
    ask = _IFINFO.pack(0, 0, 0, 0, 0) + nl.attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
    messages = sock.dump(nl.RTM_GETLINK, ask)
    found = (_interface(body) for kind, _flags, body in messages if kind == nl.RTM_NEWLINK)
    return sorted(found, key=lambda one: one.index)


def _interface(body: bytes) -> Interface:
    _family, device, index, flags, _change = _IFINFO.unpack_from(body)
    name, mac, kind, master = "", None, None, None
    for attribute, value in nl.attributes(body, _IFINFO.size):
        if attribute == _IFLA_IFNAME:
            name = _text(value)
        elif attribute == _IFLA_ADDRESS and device == _ARPHRD_ETHER:
            mac = value
        elif attribute == _IFLA_LINKINFO:
            kind = next((_text(v) for k, v in nl.attributes(value, 0) if k == _IFLA_INFO_KIND), None)
        elif attribute == _IFLA_MASTER:
            master = struct.unpack("=I", value)[0]
    return Interface(index, name, mac, bool(flags & _IFF_UP), bool(flags & _IFF_LOWER_UP), kind, master)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="surrogateescape")


def matching(candidates: Iterable[Interface], pattern: re.Pattern[str]) -> list[Interface]:
    """The interfaces whose name the pattern finds (anywhere in the name, as PureLB's `localInterface`), without
    those that have no Ethernet address, as the loopback."""
    return [one for one in candidates if one.mac is not None and pattern.search(one.name)]


def default_interface_index(sock: nl.RtnlSocket, family: Family) -> int | None:
    """The outgoing interface of the default route with the lowest metric in the main table."""
    version = socket.AF_INET if family == 4 else socket.AF_INET6
    messages = sock.dump(nl.RTM_GETROUTE, _RTMSG.pack(version, 0, 0, 0, 0, 0, 0, 0, 0))
    found = (_default_route(body) for kind, _flags, body in messages if kind == nl.RTM_NEWROUTE)
    # min() keeps the first of equals, and the kernel lists the route that it prefers first.
    best = min((route for route in found if route is not None), key=lambda route: route[0], default=None)
    return None if best is None else best[1]


def is_default_route(body: bytes) -> bool:
    """Whether a route message speaks of a default route; cheap, for it sees every route change on a busy node."""
    return bool(body[1] == 0)


def _default_route(body: bytes) -> tuple[int, int] | None:
    """(metric, interface index), when this is a usable default route of the main table."""
    _family, dst_len, _src, _tos, table, _protocol, _scope, kind, _flags = _RTMSG.unpack_from(body)
    if dst_len != 0 or kind != _RTN_UNICAST:
        return None
    metric, index = 0, None
    for attribute, value in nl.attributes(body, _RTMSG.size):
        if attribute == _RTA_TABLE:
            table = struct.unpack("=I", value)[0]
        elif attribute == _RTA_PRIORITY:
            metric = struct.unpack("=I", value)[0]
        elif attribute == _RTA_OIF:
            index = struct.unpack("=I", value)[0]
        elif attribute == _RTA_MULTIPATH and index is None:
            index = _RTNH.unpack_from(value)[3]
    return (metric, index) if table == _RT_TABLE_MAIN and index is not None else None


def ensure_dummy(sock: nl.RtnlSocket, name: str) -> str:
    """Makes the interface for remote addresses if it is missing, sets it up, and returns its kind.

    Raises `InterfaceUnsuitable` when the name belongs to a link of another kind.
    """
    link = _find(sock, name) or _create(sock, name)
    if link.kind not in DUMMY_KINDS:
        raise InterfaceUnsuitable(name, f"is of kind {link.kind or 'device'}, not {' or '.join(DUMMY_KINDS)}")
    if any(other.master == link.index for other in interfaces(sock)):
        raise InterfaceUnsuitable(name, "is a bridge that has ports")
    promote_secondaries(sock, link.index, True)
    if not link.up:
        set_up(sock, link.index)
    return link.kind


def set_up(sock: nl.RtnlSocket, index: int) -> None:
    """`ip link set up`."""
    _demand(sock, f"#{index}", nl.request(nl.RTM_NEWLINK, 0, _IFINFO.pack(0, 0, index, _IFF_UP, _IFF_UP)))


def _find(sock: nl.RtnlSocket, name: str) -> Interface | None:
    return next((one for one in interfaces(sock) if one.name == name), None)


def _create(sock: nl.RtnlSocket, name: str) -> Interface:
    if not 0 < len(name.encode()) < 16:
        raise InterfaceUnsuitable(name, "has a name that the kernel does not take (1 to 15 bytes)")
    for kind in DUMMY_KINDS:
        body = _IFINFO.pack(0, 0, 0, 0, 0) + nl.attribute(_IFLA_IFNAME, name.encode() + b"\0")
        body += nl.attribute(_IFLA_LINKINFO, nl.attribute(_IFLA_INFO_KIND, kind.encode()))
        answer = sock.transact([nl.request(nl.RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body)])[0]
        if answer.errno == errno.EOPNOTSUPP:
            continue
        if answer.errno not in (0, errno.EEXIST):
            raise from_errno(answer.errno, name, answer.detail)
        made = _find(sock, name)
        if made is None:
            raise InterfaceMissing(name)
        return made
    raise InterfaceUnsuitable(name, f"cannot be made: the kernel has none of the kinds {', '.join(DUMMY_KINDS)}")


def promote_secondaries(sock: nl.RtnlSocket, index: int, on: bool) -> None:
    """Whether the next IPv4 address of a subnet takes over when its first is removed.

    Off (the kernel's default) the kernel removes all the others of that subnet too: see `net.addresses`. Set over
    netlink, since /proc/sys is read-only in most containers.
    """
    value = nl.attribute(_PROMOTE_SECONDARIES, struct.pack("=I", int(on)))
    inet = nl.attribute(_IFLA_INET_CONF | _NLA_F_NESTED, value)
    spec = nl.attribute(_IFLA_AF_SPEC | _NLA_F_NESTED, nl.attribute(socket.AF_INET | _NLA_F_NESTED, inet))
    _demand(sock, f"#{index}", nl.request(nl.RTM_NEWLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + spec))


def promotes_secondaries(sock: nl.RtnlSocket, index: int) -> bool:
    """The present setting of that interface alone (the namespace-wide one is ored to it by the kernel)."""
    ask = _IFINFO.pack(0, 0, 0, 0, 0) + nl.attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
    for _kind, _flags, body in sock.dump(nl.RTM_GETLINK, ask):
        if _IFINFO.unpack_from(body)[2] == index:
            return _inet_setting(body, _PROMOTE_SECONDARIES)
    return False


def _inet_setting(body: bytes, number: int) -> bool:
    """One of the interface's IPv4 settings: an array of 32-bit numbers, of which the first has number 1."""
    for kind, spec in nl.attributes(body, _IFINFO.size):
        if kind != _IFLA_AF_SPEC:
            continue
        for family, settings in nl.attributes(spec, 0):
            values = dict(nl.attributes(settings, 0)).get(_IFLA_INET_CONF, b"") if family == socket.AF_INET else b""
            if len(values) >= 4 * number:
                return bool(struct.unpack_from("=I", values, 4 * (number - 1))[0])
    return False


def _demand(sock: nl.RtnlSocket, interface: str, one: nl.Request) -> None:
    answer = sock.transact([one])[0]
    if answer.errno:
        raise from_errno(answer.errno, interface, answer.detail)


def name_of(sock: nl.RtnlSocket, index: int) -> str | None:
    """The name of the interface with that index, in the namespace of the socket; None when it is gone."""
    try:
        answer = fcntl.ioctl(sock.socket, _SIOCGIFNAME, struct.pack("16si20x", b"", index))
    except OSError:
        return None
    return _text(answer[:16].split(b"\0", 1)[0])


def index_of(sock: nl.RtnlSocket, name: str) -> int | None:
    """The index of the interface with that name, in the namespace of the socket; None when there is none."""
    if len(name.encode()) > 15:
        return None
    try:
        answer = fcntl.ioctl(sock.socket, _SIOCGIFINDEX, struct.pack("16s24x", name.encode()))
    except OSError:
        return None
    return int(struct.unpack_from("=i", answer, 16)[0])
