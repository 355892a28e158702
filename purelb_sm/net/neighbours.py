"""Telling the neighbours on a link who answers for an address: gratuitous ARP and unsolicited Neighbor Advertisement;
and asking them whether anybody does: ARP probe and Neighbor Solicitation for duplicates.

Sources: RFC 5227 section 3 (ARP announcement: a request), RFC 5944 section 4.6 (both request and reply serve; some
stacks learn from the one only, some from the other, so both are sent), RFC 4861 section 7.2.6 (unsolicited NA to all
nodes, override set, solicited clear); RFC 5227 section 1.1 (ARP probe: the sender's address is all zero), RFC 4862
section 5.4.2 (the solicitation's source is unspecified): neither changes anybody's cache.

What they answer is heard in `net.conflicts`. Their questions (ARP requests, Neighbor Solicitations) are answered by the
kernel, which does so for IPv6 only if the address is on the interface that was asked; a local address is put there.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import structlog

from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.errors import InterfaceMissing, InterfaceUnsuitable, NotPermitted, from_errno
from purelb_sm.net.model import IPAddress

log = structlog.get_logger(__name__)

_BROADCAST = b"\xff" * 6
_ALL_NODES = IPv6Address("ff02::1").packed
_ETH_ARP, _ETH_IPV6 = b"\x08\x06", b"\x86\xdd"
_UNSPECIFIED, _SOLICITED_NODE = bytes(16), IPv6Address("ff02::1:ff00:0").packed[:13]
_ICMPV6, _NEIGHBOR_SOLICITATION, _NEIGHBOR_ADVERTISEMENT, _TARGET_LINK_ADDRESS = 58, 135, 136, 2
_OVERRIDE = 0x20000000

ARP_REQUEST, ARP_REPLY = 1, 2

_SIOCGIFHWADDR = 0x8927
_ARPHRD_ETHER = 1

# The link is down or just went: this time nobody hears us, the next time they may.
_NOBODY_HEARS = (errno.ENETDOWN, errno.ENOBUFS, errno.EAGAIN, errno.ENETUNREACH)


def gratuitous_arp(mac: bytes, address: IPv4Address, operation: int) -> bytes:
    """An Ethernet frame that says `address` is at `mac`, as a request or as a reply."""
    target = _BROADCAST if operation == ARP_REPLY else bytes(6)
    packed = address.packed
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + packed + target + packed
    return _BROADCAST + mac + _ETH_ARP + arp


def arp_probe(mac: bytes, address: IPv4Address) -> bytes:
    """An Ethernet frame that asks whether anybody uses `address`."""
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, ARP_REQUEST) + mac + bytes(4) + bytes(6) + address.packed
    return _BROADCAST + mac + _ETH_ARP + arp


def unsolicited_na(mac: bytes, address: IPv6Address) -> bytes:
    """An Ethernet frame to all nodes of the link that says `address` is at `mac`."""
    head = struct.pack("!BBHI", _NEIGHBOR_ADVERTISEMENT, 0, 0, _OVERRIDE)
    message = head + address.packed + bytes([_TARGET_LINK_ADDRESS, 1]) + mac
    return _icmpv6(mac, address.packed, _ALL_NODES, message)


def duplicate_solicitation(mac: bytes, address: IPv6Address) -> bytes:
    """An Ethernet frame that asks whether anybody uses `address`."""
    message = struct.pack("!BBHI", _NEIGHBOR_SOLICITATION, 0, 0, 0) + address.packed
    return _icmpv6(mac, _UNSPECIFIED, _SOLICITED_NODE + address.packed[13:], message)


def _icmpv6(mac: bytes, source: bytes, group: bytes, message: bytes) -> bytes:
    """The frame that takes an ICMPv6 message, with no checksum in it yet, to a multicast group of the link."""
    pseudo = source + group + struct.pack("!IBBBB", len(message), 0, 0, 0, _ICMPV6)
    message = message[:2] + struct.pack("!H", _checksum(pseudo + message)) + message[4:]
    ip = struct.pack("!IHBB", 6 << 28, len(message), _ICMPV6, 255) + source + group
    return b"\x33\x33" + group[-4:] + mac + _ETH_IPV6 + ip + message


def _checksum(data: bytes) -> int:
    """The Internet checksum, RFC 1071. Every message here has an even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def frames(mac: bytes, address: IPAddress) -> list[bytes]:
    """What one announcement of the address consists of."""
    if isinstance(address, IPv4Address):
        return [gratuitous_arp(mac, address, operation) for operation in (ARP_REQUEST, ARP_REPLY)]
    return [unsolicited_na(mac, address)]


