"""A whole installation on one machine, made on entry and gone on exit: what tests and the demo run on."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from purelb_sm.domain.names import INSTALL_NAMESPACE, LEADER_LEASE, NODE_LEASE_PREFIX
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.resources import LEASES, NODE_ANNOUNCEMENTS, NODES, SERVICE_GROUPS
from purelb_sm.sandbox.cluster import Cluster
from purelb_sm.sandbox.launcher import contents, service_ports
from purelb_sm.sandbox.launcher.api import ApiServer, EmulatedApi, RealApi
from purelb_sm.sandbox.launcher.door import served
from purelb_sm.sandbox.launcher.product import Product, Running

ROUTED = (ip_network("172.31.1.0/24"), ip_network("172.31.2.0/24"), ip_network("fd31:2::/64"))
"""The networks of the sample groups that no node has; the client routes them to the nodes."""


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


def _silent(_: str) -> None:
    return


class Sandbox(Product):
    """An asynchronous context manager. `report` is told, in a few words each, what is being done.

    Afterwards nothing is left on the machine but the directory, if one was given.
    """

    def __init__(self, options: Options | None = None, *, report: Callable[[str], None] = _silent) -> None:
        self.options = options or Options()
        super().__init__(self.options.allocator_flags, self.options.agent_flags)
        self._report = report
        self._stack = AsyncExitStack()
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

    def processes(self) -> list[Running]:
        """The processes that run now, the API server first."""
        api = self._api.process if isinstance(self._api, EmulatedApi) else None
        ours = [Running("api-server", api.pid, api.log_path)] if api is not None and api.running else []
        return ours + super().processes()

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
        filling = [self._fill(), self.upgrade_database()] if self.options.allocator else [self._fill()]
        await _all(filling)
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
        self.log_path("any").parent.mkdir(exist_ok=True)

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
        self._api.node_kubeconfig(self.node_kubeconfig)

    async def _fill(self) -> None:
        crds = contents.apply_crds(self.client)
        nodes = (
            contents.apply_node(self.client, contents.node_object(name, self.cluster.layout.addresses(name)))
            for name in self.nodes
        )
        await asyncio.gather(contents.apply_namespace(self.client), crds, *nodes)
        if self.options.groups:
            await contents.apply_groups(self.client, contents.sample_groups())
        if self.options.kubeconfig is not None:
            self._stack.push_async_callback(contents.remove, self.client, self._made())

    def _made(self) -> list[str]:
        """What an API server that outlives the sandbox must be rid of. The CRDs and the namespace stay."""
        groups = contents.sample_groups() if self.options.groups else []
        leases = [*(f"{NODE_LEASE_PREFIX}{node}" for node in self.nodes), LEADER_LEASE]
        return [
            *(NODES.path(node) for node in self.nodes),
            *(LEASES.path(name, INSTALL_NAMESPACE) for name in leases),
            *(NODE_ANNOUNCEMENTS.path(node, INSTALL_NAMESPACE) for node in self.nodes),
            *(SERVICE_GROUPS.path(group["metadata"]["name"], INSTALL_NAMESPACE) for group in groups),
        ]

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
        self._stack.push_async_callback(self._stop_product)
        starting = [self.start_agent(node) for node in self.nodes] if self.options.agents else []
        if self.options.allocator:
            starting.append(self.start_allocator())
        await _all(starting)

    # Bad days. What only concerns nodes, links and the way to the API server is in `cluster`.

    async def kill_api(self) -> None:
        """SIGKILL to the API server."""
        await self.api.kill()

    async def restart_api(self) -> None:
        """SIGKILL to the API server, and a new one with its data at the same address: every watch is cut."""
        await self.api.kill()
        await self.api.start()


async def _all(starting: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All at once; the first that fails ends the others."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for one in starting:
                tasks.create_task(one)
    except ExceptionGroup as failed:
        # Raised within an `except*` it comes out as a group again, with the Python 3.11.2 of Debian 12.
        raise failed.exceptions[0] from None
