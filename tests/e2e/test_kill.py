"""kill -9 of the allocator and of the API server at the worst moments: everything converges, nothing moves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from purelb_sm.errors import KubeError, NotFound
from purelb_sm.kube.client import MERGE_PATCH, KubeClient
from purelb_sm.kube.resources import NAMESPACES, SERVICE_GROUPS, SERVICES
from tests.e2e.test_allocator import moves, rows, states, verified
from tests.support.processes import ApiProcess, Process, allocator_process, api_process
from tests.support.product import NAMESPACE, a_database, crds, local_group, service_object
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@dataclass
class Stage:
    """A cluster whose API server is a process, seen through a client as a user would."""

    api: ApiProcess
    client: KubeClient
    database: str

    async def service(self, name: str) -> dict[str, Any]:
        return dict(json.loads(await self.client.request("GET", SERVICES.path(name, NAMESPACE))))

    async def shown(self, name: str) -> list[str]:
        try:
            status = (await self.service(name)).get("status", {})
        except (NotFound, KubeError):
            return []
        return [entry["ip"] for entry in status.get("loadBalancer", {}).get("ingress", [])]

    async def given(self, name: str) -> list[str]:
        return await eventually(lambda: self.shown(name), f"an address for {name}")

    async def create(self, name: str, **more: Any) -> None:
        await self.client.request("POST", SERVICES.collection(NAMESPACE), body=service_object(name, **more))

    async def edit(self, name: str, patch: dict[str, Any]) -> None:
        path = SERVICES.path(name, NAMESPACE)
        await self.client.request("PATCH", path, body=patch, content_type=MERGE_PATCH)

    async def delete(self, name: str) -> None:
        await self.client.request("DELETE", SERVICES.path(name, NAMESPACE))

    async def fault(self, **fault: Any) -> None:
        await self.client.request("POST", "/sandbox/faults", body=fault)

    async def no_faults(self) -> None:
        await self.client.request("DELETE", "/sandbox/faults")

    async def allocator(self) -> Process:
        return await allocator_process(self.api, self.database)


@asynccontextmanager
async def a_stage(tmp_path: Path, *groups: dict[str, Any]) -> AsyncIterator[Stage]:
    async with api_process(tmp_path) as api, api.client() as client:
        for document in crds():
            await client.request("POST", CRD_PATH, body=document)
        for name in ("purelb-system", NAMESPACE):
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            await client.request("POST", NAMESPACES.collection(), body=body)
        stage = Stage(api, client, a_database(tmp_path))
        for group in groups:
            await eventually(partial(_created, client, group))
        yield stage


async def _created(client: KubeClient, group: dict[str, Any]) -> bool:
    try:
        await client.request("POST", SERVICE_GROUPS.collection("purelb-system"), body=group)
    except NotFound:
        return False
    return True


POOL = "172.30.250.53-172.30.250.60"


async def test_killed_between_commit_and_publish_the_same_address_is_shown_by_the_next(tmp_path: Path) -> None:
    async with a_stage(tmp_path, local_group(POOL)) as stage:
        await stage.fault(kind="hang", method="PATCH", path="services/.*/status")
        allocator = await stage.allocator()
        await stage.create("echo")
        await eventually(lambda: states(stage.database) == {"172.30.250.53": "held"})
        allocator.kill()
        await allocator.gone()
        assert await stage.shown("echo") == []
        await stage.no_faults()
        await stage.create("next")
        allocator = await stage.allocator()
        assert await stage.given("echo") == ["172.30.250.53"]
        assert await stage.given("next") == ["172.30.250.54"]
        assert await allocator.stop() == 0
        holds = rows(stage.database, "SELECT address FROM history WHERE trigger = 'hold' ORDER BY seq")
        assert holds == [("172.30.250.53",), ("172.30.250.54",)]
        assert verified(stage.database).rows > 0


async def test_killed_between_withdrawal_and_release_the_next_releases(tmp_path: Path) -> None:
    async with a_stage(tmp_path, local_group("172.30.250.53/32")) as stage:
        allocator = await stage.allocator()
        await stage.create("echo")
        await stage.given("echo")
        # The type changes while the allocator cannot take its own marks off the Service again.
        await stage.fault(kind="hang", method="PATCH", path="services/.*/status")
        path = SERVICES.path("echo", NAMESPACE)
        patch = {"spec": {"type": "ClusterIP"}}
        await stage.client.request("PATCH", path, body=patch, content_type="application/merge-patch+json")
        await eventually(lambda: moves(stage.database)[-1][2] == "withdrawn")
        allocator.kill()
        await allocator.gone()
        await stage.no_faults()
        await stage.create("next")
        allocator = await stage.allocator()
        assert await stage.given("next") == ["172.30.250.53"]
        annotations = (await stage.service("echo"))["metadata"].get("annotations", {})
        assert not [name for name in annotations if name.startswith("purelb.io/")]
        assert await allocator.stop() == 0
        triggers = [m[0] for m in moves(stage.database, "allocation")]
        assert triggers == ["hold", "begin_release", "confirm_release", "expire", "hold"]


async def test_killed_again_and_again_nobody_gets_two_or_anothers(tmp_path: Path) -> None:
    names = [f"s{n}" for n in range(40)]
    async with a_stage(tmp_path, local_group("172.30.250.0/24")) as stage:
        allocator = await stage.allocator()
        for number, name in enumerate(names):
            await stage.create(name)
            if number % 10 == 9:
                # Not at a chosen moment: wherever it is with what it was just given.
                await eventually(partial(stage.shown, names[number - 5]))
                allocator.kill()
                await allocator.gone()
                allocator = await stage.allocator()
        given = {name: await stage.given(name) for name in names}
        assert all(len(addresses) == 1 for addresses in given.values())
        assert len({addresses[0] for addresses in given.values()}) == len(names)
        await eventually(lambda: rows(stage.database, "SELECT term FROM leadership") == [(1 + len(names) // 10,)])
        assert await allocator.stop() == 0
        held = rows(stage.database, "SELECT COUNT(*), COUNT(DISTINCT address) FROM allocation WHERE state = 'held'")
        assert held == [(len(names), len(names))]
        assert verified(stage.database).rows > 0


async def test_an_api_server_restarted_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    async with a_stage(tmp_path, local_group(POOL, quarantine="5m")) as stage:
        allocator = await stage.allocator()
        await stage.create("before")
        await stage.create("deleted")
        await stage.given("before")
        await stage.given("deleted")
        before = await stage.service("before")
        await stage.api.kill()
        await stage.api.start()
        # The allocator has not come back yet, or only just: it learns of both by listing again.
        await stage.delete("deleted")
        await stage.create("after")
        assert await stage.given("after") == ["172.30.250.55"]
        await eventually(lambda: states(stage.database)["172.30.250.54"] == "quarantined")
        assert await stage.service("before") == before
        assert await allocator.stop() == 0


async def test_sigterm_gives_the_lease_back_and_ends_at_once(tmp_path: Path) -> None:
    async with a_stage(tmp_path, local_group(POOL)) as stage:
        allocator = await stage.allocator()
        await stage.create("echo")
        await stage.given("echo")
        assert await allocator.stop() == 0
        path = "/apis/coordination.k8s.io/v1/namespaces/purelb-system/leases/purelb-allocator"
        lease = yaml.safe_load(await stage.client.request("GET", path))
        assert not lease["spec"].get("holderIdentity")
