"""The kernel of this node, as the agent uses it: one object, asynchronous, in one network namespace.

All requests go through one thread, one after the other: the netlink answers of a batch block for milliseconds, and a
look at the table followed by a change must not have another change in between. Frames are sent and heard on the loop:
that takes microseconds.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import structlog

from purelb_sm.net import addresses, conflicts, facts, links, neighbours, pyroute, routes
from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.errors import NetError, from_errno
from purelb_sm.net.model import Change, Family, Held, Home, Interface, IPAddress, Sighting, Wanted
from purelb_sm.net.monitor import RESYNC, Monitor
from purelb_sm.net.ownership import ADDRESS_PROTOCOL, JOURNAL_DIRECTORY, KernelMark, Ownership, open_journal

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Asked for on the loopback for a moment, to learn whether the kernel keeps marks. Nobody routes or uses it.
_PROBE = IPv4Address("127.77.77.77")


class Kernel:
    """Implements `KernelProtocol`. Use as an async context manager.

    `protocol` is our mark. `journal_directory` is used only where the kernel has no such mark; `use_journal` forces
    it. `open_socket` opens sockets in another network namespace than the caller's.

    Raises `NotPermitted` on entry without CAP_NET_ADMIN and CAP_NET_RAW.
    """

    def __init__(
        self,
        *,
        protocol: int = ADDRESS_PROTOCOL,
        journal_directory: Path = JOURNAL_DIRECTORY,
        use_journal: bool = False,
        open_socket: nl.OpenSocket = socket.socket,
    ) -> None:
        self._protocol = protocol
        self._journal_directory = journal_directory
        self._use_journal = use_journal
        self._open_socket = open_socket
        self._thread: ThreadPoolExecutor | None = None
        self._on_sighting: Callable[[Sighting], None] = lambda sighting: None
        self._ears = conflicts.Ears(open_socket, lambda sighting: self._on_sighting(sighting))

    async def __aenter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="netlink")
        try:
            await self._in_thread(self._open)
        except BaseException:
            self._thread.shutdown()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread is not None
        self._ears.close()
        await self._in_thread(self._close)
        self._thread.shutdown()

    @property
    def mark(self) -> str:
        """How our addresses are known: `kernel` or `journal`."""
        return "kernel" if isinstance(self._ownership, KernelMark) else "journal"

    async def interfaces(self) -> list[Interface]:
        return await self._in_thread(lambda: links.interfaces(self._link_sock))

    async def default_interface(self, family: Family) -> str | None:
        return await self._in_thread(lambda: routes.default_interface(self._sock, self._link_sock, family))

    async def homes(self, interfaces: Collection[str]) -> dict[str, tuple[Home, ...]]:
        return await self._in_thread(lambda: facts.homes(self._table.on, self._link_sock, self._ownership, interfaces))

    async def held(self) -> list[Held]:
        return await self._in_thread(self._table.held)

    async def addresses(self) -> list[Held]:
        return await self._in_thread(self._table.all)

    async def apply(self, add: Sequence[Wanted], remove: Sequence[Held]) -> dict[IPAddress, NetError | None]:
        return await self._in_thread(lambda: self._table.apply(add, remove))

    async def ensure_dummy(self, name: str) -> str:
        return await self._in_thread(lambda: links.ensure_dummy(self._link_sock, name))

    async def announce(
        self,
        address: IPAddress,
        ifname: str,
        initial_delay_s: float = 0.1,
        count: int = 3,
        interval_s: float = 0.5,
        *,
        still_ours: Callable[[], bool],
    ) -> int:
        return await neighbours.announce(
            self._sender.send,
            address,
            ifname,
            initial_delay_s=initial_delay_s,
            count=count,
            interval_s=interval_s,
            still_ours=still_ours,
        )

    async def changes(self) -> AsyncGenerator[Change, None]:
        async with Monitor(self._open_socket, self._table.knows) as monitor:
            with self._table.followed():
                while True:
                    change = await monitor.next_change()
                    if change == RESYNC:
                        self._table.doubt()
                    yield change

    def on_sighting(self, callback: Callable[[Sighting], None]) -> None:
        self._on_sighting = callback

    def listen(self, addresses: Collection[IPAddress], interface: str) -> None:
        self._ears.listen(addresses, interface)

    def stop_listening(self, addresses: Collection[IPAddress], interface: str) -> None:
        self._ears.stop_listening(addresses, interface)

    def probe(self, address: IPAddress, interface: str) -> bool:
        return self._sender.ask(address, interface)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        assert self._thread is not None, "the kernel is used as a context manager"
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _open(self) -> None:
        with ExitStack() as opened:
            self._sock = opened.enter_context(closing(nl.RtnlSocket(self._open_socket)))
            self._link_sock = opened.enter_context(closing(pyroute.Socket(self._open_socket)))
            self._sender = opened.enter_context(closing(neighbours.FrameSender(self._open_socket)))
            self._ownership = self._find_ownership()
            self._table = addresses.AddressTable(self._sock, self._link_sock, self._ownership)
            # From here on they are open until we are left.
            self._opened = opened.pop_all()

    def _find_ownership(self) -> Ownership:
        if not self._use_journal and keeps_marks(self._sock, self._link_sock, self._protocol):
            return KernelMark(self._protocol)
        journal = open_journal(self._sock, self._journal_directory)
        table = addresses.AddressTable(self._sock, self._link_sock, journal)
        journal.keep_only((one.interface, one.address, one.prefix_length) for one in table.held())
        log.info("address journal in use", path=str(journal.path), forced=self._use_journal)
        return journal

    def _close(self) -> None:
        self._opened.close()


def keeps_marks(sock: nl.RtnlSocket, link_sock: pyroute.Socket, protocol: int) -> bool:
    """Whether the kernel keeps an address's protocol number: seen on any address that is there, else tried out, with
    the same request that will carry our mark."""
    if any(entry.protocol for entry in addresses.entries(sock)):
        return True
    loopback = links.index_of(link_sock, "lo")
    if loopback is None:
        return False
    # The lifetime removes it even if we are killed here.
    wanted = Wanted(_PROBE, 32, "lo", lifetime_s=1, noprefixroute=True)
    probe = addresses.add_request(wanted, loopback, KernelMark(protocol).attributes(), renew=False)
    remove = addresses.remove_request(_PROBE, 32, loopback)
    answer = sock.transact([probe])[0]
    if answer.errno:
        raise from_errno(answer.errno, "lo", answer.detail)
    try:
        return any(entry.address == _PROBE and entry.protocol == protocol for entry in addresses.entries(sock))
    finally:
        sock.transact([remove])
