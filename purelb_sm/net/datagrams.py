"""UDP between the nodes of a link: a socket for each address of our own, and small datagrams that never leave the link.

Knows nothing of what is in them. Nothing here waits: what cannot be sent at once is lost, as on a link that is down.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection
from typing import Final, Protocol

import structlog

from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.model import IPAddress

log = structlog.get_logger(__name__)

_NETWORK_CONTROL: Final = 0xC0
"""DSCP CS6 (RFC 4594 section 3.2): what keeps a network together goes before its traffic."""
_ON_LINK: Final = 1
"""The time to live: no router passes it on, so that hearing a node means to share a link with it."""
_RECEIVE_BUFFER: Final = 1 << 18


class DatagramProtocol(Protocol):
    """What the agent sees of it: `Datagrams` is the real one, tests have one in memory."""

    def listen(self, addresses: Collection[IPAddress]) -> None:
        """Listens on exactly these addresses from now on. One that cannot be had is tried at the next call."""
        ...

    def on_readable(self, callback: Callable[[], None] | None) -> None:
        """Calls it on the running loop while something can be received; None: no more."""
        ...

    def send(self, datagram: bytes, source: IPAddress, to: IPAddress, port: int) -> bool:
        """From one of the addresses listened on. False: it did not go out."""
        ...

    def receive(self, size: int) -> bytes | None:
        """The next that has come, at most `size` bytes of it; None: nothing has."""
        ...

    def close(self) -> None: ...


class Datagrams:
    """Sockets on `port`, in the network namespace in which `open_socket` opens them."""

    def __init__(self, port: int, open_socket: nl.OpenSocket = socket.socket) -> None:
        self._port = port
        self._open_socket = open_socket
        self._sockets: dict[IPAddress, socket.socket] = {}
        self._refused: dict[IPAddress, str] = {}
        self._callback: Callable[[], None] | None = None

    def listen(self, addresses: Collection[IPAddress]) -> None:
        for address in [one for one in self._sockets if one not in addresses]:
            self._drop(address)
        self._refused = {address: why for address, why in self._refused.items() if address in addresses}
        for address in addresses:
            if address not in self._sockets:
                self._add(address)

    def on_readable(self, callback: Callable[[], None] | None) -> None:
        self._callback = callback
        for opened in self._sockets.values():
            self._watch(opened)

    def send(self, datagram: bytes, source: IPAddress, to: IPAddress, port: int) -> bool:
        opened = self._sockets.get(source)
        if opened is None:
            return False
        try:
            opened.sendto(datagram, (str(to), port))
        except OSError:
            # The link is down, the buffer full, a firewall says no: it is as if it were lost on the way.
            return False
        return True

    def receive(self, size: int) -> bytes | None:
        for opened in self._sockets.values():
            try:
                return opened.recv(size)
            except OSError:
                continue
        return None

    def close(self) -> None:
        for address in list(self._sockets):
            self._drop(address)

    def _add(self, address: IPAddress) -> None:
        try:
            opened = self._open(address)
        except OSError as error:
            if self._refused.get(address) != str(error):
                log.warning("heartbeats_not_received", address=str(address), port=self._port, error=str(error))
            self._refused[address] = str(error)
            return
        self._refused.pop(address, None)
        self._sockets[address] = opened
        self._watch(opened)

    def _open(self, address: IPAddress) -> socket.socket:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        opened = self._open_socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
        try:
            opened.setblocking(False)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            if address.version == 4:
                opened.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, _ON_LINK)
                opened.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _NETWORK_CONTROL)
            else:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, _ON_LINK)
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _NETWORK_CONTROL)
            opened.bind((str(address), self._port))
        except OSError:
            opened.close()
            raise
        return opened

    def _watch(self, opened: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if self._callback is None:
            loop.remove_reader(opened)
        else:
            loop.add_reader(opened, self._callback)

    def _drop(self, address: IPAddress) -> None:
        opened = self._sockets.pop(address)
        asyncio.get_running_loop().remove_reader(opened)
        opened.close()
