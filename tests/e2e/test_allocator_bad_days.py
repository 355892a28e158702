"""The allocator on bad days: one poison Service, a database that is away at the worst moment, hung and lost writes.

Whatever happens, nobody else is held up, nothing is forgotten when it is over, and where nothing changes nothing is
written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from purelb_sm.allocator import engine as engine_module
from purelb_sm.allocator import leading as leading_module
from purelb_sm.allocator.app import Allocator
from purelb_sm.domain.plan import plan as real_plan
from purelb_sm.domain.reports import render_report
from purelb_sm.domain.states import AllocationState
from purelb_sm.domain.views import ServiceView
from purelb_sm.errors import DatabaseUnavailable
from purelb_sm.kube import objects
from purelb_sm.sandbox.apiserver import Fault
from purelb_sm.store import Book, Unit
from tests.e2e.test_allocator import POOL, moves, rows, states, verified
from tests.support.product import (
    NAMESPACE,
    Cluster,
    a_cluster,
    a_database,
    a_node,
    an_allocator,
    group_object,
    local_group,
    service_object,
)
from tests.support.waiting import eventually

ONE = "172.30.250.53/32"


def broken_after(commit: Any, when: Any, times: int) -> Any:
    """A commit that is kept, and whose answer is lost, for the first `times` units of which `when` is true."""
    left = [times]

    def spoilt(unit: Unit) -> None:
        hit = bool(left[0]) and when(unit)
        commit(unit)
        if hit:
            left[0] -= 1
            raise DatabaseUnavailable("the connection was cut in the middle of COMMIT")

    return spoilt


def has(state: AllocationState) -> Any:
    """Whether a unit is about to bring an allocation into this state."""

    def check(unit: Unit) -> bool:
        return any(entry.state is state and entry.since == unit._ws.now for entry in unit._ws.allocations.values())

    return check


# -- one poison Service -------------------------------------------------------------------------------------------


@pytest.mark.spec("E1")
async def test_a_service_that_no_plan_can_be_made_for_holds_up_nobody_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Any] = []

    def plan(key: Any, *rest: Any) -> Any:
        if key.name == "poison" and len(tries) < 4:
            tries.append(key)
            raise RuntimeError("nobody thought of this")
        return real_plan(key, *rest)

    monkeypatch.setattr(engine_module, "plan", plan)
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        for name in ("a", "poison", "b", "c"):
            cluster.create(service_object(name))
        async with an_allocator(cluster, a_database(tmp_path)):
            for name in ("a", "b", "c"):
                await cluster.given(name)
            assert await cluster.given("poison")


@pytest.mark.spec("E1", "A17")
async def test_a_service_that_cannot_be_read_is_not_taken_for_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart nothing is known of it but that it is there: what it holds and shows is given to nobody else."""
    async with a_cluster(tmp_path, local_group(ONE)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object("odd"))
            await cluster.given("odd")
        real = objects.SERVICE

        def decode(data: objects.Data) -> ServiceView:
            view = real.decode(data)
            if view.key.name == "odd":
                raise objects.Undecodable("of a later version")
            return view

        monkeypatch.setattr(objects, "SERVICE", replace(real, decode=decode))
        monkeypatch.setattr(leading_module, "UNREAD_RETRY_S", 0.1)
        cluster.create(service_object("next"))
        async with an_allocator(cluster, database):
            refused = await eventually(lambda: cluster.condition("next"), "a refusal")
            assert refused["reason"] == "PoolExhausted"
            await cluster.patch_service("odd", {"metadata": {"labels": {"a": "b"}}})
            await asyncio.sleep(0.3)
            assert states(database) == {"172.30.250.53": "held"}
            cluster.delete_service("odd")
            assert await cluster.given("next") == ["172.30.250.53"]


