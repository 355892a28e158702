"""An emulated cluster does what its users build on: nodes that are reachable, ways that fail, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from purelb_sm.net import Kernel, Wanted
from purelb_sm.sandbox.cluster import ApiState, Cluster, PrefixTaken, cleanup_stale, namespace
from purelb_sm.sandbox.cluster.layout import API_PORT, CLIENT, FABRIC, NODE_INTERFACE
from tests.netns.support import ip, until

pytestmark = pytest.mark.root

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An upstream that answers each line with the same line, says goodbye at half-close, and closes."""
    with suppress(OSError):
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.write(b"goodbye\n")
        await writer.drain()
    writer.close()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    upstream = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with upstream, Cluster(2, api_upstream=upstream.sockets[0].getsockname()[:2], state_directory=tmp_path) as up:
        yield up


async def connect(
    cluster: Cluster, node: str, address: str = "127.0.0.1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection from the node to what it takes for the API server."""
    sock = cluster.open_socket(node)(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 0)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (address, API_PORT))
    except OSError:
        sock.close()
        raise
    return await asyncio.open_connection(sock=sock)


async def test_the_client_sees_which_node_answers(cluster: Cluster) -> None:
    await cluster.set_ports(None, [80])
    for subnet in cluster.layout.local:
        for node in cluster.nodes:
            assert await cluster.fetch(cluster.layout.address(node, subnet), 80) == f"{node}\n"


async def test_a_port_that_is_taken_back_is_refused(cluster: Cluster) -> None:
    address = cluster.layout.addresses("node1")[0]
    await cluster.set_ports(None, [80, 81])
    await cluster.set_ports("node1", [81])
    assert await cluster.fetch(address, 81) == "node1\n"
    with pytest.raises(ConnectionRefusedError):
        await cluster.fetch(address, 80)
    assert cluster.server.ports("node2") == {80, 81}


async def test_routed_addresses_are_reached_through_their_next_hops(cluster: Cluster) -> None:
    await cluster.set_ports(None, [80])
    routed = [ip_address("172.31.1.225"), ip_address("fd31:1::225")]
    for node in cluster.nodes:
        async with Kernel(open_socket=cluster.open_socket(node)) as kernel:
            await kernel.ensure_dummy("kube-lb0")
            assert set(
                (
                    await kernel.apply([Wanted(one, one.max_prefixlen, "kube-lb0", nodad=True) for one in routed], [])
                ).values()
            ) == {None}
    for address in routed:
        for node in cluster.nodes:
            await cluster.set_next_hops([node])
            assert await cluster.fetch(address, 80) == f"{node}\n"
        await cluster.set_next_hops(cluster.nodes)
        answers = {await cluster.fetch(address, 80) for _ in range(40)}
        assert answers == {"node1\n", "node2\n"}
        await cluster.set_next_hops([])
        with pytest.raises(OSError):
            await cluster.fetch(address, 80)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_the_api_is_reached_from_a_node_and_a_half_closed_connection_is_answered(
    cluster: Cluster, address: str
) -> None:
    reader, writer = await connect(cluster, "node1", address)
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    writer.write_eof()
    assert await reader.read() == b"goodbye\n"
    writer.close()


async def test_a_cut_api_resets_and_refuses_on_that_node_only(cluster: Cluster) -> None:
    reader, writer = await connect(cluster, "node1")
    writer.write(b"hello\n")
    await reader.readline()
    await cluster.set_api("node1", ApiState.CUT)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    with pytest.raises(ConnectionRefusedError):
        await connect(cluster, "node1")
    _, other = await connect(cluster, "node2")
    other.close()
    await cluster.set_api("node1", ApiState.REACHABLE)
    reader, again = await connect(cluster, "node1")
    again.write(b"back\n")
    assert await reader.readline() == b"back\n"
    again.close()
    writer.close()


async def test_a_hung_api_takes_connections_and_says_nothing_until_it_is_back(cluster: Cluster) -> None:
    reader, writer = await connect(cluster, "node1")
    await cluster.set_api("node1", ApiState.HUNG)
    fresh_reader, fresh_writer = await connect(cluster, "node1")
    writer.write(b"old\n")
    fresh_writer.write(b"new\n")
    for one in (reader, fresh_reader):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.read(1), 0.2)
    await cluster.set_api("node1", ApiState.REACHABLE)
    assert await asyncio.wait_for(reader.readline(), 5) == b"old\n"
    assert await asyncio.wait_for(fresh_reader.readline(), 5) == b"new\n"
    writer.close()
    fresh_writer.close()


