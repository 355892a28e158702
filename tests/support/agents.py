"""Agents in one process: real ones, each with a kernel in memory, against an emulated API server over real HTTP."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

from purelb_sm.agent.agent import Agent
from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.kube.client import MERGE_PATCH, KubeClient
from purelb_sm.kube.wire import utc_now
from purelb_sm.net import Held
from purelb_sm.net.fake import FakeKernel
from purelb_sm.settings import AgentSettings
from tests.support.product import JSON, NAMESPACE, Cluster, service_object
from tests.support.segment import Segment
from tests.support.waiting import eventually

QUICK = {"lease_s": 2.0, "renew_s": 0.3, "report_s": 0.1, "resync_s": 60.0, "heartbeat_s": 0.0}
INTERFACE = "enp1s0"
_numbers = itertools.count(1)


def node_kernel(number: int, *, subnet: str = "172.30.250", **more: Any) -> FakeKernel:
    """The kernel of a node as it comes from its network configuration."""
    kernel = FakeKernel(**more)
    kernel.add_interface(INTERFACE, f"{subnet}.{10 + number}/24", f"fd30:250::{10 + number}/64")
    kernel.set_default_route(4, INTERFACE)
    kernel.set_default_route(6, INTERFACE)
    return kernel


@dataclass
class RunningAgent:
    """An agent that runs, and ways to end it."""

    name: str
    agent: Agent
    kernel: FakeKernel
    task: asyncio.Task[None]

    def is_settled(self) -> bool:
        """Whether it has compared everything once; raises what it died of."""
        if self.task.done():
            self.task.result()
        return self.agent.upkeep.settled.is_set()

    async def terminate(self) -> None:
        """SIGTERM."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def kill(self) -> None:
        """SIGKILL: it does nothing any more; what it did stays."""
        if self.task.done():
            return
        self.agent.leave = _nothing  # type: ignore[method-assign]
        self.agent.recorder.flush = _not_flushed  # type: ignore[method-assign]
        await self.terminate()
        await self.agent.recorder.close()

    async def held(self) -> dict[Address, Held]:
        return {held.address: held for held in await self.kernel.held()}

    async def holds(self, address: str) -> bool:
        return ip_address(address) in await self.held()

    def announced(self, address: str) -> int:
        """How many gratuitous ARPs or unsolicited NAs went out for it."""
        return sum(1 for a in self.kernel.announced if str(a.address) == address)


async def _nothing() -> None:
    return None


async def _not_flushed(timeout_s: float) -> bool:
    return False


@dataclass
class Holders:
    """Who held an address, after each change of any kernel from when it was first held, and for how long."""

    address: Address
    kernels: dict[str, FakeKernel]
    seen: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)

    def look(self) -> None:
        now = tuple(sorted(name for name, kernel in self.kernels.items() if kernel.holds(self.address)))
        if (self.seen or now) and (not self.seen or self.seen[-1][1] != now):
            self.seen.append((time.monotonic(), now))

    def sets(self) -> list[tuple[str, ...]]:
        return [held for _, held in self.seen]

    def together_s(self) -> float:
        """For how long two or more held it, at the longest."""
        both = [(later - at) for (at, held), (later, _) in pairwise(self.seen) if len(held) > 1]
        return max(both, default=0.0)

    def never_nobody(self) -> None:
        """There was no moment without a holder, and none with more than two."""
        assert all(0 < len(held) <= 2 for held in self.sets()), self.sets()


