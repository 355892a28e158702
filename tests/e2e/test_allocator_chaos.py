"""The whole allocator under random users and faults: afterwards book and cluster agree, and all is quiet.

A seed that once failed is kept in SEEDS. To search: PURELB_CHAOS_SEEDS=100-200 python -m pytest this file.
"""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from purelb_sm.allocator.app import Allocator
from purelb_sm.errors import KubeError
from purelb_sm.sandbox.apiserver import Fault
from purelb_sm.sandbox.apiserver.status import StatusError
from tests.e2e.test_allocator import rows, verified
from tests.e2e.test_allocator_bad_days import locked, quiet
from tests.support.product import NAMESPACE, Cluster, a_cluster, a_database, an_allocator, local_group, service_object

pytestmark = pytest.mark.e2e

SEEDS = [1, 2, 3]
if "PURELB_CHAOS_SEEDS" in os.environ:
    first, _, last = os.environ["PURELB_CHAOS_SEEDS"].partition("-")
    SEEDS = list(range(int(first), int(last) + 1))

NAMES = [f"s{n}" for n in range(6)]
POOLS = ["172.30.250.53-172.30.250.55", "172.30.250.53-172.30.250.57", "172.30.250.55-172.30.250.58"]
V6 = ["fd30:250::1-fd30:250::2", "fd30:250::1-fd30:250::9"]
WISHES = ["172.30.250.53", "172.30.250.55", "172.30.250.58", "junk", "fd30:250::1"]


class Chaos:
    def __init__(self, cluster: Cluster, rng: random.Random, folder: Path) -> None:
        self.cluster, self.rng, self.folder = cluster, rng, folder

    async def user(self) -> None:
        name = self.rng.choice(NAMES)
        there = self.cluster.server.get("v1", "Service", name, NAMESPACE)
        move = self.rng.choice(["come", "go", "again", "type", "families", "wish", "group", "finalizer", "unbrand"])
        if there is None:
            families = self.rng.choice(
                [{}, {"ipFamilyPolicy": "PreferDualStack"}, {"ipFamilyPolicy": "RequireDualStack"}]
            )
            wish = {"purelb.io/addresses": self.rng.choice(WISHES)} if self.rng.random() < 0.2 else {}
            self.cluster.create(service_object(name, annotations=wish, **families))
        elif move in ("go", "again"):
            self.cluster.delete_service(name)
            if move == "again" and self.cluster.server.get("v1", "Service", name, NAMESPACE) is None:
                self.cluster.create(service_object(name))
        else:
            patch = self.patch(move, there)
            if patch:
                await self.cluster.patch_service(name, patch)

    def patch(self, move: str, there: dict[str, Any]) -> dict[str, Any]:
        rng = self.rng
        match move:
            case "type":
                return {"spec": {"type": "ClusterIP" if there["spec"]["type"] == "LoadBalancer" else "LoadBalancer"}}
            case "families":
                policy = rng.choice(["SingleStack", "PreferDualStack", "RequireDualStack"])
                if policy == "SingleStack":
                    first = there["spec"]["ipFamilies"][:1]
                    return {
                        "spec": {
                            "ipFamilyPolicy": policy,
                            "ipFamilies": first,
                            "clusterIPs": there["spec"]["clusterIPs"][:1],
                        }
                    }
                return {"spec": {"ipFamilyPolicy": policy}}
            case "wish":
                return {"metadata": {"annotations": {"purelb.io/addresses": rng.choice([None, None, *WISHES])}}}
            case "group":
                return {
                    "metadata": {"annotations": {"purelb.io/service-group": rng.choice([None, "nowhere", "other"])}}
                }
            case "finalizer":
                return {"metadata": {"finalizers": rng.choice([["example.com/wait"], None])}}
            case "unbrand":
                return {"metadata": {"annotations": {"purelb.io/allocated-by": None}}}
        return {}

    def group(self) -> None:
        name = self.rng.choice(["default", "default", "other"])
        move = self.rng.choice(["edit", "edit", "delete", "broken"])
        if move == "delete":
            if self.cluster.server.get("purelb.io/v2", "ServiceGroup", name, "purelb-system"):
                self.cluster.server.delete("purelb.io/v2", "ServiceGroup", name, "purelb-system")
            return
        pool = "172.30.250.9-172.30.250.1" if move == "broken" else self.rng.choice(POOLS)
        pools = [pool, *([self.rng.choice(V6)] if self.rng.random() < 0.7 else [])]
        self.cluster.server.apply(local_group(*pools, name=name, quarantine=self.rng.choice(["0s", "0s", "300ms"])))

    def fault(self) -> None:
        kind = self.rng.choice(["too_many", "error", "unavailable", "abort", "truncate", "delay", "gone", "close"])
        method, path = self.rng.choice(
            [
                ("PATCH", "services/.*/status"),
                ("PATCH", "servicegroups"),
                ("GET", "services"),
                ("GET", ""),
                ("POST", "events"),
            ]
        )
        after = self.rng.randrange(4)
        self.cluster.server.faults.add(
            Fault(kind, method, path, times=self.rng.randrange(1, 4), delay_s=self.rng.choice([0.0, 0.05]), after=after)
        )