def question(mac: bytes, address: IPAddress) -> list[bytes]:
    """What one probe for the address consists of."""
    if isinstance(address, IPv4Address):
        return [arp_probe(mac, address)]
    return [duplicate_solicitation(mac, address)]


class FrameSender:
    """Sends frames from any interface of one network namespace, over one packet socket that never receives."""

    def __init__(self, open_socket: nl.OpenSocket = socket.socket) -> None:
        try:
            self._socket = open_socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except PermissionError as refused:
            raise NotPermitted("packet sockets need CAP_NET_RAW") from refused
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def send(self, address: IPAddress, ifname: str) -> bool:
        """Announces once. The MAC is read anew each time: it may have changed. False: the link is down.

        Raises `InterfaceMissing`, `InterfaceUnsuitable` for a link that is no Ethernet, or `KernelRefused`.
        """
        return self._send(frames, address, ifname)

    def ask(self, address: IPAddress, ifname: str) -> bool:
        """Probes once; the rest as `send`."""
        return self._send(question, address, ifname)

    def _send(self, build: Callable[[bytes, IPAddress], list[bytes]], address: IPAddress, ifname: str) -> bool:
        try:
            mac = mac_of(self._socket, ifname)
            for frame in build(mac, address):
                self._socket.sendto(frame, (ifname, 0))
        except OSError as failed:
            if failed.errno in (errno.ENODEV, errno.ENXIO):
                raise InterfaceMissing(ifname) from failed
            if failed.errno in _NOBODY_HEARS:
                return False
            raise from_errno(failed.errno or 0, ifname) from failed
        return True


def mac_of(opened: socket.socket, ifname: str) -> bytes:
    """The MAC of an interface in the socket's network namespace.

    Raises `InterfaceMissing`, `InterfaceUnsuitable` for a link that is no Ethernet, or OSError.
    """
    # A longer name would be cut by the kernel, perhaps to that of another interface.
    if len(ifname.encode()) > 15:
        raise InterfaceMissing(ifname)
    answer = fcntl.ioctl(opened, _SIOCGIFHWADDR, struct.pack("16s24x", ifname.encode()))
    if struct.unpack_from("=H", answer, 16)[0] != _ARPHRD_ETHER:
        raise InterfaceUnsuitable(ifname, "is no Ethernet: its neighbours have no MAC table to correct")
    return answer[18:24]


async def announce(
    send: Callable[[IPAddress, str], bool],
    address: IPAddress,
    ifname: str,
    *,
    initial_delay_s: float,
    count: int,
    interval_s: float,
    still_ours: Callable[[], bool],
) -> int:
    """Calls `send` up to `count` times, `interval_s` apart, as long as the address is ours; see `KernelProtocol`."""
    sent = 0
    for turn in range(count):
        await asyncio.sleep(interval_s if turn else initial_delay_s)
        # Another node may have taken the address while we slept; announcing it then would draw its traffic here.
        if not still_ours():
            log.info("announcing stopped, no longer ours", address=str(address), interface=ifname, sent=sent)
            break
        if send(address, ifname):
            sent += 1
        else:
            log.warning("announcement not sent, link down", address=str(address), interface=ifname)
    return sent
