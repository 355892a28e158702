"""Nodes that hear each other directly: the dead are replaced at once, the living keep what they have, and where
heartbeats and the API server disagree, the Lease decides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from purelb_sm.sandbox.cluster import ApiState
from purelb_sm.sandbox.launcher import Options
from purelb_sm.sandbox.launcher.product import AGENT_WEB
from tests.e2e.conftest import Start
from tests.support.invariants import Bounds
from tests.support.stage import LEASE_S, LOADED_S, LOCAL, QUICK, REMOTE, Stage, watched_stage

pytestmark = pytest.mark.root

TAKEN_OVER_S = 2.0
RENEW_S = 2.0
"""How often a Lease is renewed, by default."""
HELD_STILL_S = 3.0


async def metric(stage: Stage, node: str, name: str) -> float:
    body = await stage.cluster.fetch(*AGENT_WEB, place=node, path="/metrics")
    return next(float(line.split()[1]) for line in body.splitlines() if line.startswith(f"purelb_lbnodeagent_{name} "))


async def acquainted(stage: Stage) -> None:
    """Waits until every agent has heard every other, both ways."""
    for node in stage.cluster.nodes:

        async def hears_all(node: str = node) -> bool:
            return await metric(stage, node, "peers_heard") == len(stage.cluster.nodes) - 1

        await stage.sandbox.until(f"{node} to hear the others", hears_all)


@pytest.fixture
async def stage(start_sandbox: Start) -> AsyncIterator[Stage]:
    """With Leases as they are by default: none of them runs out while a test looks."""
    with watched_stage(await start_sandbox(Options(nodes=3, allocator=False))) as stage:
        await acquainted(stage)
        yield stage


@pytest.mark.spec("C6")
@pytest.mark.parametrize("how", ["powered off", "agent killed"])
async def test_a_dead_node_is_replaced_long_before_its_lease_runs_out(stage: Stage, how: str) -> None:
    await stage.allocated("echo", LOCAL)
    dead = await stage.one_holder(LOCAL)
    await stage.answered_by(LOCAL, dead)
    async with stage.cluster.sniff() as wire:
        died = time.time()
        if how == "powered off":
            await stage.power_off(dead)
        else:
            await stage.kill_agent(dead)
        heir = await stage.one_holder(LOCAL, other_than=dead)
        mac = await stage.cluster.mac(heir)

        async def told() -> float:
            return next((s.at for s in wire.seen if s.gratuitous and s.address == LOCAL and s.mac == mac), 0.0)

        at = await stage.sandbox.until("gratuitous ARP of the heir", told)
    assert at - died < TAKEN_OVER_S
    await stage.answered_by(LOCAL, heir)


@pytest.mark.spec("C6", "C14")
async def test_a_dead_node_is_replaced_while_the_api_server_is_away(start_sandbox: Start) -> None:
    """Also when everybody's Lease has run out: they hear each other, and tell the neighbours."""
    with watched_stage(await start_sandbox(Options(nodes=3, allocator=False, agent_flags=QUICK))) as stage:
        await acquainted(stage)
        await stage.allocated("echo", LOCAL)
        dead = await stage.one_holder(LOCAL)
        await stage.answered_by(LOCAL, dead)
        await stage.cluster.set_api(None, ApiState.HUNG)

        async def ran_out() -> bool:
            return not any([await metric(stage, node, "lease_valid") for node in stage.cluster.nodes])

        await stage.sandbox.until("every Lease to run out", ran_out)
        died = time.time()
        await stage.power_off(dead)
        heir = await stage.one_holder(LOCAL, other_than=dead, timeout_s=TAKEN_OVER_S + LOADED_S)

        async def told() -> bool:
            return stage.watcher.announcements(LOCAL, heir, since=died) != []

        await stage.sandbox.until("the neighbours to be told", told)
        await stage.answered_by(LOCAL, heir)


@pytest.mark.spec("C5")
async def test_a_broken_link_between_two_of_three_nodes_moves_nothing(stage: Stage) -> None:
    await stage.allocated("echo", LOCAL)
    holder = await stage.one_holder(LOCAL)
    other, third = (node for node in stage.cluster.nodes if node != holder)
    with stage.watched(other) as told, stage.watched(third) as told_third:
        await stage.cluster.cut(holder, other)

        async def lost() -> bool:
            return await metric(stage, holder, "peers_heard") == await metric(stage, other, "peers_heard") == 1

        await stage.sandbox.until("the two to lose each other", lost)
        await asyncio.sleep(1.0)  # Nothing to wait for: nothing may happen.
    assert not [line for line in told + told_third if str(LOCAL) in line]
    assert await stage.holders(LOCAL) == [holder]
    await stage.answered_by(LOCAL, holder)
    await stage.cluster.join(holder, other)
    await acquainted(stage)