@pytest.mark.spec("E1")
async def test_reports_of_a_hostile_node_stop_nobody(tmp_path: Path) -> None:
    async with (
        a_cluster(tmp_path, local_group(POOL)) as cluster,
        a_node(cluster, "bad") as bad,
        a_node(cluster) as node,
    ):
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object())
            await cluster.given()
            good = {**render_report(bad.report), "slice": 0, "slices": 1}
            here = {
                "address": "172.30.250.53",
                "interface": "e" * 64,
                "prefixLength": 128,
                "state": "present",
                "since": good["startedAt"],
            }
            for spec in (
                {**good, "startedAt": "0001-01-01T00:00:00+23:59"},
                {**good, "startedAt": "9999-12-31T23:59:59-23:59"},
                {**good, "sequence": 2**52, "addresses": [here]},
                {**good, "sequence": 2**53 - 1, "incarnation": "\0", "addresses": [here]},
                {**good, "node": node.name},
            ):
                obj = {
                    "apiVersion": "purelb.io/v2",
                    "kind": "NodeAnnouncement",
                    "metadata": {
                        "name": "bad",
                        "namespace": "purelb-system",
                        "labels": {"purelb.io/node": "bad" if spec["node"] == "bad" else node.name},
                    },
                    "spec": spec,
                }
                cluster.server.apply(obj)
                await asyncio.sleep(0.02)
            await node.holds("172.30.250.53")
            await eventually(lambda: moves(database)[-1] == ("announce", "allocated", "announcing"))
        assert verified(database).rows > 0


# -- the database is away at the worst moment -------------------------------------------------------------------------


@pytest.mark.spec("E3", "B5")
async def test_a_release_whose_begin_was_kept_and_not_answered_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_cluster(tmp_path, local_group(ONE)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object())
            await cluster.given()
            await eventually(lambda: cluster.events("IPAllocated"))
            monkeypatch.setattr(Unit, "commit", broken_after(Unit.commit, has(AllocationState.RELEASING), 1))
            cluster.delete_service()
            await eventually(lambda: states(database) == {"172.30.250.53": "released"})


@pytest.mark.spec("E3", "A29")
async def test_who_waits_is_served_though_the_release_was_kept_and_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_cluster(tmp_path, local_group(ONE)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object())
            await cluster.given()
            cluster.create(service_object("next"))
            await eventually(lambda: cluster.condition("next"), "a refusal")
            monkeypatch.setattr(Unit, "commit", broken_after(Unit.commit, has(AllocationState.RELEASED), 1))
            cluster.delete_service()
            assert await cluster.given("next") == ["172.30.250.53"]


@pytest.mark.spec("E3", "A29")
async def test_who_waits_is_served_though_the_database_went_away_just_after_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = engine_module.Engine.waiting_keys, [0]

    def waiting_keys(self: Any, limit: int) -> Any:
        if left[0]:
            left[0] -= 1
            raise DatabaseUnavailable("away")
        return real(self, limit)

    monkeypatch.setattr(engine_module.Engine, "waiting_keys", waiting_keys)
    async with a_cluster(tmp_path, local_group(ONE)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object())
            await cluster.given()
            cluster.create(service_object("next"))
            await eventually(lambda: cluster.condition("next"), "a refusal")
            left[0] = 1
            cluster.delete_service()
            assert await cluster.given("next") == ["172.30.250.53"]
            # The same when it is a group that changes.
            cluster.create(service_object("third"))
            await eventually(lambda: cluster.condition("third"), "a refusal")
            left[0] = 1
            cluster.server.apply(local_group("172.30.250.53-172.30.250.54"))
            assert await cluster.given("third") == ["172.30.250.54"]


@pytest.mark.spec("E3")
async def test_a_database_locked_by_another_for_long_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from purelb_sm.store import engine as store_engine

    monkeypatch.setattr(store_engine, "LOCK_WAIT_S", 0.2)
    async with a_cluster(tmp_path, local_group(POOL, quarantine="5m")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database) as allocator:
            cluster.create(service_object("a"))
            await cluster.given("a")
            with locked(tmp_path):
                cluster.create(service_object("b"))
                cluster.delete_service("a")
                await eventually(lambda: not allocator.checks()["database"])
                assert cluster.shown("b") == []
            assert await cluster.given("b") == ["172.30.250.54"]
            await eventually(lambda: states(database)["172.30.250.53"] == "quarantined")
            await eventually(lambda: allocator.checks()["database"])


