"""Nodes that give their addresses up: drained, excluded, or told to stop. Real agents with kernels in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from purelb_sm.domain import names
from purelb_sm.net import KernelRefused
from purelb_sm.sandbox.apiserver import Fault
from tests.support.agents import QUICK, Lab, a_lab
from tests.support.product import JSON, NAMESPACE, a_cluster, local_group
from tests.support.waiting import eventually

LOCAL = local_group("172.30.250.50-172.30.250.99", "fd30:250::50-fd30:250::99")
ROUTED: JSON = {
    "apiVersion": "purelb.io/v2",
    "kind": "ServiceGroup",
    "metadata": {"name": "routed", "namespace": "purelb-system"},
    "spec": {"remote": {"v4pools": [{"subnet": "172.31.1.0/24", "pool": "172.31.1.0/24", "aggregation": "/32"}]}},
}
IP, IP6, REMOTE = "172.30.250.53", "fd30:250::53", "172.31.1.225"
HOW = {
    "annotation": {"annotations": {names.DRAIN: "2026-11-23T07:00:00Z"}},
    "label": {"labels": {names.EXCLUDE_LABEL: ""}},
}


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with a_cluster(tmp_path, LOCAL, ROUTED) as cluster, a_lab(cluster) as lab:
        yield lab


def draining(lab: Lab, node: str) -> str | None:
    """What the node's Lease says."""
    lease = lab.lease(node) or {"metadata": {}}
    found: dict[str, str] = lease["metadata"].get("annotations", {})
    return found.get(names.DRAINING)


async def says(lab: Lab, node: str, what: str | None) -> None:
    """Waits until the node's Lease says so."""
    await eventually(lambda: draining(lab, node) == what, f"the Lease of {node} to say {what}")


@pytest.mark.spec("C17")
@pytest.mark.parametrize("how", list(HOW))
async def test_a_drained_node_says_so_in_its_lease_and_its_addresses_go_and_come_back(lab: Lab, how: str) -> None:
    await lab.start("node1", "node2", "node3")
    ips = [f"172.30.250.{n}" for n in range(50, 62)]
    await lab.allocated("echo", *ips)
    before = {ip: await lab.one_holder(ip) for ip in ips}
    await lab.mark("node1", HOW[how])
    for ip in ips:
        if before[ip] == "node1":
            await lab.held_elsewhere(ip, "node1")
        else:
            assert await lab.holders(ip) == [before[ip]], "only what the drained node held moves"
    assert draining(lab, "node1") == ("drain" if how == "annotation" else "excluded")
    await lab.mark("node1", {kind: dict.fromkeys(values) for kind, values in HOW[how].items()})
    for ip in ips:
        await lab.held_by(ip, before[ip])
    await says(lab, "node1", None)


@pytest.mark.spec("C17")
async def test_what_nobody_else_can_hold_stays_on_a_drained_node(lab: Lab) -> None:
    await lab.start("node1")
    await lab.allocated("echo", IP, IP6)
    await lab.held_by(IP, "node1")
    await lab.held_by(IP6, "node1")
    await lab.mark("node1", HOW["annotation"])
    await says(lab, "node1", "drain")
    await lab.allocated("later", "172.30.250.54")
    await lab.held_by("172.30.250.54", "node1")
    assert await lab.holders(IP) == await lab.holders(IP6) == ["node1"]
    await lab.start("node2")
    for ip in (IP, IP6, "172.30.250.54"):
        await lab.held_by(ip, "node2")


@pytest.mark.spec("C17")
async def test_an_agent_that_starts_knows_whether_its_node_is_drained_and_what_its_lease_said_is_not_believed(
    lab: Lab,
) -> None:
    await lab.start("node1", "node2")
    for node in ("node1", "node2"):
        await lab.mark(node, HOW["label"])
        await says(lab, node, "excluded")
        await lab.agents[node].kill()
    await lab.mark("node2", {"labels": {names.EXCLUDE_LABEL: None}})
    await lab.start("node1", "node2")
    await says(lab, "node2", None)
    assert draining(lab, "node1") == "excluded"
    ips = [f"172.30.250.{n}" for n in range(50, 58)]
    await lab.allocated("echo", *ips)
    for ip in ips:
        await lab.held_by(ip, "node2")