@dataclass
class Lab:
    """A cluster with agents on its nodes."""

    cluster: Cluster
    kernels: dict[str, FakeKernel] = field(default_factory=dict)
    agents: dict[str, RunningAgent] = field(default_factory=dict)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    times_of_day: dict[str, Callable[[], datetime]] = field(default_factory=dict)
    """The wall clocks of nodes that have one of their own."""
    segment: Segment = field(default_factory=Segment)

    def kernel(self, name: str) -> FakeKernel:
        if name not in self.kernels:
            self.kernels[name] = node_kernel(len(self.kernels) + 1)
        return self.kernels[name]

    async def start(self, *nodes: str, settle: bool = True, **settings: Any) -> list[RunningAgent]:
        """An agent on each node, on the kernel that the node has. Waits until each has compared everything once."""
        started = []
        for name in nodes:
            if self.cluster.server.get("v1", "Node", name) is None:
                self.cluster.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
            client = await self.stack.enter_async_context(KubeClient.at(self.cluster.url, timeout_s=5.0))
            values = {**QUICK, "node_name": name, "web_port": 0, **settings}
            agent = Agent(
                AgentSettings(**values),
                client,
                self.kernel(name),
                now=self.times_of_day.get(name, utc_now),
                datagrams=self.segment.plug(name),
            )
            running = RunningAgent(name, agent, self.kernel(name), asyncio.create_task(agent.run()))
            self.stack.push_async_callback(running.kill)
            self.agents[name] = running
            started.append(running)
        for running in started if settle else ():
            await eventually(running.is_settled, "the first comparison")
        return started

    async def holders(self, address: str) -> list[str]:
        """The nodes whose kernel holds it."""
        found = [n for n, k in self.kernels.items() if ip_address(address) in {h.address for h in await k.held()}]
        return sorted(found)

    def watched(self, address: str) -> Holders:
        """Who holds the address from now on, on the nodes that there are now."""
        holders = Holders(ip_address(address), dict(self.kernels))
        for kernel in holders.kernels.values():
            kernel.on_change(holders.look)
        holders.look()
        return holders

    async def held_by(self, address: str, *nodes: str) -> None:
        """Waits until exactly these nodes hold it."""

        async def so() -> bool:
            return await self.holders(address) == sorted(nodes)

        await eventually(so, f"{address} on {nodes}")

    async def held_elsewhere(self, address: str, node: str) -> str:
        """Waits until exactly one node holds it, and another than this one."""

        async def so() -> str | None:
            found = await self.holders(address)
            return found[0] if len(found) == 1 and found != [node] else None

        return await eventually(so, f"{address} on one node, and not on {node}")

    async def mark(self, node: str, metadata: JSON) -> None:
        """Sets labels or annotations of the Node; None takes one away."""
        body = {"metadata": metadata}
        await self.cluster.client.request("PATCH", f"/api/v1/nodes/{node}", body=body, content_type=MERGE_PATCH)

    async def one_holder(self, address: str) -> str:
        """Waits until exactly one node holds it, and tells which."""

        async def one() -> str | None:
            found = await self.holders(address)
            return found[0] if len(found) == 1 else None

        return await eventually(one, f"one holder of {address}")

    async def allocated(
        self, name: str, *ips: str, group: str = "default", brand: str | None = names.BRAND, **spec: Any
    ) -> None:
        """A Service as the allocator leaves it."""
        annotations = {names.ALLOCATED_FROM: group} | ({names.ALLOCATED_BY: brand} if brand else {})
        self.cluster.create(service_object(name, annotations=annotations, **spec))
        await self.show(name, *ips)

    async def show(self, name: str, *ips: str) -> None:
        """The Service's ingress, written as the allocator does."""
        ingress = [{"ip": ip, "ipMode": "VIP"} for ip in ips]
        path = f"/api/v1/namespaces/{NAMESPACE}/services/{name}/status"
        body = {"status": {"loadBalancer": {"ingress": ingress} if ingress else None}}
        await self.cluster.client.request("PATCH", path, body=body, content_type=MERGE_PATCH)

    def annotation(self, name: str, annotation: str = names.ANNOUNCING_V4) -> str | None:
        found: dict[str, str] = self.cluster.service(name)["metadata"].get("annotations", {})
        return found.get(annotation)

    def lease(self, node: str) -> JSON | None:
        return self.cluster.server.get(
            "coordination.k8s.io/v1", "Lease", names.NODE_LEASE_PREFIX + node, "purelb-system"
        )

    def report(self, node: str) -> JSON | None:
        found = self.cluster.server.get("purelb.io/v2", "NodeAnnouncement", node, "purelb-system")
        return found["spec"] if found else None


@asynccontextmanager
async def a_lab(cluster: Cluster) -> AsyncIterator[Lab]:
    """Agents may be started while the block runs; at its end they are killed."""
    lab = Lab(cluster)
    async with lab.stack:
        yield lab