async def test_a_slow_api_answers_late(cluster: Cluster) -> None:
    await cluster.set_api(None, ApiState.REACHABLE, delay_s=0.1)
    reader, writer = await connect(cluster, "node2")
    began = asyncio.get_running_loop().time()
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    assert asyncio.get_running_loop().time() - began >= 0.2
    writer.close()


async def test_a_server_that_resets_is_seen_as_a_reset(cluster: Cluster) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with await asyncio.start_server(reset, "127.0.0.1", 0) as rude:
        cluster.set_api_upstream(rude.sockets[0].getsockname()[:2])
        reader, writer = await connect(cluster, "node1")
        writer.write(b"hello\n")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_no_api_server_at_all_is_a_reset(cluster: Cluster) -> None:
    cluster.set_api_upstream(("127.0.0.1", 1))

    async def dial_and_read() -> None:
        reader, _writer = await connect(cluster, "node1")
        await reader.read()

    with pytest.raises(ConnectionResetError):
        await dial_and_read()


async def test_a_process_runs_in_its_node_and_is_killed_exactly(cluster: Cluster, tmp_path: Path) -> None:
    first = await cluster.start_process("node1", SLEEP, log_path=tmp_path / "first.log")
    second = await cluster.start_process("node1", SLEEP, log_path=tmp_path / "second.log")
    await until(lambda: first.output() == second.output() == "up\n")
    assert set(namespace.processes_in(cluster.namespace_of("node1"))) == {first.pid, second.pid}
    first.kill()
    assert await first.wait() == -signal.SIGKILL
    assert namespace.processes_in(cluster.namespace_of("node1")) == [second.pid]
    assert cluster.processes("node1") == [second]
    assert await second.stop() == -signal.SIGTERM


async def test_a_process_sees_its_node_and_its_environment(cluster: Cluster, tmp_path: Path) -> None:
    shown = await cluster.start_process(
        "node2",
        [sys.executable, "-c", "import os, socket; print(os.environ['WHO'], [n for _, n in socket.if_nameindex()])"],
        {"WHO": "node2"},
        log_path=tmp_path / "log",
    )
    assert await shown.wait() == 0
    assert shown.output() == f"node2 ['lo', '{NODE_INTERFACE}']\n"


