"""Notices from the kernel that something changed: links, addresses, default routes.

A notice says only where to look. What is merged, dropped or overtaken by the next change therefore does no harm, as
long as the last change of a kind is told after it happened, and lost notices are told as `resync`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from purelb_sm.net import notices
from purelb_sm.net.errors import KernelRefused, NetError
from purelb_sm.net.model import Change
from purelb_sm.net.rtnetlink import OpenSocket

log = structlog.get_logger(__name__)

# Room for the notices of about 8,000 addresses; a burst that is larger is told as one `resync`.
_RECEIVE_BUFFER = 8 << 20
RESYNC = Change("resync", None)


class PendingChanges:
    """What was told and not yet taken, in order of arrival; equal changes are merged. Begins with `resync`."""

    def __init__(self) -> None:
        self._waiting: dict[Change, None] = {RESYNC: None}
        self._ready = asyncio.Event()
        self._ready.set()
        self._broken: BaseException | None = None

    def tell(self, change: Change) -> None:
        self._waiting[change] = None
        self._ready.set()

    def end(self, broken: BaseException) -> None:
        """No more will be told: who takes gets this error, once there is nothing left to take."""
        self._broken = broken
        self._ready.set()

    async def take(self) -> Change:
        """The oldest; waits for one."""
        await self._ready.wait()
        if not self._waiting and self._broken is not None:
            raise self._broken
        change = next(iter(self._waiting))
        del self._waiting[change]
        if not self._waiting and self._broken is None:
            self._ready.clear()
        return change


class Monitor:
    """One subscriber to the notices of one network namespace; an asynchronous context manager. Of what `is_known` is
    true, it tells nothing."""

    def __init__(
        self,
        open_socket: OpenSocket = socket.socket,
        is_known: Callable[[notices.Notice], bool] = lambda notice: False,
    ) -> None:
        self._open_socket = open_socket
        self._is_known = is_known
        self._pending = PendingChanges()

    async def __aenter__(self) -> Self:
        self._notices = self._subscribe()
        self._listening = asyncio.create_task(self._listen(), name="kernel-notices")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.cancel()
        try:
            await asyncio.gather(self._listening, return_exceptions=True)
        finally:
            self._notices.close()

    async def next_change(self) -> Change:
        """The next change since the monitor was entered. Raises what broke the way to the kernel, if that did."""
        return await self._pending.take()

    def _subscribe(self) -> notices.Notices:
        return notices.Notices(self._open_socket, _RECEIVE_BUFFER)

    async def _listen(self) -> None:
        try:
            while True:
                await self._tell_until_lost()
                log.warning("kernel notices lost, looking at everything again")
                fresh = self._subscribe()
                self._notices.close()
                self._notices = fresh
                # Not before: what happens between a look and a subscription would be told by nobody.
                self._pending.tell(RESYNC)
        except (NetError, OSError) as broken:
            self._pending.end(broken)

    async def _tell_until_lost(self) -> None:
        try:
            while True:
                for notice in await self._notices.next():
                    change = notices.change_of(notice)
                    if change is not None and not self._is_known(notice):
                        self._pending.tell(change)
                # In a burst the next ones are there already, and nobody else would get a turn.
                await asyncio.sleep(0)
        except KernelRefused as refused:
            if refused.errno != errno.ENOBUFS:
                raise