# Make before break.


def announced_by(lab: Lab, name: str) -> str | None:
    """The node that the Service's annotation names."""
    return (lab.annotation(name) or "").partition(",")[0] or None


async def settled(lab: Lab, name: str, ip: str) -> str:
    """Waits until one node holds the address and says so; tells which."""
    holder = await lab.one_holder(ip)
    await eventually(lambda: announced_by(lab, name) == holder)
    return holder


@pytest.mark.spec("C6", "C17")
async def test_told_to_stop_it_holds_each_address_until_another_node_says_that_it_does(lab: Lab) -> None:
    await lab.start("node1", "node2", "node3")
    await lab.allocated("echo", IP)
    await lab.allocated("six", IP6)
    leaving, six = await settled(lab, "echo", IP), await lab.one_holder(IP6)
    seen, seen6 = lab.watched(IP), lab.watched(IP6)
    told = lab.agents[leaving].announced(IP)
    await eventually(lambda: lab.agents[leaving].announced(IP) == 3)
    await lab.agents[leaving].terminate()
    assert await lab.agents[leaving].held() == {}
    assert lab.lease(leaving) is None
    heir = await lab.held_elsewhere(IP, leaving)
    assert seen.sets() == [(leaving,), tuple(sorted((leaving, heir))), (heir,)]
    seen6.never_nobody()
    assert (await lab.one_holder(IP6) == six) == (six != leaving)
    assert lab.agents[heir].announced(IP) > 0, "the neighbours were told before the other withdrew"
    assert announced_by(lab, "echo") == heir
    assert lab.agents[leaving].announced(IP) == max(told, 3)


@pytest.mark.spec("C17")
async def test_drained_and_brought_back_an_address_is_never_nobodys(lab: Lab) -> None:
    await lab.start("node1", "node2", "node3")
    await lab.allocated("echo", IP)
    node = await settled(lab, "echo", IP)
    seen = lab.watched(IP)
    await lab.mark(node, HOW["annotation"])
    heir = await lab.held_elsewhere(IP, node)
    await eventually(lambda: announced_by(lab, "echo") == heir)
    await lab.mark(node, {"annotations": {names.DRAIN: None}})
    await lab.held_by(IP, node)
    both = tuple(sorted((node, heir)))
    assert seen.sets() == [(node,), both, (heir,), both, (node,)]


@pytest.mark.spec("C5", "C17")
async def test_a_node_that_joins_gets_its_addresses_without_a_gap(lab: Lab) -> None:
    await lab.start("node1", "node2")
    ips = [f"172.30.250.{n}" for n in range(50, 60)]
    for n, ip in enumerate(ips):
        await lab.allocated(f"echo{n}", ip)
        await settled(lab, f"echo{n}", ip)
    lab.kernel("node3")
    seen = [lab.watched(ip) for ip in ips]
    await lab.start("node3")
    moved = [await lab.one_holder(ip) for ip in ips].count("node3")
    assert moved > 0
    for one in seen:
        one.never_nobody()


@pytest.mark.spec("C17", "A15")
async def test_a_shared_address_goes_with_the_first_of_its_services_that_names_the_heir(lab: Lab) -> None:
    await lab.start("node1", "node2")
    for n in range(3):
        await lab.allocated(f"web{n}", IP, ports=[{"port": 80 + n, "protocol": "TCP"}])
    node = await settled(lab, "web2", IP)
    seen = lab.watched(IP)
    lab.cluster.server.faults.add(Fault("error", method="PATCH", path=r"/services/web[01]/status"))
    await lab.mark(node, HOW["label"])
    await lab.held_elsewhere(IP, node)
    seen.never_nobody()
    assert seen.together_s() < QUICK["lease_s"]


