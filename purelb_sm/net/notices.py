"""What the kernel tells of links, addresses and routes, as it comes: a kind and a body each.

Read in messages of our own: ten thousand addresses that come are told in twenty thousand notices, since each has a
route, and a library takes more than a second of the loop to read them, only to see which interface each is about.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from typing import Final

from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.errors import from_errno
from purelb_sm.net.model import Change

Notice = tuple[int, bytes]

RTM_NEWLINK, RTM_DELLINK, RTM_NEWROUTE, RTM_DELROUTE = 16, 17, 24, 25
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, RTMGRP_IPV4_IFADDR and _ROUTE, RTMGRP_IPV6_IFADDR and _ROUTE (linux/rtnetlink.h)."""
_INDEX = struct.Struct("=4xi")  # of struct ifinfomsg and of struct ifaddrmsg
_BATCH = 256


class Notices:
    """From now on. For the running loop; `close` it.

    `receive_buffer` in bytes: what of a burst fits into it is not lost.
    """

    def __init__(self, open_socket: nl.OpenSocket, receive_buffer: int) -> None:
        self._socket = open_socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            self._socket.setblocking(False)
            nl.enlarge_receive_buffer(self._socket, receive_buffer)
            self._socket.bind((0, _GROUPS))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    async def next(self) -> list[Notice]:
        """Waits for the next ones. `KernelRefused` with ENOBUFS: some were lost; open another, then look."""
        try:
            found = _notices(await asyncio.get_running_loop().sock_recv(self._socket, nl.DATAGRAM))
            while len(found) < _BATCH:
                found += _notices(self._socket.recv(nl.DATAGRAM))
        except BlockingIOError:
            pass
        except OSError as broken:
            raise from_errno(broken.errno or errno.EBADMSG, "", f"no notices from the kernel: {broken}") from broken
        return found


def _notices(data: bytes) -> list[Notice]:
    return [(kind, body) for kind, _flags, _sequence, body in nl.split(data)]


def change_of(notice: Notice) -> Change | None:
    """What a notice means to us; None for the routes of pods and other things that are not our business."""
    kind, body = notice
    if len(body) < _INDEX.size:
        return None
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        return Change("link", _INDEX.unpack_from(body)[0])
    if kind in (nl.RTM_NEWADDR, nl.RTM_DELADDR):
        return Change("address", _INDEX.unpack_from(body)[0])
    # Byte 1 of a route is the length of its destination's prefix.
    return Change("default_route", None) if kind in (RTM_NEWROUTE, RTM_DELROUTE) and not body[1] else None
