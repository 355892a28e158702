"""What a ServiceGroup says of itself, through the API server, with the allocator behind it."""

from __future__ import annotations

import asyncio
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from purelb_sm.sandbox.apiserver import Fault
from purelb_sm.sandbox.launcher.api import kubectl
from tests.e2e.test_allocator import states
from tests.support.product import Cluster, a_cluster, a_database, an_allocator, local_group, service_object
from tests.support.waiting import eventually

POOL = "172.30.250.53-172.30.250.56"
PATH = "/apis/purelb.io/v2/namespaces/purelb-system/servicegroups/default/status"


def status(cluster: Cluster, name: str = "default") -> dict[str, Any]:
    group = cluster.server.get("purelb.io/v2", "ServiceGroup", name, "purelb-system")
    assert group is not None
    found: dict[str, Any] = group.get("status") or {}
    return found


def told(cluster: Cluster, name: str = "default") -> dict[str, str]:
    return {c["type"]: c["status"] for c in status(cluster, name).get("conditions", [])}


async def run_kubectl(cluster: Cluster, *words: str) -> list[str]:
    program = kubectl()
    assert program is not None, "no kubectl: tools/install.sh fetches one"
    started = await asyncio.create_subprocess_exec(
        *(program, *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={
            **os.environ,
            "KUBECONFIG": str(cluster.kubeconfig),
            "KUBECACHEDIR": str(cluster.kubeconfig.parent / "kubectl"),
        },
    )
    out, _ = await started.communicate()
    assert started.returncode == 0, out.decode()
    return out.decode().splitlines()


@pytest.mark.spec("A28")
async def test_the_status_says_what_the_group_has(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL, "fd30:250::/64", quarantine="1h")) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            for name in ("a", "b"):
                cluster.create(service_object(name, ipFamilyPolicy="PreferDualStack"))
            await cluster.given("a")
            await cluster.given("b")
            cluster.delete_service("a")
            await eventually(lambda: status(cluster).get("quarantinedIPv4") == 1 and status(cluster))
            found = status(cluster)
            found.pop("conditions")
            assert found == {
                "observedGeneration": 1,
                "announce": "Local",
                "ipam": "Cluster",
                "addresses": ["172.30.250.53-172.30.250.56", "fd30:250::-fd30:250::ffff:ffff:ffff:ffff"],
                "allocatedIPv4": 1,
                "allocatedIPv6": 1,
                "availableIPv4": 2,
                "availableIPv6": 2**63 - 1,
                "quarantinedIPv4": 1,
                "quarantinedIPv6": 1,
                "reservedIPv4": 0,
                "reservedIPv6": 0,
                "orphanedIPv4": 0,
                "orphanedIPv6": 0,
            }
            assert told(cluster) == {"Ready": "True", "Exhausted": "False"}


