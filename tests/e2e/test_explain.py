"""`purelb explain --kubeconfig`: the book and the cluster side by side, and where they differ (spec B3)."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from purelb_sm.cli.main import command
from purelb_sm.domain import names
from purelb_sm.kube.client import MERGE_PATCH
from purelb_sm.sandbox.apiserver import Fault
from tests.support.product import Cluster, a_cluster, a_database, a_node, an_allocator, local_group, service_object
from tests.support.waiting import eventually

POOL = "172.30.250.53-172.30.250.54"


async def purelb(cluster: Cluster, database: str, *words: str) -> Result:
    """In a thread: it runs a loop of its own."""
    environment = {"PURELB_DATABASE": database}
    argv = [*words, "--kubeconfig", str(cluster.kubeconfig)]
    return await asyncio.to_thread(lambda: CliRunner().invoke(command(), argv, env=environment))


async def explained(cluster: Cluster, database: str, name: str = "echo") -> dict[str, Any]:
    done = await purelb(cluster, database, "explain", f"test/{name}", "-o", "json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.spec("B3")
async def test_the_cluster_agrees_with_the_book_until_it_does_not(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object())
            await cluster.given()
        found = await explained(cluster, database)
        assert (found["state"], found["differences"]) == ("allocated", [])
        # With the allocator away somebody writes to the status, and somebody deletes.
        status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}}
        await cluster.client.request(
            "PATCH",
            "/api/v1/namespaces/test/services/echo/status",
            body={"status": status},
            content_type="application/merge-patch+json",
        )
        assert (await explained(cluster, database))["differences"] == [
            "172.30.250.53 is booked for it, and its status does not show it",
            "192.0.2.9 stands in its status, and is not booked for it",
        ]
        cluster.delete_service()
        assert (await explained(cluster, database))["differences"] == [
            "the cluster has no such Service; the book has it as allocated"
        ]
        cluster.create(service_object())
        (differs,) = (await explained(cluster, database))["differences"]
        assert "it was made again" in differs


@pytest.mark.spec("B3")
async def test_a_service_that_only_the_cluster_knows_is_told_why(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        database = a_database(tmp_path)
        cluster.create(service_object("plain", type="ClusterIP"))
        cluster.create(service_object("theirs", loadBalancerClass="example.com/other"))
        cluster.create(service_object("ours"))
        assert "asks for no address" in (await explained(cluster, database, "plain"))["why"]
        assert "names another controller" in (await explained(cluster, database, "theirs"))["why"]
        assert "the allocator has not booked it" in (await explained(cluster, database, "ours"))["why"]
        done = await purelb(cluster, database, "explain", "test/nowhere")
        assert (done.exit_code, done.stderr) == (
            4,
            "purelb: neither the book nor the cluster knows a Service test/nowhere\n",
        )


@pytest.mark.spec("B3", "B5")
async def test_a_refused_wish_and_a_release_that_waits_for_a_node_are_explained(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database), a_node(cluster) as node:
            cluster.create(service_object())
            await cluster.given()
            await node.holds("172.30.250.53")

            async def announcing() -> bool:
                return bool((await explained(cluster, database))["state"] == "announcing")

            await eventually(announcing)
            wish = {"metadata": {"annotations": {"purelb.io/addresses": "192.0.2.1"}}}
            await cluster.patch_service("echo", wish)
            await eventually(lambda: (cluster.condition() or {}).get("reason") == "AddressOutsideGroups")
            found = await explained(cluster, database)
            assert "what it asks for now was refused: AddressOutsideGroups" in found["why"]
            assert "another address is asked for" in found["changes"]
            cluster.delete_service()

            async def releasing() -> bool:
                addresses = (await explained(cluster, database))["addresses"]
                return [a["state"] for a in addresses] == ["releasing"]

            await eventually(releasing)
            (address,) = (await explained(cluster, database))["addresses"]
            assert address["waitsFor"] == "node node1 on eth0 to withdraw 172.30.250.53"
            for name in ("a", "b"):
                cluster.create(service_object(name))
            await eventually(lambda: bool(cluster.shown("a")) != bool(cluster.shown("b")))
            waiting = "b" if cluster.shown("a") else "a"
            await eventually(partial(cluster.condition, waiting))
            found = await explained(cluster, database, waiting)
            assert found["reason"] == "PoolExhausted"
            families = found["groups"][0]["families"]["IPv4"]
            assert (families["held"], families["releasing"], families["free"]) == (1, 1, 0)


@pytest.mark.spec("B3", "C17")
async def test_an_announcing_node_that_is_about_to_give_its_addresses_up_is_said_to_and_why(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(POOL)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database), a_node(cluster) as node:
            cluster.create(service_object())
            (address,) = await cluster.given()
            await node.holds(address)

            async def announced() -> list[dict[str, Any]]:
                found: list[dict[str, Any]] = (await explained(cluster, database))["addresses"][0]["nodes"]
                return found

            (there,) = await eventually(announced)
            assert there == {"node": "node1", "interface": "eth0", "state": "present"}
            drained = {names.DRAIN: "2026-11-29T03:12:00Z a new kernel"}
            await annotate(cluster, "/api/v1/nodes/node1", drained)
            said = "it is drained (2026-11-29T03:12:00Z a new kernel)"
            assert await announced() == [there | {"leaving": said}]
            text = (await purelb(cluster, database, "explain", "test/echo")).stdout
            assert f"present on node1 eth0, which gives its addresses up: {said}\n" in text
            lease = f"/apis/coordination.k8s.io/v1/namespaces/purelb-system/leases/{names.NODE_LEASE_PREFIX}node1"
            await annotate(cluster, lease, {names.DRAINING: "stopping"})
            assert await announced() == [there | {"leaving": "its agent was told to stop"}]
            # To one who may not read Leases the Node tells what it can.
            cluster.server.faults.add(Fault("forbidden", method="GET", path="/leases"))
            assert await announced() == [there | {"leaving": said}]


async def annotate(cluster: Cluster, path: str, annotations: dict[str, str]) -> None:
    body = {"metadata": {"annotations": annotations}}
    await cluster.client.request("PATCH", path, body=body, content_type=MERGE_PATCH)
