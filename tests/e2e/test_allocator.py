"""The allocator end to end: Services over real HTTP on one side, a database file on the other. Nodes are played."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from purelb_sm.cli import main
from purelb_sm.sandbox.apiserver import Fault
from purelb_sm.store.audit import Audit
from purelb_sm.store.history import Verified
from tests.support.product import (
    Cluster,
    a_cluster,
    a_database,
    a_node,
    an_allocator,
    local_group,
    service_object,
)
from tests.support.waiting import eventually

POOL = "172.30.250.53-172.30.250.60"
STATUS = "/api/v1/namespaces/test/services/echo/status"


def rows(database: str, sql: str) -> list[tuple[Any, ...]]:
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(sql))]
    finally:
        engine.dispose()


def moves(database: str, kind: str = "service") -> list[tuple[Any, ...]]:
    return rows(database, f"SELECT trigger, from_state, to_state FROM history WHERE kind = '{kind}' ORDER BY seq")


def states(database: str) -> dict[str, str]:
    """State of the newest allocation of each address."""
    return {str(a): str(s) for a, s in rows(database, "SELECT address_text, state FROM allocation ORDER BY id")}


def states_of_services(database: str) -> dict[str, str]:
    return {str(name): str(state) for name, state in rows(database, "SELECT name, state FROM service")}


def verified(database: str) -> Verified:
    audit = Audit.open(database)
    try:
        return audit.verify()
    finally:
        audit.close()


@pytest.mark.spec("A1", "A3", "B1")
async def test_a_service_is_shown_its_address_in_one_write_and_one_event(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            await eventually(lambda: cluster.events("Parsed"))
            cluster.requests.clear()
            cluster.create(service_object())
            assert await cluster.given() == ["172.30.250.53"]
            await eventually(lambda: cluster.events("IPAllocated"))
        writes = [write for write in cluster.writes() if "/servicegroups/" not in write[1]]
        assert writes == [("PATCH", STATUS), ("POST", "/api/v1/namespaces/test/events")]
        service = cluster.service()
        assert service["status"]["loadBalancer"]["ingress"] == [{"ip": "172.30.250.53", "ipMode": "VIP"}]
        assert service["metadata"]["annotations"] == {
            "purelb.io/allocated-by": "PureLB",
            "purelb.io/allocated-from": "default",
            "purelb.io/pool-type": "local",
        }
        condition = cluster.condition()
        assert condition is not None
        assert (condition["status"], condition["reason"]) == ("True", "Allocated")
        (event,) = cluster.events("IPAllocated")
        assert event["message"] == "Assigned IP 172.30.250.53 from pool default"
        assert event["source"]["component"] == "purelb-allocator"
        assert moves(database) == [("observe", None, "pending"), ("allocate", "pending", "allocated")]
        assert moves(database, "allocation") == [("hold", None, "held")]
        assert verified(database).rows > 0


@pytest.mark.spec("A3", "A13")
async def test_dual_stack_shows_both_in_the_order_of_ip_families(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL, "fd30:250::100/120")) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object("both", ipFamilyPolicy="RequireDualStack", ipFamilies=["IPv6", "IPv4"]))
            cluster.create(service_object("prefer", ipFamilyPolicy="PreferDualStack"))
            assert await cluster.given("both") == ["fd30:250::100", "172.30.250.53"]
            assert await cluster.given("prefer") == ["172.30.250.54", "fd30:250::101"]


@pytest.mark.spec("A8", "A2", "A12")
async def test_what_cannot_be_read_is_said_and_blocks_nobody(tmp_path: Path) -> None:
    broken = local_group("172.30.250.9-172.30.250.1", name="broken")
    nested = local_group("172.30.250.54/32", name="nested")
    async with a_cluster(tmp_path, local_group(POOL), broken) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            await eventually(lambda: cluster.events("ParseFailed"))
            cluster.create(nested)
            junk = {"purelb.io/addresses": "172.030.250.053"}
            cluster.create(service_object("junk", annotations=junk))
            cluster.create(service_object("lost", annotations={"purelb.io/service-group": "nowhere"}))
            cluster.create(service_object("foreign", loadBalancerClass="example.com/other"))
            cluster.create(service_object("good"))
            assert await cluster.given("good") == ["172.30.250.53"]
            for name, reason in (("junk", "InvalidRequest"), ("lost", "UnknownServiceGroup")):
                found = await eventually(partial(cluster.condition, name), f"condition of {name}")
                assert (found["status"], found["reason"]) == ("False", reason)
            await eventually(lambda: len(cluster.events("AllocationFailed")) == 2)
            assert {e["type"] for e in cluster.events("AllocationFailed")} == {"Warning"}
            await eventually(lambda: len(cluster.events("ParseFailed")) == 2)
            assert {e["type"] for e in cluster.events("ParseFailed")} == {"Warning"}
            texts = {e["involvedObject"]["name"]: e["message"] for e in cluster.events("ParseFailed")}
            assert "spec.local.v4pools[0].pool" in texts["broken"]
            assert "172.30.250.9-172.30.250.1" in texts["broken"]
            assert "overlaps" in texts["nested"]
            assert "default" in texts["nested"]
            group = cluster.server.get("purelb.io/v2", "ServiceGroup", "broken", "purelb-system")
            assert group is not None
            assert [(c["type"], c["status"]) for c in group["status"]["conditions"]] == [("Ready", "False")]
            foreign = cluster.service("foreign")
            assert "annotations" not in foreign["metadata"]
            assert foreign["status"] == {"loadBalancer": {}}


@pytest.mark.spec("A12")
async def test_a_class_of_its_own_is_all_that_is_served_where_it_is_no_default(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        settings = {"load_balancer_class": "example.com/lb", "default_class": False}
        async with an_allocator(cluster, a_database(tmp_path), **settings):
            cluster.create(service_object("plain"))
            cluster.create(service_object("purelb", loadBalancerClass="purelb.io/purelb"))
            untouched = {name: cluster.service(name) for name in ("plain", "purelb")}
            cluster.create(service_object("ours", loadBalancerClass="example.com/lb"))
            assert await cluster.given("ours") == ["172.30.250.53"]
            await eventually(lambda: cluster.events("IPAllocated"))
        assert {name: cluster.service(name) for name in untouched} == untouched
        assert {e["involvedObject"]["name"] for e in cluster.events()} == {"default", "ours"}


@pytest.mark.spec("A6", "A8")
async def test_a_pool_with_host_bits_begins_where_it_is_written_and_its_group_is_told(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group("172.30.250.53/29")) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            for name, address in (("a", "172.30.250.53"), ("b", "172.30.250.54"), ("c", "172.30.250.55")):
                cluster.create(service_object(name))
                assert await cluster.given(name) == [address]
            cluster.create(service_object("d"))
            assert (await eventually(partial(cluster.condition, "d")))["reason"] == "PoolExhausted"
            (warning,) = await eventually(lambda: cluster.events("ConfigurationWarning"))
            (parsed,) = cluster.events("Parsed")
        assert (warning["type"], parsed["type"]) == ("Warning", "Normal")
        assert {e["involvedObject"]["name"] for e in (warning, parsed)} == {"default"}
        assert "172.30.250.53-172.30.250.55" in parsed["message"]
        said = "172.30.250.53/29 has host bits set: it covers 172.30.250.53-172.30.250.55, not all of 172.30.250.48/29"
        assert warning["message"] == f"spec.local.v4pools[0].pool: {said}"


@pytest.mark.spec("A2", "A8")
async def test_a_group_that_overlapped_is_used_when_the_other_is_gone(tmp_path: Path) -> None:
    nested = local_group("172.30.250.54/32", name="nested")
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            await eventually(lambda: cluster.events("Parsed"))
            cluster.create(nested)
            cluster.create(service_object(annotations={"purelb.io/service-group": "nested"}))
            why = "overlaps 172.30.250.53-172.30.250.60 of ServiceGroup default"
            await eventually(lambda: why in str(cluster.condition()))
            assert (cluster.condition() or {})["reason"] == "InvalidServiceGroup"
            cluster.server.delete("purelb.io/v2", "ServiceGroup", "default", "purelb-system")
            assert await cluster.given() == ["172.30.250.54"]
            await eventually(lambda: {e["involvedObject"]["name"] for e in cluster.events("Parsed")} >= {"nested"})


@pytest.mark.spec("A1", "A8")
async def test_a_group_that_comes_later_serves_those_who_wait(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object())
            refused = await eventually(cluster.condition, "a refusal")
            assert refused["reason"] == "NoServiceGroup"
            cluster.create(local_group(POOL))
            assert await cluster.given() == ["172.30.250.53"]


async def test_a_restart_moves_nothing_and_writes_nothing(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            for name in ("a", "b", "c"):
                cluster.create(service_object(name))
                await cluster.given(name)
            await eventually(lambda: len(cluster.events("IPAllocated")) == 3)
        before = {name: cluster.service(name) for name in ("a", "b", "c")}
        cluster.requests.clear()
        async with an_allocator(cluster, database):
            cluster.create(service_object("d"))
            assert await cluster.given("d") == ["172.30.250.56"]
            await eventually(lambda: len(cluster.events("IPAllocated")) == 4)
        assert {name: cluster.service(name) for name in before} == before
        assert [p for m, p in cluster.writes() if m == "PATCH" and "/services/" in p] == [STATUS.replace("echo", "d")]


async def test_after_a_restart_who_waits_does_not_wait_for_those_who_have_theirs(tmp_path: Path) -> None:
    old = [f"old-{n}" for n in range(20)]
    async with a_cluster(tmp_path, local_group("172.30.250.53-172.30.250.90")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            for name in old:
                cluster.create(service_object(name))
                await cluster.given(name)
        for name in old:
            # Something to write for each of them, so that the order is seen.
            await cluster.patch_service(name, {"metadata": {"annotations": {"purelb.io/allocated-from": None}}})

        def written() -> list[str]:
            return [p.split("/")[-2] for m, p in cluster.writes() if m == "PATCH" and p.endswith("/status")]

        cluster.requests.clear()
        cluster.create(service_object("new"))
        async with an_allocator(cluster, database, batch_max=1, publish_concurrency=1):
            await eventually(lambda: len(written()) > 20)

        assert "new" in written()[:10]


@pytest.mark.spec("B12")
async def test_what_a_service_shows_is_adopted_first_though_the_book_has_it_waiting(tmp_path: Path) -> None:
    in_later = {"purelb.io/service-group": "later"}
    async with a_cluster(tmp_path, local_group("172.30.250.10-172.30.250.40")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            for n in range(20):
                cluster.create(service_object(f"a-{n}"))
                await cluster.given(f"a-{n}")
            cluster.create(service_object("old", annotations=in_later))
            await eventually(lambda: states_of_services(database).get("old") == "pending")
        # As if the book were an older one, put back from a backup.
        await cluster.patch_service("old", {"metadata": {"annotations": {"purelb.io/allocated-by": "PureLB"}}})
        await cluster.patch_status("old", {"loadBalancer": {"ingress": [{"ip": "172.30.250.53", "ipMode": "VIP"}]}})
        cluster.create(local_group(POOL, name="later"))
        cluster.create(service_object("new", annotations=in_later))
        async with an_allocator(cluster, database, batch_max=1):
            assert await cluster.given("new") == ["172.30.250.54"]
        assert cluster.shown("old") == ["172.30.250.53"]


async def test_what_was_deleted_and_made_again_while_nobody_looked_is_sorted_out(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL, quarantine="5m")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            for name in ("kept", "gone", "again"):
                cluster.create(service_object(name))
                await cluster.given(name)
            old = cluster.shown("again")
        cluster.delete_service("gone")
        cluster.delete_service("again")
        cluster.create(service_object("again"))
        cluster.create(service_object("new"))
        async with an_allocator(cluster, database):
            assert await cluster.given("again") == old
            assert await cluster.given("new") == ["172.30.250.56"]
            await eventually(lambda: states(database)["172.30.250.54"] == "quarantined")
        assert cluster.shown("kept") == ["172.30.250.53"]
        assert verified(database).rows > 0


@pytest.mark.spec("A18", "B5")
async def test_an_address_is_free_only_when_no_status_shows_it_and_no_node_holds_it(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group("172.30.250.53/32")) as cluster, a_node(cluster) as node:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object())
            await cluster.given()
            await node.holds("172.30.250.53")
            await eventually(lambda: moves(database)[-1][2] == "announcing")
            cluster.delete_service()
            cluster.create(service_object("next"))
            refused = await eventually(lambda: cluster.condition("next"), "a refusal")
            assert refused["reason"] == "PoolExhausted"
            await eventually(lambda: states(database)["172.30.250.53"] == "releasing")
            # Something else happens and is dealt with: the node's word alone is what is missing.
            cluster.create(service_object("other"))
            await eventually(lambda: cluster.condition("other"), "a refusal")
            assert states(database)["172.30.250.53"] == "releasing"
            assert cluster.shown("next") == []
            await node.holds("172.30.250.53", present=False)
            assert await cluster.given("next") == ["172.30.250.53"]
        released: list[tuple[Any, ...]] = [
            ("begin_release", "held", "releasing"),
            ("confirm_release", "releasing", "quarantined"),
        ]
        released += [("expire", "quarantined", "released"), ("hold", None, "held")]
        assert moves(database, "allocation")[1:] == released
        announced = [str(trigger) for trigger, _, _ in moves(database, "announcement")]
        assert [t for t in announced if t != "seen"] == ["add", "added", "remove", "removed"]


@pytest.mark.spec("A18")
async def test_a_service_whose_type_changes_lives_on_without_anything_of_ours(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL, quarantine="5m")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object(annotations={"example.com/mine": "kept"}))
            await cluster.given()
            await cluster.patch_service("echo", {"spec": {"type": "ClusterIP"}})
            await eventually(lambda: cluster.service()["metadata"]["annotations"] == {"example.com/mine": "kept"})
            assert "conditions" not in cluster.service()["status"]
            await eventually(lambda: cluster.events("AddressReleased"))
            await eventually(lambda: states(database)["172.30.250.53"] == "quarantined")
            await cluster.patch_service("echo", {"spec": {"type": "LoadBalancer"}})
            assert await cluster.given() == ["172.30.250.53"]
        assert [t for t, _, _ in moves(database)] == ["observe", "allocate", "withdraw", "revive", "allocate"]


@pytest.mark.spec("C15")
async def test_reports_are_booked_once_and_a_silent_node_is_lost(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object())
            await cluster.given()
            async with a_node(cluster) as node:
                await node.holds("172.30.250.53")
                await eventually(lambda: moves(database)[-1] == ("announce", "allocated", "announcing"))
                booked = moves(database, "announcement")
                await node.write()
                await node.holds("172.30.250.60")
                assert moves(database, "announcement") == booked
            # The block's end stops the Lease; the report stays where it is.
            await eventually(lambda: moves(database)[-1] == ("fall_silent", "announcing", "allocated"))
            assert moves(database, "announcement")[-1] == ("lose", "present", "lost")
            async with a_node(cluster) as back:
                await back.holds("172.30.250.53")
                await eventually(lambda: moves(database)[-1] == ("announce", "allocated", "announcing"))
        assert verified(database).rows > 0


async def test_a_new_leader_does_not_take_a_dead_nodes_last_report_for_news(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object())
            await cluster.given()
            async with a_node(cluster) as node:
                await node.holds("172.30.250.53")
                await eventually(lambda: moves(database)[-1] == ("announce", "allocated", "announcing"))
            await eventually(lambda: moves(database, "announcement")[-1] == ("lose", "present", "lost"))
        booked = moves(database, "announcement")
        async with an_allocator(cluster, database) as successor:
            await eventually(lambda: successor.leading)
            # Its Lease is still there, and counts as live for its duration; it is not heard of, though.
            assert successor.intake.liveness.live() == {"node1"}
            await eventually(lambda: not successor.intake.liveness.live())
            cluster.create(service_object("next"))
            await cluster.given("next")
            assert moves(database, "announcement") == booked
            async with a_node(cluster):
                await eventually(lambda: successor.intake.liveness.live())


async def test_of_two_allocators_one_leads_and_the_other_takes_over_without_a_change(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster, AsyncExitStack() as second_life:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database, identity="one") as one:
            await eventually(lambda: one.leading)
            two = await second_life.enter_async_context(an_allocator(cluster, database, identity="two"))
            cluster.create(service_object("a"))
            await cluster.given("a")
            assert two.leading is None
            before = cluster.service("a")
        await eventually(lambda: two.leading)
        cluster.create(service_object("b"))
        assert await cluster.given("b") == ["172.30.250.54"]
        assert cluster.service("a") == before


async def test_a_deposed_allocator_cannot_commit(tmp_path: Path) -> None:
    """Both believe to lead (their Leases are apart): the term in the database decides."""
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database, identity="old") as old:
            await eventually(lambda: old.leading)
            from purelb_sm.store import Book

            usurper = Book.open(database, actor="usurper")
            try:
                usurper.raise_term(old._clock())
                term = old.metrics.term._value.get()
                cluster.create(service_object())
                # The old one finds out with its first commit, steps down, and comes back under a newer term.
                assert await cluster.given() == ["172.30.250.53"]
                assert old.metrics.term._value.get() > term
            finally:
                usurper.close()
        assert [t for t, _, _ in moves(database)] == ["observe", "allocate"]


@pytest.mark.spec("B4")
async def test_the_head_of_the_history_is_shown_in_the_lease(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)

        def head() -> str:
            lease = cluster.server.get("coordination.k8s.io/v1", "Lease", "purelb-allocator", "purelb-system")
            found = (lease or {"metadata": {}})["metadata"].get("annotations", {})
            return str(found.get("purelb.io/history-head", ""))

        async with an_allocator(cluster, database):
            cluster.create(service_object())
            await cluster.given()
            seq, hash_ = verified(database).head
            await eventually(lambda: head() == f"{seq}:{hash_}", "the head of the history in the Lease")


@pytest.mark.spec("B4")
async def test_a_history_whose_tail_was_cut_off_does_not_verify_against_the_lease(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        command = ["verify", "--database", database, "--kubeconfig", str(cluster.kubeconfig)]
        async with an_allocator(cluster, database):
            cluster.create(service_object())
            await cluster.given()
            await eventually(lambda: moves(database)[-1][2] == "allocated")
        whole = await asyncio.to_thread(CliRunner().invoke, main.command(), command)
        assert whole.exit_code == 0, whole.output
        # A thief with the file: without the triggers, the last row goes, and what is left is a sound chain.
        engine = create_engine(database)
        with engine.begin() as connection:
            for (trigger,) in connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
                connection.execute(text(f"DROP TRIGGER {trigger}"))
            connection.execute(text("DELETE FROM history WHERE seq = (SELECT max(seq) FROM history)"))
        engine.dispose()
        assert verified(database).rows > 0
        cut = await asyncio.to_thread(CliRunner().invoke, main.command(), command)
        assert cut.exit_code == 1, cut.output


async def publish_fails(cluster: Cluster, kind: str, times: int) -> None:
    cluster.server.faults.add(Fault(kind, "PATCH", "services/.*/status", times=times, delay_s=0.0))


@pytest.mark.parametrize("kind", ["error", "unavailable", "abort", "truncate", "too_many"])
async def test_a_status_write_that_fails_is_made_again(tmp_path: Path, kind: str) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            await publish_fails(cluster, kind, 2)
            cluster.create(service_object())
            assert await cluster.given() == ["172.30.250.53"]
        assert moves(database, "allocation") == [("hold", None, "held")]


@pytest.mark.spec("A13")
async def test_services_edited_while_they_are_published_end_up_right(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL, "fd30:250::100/120")) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object())
            for n in range(10):
                await cluster.patch_service("echo", {"metadata": {"labels": {"n": str(n)}}})
                await asyncio.sleep(0)
            await cluster.patch_service("echo", {"spec": {"ipFamilyPolicy": "PreferDualStack"}})
            await eventually(lambda: cluster.shown() == ["172.30.250.53", "fd30:250::100"])
