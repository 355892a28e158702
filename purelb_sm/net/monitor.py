"""Notices from the kernel that something changed: links, addresses, default routes.

A notice says only where to look. What is merged, dropped or overtaken by the next change therefore does no harm, as
long as the last change of a kind is told after it happened, and lost notices are told as `resync`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct

import structlog

from purelb_sm.net import links
from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.model import Change

log = structlog.get_logger(__name__)

_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
_RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x100, 0x400
_GROUPS = _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_ROUTE

# Room for the notices of about 8,000 addresses; a burst that is larger is told as one `resync`.
_RECEIVE_BUFFER = 8 << 20
# Datagrams read before the loop gets its turn again.
_READS_PER_TURN = 64
RESYNC = Change("resync", None)


class PendingChanges:
    """What was told and not yet taken, in order of arrival; equal changes are merged. Begins with `resync`."""

    def __init__(self) -> None:
        self._waiting: dict[Change, None] = {RESYNC: None}
        self._ready = asyncio.Event()
        self._ready.set()

    def tell(self, change: Change) -> None:
        self._waiting[change] = None
        self._ready.set()

    async def take(self) -> Change:
        """The oldest; waits for one."""
        await self._ready.wait()
        change = next(iter(self._waiting))
        del self._waiting[change]
        if not self._waiting:
            self._ready.clear()
        return change


class Monitor:
    """One subscriber to the notices of one network namespace. Call `close` when done."""

    def __init__(self, open_socket: nl.OpenSocket = socket.socket) -> None:
        self._pending = PendingChanges()
        self._socket = open_socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        nl.enlarge_receive_buffer(self._socket, _RECEIVE_BUFFER)
        self._socket.bind((0, _GROUPS))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    async def next_change(self) -> Change:
        """The next change since the monitor was opened."""
        return await self._pending.take()

    def _read(self) -> None:
        for _ in range(_READS_PER_TURN):
            try:
                data = self._socket.recv(1 << 17)
            except BlockingIOError:
                return
            except OSError as failed:
                if failed.errno != errno.ENOBUFS:
                    raise
                log.warning("kernel notices lost, looking at everything again")
                self._pending.tell(RESYNC)
                continue
            for kind, _flags, _sequence, body in nl.split(data):
                change = change_of(kind, body)
                if change is not None:
                    self._pending.tell(change)


def change_of(kind: int, body: bytes) -> Change | None:
    """What a notice means to us; None for the routes of pods and other things that are not our business."""
    if kind in (nl.RTM_NEWLINK, nl.RTM_DELLINK):
        return Change("link", struct.unpack_from("=i", body, 4)[0])
    if kind in (nl.RTM_NEWADDR, nl.RTM_DELADDR):
        return Change("address", struct.unpack_from("=I", body, 4)[0])
    if kind in (nl.RTM_NEWROUTE, nl.RTM_DELROUTE) and links.is_default_route(body):
        return Change("default_route", None)
    return None
