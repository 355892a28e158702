"""Outages, each made on purpose, with real kernels and agents as processes: docs/explanation/failures.md in tests.

One sandbox serves them one after the other; a test that fails leaves none to the next. The watcher sees every kernel
and the wire all the time, so a test only says what must come out, and which bounds hold meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from purelb_sm.kube.resources import LB_NODE_AGENTS
from purelb_sm.sandbox.cluster import ApiState
from purelb_sm.sandbox.cluster.layout import NODE_INTERFACE
from purelb_sm.sandbox.launcher import Options, Sandbox
from tests.e2e.conftest import FAILED, placed
from tests.support.stage import LEASE_S, LOADED_S, LOCAL, LOCAL6, QUICK, REMOTE, Stage, watched_stage
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

BOTH = (LOCAL, LOCAL6)
SOON_S = 2.0 + LOADED_S
"""For what a node notices by itself and tells the others."""

AGAIN_S = 6.0 + LOADED_S
"""Until everything works as before after the API server is back: a renewal, a second, and some that fail."""


class Ground:
    """The sandbox that the tests of this module share; started when one needs it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._up: contextlib.AsyncExitStack | None = None
        self._sandbox: Sandbox | None = None

    async def sandbox(self) -> Sandbox:
        if self._sandbox is None:
            self._up = contextlib.AsyncExitStack()
            options = Options(nodes=3, allocator=False, agent_flags=QUICK)
            self._sandbox = await self._up.enter_async_context(Sandbox(placed(options, self._folder, None)))
        return self._sandbox

    async def close(self) -> None:
        self._sandbox = None
        if self._up is not None:
            await self._up.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ground]:
    ground = Ground(tmp_path_factory.mktemp("outages"))
    yield ground
    await ground.close()


