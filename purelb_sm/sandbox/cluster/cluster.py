"""A cluster of nodes: made on entry, gone on exit, with the faults that nodes, links and API servers have."""

from __future__ import annotations

import asyncio
import atexit
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from purelb_sm.net import Held, Interface, IPAddress, IPNetwork, links, pyroute
from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.addresses import AddressTable
from purelb_sm.net.ownership import KernelMark
from purelb_sm.sandbox.cluster import client, namespace, process, state
from purelb_sm.sandbox.cluster.layout import (
    BRIDGE,
    CLIENT,
    CLIENT_INTERFACE,
    FABRIC,
    LOCAL_V4,
    LOCAL_V6,
    NOBODYS_MAC,
    NODE_INTERFACE,
    PREFIX_START,
    ROUTED,
    STATE_DIRECTORY,
    Layout,
    plan,
)
from purelb_sm.sandbox.cluster.node_server import NodeServer
from purelb_sm.sandbox.cluster.process import NodeProcess
from purelb_sm.sandbox.cluster.proxy import ApiProxy, ApiState, OpenSocket, Upstream
from purelb_sm.sandbox.cluster.wiring import wiring

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Cluster:
    """An asynchronous context manager. Places are named by node (`node1` …) or `client`.

    `prefix` begins the names of its namespaces; two clusters at once need two, so by default it is drawn. Unless
    `handle_sigterm` is off, SIGTERM and SIGHUP cancel the task that entered it, so that it is cleaned up as on Ctrl-C.
    `api_upstream` is where the launcher reaches the API server; it can be given or moved later (`set_api_upstream`).
    """

    def __init__(
        self,
        nodes: int = 5,
        prefix: str | None = None,
        api_upstream: Upstream | None = None,
        *,
        local: Sequence[IPNetwork] = (LOCAL_V4, LOCAL_V6),
        routed: Sequence[IPNetwork] = ROUTED,
        state_directory: Path = STATE_DIRECTORY,
        handle_sigterm: bool = True,
    ) -> None:
        self.layout: Layout = plan(nodes, local, routed)
        self.prefix = prefix or PREFIX_START + secrets.token_hex(2)
        self.server = NodeServer({node: self.open_socket(node) for node in self.nodes})
        self._api_upstream = api_upstream
        self._state_directory = state_directory
        self._handle_sigterm = handle_sigterm
        self._proxies: dict[str, ApiProxy] = {}
        self._processes: dict[str | None, list[NodeProcess]] = {}
        self._record: Path | None = None

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.layout.nodes

    def namespace_of(self, place: str) -> str:
        """The name under which `ip netns` knows the place."""
        return f"{self.prefix}-{place}"

    def open_socket(self, place: str) -> OpenSocket:
        """Opens sockets in the place, as `socket.socket` does here."""
        return namespace.socket_opener(self.namespace_of(place))

    # Making and removing it.

    async def __aenter__(self) -> Self:
        names = [self.namespace_of(place) for place in (FABRIC, CLIENT, *self.nodes)]
        self._record = state.claim(self.prefix, names, self._state_directory)
        atexit.register(self._remove)
        try:
            self._cancel_on_signals()
            await _to_the_end(asyncio.to_thread(self._build, names))
            for node in self.nodes:
                self._proxies[node] = ApiProxy(self.open_socket(node), self._upstream)
                await self._proxies[node].set_state(ApiState.REACHABLE)
        except BaseException:
            await self._tear_down()
            raise
        log.info("cluster up", prefix=self.prefix, nodes=len(self.nodes))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tear_down()
        log.info("cluster removed", prefix=self.prefix)

    async def _tear_down(self) -> None:
        try:
            running = [one for started in self._processes.values() for one in started]
            await asyncio.gather(*(one.stop() for one in running))
            await self.server.close()
            for proxy in self._proxies.values():
                await proxy.close()
        finally:
            self._remove()
            atexit.unregister(self._remove)
            self._ignore_signals()

    def _remove(self) -> None:
        """Also run at exit of the interpreter, for a clean-up that was interrupted by a second Ctrl-C."""
        state.remove_namespaces([self.namespace_of(place) for place in (*self.nodes, CLIENT, FABRIC)])
        if self._record is not None:
            self._record.unlink(missing_ok=True)

    def _cancel_on_signals(self) -> None:
        task = asyncio.current_task()
        if self._handle_sigterm and task is not None:
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)

    def _ignore_signals(self) -> None:
        if self._handle_sigterm:
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().remove_signal_handler(number)

    def _build(self, names: Sequence[str]) -> None:
        for name in names:
            namespace.create(name)
        namespace.inside(self.namespace_of(FABRIC), self._build_fabric)
        self._build_client()
        for node in self.nodes:
            namespace.write_setting(self.namespace_of(node), "net/ipv4/conf/all/rp_filter", "0")
            namespace.inside(self.namespace_of(node), lambda node=node: self._configure_node(node))  # type: ignore[misc]

    def _build_fabric(self) -> None:
        with wiring() as cables:
            cables.add_bridge(BRIDGE)
            cables.add_cable(CLIENT, BRIDGE, self.namespace_of(CLIENT), CLIENT_INTERFACE)
            for node in self.nodes:
                cables.add_cable(node, BRIDGE, self.namespace_of(node), NODE_INTERFACE)
            for port in (CLIENT, *self.nodes):
                cables.set_link(port, up=True)

    def _build_client(self) -> None:
        name = self.namespace_of(CLIENT)
        for setting, value in {
            "net/ipv4/ip_forward": "1",
            "net/ipv6/conf/all/forwarding": "1",
            "net/ipv4/conf/all/rp_filter": "0",
            "net/ipv4/conf/all/send_redirects": "0",
            # Every connection chooses its next hop anew, as a router with several equal routes does.
            "net/ipv4/fib_multipath_hash_policy": "1",
            "net/ipv6/fib_multipath_hash_policy": "1",
        }.items():
            namespace.write_setting(name, setting, value)
        namespace.inside(name, self._configure_client)

    def _configure_client(self) -> None:
        with wiring() as cables:
            cables.set_link(CLIENT_INTERFACE, up=True)
            for subnet in self.layout.local:
                cables.set_address(CLIENT_INTERFACE, self.layout.router(subnet), subnet.prefixlen)
            self._route(self.nodes)

    def _configure_node(self, node: str) -> None:
        """What the network configuration of a machine does at boot, and again when its link comes back."""
        with wiring() as cables:
            cables.set_link(NODE_INTERFACE, up=True)
            for subnet in self.layout.local:
                cables.set_address(NODE_INTERFACE, self.layout.address(node, subnet), subnet.prefixlen)
            for subnet in self.layout.local:
                cables.set_default_route(self.layout.router(subnet), NODE_INTERFACE)

    # Routes to routed addresses, in place of a routing protocol.

    async def set_next_hops(self, nodes: Collection[str]) -> None:
        """The client reaches the routed networks through these nodes only."""
        await self._inside(CLIENT, lambda: self._route(nodes))

    def _route(self, nodes: Collection[str]) -> None:
        with wiring() as cables:
            for network in self.layout.routed:
                subnet = next(one for one in self.layout.local if one.version == network.version)
                hops = [self.layout.address(node, subnet) for node in nodes]
                cables.set_route(network, hops, CLIENT_INTERFACE)

    # Processes.

    async def start_process(
        self, node: str | None, argv: Sequence[str], env: Mapping[str, str] | None = None, *, log_path: Path
    ) -> NodeProcess:
        """Starts a command in the place, or (None) in the launcher's own namespace. It is stopped at the latest when
        the cluster is. See `process.start`."""
        inside = None if node is None else self.namespace_of(node)
        started = await process.start(argv, inside=inside, env=env, log_path=log_path)
        self._processes.setdefault(node, []).append(started)
        return started

    def processes(self, node: str | None) -> list[NodeProcess]:
        """The processes of that place that still run."""
        return [one for one in self._processes.get(node, []) if one.running]

    # What nodes, links and API servers do on bad days.

    async def power_off(self, node: str) -> None:
        """The machine is dead: nothing goes out any more, not even the resets of its connections; what was in its
        memory is lost."""
        await self._port(node, up=False)
        await self.set_api(node, ApiState.HUNG)
        running = self.processes(node)
        for one in running:
            one.kill()
        await asyncio.gather(*(one.wait() for one in running))
        await self._inside(node, _forget_configuration)

    async def power_on(self, node: str) -> None:
        """The machine boots: its own addresses and routes, no process."""
        self._proxies[node].reset_connections()
        await self._inside(node, lambda: self._configure_node(node))
        await self._port(node, up=True)
        await self.set_api(node, ApiState.REACHABLE)

    async def link_down(self, node: str, *, admin: bool = False) -> None:
        """The cable is pulled: the interface loses its carrier. `admin`: `ip link set down` on the node instead,
        which loses IPv6 addresses and routes. The way to the API server stays as it is."""
        if admin:
            await self._inside(node, lambda: _set_link(NODE_INTERFACE, up=False))
        else:
            await self._port(node, up=False)

    async def link_up(self, node: str) -> None:
        """Ends both kinds of `link_down`; the node's own addresses and routes are back, as its configuration says."""
        await self._port(node, up=True)
        await self._inside(node, lambda: self._configure_node(node))

    async def unplug(self, node: str) -> None:
        """The node's network card is pulled out: the interface is gone, and all that was on it."""
        await self._inside(node, _remove_node_interface)

    async def plug_in(self, node: str) -> None:
        """A card in place of the one that was pulled out, with another MAC address; the node's own addresses and
        routes are on it, as its configuration says."""
        await self._inside(FABRIC, lambda: self._lay_cable(node))
        await self._inside(node, lambda: self._configure_node(node))

    def _lay_cable(self, node: str) -> None:
        with wiring() as cables:
            cables.add_cable(node, BRIDGE, self.namespace_of(node), NODE_INTERFACE)
            cables.set_link(node, up=True)

    async def cut(self, one: str, other: str) -> None:
        """These two nodes do not reach each other any more; everybody else reaches both, and they everybody else."""
        for node, lost in ((one, other), (other, one)):
            await self._inside(node, partial(_misdirect, self.layout.addresses(lost), NOBODYS_MAC))

    async def join(self, one: str, other: str) -> None:
        """Ends `cut`."""
        for node, found in ((one, other), (other, one)):
            await self._inside(node, partial(_misdirect, self.layout.addresses(found), None))

    async def partition(self, node: str) -> None:
        """The node lives and sees nobody: neither its link nor the API server."""
        await self._port(node, up=False)
        await self.set_api(node, ApiState.HUNG)

    async def heal(self, node: str) -> None:
        """Ends `partition`."""
        await self.link_up(node)
        await self.set_api(node, ApiState.REACHABLE)

    async def set_api(self, node: str | None, state: ApiState, delay_s: float = 0.0) -> None:
        """How the node (None: every node) sees the API server from now on."""
        for name in self.nodes if node is None else [node]:
            self._proxies[name].delay_s = delay_s
            await self._proxies[name].set_state(state)

    def set_api_upstream(self, upstream: Upstream) -> None:
        """New connections go there; open ones stay where they are."""
        self._api_upstream = upstream

    def _upstream(self) -> Upstream:
        if self._api_upstream is None:
            raise ConnectionRefusedError("no API server was given")
        return self._api_upstream

    async def _port(self, node: str, *, up: bool) -> None:
        await self._inside(FABRIC, lambda: _set_link(node, up=up))

    # What can be seen.

    async def set_ports(self, node: str | None, ports: Collection[int]) -> None:
        """See `NodeServer.set_ports`."""
        await self.server.set_ports(node, ports)

    async def fetch(
        self, address: IPAddress, port: int, timeout_s: float = 2.0, *, place: str = CLIENT, path: str = "/"
    ) -> str:
        """The body that `http://ADDRESS:PORT/PATH` has for the client (or another place). See `client.fetch`."""
        return await client.fetch(self.open_socket(place), address, port, timeout_s, path)

    @asynccontextmanager
    async def sniff(self, interface: str = CLIENT_INTERFACE, *, place: str = CLIENT) -> AsyncIterator[client.Sniffer]:
        """Collects the ARP and Neighbor Discovery frames that pass there, until the end of the block."""
        sniffer = client.Sniffer(self.open_socket(place), interface)
        try:
            yield sniffer
        finally:
            sniffer.close()

    async def addresses(self, node: str) -> list[Held]:
        """The addresses in the node's kernel, those with our mark as `mine`."""
        return await self._inside(node, _read_addresses)

    async def interfaces(self, node: str) -> list[Interface]:
        return await self._inside(node, _read_interfaces)

    async def mac(self, node: str) -> str:
        """The MAC address of the node's interface, as a Sighting shows it."""
        found = next(one for one in await self.interfaces(node) if one.name == NODE_INTERFACE)
        assert found.mac is not None
        return found.mac.hex(":")

    async def _inside(self, place: str, call: Callable[[], T]) -> T:
        return await asyncio.to_thread(namespace.inside, self.namespace_of(place), call)


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Also when cancelled meanwhile: a thread cannot be stopped, and must not go on building what is being removed."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _set_link(name: str, *, up: bool) -> None:
    with wiring() as cables:
        cables.set_link(name, up=up)


def _remove_node_interface() -> None:
    with wiring() as cables:
        cables.remove_link(NODE_INTERFACE)


def _misdirect(addresses: Sequence[IPAddress], mac: str | None) -> None:
    with wiring() as cables:
        for address in addresses:
            cables.set_neighbour(NODE_INTERFACE, address, mac)


def _forget_configuration() -> None:
    """Removes the interfaces that somebody made and every address, as a reboot does."""
    with wiring() as cables:
        for name in cables.links():
            if name == NODE_INTERFACE:
                cables.flush_addresses(name)
                cables.set_link(name, up=False)
            else:
                cables.remove_link(name)


def _read_addresses() -> list[Held]:
    with closing(nl.RtnlSocket()) as sock, closing(pyroute.Socket()) as link_sock:
        return AddressTable(sock, link_sock, KernelMark()).all()


def _read_interfaces() -> list[Interface]:
    with closing(pyroute.Socket()) as sock:
        return links.interfaces(sock)