@pytest.mark.spec("E3")
async def test_a_database_that_is_moved_away_is_missed_and_taken_up_again_when_it_is_back(tmp_path: Path) -> None:
    """Without a look at the file everything would seem well, and be lost at the next start."""
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database) as allocator:
            cluster.create(service_object("a"))
            await cluster.given("a")
            away = tmp_path / "away"
            away.mkdir()
            for path in tmp_path.glob("purelb.db*"):
                path.rename(away / path.name)
            cluster.create(service_object("b"))
            await eventually(lambda: not allocator.checks()["database"])
            assert cluster.shown("b") == []
            for path in away.iterdir():
                path.rename(tmp_path / path.name)
            assert await cluster.given("b") == ["172.30.250.54"]
        assert len(states(database)) == 2
        assert verified(database).rows > 0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another program has the write lock."""
    import sqlite3

    other = sqlite3.connect(folder / "purelb.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
    finally:
        other.close()


# -- writes that hang ------------------------------------------------------------------------------------------------


async def test_a_group_whose_status_cannot_be_written_holds_up_no_service(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        cluster.server.faults.add(Fault("hang", "PATCH", "servicegroups/.*/status"))
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object())
            await eventually(cluster.shown, deadline_s=5.0)


@pytest.mark.spec("A8")
@pytest.mark.parametrize("kind", ["unavailable", "abort"])
async def test_a_group_is_told_when_the_api_server_is_back(tmp_path: Path, kind: str) -> None:
    broken = local_group("172.30.250.9-172.30.250.1", name="broken")
    async with a_cluster(tmp_path, local_group(POOL), broken) as cluster:
        cluster.server.faults.add(Fault(kind, "PATCH", "servicegroups/.*/status", times=3, delay_s=0.0))
        async with an_allocator(cluster, a_database(tmp_path)):
            await eventually(lambda: cluster.events("ParseFailed") and cluster.events("Parsed"))


async def test_a_hung_write_of_one_service_holds_up_no_other(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group("172.30.250.0/24")) as cluster:
        cluster.server.faults.add(Fault("hang", "PATCH", "services/hung/status"))
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object("hung"))
            for n in range(60):
                cluster.create(service_object(f"s{n}"))
            for n in range(60):
                await eventually(partial(cluster.shown, f"s{n}"), deadline_s=9.0)
            assert cluster.shown("hung") == []


FLOOD = 600


@asynccontextmanager
async def a_cluster_to_flood(tmp_path: Path) -> AsyncIterator[Cluster]:
    """It has room for that many Services in the namespace `flood`, and takes its time for each status."""
    pools = {"local": {"v4pools": [{"subnet": "172.30.248.0/21", "pool": "172.30.248.0/21"}]}}
    async with a_cluster(tmp_path, group_object("default", pools), namespaces=["flood"]) as cluster:
        cluster.server.faults.add(Fault("delay", "PATCH", "services/.*/status", delay_s=0.02))
        yield cluster


@pytest.mark.spec("E8")
async def test_a_flood_that_an_allocator_finds_at_its_start_does_not_hold_up_another_namespace(tmp_path: Path) -> None:
    async with a_cluster_to_flood(tmp_path) as cluster:
        for n in range(FLOOD):
            cluster.create(service_object(f"flood/s{n}"))
        cluster.create(service_object("quiet"))
        async with an_allocator(cluster, a_database(tmp_path), publish_concurrency=4):
            await cluster.given("quiet")
            assert sum(bool(cluster.shown(f"flood/s{n}")) for n in range(FLOOD)) < FLOOD / 2


@pytest.mark.spec("E8")
async def test_a_flood_of_one_namespace_does_not_hold_up_another(tmp_path: Path) -> None:
    """From the watch to the status: neither what is to be planned nor what is to be written is in its way."""
    async with a_cluster_to_flood(tmp_path) as cluster:
        async with an_allocator(cluster, a_database(tmp_path), publish_concurrency=4):
            for n in range(FLOOD):
                cluster.create(service_object(f"flood/s{n}"))
            await cluster.given("flood/s0")
            cluster.create(service_object("quiet"))
            await cluster.given("quiet")
            assert sum(bool(cluster.shown(f"flood/s{n}")) for n in range(FLOOD)) < FLOOD / 2


# -- whose turn it is -----------------------------------------------------------------------------------------------


@pytest.mark.spec("A29")
async def test_the_longest_waiting_gets_what_comes_free_whoever_comes_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine_module.Engine.release_pass

    async with a_cluster(tmp_path, local_group(ONE)) as cluster:

        def release_pass(self: Any, *rest: Any) -> Any:
            done = real(self, *rest)
            if done.freed:
                # A newcomer appears in the very moment in which the address comes free.
                loop.call_soon_threadsafe(cluster.create, service_object("aa-newcomer"))
                time.sleep(0.1)
            return done

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(engine_module.Engine, "release_pass", release_pass)
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object())
            await cluster.given()
            for name in ("z-first", "a-second"):
                cluster.create(service_object(name))
                await eventually(partial(cluster.condition, name), "a refusal")
            cluster.delete_service()
            assert await cluster.given("z-first") == ["172.30.250.53"]
            await eventually(partial(cluster.condition, "aa-newcomer"), "a refusal")
            assert cluster.shown("aa-newcomer") == cluster.shown("a-second") == []


@pytest.mark.spec("A29", "E8")
async def test_those_who_wait_for_another_group_do_not_stand_before_the_longest_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are, and however long they have waited."""
    real = engine_module.Engine.release_pass
    wish = {"purelb.io/service-group": "other"}
    monkeypatch.setattr(leading_module, "PREFERRED", 3)
    other = local_group("172.30.250.70/32", name="other")
    async with a_cluster(tmp_path, local_group(ONE), other) as cluster:

        def release_pass(self: Any, *rest: Any) -> Any:
            done = real(self, *rest)
            if done.freed:
                # A newcomer appears in the very moment in which the address comes free.
                loop.call_soon_threadsafe(cluster.create, service_object("aa-newcomer", annotations=wish))
                time.sleep(0.1)
            return done

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(engine_module.Engine, "release_pass", release_pass)
        async with an_allocator(cluster, a_database(tmp_path)):
            for name, annotations in (("holds", {}), ("holds-other", wish)):
                cluster.create(service_object(name, annotations=annotations))
                await cluster.given(name)
            for name in ("a", "b", "c", "d"):
                cluster.create(service_object(name))
                await eventually(partial(cluster.condition, name), "a refusal")
            cluster.create(service_object("z-first", annotations=wish))
            await eventually(partial(cluster.condition, "z-first"), "a refusal")
            cluster.delete_service("holds-other")
            assert await cluster.given("z-first") == ["172.30.250.70"]
            await eventually(partial(cluster.condition, "aa-newcomer"), "a refusal")
            assert cluster.shown("aa-newcomer") == []


