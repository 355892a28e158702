"""Nodes that give their addresses up: drained, excluded, or told to stop. Real agents with kernels in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from purelb_sm.domain import names
from tests.support.agents import Lab, a_lab
from tests.support.product import JSON, a_cluster, local_group
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
