"""One range or every range (A24), and whose group it is (A25): end to end, with an allocator."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.product import (
    JSON,
    Cluster,
    a_cluster,
    a_database,
    a_node,
    an_allocator,
    group_object,
    service_object,
)
from tests.support.waiting import eventually

RACKS = [{"subnet": f"10.0.{n}.0/24", "pool": f"10.0.{n}.1-10.0.{n}.3"} for n in (1, 2, 3)]
WIDE = [{"subnet": f"10.0.{n}.0/24", "pool": f"10.0.{n}.1-10.0.{n}.250"} for n in (1, 2, 3)]
BY_NAME = "purelb.io/service-group"


def bound(name: str, rack: int, *namespaces: str, **fields: Any) -> JSON:
    pool = RACKS[rack - 1]
    spec = {"local": {"v4pools": [pool], "quarantine": "0s"}, "namespaces": list(namespaces), **fields}
    return group_object(name, spec)


def group(cluster: Cluster, name: str) -> JSON:
    found = cluster.server.get("purelb.io/v2", "ServiceGroup", name, "purelb-system")
    assert found is not None
    return found


def ready(cluster: Cluster, name: str) -> str:
    conditions = group(cluster, name).get("status", {}).get("conditions", [])
    return next((str(c["message"]) for c in conditions if c["type"] == "Ready"), "")


def says(cluster: Cluster, name: str, text: str) -> bool:
    return text in ready(cluster, name)


async def refusal(cluster: Cluster, name: str) -> str:
    """The reason why a Service has no address, once it is told."""
    found = await eventually(partial(cluster.condition, name), f"a condition on {name}")
    assert found["status"] == "False"
    assert cluster.shown(name) == []
    return str(found["reason"])


def annotated(cluster: Cluster, name: str) -> str:
    return str(cluster.service(name)["metadata"]["annotations"].get("purelb.io/allocated-from"))


@pytest.mark.spec("A24")
async def test_a_multi_pool_service_has_an_address_wherever_a_live_node_is(tmp_path: Path) -> None:
    everywhere = group_object("default", {"local": {"v4pools": WIDE, "multiPool": True}})
    async with a_cluster(tmp_path, everywhere) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object("echo"))
            assert await refusal(cluster, "echo") == "NoNodeInSubnet"
            async with a_node(cluster, "node1", "10.0.3.0/24", "192.168.0.0/24", "10.0.1.0/24"):
                assert await cluster.given("echo") == ["10.0.1.1", "10.0.3.1"]
                async with a_node(cluster, "node2", "10.0.2.0/24"):
                    await third_rack_is_known(cluster)
                    # It changes nothing of what is shown until somebody asks for it.
                    assert cluster.shown("echo") == ["10.0.1.1", "10.0.3.1"]
                    ask = {"metadata": {"annotations": {"purelb.io/re-evaluate": "true"}}}
                    await cluster.patch_service("echo", ask)
                    await eventually(lambda: len(cluster.shown("echo")) == 3)
                    shown = cluster.shown("echo")
                    assert [a.split(".")[2] for a in shown] == ["1", "2", "3"]
                    assert {"10.0.1.1", "10.0.3.1"} <= set(shown)


@pytest.mark.spec("A24")
async def test_a_new_leader_knows_where_nodes_are_before_it_gives_anything(tmp_path: Path) -> None:
    everywhere = group_object("default", {"local": {"v4pools": WIDE, "multiPool": True}})
    async with a_cluster(tmp_path, everywhere) as cluster, a_node(cluster, "node1", "10.0.1.0/24", "10.0.3.0/24"):
        database = a_database(tmp_path)
        for name in ("first", "second"):
            cluster.create(service_object(name))
            async with an_allocator(cluster, database):
                given = await cluster.given(name)
                assert [a.split(".")[2] for a in given] == ["1", "3"]
                await eventually(lambda: cluster.events("IPAllocated"))
        assert cluster.events("AllocationFailed") == []


async def third_rack_is_known(cluster: Cluster) -> None:
    """Services that come now get an address there: asked by one after the other, until it is so."""
    numbers = itertools.count()

    async def known() -> bool:
        name = f"probe{next(numbers)}"
        cluster.create(service_object(name))
        found = len(await cluster.given(name)) == 3
        cluster.delete_service(name)
        return found

    await eventually(known)


@pytest.mark.spec("A24")
async def test_the_annotation_asks_for_every_range_of_a_remote_group_in_order(tmp_path: Path) -> None:
    v6 = [{"subnet": "fd00:9::/64", "pool": "fd00:9::/64"}, {"subnet": "fd00:1::/64", "pool": "fd00:1::/64"}]
    remote = group_object("default", {"remote": {"v4pools": RACKS[::-1], "v6pools": v6}})
    async with a_cluster(tmp_path, remote) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            wish = {"purelb.io/multi-pool": "true"}
            cluster.create(
                service_object("all", annotations=wish, ipFamilies=["IPv6", "IPv4"], ipFamilyPolicy="RequireDualStack")
            )
            cluster.create(service_object("one"))
            assert await cluster.given("all") == ["fd00:9::", "fd00:1::", "10.0.3.1", "10.0.2.1", "10.0.1.1"]
            assert await cluster.given("one") == ["10.0.3.2"]
            event = await eventually(lambda: [e for e in cluster.events("IPAllocated") if "fd00" in e["message"]])
            assert len(event) == 1


@pytest.mark.spec("A24")
async def test_balanced_pools_fill_alike_across_a_restart(tmp_path: Path) -> None:
    balanced = group_object("default", {"local": {"v4pools": RACKS, "balancePools": True}})
    async with a_cluster(tmp_path, balanced) as cluster:
        database = a_database(tmp_path)
        given = []
        for batch in (("a", "b"), ("c", "d")):
            async with an_allocator(cluster, database):
                for name in batch:
                    cluster.create(service_object(name))
                    given += await cluster.given(name)
        assert given == ["10.0.1.1", "10.0.2.1", "10.0.3.1", "10.0.1.2"]


@pytest.mark.spec("A24", "A8")
async def test_multi_and_balanced_together_do_not_get_past_the_schema(tmp_path: Path) -> None:
    both = group_object("default", {"local": {"v4pools": RACKS, "multiPool": True, "balancePools": True}})
    async with a_cluster(tmp_path) as cluster:
        with pytest.raises(Exception, match="cannot go together"):
            cluster.create(both)


@pytest.mark.spec("A25")
async def test_a_boundary_holds_both_ways_by_name_and_by_address(tmp_path: Path) -> None:
    groups = (
        bound("default", 1),
        bound("l2", 2, "a", enforceNamespaces=True, namespaceDefault=True),
        bound("bgp", 3, "a"),
    )
    async with a_cluster(tmp_path, *groups, namespaces=("a", "b")) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object("a/plain"))
            cluster.create(service_object("a/other", annotations={BY_NAME: "bgp"}))
            cluster.create(service_object("a/out", annotations={BY_NAME: "default"}))
            cluster.create(service_object("a/pinned-out", annotations={"purelb.io/addresses": "10.0.1.3"}))
            cluster.create(service_object("b/plain"))
            cluster.create(service_object("b/in", annotations={BY_NAME: "l2"}))
            cluster.create(service_object("b/in-too", annotations={BY_NAME: "bgp"}))
            assert await cluster.given("a/plain") == ["10.0.2.1"]
            cluster.create(service_object("b/pinned-in", annotations={"purelb.io/addresses": "10.0.2.1"}))
            cluster.create(service_object("b/pinned-free", loadBalancerIP="10.0.2.3"))
            assert await cluster.given("a/other") == ["10.0.3.1"]
            assert await cluster.given("b/plain") == ["10.0.1.1"]
            for name in ("a/out", "a/pinned-out", "b/in", "b/in-too", "b/pinned-in", "b/pinned-free"):
                assert await refusal(cluster, name) == "NamespaceNotAllowed", name
            said = " ".join(e["message"] for e in cluster.events("AllocationFailed"))
            assert "plain" not in said


@pytest.mark.spec("A25", "A22")
async def test_bindings_edited_while_services_hold_addresses_take_nothing_away(tmp_path: Path) -> None:
    """Two groups are edited at once: what was everybody's becomes a boundary, and back."""
    before = (bound("default", 1), bound("other", 2))
    after = (bound("default", 1, "a", enforceNamespaces=True), bound("other", 2, "b", enforceNamespaces=True))
    async with a_cluster(tmp_path, *before, namespaces=("a", "b")) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object("b/old"))
            cluster.create(service_object("a/old", annotations={BY_NAME: "other"}))
            assert await cluster.given("b/old") == ["10.0.1.1"]
            assert await cluster.given("a/old") == ["10.0.2.1"]
            await cluster.edit_groups(*after)
            cluster.create(service_object("b/new", annotations={BY_NAME: "default"}))
            cluster.create(service_object("a/new", annotations={BY_NAME: "other"}))
            await eventually(lambda: "NamespaceNotAllowed" in str(cluster.condition("b/new")))
            await eventually(lambda: "NamespaceNotAllowed" in str(cluster.condition("a/new")))
            # A holder that is touched stays what it is.
            await cluster.patch_service("b/old", {"metadata": {"labels": {"touched": "yes"}}})
            cluster.create(service_object("b/plain"))
            assert await cluster.given("b/plain") == ["10.0.2.2"]
            assert (cluster.shown("b/old"), cluster.shown("a/old")) == (["10.0.1.1"], ["10.0.2.1"])
            assert not cluster.events("AddressReleased")
            await cluster.edit_groups(*before)
            assert await cluster.given("b/new") == ["10.0.1.2"]
            assert await cluster.given("a/new") == ["10.0.2.3"]