@pytest.mark.spec("C17")
@pytest.mark.parametrize("why", ["kernel", "annotation"])
async def test_an_heir_that_says_nothing_is_waited_for_no_longer_than_a_lease(lab: Lab, why: str) -> None:
    await lab.start("node1", "node2")
    await lab.allocated("echo", IP)
    node = await settled(lab, "echo", IP)
    other = "node2" if node == "node1" else "node1"
    if why == "kernel":
        lab.kernels[other].refuse(ip_address(IP), KernelRefused(12))
    else:
        lab.cluster.server.faults.add(Fault("error", method="PATCH", path=r"/services/echo/status"))
        lab.cluster.server.faults.add(Fault("error", method="GET", path=r"/nodeannouncements"))
    await lab.mark(node, HOW["annotation"])
    await says(lab, node, "drain")
    await lab.held_by(IP, *([] if why == "kernel" else [other]))
    assert lab.agents[node].agent.upkeep.handover.overdue == 1
    lab.kernels[other].refuse(ip_address(IP), None)
    await lab.held_by(IP, other)


@pytest.mark.spec("C6", "C17")
@pytest.mark.parametrize("how", ["drained", "stopped"])
async def test_an_heir_that_cannot_write_to_the_service_in_time_is_believed_by_its_report(lab: Lab, how: str) -> None:
    """A Lease is long enough here that only the report can end the wait."""
    await lab.start("node1", "node2", lease_s=8.0)
    await lab.allocated("echo", IP)
    node = await settled(lab, "echo", IP)
    seen, handover = lab.watched(IP), lab.agents[node].agent.upkeep.handover
    lab.cluster.server.faults.add(Fault("error", method="PATCH", path=r"/services/echo/status"))
    if how == "drained":
        await lab.mark(node, HOW["annotation"])
    else:
        await lab.agents[node].terminate()
    await lab.held_elsewhere(IP, node)
    assert (handover.given, handover.overdue) == (1, 0)
    seen.never_nobody()


@pytest.mark.spec("C6", "D9")
async def test_told_to_stop_it_ends_in_time_though_no_heir_says_a_word(lab: Lab) -> None:
    await lab.start("node1", "node2")
    await lab.allocated("echo", IP)
    node = await settled(lab, "echo", IP)
    lab.kernels["node2" if node == "node1" else "node1"].refuse(ip_address(IP), KernelRefused(12))
    started = time.monotonic()
    await lab.agents[node].terminate()
    assert time.monotonic() - started < 5.0
    assert await lab.agents[node].held() == {}
    assert lab.lease(node) is None


@pytest.mark.spec("C17", "C11")
async def test_what_is_nobodys_any_more_goes_at_once_though_it_waited_for_an_heir(lab: Lab) -> None:
    await lab.start("node1", "node2")
    await lab.allocated("echo", IP)
    node = await settled(lab, "echo", IP)
    lab.kernels["node2" if node == "node1" else "node1"].refuse(ip_address(IP), KernelRefused(12))
    await lab.mark(node, HOW["annotation"])
    await eventually(lambda: lab.agents[node].agent.upkeep.handover.waiting == 1)
    lab.cluster.delete_service("echo")
    await lab.held_by(IP)
    assert lab.agents[node].agent.upkeep.handover.overdue == 0


@pytest.mark.spec("C17", "C6")
async def test_a_node_killed_while_it_is_drained_leaves_one_holder(lab: Lab) -> None:
    await lab.start("node1", "node2", "node3")
    await lab.allocated("echo", IP)
    node = await settled(lab, "echo", IP)
    slow = lab.cluster.server.faults.add(Fault("error", method="PATCH", path=r"/services/echo/status"))
    await lab.mark(node, HOW["annotation"])
    await eventually(lambda: lab.agents[node].agent.upkeep.handover.waiting == 1)
    await lab.agents[node].kill()
    lab.cluster.server.faults.remove(slow.number)
    await lab.start(node)
    heir = await lab.held_elsewhere(IP, node)
    await eventually(lambda: announced_by(lab, "echo") == heir)


@pytest.mark.spec("C7", "C9")
async def test_a_node_names_itself_once_its_neighbours_have_been_told(lab: Lab) -> None:
    """Who held the address before withdraws when it reads that."""
    lab.cluster.server.apply(
        {
            "apiVersion": "purelb.io/v2",
            "kind": "LBNodeAgent",
            "metadata": {"name": "default", "namespace": "purelb-system"},
            "spec": {"local": {"localInterface": "default", "garpConfig": {"initialDelay": "600ms"}}},
        }
    )
    (node,) = await lab.start("node1")

    def named() -> str | None:
        found = announced_by(lab, "echo")
        assert found is None or node.announced(IP) >= 1
        return found

    await lab.allocated("echo", IP)
    await eventually(named)