@pytest_asyncio.fixture(loop_scope="module")
async def stage(ground: Ground, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    try:
        with watched_stage(await ground.sandbox()) as stage:
            yield stage
            if request.node.stash[FAILED]:
                await ground.close()
            else:
                await stage.all_ready()
                await stage.tidy()
    except BaseException:
        await ground.close()
        raise


async def with_both(stage: Stage) -> tuple[str, str]:
    """A Service with an address of each family that answers; the nodes that hold them."""
    await stage.allocated("echo", *BOTH)
    holders = await stage.one_holder(LOCAL), await stage.one_holder(LOCAL6)
    for address, holder in zip(BOTH, holders, strict=True):
        await stage.answered_by(address, holder)
    return holders


async def past_every_lease(stage: Stage) -> None:
    """The time itself is what is waited for: longer than any Lease, while the watcher asks all the time."""
    await asyncio.sleep(1.5 * LEASE_S)


def moved(stage: Stage, since: float) -> int:
    """How often one of the two addresses came to a node or left one."""
    return sum(stage.watcher.changes(address, node, since) for address in BOTH for node in stage.cluster.nodes)


# The API server.


@pytest.mark.spec("C14", "E2")
async def test_an_api_server_that_is_gone_longer_than_the_leases_and_forgot_its_versions_moves_nothing(
    stage: Stage,
) -> None:
    await with_both(stage)
    stage.watcher.agree(none_s=LOADED_S, two_s=0.0)
    began = time.time()
    await stage.sandbox.kill_api()
    await past_every_lease(stage)
    assert not await stage.ready("node1")
    await stage.sandbox.api.start()
    await stage.sandbox.client.request("POST", "/sandbox/faults", body={"kind": "gone", "watch": True, "times": 15})
    stage.watcher.agree(none_s=AGAIN_S)
    await stage.allocated("later", REMOTE, group="routed", port=81)
    await stage.held_by(REMOTE, *stage.cluster.nodes)
    await stage.all_ready()
    await past_every_lease(stage)
    await stage.sandbox.client.request("DELETE", "/sandbox/faults")
    assert moved(stage, began) == 0


@pytest.mark.spec("C14", "E2")
async def test_an_api_server_that_takes_a_third_of_a_lease_for_an_answer_moves_nothing(stage: Stage) -> None:
    await with_both(stage)
    stage.watcher.agree(none_s=LOADED_S, two_s=0.0)
    began = time.time()
    await stage.sandbox.client.request(
        "POST", "/sandbox/faults", body={"kind": "delay", "delay_s": 1.1, "path": "lease"}
    )
    await past_every_lease(stage)
    await stage.all_ready()  # Renewals are waited for.
    await stage.sandbox.client.request("DELETE", "/sandbox/faults")
    assert moved(stage, began) == 0


@pytest.mark.spec("C13", "C14")
async def test_an_agent_that_starts_while_the_api_server_is_away_keeps_what_is_there_and_is_not_ready(
    stage: Stage,
) -> None:
    node, _ = await with_both(stage)
    await stage.allocated("routed", REMOTE, group="routed", port=81)
    await stage.held_by(REMOTE, *stage.cluster.nodes)
    stage.watcher.agree(none_s=LOADED_S, two_s=AGAIN_S)
    began = time.time()
    await stage.cluster.set_api(None, ApiState.CUT)
    # Another, that misses its heartbeats, takes over, and nobody can tell the new one so: as long as the API server is
    # away both hold what is local.
    await stage.kill_agent(node)
    await stage.sandbox.start_agent(node, wait=False)
    await past_every_lease(stage)
    assert not await stage.ready(node)
    assert stage.watcher.changes(LOCAL, node, began) == 0
    await stage.cluster.set_api(None, ApiState.REACHABLE)
    stage.watcher.count(node)
    stage.watcher.agree(left_s=AGAIN_S)
    await stage.all_ready()
    await stage.held_by(LOCAL, node)
    await stage.answered_by(LOCAL, node)
    assert stage.watcher.changes(LOCAL, node, began) == 0
    assert await stage.holders(REMOTE) == sorted(stage.cluster.nodes)
    assert stage.watcher.changes(REMOTE, node, began) == 0


@pytest.mark.spec("C6", "C14")
async def test_a_node_that_dies_while_the_api_server_is_away_is_replaced_as_soon_as_it_is_back(stage: Stage) -> None:
    node, _ = await with_both(stage)
    await stage.cluster.set_api(None, ApiState.HUNG)
    # Nobody can know of the death until Leases are seen again, and then a Lease has its whole duration.
    stage.watcher.agree(none_s=2 * LEASE_S + 2 * LEASE_S + LOADED_S)
    await stage.power_off(node)
    await past_every_lease(stage)
    alive = [one for one in stage.cluster.nodes if one != node]
    for one in alive:
        await stage.cluster.set_api(one, ApiState.REACHABLE)
    heir = await stage.one_holder(LOCAL)
    assert heir in alive
    await stage.answered_by(LOCAL, heir)
    stage.watcher.agree(none_s=SOON_S)
    await stage.power_on(node)
    await stage.answered_by(LOCAL, node)


@pytest.mark.spec("C14", "C2")
async def test_a_node_that_alone_loses_the_api_server_gives_up_what_another_has_and_keeps_what_is_routed(
    stage: Stage,
) -> None:
    node, _ = await with_both(stage)
    await stage.allocated("routed", REMOTE, group="routed", port=81)
    await stage.held_by(REMOTE, *stage.cluster.nodes)
    stage.watcher.agree(none_s=SOON_S, two_s=SOON_S)
    began = time.time()
    await stage.cluster.set_api(node, ApiState.HUNG)
    heir = await stage.one_holder(LOCAL, other_than=node)
    await stage.held_by(LOCAL, heir)
    await stage.answered_by(LOCAL, heir)
    await stage.cluster.set_api(node, ApiState.REACHABLE)
    await stage.held_by(LOCAL, node)
    await stage.answered_by(LOCAL, node)
    assert sum(stage.watcher.changes(REMOTE, one, began) for one in stage.cluster.nodes) == 0


# Agents.


@pytest.mark.spec("C5", "C7")
async def test_an_agent_that_was_stopped_past_its_lease_tells_nobody_anything_before_it_is_counted_again(
    stage: Stage,
) -> None:
    """It is stopped while it still announces, and finds the rest of its announcements due when it goes on."""
    garp = {"enabled": True, "count": 10, "interval": "2s"}
    await stage.sandbox.apply(
        {
            "apiVersion": "purelb.io/v2",
            "kind": "LBNodeAgent",
            "metadata": {"name": "default", "namespace": "purelb-system"},
            "spec": {"local": {"localInterface": "default", "garpConfig": garp}},
        }
    )
    try:
        node, _ = await with_both(stage)
        await eventually(lambda: stage.watcher.announcements(LOCAL, node))
        process = stage.sandbox.agents[node]
        stage.watcher.excuse(node, "its agent is stopped")
        process.pause()
        heir = await stage.one_holder(LOCAL, other_than=node)
        await stage.answered_by(LOCAL, heir)
        await past_every_lease(stage)
        await stage.cluster.set_api(node, ApiState.CUT)
        resumed = time.time()
        process.resume()
        stage.watcher.count(node)
        stage.watcher.agree(two_s=SOON_S)
        await stage.held_by(LOCAL, heir)
        assert stage.watcher.announcements(LOCAL, node, resumed) == []
        await stage.cluster.set_api(node, ApiState.REACHABLE)
        await stage.held_by(LOCAL, node)
        await stage.answered_by(LOCAL, node)
        assert stage.watcher.announcements(LOCAL, node, resumed)
    finally:
        await stage.sandbox.delete(LB_NODE_AGENTS, "default", "purelb-system")


@pytest.mark.spec("C12")
async def test_notices_of_the_kernel_that_are_lost_hide_nothing(stage: Stage) -> None:
    """More than fit into the buffer come while the agent cannot read, and in the middle of them our address goes."""
    node, _ = await with_both(stage)
    many = [f"10.77.{k // 250}.{k % 250 + 1}/32" for k in range(6000)]
    noise = "\n".join(f"address {verb} {address} dev lo" for verb in ("add", "del") for address in many)
    command = ["ip", "-n", stage.cluster.namespace_of(node), "-batch", "-"]
    stage.watcher.excuse(node, "its agent is stopped, and six thousand addresses come and go")
    process = stage.sandbox.agents[node]
    process.pause()
    try:
        subprocess.run(command, input=noise, text=True, check=True)
        stage.ip(node, "address", "del", f"{LOCAL}/24", "dev", NODE_INTERFACE)
    finally:
        process.resume()
        stage.watcher.count(node)
    await stage.held_by(LOCAL, node)
    assert "kernel notices lost" in process.output()


# Links and interfaces.


@pytest.mark.spec("C2", "C12")
@pytest.mark.parametrize("admin", [False, True], ids=["no-carrier", "set-down"])
async def test_a_node_whose_link_is_down_leaves_its_addresses_to_another_until_it_is_up(
    stage: Stage, admin: bool
) -> None:
    node, node6 = await with_both(stage)
    stage.watcher.agree(none_s=SOON_S, two_s=SOON_S)
    stage.watcher.release(node)
    await stage.cluster.link_down(node, admin=admin)
    heir = await stage.one_holder(LOCAL, other_than=node)
    await stage.answered_by(LOCAL, heir)
    await stage.held_by(LOCAL, heir)
    await stage.cluster.link_up(node)
    await stage.held_by(LOCAL, node)
    await stage.held_by(LOCAL6, node6)
    await stage.answered_by(LOCAL, node)
    await stage.answered_by(LOCAL6, node6)


@pytest.mark.spec("C2", "C12")
async def test_an_interface_that_is_renamed_keeps_its_addresses(stage: Stage) -> None:
    node, _ = await with_both(stage)
    stage.watcher.agree(none_s=LOADED_S, two_s=0.0)
    began = time.time()
    for before, after in ((NODE_INTERFACE, "lan7"), ("lan7", NODE_INTERFACE)):
        stage.ip(node, "link", "set", "dev", before, "name", after)

        async def reported(name: str = after) -> bool:
            where = {a["address"]: a["interface"] for a in (await stage.report(node))["addresses"]}
            return where.get(str(LOCAL)) == name

        await stage.sandbox.until(f"{node} to say that it is on {after}", reported)
        await stage.answered_by(LOCAL, node)
    assert stage.watcher.changes(LOCAL, node, began) == 0


@pytest.mark.spec("C2", "C12")
async def test_an_interface_that_is_removed_and_made_again_gets_its_addresses_back(stage: Stage) -> None:
    node, node6 = await with_both(stage)
    stage.watcher.agree(none_s=SOON_S, two_s=SOON_S)
    stage.watcher.release(node)
    await stage.cluster.unplug(node)
    heir = await stage.one_holder(LOCAL, other_than=node)
    await stage.answered_by(LOCAL, heir)
    await stage.cluster.plug_in(node)
    await stage.held_by(LOCAL, node)
    await stage.held_by(LOCAL6, node6)
    # With another MAC address: the neighbours had to be told.
    await stage.answered_by(LOCAL, node)
    await stage.answered_by(LOCAL6, node6)