@pytest.mark.spec("A17", "E2", "E4")
@pytest.mark.parametrize("seed", SEEDS)
async def test_after_a_wild_time_book_and_cluster_agree(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from purelb_sm.store import engine as store_engine

    monkeypatch.setattr(store_engine, "LOCK_WAIT_S", 0.1)
    rng = random.Random(seed)
    async with a_cluster(tmp_path, local_group(POOLS[0], V6[0])) as cluster:
        database = a_database(tmp_path)
        chaos = Chaos(cluster, rng, tmp_path)
        async with AsyncExitStack() as life:
            allocator = await life.enter_async_context(an_allocator(cluster, database))
            for _ in range(150):
                allocator = await one_move(chaos, life, database, allocator)
                await asyncio.sleep(rng.choice([0, 0, 0, 0.001, 0.01, 0.05]))
            cluster.server.faults._faults = [f for f in cluster.server.faults._faults if f.predicate is not None]
            for name in NAMES:
                there = cluster.server.get("v1", "Service", name, NAMESPACE)
                if there is not None and there["metadata"].get("finalizers"):
                    await cluster.patch_service(name, {"metadata": {"finalizers": None}})
            # Not before all is quiet: on the way there book and cluster agree now and then by chance.
            await quiet(cluster, allocator, monkeypatch)
            assert disagreements(cluster, database) == []
            before = {name: as_told(cluster, name) for name in NAMES}
        async with an_allocator(cluster, database) as again:
            await quiet(cluster, again, monkeypatch)
        assert {name: as_told(cluster, name) for name in NAMES} == before
        assert verified(database).rows > 0


async def one_move(chaos: Chaos, life: AsyncExitStack, database: str, allocator: Allocator) -> Allocator:
    dice = chaos.rng.random()
    try:
        if dice < 0.8:
            await chaos.user()
        elif dice < 0.88:
            chaos.group()
        elif dice < 0.96:
            chaos.fault()
        elif dice < 0.98:
            with locked(chaos.folder):
                await asyncio.sleep(0.3)
        else:
            await life.aclose()
            return await life.enter_async_context(an_allocator(chaos.cluster, database))
    except (KubeError, StatusError):
        pass
    return allocator


def as_told(cluster: Cluster, name: str) -> dict[str, Any] | None:
    """The Service, but for which of the reasons of the moment a refusal names: nothing is written when that changes."""
    there = cluster.server.get("v1", "Service", name, NAMESPACE)
    condition = None if there is None else cluster.condition(name)
    if there is not None and condition is not None and condition["reason"] in ("AddressInUse", "PoolExhausted"):
        return {"spec": there["spec"], "shown": cluster.shown(name), "status": condition["status"]}
    return there


def disagreements(cluster: Cluster, database: str) -> list[str]:
    """All that is not as it should be when nothing more happens."""
    wrong: list[str] = []
    # What is in quarantine may stay so for long: that of a group that is gone lasts five minutes.
    booked = dict(rows(database, "SELECT address_text, claim FROM allocation WHERE released_at IS NULL"))
    held = dict(rows(database, "SELECT address_text, claim FROM allocation WHERE state IN ('held', 'releasing')"))
    shown: dict[str, str] = {}
    for name in NAMES:
        there = cluster.server.get("v1", "Service", name, NAMESPACE)
        if there is None:
            continue
        for address in cluster.shown(name):
            if address in shown:
                wrong.append(f"{address} shown by {shown[address]} and {name}")
            shown[address] = f"{NAMESPACE}/{name}"
        condition = cluster.condition(name)
        ours = there["spec"]["type"] == "LoadBalancer"
        if ours and condition is None:
            wrong.append(f"{name} has heard nothing")
        if not ours and (condition or cluster.shown(name)):
            wrong.append(f"{name} shows what is not its own any more")
        if ours and condition and condition["reason"] == "PoolExhausted" and not cluster.shown(name):
            wrong += could_be_served(cluster, there, name, booked)
    if held != shown:
        wrong.append(f"held {held}, shown {shown}")
    return wrong


def could_be_served(cluster: Cluster, there: dict[str, Any], name: str, booked: dict[str, str]) -> list[str]:
    """A plain IPv4 Service is not refused for want of an address that is there."""
    annotations = there["metadata"].get("annotations", {})
    if there["spec"]["ipFamilies"] != ["IPv4"] or "purelb.io/service-group" in annotations:
        return []
    group = cluster.server.get("purelb.io/v2", "ServiceGroup", "default", "purelb-system")
    ready = (group or {}).get("status", {}).get("conditions", [{}])[0].get("status")
    if group is None or ready != "True":
        return []
    first, last = (int(a.rpartition(".")[2]) for a in group["spec"]["local"]["v4pools"][0]["pool"].split("-"))
    free = [n for n in range(first, last + 1) if f"172.30.250.{n}" not in booked]
    return [f"{name} waits, though {free} are free"] if free else []
