"""A sandbox whose allocator is played: Services are written as it leaves them, and what the nodes make of them is seen.

Shared by the tests that start agents as processes on nodes with real kernels.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Any

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.kube.client import MERGE_PATCH
from purelb_sm.kube.resources import LEASES, NODE_ANNOUNCEMENTS, SERVICES
from purelb_sm.sandbox.launcher import Sandbox, contents
from purelb_sm.sandbox.launcher.product import AGENT_WEB
from tests.support.invariants import Bounds
from tests.support.watcher import Watcher

NAMESPACE = "default"
LOCAL, LOCAL6, REMOTE = ip_address("172.30.250.53"), ip_address("fd30:250::53"), ip_address("172.31.1.225")
QUICK = ("--lease-s", "4", "--renew-s", "0.8")
LEASE_S = 4.0
LOADED_S = 2.0
"""What a busy machine may add to a bound that the specification gives."""


BOUNDS = Bounds(two_s=2.0 + LOADED_S, none_s=LEASE_S + 1.0 + LOADED_S, left_s=2.0 + LOADED_S)
"""For agents with QUICK Leases: C6 for a node that dies, C11 for what must go, and as long for who comes back."""


class Stage:
    """A sandbox without an allocator, and the means to play it. Its watcher knows what is allocated and deleted, and
    which agents and nodes are ended, as long as that is done here."""

    def __init__(self, sandbox: Sandbox, watcher: Watcher) -> None:
        self.sandbox = sandbox
        self.cluster = sandbox.cluster
        self.watcher = watcher
        self._shown: dict[str, tuple[Address, ...]] = {}

    # Playing the allocator.

    async def allocated(self, name: str, *addresses: Address, group: str = "default", port: int = 80) -> None:
        """A Service as the allocator leaves it."""
        annotations = {names.ALLOCATED_BY: names.BRAND, names.ALLOCATED_FROM: group}
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
            "spec": {"type": "LoadBalancer", "ports": [{"port": port, "protocol": "TCP", "targetPort": 8080}]},
        }
        await contents.apply(self.sandbox.client, SERVICES.path(name, NAMESPACE), service)
        body = {"status": {"loadBalancer": {"ingress": [{"ip": str(a), "ipMode": "VIP"} for a in addresses]}}}
        path = SERVICES.path(name, NAMESPACE, "status")
        await self.sandbox.client.request("PATCH", path, body=body, content_type=MERGE_PATCH)
        before = self._shown.get(name, ())
        self._shown[name] = addresses
        self._expect_gone(before)
        self._expect([address for address in addresses if address not in before])

    async def deleted(self, *services: str) -> None:
        """The Services are deleted, and gone."""
        for name in services:
            await self.sandbox.delete(SERVICES, name, NAMESPACE)
            self._expect_gone(self._shown.pop(name, ()))

    def _expect(self, addresses: Iterable[Address]) -> None:
        local = self.cluster.layout.local
        for address in addresses:
            self.watcher.expect(address, everywhere=not any(address in subnet for subnet in local))

    def _expect_gone(self, addresses: Iterable[Address]) -> None:
        still_shown = {address for shown in self._shown.values() for address in shown}
        self.watcher.expect_gone(*(address for address in addresses if address not in still_shown))

    # Ending and starting what runs on the nodes. Meanwhile they do not count.

    async def kill_agent(self, node: str) -> None:
        self.watcher.excuse(node, "its agent is killed")
        await self.sandbox.kill_agent(node)

    async def stop_agent(self, node: str) -> None:
        self.watcher.excuse(node, "its agent is told to stop")
        await self.sandbox.stop_agent(node)

    async def start_agent(self, node: str) -> None:
        await self.sandbox.start_agent(node)
        self.watcher.count(node)

    async def power_off(self, node: str) -> None:
        self.watcher.excuse(node, "the machine is dead")
        self.watcher.release(node)
        await self.sandbox.power_off(node)

    async def power_on(self, node: str) -> None:
        await self.sandbox.power_on(node)
        self.watcher.count(node)
        self.watcher.guard(node)

    async def ready(self, node: str) -> bool:
        """What the kubelet is told when it asks whether the agent is ready."""
        try:
            await self.cluster.fetch(*AGENT_WEB, place=node, path="/readyz")
        except (OSError, TimeoutError):
            return False
        return True

    async def all_ready(self) -> None:
        async def so() -> bool:
            return all([await self.ready(node) for node in self.cluster.nodes])

        await self.sandbox.until("every agent to be ready", so, 40.0)

    async def tidy(self) -> None:
        """All Services deleted, and everything of ours gone from every kernel."""
        await self.deleted(*list(self._shown))

        async def so() -> bool:
            tables = [await self.cluster.addresses(node) for node in self.cluster.nodes]
            return not any(held.mine for table in tables for held in table)

        await self.sandbox.until("nothing of ours on any node", so)

    # What there is to see.

    async def holders(self, address: Address) -> list[str]:
        return sorted(await self.sandbox.holders(address))

    async def one_holder(self, address: Address, *, other_than: str = "", timeout_s: float = 20.0) -> str:
        async def one() -> str:
            found = [node for node in await self.holders(address) if node != other_than]
            return found[0] if len(found) == 1 else ""

        return await self.sandbox.until(f"one holder of {address}", one, timeout_s)

    async def held_by(self, address: Address, *nodes: str) -> None:
        async def so() -> bool:
            return await self.holders(address) == sorted(nodes)

        await self.sandbox.until(f"{address} on {', '.join(nodes) or 'no node'}", so)

    async def answered_by(self, address: Address, node: str, port: int = 80, timeout_s: float = 20.0) -> None:
        async def so() -> bool:
            return await self.sandbox.answering(address, port) == node

        await self.sandbox.until(f"{node} to answer for {address}", so, timeout_s)

    async def annotation(self, name: str) -> str | None:
        service = await self.sandbox.get(SERVICES, name, NAMESPACE) or {}
        found: dict[str, str] = service["metadata"].get("annotations", {})
        return found.get(names.ANNOUNCING_V4)

    async def report(self, node: str) -> dict[str, Any]:
        found = await self.sandbox.get(NODE_ANNOUNCEMENTS, node, names.INSTALL_NAMESPACE)
        return dict(found["spec"]) if found else {}

    async def lease(self, node: str) -> Any:
        return await self.sandbox.get(LEASES, names.NODE_LEASE_PREFIX + node, names.INSTALL_NAMESPACE)

    def ip(self, node: str, *words: str) -> str:
        """`ip …` on the node."""
        command = ["ip", "-n", self.cluster.namespace_of(node), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    @contextlib.contextmanager
    def watched(self, node: str) -> Iterator[list[str]]:
        """Everything that the kernel tells about addresses on the node while the block runs, one line each."""
        command = ["ip", "-n", self.cluster.namespace_of(node), "-o", "monitor", "address"]
        lines: list[str] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as monitor:
            assert monitor.stdout is not None
            try:
                # It has subscribed once it tells of what we do; what we did before that, it does not know.
                while not select.select([monitor.stdout], [], [], 0.1)[0]:
                    self.ip(
                        node,
                        "address",
                        "replace",
                        "192.0.2.77/32",
                        "dev",
                        "lo",
                        "valid_lft",
                        "600",
                        "preferred_lft",
                        "600",
                    )
                yield lines
            finally:
                self.ip(node, "address", "del", "192.0.2.77/32", "dev", "lo")
                monitor.terminate()
                told = monitor.communicate()[0].splitlines()
                lines += [line for line in told if "192.0.2.77" not in line]


@contextlib.contextmanager
def watched_stage(sandbox: Sandbox, bounds: Bounds = BOUNDS) -> Iterator[Stage]:
    """A stage whose watcher sees everything from now on; at its end it raises what must not have been. What is
    somebody else's on any node must stay as it is."""
    with Watcher(sandbox.cluster, bounds) as watcher:
        watcher.guard()
        yield Stage(sandbox, watcher)
