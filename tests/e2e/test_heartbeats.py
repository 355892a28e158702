"""Nodes that hear each other directly: the dead are replaced at once, the living keep what they have, and where
heartbeats and the API server disagree, the Lease decides."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from purelb_sm.sandbox.launcher import Options
from purelb_sm.sandbox.launcher.product import AGENT_WEB
from tests.e2e.conftest import Start
from tests.support.stage import LOCAL, Stage, watched_stage

pytestmark = pytest.mark.root

TAKEN_OVER_S = 2.0


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
