"""What somebody on the link sees: a TCP answer through an address, and who says what in ARP and Neighbor Discovery."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from purelb_sm.net import IPAddress
from purelb_sm.sandbox.cluster.proxy import OpenSocket

_ETH_P_ALL = 3
_SO_TIMESTAMPNS = 35
_ETH_ARP, _ETH_IPV6 = 0x0806, 0x86DD
_ICMPV6 = 58

Kind = Literal["arp-request", "arp-reply", "neighbor-solicitation", "neighbor-advertisement"]
_ARP_KINDS: dict[int, Kind] = {1: "arp-request", 2: "arp-reply"}
_ND_KINDS: dict[int, Kind] = {135: "neighbor-solicitation", 136: "neighbor-advertisement"}


async def fetch(open_socket: OpenSocket, address: IPAddress, port: int, timeout_s: float, path: str = "/") -> str:
    """The body of `http://ADDRESS:PORT/PATH`, over a connection of its own.

    Raises TimeoutError, OSError (refused, no route, reset), ConnectionError for an answer that is none.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    connection = open_socket(family, socket.SOCK_STREAM, 0)
    connection.setblocking(False)
    with connection:
        async with asyncio.timeout(timeout_s):
            return await _get(connection, address, port, path)


async def _get(connection: socket.socket, address: IPAddress, port: int, path: str) -> str:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (str(address), port))
    host = f"[{address}]" if address.version == 6 else str(address)
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    await loop.sock_sendall(connection, request.encode())
    answer = b""
    while data := await loop.sock_recv(connection, 1 << 16):
        answer += data
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator or b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise ConnectionError(f"no answer that HTTP knows: {answer[:80]!r}")
    return body.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Sighting:
    """One ARP or Neighbor Discovery frame. `at` is when the kernel took it, in seconds of the wall clock; `mac` is who
    sent it; `address` is what it is about (ARP: the sender's own address; ND: the target), `asked` whom it asks for."""

    at: float
    kind: Kind
    mac: str
    address: IPAddress
    asked: IPAddress
    frame: bytes

    @property
    def gratuitous(self) -> bool:
        """An announcement that nobody asked for: ARP about itself, or an NA to all nodes."""
        if self.kind == "neighbor-advertisement":
            return self.frame[:2] == b"\x33\x33"
        return self.address == self.asked


class Sniffer:
    """Collects what passes an interface, from its opening to `close`."""

    def __init__(self, open_socket: OpenSocket, interface: str) -> None:
        self.seen: list[Sighting] = []
        self._socket = open_socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setblocking(False)
        self._socket.bind((interface, _ETH_P_ALL))
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    async def wait_for(self, enough: Callable[[list[Sighting]], bool], timeout_s: float) -> list[Sighting]:
        """What was seen, as soon as it is enough. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not enough(self.seen):
                self._changed.clear()
                await self._changed.wait()
        return list(self.seen)

    def announcements(self, address: IPAddress) -> list[Sighting]:
        """The gratuitous ones for that address, so far."""
        return [one for one in self.seen if one.address == address and one.gratuitous]

    def _read(self) -> None:
        while True:
            try:
                frame, ancillary, _flags, _sender = self._socket.recvmsg(2048, 64)
            except BlockingIOError:
                break
            stamp = next((data for _level, kind, data in ancillary if kind == _SO_TIMESTAMPNS), None)
            seconds, nanoseconds = struct.unpack("=qq", stamp) if stamp else (0, 0)
            sighting = parse(frame, seconds + nanoseconds / 1e9)
            if sighting is not None:
                self.seen.append(sighting)
        self._changed.set()


def parse(frame: bytes, at: float) -> Sighting | None:
    """An ARP or Neighbor Discovery frame; None for everything else and for what is cut short."""
    kind_of_frame = int.from_bytes(frame[12:14])
    if kind_of_frame == _ETH_ARP and len(frame) >= 42:
        kind = _ARP_KINDS.get(int.from_bytes(frame[20:22]))
        sender, target = IPv4Address(frame[28:32]), IPv4Address(frame[38:42])
        return kind and Sighting(at, kind, frame[22:28].hex(":"), sender, target, frame)
    if kind_of_frame == _ETH_IPV6 and len(frame) >= 78 and frame[20] == _ICMPV6:
        kind = _ND_KINDS.get(frame[54])
        about = IPv6Address(frame[62:78])
        return kind and Sighting(at, kind, frame[6:12].hex(":"), about, about, frame)
    return None
