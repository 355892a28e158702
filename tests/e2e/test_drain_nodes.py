"""Make before break with real kernels: what a client loses while nodes are stopped, drained and brought back.

The bound on what is lost is strict, however slow the machine: the old holder answers until the new one does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.kube.client import MERGE_PATCH
from purelb_sm.kube.resources import NODES
from purelb_sm.sandbox.launcher import Options
from tests.e2e.conftest import Start
from tests.support.stage import LEASE_S, LOADED_S, LOCAL, LOCAL6, QUICK, Stage, watched_stage
from tests.support.traffic import Traffic, asking

pytestmark = pytest.mark.root

MAX_LOST = 2
WITHIN_S = 1.0
GAP_S = 0.3
"""For the watcher, which asks the wire ten times a second; of a kernel's gap the client tells more."""
EXCLUDED = {"labels": {names.EXCLUDE_LABEL: ""}}


@pytest.fixture
async def stage(start_sandbox: Start) -> AsyncIterator[Stage]:
    with watched_stage(await start_sandbox(Options(nodes=3, allocator=False, agent_flags=QUICK))) as stage:
        yield stage


@asynccontextmanager
async def a_client(stage: Stage, address: Address) -> AsyncIterator[Traffic]:
    """Asks all the time; at the end it must have lost no more than it may."""
    async with asking(stage.cluster, address) as traffic:
        await enough(stage, traffic, lambda: len(traffic.asked) >= 20)
        # From now on somebody holds it at every moment, be it for the client's sake or not.
        stage.watcher.agree(none_s=GAP_S)
        yield traffic
        # The frames that correct neighbours have all gone out by then, and what they could do is done.
        count = len(traffic.asked)
        await enough(stage, traffic, lambda: len(traffic.asked) >= count + 150)
    assert len(traffic.lost) <= MAX_LOST, traffic.lost


async def enough(stage: Stage, traffic: Traffic, probe: Callable[[], object]) -> None:
    async def so() -> bool:
        return bool(probe())

    await stage.sandbox.until("enough requests", so)


async def answers_elsewhere(stage: Stage, traffic: Traffic, old: str, since: float) -> str:
    """Waits until another node answers the client; tells which. It must not be long in coming."""
    await enough(stage, traffic, lambda: traffic.answerers()[-1] != old)
    new = traffic.answerers()[-1]
    first = traffic.first_by(new, since)
    assert first is not None
    assert first - since < WITHIN_S + LOADED_S
    return new


async def says_draining(stage: Stage, node: str) -> None:
    async def so() -> bool:
        return names.DRAINING in ((await stage.lease(node)) or {"metadata": {}})["metadata"].get("annotations", {})

    await stage.sandbox.until(f"the Lease of {node} to say that it is drained", so)


async def mark(stage: Stage, node: str, metadata: Mapping[str, object]) -> None:
    await stage.sandbox.client.request("PATCH", NODES.path(node), body={"metadata": metadata}, content_type=MERGE_PATCH)


async def marked(stage: Stage, node: str, drained: bool) -> float:
    """When the Node has come to say so: a program takes its time to start, which is none of the agents' affair."""

    async def so() -> bool:
        found = (await stage.sandbox.get(NODES, node)) or {"metadata": {}}
        return (names.DRAIN in found["metadata"].get("annotations", {})) == drained

    await stage.sandbox.until(f"the Node {node} to be marked", so)
    return time.monotonic()


@pytest.mark.spec("C6", "C17", "C9")
@pytest.mark.parametrize("address", [LOCAL, LOCAL6], ids=["IPv4", "IPv6"])
async def test_a_client_notices_nothing_when_an_agent_is_told_to_stop(stage: Stage, address: Address) -> None:
    async with stage.cluster.sniff() as wire:
        await stage.allocated("echo", address)
        old = await stage.one_holder(address)
        await stage.answered_by(address, old)
        async with a_client(stage, address) as traffic:
            started = time.monotonic()
            await stage.stop_agent(old)
            assert time.monotonic() - started < 5.0
            new = await answers_elsewhere(stage, traffic, old, started)
    assert traffic.answerers() == [old, new], "it went over once, and never back"
    assert stage.sandbox.agents[old].returncode == 0, stage.sandbox.agents[old].output()
    assert not [held for held in await stage.cluster.addresses(old) if held.mine]
    assert await stage.holders(address) == [new]
    assert await stage.lease(old) is None
    mine = await stage.cluster.mac(new)
    told = [one for one in wire.announcements(address) if one.kind != "neighbor-solicitation"]
    order = [sighting.mac for sighting in told]
    assert set(order[order.index(mine) :]) == {mine}, "the old holder says nothing any more"


@pytest.mark.spec("C17")
@pytest.mark.parametrize("how", ["label", "purelb drain"])
async def test_a_client_notices_nothing_when_a_node_is_drained_and_brought_back(stage: Stage, how: str) -> None:
    await stage.allocated("echo", LOCAL, LOCAL6)
    old = await stage.one_holder(LOCAL)
    await stage.answered_by(LOCAL, old)
    async with a_client(stage, LOCAL) as traffic:
        if how == "label":
            started = time.monotonic()
            await mark(stage, old, EXCLUDED)
        else:
            at = asyncio.create_task(marked(stage, old, True))
            told = await stage.sandbox.purelb("drain", old, "--reason", "a new kernel")
            started = await at
            assert told.stdout.splitlines()[-1] == f"{old} is drained: it announces nothing"
            assert not [held for held in await stage.cluster.addresses(old) if held.mine]
        new = await answers_elsewhere(stage, traffic, old, started)
        await stage.held_by(LOCAL, new)
        assert await stage.one_holder(LOCAL6) != old
        if how == "label":
            started = time.monotonic()
            await mark(stage, old, {"labels": {names.EXCLUDE_LABEL: None}})
        else:
            at = asyncio.create_task(marked(stage, old, False))
            await stage.sandbox.purelb("undrain", old)
            started = await at
        assert await answers_elsewhere(stage, traffic, new, started) == old
        await stage.held_by(LOCAL, old)
    assert traffic.answerers() == [old, new, old]


@pytest.mark.spec("C17", "C6", "C13")
async def test_a_client_notices_nothing_when_all_agents_are_started_anew_one_after_the_other(stage: Stage) -> None:
    await stage.allocated("echo", LOCAL)
    first = await stage.one_holder(LOCAL)
    await stage.answered_by(LOCAL, first)
    async with a_client(stage, LOCAL):
        for node in stage.cluster.nodes:
            await stage.stop_agent(node)
            await stage.start_agent(node)
        await stage.held_by(LOCAL, first)


@pytest.mark.spec("C17")
async def test_the_last_node_keeps_the_address_and_one_killed_while_it_is_drained_leaves_one_holder(
    stage: Stage,
) -> None:
    await stage.allocated("echo", LOCAL)
    last = await stage.one_holder(LOCAL)
    others = [node for node in stage.cluster.nodes if node != last]
    await stage.answered_by(LOCAL, last)
    async with a_client(stage, LOCAL) as traffic:
        for node in [*others, last]:
            await mark(stage, node, EXCLUDED)
            await says_draining(stage, node)
    assert traffic.answerers() == [last]
    stage.watcher.agree(none_s=LEASE_S + 1.0 + LOADED_S)
    # Undrained, one of the others is to have it; whoever dies in the middle of that, one is left with it in the end.
    await mark(stage, others[0], {"labels": {names.EXCLUDE_LABEL: None}})
    await stage.kill_agent(last)
    await stage.start_agent(last)
    await stage.held_by(LOCAL, others[0])
    await stage.answered_by(LOCAL, others[0])
