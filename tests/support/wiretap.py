"""A port of its own on the nodes' network, with a MAC address of its own: to ask who has an address, and to hear it.

What is answered comes to this port alone, so the client's idea of who has the address stays what it was.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from purelb_sm.net import IPAddress
from purelb_sm.net import rtnetlink as nl
from purelb_sm.sandbox.cluster import Cluster, namespace
from purelb_sm.sandbox.cluster.client import Sighting, parse
from purelb_sm.sandbox.cluster.layout import BRIDGE, FABRIC
from purelb_sm.sandbox.cluster.wiring import wiring

_PORT, _EAR = "watch", "watch0"
_LINK_LOCAL = IPv6Address("fe80::7761:7463")
_ETH_P_ALL, _PACKET_OUTGOING = 3, 4
_SO_TIMESTAMPNS = 35
_BUFFER = 8 << 20


class Wire:
    """The port, and the socket behind it."""

    def __init__(self, cluster: Cluster) -> None:
        self._fabric = cluster.namespace_of(FABRIC)
        self._mac = namespace.inside(self._fabric, self._plug_in)
        local = {subnet.version: subnet for subnet in cluster.layout.local}
        # Next to the router, where nobody is: who is asked answers there, and learns nothing wrong of anybody.
        self._v4 = local[4].network_address + 2 if 4 in local else None
        self.socket = cluster.open_socket(FABRIC)(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        nl.enlarge_receive_buffer(self.socket, _BUFFER)
        self.socket.setblocking(False)
        self.socket.bind((_EAR, _ETH_P_ALL))

    def _plug_in(self) -> bytes:
        with wiring() as cables:
            cables.add_cable(_PORT, BRIDGE, self._fabric, _EAR)
            cables.set_address(_EAR, _LINK_LOCAL, 64)
            cables.set_link(_EAR, up=True)
            cables.set_link(_PORT, up=True)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as probe:
            probe.bind((_EAR, 0))
            mac: bytes = probe.getsockname()[4]
            return mac

    def close(self) -> None:
        self.socket.close()
        with contextlib.suppress(OSError):
            namespace.inside(self._fabric, _unplug)

    def ask(self, address: IPAddress) -> None:
        frame = arp_question(self._mac, self._v4, address) if address.version == 4 else nd_question(self._mac, address)
        with contextlib.suppress(OSError):  # A full queue: the next question is a tenth of a second away.
            self.socket.send(frame)

    def heard(self) -> Iterator[tuple[Sighting, bool]]:
        """What came, and whether it came to us alone."""
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, ancillary, _flags, sender = self.socket.recvmsg(2048, 64)
                stamp = next((data for _level, kind, data in ancillary if kind == _SO_TIMESTAMPNS), bytes(16))
                seconds, nanoseconds = struct.unpack("=qq", stamp)
                sighting = parse(frame, seconds + nanoseconds / 1e9)
                if sighting is not None and sender[2] != _PACKET_OUTGOING:
                    yield sighting, frame[:6] == self._mac


def _unplug() -> None:
    with wiring() as cables:
        if cables.index(_PORT) is not None:
            cables.remove_link(_PORT)


def arp_question(mac: bytes, sender: IPAddress | None, address: IPAddress) -> bytes:
    """An ARP request with a sender's address: one without would be a probe, and disturb who probes, too (RFC 5227)."""
    source = (sender or IPv4Address(0)).packed
    body = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, source, bytes(6), address.packed)
    return b"\xff" * 6 + mac + b"\x08\x06" + body


def nd_question(mac: bytes, address: IPAddress) -> bytes:
    """A Neighbor Solicitation with our link-layer address in it (RFC 4861, 4.3)."""
    low = address.packed[-3:]
    group = ip_address(b"\xff\x02" + bytes(9) + b"\x01\xff" + low)
    options = b"\x01\x01" + mac
    message = struct.pack("!BBHI16s", 135, 0, 0, 0, address.packed) + options
    pseudo = _LINK_LOCAL.packed + group.packed + struct.pack("!II", len(message), 58)
    message = message[:2] + struct.pack("!H", _checksum(pseudo + message)) + message[4:]
    header = struct.pack("!IHBB16s16s", 6 << 28, len(message), 58, 255, _LINK_LOCAL.packed, group.packed)
    return b"\x33\x33\xff" + low + mac + b"\x86\xdd" + header + message


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