# Remote addresses, and what people are told.


def told(lab: Lab, reason: str) -> list[str]:
    return [event["message"] for event in lab.cluster.events(reason)]


@pytest.mark.spec("C17")
@pytest.mark.parametrize("how", list(HOW))
async def test_a_drained_node_withdraws_remote_addresses_once_another_reports_them_and_says_how_it_went(
    lab: Lab, how: str
) -> None:
    await lab.start("node1")
    await lab.allocated("echo", IP)
    await lab.allocated("routed", REMOTE, group="routed")
    await lab.held_by(REMOTE, "node1")
    await lab.mark("node1", HOW[how])
    (begun,) = await eventually(lambda: told(lab, "Draining"))
    assert begun.startswith("Node node1 gives its addresses up: its Node has the ")
    (kept,) = await eventually(lambda: told(lab, "DrainIncomplete"))
    assert kept == f"Node node1 keeps what no other node announces: {IP}, {REMOTE}"
    assert await lab.holders(REMOTE) == await lab.holders(IP) == ["node1"]
    lab.kernel("node2")
    seen = lab.watched(REMOTE)
    await lab.start("node2")
    await lab.held_by(REMOTE, "node2")
    await lab.held_by(IP, "node2")
    (done,) = await eventually(lambda: told(lab, "Drained"))
    assert done == "Node node1 announces nothing any more"
    seen.never_nobody()
    await lab.mark("node1", {kind: dict.fromkeys(values) for kind, values in HOW[how].items()})
    await lab.held_by(REMOTE, "node1", "node2")
    await eventually(lambda: told(lab, "Undrained"))
    assert {event["involvedObject"]["kind"] for event in lab.cluster.events("Drained")} == {"Node"}


@pytest.mark.spec("C17")
async def test_of_nodes_that_are_all_drained_each_keeps_remote_addresses(lab: Lab) -> None:
    await lab.start("node1", "node2")
    await lab.allocated("routed", REMOTE, group="routed")
    await lab.held_by(REMOTE, "node1", "node2")
    for node in ("node1", "node2"):
        await lab.mark(node, HOW["label"])
    await eventually(lambda: len(told(lab, "DrainIncomplete")) >= 1)
    await says(lab, "node2", "excluded")
    held = await lab.holders(REMOTE)
    assert held, "whoever was drained last keeps it"
    await lab.mark("node1", {"labels": {names.EXCLUDE_LABEL: None}})
    await lab.held_by(REMOTE, "node1")


@pytest.mark.spec("C17", "C10")
async def test_what_only_a_drained_node_has_endpoints_for_stays_there(lab: Lab) -> None:
    await lab.start("node1", "node2")
    await lab.allocated("local", REMOTE, group="routed", externalTrafficPolicy="Local")
    await lab.allocated("cluster", "172.31.1.9", group="routed")
    lab.cluster.server.apply(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "local", "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": "local"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.244.0.1"], "nodeName": "node1", "conditions": {"ready": True}}],
        }
    )
    await lab.held_by(REMOTE, "node1")
    await lab.mark("node1", HOW["annotation"])
    await lab.held_by("172.31.1.9", "node2")
    # What it says before the other node's report of the second has come is right, too, at that moment.
    await eventually(lambda: f"Node node1 keeps what no other node announces: {REMOTE}" in told(lab, "DrainIncomplete"))
    assert await lab.holders(REMOTE) == ["node1"]


@pytest.mark.spec("C17")
async def test_what_others_announced_comes_back_to_a_drained_node_when_they_die(lab: Lab) -> None:
    await lab.start("node1", "node2")
    await lab.allocated("routed", REMOTE, group="routed")
    await lab.held_by(REMOTE, "node1", "node2")
    await lab.mark("node1", HOW["annotation"])
    await lab.held_by(REMOTE, "node2")
    await lab.agents["node2"].kill()
    await lab.held_by(REMOTE, "node1", "node2")
