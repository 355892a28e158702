"""Planned anew on request, end to end: the safe order, one write, and the address never shown by two."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from purelb_sm.cli.main import command
from purelb_sm.kube.client import MERGE_PATCH
from purelb_sm.kube.resources import SERVICES
from purelb_sm.sandbox.apiserver import Fault
from tests.e2e.test_allocator import rows, states, verified
from tests.e2e.test_kill import a_stage
from tests.support.product import (
    NAMESPACE,
    Cluster,
    a_cluster,
    a_database,
    a_node,
    an_allocator,
    local_group,
    service_object,
)
from tests.support.waiting import eventually

OLD, NEW = "172.30.250.53", "172.30.250.70"
GROUPS = (local_group(f"{OLD}-{OLD}"), local_group(f"{NEW}-{NEW}", name="other"))
WISH = "purelb.io/re-evaluate"
STATUS = "/api/v1/namespaces/test/services/echo/status"


async def annotate(cluster: Cluster, name: str = "echo", **annotations: str) -> None:
    values = {f"purelb.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
    await cluster.patch_service(name, {"metadata": {"annotations": values}})


def wishes(cluster: Cluster, name: str = "echo") -> bool:
    return WISH in cluster.service(name)["metadata"].get("annotations", {})


def what_is_shown(service: dict[str, Any]) -> tuple[str, str, bool]:
    """The address, the group that it is of, and whether there is a wish to be planned anew."""
    annotations = service["metadata"]["annotations"]
    return (
        service["status"]["loadBalancer"]["ingress"][0]["ip"],
        annotations["purelb.io/allocated-from"],
        WISH in annotations,
    )


async def re_evaluate(cluster: Cluster, service: str) -> Result:
    words = ("re-evaluate", service, "--kubeconfig", str(cluster.kubeconfig))
    return await asyncio.to_thread(partial(CliRunner().invoke, command(), words))


@pytest.mark.spec("A23", "B5")
async def test_a_service_moves_to_the_group_it_names_when_asked_and_not_before(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, *GROUPS) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database), a_node(cluster) as node:
            cluster.create(service_object())
            assert await cluster.given() == [OLD]
            await node.holds(OLD)
            await annotate(cluster, service_group="other")
            # Whatever else happens to it, it stays.
            await annotate(cluster, irrelevant="x")
            cluster.create(service_object("waits"))
            await eventually(partial(cluster.condition, "waits"), "a refusal")
            assert cluster.shown() == [OLD]
            await eventually(lambda: cluster.events("AllocationFailed"))
            before = cluster.service()["metadata"]["resourceVersion"]
            done = await re_evaluate(cluster, "test/echo")
            assert (done.exit_code, "test/echo is planned anew" in done.stdout) == (0, True)
            await eventually(lambda: cluster.shown() == [NEW])
            # The write that shows the new address takes the wish away, and there is no other.
            assert not wishes(cluster)
            assert cluster.service()["metadata"]["annotations"]["purelb.io/allocated-from"] == "other"
            await eventually(lambda: states(database)[OLD] == "releasing")
            assert cluster.shown("waits") == []
            await node.holds(OLD, present=False)
            assert await cluster.given("waits") == [OLD]
            # Who announces it is told beside that; the address, the group and the wish changed once, and together.
            seen = [(OLD, "default", False), *map(what_is_shown, cluster.versions("echo", before))]
            assert [now for was, now in pairwise(seen) if was != now] == [(OLD, "default", True), (NEW, "other", False)]
        told = rows(
            database,
            "SELECT trigger, address, reason FROM history WHERE kind = 'allocation' AND name = 'echo' ORDER BY seq",
        )
        assert told[:3] == [
            ("hold", OLD, ""),
            ("hold", NEW, ""),
            ("begin_release", OLD, "given up when planned anew"),
        ]
        assert verified(database).rows > 0


@pytest.mark.spec("A23", "A10")
async def test_the_old_address_stays_shown_while_the_write_of_the_new_one_does_not_come_through(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, *GROUPS) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object())
            assert await cluster.given() == [OLD]
            fault = cluster.server.faults.add(Fault("unavailable", method="PATCH", path=STATUS))
            await annotate(cluster, service_group="other", re_evaluate="true")
            await eventually(lambda: states(database).get(NEW) == "held")
            cluster.create(service_object("waits", annotations={"purelb.io/addresses": OLD}))
            refused = await eventually(partial(cluster.condition, "waits"), "a refusal")
            assert refused["reason"] == "AddressInUse"
            assert (cluster.shown(), wishes(cluster), states(database)[OLD]) == ([OLD], True, "releasing")
            cluster.server.faults.remove(fault.number)
            await eventually(lambda: cluster.shown() == [NEW])
            assert await cluster.given("waits") == [OLD]
            assert not wishes(cluster)


@pytest.mark.spec("A23")
async def test_a_pending_service_is_tried_again_and_one_write_tells_what_came_of_it(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object())
            refused = await eventually(cluster.condition, "a refusal")
            assert refused["reason"] == "NoServiceGroup"
            cluster.requests.clear()
            assert (await re_evaluate(cluster, "test/echo")).exit_code == 0
            await eventually(lambda: not wishes(cluster))
            # Nothing but the wish is new: nothing else is written, and nothing is said again.
            assert cluster.condition() == refused
            assert len(cluster.events("AllocationFailed")) == 1
            assert [w for w in cluster.writes() if w[1] == STATUS] == [("PATCH", STATUS)]


@pytest.mark.spec("A23", "A12")
async def test_a_service_that_is_not_ours_keeps_its_annotation(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, *GROUPS) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(service_object(loadBalancerClass="example.com/other", annotations={WISH: "true"}))
            cluster.create(service_object("next"))
            await cluster.given("next")
            assert wishes(cluster)
            assert STATUS not in [path for _, path in cluster.writes()]


@pytest.mark.spec("A23", "E1")
async def test_the_verb_says_what_it_cannot_do(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        cluster.create(service_object(type="ClusterIP"))
        for service, code, text in (
            ("test/echo", 2, "Service test/echo is of type ClusterIP, not LoadBalancer"),
            ("test/nobody", 3, "not found"),
            ("echo", 2, "'echo' is not namespace/name"),
        ):
            done = await re_evaluate(cluster, service)
            assert (done.exit_code, text in done.stderr) == (code, True), done.stderr
        assert not wishes(cluster)


@pytest.mark.spec("A23", "E4")
async def test_killed_between_the_move_and_its_write_the_next_shows_the_new_address(tmp_path: Path) -> None:
    async with a_stage(tmp_path, *GROUPS) as stage:
        allocator = await stage.allocator()
        await stage.create("echo")
        assert await stage.given("echo") == [OLD]
        await stage.fault(kind="hang", method="PATCH", path="services/.*/status")
        patch: dict[str, Any] = {"purelb.io/service-group": "other", WISH: "true"}
        await stage.client.request(
            "PATCH",
            SERVICES.path("echo", NAMESPACE),
            body={"metadata": {"annotations": patch}},
            content_type=MERGE_PATCH,
        )
        await eventually(lambda: states(stage.database).get(NEW) == "held")
        allocator.kill()
        await allocator.gone()
        assert await stage.shown("echo") == [OLD]
        await stage.no_faults()
        allocator = await stage.allocator()

        async def moved() -> bool:
            return await stage.shown("echo") == [NEW]

        await eventually(moved)
        assert WISH not in (await stage.service("echo"))["metadata"]["annotations"]
        await eventually(lambda: states(stage.database)[OLD] == "released")
        assert await allocator.stop() == 0
        holds = rows(stage.database, "SELECT address FROM history WHERE trigger = 'hold' ORDER BY seq")
        assert holds == [(OLD,), (NEW,)]
        assert verified(stage.database).rows > 0


@pytest.mark.spec("A23", "A15", "A16")
async def test_one_of_two_that_share_an_address_moves_and_the_other_keeps_it(tmp_path: Path) -> None:
    key = {"purelb.io/allow-shared-ip": "k"}
    async with a_cluster(tmp_path, *GROUPS) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(service_object(annotations=key))
            assert await cluster.given() == [OLD]
            cluster.create(service_object("stays", annotations=key, ports=[{"port": 443}]))
            assert await cluster.given("stays") == [OLD]
            await annotate(cluster, service_group="other", re_evaluate="true")
            await eventually(lambda: cluster.shown() == [NEW] and not wishes(cluster))
            # Its port there is free by then, and not before.
            cluster.create(service_object("comes", annotations=key))
            assert await cluster.given("comes") == [OLD]
            assert (cluster.shown(), cluster.shown("stays")) == ([NEW], [OLD])
            assert states(database) == {OLD: "held", NEW: "held"}
        assert verified(database).rows > 0
