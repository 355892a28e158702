"""Hearing who else on a link uses an address: RFC 5227 sections 2.1.1 and 2.4 for IPv4, RFC 4862 section 5.4 for IPv6.

One packet socket for each interface and family, there only while something is listened for. A filter in the kernel
lets through what speaks of addresses in the smallest block around those that are, so that the talk of a busy link costs
nothing here. Whether a station is a foreign one is not known here.

Not joined are the multicast groups of IPv6 addresses that the node does not have: that a station of the same link asks
for the same new address in the same moment is heard only where switch and card let it through. Its kernel hears us
announce the address, then. Who has the address already answers to all nodes, and is always heard.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import socket
import struct
from array import array
from collections.abc import Callable, Collection
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final, NamedTuple

import structlog

from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.errors import InterfaceMissing, from_errno
from purelb_sm.net.model import IPAddress, IPNetwork, Sighting
from purelb_sm.net.neighbours import mac_of

log = structlog.get_logger(__name__)

_ETH_P: Final = {4: 0x0806, 6: 0x86DD}
_ARP_HEAD = struct.pack("!HHHBB", 0x0806, 1, 0x0800, 6, 4)
_ARP_REQUEST, _SOLICITATION, _ADVERTISEMENT, _TARGET_LINK_ADDRESS = 1, 135, 136, 2
_SO_ATTACH_FILTER, _SIOCGIFINDEX = 26, 0x8933
_PACKET_OTHERHOST = 3
_SNAPSHOT = 256
"""Bytes of a frame that are looked at: more than ARP and the start of a Neighbor Discovery message have."""
_BURST = 256
"""Frames read in one go: others need the loop, too."""


class Heard(NamedTuple):
    """What a frame says: see `Sighting`."""

    address: IPAddress
    mac: bytes
    asks: bool


def heard(frame: bytes) -> Heard | None:
    """What an Ethernet frame says of an address; None if nothing, or if it is cut short."""
    if frame[12:20] == _ARP_HEAD and len(frame) >= 42:
        return _heard_arp(frame)
    if int.from_bytes(frame[12:14]) == _ETH_P[6] and len(frame) >= 78 and frame[20:22] == b"\x3a\xff":
        return _heard_discovery(frame)
    return None


def _heard_arp(frame: bytes) -> Heard | None:
    operation, mac = int.from_bytes(frame[20:22]), frame[22:28]
    if any(frame[28:32]):
        # Whatever it is about: the sender says that it has this address.
        return Heard(IPv4Address(frame[28:32]), mac, asks=False)
    return Heard(IPv4Address(frame[38:42]), mac, asks=True) if operation == _ARP_REQUEST else None


def _heard_discovery(frame: bytes) -> Heard | None:
    about = IPv6Address(frame[62:78])
    if frame[54] == _ADVERTISEMENT:
        told = len(frame) >= 86 and frame[78:80] == bytes((_TARGET_LINK_ADDRESS, 1))
        return Heard(about, frame[80:86] if told else frame[6:12], asks=False)
    # Asked with a source it is from somebody who wants to talk to the address.
    return Heard(about, frame[6:12], asks=True) if frame[54] == _SOLICITATION and not any(frame[22:38]) else None


# Filters: classic BPF, see the kernel's documentation networking/filter.

_LOAD_BYTE, _LOAD_WORD, _AND, _EQUAL, _RETURN = 0x30, 0x20, 0x54, 0x15, 0x06
_DROP = -1
_Step = tuple[int, int, int, int]
"""Code, jumps when true and when false (`_DROP`: to the end), operand."""


def _must_equal(value: int) -> _Step:
    return (_EQUAL, 0, _DROP, value)


def _must_be_in(block: IPNetwork, offset: int | None) -> list[_Step]:
    """The address at this offset of the frame is in the block; None: it is one word, and that is loaded already."""
    steps: list[_Step] = []
    network, mask = block.network_address.packed, block.netmask.packed
    for start in range(0, len(mask), 4):
        bits = int.from_bytes(mask[start : start + 4])
        if bits:
            steps += [] if offset is None else [(_LOAD_WORD, 0, 0, offset + start)]
            steps += [(_AND, 0, 0, bits), _must_equal(int.from_bytes(network[start : start + 4]))]
    return steps


def program(block: IPNetwork) -> list[_Step]:
    """Lets through what `heard` finds an address of the block in, of frames of its family."""
    steps: list[_Step]
    if block.version == 4:
        # A sender without an address speaks of the one it asks for.
        steps = [(_LOAD_WORD, 0, 0, 28), (_EQUAL, 0, 1, 0), (_LOAD_WORD, 0, 0, 38), *_must_be_in(block, None)]
    else:
        without_source = [step for word in range(22, 38, 4) for step in ((_LOAD_WORD, 0, 0, word), _must_equal(0))]
        steps = [(_LOAD_BYTE, 0, 0, 20), _must_equal(58), (_LOAD_BYTE, 0, 0, 21), _must_equal(255)]
        steps += [(_LOAD_BYTE, 0, 0, 54), (_EQUAL, len(without_source) + 1, 0, _ADVERTISEMENT)]
        steps += [_must_equal(_SOLICITATION), *without_source, *_must_be_in(block, 62)]
    steps += [(_RETURN, 0, 0, _SNAPSHOT), (_RETURN, 0, 0, 0)]
    end = len(steps) - 1
    return [(code, yes, end - at - 1 if no == _DROP else no, k) for at, (code, yes, no, k) in enumerate(steps)]


def _attach(opened: socket.socket, steps: list[_Step]) -> None:
    code = array("B", b"".join(struct.pack("=HBBI", *step) for step in steps))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(steps), code.buffer_info()[0]))


# Listening.


class _Ear:
    """Listens on one interface for addresses of one family. `index`: that of the interface it was opened on."""

    def __init__(
        self, open_socket: nl.OpenSocket, interface: str, version: int, tell: Callable[[Sighting], None]
    ) -> None:
        self.addresses: set[IPAddress] = set()
        self._interface = interface
        self._version = version
        self._tell = tell
        self._block: IPNetwork | None = None
        # Bound to nothing, it hears nothing.
        self._socket = open_socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            self._socket.setblocking(False)
            mac_of(self._socket, interface)
            self.index = self.index_now()
        except BaseException:
            self._socket.close()
            raise

    def index_now(self) -> int:
        """The index of the interface that has the name now; 0 without one."""
        with suppress(OSError):
            answer = fcntl.ioctl(self._socket, _SIOCGIFINDEX, struct.pack("16s24x", self._interface.encode()))
            return int(struct.unpack_from("=i", answer, 16)[0])
        return 0

    def add(self, addresses: Collection[IPAddress]) -> None:
        """The filter comes before the socket is bound, so that nothing else is ever waiting in it."""
        block = self._block
        for address in addresses:
            block = around(block, address)
        if block is not None and block != self._block:
            _attach(self._socket, program(block))
            if self._block is None:
                self._socket.bind((self._interface, _ETH_P[self._version]))
                asyncio.get_running_loop().add_reader(self._socket, self._read)
            self._block = block
        self.addresses.update(addresses)

    def close(self) -> None:
        if self._block is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        for _ in range(_BURST):
            try:
                frame, sender = self._socket.recvfrom(_SNAPSHOT)
            except BlockingIOError:
                return
            except OSError as failed:
                # Down: it goes on by itself when the link is up again. Gone: the next `listen` opens another.
                if failed.errno not in (errno.ENETDOWN, errno.ENODEV, errno.ENXIO):
                    log.warning("link_not_heard", interface=self._interface, error=str(failed))
                return
            found = heard(frame)
            if found is not None and found.address in self.addresses and sender[2] < _PACKET_OTHERHOST:
                self._tell(Sighting(found.address, self._interface, found.mac, found.asks))


def around(block: IPNetwork | None, address: IPAddress) -> IPNetwork:
    """The smallest block with all of `block` and the address in it."""
    if block is None:
        return ip_network(address)
    if address in block:
        return block
    differing = int(block.network_address) ^ int(address)
    length = min(block.prefixlen, block.max_prefixlen - differing.bit_length())
    return ip_network((address, length), strict=False)


class Ears:
    """All that is listened for in one network namespace. `tell` gets each sighting, on the running loop.

    Blocks only ever grow while an address in them is listened for: a wider filter does no harm.
    """

    def __init__(self, open_socket: nl.OpenSocket, tell: Callable[[Sighting], None]) -> None:
        self._open_socket = open_socket
        self._tell = tell
        self._ears: dict[tuple[str, int], _Ear] = {}

    def __len__(self) -> int:
        return len(self._ears)

    def listen(self, addresses: Collection[IPAddress], interface: str) -> None:
        """See `KernelProtocol.listen`."""
        for version in (4, 6):
            wanted = [address for address in addresses if address.version == version]
            ear = self._ears.get((interface, version))
            if ear is not None or wanted:
                self._listen(ear, wanted, interface, version)

    def _listen(self, ear: _Ear | None, wanted: Collection[IPAddress], interface: str, version: int) -> None:
        try:
            if ear is not None and ear.index_now() == ear.index:
                ear.add(wanted)
                return
            fresh = _Ear(self._open_socket, interface, version, self._tell)
            try:
                fresh.add(wanted if ear is None else {*ear.addresses, *wanted})
            except BaseException:
                fresh.close()
                raise
        except OSError as failed:
            if failed.errno in (errno.ENODEV, errno.ENXIO):
                raise InterfaceMissing(interface) from failed
            raise from_errno(failed.errno or 0, interface) from failed
        if ear is not None:
            ear.close()
        self._ears[interface, version] = fresh

    def stop_listening(self, addresses: Collection[IPAddress], interface: str) -> None:
        """See `KernelProtocol.stop_listening`."""
        for version in (4, 6):
            ear = self._ears.get((interface, version))
            if ear is not None:
                ear.addresses.difference_update(addresses)
                if not ear.addresses:
                    self._ears.pop((interface, version)).close()

    def close(self) -> None:
        while self._ears:
            self._ears.popitem()[1].close()