@pytest.mark.spec("C5", "C7")
async def test_two_nodes_that_do_not_hear_each_other_are_put_right_by_their_leases(start_sandbox: Start) -> None:
    """Both hold the address until a renewal is seen; then the first has it, and has told the neighbours again."""
    bounds = Bounds(two_s=RENEW_S + LOADED_S, none_s=LOADED_S, left_s=LOADED_S)
    with watched_stage(await start_sandbox(Options(nodes=2, allocator=False)), bounds) as stage:
        await acquainted(stage)
        await stage.allocated("echo", LOCAL)
        holder = await stage.one_holder(LOCAL)
        (other,) = (node for node in stage.cluster.nodes if node != holder)
        cut = time.time()
        await stage.cluster.cut(holder, other)

        async def came_and_left() -> bool:
            return stage.watcher.changes(LOCAL, other, since=cut) == 2

        await stage.sandbox.until("the other to take the address, and to give it back", came_and_left)
        given_back = time.time()

        async def told() -> bool:
            return stage.watcher.announcements(LOCAL, holder, since=given_back) != []

        await stage.sandbox.until("the neighbours to be told again", told)
        await stage.answered_by(LOCAL, holder)
        await asyncio.sleep(1.0)  # Nothing to wait for: nothing more may happen.
        assert stage.watcher.changes(LOCAL, other, since=cut) == 2
        assert await stage.holders(LOCAL) == [holder]


@pytest.mark.spec("C6")
@pytest.mark.parametrize("how", ["no link and no API server", "no API server"])
async def test_a_node_that_the_others_replaced_gives_the_address_up(start_sandbox: Start, how: str) -> None:
    """Its Lease sees to it: at the end of that it is cut off, or hears from the others that it no longer counts."""
    with watched_stage(await start_sandbox(Options(nodes=3, allocator=False, agent_flags=QUICK))) as stage:
        await acquainted(stage)
        await stage.allocated("echo", LOCAL)
        await stage.allocated("routed", REMOTE, group="routed", port=81)
        await stage.held_by(REMOTE, *stage.cluster.nodes)
        away = await stage.one_holder(LOCAL)
        await stage.answered_by(LOCAL, away)
        if how == "no API server":
            await stage.cluster.set_api(away, ApiState.HUNG)
        else:
            # As long as its Lease lasts, both hold it, each on a link of its own.
            stage.watcher.agree(two_s=LEASE_S + LOADED_S)
            await stage.cluster.partition(away)

        async def one_other() -> str:
            found = await stage.holders(LOCAL)
            return found[0] if len(found) == 1 and found[0] != away else ""

        heir = await stage.sandbox.until("one other to hold it", one_other)
        await stage.answered_by(LOCAL, heir)
        assert away in await stage.holders(REMOTE), "what all nodes hold has no heir"
        await stage.cluster.heal(away)
        await stage.held_by(LOCAL, away)
        await stage.answered_by(LOCAL, away)


@pytest.mark.spec("C5", "C7")
async def test_an_agent_that_stood_still_takes_its_traffic_back_when_it_goes_on(stage: Stage) -> None:
    """For less than its Lease, so that nothing but the silence tells it that others took over."""
    stage.watcher.agree(two_s=HELD_STILL_S + LOADED_S)
    await stage.allocated("echo", LOCAL)
    holder = await stage.one_holder(LOCAL)
    await stage.answered_by(LOCAL, holder)
    stage.sandbox.agents[holder].pause()
    began = time.monotonic()
    heir = await stage.one_holder(LOCAL, other_than=holder)
    await stage.answered_by(LOCAL, heir)
    await asyncio.sleep(began + HELD_STILL_S - time.monotonic())
    went_on = time.time()
    stage.sandbox.agents[holder].resume()
    await stage.held_by(LOCAL, holder)

    async def told() -> bool:
        return stage.watcher.announcements(LOCAL, holder, since=went_on) != []

    await stage.sandbox.until("the neighbours to be told again", told)
    await stage.answered_by(LOCAL, holder)
    assert await metric(stage, holder, "suspicions_total") == 0, "who did not run has missed nothing"
