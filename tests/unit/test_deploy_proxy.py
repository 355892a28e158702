"""The way of a node to the API server, where it breaks: nothing of that is an error of the launcher."""

from __future__ import annotations

import asyncio
import socket

import pytest

from purelb_sm.sandbox.cluster.proxy import ApiProxy, _Connection


async def test_a_connection_that_breaks_while_it_is_passed_on_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(_Connection, "_pump", broken)
    accepted: list[asyncio.StreamWriter] = []
    upstream = await asyncio.start_server(lambda _reader, writer: accepted.append(writer), "127.0.0.1", 0)
    port = upstream.sockets[0].getsockname()[1]
    proxy = ApiProxy(lambda *_: socket.socket(), lambda: ("127.0.0.1", port))
    ended: asyncio.Future[list[BaseException | None]] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.set_result(list(await asyncio.gather(proxy._serve(reader, writer), return_exceptions=True)))

    door = await asyncio.start_server(serve, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*door.sockets[0].getsockname())
    assert await asyncio.wait_for(ended, 10) == [None]
    for one in (writer, *accepted):
        one.close()
    for server in (door, upstream):
        server.close()
