"""A bare client for tests of the emulated API server: requests and watches, nothing hidden."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from purelb_sm.sandbox.apiserver import ApiServer, serve

JSON = dict[str, Any]
SERVICES = "/api/v1/namespaces/default/services"
DEADLINE_S = 20.0


class Answer:
    """What came back: status, headers, decoded body."""

    def __init__(self, status: int, headers: Mapping[str, str], body: Any, warnings: list[str]) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.warnings = warnings

    @property
    def rv(self) -> str:
        version: str = self.body["metadata"]["resourceVersion"]
        return version

    @property
    def names(self) -> list[str]:
        return [item["metadata"]["name"] for item in self.body["items"]]


class Events:
    """The lines of a watch, one at a time."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def next(self) -> JSON | None:
        """The next event, None at the end of the watch; raises TimeoutError after the deadline."""
        async with asyncio.timeout(DEADLINE_S):
            line = await self._response.content.readline()
        return json.loads(line) if line else None

    async def take(self, number: int) -> list[tuple[str, str]]:
        """(type, name) of the next events."""
        events = [await self.next() for _ in range(number)]
        return [(e["type"], e["object"]["metadata"].get("name", "")) for e in events if e is not None]


class Api:
    """One server, over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.session = session
        self.url = url
        self.headers = dict(headers or {})

    async def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json", **headers: str
    ) -> Answer:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        data = None if raw is None else io.BytesIO(raw)
        sent = {**self.headers, **({"Content-Type": content_type} if data is not None else {}), **headers}
        async with (
            asyncio.timeout(DEADLINE_S),
            self.session.request(method, self.url + path, data=data, headers=sent) as response,
        ):
            text = await response.text()
            decoded = json.loads(text) if "json" in response.headers.get("Content-Type", "") else text
            return Answer(response.status, response.headers, decoded, response.headers.getall("Warning", []))

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.request("GET", path, **headers)

    async def post(self, path: str, body: Any) -> Answer:
        return await self.request("POST", path, body)

    async def put(self, path: str, body: Any) -> Answer:
        return await self.request("PUT", path, body)

    async def delete(self, path: str, body: Any = None) -> Answer:
        return await self.request("DELETE", path, body)

    async def merge(self, path: str, body: Any) -> Answer:
        return await self.request("PATCH", path, body, "application/merge-patch+json")

    async def strategic(self, path: str, body: Any) -> Answer:
        return await self.request("PATCH", path, body, "application/strategic-merge-patch+json")

    async def apply(self, path: str, body: Any, manager: str = "me", *, force: bool = False) -> Answer:
        query = f"?fieldManager={manager}" + ("&force=true" if force else "")
        return await self.request("PATCH", path + query, body, "application/apply-patch+yaml")

    @asynccontextmanager
    async def watch(self, path: str) -> AsyncIterator[Events]:
        joined = path + ("&" if "?" in path else "?") + "watch=true"
        async with self.session.get(self.url + joined, headers=self.headers) as response:
            assert response.status == 200, await response.text()
            yield Events(response)


@asynccontextmanager
async def running(server: ApiServer, token: str | None = None) -> AsyncIterator[Api]:
    """A client of a server in this process."""
    headers = {"Authorization": f"Bearer {token}"} if token else None
    async with serve(server) as url, aiohttp.ClientSession() as session:
        yield Api(session, url, headers)


def service(name: str, **spec: Any) -> JSON:
    ports = [{"port": 80, "targetPort": 8080}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"type": "LoadBalancer", "selector": {"app": name}, "ports": ports, **spec},
    }


@asynccontextmanager
async def started(
    *arguments: str | Path, descriptors: Sequence[int] = ()
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Api]]:
    """The server as a process of its own, when it says that it is ready; it ends with the block, if not before."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "purelb_sm.sandbox.apiserver", *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        pass_fds=descriptors,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            line = await process.stdout.readline()
        async with aiohttp.ClientSession() as session:
            yield process, Api(session, json.loads(line)["url"])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
