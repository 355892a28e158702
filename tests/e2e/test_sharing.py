"""Sharing end to end: Services with one key over real HTTP, the book, kill -9, and agents that hold the address."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from purelb_sm.domain import names
from tests.e2e.test_allocator import rows, states, verified
from tests.e2e.test_kill import a_stage
from tests.support.agents import Lab, a_lab
from tests.support.product import a_cluster, a_database, a_node, an_allocator, local_group, service_object
from tests.support.waiting import eventually

POOL = "172.30.250.53-172.30.250.60"
FIRST, SECOND = "172.30.250.53", "172.30.250.54"
STATUS = "/api/v1/namespaces/test/services/{}/status"


def sharing(name: str, port: int, key: str = "web", **spec: Any) -> dict[str, Any]:
    ports = [{"port": port, "protocol": "TCP"}]
    return service_object(name, annotations={names.ALLOW_SHARED_IP: key}, ports=ports, **spec)


def members(database: str) -> set[tuple[str, str]]:
    """(address, name of the Service) of every membership that is not over."""
    sql = """SELECT a.address_text, s.name FROM membership m JOIN allocation a ON a.id = m.allocation_id
        JOIN service s ON s.uid = m.service_uid WHERE m.until_at IS NULL"""
    return {(str(address), str(name)) for address, name in rows(database, sql)}


@pytest.mark.spec("A15", "A3")
async def test_services_with_one_key_are_shown_one_address_each_in_one_write(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            await eventually(lambda: cluster.events("Parsed"))
            cluster.requests.clear()
            cluster.create(sharing("a", 80))
            cluster.create(sharing("b", 443))
            assert await cluster.given("a") == await cluster.given("b") == [FIRST]
            cluster.create(sharing("c", 80))
            await eventually(lambda: (cluster.condition("c") or {}).get("reason") == "PortConflict")
            await eventually(lambda: len(cluster.events("IPAllocated")) == 2 and cluster.events("AllocationFailed"))
        assert sorted(p for _, p in cluster.writes() if "/status" in p and "/services/" in p) == [
            STATUS.format(name) for name in "abc"
        ]
        (event,) = cluster.events("AllocationFailed")
        assert event["message"] == (f"PortConflict: another Service that shares the address has TCP/80 of {FIRST}")


@pytest.mark.spec("A15")
async def test_who_waits_for_a_port_is_served_when_it_is_given_up(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(sharing("a", 80))
            await cluster.given("a")
            for name in ("b", "c"):
                cluster.create(sharing(name, 80))
                await eventually(partial(cluster.condition, name))
            await cluster.patch_service("a", {"spec": {"ports": [{"port": 81, "protocol": "TCP"}]}})
            assert await cluster.given("b") == [FIRST]
            assert cluster.shown("c") == []
            cluster.delete_service("b")
            assert await cluster.given("c") == [FIRST]


@pytest.mark.spec("A16")
@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
async def test_an_address_stays_until_the_last_member_leaves(tmp_path: Path, order: tuple[str, ...]) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with a_node(cluster) as node, an_allocator(cluster, database):
            for number, name in enumerate("abc"):
                cluster.create(sharing(name, 80 + number))
                assert await cluster.given(name) == [FIRST]
            await node.holds(FIRST)
            await eventually(lambda: {s for (s,) in rows(database, "SELECT state FROM service")} == {"announcing"})
            left = set("abc")
            for name in order[:2]:
                cluster.delete_service(name)
                left.remove(name)
                await eventually(lambda: members(database) == {(FIRST, other) for other in left})
                assert states(database) == {FIRST: "held"}
                assert all(cluster.shown(other) == [FIRST] for other in left)
            cluster.delete_service(order[2])
            await eventually(lambda: states(database) == {FIRST: "releasing"})
            await node.holds(FIRST, False)
            await eventually(lambda: states(database) == {FIRST: "released"})
        verified(database)


@pytest.mark.spec("A16")
async def test_policy_local_of_a_member_is_set_back_before_the_address_is_shown(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL, kind="remote")) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            await eventually(lambda: cluster.events("Parsed"))
            cluster.requests.clear()
            cluster.create(sharing("a", 80, externalTrafficPolicy="Local"))
            assert await cluster.given("a") == [FIRST]
            await eventually(lambda: cluster.events("IPAllocated") and cluster.events("LocalOverride"))
            spec = cluster.service("a")["spec"]
            assert spec["externalTrafficPolicy"] == "Cluster"
            assert "healthCheckNodePort" not in spec
            await cluster.patch_service("a", {"spec": {"externalTrafficPolicy": "Local"}})
            await eventually(lambda: cluster.service("a")["spec"]["externalTrafficPolicy"] == "Cluster")
            assert cluster.shown("a") == [FIRST]
        writes = [path for _, path in cluster.writes() if "/services/a" in path]
        ours = [path for path in writes if path.endswith("/status")]
        assert len(ours) == 1, "the status was right all the time"
        assert writes[0] == "/api/v1/namespaces/test/services/a", "the policy went first"


@pytest.mark.spec("C10")
@pytest.mark.parametrize("insists", [False, True])
async def test_policy_local_on_a_local_pool_is_set_back_unless_the_user_insists(tmp_path: Path, insists: bool) -> None:
    annotations = {names.ALLOW_LOCAL: "true"} if insists else {}
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object("a", annotations=annotations, externalTrafficPolicy="Local"))
            assert await cluster.given("a") == [FIRST]
            (event,) = await eventually(lambda: cluster.events("LocalOverride"))
        assert cluster.service("a")["spec"]["externalTrafficPolicy"] == ("Local" if insists else "Cluster")
        assert ("is kept" if insists else "set to Cluster") in event["message"]


@pytest.mark.e2e
@pytest.mark.spec("A15", "A16", "E4")
async def test_after_kill_9_members_are_still_members_and_a_change_half_done_is_finished(tmp_path: Path) -> None:
    def body(name: str, port: int, key: str) -> dict[str, Any]:
        return {"annotations": {names.ALLOW_SHARED_IP: key}, "ports": [{"port": port, "protocol": "TCP"}]}

    async with a_stage(tmp_path, local_group(POOL)) as stage:
        allocator = await stage.allocator()
        for name, port, key in (("a", 80, "web"), ("b", 443, "web"), ("c", 53, "dns")):
            await stage.create(name, **body(name, port, key))
        assert [await stage.given(name) for name in "abc"] == [[FIRST], [FIRST], [SECOND]]
        # The change of b is booked, and cannot be shown: it has both addresses then.
        await stage.fault(kind="hang", method="PATCH", path="services/.*/status")
        patch = {"metadata": {"annotations": {names.ALLOW_SHARED_IP: "dns"}}}
        await stage.edit("b", patch)
        both = {(FIRST, "a"), (FIRST, "b"), (SECOND, "b"), (SECOND, "c")}
        await eventually(lambda: members(stage.database) == both)
        allocator.kill()
        await allocator.gone()
        await stage.no_faults()
        assert await stage.shown("b") == [FIRST]
        again = await stage.allocator()
        await eventually(partial(_shows, stage, "b", [SECOND]))
        await eventually(lambda: members(stage.database) == both - {(FIRST, "b")})
        assert await stage.shown("a") == [FIRST]
        await stage.create("d", **body("d", 443, "web"))
        assert await stage.given("d") == [FIRST]
        await again.stop()
        verified(stage.database)


async def _shows(stage: Any, name: str, addresses: list[str]) -> bool:
    return bool(await stage.shown(name) == addresses)


@pytest.mark.spec("A16", "C8", "C9")
@pytest.mark.parametrize("first_to_go", ["a", "b"])
async def test_nodes_hold_a_shared_address_while_any_member_shows_it(tmp_path: Path, first_to_go: str) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster, a_lab(cluster) as lab:
        await lab.start("node1")
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(sharing("a", 80))
            await lab.held_by(FIRST, "node1")
            cluster.create(sharing("b", 443))
            for name in "ab":
                await eventually(partial(_annotated, lab, name))
            await eventually(
                lambda: {e["involvedObject"]["name"] for e in cluster.events("AnnouncingLocal")} == {*"ab"}
            )
            cluster.delete_service(first_to_go)
            # Something that the agent does after it has seen the deletion.
            cluster.create(service_object("later"))
            await lab.held_by(SECOND, "node1")
            await lab.held_by(FIRST, "node1")
            cluster.delete_service("b" if first_to_go == "a" else "a")
            await lab.held_by(FIRST)
            await eventually(lambda: removals(lab, FIRST) == 1, "only the last one's going removed it")


def _annotated(lab: Lab, name: str) -> bool:
    return lab.annotation(name) == "node1, enp1s0"


def removals(lab: Lab, address: str) -> int:
    report = lab.report("node1") or {}
    return sum(1 for t in report.get("transitions", ()) if (t["address"], t["trigger"]) == (address, "remove"))
