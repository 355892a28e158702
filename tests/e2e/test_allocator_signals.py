"""Signals at bad moments: an orderly end in time whatever hangs, and a leader that was stopped for too long."""

from __future__ import annotations

import asyncio
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from purelb_sm.kube.resources import LEASES
from tests.e2e.test_allocator import rows, states, verified
from tests.e2e.test_allocator_bad_days import locked
from tests.e2e.test_kill import POOL, Stage, a_stage
from tests.support.processes import Process, allocator_process, api_process
from tests.support.product import a_database, local_group
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

END_S = 5.0


async def stopped_in_time(allocator: Process) -> None:
    """SIGTERM, and the process is gone within the time that is promised, with a good end."""
    started = time.monotonic()
    assert await allocator.stop() == 0
    assert time.monotonic() - started < END_S


@pytest.mark.spec("D9")
async def test_it_ends_in_time_while_another_program_has_the_database_locked(tmp_path: Path) -> None:
    async with a_stage(tmp_path, local_group(POOL)) as stage:
        allocator = await stage.allocator()
        await stage.create("echo")
        await stage.given("echo")
        with locked(tmp_path):
            await stage.create("next")
            await asyncio.sleep(0.5)
            await stopped_in_time(allocator)
        assert states(stage.database) == {"172.30.250.53": "held"}
        assert verified(stage.database).rows > 0


@pytest.mark.spec("D9")
@pytest.mark.parametrize("fault", [{"kind": "hang"}, {"kind": "hang", "method": "PATCH"}, {"kind": "abort"}])
async def test_it_ends_in_time_whatever_the_api_server_leaves_unanswered(tmp_path: Path, fault: dict[str, str]) -> None:
    async with a_stage(tmp_path, local_group(POOL)) as stage:
        allocator = await stage.allocator()
        await stage.create("echo")
        await stage.given("echo")
        await stage.fault(kind="hang", method="PATCH", path="services/.*/status")
        for n in range(5):
            await stage.create(f"s{n}")
        await eventually(lambda: len(states(stage.database)) == 6)
        await stage.fault(**fault, path="/api")
        await stopped_in_time(allocator)
        await stage.no_faults()


@pytest.mark.spec("D9")
async def test_it_ends_in_time_before_it_has_ever_reached_the_api_server(tmp_path: Path) -> None:
    async with api_process(tmp_path) as api:
        await api.kill()
        allocator = await allocator_process(api, a_database(tmp_path))
        await eventually(lambda: "list_or_watch_failed" in (tmp_path / "allocator.log").read_text())
        await stopped_in_time(allocator)


async def test_an_api_server_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    async with a_stage(tmp_path, local_group(POOL)) as stage:
        await stage.create("echo")
        await stage.api.kill()
        allocator = await stage.allocator()
        await eventually(lambda: "list_or_watch_failed" in (tmp_path / "allocator.log").read_text())
        await stage.api.start()
        assert await stage.given("echo") == ["172.30.250.53"]
        assert await allocator.stop() == 0


@pytest.mark.spec("E6", "D8")
async def test_a_leader_that_was_stopped_past_its_lease_neither_commits_nor_writes(tmp_path: Path) -> None:
    """It is stopped with writes under way; when it goes on, others have the addresses that these writes show."""
    async with a_stage(tmp_path, local_group("172.30.250.53-172.30.250.54")) as stage:
        old = await stage.allocator()
        # Its writes reach the server late, and it is stopped with them under way.
        await stage.fault(kind="delay", method="PATCH", path="services/(a|b)/status", delay_s=6)
        await stage.create("a")
        await stage.create("b")
        await eventually(lambda: len(states(stage.database)) == 2)
        # Not within a transaction: SQLite keeps its lock while the process exists, and has one allocator only.
        await asyncio.sleep(0.5)
        old.process.send_signal(signal.SIGSTOP)
        try:
            await stage.no_faults()
            for name in ("a", "b"):
                await stage.delete(name)
            await asyncio.sleep(0.1)
            new = await allocator_process(stage.api, stage.database, PURELB_IDENTITY="new")
            await eventually(partial(leader_is, stage, "new"))
            for name in ("c", "d"):
                await stage.create(name)
            given = {name: await stage.given(name) for name in ("c", "d")}
            # Under the old names, for the old writes to hit.
            for name in ("a", "b"):
                await stage.create(name)
        finally:
            old.process.send_signal(signal.SIGCONT)
        # The delayed writes are answered by now; and the old leader has had its say.
        await eventually(lambda: "lead" in last_lines(tmp_path), deadline_s=20)
        await stage.create("e")
        await asyncio.sleep(3)
        assert {name: await stage.shown(name) for name in ("c", "d")} == given
        assert [await stage.shown(name) for name in ("a", "b", "e")] == [[], [], []]
        assert rows(stage.database, "SELECT term FROM leadership") == [(2,)]
        assert await old.stop() == 0
        assert await new.stop() == 0
        holds = rows(
            stage.database, "SELECT DISTINCT term FROM history WHERE name IN ('c', 'd') AND kind = 'allocation'"
        )
        assert holds == [(2,)]
        assert verified(stage.database).rows > 0


async def leader_is(stage: Stage, identity: str) -> bool:
    import json

    path = LEASES.path("purelb-allocator", "purelb-system")
    lease = json.loads(await stage.client.request("GET", path))
    return bool(lease["spec"].get("holderIdentity") == identity)


def last_lines(folder: Path) -> str:
    return (folder / "allocator.log").read_text()
