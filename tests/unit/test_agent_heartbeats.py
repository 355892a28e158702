"""Agents that hear each other: who takes over when, and what ends it. Kernels and links are in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from purelb_sm.domain import names
from tests.support.agents import INTERFACE, Lab, a_lab, node_kernel
from tests.support.product import a_cluster, local_group
from tests.support.waiting import eventually

LOCAL = local_group("172.30.250.50-172.30.250.99", "fd30:250::50-fd30:250::99")
IP = "172.30.250.53"
INTERVAL_S = 0.1
HEARING: dict[str, Any] = {"heartbeat_s": INTERVAL_S, "lease_s": 30.0, "renew_s": 0.5}
"""Leases that do not run out while a test looks."""


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with a_cluster(tmp_path, LOCAL) as cluster, a_lab(cluster) as lab:
        yield lab


async def acquainted(lab: Lab, *nodes: str) -> None:
    """Waits until all of these have heard each other, both ways."""
    for node in nodes:

        def hears_all(node: str = node) -> bool:
            return lab.agents[node].agent.heartbeats.heard() == len(nodes) - 1

        await eventually(hears_all, f"{node} to hear all")


def suspected(lab: Lab, node: str) -> set[str]:
    return set(lab.agents[node].agent.heartbeats.suspected)


@pytest.mark.spec("C6", "C3")
async def test_the_kernel_of_a_killed_agent_holds_its_addresses_for_their_lifetime_at_most(lab: Lab) -> None:
    """The bound of two holders after a kill -9: the heir has told the neighbours, and the old one leaves by itself."""
    metadata = {"name": "default", "namespace": "purelb-system"}
    spec = {"local": {"addressConfig": {"localInterface": {"validLifetime": 60}}}}
    lab.cluster.create({"apiVersion": "purelb.io/v2", "kind": "LBNodeAgent", "metadata": metadata, "spec": spec})
    later = dict.fromkeys(("node1", "node2", "node3"), 0.0)
    for number, name in enumerate(later, 1):
        lab.kernels[name] = node_kernel(number, clock=lambda name=name: time.monotonic() + later[name])
    await lab.start(*later, **HEARING)
    await acquainted(lab, *later)
    await lab.allocated("echo", IP)
    dead = await lab.one_holder(IP)
    await lab.agents[dead].kill()

    async def taken_over() -> str | None:
        return next((node for node in await lab.holders(IP) if node != dead), None)

    heir = await eventually(taken_over)
    await eventually(lambda: lab.agents[heir].announced(IP) >= 1)
    assert lab.lease(dead) is not None
    assert await lab.holders(IP) == sorted([dead, heir])
    later[dead] = 61.0
    await lab.held_by(IP, heir)


@pytest.mark.spec("C13", "C6")
async def test_an_agent_that_starts_again_gets_its_addresses_back_once(lab: Lab) -> None:
    nodes = ("node1", "node2", "node3")
    await lab.start(*nodes, **HEARING)
    await acquainted(lab, *nodes)
    await lab.allocated("echo", IP)
    node = await lab.one_holder(IP)
    await lab.agents[node].kill()

    async def taken_over() -> str | None:
        return next((other for other in await lab.holders(IP) if other != node), None)

    heir = await eventually(taken_over)
    told = lab.agents[node].announced(IP)
    await lab.start(node, **HEARING)
    await lab.held_by(IP, node)
    await eventually(lambda: lab.agents[node].announced(IP) >= told + 3)
    await acquainted(lab, *nodes)
    counters = lab.agents[heir].agent.upkeep.announcer.holdings.counters
    assert (counters.added, counters.removed) == (1, 1), "it came and went once"
    assert not any(suspected(lab, other) for other in nodes)


@pytest.mark.spec("C5")
async def test_two_nodes_that_lose_their_link_both_hold_until_the_leases_are_renewed_and_no_longer(lab: Lab) -> None:
    await lab.start("node1", "node2", **HEARING)
    await acquainted(lab, "node1", "node2")
    await lab.allocated("echo", IP)
    holder = await lab.one_holder(IP)
    other = {"node1": "node2", "node2": "node1"}[holder]
    lab.segment.part("node1")

    async def both() -> bool:
        return len(await lab.holders(IP)) == 2

    await eventually(both)
    since = time.monotonic()
    told = lab.agents[holder].announced(IP)
    await lab.held_by(IP, holder)
    assert time.monotonic() - since < HEARING["renew_s"] + 2.0
    await eventually(lambda: lab.agents[holder].announced(IP) >= told + 3, "the neighbours to be told again")
    await eventually(lambda: not (suspected(lab, "node1") or suspected(lab, "node2")))
    # They do not hear each other, and that is all.
    began = [lab.agents[node].agent.heartbeats.suspicions for node in ("node1", "node2")]
    await asyncio.sleep(10 * INTERVAL_S)  # Nothing to wait for: nothing may happen.
    assert [lab.agents[node].agent.heartbeats.suspicions for node in ("node1", "node2")] == began == [1, 1]
    assert await lab.holders(IP) == [holder]
    added = lab.agents[other].agent.upkeep.announcer.holdings.counters.added
    assert added == 1


@pytest.mark.spec("C5", "C9")
async def test_one_who_writes_that_it_holds_the_address_lives_and_gets_it_back_before_its_lease_is_renewed(
    lab: Lab,
) -> None:
    """Else the two would undo each other's annotation until then, as fast as the API server can."""
    await lab.start("node1", "node2", **{**HEARING, "renew_s": 7.0})
    await acquainted(lab, "node1", "node2")
    await lab.allocated("echo", IP)
    holder = await lab.one_holder(IP)
    other = {"node1": "node2", "node2": "node1"}[holder]
    await eventually(lambda: lab.annotation("echo") == f"{holder}, {INTERFACE}")
    lab.cluster.requests.clear()
    lab.segment.part("node1")
    await eventually(lambda: suspected(lab, other) == {holder})
    since = time.monotonic()
    await eventually(lambda: suspected(lab, other) == set())
    await lab.held_by(IP, holder)
    assert time.monotonic() - since < 5.0, "no renewal was due"
    await eventually(lambda: lab.annotation("echo") == f"{holder}, {INTERFACE}")
    assert len([path for method, path in lab.cluster.requests if method == "PATCH" and "/services/" in path]) <= 6


