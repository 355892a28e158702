"""The condition `Announced`, its Event and its metric, end to end: real HTTP, a real book, nodes that are played."""

from __future__ import annotations

from pathlib import Path

import pytest

from purelb_sm.allocator.app import Allocator
from tests.support.product import (
    JSON,
    Cluster,
    a_cluster,
    a_database,
    a_node,
    an_allocator,
    local_group,
    service_object,
)
from tests.support.waiting import eventually

POOL = ("172.30.250.53-172.30.250.60", "fd30:250::100/120")
IP, IP6 = "172.30.250.53", "fd30:250::100"
LONG = {"unannounced_s": 600.0}
SHORT = {"unannounced_s": 0.5}


def announced(cluster: Cluster, name: str = "echo") -> JSON:
    conditions = cluster.service(name).get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == "purelb.io/Announced"), {})


def says(cluster: Cluster, name: str = "echo") -> tuple[str | None, str | None, str | None]:
    condition = announced(cluster, name)
    return condition.get("status"), condition.get("reason"), condition.get("message")


def writes(cluster: Cluster) -> list[str]:
    return [path for method, path in cluster.writes() if method == "PATCH" and "/services/" in path]


def unannounced(allocator: Allocator) -> float | None:
    return allocator.metrics.registry.get_sample_value("purelb_services_unannounced")


@pytest.mark.spec("C16")
async def test_the_condition_follows_the_nodes_with_one_write_each_and_a_restart_writes_nothing(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(*POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database, **LONG) as allocator, a_node(cluster, "node2") as survivor:
            cluster.create(service_object())
            await cluster.given()
            async with a_node(cluster, "node1") as node:
                await node.holds(IP)
                await eventually(lambda: says(cluster) == ("True", "Announced", "by node1 (eth0)"))
                assert len(writes(cluster)) == 2, "one for the allocation, one for what announces it"
                since = announced(cluster)["lastTransitionTime"]
                await survivor.holds(IP)
                await eventually(lambda: says(cluster) == ("True", "Announced", "by 2 nodes"))
                assert announced(cluster)["lastTransitionTime"] == since
            # The block's end stops the Lease of node1.
            await eventually(lambda: says(cluster) == ("True", "Announced", "by node2 (eth0)"))
            await survivor.holds(IP, present=False)
            await eventually(lambda: says(cluster) == ("False", "NotAnnounced", "no node announces it"))
            assert len(writes(cluster)) == 5
            assert not cluster.events("NotAnnounced")
            await eventually(lambda: allocator.leading is not None and allocator.leading.at_rest)
        before = cluster.service()
        cluster.requests.clear()
        async with an_allocator(cluster, database, **LONG) as allocator:
            cluster.create(service_object("next"))
            await cluster.given("next")
            await eventually(lambda: allocator.leading is not None and allocator.leading.at_rest)
        assert cluster.service() == before
        assert [path for path in writes(cluster) if "/echo/" in path] == []


@pytest.mark.spec("C16")
async def test_what_nobody_announces_for_long_is_one_event_and_counted_whoever_leads(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(*POOL)) as cluster, a_node(cluster) as node:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database, **SHORT) as allocator:
            cluster.create(service_object(ipFamilyPolicy="RequireDualStack", ipFamilies=["IPv4", "IPv6"]))
            await cluster.given()
            await eventually(lambda: says(cluster) == ("False", "NotAnnounced", f"no node announces {IP}, {IP6}"))
            await eventually(lambda: unannounced(allocator) == 1)
            (event,) = await eventually(lambda: cluster.events("NotAnnounced"))
            assert (event["type"], event["involvedObject"]["name"]) == ("Warning", "echo")
            assert event["message"].startswith(f"No node announces {IP}, {IP6}. What would help: a live node in")
        async with an_allocator(cluster, database, **SHORT) as allocator:
            await eventually(lambda: unannounced(allocator) == 1)
            await node.holds(IP)
            await eventually(
                lambda: says(cluster) == ("True", "PartlyAnnounced", f"by node1 (eth0); no node announces {IP6}")
            )
            assert unannounced(allocator) == 1
            await node.holds(IP6)
            await eventually(lambda: says(cluster) == ("True", "Announced", "by node1 (eth0)"))
            await eventually(lambda: unannounced(allocator) == 0)
        assert [e.get("count", 1) for e in cluster.events("NotAnnounced")] == [1]


@pytest.mark.spec("C16", "A18")
async def test_the_condition_goes_when_the_service_is_ours_no_more_and_nothing_is_counted(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(*POOL)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path), **SHORT) as allocator:
            for name in ("echo", "gone"):
                cluster.create(service_object(name))
                await cluster.given(name)
            await eventually(lambda: unannounced(allocator) == 2)
            await cluster.patch_service("echo", {"spec": {"type": "ClusterIP"}})
            cluster.delete_service("gone")
            await eventually(lambda: unannounced(allocator) == 0)
            assert "conditions" not in cluster.service()["status"]


@pytest.mark.spec("C16")
async def test_a_condition_that_somebody_changes_is_set_right(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(*POOL)) as cluster, a_node(cluster) as node:
        async with an_allocator(cluster, a_database(tmp_path), **LONG):
            cluster.create(service_object())
            await cluster.given()
            await node.holds(IP)
            right = ("True", "Announced", "by node1 (eth0)")
            await eventually(lambda: says(cluster) == right)
            from purelb_sm.kube.client import MERGE_PATCH

            path = "/api/v1/namespaces/test/services/echo/status"
            conditions = cluster.service()["status"]["conditions"]
            kept = [c for c in conditions if c["type"] != "purelb.io/Announced"]
            body = {"status": {"conditions": kept}}
            await cluster.client.request("PATCH", path, body=body, content_type=MERGE_PATCH)
            await eventually(lambda: says(cluster) == right)