@pytest.mark.spec("A28")
async def test_kubectl_prints_it(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL, "fd30:250::/64", quarantine="1h")) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object("a", ipFamilyPolicy="PreferDualStack"))
            await eventually(lambda: status(cluster).get("allocatedIPv6") == 1)
            heads, row = await run_kubectl(cluster, "get", "servicegroups", "-n", "purelb-system", "-o", "wide")
            # By place, as cells may be empty.
            starts = [found.start() for found in re.finditer(r"\S+", heads)]
            cells = [row[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
            shown = dict(zip(heads.split(), cells, strict=True))
            assert shown.pop("AGE")
            assert shown == {
                "NAME": "default",
                "ANNOUNCE": "Local",
                "IPAM": "Cluster",
                "READY": "True",
                "ADDRESSES": '["172.30.250.53-172.30.250.56","fd30:250::-fd30:250::ffff:ffff:ffff:ffff"]',
                "ALLOCATED-V4": "1",
                "ALLOCATED-V6": "1",
                "AVAILABLE-V4": "3",
                "AVAILABLE-V6": "9223372036854775807",
                "QUARANTINED-V4": "0",
                "QUARANTINED-V6": "0",
                "NAMESPACES": "",
                "ENFORCED": "",
            }


@pytest.mark.spec("A28")
async def test_an_exhausted_group_says_so_until_an_address_is_free(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group("172.30.250.53/32")) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object("a"))
            await eventually(lambda: told(cluster).get("Exhausted") == "True")
            assert (status(cluster)["allocatedIPv4"], status(cluster)["availableIPv4"]) == (1, 0)
            cluster.delete_service("a")
            await eventually(lambda: told(cluster).get("Exhausted") == "False")
            assert (status(cluster)["allocatedIPv4"], status(cluster)["availableIPv4"]) == (0, 1)


@pytest.mark.spec("A28")
async def test_a_burst_costs_a_group_one_write_a_second_and_others_none(tmp_path: Path) -> None:
    other = local_group("172.30.250.200/29", name="other")
    async with a_cluster(tmp_path, local_group("172.30.250.0/25"), other) as cluster:
        written: list[tuple[float, str]] = []

        def note(request: Any) -> bool:
            if request.method == "PATCH" and "/servicegroups/" in request.path:
                written.append((asyncio.get_running_loop().time(), request.path))
            return False

        async with an_allocator(cluster, a_database(tmp_path)) as allocator:
            await eventually(lambda: told(cluster).get("Ready") and told(cluster, "other").get("Ready"))
            cluster.server.faults.add(Fault("delay", predicate=note))
            # One after another, so that they come in many batches over more than a second.
            for number in range(100):
                cluster.create(service_object(f"s{number}"))
                await asyncio.sleep(0.015)
            await eventually(lambda: status(cluster)["allocatedIPv4"] == 100)
            await eventually(lambda: allocator.leading is not None and allocator.leading.at_rest)
        assert {path for _, path in written} == {PATH}
        times = [at for at, _ in written]
        assert all(later - earlier >= 0.95 for earlier, later in pairwise(times))


@pytest.mark.spec("A28")
async def test_nothing_is_written_when_nothing_changed_not_even_by_a_new_leader(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object("a"))
            await eventually(lambda: status(cluster).get("allocatedIPv4") == 1)
        before = cluster.server.get("purelb.io/v2", "ServiceGroup", "default", "purelb-system")
        cluster.requests.clear()
        async with an_allocator(cluster, database) as allocator:
            await eventually(lambda: allocator.leading is not None and allocator.leading.at_rest)
            await cluster.patch_service("a", {"metadata": {"labels": {"irrelevant": "yes"}}})
            await eventually(lambda: allocator.leading is not None and allocator.leading.at_rest)
        assert [w for w in cluster.writes() if "servicegroups" in w[1]] == []
        assert cluster.server.get("purelb.io/v2", "ServiceGroup", "default", "purelb-system") == before


@pytest.mark.spec("A28")
async def test_a_status_that_somebody_took_away_is_written_again(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            await eventually(lambda: told(cluster).get("Ready"))
            await cluster.client.request(
                "PATCH", PATH, body={"status": None}, content_type="application/merge-patch+json"
            )
            await eventually(lambda: told(cluster).get("Ready") == "True" and status(cluster)["availableIPv4"] == 4)


@pytest.mark.spec("A28")
async def test_of_two_who_write_one_status_at_once_each_has_its_say(tmp_path: Path) -> None:
    """Every write of ours finds another version than it was made for, for a while."""
    theirs, left = "example.com/Checked", 4
    metadata = {"name": "default", "namespace": "purelb-system"}
    async with a_cluster(tmp_path, local_group("172.30.250.53-172.30.250.54")) as cluster:

        def interfere(request: Any) -> bool:
            nonlocal left
            if request.method == "PATCH" and request.path == PATH and left:
                left -= 1
                said = {"conditions": [{"type": theirs, "status": "True", "message": f"{left} to go"}]}
                group = {"apiVersion": "purelb.io/v2", "kind": "ServiceGroup", "metadata": metadata, "status": said}
                cluster.server.apply(group, manager="somebody", status=True)
            return False

        def messages() -> dict[str, str]:
            return {c["type"]: c.get("message", "") for c in status(cluster)["conditions"]}

        async with an_allocator(cluster, a_database(tmp_path)):
            await eventually(lambda: told(cluster).get("Ready"))
            cluster.server.faults.add(Fault("delay", predicate=interfere))
            # With the last address the conditions change, which are written as one list.
            for name in ("a", "b"):
                cluster.create(service_object(name))
            await eventually(lambda: told(cluster).get("Exhausted") == "True", deadline_s=30)
            assert messages()[theirs] == f"{left} to go"
            assert left < 4
            assert status(cluster)["allocatedIPv4"] == 2
            assert len(cluster.events("Parsed")) == 1


@pytest.mark.spec("A22", "A28")
async def test_what_a_group_holds_outside_its_new_ranges_is_an_orphan_until_it_is_released(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database) as allocator:
            for name in ("a", "b"):
                cluster.create(service_object(name))
                await cluster.given(name)
            moved = local_group("172.30.250.54-172.30.250.70")
            cluster.server.apply(moved)
            await eventually(lambda: status(cluster).get("orphanedIPv4") == 1)
            found = status(cluster)
            assert (found["allocatedIPv4"], found["availableIPv4"]) == (2, 16)
            assert cluster.shown("a") == ["172.30.250.53"]
            registry = allocator.metrics.registry
            pool = {"pool": "default", "family": "IPv4"}
            assert registry.get_sample_value("purelb_address_pool_addresses_orphaned", pool) == 1
            assert registry.get_sample_value("purelb_address_pool_addresses_in_use", pool) == 2
            assert registry.get_sample_value("purelb_address_pool_size", pool) == 17
            cluster.delete_service("a")
            await eventually(lambda: status(cluster)["orphanedIPv4"] == 0)
            assert status(cluster)["allocatedIPv4"] == 1
            cluster.create(service_object("c"))
            assert await cluster.given("c") == ["172.30.250.55"]


@pytest.mark.spec("A22")
async def test_of_a_group_that_is_gone_metrics_show_what_is_held_until_it_is_released(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)) as allocator:
            cluster.create(service_object("a"))
            await cluster.given("a")
            cluster.server.delete("purelb.io/v2", "ServiceGroup", "default", "purelb-system")

            def number(what: str) -> float | None:
                name = f"purelb_address_pool_addresses_{what}"
                return allocator.metrics.registry.get_sample_value(name, {"pool": "default", "family": "IPv4"})

            await eventually(lambda: (number("in_use"), number("orphaned"), number("available")) == (1, 1, 0))
            assert cluster.shown("a") == ["172.30.250.53"]
            cluster.delete_service("a")
            # With the quarantine of a group that says nothing any more.
            await eventually(lambda: (number("in_use"), number("quarantined"), number("orphaned")) == (0, 1, 1))


@pytest.mark.spec("A22", "A28")
async def test_a_group_that_became_unreadable_still_says_what_is_held(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object("a"))
            await cluster.given("a")
            broken = local_group("172.30.250.9-172.30.250.1")
            cluster.server.apply(broken)
            await eventually(lambda: told(cluster).get("Ready") == "False")
            found = status(cluster)
            assert (found["allocatedIPv4"], found["orphanedIPv4"]) == (1, 1)
            assert not {"availableIPv4", "announce", "ipam", "addresses"} & set(found)
            assert told(cluster) == {"Ready": "False"}


@pytest.mark.spec("A21")
async def test_who_is_refused_for_what_is_in_quarantine_is_told_until_when(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group("172.30.250.53/32", quarantine="1h")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object("a"))
            await cluster.given("a")
            cluster.delete_service("a")
            await eventually(lambda: states(database) == {"172.30.250.53": "quarantined"})
            cluster.create(service_object("b"))
            said = await eventually(lambda: cluster.condition("b"))
            assert said["reason"] == "PoolExhausted"
            assert re.search(r"; 1 in quarantine, the first until \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", said["message"])
        # Another leader says the same, and so nothing.
        before = cluster.service("b")
        async with an_allocator(cluster, database) as allocator:
            await eventually(lambda: allocator.leading is not None and allocator.leading.at_rest)
        assert cluster.service("b") == before
