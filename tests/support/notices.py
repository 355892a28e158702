"""What a node's kernel tells of its links and addresses, and all that it has of them, from outside the node."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import closing

from purelb_sm.net import IPAddress
from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.rows import Entry, entry_of

RTM_NEWLINK, RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
IFLA_ADDRESS, IFLA_IFNAME = 1, 3
IFINFO = struct.Struct("=BxHiII")
_GROUPS = 0x1 | 0x10 | 0x100  # links, IPv4 addresses, IPv6 addresses
_BUFFER = 8 << 20


class Kernel:
    """One namespace: its notices, and its tables."""

    def __init__(self, open_socket: nl.OpenSocket) -> None:
        self._open_socket = open_socket
        self.table: dict[tuple[int, IPAddress], Entry] = {}
        self.names: dict[int, str] = {}
        self.notices = open_socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        nl.enlarge_receive_buffer(self.notices, _BUFFER)
        self.notices.setblocking(False)
        self.notices.bind((0, _GROUPS))

    def close(self) -> None:
        self.notices.close()

    def read(self) -> Iterator[tuple[int, bytes]]:
        """The notices that wait. Raises OSError with ENOBUFS where some were lost."""
        with contextlib.suppress(BlockingIOError):
            while True:
                for kind, _flags, _sequence, body in nl.split(self.notices.recv(1 << 17)):
                    yield kind, body

    def drop(self) -> None:
        """Lets go of all notices that wait."""
        while True:
            try:
                self.notices.recv(1 << 17)
            except BlockingIOError:
                return
            except OSError as lost:
                if lost.errno != errno.ENOBUFS:
                    raise

    def dump(self) -> tuple[list[bytes], list[Entry]]:
        """All links, all addresses."""
        with closing(nl.RtnlSocket(self._open_socket)) as sock:
            links = sock.dump(_RTM_GETLINK, IFINFO.pack(0, 0, 0, 0, 0))
            addresses = sock.dump(nl.RTM_GETADDR, struct.pack("=BBBBI", 0, 0, 0, 0, 0))
        entries = [entry_of(body) for kind, _flags, body in addresses if kind == nl.RTM_NEWADDR]
        return [body for kind, _flags, body in links if kind == RTM_NEWLINK], [e for e in entries if e is not None]
