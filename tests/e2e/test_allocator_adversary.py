"""Somebody wants two Services on one address, an address lost, or an allocator that does nothing else any more."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from purelb_sm.allocator import steady
from purelb_sm.sandbox.apiserver import Fault
from tests.e2e.test_allocator import moves, rows, states, verified
from tests.support.product import Cluster, a_cluster, a_database, an_allocator, local_group, service_object
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

POOL = "172.30.250.53-172.30.250.60"
ONE = "172.30.250.53/32"
BRAND = {"purelb.io/allocated-by": "PureLB", "purelb.io/allocated-from": "default", "purelb.io/pool-type": "local"}


def status_writes(cluster: Cluster, name: str) -> int:
    return sum(method == "PATCH" and path.endswith(f"/services/{name}/status") for method, path in cluster.requests)


async def write_status(cluster: Cluster, name: str, patch: dict[str, Any]) -> None:
    """As another controller does: on the status, whatever it says now."""
    path = f"/api/v1/namespaces/test/services/{name}/status"
    await cluster.client.request("PATCH", path, body=patch, content_type="application/merge-patch+json")


def showing(address: str, *, brand: bool = True) -> dict[str, Any]:
    return {
        "metadata": {"annotations": BRAND if brand else {}},
        "status": {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}},
    }


def held(database: str) -> set[tuple[str, str]]:
    """(address, claim) of all that is held."""
    return {
        (str(a), str(c)) for a, c in rows(database, "SELECT address_text, claim FROM allocation WHERE state = 'held'")
    }


@pytest.mark.spec("E1")
@pytest.mark.parametrize(
    "patch",
    [
        {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}}},
        {"metadata": {"annotations": {"purelb.io/pool-type": None}}},
    ],
    ids=["ingress", "annotation"],
)
async def test_who_undoes_every_write_does_not_drive_the_allocator_into_a_race(
    tmp_path: Path, patch: dict[str, Any]
) -> None:
    """Another controller, or a webhook that strips what we write: each answers the other as fast as it can."""
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object())
            assert await cluster.given() == ["172.30.250.53"]
            right = cluster.service()
            undone = 0

            async def undo() -> None:
                nonlocal undone
                while True:
                    now = cluster.service()
                    annotations = now["metadata"].get("annotations")
                    if now["status"] == right["status"] and annotations == right["metadata"]["annotations"]:
                        undone += 1
                        await write_status(cluster, "echo", patch)
                    await asyncio.sleep(0.001)

            enemy = asyncio.create_task(undo())
            before = status_writes(cluster, "echo")
            await asyncio.sleep(3.0)
            enemy.cancel()
            ours = status_writes(cluster, "echo") - before - undone
            assert undone >= 2
            assert ours <= 12, f"{ours} writes in three seconds"
            # Others are served meanwhile, and it is put right in the end.
            cluster.create(service_object("other"))
            await cluster.given("other")
            await eventually(partial(cluster.shown, "echo"))
            await eventually(lambda: cluster.shown("echo") == ["172.30.250.53"], deadline_s=30)


# -- two on one address ------------------------------------------------------------------------------------------------


@pytest.mark.spec("A17", "A15")
@pytest.mark.parametrize("shared", [False, True])
async def test_a_status_copied_from_another_service_gets_nobody_its_address(tmp_path: Path, shared: bool) -> None:
    """With brand and all, as `kubectl get -o yaml`, edited and written back, brings it. A key that both have is no help
    where both have the same port."""
    annotations = {"purelb.io/allow-shared-ip": "k"} if shared else {}
    own = [] if shared else ["172.30.250.54"]
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object("mine", annotations=annotations))
            assert await cluster.given("mine") == ["172.30.250.53"]
            cluster.create(service_object("thief", annotations=annotations | BRAND))
            await eventually(partial(cluster.condition, "thief"))
            await write_status(cluster, "thief", showing("172.30.250.53"))
            await eventually(lambda: cluster.shown("thief") == own)
            assert cluster.shown("mine") == ["172.30.250.53"]
            claims = {("172.30.250.53", "test/mine"), *((address, "test/thief") for address in own)}
            await eventually(lambda: held(database) == claims)
        assert verified(database).rows > 0


@pytest.mark.spec("A21", "A22")
async def test_a_range_that_moves_to_another_group_takes_its_quarantine_along(tmp_path: Path) -> None:
    """The group that the address was given from is gone, with its quarantine; another one has the range and `0s`."""
    wish = {"purelb.io/service-group": "other"}
    async with a_cluster(tmp_path, local_group(ONE, quarantine="5m")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object("old"))
            await cluster.given("old")
            cluster.delete_service("old")
            await eventually(lambda: states(database) == {"172.30.250.53": "quarantined"})
            cluster.server.delete("purelb.io/v2", "ServiceGroup", "default", "purelb-system")
            await cluster.edit_groups(local_group(ONE, name="other", quarantine="0s"))
            cluster.create(service_object("new", annotations=wish))
            refused = await eventually(partial(cluster.condition, "new"))
            assert refused["reason"] == "PoolExhausted"
            # The one that had it may have it back, from the group that has it now.
            cluster.create(service_object("old", annotations=wish))
            assert await cluster.given("old") == ["172.30.250.53"]
            assert cluster.shown("new") == []


@pytest.mark.spec("A21", "E7")
async def test_a_clock_that_is_set_an_hour_on_ends_no_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = timedelta(0)
    real = steady.utc_now
    monkeypatch.setattr(steady.SteadyClock.__init__, "__defaults__", (lambda: real() + ahead, steady.passed_s))
    async with a_cluster(tmp_path, local_group(ONE, quarantine="5m")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object("old"))
            await cluster.given("old")
            cluster.delete_service("old")
            await eventually(lambda: states(database) == {"172.30.250.53": "quarantined"})
            ahead = timedelta(hours=1)
            cluster.create(service_object("new"))
            await eventually(partial(cluster.condition, "new"))
            # Something has to be released for the allocator to look at what is over.
            cluster.delete_service("new")
            cluster.create(service_object("newer"))
            await eventually(partial(cluster.condition, "newer"))
            assert states(database) == {"172.30.250.53": "quarantined"}
            assert cluster.shown("newer") == []


# -- what is behind ----------------------------------------------------------------------------------------------------


@pytest.mark.spec("A17", "A20", "B1")
async def test_deleted_and_made_again_while_the_queue_is_behind_each_has_the_address_that_it_had(
    tmp_path: Path,
) -> None:
    """PureLB gives a quarter of these an address that another has: it releases by name, and not by uid."""
    names = [f"s{n}" for n in range(120)]
    async with a_cluster(tmp_path, local_group("172.30.250.0/24", quarantine="5m")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database, publish_concurrency=4):
            for name in names:
                cluster.create(service_object(name))
            before = {name: await cluster.given(name) for name in names}
            cluster.server.faults.add(Fault("delay", "PATCH", "services/.*/status", delay_s=0.01))
            for _ in range(2):
                for name in names:
                    cluster.delete_service(name)
                for name in names:
                    cluster.create(service_object(name))
                assert len({address for name in names for address in cluster.shown(name)}) == sum(
                    bool(cluster.shown(name)) for name in names
                )
            assert {name: await cluster.given(name) for name in names} == before
            await eventually(lambda: held(database) == {(before[name][0], f"test/{name}") for name in names})
        # One row of history for each transition: every allocation was held once, and left and had back in turn.
        sql = "SELECT address, trigger FROM history WHERE kind = 'allocation' ORDER BY seq"
        by_address: dict[str, list[str]] = {}
        for address, trigger in rows(database, sql):
            by_address.setdefault(address, []).append(trigger)
        for found in by_address.values():
            assert found[0] == "hold"
            later = [trigger for trigger in found[1:] if trigger != "confirm_release"]
            assert later == ["begin_release", "reclaim"] * (len(later) // 2)
        assert len(by_address) == len(names)
        assert verified(database).rows > 0


# -- the API server does not take what we write ------------------------------------------------------------------------


@pytest.mark.spec("E2")
async def test_whoever_writes_between_our_look_and_our_write_every_time_keeps_nothing_from_being_shown(
    tmp_path: Path,
) -> None:
    """Every write of ours finds another version than it was made for, for a while: a conflict each time."""
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        left = 6

        def interfere(request: Any) -> bool:
            nonlocal left
            if request.method == "PATCH" and request.path.endswith("/services/echo/status") and left:
                left -= 1
                labels = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "echo", "namespace": "test"}}
                labels["metadata"]["labels"] = {"at": str(left)}  # type: ignore[index]
                cluster.server.apply(labels, manager="somebody")
            return False

        cluster.server.faults.add(Fault("delay", predicate=interfere))
        async with an_allocator(cluster, database):
            cluster.create(service_object())
            assert await cluster.given() == ["172.30.250.53"]
            assert left == 0
            await eventually(lambda: len(cluster.events("IPAllocated")) == 1)
        assert moves(database, "allocation") == [("hold", None, "held")]
        assert [trigger for trigger, _, _ in moves(database)] == ["observe", "allocate"]


# -- what is not ours --------------------------------------------------------------------------------------------------


@pytest.mark.spec("A31")
@pytest.mark.parametrize("address", ["192.0.2.7", "172.30.250.55"], ids=["of no group", "of our group"])
async def test_an_ingress_that_another_controller_wrote_is_left_alone_and_said_once(
    tmp_path: Path, address: str
) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        cluster.create(service_object())
        await write_status(cluster, "echo", showing(address, brand=False))
        found = cluster.service()
        for name in ("other", "after"):
            async with an_allocator(cluster, database):
                cluster.create(service_object(name))
                assert await cluster.given(name) != [address]
                await eventually(lambda: cluster.events("AllocationFailed"))
                assert cluster.service() == found
        (event,) = cluster.events("AllocationFailed")
        assert event["message"].startswith(f"ForeignIngress: status already shows {address}, which another controller")
        assert event["count"] == 1
        async with an_allocator(cluster, database):
            # Given up by the other one, it is served.
            await write_status(cluster, "echo", {"status": {"loadBalancer": {"ingress": None}}})
            assert await cluster.given() == ["172.30.250.55"]


# -- edits that do not matter ------------------------------------------------------------------------------------------


@pytest.mark.spec("A14")
async def test_a_family_taken_away_releases_its_address_and_one_added_gets_one_and_the_other_stays(
    tmp_path: Path,
) -> None:
    async with a_cluster(tmp_path, local_group(POOL, "fd30:250::100/120", quarantine="5m")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object(ipFamilyPolicy="SingleStack", ipFamilies=["IPv4"]))
            assert await cluster.given() == ["172.30.250.53"]
            await cluster.patch_service("echo", {"spec": {"ipFamilyPolicy": "RequireDualStack"}})
            await eventually(lambda: cluster.shown() == ["172.30.250.53", "fd30:250::100"])
            assert cluster.events("AddressReleased") == []
            single = {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]}
            single["clusterIPs"] = cluster.service()["spec"]["clusterIPs"][:1]
            await cluster.patch_service("echo", {"spec": single})
            await eventually(lambda: cluster.shown() == ["172.30.250.53"])
            (event,) = await eventually(partial(cluster.events, "AddressReleased"))
            assert (event["type"], event["message"]) == ("Normal", "Released IP fd30:250::100")
            await eventually(lambda: states(database) == {"172.30.250.53": "held", "fd30:250::100": "quarantined"})


@pytest.mark.spec("A15", "A23")
async def test_labels_and_annotations_that_mean_nothing_to_us_cost_no_write(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL, "fd30:250::100/120")) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database) as allocator:
            key = {"purelb.io/allow-shared-ip": "k"}
            cluster.create(service_object("alone", ipFamilyPolicy="RequireDualStack"))
            cluster.create(service_object("one", annotations=key))
            cluster.create(service_object("two", annotations=key, ports=[{"port": 81}]))
            for name in ("alone", "one", "two"):
                await cluster.given(name)
            await eventually(lambda: len(cluster.events("IPAllocated")) == 3)
            await eventually(lambda: allocator.leading is not None and allocator.leading.at_rest)
            head, before = rows(database, "SELECT MAX(seq) FROM history"), {}
            for name in ("alone", "one", "two"):
                edit = {
                    "labels": {"touched": "yes"},
                    "annotations": {"example.com/note": "x", "purelb.io/unknown": "y"},
                }
                await cluster.patch_service(name, {"metadata": edit, "spec": {"sessionAffinity": "ClientIP"}})
                before[name] = cluster.service(name)
            cluster.requests.clear()
            # One that comes after them has been dealt with: so have they.
            cluster.create(service_object("last"))
            await cluster.given("last")
            await eventually(lambda: len(cluster.events("IPAllocated")) == 4)
            assert {name: cluster.service(name) for name in before} == before
            touched = [path for _, path in cluster.writes() if any(f"/{name}/" in path for name in before)]
            assert touched == []
            later = f"SELECT COUNT(*) FROM history WHERE name <> 'last' AND seq > {head[0][0]}"
            assert rows(database, later) == [(0,)]
