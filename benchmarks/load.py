"""The user's side: makes Services, and sees by watches when each shows its address and when its Event is there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from benchmarks.stage import CLASS, NAMESPACE
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.resources import EVENTS, SERVICES, Resource

CREATORS = 16
"""So many requests of the user's are under way at once."""
STALLED_S = 60.0
"""Nothing new for so long: something is wrong, and the benchmark ends."""


class _Meta(msgspec.Struct, rename="camel", gc=False):
    name: str
    uid: str = ""
    resource_version: str = ""


class _Ingress(msgspec.Struct, gc=False):
    ip: str = ""


class _Balancer(msgspec.Struct, gc=False):
    ingress: list[_Ingress] | None = None


class _Status(msgspec.Struct, rename="camel", gc=False):
    load_balancer: _Balancer | None = None


class _Object(msgspec.Struct, gc=False):
    metadata: _Meta
    status: _Status | None = None
    reason: str = ""


class _Event(msgspec.Struct, gc=False):
    type: str
    object: _Object


class _ListMeta(msgspec.Struct, rename="camel", gc=False):
    resource_version: str = ""


class _Version(msgspec.Struct, gc=False):
    metadata: _ListMeta


_read_event = msgspec.json.Decoder(_Event).decode
_read_version = msgspec.json.Decoder(_Version).decode
_read_object = msgspec.json.Decoder(_Object).decode


def service(name: str) -> dict[str, Any]:
    """A Service of ours: without node ports, of which a real cluster has only some 2,700."""
    spec = {
        "type": "LoadBalancer",
        "loadBalancerClass": CLASS,
        "allocateLoadBalancerNodePorts": False,
        "ports": [{"port": 80}],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


@dataclass
class Seen:
    """What the watches have shown. Times are of the monotonic clock.

    `address` is that of a Service now, by name; `shown` when the Service with this uid first had one. `writes` counts
    the changes of each, by name; `told` the Events that give an address. `shared` are addresses that two ever had.
    """

    uids: dict[str, str] = field(default_factory=dict)
    address: dict[str, str] = field(default_factory=dict)
    shown: dict[str, float] = field(default_factory=dict)
    writes: Counter[str] = field(default_factory=Counter)
    shared: set[str] = field(default_factory=set)
    told: int = 0
    last_told: float = 0.0
    moves: asyncio.Event = field(default_factory=asyncio.Event)
    _holder: dict[str, str] = field(default_factory=dict)

    def service(self, kind: str, obj: _Object, at: float) -> None:
        name, uid = obj.metadata.name, obj.metadata.uid
        self._drop(name)
        if kind == "DELETED":
            self.uids.pop(name, None)
        else:
            self.uids[name] = uid
            self.writes[name] += kind == "MODIFIED"
            if obj.status and obj.status.load_balancer and obj.status.load_balancer.ingress:
                self._show(name, uid, obj.status.load_balancer.ingress[0].ip, at)
        self.moves.set()

    def event(self, obj: _Object, at: float) -> None:
        if obj.reason == "IPAllocated":
            self.told += 1
            self.last_told = at
            self.moves.set()

    def _drop(self, name: str) -> None:
        address = self.address.pop(name, None)
        if address is not None and self._holder.get(address) == name:
            del self._holder[address]

    def _show(self, name: str, uid: str, address: str, at: float) -> None:
        self.shown.setdefault(uid, at)
        self.address[name] = address
        if self._holder.setdefault(address, name) != name:
            self.shared.add(address)


class Load:
    """Use as `async with watching(client) as load`."""

    def __init__(self, client: KubeClient) -> None:
        self.seen = Seen()
        self._client = client

    async def create(self, names: Iterable[str], creators: int = CREATORS) -> dict[str, float]:
        """Makes these Services as fast as the API server takes them; answers with when each was asked for, by uid."""
        at: dict[str, float] = {}

        async def one(name: str) -> None:
            began = time.monotonic()
            made = _read_object(await self._client.request("POST", SERVICES.collection(NAMESPACE), body=service(name)))
            at[made.metadata.uid] = began

        await each(names, one, creators)
        return at

    async def delete(self, names: Iterable[str], creators: int = CREATORS) -> None:
        async def one(name: str) -> None:
            await self._client.request("DELETE", SERVICES.path(name, NAMESPACE))

        await each(names, one, creators)

    async def until_shown(self, uids: Iterable[str]) -> None:
        """Waits until all of these show an address. Raises TimeoutError when nothing moves any more."""
        wanted = set(uids)
        await self.until(lambda: wanted <= self.seen.shown.keys())

    async def until(self, reached: Callable[[], bool]) -> None:
        """Waits for a condition on what is seen. Raises TimeoutError when nothing moves any more."""
        while not reached():
            self.seen.moves.clear()
            async with asyncio.timeout(STALLED_S):
                await self.seen.moves.wait()

    async def watch(self, resource: Resource, started: asyncio.Event) -> None:
        path = resource.collection(NAMESPACE)
        version = _read_version(await self._client.request("GET", path, query={"limit": "1"})).metadata
        query = {"watch": "true", "resourceVersion": version.resource_version}
        async for line in self._client.stream(path, query, idle_s=600):
            started.set()
            if not line:
                continue
            event, at = _read_event(line), time.monotonic()
            if resource is SERVICES:
                self.seen.service(event.type, event.object, at)
            elif event.type == "ADDED":
                self.seen.event(event.object, at)


@asynccontextmanager
async def watching(client: KubeClient) -> AsyncIterator[Load]:
    """A user who looks on. What was there before is not seen."""
    load = Load(client)
    started = [asyncio.Event(), asyncio.Event()]
    tasks = [
        asyncio.create_task(load.watch(resource, event))
        for resource, event in zip((SERVICES, EVENTS), started, strict=True)
    ]
    try:
        for event in started:
            await asyncio.wait_for(event.wait(), 30)
        yield load
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def each(names: Iterable[str], work: Callable[[str], Awaitable[None]], workers: int) -> None:
    """`work(name)` for all, so many at once, in their order."""
    todo = iter(list(names))

    async def worker() -> None:
        for name in todo:
            await work(name)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(worker())


def numbered(prefix: str, count: int, start: int = 0) -> list[str]:
    return [f"{prefix}-{i}" for i in range(start, start + count)]