@pytest.mark.spec("A29")
async def test_the_longest_waiting_is_first_after_a_restart_too(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(ONE)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object())
            await cluster.given()
            for name in ("z-first", "a-second"):
                cluster.create(service_object(name))
                await eventually(partial(cluster.condition, name), "a refusal")
        cluster.server.apply(local_group("172.30.250.53-172.30.250.54"))
        async with an_allocator(cluster, database):
            assert await cluster.given("z-first") == ["172.30.250.54"]


# -- groups that change under their holders ---------------------------------------------------------------------------


@pytest.mark.spec("A22", "A3")
async def test_what_a_group_is_now_is_shown_by_those_who_hold_its_addresses(tmp_path: Path) -> None:
    """Else a restart would write what nobody had written before."""
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object())
            before = await cluster.given()
            cluster.server.delete("purelb.io/v2", "ServiceGroup", "default", "purelb-system")
            cluster.create(local_group(POOL, kind="remote"))
            await eventually(lambda: cluster.service()["metadata"]["annotations"]["purelb.io/pool-type"] == "remote")
            assert cluster.shown() == before


@pytest.mark.spec("A22")
async def test_a_group_that_goes_and_comes_again_moves_nobody_and_serves_who_waits(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group("172.30.250.53-172.30.250.54", quarantine="0s")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database) as allocator:
            cluster.create(service_object("a"))
            await cluster.given("a")
            before = cluster.service("a")
            cluster.server.delete("purelb.io/v2", "ServiceGroup", "default", "purelb-system")
            await eventually(lambda: allocator.leading and not allocator.leading._engine._groups)
            cluster.create(service_object("b"))
            refused = await eventually(lambda: cluster.condition("b"), "a refusal")
            assert refused["reason"] == "NoServiceGroup"
            cluster.create(local_group("172.30.250.53-172.30.250.54", quarantine="0s"))
            assert await cluster.given("b") == ["172.30.250.54"]
            assert cluster.service("a") == before