@pytest.mark.spec("A25")
async def test_what_is_ambiguous_is_said_to_groups_and_services_and_is_no_choice(tmp_path: Path) -> None:
    groups = (bound("default", 1), bound("one", 2, "a"), bound("two", 3, "a"))
    async with a_cluster(tmp_path, *groups, namespaces=("a",)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object("a/first"))
            assert await cluster.given("a/first") == ["10.0.1.1"]
            text = "namespace a is served by ServiceGroups one, two, and none of them says namespaceDefault"
            for name in ("one", "two"):
                await eventually(partial(says, cluster, name, text))
            await eventually(lambda: len(cluster.events("ConfigurationWarning")) == 3)
            told = {e["involvedObject"]["name"] for e in cluster.events("ConfigurationWarning")}
            assert told == {"one", "two", "first"}
            # Enforced, it is a refusal; and one of them made the default ends it, for those who wait too.
            await cluster.edit_groups(bound("one", 2, "a", enforceNamespaces=True))
            cluster.create(service_object("a/second"))
            await eventually(lambda: "AmbiguousServiceGroup" in str(cluster.condition("a/second")))
            await cluster.edit_groups(bound("two", 3, "a", namespaceDefault=True))
            assert await cluster.given("a/second") == ["10.0.3.1"]
            await eventually(lambda: "namespaceDefault" not in ready(cluster, "one") + ready(cluster, "two"))
            assert cluster.shown("a/first") == ["10.0.1.1"]
            assert annotated(cluster, "a/second") == "two"


@pytest.mark.spec("A25")
async def test_a_group_outside_the_install_namespace_is_ignored_and_told_once(tmp_path: Path) -> None:
    ours = bound("default", 1)
    theirs = group_object("default", {"local": {"v4pools": [RACKS[1]]}}, "a")
    async with a_cluster(tmp_path, ours, theirs, namespaces=("a",)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object("a/echo"))
            assert await cluster.given("a/echo") == ["10.0.1.1"]
            await eventually(lambda: cluster.events("ServiceGroupOutOfScope"))
            cluster.create(group_object("mine", {"local": {"v4pools": [RACKS[2]]}}, "a"))
            await eventually(lambda: len(cluster.events("ServiceGroupOutOfScope")) == 2)
            cluster.create(service_object("a/wish", annotations={BY_NAME: "mine"}))
            assert await refusal(cluster, "a/wish") == "UnknownServiceGroup"
            events = cluster.events("ServiceGroupOutOfScope")
            assert {(e["involvedObject"]["namespace"], e["type"], e.get("count", 1)) for e in events} == {
                ("a", "Warning", 1)
            }
            stranger = cluster.server.get("purelb.io/v2", "ServiceGroup", "default", "a")
            assert stranger is not None
            assert "status" not in stranger
