"""What answers on a node in place of kube-proxy and a pod: a small HTTP server on each Service port of each node.

It tells who it is, so that a client sees which node answers for an address. Whoever watches Services says which ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Collection, Mapping

import structlog

from purelb_sm.sandbox.cluster.proxy import OpenSocket

log = structlog.get_logger(__name__)

_REQUEST_LIMIT = 1 << 14
_REQUEST_TIMEOUT_S = 5.0


class NodeServer:
    """One server for all nodes: `open_sockets` says how to open a socket on each. Call `close` when done."""

    def __init__(self, open_sockets: Mapping[str, OpenSocket]) -> None:
        self._open_sockets = open_sockets
        self._listening: dict[tuple[str, int], list[asyncio.Server]] = {}
        self._connections: set[asyncio.StreamWriter] = set()

    def ports(self, node: str) -> set[int]:
        """The ports that the node answers on."""
        return {port for name, port in self._listening if name == node}

    async def set_ports(self, node: str | None, ports: Collection[int]) -> None:
        """The node (None: every node) answers on these TCP ports and no others, on all its addresses.

        A port that is taken on a node is said in the log and left out there.
        """
        for name in self._open_sockets if node is None else [node]:
            for port in self.ports(name) - set(ports):
                self._close(self._listening.pop((name, port)))
            for port in sorted(set(ports) - self.ports(name)):
                await self._listen(name, port)

    async def close(self) -> None:
        await self.set_ports(None, ())
        for writer in list(self._connections):
            writer.transport.abort()

    async def _listen(self, node: str, port: int) -> None:
        servers: list[asyncio.Server] = []
        try:
            for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
                servers.append(await self._listen_on(node, family, everywhere, port))
        except OSError as taken:
            log.warning("port not served", node=node, port=port, error=str(taken))
            self._close(servers)
        else:
            self._listening[node, port] = servers

    async def _listen_on(self, node: str, family: int, address: str, port: int) -> asyncio.Server:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._answer(node, reader, writer)

        listening = self._open_sockets[node](family, socket.SOCK_STREAM, 0)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((address, port))
            return await asyncio.start_server(answer, sock=listening, limit=_REQUEST_LIMIT)
        except OSError:
            listening.close()
            raise

    async def _answer(self, node: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        # Whatever a client does wrong is the client's; nobody here wants to know.
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _REQUEST_TIMEOUT_S)
            body = f"{node}\n".encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
            await writer.drain()
        self._connections.discard(writer)
        writer.close()

    @staticmethod
    def _close(servers: list[asyncio.Server]) -> None:
        for server in servers:
            server.close()