# -- nodes ----------------------------------------------------------------------------------------------------------


@pytest.mark.spec("B5", "C15")
async def test_the_last_word_of_an_agent_that_gave_its_lease_back_counts(tmp_path: Path) -> None:
    """It let go of everything, said so, and deleted its Lease: nobody need wait for a silent node."""
    async with a_cluster(tmp_path, local_group(ONE)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object())
            await cluster.given()
            async with a_node(cluster) as node:
                await node.holds("172.30.250.53")
                # Permanent: no lifetime says when the kernel lets it go.
                node.report = replace(
                    node.report, addresses=tuple(replace(a, valid_s=None) for a in node.report.addresses)
                )
                await node.write()
                await eventually(lambda: moves(database)[-1][2] == "announcing")
                cluster.delete_service()
                await eventually(lambda: states(database) == {"172.30.250.53": "releasing"})
                # Both arrive before anybody has looked at either.
                await node.holds("172.30.250.53", present=False)
                cluster.server.delete("coordination.k8s.io/v1", "Lease", "purelb-node-node1", "purelb-system")
                await eventually(lambda: states(database) == {"172.30.250.53": "released"}, deadline_s=10)


@pytest.mark.spec("B5", "C15")
async def test_a_full_state_without_the_address_lets_its_release_go_on(tmp_path: Path) -> None:
    """The agent was killed and started again: it has no moves to tell, only what is there now."""
    async with a_cluster(tmp_path, local_group(ONE)) as cluster, a_node(cluster) as node:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object())
            await cluster.given()
            await node.holds("172.30.250.53")
            await eventually(lambda: moves(database)[-1][2] == "announcing")
            cluster.delete_service()
            await eventually(lambda: states(database) == {"172.30.250.53": "releasing"})
            now = datetime.now(UTC)
            node.report = replace(
                node.report, incarnation="two", started_at=now, sequence=0, addresses=(), transitions=()
            )
            await node.write()
            await eventually(lambda: states(database) == {"172.30.250.53": "released"})


# -- quiet ----------------------------------------------------------------------------------------------------------


