"""An agent that does not run for half a minute, and then goes on as if nothing had happened: SIGSTOP and SIGCONT.

With Leases as they are by default, of which three fit into that time: docs/explanation/failures.md says what must be.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from purelb_sm.sandbox.launcher import Options
from tests.e2e.conftest import Start
from tests.support.stage import LOADED_S, LOCAL, LOCAL6, REMOTE, watched_stage
from tests.support.traffic import asking
from tests.support.waiting import eventually

pytestmark = pytest.mark.root

FROZEN_S = 30.0
SOON_S = 2.0 + LOADED_S
"""Until another takes over, and until the node has its addresses back."""

GAP_S = 0.5
MAX_LOST = 2
"""At each of the two moves. The node lives, and its kernel answers until the neighbours have been told."""


@pytest.mark.spec("C6", "C5", "C14")
async def test_an_agent_that_is_frozen_for_half_a_minute_is_replaced_and_gets_back_what_is_its_own(
    start_sandbox: Start,
) -> None:
    with watched_stage(await start_sandbox(Options(nodes=3, allocator=False))) as stage:
        await stage.allocated("echo", LOCAL, LOCAL6)
        await stage.allocated("routed", REMOTE, group="routed", port=81)
        await stage.held_by(REMOTE, *stage.cluster.nodes)
        node, node6 = await stage.one_holder(LOCAL), await stage.one_holder(LOCAL6)
        await stage.answered_by(LOCAL, node)
        others = [one for one in stage.cluster.nodes if one != node]
        process = stage.sandbox.agents[node]
        async with asking(stage.cluster, LOCAL) as traffic:
            await eventually(lambda: traffic.answerers() == [node] and len(traffic.asked) >= 20)
            stage.watcher.agree(none_s=GAP_S, two_s=SOON_S)
            stage.watcher.excuse(node, "its agent is frozen")
            began = time.time()
            process.pause()
            heir = await stage.one_holder(LOCAL, other_than=node, timeout_s=SOON_S)
            await eventually(lambda: traffic.answerers() == [node, heir], deadline_s=SOON_S)
            await asyncio.sleep(began + FROZEN_S - time.time())
            assert (await stage.holders(LOCAL)) == sorted([node, heir]), "its kernel goes on, and the heir has it"
            assert traffic.answerers() == [node, heir], "who asked was answered by the heir all the time"
            assert [stage.watcher.changes(LOCAL, one, began) for one in others] == [int(one == heir) for one in others]
            went_on = time.time()
            process.resume()
            stage.watcher.count(node)
            await eventually(lambda: traffic.answerers() == [node, heir, node], deadline_s=SOON_S)
            await stage.held_by(LOCAL, node)
            await stage.held_by(LOCAL6, node6)
            count = len(traffic.asked)
            await eventually(lambda: len(traffic.asked) >= count + 150)
        assert traffic.answerers() == [node, heir, node], "and it stays"
        assert len(traffic.lost) <= 2 * MAX_LOST, traffic.lost
        assert stage.watcher.announcements(LOCAL, node, went_on), "it told the neighbours again"
        assert stage.watcher.changes(LOCAL, node, began) == 0, "its kernel had the address all the time"
        assert [stage.watcher.changes(REMOTE, one, began) for one in stage.cluster.nodes] == [0, 0, 0]
        assert "returned" in process.output()
