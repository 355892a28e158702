"""An HTTP server that does as it is told, wrong things included: what a client meets on its worst days."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from urllib.parse import parse_qsl, urlsplit

Json = dict[str, object]


class Exchange:
    """One request, and the means to answer it well or badly."""

    def __init__(
        self, method: str, target: str, headers: dict[str, str], body: bytes, out: asyncio.StreamWriter
    ) -> None:
        parts = urlsplit(target)
        self.method = method
        self.path = parts.path
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.headers = headers
        self.body = body
        self._out = out

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch") == "true"

    @property
    def json(self) -> Json:
        read: Json = json.loads(self.body)
        return read

    async def reply(self, body: object = None, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        await self.raw(status, data, len(data), headers)

    async def raw(self, status: int, data: bytes, length: int, headers: dict[str, str] | None = None) -> None:
        """An answer whose Content-Length may lie."""
        lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {length}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in (headers or {}).items()]
        self._out.write("\r\n".join([*lines, "", ""]).encode() + data)
        await self._out.drain()

    async def refuse(self, code: int, reason: str, message: str = "no", **headers: str) -> None:
        await self.reply(status_object(code, reason, message), code, **headers)

    async def begin(self) -> None:
        """The head of a watch's answer."""
        self._out.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        await self._out.drain()

    async def chunk(self, data: bytes) -> None:
        self._out.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self._out.drain()

    async def event(self, kind: str, item: Mapping[str, object]) -> None:
        await self.chunk(json.dumps({"type": kind, "object": item}).encode() + b"\n")

    async def end(self) -> None:
        self._out.write(b"0\r\n\r\n")
        await self._out.drain()

    def abort(self) -> None:
        """Cuts the connection without a goodbye."""
        self._out.transport.abort()

    async def hang(self) -> None:
        """Says nothing more, and does not close."""
        await asyncio.Event().wait()


Handler = Callable[[Exchange], Awaitable[None]]


class FaultServer:
    """Serves `handler` on a free port of the loopback; keeps every request it got."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[Exchange] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, *, watch: bool | None = None) -> int:
        return sum(1 for r in self.requests if watch is None or r.is_watch == watch)

    async def __aenter__(self) -> FaultServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As if the process were killed: nobody listens, every connection is cut."""
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while not writer.transport.is_closing():
                exchange = await _read(reader, writer)
                self.requests.append(exchange)
                await self.handler(exchange)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *rest = head.strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Exchange(method, target, headers, body, writer)


def status_object(code: int, reason: str, message: str = "no") -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def service(name: str, version: int, *, namespace: str = "default", uid: str = "", **spec: object) -> Json:
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid or f"uid-{name}",
            "resourceVersion": str(version),
        },
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], **spec},
        "status": {"loadBalancer": {}},
    }


def listing(version: int, *items: Mapping[str, object], token: str = "") -> Json:
    metadata = {"resourceVersion": str(version)} | ({"continue": token} if token else {})
    return {"kind": "ServiceList", "apiVersion": "v1", "metadata": metadata, "items": list(items)}


class FakeClock:
    """Time that only passes when somebody sleeps. `sleep` hands over to the loop, so that real sockets get on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)
        self.now += delay_s
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    """Waits for a condition; the deadline is only there to end a test that has failed."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    while not condition():
        if loop.time() > end:
            raise AssertionError("the condition did not come true in time")
        await asyncio.sleep(0.002)
