"""Agents on nodes, without an allocator: Services are written as it leaves them, and what the kernels do is timed.

Everything runs on one machine: API server, agents, the ways between them, and who measures.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from typing import Any

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.kube.client import MERGE_PATCH
from purelb_sm.kube.resources import SERVICES
from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.rows import entry_of
from purelb_sm.sandbox.launcher import Options, Sandbox, wait_until

NAMESPACE = "default"
WIDE = "wide"
"""A routed group with room for all that a benchmark asks for."""
FIRST = ip_address("10.128.0.1")
AT_ONCE = 16
STALLED_S = 120.0
_GROUPS = 0x10 | 0x100  # IPv4 and IPv6 addresses
_BUFFER = 32 << 20


@asynccontextmanager
async def nodes(count: int) -> AsyncIterator[Sandbox]:
    """A sandbox with so many nodes, an agent with its default settings on each."""
    async with Sandbox(Options(nodes=count, allocator=False, handle_sigterm=False)) as sandbox:
        pool = {"subnet": "10.128.0.0/9", "pool": "10.128.0.0/9", "aggregation": "/32"}
        await sandbox.apply(
            {
                "apiVersion": "purelb.io/v2",
                "kind": "ServiceGroup",
                "metadata": {"name": WIDE, "namespace": names.INSTALL_NAMESPACE},
                "spec": {"remote": {"v4pools": [pool]}},
            }
        )
        yield sandbox


async def make(sandbox: Sandbox, name: str, *, group: str = WIDE, port: int = 80) -> None:
    """A Service with our brand that shows no address yet. Of other ports than 80 the nodes' servers learn, too."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "annotations": {names.ALLOCATED_BY: names.BRAND, names.ALLOCATED_FROM: group},
        },
        "spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False, "ports": [{"port": port}]},
    }
    await sandbox.client.request("POST", SERVICES.collection(NAMESPACE), body=service)


async def show(sandbox: Sandbox, name: str, address: Address) -> None:
    """Writes the Service's ingress, as the allocator does."""
    body: Any = {"status": {"loadBalancer": {"ingress": [{"ip": str(address), "ipMode": "VIP"}]}}}
    path = SERVICES.path(name, NAMESPACE, "status")
    await sandbox.client.request("PATCH", path, body=body, content_type=MERGE_PATCH)


async def remove(sandbox: Sandbox, name: str) -> None:
    await sandbox.client.request("DELETE", SERVICES.path(name, NAMESPACE))


async def crowd(count: int, work: Callable[[int], Awaitable[None]]) -> None:
    """`work` for 0 … count-1, a few at once."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def until(what: str, so: Callable[[], bool], timeout_s: float = STALLED_S) -> None:
    """Returns when it is so, within a millisecond. Raises NotInTime."""

    async def check() -> bool:
        return so()

    await wait_until(check, timeout_s, what, every_s=0.001)


class Arrivals:
    """When a node's kernel got and lost each address, on the monotonic clock, as its notices say."""

    def __init__(self) -> None:
        self.came: dict[Address, float] = {}
        self.went: dict[Address, float] = {}

    def take(self, data: bytes) -> None:
        now = time.monotonic()
        for kind, _flags, _sequence, body in nl.split(data):
            entry = entry_of(body) if kind in (nl.RTM_NEWADDR, nl.RTM_DELADDR) else None
            if entry is not None:
                (self.came if kind == nl.RTM_NEWADDR else self.went).setdefault(entry.address, now)


@contextmanager
def arrivals(sandbox: Sandbox, node: str) -> Iterator[Arrivals]:
    """They are read in a thread, so that nothing that the benchmark does itself delays them much."""
    seen, ended = Arrivals(), threading.Event()
    sock = sandbox.cluster.open_socket(node)(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    nl.enlarge_receive_buffer(sock, _BUFFER)
    sock.bind((0, _GROUPS))
    sock.settimeout(0.2)

    def read() -> None:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                seen.take(sock.recv(1 << 17))

    thread = threading.Thread(target=read, name="arrivals")
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
        sock.close()
