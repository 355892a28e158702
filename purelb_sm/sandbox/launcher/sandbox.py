"""A whole installation on one machine, made on entry and gone on exit: what tests and the demo run on."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import aiohttp
import structlog

from purelb_sm.domain.names import INSTALL_NAMESPACE, NODE_LEASE_PREFIX
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.resources import LEASES, NODES, SERVICE_GROUPS
from purelb_sm.sandbox.cluster import Cluster, NodeProcess, process
from purelb_sm.sandbox.launcher import contents, service_ports
from purelb_sm.sandbox.launcher.api import ApiServer, EmulatedApi, RealApi, free_port
from purelb_sm.sandbox.launcher.door import served
from purelb_sm.sandbox.launcher.installation import CommandFailed, Installation
from purelb_sm.sandbox.launcher.waiting import wait_until

log = structlog.get_logger(__name__)

T = TypeVar("T")
JSON = dict[str, Any]

ROUTED = (ip_network("172.31.1.0/24"), ip_network("172.31.2.0/24"), ip_network("fd31:2::/64"))
"""The networks of the sample groups that no node has; the client routes them to the nodes."""

READY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """What kind of sandbox.

    nodes        how many nodes with an agent each; 0 makes no namespaces and needs no privileges
    directory    where state and logs go, kept at the end; None: a temporary one that goes with the sandbox
    kubeconfig   a real API server to use instead of the emulation
    prefix       begins the names of its network namespaces; None: drawn
    api_port     where the emulated API server listens on the loopback; None: any free port
    door         in a user namespace: a socket of the host's loopback, on `api_port`, to serve the API server at too
    groups       whether the sample ServiceGroups are made
    allocator, agents   whether they are started; tests may want to start them later
    allocator_flags, agent_flags   appended to their command lines
    """

    nodes: int = 5
    directory: Path | None = None
    kubeconfig: Path | None = None
    prefix: str | None = None
    api_port: int | None = None
    door: socket.socket | None = None
    groups: bool = True
    allocator: bool = True
    agents: bool = True
    allocator_flags: Sequence[str] = ()
    agent_flags: Sequence[str] = ()
    handle_sigterm: bool = True


class Running(NamedTuple):
    """A process of the sandbox, for people who want to look at it or kill it."""

    name: str
    pid: int
    log_path: Path


def _silent(_: str) -> None:
    return


class Sandbox(Installation):
    """An asynchronous context manager. `report` is told, in a few words each, what is being done.

    Afterwards nothing is left on the machine but the directory, if one was given.
    """

    def __init__(self, options: Options | None = None, *, report: Callable[[str], None] = _silent) -> None:
        self.options = options or Options()
        self.directory = Path()
        self.agents: dict[str, NodeProcess] = {}
        self.allocator: NodeProcess | None = None
        self._report = report
        self._stack = AsyncExitStack()
        self._allocator_port = 0
        self._has_book = False
        self._api: ApiServer | None = None
        self._client: KubeClient | None = None
        self._cluster: Cluster | None = None

    # What it consists of.

    @property
    def client(self) -> KubeClient:
        """A client of the API server, with all rights."""
        assert self._client is not None, "the sandbox is not up"
        return self._client

    @property
    def cluster(self) -> Cluster:
        """The nodes' namespaces. There is none in a sandbox without nodes."""
        assert self._cluster is not None, "the sandbox has no nodes"
        return self._cluster

    @property
    def nodes(self) -> tuple[str, ...]:
        return self._cluster.nodes if self._cluster is not None else ()

    @property
    def api(self) -> EmulatedApi:
        """The emulated API server, to be killed and started. A real one is not ours to kill."""
        assert isinstance(self._api, EmulatedApi), "the sandbox uses a real API server"
        return self._api

    @property
    def kubeconfig(self) -> Path:
        assert self._api is not None, "the sandbox is not up"
        return self._api.kubeconfig

    @property
    def database(self) -> str:
        """The SQLAlchemy URL of the book."""
        return f"sqlite:///{self.directory / 'book.db'}"

    def environment(self) -> dict[str, str]:
        """What a shell needs to talk to the sandbox with `kubectl` and `purelb`."""
        return {
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(self.directory / "kubecache"),
            "PURELB_DATABASE": self.database,
        }

    def processes(self) -> list[Running]:
        """The processes that run now."""
        found: list[tuple[str, NodeProcess | None]] = [("allocator", self.allocator)]
        if isinstance(self._api, EmulatedApi):
            found.insert(0, ("api-server", self._api.process))
        found += [(f"agent on {node}", agent) for node, agent in self.agents.items()]
        return [Running(name, one.pid, one.log_path) for name, one in found if one is not None and one.running]

    # Making and removing it.

    async def __aenter__(self) -> Self:
        try:
            await self._set_up()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._report("stopping")
        await self._stack.aclose()

    async def _set_up(self) -> None:
        self._make_directory()
        self._api = await self._start_api()
        await self._make_cluster()
        if isinstance(self._api, EmulatedApi):
            await self._api.ready()
        self._client = await self._stack.enter_async_context(await KubeClient.connect(str(self.kubeconfig)))
        self._report("custom resources, nodes and groups")
        filling = [self._fill(), self._upgrade_database()] if self.options.allocator else [self._fill()]
        await asyncio.gather(*filling)
        self._in_background(service_ports.serve(self.client, self._set_ports))
        self._report("allocator and agents")
        await self._start_all()

    def _make_directory(self) -> None:
        if self.options.directory is None:
            self.directory = Path(tempfile.mkdtemp(prefix="purelb-sandbox-"))
            self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        else:
            self.directory = self.options.directory.resolve()
            self.directory.mkdir(parents=True, exist_ok=True)
        self.log_path("").mkdir(exist_ok=True)

    def log_path(self, name: str) -> Path:
        """The log of a process: `api-server`, `allocator`, or the name of a node for its agent."""
        return self.directory / "logs" / (f"{name}.log" if name else "")

    async def _start_api(self) -> ApiServer:
        if self.options.kubeconfig is not None:
            self._report(f"API server of {self.options.kubeconfig}")
            return RealApi(self.options.kubeconfig)
        self._report("API server")
        api = EmulatedApi(self.directory, self.log_path("api-server"), self.options.api_port)
        self._stack.push_async_callback(api.stop)
        await api.launch()
        if self.options.door is not None:
            await self._stack.enter_async_context(served(self.options.door, lambda: api.upstream))
        return api

    async def _make_cluster(self) -> None:
        assert self._api is not None
        if self.options.nodes == 0:
            return
        self._report(f"{self.options.nodes} nodes")
        cluster = Cluster(
            self.options.nodes,
            self.options.prefix,
            self._api.upstream,
            routed=ROUTED,
            handle_sigterm=self.options.handle_sigterm,
        )
        self._cluster = await self._stack.enter_async_context(cluster)
        self._api.node_kubeconfig(self._node_kubeconfig)

    @property
    def _node_kubeconfig(self) -> Path:
        return self.directory / "kubeconfig-in-node"

    async def _fill(self) -> None:
        crds = contents.apply_crds(self.client)
        made = [NODES.path(node) for node in self.nodes]
        nodes = (
            contents.apply_node(self.client, contents.node_object(name, self.cluster.layout.addresses(name)))
            for name in self.nodes
        )
        await asyncio.gather(contents.apply_namespace(self.client), crds, *nodes)
        if self.options.groups:
            groups = contents.sample_groups()
            made += [SERVICE_GROUPS.path(group["metadata"]["name"], INSTALL_NAMESPACE) for group in groups]
            await contents.apply_groups(self.client, groups)
        if self.options.kubeconfig is not None:
            self._stack.push_async_callback(contents.remove, self.client, made)

    async def _upgrade_database(self) -> None:
        """The book is there and current, once: before the first allocator, not before those that follow."""
        if not self._has_book:
            await self.purelb("db", "upgrade")
            self._has_book = True

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)

        async def end() -> None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        self._stack.push_async_callback(end)

    async def _set_ports(self, ports: set[int]) -> None:
        if self._cluster is not None:
            await self._cluster.set_ports(None, ports)

    async def _start_all(self) -> None:
        # Registered last, so that they go first: agents take their addresses down while the API server still answers.
        self._stack.push_async_callback(self._stop_all)
        starting = [self.start_agent(node) for node in self.nodes] if self.options.agents else []
        if self.options.allocator:
            starting.append(self.start_allocator())
        await _all(starting)

    async def _stop_all(self) -> None:
        running = [one for one in (*self.agents.values(), self.allocator) if one is not None and one.running]
        await asyncio.gather(*(one.stop() for one in running))

    # The allocator and the agents.

    async def start_allocator(self, *, wait: bool = True) -> None:
        """Starts it, and waits until it leads and has read everything. Its name in the Lease is always the same, so
        that it need not wait for its own Lease to end after a crash."""
        await self._upgrade_database()
        self._allocator_port = self._allocator_port or free_port()
        argv = [sys.executable, "-m", "purelb_sm", "allocator", "--kubeconfig", str(self.kubeconfig)]
        argv += ["--identity", "sandbox", "--web-port", str(self._allocator_port)]
        self.allocator = await process.start(
            [*argv, *self.options.allocator_flags],
            inside=None,
            env={"PURELB_DATABASE": self.database, "PURELB_WEB_HOST": "127.0.0.1"},
            log_path=self.log_path("allocator"),
        )
        if wait:
            await self._until("the allocator to be ready", self._allocator_ready)

    async def kill_allocator(self) -> None:
        """SIGKILL, between two instructions."""
        await _kill(self.allocator)

    async def stop_allocator(self) -> None:
        """SIGTERM, and waits for the end."""
        if self.allocator is not None:
            await self.allocator.stop()

    async def start_agent(self, node: str, *, wait: bool = True) -> None:
        """Starts the node's agent, and waits until it takes part in the election."""
        state = self.directory / "nodes" / node
        state.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "purelb_sm", "agent", "--node-name", node]
        argv += ["--kubeconfig", str(self._node_kubeconfig), *self.options.agent_flags]
        self.agents[node] = await self.cluster.start_process(node, argv, log_path=self.log_path(node))
        if wait:
            await self._until(f"the agent of {node} to be live", lambda: self._agent_live(node))

    async def kill_agent(self, node: str) -> None:
        """SIGKILL: its addresses stay in the kernel."""
        await _kill(self.agents.get(node))

    async def stop_agent(self, node: str) -> None:
        """SIGTERM, and waits for the end."""
        await self.agents[node].stop()

    async def _allocator_ready(self) -> bool:
        self._must_run(self.allocator)
        url = f"http://127.0.0.1:{self._allocator_port}/readyz"
        try:
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def _agent_live(self, node: str) -> bool:
        self._must_run(self.agents[node])
        lease = await self.get(LEASES, f"{NODE_LEASE_PREFIX}{node}", INSTALL_NAMESPACE)
        return lease is not None and bool(lease.get("spec", {}).get("holderIdentity"))

    def _must_run(self, one: NodeProcess | None) -> None:
        if one is None or not one.running:
            tail = "\n".join(one.output().splitlines()[-20:]) if one is not None else ""
            raise CommandFailed(f"ended instead of starting: {' '.join(one.argv) if one else '?'}\n{tail}")

    # Bad days. What only concerns nodes, links and the way to the API server is in `cluster`.

    async def kill_api(self) -> None:
        """SIGKILL to the API server."""
        await self.api.kill()

    async def restart_api(self) -> None:
        """SIGKILL to the API server, and a new one with its data at the same address: every watch is cut."""
        await self.api.kill()
        await self.api.start()

    async def power_off(self, node: str) -> None:
        """The machine is dead, its agent with it."""
        await self.cluster.power_off(node)

    async def power_on(self, node: str) -> None:
        """The machine boots and starts its agent."""
        await self.cluster.power_on(node)
        await self.start_agent(node)

    async def _until(self, what: str, check: Callable[[], Awaitable[T]]) -> T:
        return await wait_until(check, READY_TIMEOUT_S, what)


async def _kill(one: NodeProcess | None) -> None:
    if one is not None:
        one.kill()
        await one.wait()


async def _all(starting: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All at once; the first that fails ends the others."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for one in starting:
                tasks.create_task(one)
    except* CommandFailed as failed:
        raise failed.exceptions[0] from None