@pytest.mark.spec("C5")
async def test_one_broken_link_of_three_moves_nothing(lab: Lab) -> None:
    nodes = ("node1", "node2", "node3")
    await lab.start(*nodes, **HEARING)
    await acquainted(lab, *nodes)
    await lab.allocated("echo", IP)
    holder = await lab.one_holder(IP)
    others = [node for node in nodes if node != holder]
    lab.segment.cut = {(holder, others[0]), (others[0], holder)}
    await eventually(lambda: lab.agents[others[0]].agent.heartbeats.heard() == 1)
    await asyncio.sleep(10 * INTERVAL_S)  # Nothing to wait for: nothing may happen.
    assert await lab.holders(IP) == [holder]
    assert not any(lab.agents[node].agent.heartbeats.suspicions for node in nodes)


@pytest.mark.spec("C6")
async def test_an_agent_that_keeps_its_addresses_when_it_ends_is_not_replaced(lab: Lab) -> None:
    nodes = ("node1", "node2", "node3")
    await lab.start(*nodes, **HEARING, keep_on_exit=True)
    await acquainted(lab, *nodes)
    await lab.allocated("echo", IP)
    holder = await lab.one_holder(IP)
    await lab.agents[holder].terminate()
    await asyncio.sleep(10 * INTERVAL_S)  # Nothing to wait for: nothing may happen.
    assert await lab.holders(IP) == [holder]
    await lab.start(holder, **HEARING, keep_on_exit=True)
    await acquainted(lab, *nodes)
    assert await lab.holders(IP) == [holder]


@pytest.mark.spec("C6")
async def test_where_one_does_not_send_heartbeats_it_is_left_to_its_lease(lab: Lab) -> None:
    """Switched off, or an older agent: a node that publishes nothing is not expected to be heard."""
    await lab.start("node1", "node2", heartbeat_s=0.0)
    lease = lab.lease("node1")
    assert lease is not None
    assert names.HEARTBEAT not in lease["metadata"]["annotations"]
    await lab.start("node3", **{**HEARING, "lease_s": 2.0, "renew_s": 0.3})
    for number in range(50, 58):
        await lab.allocated(f"s{number}", f"172.30.250.{number}")
    owners = {number: await lab.one_holder(f"172.30.250.{number}") for number in range(50, 58)}
    dead = next(owner for owner in owners.values() if owner != "node3")
    killed = time.monotonic()
    await lab.agents[dead].kill()
    await eventually(lambda: dead not in lab.agents["node3"].agent.liveness.live())
    assert time.monotonic() - killed > 1.0, "its Lease decided"
    assert lab.agents["node3"].agent.heartbeats.suspicions == 0


async def test_an_agent_that_was_switched_off_takes_what_it_published_out_of_its_lease(lab: Lab) -> None:
    (node,) = await lab.start("node1", **HEARING)

    def published() -> bool:
        lease = lab.lease("node1")
        return lease is not None and names.HEARTBEAT in lease["metadata"]["annotations"]

    await eventually(published)
    await node.kill()
    await lab.start("node1", heartbeat_s=0.0)
    await eventually(lambda: not published())


async def test_no_key_is_ever_logged(
    lab: Lab, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    await lab.start("node1", "node2", **HEARING, log_level="debug")
    await acquainted(lab, "node1", "node2")
    lease = lab.lease("node1")
    assert lease is not None
    key = lease["metadata"]["annotations"][names.HEARTBEAT].split()[2]
    out = capsys.readouterr()
    assert "own_subnets" in out.out + out.err
    assert key not in out.out + out.err


async def test_the_electorate_leaves_a_suspect_out_only_where_there_is_another(lab: Lab) -> None:
    """The only node of a subnet is suspected in vain: nobody else could have its addresses, and they must not be taken
    for remote ones."""
    lab.kernels["node1"] = node_kernel(1)
    lab.kernels["node1"].add_foreign("172.30.251.11/24", "enp1s0")
    nodes = ("node1", "node2", "node3")
    await lab.start(*nodes, **HEARING)
    await acquainted(lab, *nodes)
    await lab.agents["node1"].kill()
    await eventually(lambda: suspected(lab, "node2") == {"node1"})
    table = lab.agents["node2"].agent.table
    await eventually(lambda: set(table.place.electorate.candidates(ip_address(IP))) == {"node2", "node3"})
    assert table.place.electorate.winner(ip_address("172.30.251.50")) == "node1"
