"""The sandbox itself: what it starts can be used, killed and started again, and is gone afterwards."""

from __future__ import annotations

import os

import pytest

from purelb_sm.domain.names import INSTALL_NAMESPACE
from purelb_sm.kube.resources import NODES, SERVICE_GROUPS, SERVICES
from purelb_sm.sandbox.cluster import namespace
from purelb_sm.sandbox.launcher import CommandFailed, Options, Sandbox
from tests.e2e.conftest import Start

BARE = Options(nodes=2, allocator=False, agents=False)
pytestmark = pytest.mark.root


def service(name: str, port: int, protocol: str = "TCP") -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": port, "protocol": protocol, "targetPort": 8080}]},
    }


@pytest.mark.spec("D2")
async def test_a_real_kubectl_sees_nodes_and_groups(start_sandbox: Start) -> None:
    sandbox = await start_sandbox(BARE)
    nodes = (await sandbox.kubectl("get", "nodes")).stdout.splitlines()[1:]
    assert [line.split()[:2] for line in nodes] == [["node1", "Ready"], ["node2", "Ready"]]
    groups = (await sandbox.kubectl("get", "sg", "-n", INSTALL_NAMESPACE, "-o", "name")).stdout.split()
    assert "servicegroup.purelb.io/default" in groups


async def test_nodes_answer_on_the_tcp_ports_that_services_have_and_no_others(start_sandbox: Start) -> None:
    sandbox = await start_sandbox(BARE)
    await sandbox.apply(service("web", 8080))
    await sandbox.apply(service("dns", 8053, "UDP"))

    async def served() -> bool:
        return sandbox.cluster.server.ports("node2") == {8080}

    await sandbox.until("node2 to serve 8080", served)
    node2 = sandbox.cluster.layout.addresses("node2")[0]
    assert await sandbox.answering(node2, 8080) == "node2"
    await sandbox.delete(SERVICES, "web", "default")

    async def closed() -> bool:
        return not sandbox.cluster.server.ports("node2")

    await sandbox.until("node2 to serve nothing", closed)


async def test_the_api_server_killed_and_started_again_has_what_it_had(start_sandbox: Start) -> None:
    sandbox = await start_sandbox(BARE)
    made = await sandbox.apply(service("web", 8080))
    await sandbox.restart_api()
    again = await sandbox.get(SERVICES, "web", "default")
    assert again is not None
    assert again["metadata"]["uid"] == made["metadata"]["uid"]
    await sandbox.apply(service("more", 8081))

    async def served() -> bool:
        return sandbox.cluster.server.ports("node1") == {8080, 8081}

    await sandbox.until("the watch to follow the new server", served)


async def test_a_second_sandbox_in_the_same_directory_finds_what_the_first_left(start_sandbox: Start) -> None:
    first = Sandbox(Options(nodes=0, allocator=False, directory=(await start_sandbox(BARE)).directory / "own"))
    async with first:
        await first.apply(service("web", 8080))
    async with Sandbox(first.options) as second:
        assert await second.get(SERVICES, "web", "default") is not None
        assert await second.get(SERVICE_GROUPS, "default", INSTALL_NAMESPACE) is not None


async def test_a_process_that_cannot_start_is_named_with_its_last_words(start_sandbox: Start) -> None:
    with pytest.raises(CommandFailed, match="No such option: --no-such-flag"):
        await start_sandbox(Options(nodes=1, agents=False, allocator_flags=("--no-such-flag",)))


async def test_nothing_is_left_of_it(start_sandbox: Start) -> None:
    del start_sandbox  # Only for the reason that it gives where namespaces cannot be made.
    sandbox = Sandbox(Options(nodes=1, allocator=False, agents=False))
    async with sandbox:
        assert await sandbox.get(NODES, "node1") is not None
        pids = [one.pid for one in sandbox.processes()]
        names = [sandbox.cluster.namespace_of(place) for place in ("node1", "client")]
        assert pids
        assert all(namespace.exists(name) for name in names)
    assert not sandbox.directory.exists()
    assert not any(namespace.exists(name) for name in names)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