@contextmanager
def counting(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every transaction that is begun, while the block runs; the requests are in `cluster.requests`."""
    begun: list[str] = []
    real = Book.transaction

    def transaction(self: Book, *rest: Any) -> Any:
        begun.append("transaction")
        return real(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Book, "transaction", transaction)
        cluster.requests.clear()
        yield begun


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("exhausted", {}, "PoolExhausted"),
    ("unknown", {"annotations": {"purelb.io/service-group": "nowhere"}}, "UnknownServiceGroup"),
    ("broken", {"annotations": {"purelb.io/service-group": "broken"}}, "InvalidServiceGroup"),
    ("junk", {"annotations": {"purelb.io/addresses": "junk\u0000\u202e"}}, "InvalidRequest"),
    ("inuse", {"annotations": {"purelb.io/addresses": "172.30.250.53"}}, "AddressInUse"),
    ("outside", {"annotations": {"purelb.io/addresses": "192.0.2.1"}}, "AddressOutsideGroups"),
    ("family", {"annotations": {"purelb.io/addresses": "fd00::1"}}, "AddressFamilyNotRequested"),
    ("nopool", {"ipFamilies": ["IPv6"]}, "NoPoolForFamily"),
]


@pytest.mark.spec("E1", "D7")
async def test_refused_services_cost_nothing_while_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = local_group("172.30.250.9-172.30.250.1", name="broken")
    async with a_cluster(tmp_path, local_group(ONE), broken) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database) as allocator:
            cluster.create(service_object())
            await cluster.given()
            foreign = service_object("foreign")
            cluster.create(foreign)
            for name, more, _ in REFUSED:
                cluster.create(service_object(name, **more))
            for name, _, reason in REFUSED:
                found = await eventually(partial(cluster.condition, name), f"condition of {name}")
                assert found["reason"] == reason
            # One that keeps its address with a wish that cannot be met.
            patch = {"metadata": {"annotations": {"purelb.io/addresses": "192.0.2.1"}}}
            await cluster.patch_service("echo", patch)
            await eventually(lambda: (cluster.condition() or {}).get("reason") == "AddressOutsideGroups")
            await quiet(cluster, allocator, monkeypatch)
            head = rows(database, "SELECT MAX(seq) FROM history")
            # Looked at again by a touch that means nothing, and by a restart.
            for name, _, _ in REFUSED:
                await cluster.patch_service(name, {"metadata": {"labels": {"touched": "yes"}}})
            await asyncio.sleep(0.2)
            cluster.requests.clear()
            await quiet(cluster, allocator, monkeypatch)
            assert rows(database, "SELECT MAX(seq) FROM history") == head
        cluster.requests.clear()
        async with an_allocator(cluster, database) as allocator:
            await quiet(cluster, allocator, monkeypatch)
        assert [w for w in cluster.writes() if "leases" not in w[1]] == []
        assert rows(database, "SELECT MAX(seq) FROM history") == [(head[0][0] + 1,)]


async def quiet(cluster: Cluster, allocator: Allocator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for a second in which nothing is written or asked of the database, with nothing put off until later."""

    async def nothing() -> bool:
        await eventually(lambda: settled(cluster, allocator), "all seen and all done", deadline_s=30)
        with counting(cluster, monkeypatch) as begun:
            await asyncio.sleep(1.0)
            return settled(cluster, allocator) and not begun and not cluster.writes()

    await eventually(nothing, "a second in which nothing happens", deadline_s=30)


def settled(cluster: Cluster, allocator: Allocator) -> bool:
    """Whether the caches have what the server has, and the leader has nothing left to do, now or at a later try."""
    if allocator.leading is None or not allocator.leading.at_rest:
        return False
    for reflector in (allocator.intake.services, allocator.intake.groups):
        kind = reflector.kind.resource
        bucket = cluster.server.resource(kind.api_version, kind.kind).bucket
        there = {entry.rv for entry in cluster.server.store.bucket(bucket).entries()}
        if there != {int(view.resource_version) for view in reflector.items().values()}:
            return False
    return True


# -- quick changes -----------------------------------------------------------------------------------------------------


@pytest.mark.spec("A17", "A19", "A20")
@pytest.mark.parametrize("quarantine", ["0s", "5m"])
async def test_deleted_and_made_again_and_turned_over_many_times_ends_up_right(tmp_path: Path, quarantine: str) -> None:
    async with a_cluster(tmp_path, local_group(POOL, quarantine=quarantine)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            for n in range(25):
                for name in ("a", "b", "c"):
                    if cluster.server.get("v1", "Service", name, NAMESPACE):
                        cluster.delete_service(name)
                    cluster.create(service_object(name))
                    if n % 3 == 0:
                        await cluster.patch_service(name, {"spec": {"type": "ClusterIP"}})
                        await cluster.patch_service(name, {"spec": {"type": "LoadBalancer"}})
                await asyncio.sleep(0.003 * (n % 4))
            given = {name: await cluster.given(name) for name in ("a", "b", "c")}
            held = "SELECT address_text, claim FROM allocation WHERE state = 'held'"

            def settled() -> bool:
                shown = {(cluster.shown(name)[0], f"{NAMESPACE}/{name}") for name in given if cluster.shown(name)}
                return set(rows(database, held)) == shown and len(shown) == 3

            await eventually(settled)
        assert len({ip_address(a) for name in given for a in cluster.shown(name)}) == 3
        assert verified(database).rows > 0
