"""Reservations end to end: made from a terminal while the allocator runs, seen by it without a restart."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from purelb_sm.cli.main import command
from tests.e2e.test_allocator import rows, states, verified
from tests.e2e.test_kill import a_stage
from tests.support.product import a_cluster, a_database, an_allocator, local_group, service_object
from tests.support.waiting import eventually

POOL = "172.30.250.53-172.30.250.54"
FIRST, SECOND = "172.30.250.53", "172.30.250.54"
SOON = {"reservations_poll_s": 0.1}
NEVER = {"reservations_poll_s": 3600.0}


async def purelb(database: str, *words: str) -> str:
    """What a verb prints, run beside the allocator's loop as another process would."""
    run = partial(CliRunner().invoke, command(), words, env={"PURELB_DATABASE": database})
    done = await asyncio.to_thread(run)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.spec("A26", "A29")
async def test_what_is_reserved_while_the_allocator_runs_goes_to_nobody_until_it_is_lifted(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database, **SOON):
            await purelb(database, "reserve", FIRST, "--reason", "a router")
            cluster.create(service_object("a"))
            assert await cluster.given("a") == [SECOND]
            for name in ("b", "c"):
                cluster.create(service_object(name))
                refused = await eventually(partial(cluster.condition, name), "a refusal")
                assert refused["reason"] == "PoolExhausted"
            cluster.create(service_object("asks", annotations={"purelb.io/addresses": FIRST}))
            refused = await eventually(partial(cluster.condition, "asks"), "a refusal")
            assert (refused["reason"], refused["message"]) == (
                "AddressReserved",
                f"requested address {FIRST} is reserved",
            )
            assert await purelb(database, "unreserve", FIRST) == f"{FIRST} is reserved no more\n"
            assert await cluster.given("b") == [FIRST]
            assert not cluster.shown("c") + cluster.shown("asks")
        assert verified(database).rows > 0


@pytest.mark.spec("A26")
async def test_the_first_plan_after_it_knows_of_a_reservation(tmp_path: Path) -> None:
    """No time passes between the two: the count is read in the transaction that gives the address."""
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database, **NEVER):
            cluster.create(service_object("a"))
            assert await cluster.given("a") == [FIRST]
            await purelb(database, "reserve", POOL, "--for", "test/c", "--reason", "promised")
            cluster.create(service_object("b"))
            assert (await eventually(partial(cluster.condition, "b"), "a refusal"))["reason"] == "PoolExhausted"
            cluster.create(service_object("c"))
            assert await cluster.given("c") == [SECOND]
            assert cluster.shown("a") == [FIRST]
            cluster.delete_service("a")
            await eventually(lambda: states(database)[FIRST] == "released")
            cluster.create(service_object("d"))
            assert (await eventually(partial(cluster.condition, "d"), "a refusal"))["reason"] == "PoolExhausted"
            assert not cluster.shown("b")


@pytest.mark.spec("A26", "A29")
async def test_who_comes_between_the_lifting_and_its_notice_does_not_jump_the_queue(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database, **NEVER):
            await purelb(database, "reserve", POOL, "--reason", "not yet")
            cluster.create(service_object("waits"))
            await eventually(partial(cluster.condition, "waits"), "a refusal")
            cluster.create(service_object("waits-too"))
            await eventually(partial(cluster.condition, "waits-too"), "a refusal")
            await purelb(database, "unreserve", POOL)
            cluster.create(service_object("comes"))
            assert await cluster.given("waits") == [FIRST]
            assert await cluster.given("waits-too") == [SECOND]
            refused = await eventually(partial(cluster.condition, "comes"), "a refusal")
            assert refused["reason"] == "PoolExhausted"


@pytest.mark.spec("A26", "A29")
async def test_a_reservation_ends_by_time_alone(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        await purelb(database, "reserve", POOL, "--reason", "for a moment", "--until", "3s")
        async with an_allocator(cluster, database, **NEVER):
            cluster.create(service_object("a"))
            assert await cluster.given("a") == [FIRST]
        found = rows(database, "SELECT trigger, actor FROM history WHERE kind IN ('reservation', 'allocation')")
        assert [trigger for trigger, _ in found] == ["reserve", "expire", "hold"]
        assert found[1][1] == "test-allocator"
        assert "nothing is reserved" in await purelb(database, "reservations")


@pytest.mark.spec("A26")
async def test_what_comes_free_goes_to_the_one_it_is_reserved_for(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(f"{FIRST}-{FIRST}")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database, **SOON):
            cluster.create(service_object("has"))
            assert await cluster.given("has") == [FIRST]
            for name in ("first", "second"):
                cluster.create(service_object(name))
                await eventually(partial(cluster.condition, name), "a refusal")
            said = await purelb(database, "reserve", FIRST, "--for", "test/second", "--reason", "promised")
            assert f"left to whoever has it: {FIRST} by test/has" in said
            cluster.delete_service("has")
            assert await cluster.given("second") == [FIRST]
            assert not cluster.shown("first")
        told = rows(database, "SELECT name, reason FROM history WHERE trigger = 'hold' ORDER BY seq")
        assert told == [("has", ""), ("second", "reserved for it")]


@pytest.mark.spec("A26", "A20")
async def test_a_namesake_that_comes_back_finds_its_address_reserved(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL, quarantine="1h")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database, **SOON):
            cluster.create(service_object())
            assert await cluster.given() == [FIRST]
            cluster.delete_service()
            await eventually(lambda: states(database)[FIRST] == "quarantined")
            await purelb(database, "reserve", FIRST, "--reason", "a router")
            cluster.create(service_object())
            assert await cluster.given() == [SECOND]
        (why,) = rows(database, "SELECT reason FROM history WHERE trigger = 'hold' ORDER BY seq DESC LIMIT 1")
        assert why == (f"{FIRST}, which it had, is reserved",)


@pytest.mark.spec("A26", "E4")
async def test_a_new_leader_knows_what_was_reserved_while_nobody_led(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object("a"))
            assert await cluster.given("a") == [FIRST]
        await purelb(database, "reserve", POOL, "--reason", "no more", "--until", "1d")
        cluster.create(service_object("b"))
        async with an_allocator(cluster, database):
            refused = await eventually(partial(cluster.condition, "b"), "a refusal")
            assert refused["reason"] == "PoolExhausted"
            assert cluster.shown("a") == [FIRST]


@pytest.mark.spec("A26", "E4")
async def test_killed_after_a_reservation_was_lifted_the_next_serves_the_longest_waiting(
    tmp_path: Path,
) -> None:
    async with a_stage(tmp_path, local_group(POOL)) as stage:
        await purelb(stage.database, "reserve", FIRST, "--for", "test/c", "--reason", "promised")
        await purelb(stage.database, "reserve", SECOND, "--reason", "not yet")
        allocator = await stage.allocator()
        for name in ("a", "b"):
            await stage.create(name)
            await eventually(partial(pending, stage.database, name))
        await purelb(stage.database, "unreserve", SECOND)
        allocator.kill()
        await allocator.gone()
        await stage.create("c")
        allocator = await stage.allocator()
        assert await stage.given("a") == [SECOND]
        assert await stage.given("c") == [FIRST]
        assert await stage.shown("b") == []
        assert await allocator.stop() == 0
        assert verified(stage.database).rows > 0


def pending(database: str, name: str) -> bool:
    found = rows(database, f"SELECT reason FROM service WHERE name = '{name}'")
    return found == [("PoolExhausted",)]
