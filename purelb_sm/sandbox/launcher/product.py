"""The product's own processes in an installation: the allocator, and an agent on each node."""

from __future__ import annotations

import asyncio
import sys
from abc import abstractmethod
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import aiohttp

from purelb_sm.sandbox.cluster import NodeProcess, process
from purelb_sm.sandbox.launcher.api import free_port
from purelb_sm.sandbox.launcher.installation import CommandFailed, Installation

READY_TIMEOUT_S = 60.0
IDENTITY = "sandbox"
"""The allocator's name in the leader Lease. It stays the same, as that of a restarted container does, so that one that
was killed need not wait for its own Lease to end."""

AGENT_WEB = (IPv4Address("127.0.0.1"), 7472)
"""Where an agent serves its health, inside its node."""


class Running(NamedTuple):
    """A process of the installation, for people who want to look at it or kill it."""

    name: str
    pid: int
    log_path: Path


class Product(Installation):
    """Starts, stops and kills the allocator and the agents, and notices when one ends by itself.

    directory         holds the book, the agents' journals, and the logs
    allocator, agents the latest process of each, running or not
    """

    def __init__(self, allocator_flags: Sequence[str], agent_flags: Sequence[str]) -> None:
        self.directory = Path()
        self.allocator: NodeProcess | None = None
        self.agents: dict[str, NodeProcess] = {}
        self._flags = {"allocator": allocator_flags, "agent": agent_flags}
        self._port = 0
        self._has_book = False
        self._ended: set[NodeProcess] = set()

    @property
    @abstractmethod
    def kubeconfig(self) -> Path:
        """For processes on this machine."""

    @property
    def node_kubeconfig(self) -> Path:
        """For processes in the nodes' namespaces."""
        return self.directory / "kubeconfig-in-node"

    @property
    def database(self) -> str:
        """The SQLAlchemy URL of the book."""
        return f"sqlite:///{self.directory / 'book.db'}"

    def log_path(self, name: str) -> Path:
        """The log of a process: `api-server`, `allocator`, or the name of a node for its agent."""
        return self.directory / "logs" / f"{name}.log"

    def environment(self) -> dict[str, str]:
        """What a shell needs to talk to the sandbox with `kubectl` and `purelb`."""
        return {
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(self.directory / "kubecache"),
            "PURELB_DATABASE": self.database,
        }

    def processes(self) -> list[Running]:
        """The processes that run now."""
        named = {"allocator": self.allocator, **{f"agent on {node}": one for node, one in self.agents.items()}}
        return [Running(name, one.pid, one.log_path) for name, one in named.items() if one is not None and one.running]

    def check_processes(self) -> None:
        """Raises `CommandFailed`, with the end of its log, when a process has ended that was not ended here."""
        for one in (self.allocator, *self.agents.values()):
            if one is not None and not one.running and one not in self._ended:
                tail = "\n".join(one.output().splitlines()[-20:])
                raise CommandFailed(f"exit status {one.returncode}: {' '.join(one.argv)}\n{tail}")

    async def upgrade_database(self) -> None:
        """The book is there and current, once: before the first allocator, not before those that follow."""
        if not self._has_book:
            await self.purelb("db", "upgrade")
            self._has_book = True

    async def start_allocator(self, *, wait: bool = True) -> None:
        """Starts it, and waits until it leads and has read everything. Raises `NotInTime`, `CommandFailed`."""
        await self.upgrade_database()
        self._port = self._port or free_port()
        argv = [sys.executable, "-m", "purelb_sm", "allocator", "--kubeconfig", str(self.kubeconfig)]
        argv += ["--identity", IDENTITY, "--web-port", str(self._port), *self._flags["allocator"]]
        self.allocator = await process.start(
            argv,
            inside=None,
            env={"PURELB_DATABASE": self.database, "PURELB_WEB_HOST": "127.0.0.1"},
            log_path=self.log_path("allocator"),
        )
        if wait:
            await self.until("the allocator to be ready", self._allocator_ready, READY_TIMEOUT_S)

    async def kill_allocator(self) -> None:
        """SIGKILL, between two instructions."""
        await self._end(self.allocator, kill=True)

    async def stop_allocator(self) -> None:
        """SIGTERM, and waits for the end."""
        await self._end(self.allocator)

    async def start_agent(self, node: str, *, wait: bool = True) -> None:
        """Starts the node's agent, and waits until it is ready. Raises `NotInTime`, `CommandFailed`."""
        journal = self.directory / "nodes" / node
        journal.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "purelb_sm", "agent", "--node-name", node]
        argv += ["--kubeconfig", str(self.node_kubeconfig), "--journal-directory", str(journal), *self._flags["agent"]]
        self.agents[node] = await self.cluster.start_process(node, argv, log_path=self.log_path(node))
        if wait:
            await self.until(f"the agent of {node} to be ready", lambda: self._agent_ready(node), READY_TIMEOUT_S)

    async def kill_agent(self, node: str) -> None:
        """SIGKILL: its addresses stay in the kernel."""
        await self._end(self.agents[node], kill=True)

    async def stop_agent(self, node: str) -> None:
        """SIGTERM, and waits for the end."""
        await self._end(self.agents[node])

    async def power_off(self, node: str) -> None:
        """The machine is dead, its agent with it."""
        self._ended.update(self.cluster.processes(node))
        await self.cluster.power_off(node)

    async def power_on(self, node: str) -> None:
        """The machine boots and starts its agent."""
        await self.cluster.power_on(node)
        await self.start_agent(node)

    async def _stop_product(self) -> None:
        await asyncio.gather(*(self._end(one) for one in (*self.agents.values(), self.allocator)))

    async def _end(self, one: NodeProcess | None, *, kill: bool = False) -> None:
        if one is None:
            return
        self._ended.add(one)
        if kill:
            one.kill()
            await one.wait()
        else:
            await one.stop()

    async def _allocator_ready(self) -> bool:
        url = f"http://127.0.0.1:{self._port}/readyz"
        try:
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def _agent_ready(self, node: str) -> bool:
        """As the kubelet would ask, from inside the node."""
        try:
            await self.cluster.fetch(*AGENT_WEB, place=node, path="/readyz")
        except (OSError, TimeoutError):
            return False
        return True
