"""maxPerNamespace (A30) with an allocator: at the limit, over it, and where there is room again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.product import JSON, Cluster, a_cluster, a_database, an_allocator, group_object, service_object
from tests.support.waiting import eventually

RANGE = {"subnet": "10.0.0.0/24", "pool": "10.0.0.1-10.0.0.50"}


def limited(limit: int | None, name: str = "default", pool: JSON | None = None, **fields: Any) -> JSON:
    limits = {} if limit is None else {"maxPerNamespace": limit}
    return group_object(name, {"local": {"v4pools": [pool or RANGE], "quarantine": "1h"}, **limits, **fields})


async def refused(cluster: Cluster, *names: str) -> None:
    for name in names:
        condition = await eventually(partial(cluster.condition, name), f"a condition on {name}")
        assert (condition["status"], condition["reason"]) == ("False", "QuotaExceeded"), name


def holders(cluster: Cluster, names: list[str]) -> list[str]:
    return [name for name in names if cluster.shown(name)]


@pytest.mark.spec("A30")
async def test_a_flood_gets_no_more_than_the_quota_across_a_restart(tmp_path: Path) -> None:
    names = [f"a/s{n:02}" for n in range(20)]
    async with a_cluster(tmp_path, limited(3), namespaces=("a", "b")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database, batch_max=4):
            for name in names:
                cluster.create(service_object(name))
            cluster.create(service_object("b/one"))
            assert await cluster.given("b/one")
            await eventually(lambda: sum(cluster.condition(name) is not None for name in names) == 20)
            assert len(holders(cluster, names)) == 3
            before = {name: cluster.shown(name) for name in names}
        async with an_allocator(cluster, database, batch_max=4):
            cluster.create(service_object("a/late"))
            await refused(cluster, "a/late")
            assert {name: cluster.shown(name) for name in names} == before
            text = "QuotaExceeded: ServiceGroup default gives the Services of namespace a at most 3 addresses"
            await eventually(lambda: text in [e["message"] for e in cluster.events("AllocationFailed")])


@pytest.mark.spec("A30", "A29")
async def test_room_goes_to_who_waited_longest_in_that_namespace_without_waiting_for_the_quarantine(
    tmp_path: Path,
) -> None:
    async with a_cluster(tmp_path, limited(1), namespaces=("a", "b")) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            for name in ("a/first", "b/first", "a/second", "a/third", "b/second"):
                cluster.create(service_object(name))
                await eventually(partial(cluster.condition, name), f"a condition on {name}")
            await refused(cluster, "a/second", "a/third", "b/second")
            cluster.delete_service("a/first")
            assert await cluster.given("a/second") == ["10.0.0.3"]
            # Not its own, and not another namespace's.
            await refused(cluster, "a/third", "b/second")
            cluster.delete_service("a/second")
            assert await cluster.given("a/third") == ["10.0.0.4"]


@pytest.mark.spec("A30", "A22")
async def test_a_quota_lowered_below_use_takes_nothing_and_a_raised_one_serves_who_waits(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, limited(2), namespaces=("a",)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            for name in ("a/one", "a/two"):
                cluster.create(service_object(name))
                await cluster.given(name)
            await cluster.edit_groups(limited(1))
            cluster.create(service_object("a/three"))
            await refused(cluster, "a/three")
            assert (cluster.shown("a/one"), cluster.shown("a/two")) == (["10.0.0.1"], ["10.0.0.2"])
            cluster.delete_service("a/one")
            await eventually(lambda: cluster.server.get("v1", "Service", "one", "a") is None)
            cluster.create(service_object("a/four"))
            await refused(cluster, "a/four")
            await cluster.edit_groups(limited(3))
            assert await cluster.given("a/three")
            assert await cluster.given("a/four")
            assert cluster.shown("a/two") == ["10.0.0.2"]


@pytest.mark.spec("A30", "A22")
async def test_two_groups_edited_at_once_count_each_for_itself(tmp_path: Path) -> None:
    other = {"subnet": "10.0.1.0/24", "pool": "10.0.1.1-10.0.1.9"}
    async with a_cluster(tmp_path, limited(1), limited(None, "other", other), namespaces=("a",)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            note = {"purelb.io/service-group": "other"}
            cluster.create(service_object("a/one"))
            cluster.create(service_object("a/two"))
            cluster.create(service_object("a/o1", annotations=note))
            cluster.create(service_object("a/o2", annotations=note))
            await cluster.given("a/o2")
            await eventually(lambda: len(holders(cluster, ["a/one", "a/two"])) == 1)
            await cluster.edit_groups(limited(2), limited(1, "other", other))
            assert await cluster.given("a/one")
            assert await cluster.given("a/two")

            cluster.create(service_object("a/o3", annotations=note))
            await refused(cluster, "a/o3")
            assert cluster.shown("a/o1")
            assert cluster.shown("a/o2")
            assert not cluster.events("AddressReleased")
