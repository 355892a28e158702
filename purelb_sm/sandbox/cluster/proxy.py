"""The API server inside a node's namespace: a TCP proxy that listens there and connects from the launcher.

It passes bytes through, TLS included, and knows nothing of what they mean. A half-closed connection stays half open, a
reset is passed on as a reset. Per node the way can be cut, hung or slowed down, for tests of bad days.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from enum import Enum

import structlog

from purelb_sm.sandbox.cluster.layout import API_ADDRESSES, API_PORT

log = structlog.get_logger(__name__)

_CHUNK = 1 << 16
_ABORT = struct.pack("ii", 1, 0)

Upstream = tuple[str, int]
OpenSocket = Callable[[int, int, int], socket.socket]


class ApiState(Enum):
    """How a node sees the API server."""

    REACHABLE = "reachable"
    CUT = "cut"
    """Connections are reset, new ones refused, as when the server's process is gone."""
    HUNG = "hung"
    """Connections stay and new ones are taken, but no byte, no FIN and no reset passes: a dead link, a dead server."""


class ApiProxy:
    """The proxy of one node. `upstream` is asked at each connection, so the server may move."""

    def __init__(self, open_socket: OpenSocket, upstream: Callable[[], Upstream]) -> None:
        self._open_socket = open_socket
        self._upstream = upstream
        self._servers: list[asyncio.Server] = []
        self._connections: set[_Connection] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self.state = ApiState.CUT
        self.delay_s = 0.0

    async def set_state(self, state: ApiState) -> None:
        """Changes the way for the connections that are open too. From hung to reachable they go on where they were."""
        if state is ApiState.CUT:
            await self._stop_listening()
            self.reset_connections()
            self._passing.set()
        else:
            if not self._servers:
                await self._listen()
            if state is ApiState.HUNG:
                self._passing.clear()
            else:
                self._passing.set()
        self.state = state

    def reset_connections(self) -> None:
        """Both ends of every open connection see a reset."""
        for connection in list(self._connections):
            connection.abort()
            if connection.task is not None:
                connection.task.cancel()

    async def close(self) -> None:
        await self.set_state(ApiState.CUT)
        running = [connection.task for connection in self._connections if connection.task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _listen(self) -> None:
        for address in API_ADDRESSES:
            listening = self._open_socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 0)
            try:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.bind((address, API_PORT))
                self._servers.append(await asyncio.start_server(self._serve, sock=listening, limit=_CHUNK))
            except OSError:
                listening.close()
                raise

    async def _stop_listening(self) -> None:
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        connection.task = asyncio.current_task()
        self._connections.add(connection)
        try:
            await connection.run(self._upstream)
        except (OSError, asyncio.CancelledError) as ended:
            # asyncio reports a server's task that ends with an error, or cancelled, as a bug; here it is a broken way.
            log.debug("proxied connection ended", error=str(ended))
            connection.abort()
        finally:
            self._connections.discard(connection)

    async def wait_until_passing(self) -> None:
        await self._passing.wait()


class _Connection:
    """One proxied connection: the node's end, and once connected the server's."""

    def __init__(self, proxy: ApiProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.task: asyncio.Task[None] | None = None
        self._proxy = proxy
        self._reader = reader
        self._writers = [writer]

    async def run(self, upstream: Callable[[], Upstream]) -> None:
        await self._proxy.wait_until_passing()
        host, port = upstream()
        far_reader, far_writer = await asyncio.open_connection(host, port, limit=_CHUNK)
        self._writers.append(far_writer)
        near_writer = self._writers[0]
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(self._reader, far_writer))
                both.create_task(self._pump(far_reader, near_writer))
        except ExceptionGroup as broken:
            # Raised within an `except*` it comes out as a group again, with the Python 3.11.2 of Debian 12.
            raise broken.exceptions[0] from None
        for writer in self._writers:
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            data = await reader.read(_CHUNK)
            await self._proxy.wait_until_passing()
            if self._proxy.delay_s:
                await asyncio.sleep(self._proxy.delay_s)
            if not data:
                break
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof() and not writer.is_closing():
            writer.write_eof()

    def abort(self) -> None:
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and not writer.transport.is_closing():
                # Without lingering, closing sends a reset instead of a FIN.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            writer.transport.abort()
