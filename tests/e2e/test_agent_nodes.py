"""Agents as processes on nodes with real kernels: what the kernel holds, what the wire says, whatever happens to them.

The allocator is played: Services are written as it leaves them, so that each test says what is to be announced.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_interface

import pytest

from purelb_sm.domain.addresses import Address
from purelb_sm.kube.resources import EVENTS
from purelb_sm.sandbox.cluster import ApiState
from purelb_sm.sandbox.cluster.layout import NODE_INTERFACE
from purelb_sm.sandbox.launcher import Options
from tests.e2e.conftest import Start
from tests.support.stage import LEASE_S, LOADED_S, LOCAL, LOCAL6, NAMESPACE, QUICK, REMOTE, Stage, watched_stage

pytestmark = pytest.mark.root


@pytest.fixture
async def stage(start_sandbox: Start) -> AsyncIterator[Stage]:
    with watched_stage(await start_sandbox(Options(nodes=3, allocator=False, agent_flags=QUICK))) as stage:
        yield stage


@pytest.mark.spec("C2", "C3", "C4", "C7", "C8")
async def test_one_node_answers_for_a_local_address_and_all_hold_a_remote_one(stage: Stage) -> None:
    async with stage.cluster.sniff() as wire:
        await stage.allocated("echo", LOCAL, LOCAL6)
        await stage.allocated("routed", REMOTE, group="routed", port=81)
        holder, holder6 = await stage.one_holder(LOCAL), await stage.one_holder(LOCAL6)
        await stage.held_by(REMOTE, *stage.cluster.nodes)
        await stage.answered_by(LOCAL, holder)
        await stage.answered_by(LOCAL6, holder6)

        async def told() -> bool:
            return all(sum(s.gratuitous and s.address == a for s in wire.seen) >= 3 for a in (LOCAL, LOCAL6))

        await stage.sandbox.until("the neighbours to be told three times", told)
    assert {s.mac for s in wire.seen if s.gratuitous and s.address == LOCAL} == {await stage.cluster.mac(holder)}
    assert not [s for s in wire.seen if s.address == REMOTE]
    shown = stage.ip(holder, "-d", "address", "show", "to", str(LOCAL))
    assert re.search(rf"inet {LOCAL}/24 .*{NODE_INTERFACE}", shown), shown
    assert "noprefixroute" in shown
    lifetimes = re.search(r"valid_lft (\d+)sec preferred_lft (\d+)sec", shown)
    assert lifetimes is not None, shown
    assert all(285 <= int(seconds) <= 300 for seconds in lifetimes.groups())
    for node in stage.cluster.nodes:
        remote = stage.ip(node, "address", "show", "to", str(REMOTE))
        assert re.search(rf"inet {REMOTE}/32 .*kube-lb0\s+valid_lft forever", remote), remote
    await stage.cluster.set_next_hops(["node2"])
    assert await stage.sandbox.answering(REMOTE, 81) == "node2"

    async def said() -> bool:
        messages = {e["message"] for e in await stage.sandbox.items(EVENTS, NAMESPACE)}
        remote = {f"Announcing {REMOTE} from node {node} interface kube-lb0" for node in stage.cluster.nodes}
        return messages >= {f"Node {holder} announcing {LOCAL} on interface {NODE_INTERFACE}", *remote}

    await stage.sandbox.until("the Events", said)


@pytest.mark.spec("C11")
async def test_a_deleted_service_leaves_every_kernel(stage: Stage) -> None:
    await stage.allocated("echo", LOCAL, REMOTE)
    await stage.one_holder(LOCAL)
    await stage.held_by(REMOTE, *stage.cluster.nodes)
    await stage.deleted("echo")
    started = time.monotonic()
    await stage.held_by(LOCAL)
    await stage.held_by(REMOTE)
    assert time.monotonic() - started < 2.0 + LOADED_S


@pytest.mark.spec("C6", "C9", "C5")
async def test_a_dead_nodes_address_answers_from_another_within_the_lease_and_a_second(stage: Stage) -> None:
    await stage.allocated("echo", LOCAL)
    dead = await stage.one_holder(LOCAL)
    await stage.answered_by(LOCAL, dead)
    async with stage.cluster.sniff() as wire:
        await stage.power_off(dead)
        died = time.time()
        heir = await stage.one_holder(LOCAL, other_than=dead)
        mac = await stage.cluster.mac(heir)

        async def told() -> float:
            return next((s.at for s in wire.seen if s.gratuitous and s.address == LOCAL and s.mac == mac), 0.0)

        at = await stage.sandbox.until("gratuitous ARP of the heir", told)
    assert at - died < LEASE_S + 1.0 + LOADED_S
    await stage.answered_by(LOCAL, heir)

    async def written() -> bool:
        return await stage.annotation("echo") == f"{heir}, {NODE_INTERFACE}"

    await stage.sandbox.until("the annotation to name the heir", written)
    # The dead come back: the same decision as before, and again exactly one.
    await stage.power_on(dead)
    assert await stage.one_holder(LOCAL) == dead
    await stage.answered_by(LOCAL, dead)


@pytest.mark.spec("C6")
async def test_told_to_stop_an_agent_leaves_nothing_behind_and_the_next_takes_over(stage: Stage) -> None:
    await stage.allocated("echo", LOCAL)
    await stage.allocated("routed", REMOTE, group="routed", port=81)
    leaving = await stage.one_holder(LOCAL)
    await stage.held_by(REMOTE, *stage.cluster.nodes)
    started = time.monotonic()
    await stage.stop_agent(leaving)
    assert stage.sandbox.agents[leaving].returncode == 0, stage.sandbox.agents[leaving].output()
    assert time.monotonic() - started < 5.0
    assert await stage.lease(leaving) is None
    assert (await stage.report(leaving)).get("addresses", []) == []
    assert not [held for held in await stage.cluster.addresses(leaving) if held.mine]
    heir = await stage.one_holder(LOCAL, timeout_s=1.0 + LOADED_S)
    await stage.answered_by(LOCAL, heir, timeout_s=1.0 + LOADED_S)


@pytest.mark.spec("C13", "C4")
async def test_a_killed_agent_takes_over_what_is_there_without_a_gap_and_cleans_up_only_its_own(stage: Stage) -> None:
    await stage.allocated("echo", LOCAL, LOCAL6)
    await stage.allocated("routed", REMOTE, group="routed", port=81)
    await stage.allocated("gone", ip_address("172.31.1.9"), group="routed", port=82)
    node = await stage.one_holder(LOCAL)
    await stage.held_by(REMOTE, *stage.cluster.nodes)
    await stage.held_by(ip_address("172.31.1.9"), *stage.cluster.nodes)
    foreign = ("172.30.250.98/24", NODE_INTERFACE), ("172.31.1.7/32", "kube-lb0")
    with stage.watched(node) as told:
        await stage.kill_agent(node)
        for address, interface in foreign:
            stage.ip(node, "address", "add", address, "dev", interface)
        stage.watcher.guard(node, only={ip_interface(address).ip for address, _ in foreign})
        await stage.deleted("gone")
        await stage.start_agent(node)
        await stage.held_by(ip_address("172.31.1.9"))
    removed = [line for line in told if line.startswith("Deleted")]
    assert len(removed) == 1, removed
    assert "172.31.1.9/32" in removed[0]
    assert node in await stage.holders(LOCAL)
    for address, interface in foreign:
        assert address in stage.ip(node, "address", "show", "dev", interface)


@pytest.mark.spec("C12")
async def test_what_a_person_or_a_link_takes_away_is_back(stage: Stage) -> None:
    await stage.allocated("echo", LOCAL, LOCAL6)
    await stage.allocated("routed", REMOTE, group="routed", port=81)
    node, node6 = await stage.one_holder(LOCAL), await stage.one_holder(LOCAL6)
    await stage.held_by(REMOTE, *stage.cluster.nodes)
    stage.ip(node, "address", "del", f"{LOCAL}/24", "dev", NODE_INTERFACE)
    await stage.held_by(LOCAL, node)
    stage.ip(node, "link", "del", "kube-lb0")
    await stage.held_by(REMOTE, *stage.cluster.nodes)
    stage.watcher.release(node6)
    await stage.cluster.link_down(node6, admin=True)
    await stage.cluster.link_up(node6)
    await stage.held_by(LOCAL6, node6)
    await stage.answered_by(LOCAL6, node6)
    await stage.answered_by(LOCAL, node)


@pytest.mark.spec("C14")
async def test_while_the_api_server_is_away_traffic_goes_on_and_nothing_moves(stage: Stage) -> None:
    await stage.allocated("echo", LOCAL)
    node = await stage.one_holder(LOCAL)
    await stage.answered_by(LOCAL, node)
    with contextlib.ExitStack() as watching:
        told = {name: watching.enter_context(stage.watched(name)) for name in stage.cluster.nodes}
        await stage.cluster.set_api(None, ApiState.HUNG)
        end = time.monotonic() + 2 * LEASE_S
        while time.monotonic() < end:
            assert await stage.sandbox.answering(LOCAL, 80, 5.0) == node
            await asyncio.sleep(0.1)
        await stage.cluster.set_api(None, ApiState.REACHABLE)
        await stage.allocated("later", REMOTE, group="routed", port=81)
        await stage.held_by(REMOTE, *stage.cluster.nodes)
        assert await stage.holders(LOCAL) == [node]
    assert not [line for lines in told.values() for line in lines if str(LOCAL) in line and "Deleted" in line]
    assert [name for name, lines in told.items() if any(str(LOCAL) in line for line in lines)] in ([], [node])


@pytest.mark.spec("C5", "C7", "C14")
@pytest.mark.parametrize("how", ["no-api", "paused", "killed"])
async def test_a_node_that_the_others_gave_up_takes_its_traffic_back(stage: Stage, how: str) -> None:
    """Its kernel held the address all the time, but the neighbours were told of another node."""
    await stage.allocated("echo", LOCAL)
    away = await stage.one_holder(LOCAL)
    await stage.answered_by(LOCAL, away)
    process = stage.sandbox.agents[away]
    stage.watcher.excuse(away, how)
    match how:
        case "no-api":
            await stage.cluster.set_api(away, ApiState.HUNG)
        case "paused":
            process.pause()
        case _:
            await stage.kill_agent(away)
    heir = await stage.one_holder(LOCAL, other_than=away)
    await stage.answered_by(LOCAL, heir)
    match how:
        case "no-api":
            await stage.cluster.set_api(away, ApiState.REACHABLE)
        case "paused":
            process.resume()
        case _:
            await stage.start_agent(away)
    stage.watcher.count(away)
    await stage.held_by(LOCAL, away)
    await stage.answered_by(LOCAL, away)


@pytest.mark.spec("C6")
async def test_told_to_stop_while_the_api_server_is_away_an_agent_withdraws_and_ends_in_time(stage: Stage) -> None:
    await stage.allocated("echo", LOCAL)
    leaving = await stage.one_holder(LOCAL)
    await stage.cluster.set_api(leaving, ApiState.HUNG)
    started = time.monotonic()
    await stage.stop_agent(leaving)
    assert time.monotonic() - started < 5.0
    assert stage.sandbox.agents[leaving].returncode == 0, stage.sandbox.agents[leaving].output()
    assert not [held for held in await stage.cluster.addresses(leaving) if held.mine]


@pytest.mark.spec("C6", "C13")
async def test_agents_killed_at_any_time_while_services_come_and_go_converge(stage: Stage) -> None:
    """Kills are spread over the work: while addresses are added, while they are removed, while an agent starts."""
    stage.ip("node1", "address", "add", "172.30.250.98/24", "dev", NODE_INTERFACE)
    stage.watcher.guard("node1")
    # In the middle of it a node may wait for its next agent; what comes out is compared at the end.
    stage.watcher.agree(two_s=20.0, none_s=20.0, left_s=20.0)
    expected: set[Address] = set()
    moments = random.Random(77)  # Where in the work a kill falls differs, and is the same at every run.
    for turn in range(10):
        victim = moments.choice(stage.cluster.nodes)
        adding = [ip_address("172.30.250.54") + turn, ip_address("172.31.1.10") + turn]
        work = asyncio.gather(
            stage.allocated(f"local{turn}", adding[0], port=1000 + turn),
            stage.allocated(f"routed{turn}", adding[1], group="routed", port=2000 + turn),
        )
        await asyncio.sleep(moments.choice((0.0, 0.01, 0.05, 0.2, 1.0)))
        await stage.kill_agent(victim)
        await work
        expected |= set(adding)
        if turn >= 2:
            await stage.deleted(f"local{turn - 2}")
            expected.discard(ip_address("172.30.250.54") + turn - 2)
        # Some are killed again while they start.
        await stage.sandbox.start_agent(victim, wait=moments.random() < 0.3)
        stage.watcher.count(victim)

    async def converged() -> bool:
        tables = {node: await stage.cluster.addresses(node) for node in stage.cluster.nodes}
        held = {node: {h.address for h in table if h.mine} for node, table in tables.items()}
        for address in expected:
            where = [node for node in held if address in held[node]]
            if len(where) != (1 if str(address).startswith("172.30.") else 3):
                return False
        return set().union(*held.values()) == expected

    await stage.sandbox.until("every address where it belongs, and no other", converged, 40.0)
    assert "172.30.250.98/24" in stage.ip("node1", "address", "show", "dev", NODE_INTERFACE)
    for node in stage.cluster.nodes:
        stage.sandbox.check_processes()

        async def reported(node: str = node) -> bool:
            held = {str(h.address) for h in await stage.cluster.addresses(node) if h.mine}
            report = await stage.report(node)
            return {a["address"] for a in report.get("addresses", []) if a["state"] == "present"} == held

        await stage.sandbox.until(f"the report of {node} to hold what its kernel holds", reported)