async def test_a_paused_process_goes_on_where_it_was(cluster: Cluster, tmp_path: Path) -> None:
    program = "import time\nfor k in range(100000):\n    print(k, flush=True)\n    time.sleep(0.01)"
    counting = await cluster.start_process("node1", [sys.executable, "-c", program], log_path=tmp_path / "log")
    await until(lambda: counting.output() != "")
    counting.pause()
    await until(lambda: Path(f"/proc/{counting.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    before = counting.output()
    counting.resume()
    await until(lambda: counting.output() != before)
    assert counting.output().startswith(before)


async def test_a_dead_machine_is_silent_and_boots_with_its_own_addresses_only(cluster: Cluster, tmp_path: Path) -> None:
    running = await cluster.start_process("node1", SLEEP, log_path=tmp_path / "log")
    vip = ip_address("172.30.250.53")
    async with Kernel(open_socket=cluster.open_socket("node1")) as kernel:
        await kernel.apply([Wanted(vip, 24, NODE_INTERFACE, noprefixroute=True)], [])
        await kernel.ensure_dummy("kube-lb0")
    await cluster.set_ports(None, [80])
    assert await cluster.fetch(vip, 80) == "node1\n"
    await cluster.power_off("node1")
    assert running.returncode == -signal.SIGKILL
    with pytest.raises((TimeoutError, OSError)):
        await cluster.fetch(vip, 80, timeout_s=0.3)
    await cluster.power_on("node1")
    assert [one.name for one in await cluster.interfaces("node1")] == ["lo", NODE_INTERFACE]
    held = {one.address for one in await cluster.addresses("node1") if one.interface == NODE_INTERFACE}
    assert {one for one in held if not one.is_link_local} == set(cluster.layout.addresses("node1"))
    for address in cluster.layout.addresses("node1"):
        assert await cluster.fetch(address, 80, timeout_s=10) == "node1\n"


@pytest.mark.parametrize("admin", [False, True])
async def test_a_link_goes_down_and_comes_back(cluster: Cluster, admin: bool) -> None:
    await cluster.set_ports(None, [80])
    address = cluster.layout.addresses("node1")[0]
    await cluster.link_down("node1", admin=admin)
    link = next(one for one in await cluster.interfaces("node1") if one.name == NODE_INTERFACE)
    assert (link.up, link.carrier) == (not admin, False)
    with pytest.raises((TimeoutError, OSError)):
        await cluster.fetch(address, 80, timeout_s=0.3)
    await cluster.link_up("node1")
    assert await cluster.fetch(address, 80, timeout_s=10) == "node1\n"


async def test_a_partitioned_node_sees_neither_its_link_nor_the_api(cluster: Cluster) -> None:
    await cluster.set_ports(None, [80])
    await cluster.partition("node2")
    reader, writer = await connect(cluster, "node2")
    writer.write(b"hello\n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.2)
    with pytest.raises((TimeoutError, OSError)):
        await cluster.fetch(cluster.layout.addresses("node1")[0], 80, timeout_s=0.3, place="node2")
    await cluster.heal("node2")
    assert await asyncio.wait_for(reader.readline(), 5) == b"hello\n"
    assert await cluster.fetch(cluster.layout.addresses("node1")[0], 80, timeout_s=10, place="node2") == "node1\n"
    writer.close()


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    async with Cluster(2, state_directory=tmp_path) as cluster:
        names = [cluster.namespace_of(place) for place in (*cluster.nodes, CLIENT, FABRIC)]
        running = await cluster.start_process("node1", SLEEP, log_path=tmp_path / "log")
        assert all(namespace.exists(name) for name in names)
    assert running.returncode == -signal.SIGTERM
    assert not any(namespace.exists(name) for name in names)
    assert list(tmp_path.glob("*.json")) == []


async def test_two_clusters_at_once_do_not_meet(cluster: Cluster, tmp_path: Path) -> None:
    async with Cluster(1, state_directory=tmp_path) as other:
        await cluster.set_ports(None, [80])
        with pytest.raises(ConnectionRefusedError):
            await other.fetch(other.layout.addresses("node1")[0], 80)
        with pytest.raises(PrefixTaken):
            await Cluster(1, prefix=cluster.prefix, state_directory=tmp_path).__aenter__()
        assert cleanup_stale(tmp_path) == []
    assert await cluster.fetch(cluster.layout.addresses("node1")[0], 80) == "node1\n"


LAUNCHER = """
import asyncio, sys
from pathlib import Path
from purelb_sm.sandbox.cluster import Cluster
async def main():
    here = Path(sys.argv[1])
    async with Cluster(1, prefix=sys.argv[2], state_directory=here) as cluster:
        await cluster.start_process("node1", ["sleep", "600"], log_path=here / "log")
        print("up", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
async def test_however_the_launcher_ends_nothing_stays(tmp_path: Path, how: signal.Signals) -> None:
    prefix = f"t{os.getpid()}-{how.name.lower()}"
    launcher = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        LAUNCHER,
        str(tmp_path),
        prefix,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    node = f"{prefix}-node1"
    try:
        assert launcher.stdout is not None
        async with asyncio.timeout(20):
            while await launcher.stdout.readline() != b"up\n":
                pass
        await until(lambda: len(namespace.processes_in(node)) == 1)
        inside = namespace.processes_in(node)
        launcher.send_signal(how)
        await asyncio.wait_for(launcher.wait(), 20)
    finally:
        if launcher.returncode is None:
            launcher.kill()
            await launcher.wait()
    await until(lambda: not set(inside) & set(namespace.processes_in(node)))
    if how is signal.SIGKILL:
        assert namespace.exists(node)
        assert cleanup_stale(tmp_path) == [prefix]
    assert not namespace.exists(node)
    assert list(tmp_path.glob("*.json")) == []


async def test_the_hosts_own_network_is_untouched(cluster: Cluster) -> None:
    assert "br0" in ip(cluster.namespace_of(FABRIC), "-br", "link")
    assert "br0" not in Path("/proc/net/dev").read_text()
