"""The Kubernetes layer against the emulated API server: real HTTP, real versions, restarts and faults."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from purelb_sm.domain.book import EventNote, Publication
from purelb_sm.domain.reports import NodeReport, ReportedAddress, join_slices
from purelb_sm.domain.states import AnnouncementState
from purelb_sm.domain.views import Condition, ServiceKey, ServiceView
from purelb_sm.errors import AlreadyExists, Conflict, Gone, Invalid, NotFound
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.events import EventRecorder
from purelb_sm.kube.leases import HeldLease, LeaderElection
from purelb_sm.kube.liveness import Liveness
from purelb_sm.kube.objects import LEASE, NODE_ANNOUNCEMENT, SERVICE, SERVICE_GROUP, decode_service
from purelb_sm.kube.publish import patch_annotations, publish
from purelb_sm.kube.reflector import Change, Reflector
from purelb_sm.kube.reports import ReportWriter
from purelb_sm.kube.resources import LEASES, SERVICES
from purelb_sm.sandbox.apiserver import ApiServer, Fault, serve
from tests.support.kube_faults import until

ROOT = Path(__file__).parents[2]
NAMESPACE = "default"
JSON = dict[str, Any]


def service_object(name: str, **spec: Any) -> JSON:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], **spec},
    }


def namespace_object(name: str) -> JSON:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


@asynccontextmanager
async def cluster(**options: Any) -> AsyncIterator[tuple[ApiServer, KubeClient]]:
    server = ApiServer(**options)
    server.apply_all([namespace_object(NAMESPACE), namespace_object("purelb-system")])
    for path in sorted((ROOT / "deploy" / "crds").glob("[!k]*.yaml")):
        server.apply(yaml.safe_load(path.read_text()))
    try:
        async with serve(server) as url, KubeClient.at(url) as client:
            yield server, client
    finally:
        server.close()


@asynccontextmanager
async def running(*reflectors: Reflector[Any, Any]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(reflector.run()) for reflector in reflectors]
    try:
        for reflector in reflectors:
            await asyncio.wait_for(reflector.synced.wait(), 20)
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def read(client: KubeClient, name: str) -> ServiceView:
    return await client.get(SERVICES.path(name, NAMESPACE), decode_service)


CONDITION = Condition("purelb.io/Allocated", "True", "Allocated", "m", "2026-11-23T07:00:00Z")


def publication(view: ServiceView, **changes: Any) -> Publication:
    made = Publication(
        view.key,
        view.uid,
        view.resource_version,
        (ip_address("172.30.250.53"),),
        {"purelb.io/allocated-by": "PureLB", "purelb.io/allocated-from": "default"},
        (CONDITION,),
    )
    return replace(made, **changes)


# Publishing.


@pytest.mark.spec("A3")
async def test_one_write_shows_the_whole_allocation() -> None:
    async with cluster() as (server, client):
        server.create(service_object("echo"))
        before = await read(client, "echo")
        answered = await publish(client, publication(before))
        after = await read(client, "echo")
        assert answered == after
        assert [(i.ip, i.ip_mode) for i in after.ingress] == [("172.30.250.53", "VIP")]
        assert after.annotations["purelb.io/allocated-by"] == "PureLB"
        assert after.conditions == (CONDITION,)
        assert after.generation == before.generation, "the status is no change of what was asked for"


@pytest.mark.spec("A18")
async def test_what_was_published_can_be_taken_back() -> None:
    async with cluster() as (server, client):
        server.create(service_object("echo"))
        bare = await read(client, "echo")
        shown = await publish(client, publication(bare))
        removed: dict[str, str | None] = dict.fromkeys(shown.annotations)
        after = await publish(client, publication(shown, ingress=(), annotations=removed, conditions=()))
        assert (after.ingress, after.annotations, after.conditions) == ((), {}, ())


@pytest.mark.spec("C9")
async def test_a_write_decided_by_an_old_version_is_a_conflict() -> None:
    async with cluster() as (server, client):
        server.create(service_object("echo"))
        old = await read(client, "echo")
        await patch_annotations(client, old.key, old.uid, old.resource_version, {"purelb.io/x": "1"})
        for write in (
            publish(client, publication(old)),
            patch_annotations(client, old.key, old.uid, old.resource_version, {"purelb.io/x": "2"}),
        ):
            with pytest.raises(Conflict):
                await write
        assert (await read(client, "echo")).annotations == {"purelb.io/x": "1"}


async def test_a_write_meant_for_a_deleted_service_never_reaches_its_successor() -> None:
    async with cluster() as (server, client):
        server.create(service_object("echo"))
        old = await read(client, "echo")
        server.delete("v1", "Service", "echo", NAMESPACE)
        with pytest.raises(NotFound):
            await publish(client, publication(old))
        server.create(service_object("echo"))
        new = await read(client, "echo")
        with pytest.raises(Conflict):
            await publish(client, publication(old))
        with pytest.raises(Conflict):
            await publish(client, publication(old, resource_version=new.resource_version))
        assert (await read(client, "echo")).ingress == ()


async def test_an_address_the_server_does_not_take_is_invalid_and_no_conflict() -> None:
    async with cluster() as (server, client):
        server.create(service_object("echo"))
        view = await read(client, "echo")
        body = {"status": {"loadBalancer": {"ingress": [{"ip": "172.30.250.53", "ipMode": "Odd"}]}}}
        with pytest.raises(Invalid):
            await client.request(
                "PATCH",
                SERVICES.path("echo", NAMESPACE, "status"),
                body=body,
                content_type="application/merge-patch+json",
            )
        assert await read(client, "echo") == view


async def test_errors_come_by_kind() -> None:
    async with cluster() as (server, client):
        server.create(service_object("echo"))
        with pytest.raises(AlreadyExists):
            await client.request("POST", SERVICES.collection(NAMESPACE), body=service_object("echo"))
        with pytest.raises(NotFound):
            await read(client, "absent")
        with pytest.raises(Gone):
            await gone(client)


async def gone(client: KubeClient) -> None:
    """The watch of a version that the server does not keep."""
    reflector = Reflector(client, SERVICE)
    reflector._version = "1"
    await reflector._watch()


# Reflecting.


def names(reflector: Reflector[ServiceKey, ServiceView]) -> dict[str, str]:
    return {key.name: view.resource_version for key, view in reflector.items().items()}


def truth(server: ApiServer) -> dict[str, str]:
    bucket = server.store.bucket(server.resource("v1", "Service").bucket)
    found = {}
    for entry in bucket.entries(None):
        item = server.get("v1", "Service", entry.key[1], entry.key[0])
        assert item is not None
        found[entry.key[1]] = item["metadata"]["resourceVersion"]
    return found


async def settled(reflector: Reflector[ServiceKey, ServiceView], server: ApiServer) -> None:
    """Waits until the cache holds what the server does."""
    await until(lambda: names(reflector) == truth(server), 20)


async def test_every_change_arrives_once_and_in_order() -> None:
    async with cluster() as (server, client):
        server.create(service_object("before"))
        reflector = Reflector(client, SERVICE)
        told: list[tuple[Change, str]] = []
        async with running(reflector):
            reflector.on_change(lambda change, old, new: told.append((change, (new or old).key.name)))  # type: ignore[union-attr]
            for i in range(50):
                server.create(service_object(f"s{i}"))
                await patch_annotations(client, ServiceKey(NAMESPACE, f"s{i}"), **guards(server, f"s{i}"))
                server.delete("v1", "Service", f"s{i}", NAMESPACE)
            await until(lambda: len(told) == 150)
            each = [told[3 * i : 3 * i + 3] for i in range(50)]
            assert each == [
                [(Change.ADDED, f"s{i}"), (Change.MODIFIED, f"s{i}"), (Change.DELETED, f"s{i}")] for i in range(50)
            ]
            assert names(reflector) == truth(server)


def guards(server: ApiServer, name: str) -> Any:
    item = server.get("v1", "Service", name, NAMESPACE)
    assert item is not None
    meta = item["metadata"]
    return {"uid": meta["uid"], "resource_version": meta["resourceVersion"], "annotations": {"purelb.io/x": "1"}}


@pytest.mark.spec("E2")
@pytest.mark.parametrize("seed", range(4))
async def test_no_change_is_lost_whatever_the_server_does(seed: int, tmp_path: Path) -> None:
    """Faults of every kind, a short history, and the server restarted in the middle: the caches end up equal."""
    rng = random.Random(seed)
    kinds = ["too_many", "error", "unavailable", "abort", "truncate", "gone", "close"]
    data = tmp_path / "state"
    told: dict[str, list[str]] = {}

    def note(change: Change, old: ServiceView | None, new: ServiceView | None) -> None:
        view = new or old
        assert view is not None
        told.setdefault(view.key.name, []).append(change.value)

    alive: set[str] = set()
    async with client_for_ever() as (client, reflector):
        reflector.on_change(note)
        for life in range(3):
            server = ApiServer(data_dir=data, history=20, bookmark_s=0.2)
            if life == 0:
                server.apply(namespace_object(NAMESPACE))
            async with serve(server, port=port_of(client)):
                for _ in range(150):
                    change(server, alive, rng)
                    if rng.random() < 0.15:
                        times, after = rng.randint(1, 2), rng.randint(0, 3)
                        server.faults.add(
                            Fault(rng.choice(kinds), path="services", times=times, after=after, delay_s=0)
                        )
                    if rng.random() < 0.3:
                        await asyncio.sleep(0.003)
                server.faults.clear()
                await settled(reflector, server)
            server.close()
    assert reflector.stats.lists > 3
    assert told.pop("kubernetes")
    for name, changes in told.items():
        assert changes[0] == "ADDED", name
        for one, other in pairwise(changes):
            assert (one == "DELETED") == (other == "ADDED"), f"{name}: {changes}"
        assert (changes[-1] == "DELETED") == (name not in alive)


def port_of(client: KubeClient) -> int:
    return int(client.host.rpartition(":")[2])


@asynccontextmanager
async def client_for_ever() -> AsyncIterator[tuple[KubeClient, Reflector[ServiceKey, ServiceView]]]:
    """A client of a port where servers come and go, and its reflector, running, hardly ever waiting."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with KubeClient.at(f"http://127.0.0.1:{port}", timeout_s=5) as client:
        reflector = Reflector(client, SERVICE, page=7, idle_s=2.0, sleep=lambda _: asyncio.sleep(0.01))
        task = asyncio.create_task(reflector.run())
        try:
            yield client, reflector
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def change(server: ApiServer, alive: set[str], rng: random.Random) -> None:
    name = f"s{rng.randint(0, 30)}"
    if name not in alive:
        server.create(service_object(name))
        alive.add(name)
    elif rng.random() < 0.4:
        server.delete("v1", "Service", name, NAMESPACE)
        alive.discard(name)
    else:
        item = service_object(name)
        item["metadata"]["annotations"] = {"x": str(rng.random())}
        server.apply(item)


@pytest.mark.spec("E2")
async def test_a_server_that_lost_its_state_is_believed() -> None:
    """The versions start low again: nothing that we hold is newer than what the server says now."""
    async with client_for_ever() as (client, reflector):
        first = ApiServer()
        first.apply(namespace_object(NAMESPACE))
        for i in range(300):
            first.create(service_object(f"s{i}"))
        async with serve(first, port=port_of(client)):
            await settled(reflector, first)
        first.close()
        second = ApiServer(bookmark_s=0.2)
        second.apply(namespace_object(NAMESPACE))
        second.create(service_object("s1"))
        async with serve(second, port=port_of(client)):
            await settled(reflector, second)
            second.create(service_object("new"))
            await settled(reflector, second)
        second.close()


async def test_selection_by_type_tells_a_changed_type_as_a_deletion() -> None:
    async with cluster() as (server, client):
        server.create(service_object("echo"))
        server.create(service_object("other", type="ClusterIP"))
        reflector = Reflector(client, SERVICE, field_selector="spec.type=LoadBalancer")
        async with running(reflector):
            assert set(names(reflector)) == {"echo"}
            body = {"spec": {"type": "ClusterIP"}}
            path = SERVICES.path("echo", NAMESPACE)
            await client.request("PATCH", path, body=body, content_type="application/merge-patch+json")
            await until(lambda: len(reflector) == 0)


async def test_groups_made_as_v1_and_as_v2_are_in_one_cache() -> None:
    async with cluster() as (server, client):
        pool = {"subnet": "192.0.2.0/24", "pool": "192.0.2.1-192.0.2.9", "aggregation": "default"}
        for version, local in (("v1", {"v4pool": pool}), ("v2", {"v4pools": [pool]})):
            server.create(
                {
                    "apiVersion": f"purelb.io/{version}",
                    "kind": "ServiceGroup",
                    "metadata": {"name": version, "namespace": "purelb-system"},
                    "spec": {"local": local},
                }
            )
        reflector = Reflector(client, SERVICE_GROUP)
        async with running(reflector):
            assert {name for _, name in reflector.items()} == {"v1", "v2"}
            assert all(view.uid and view.generation == 1 for view in reflector.items().values())


# Leases, Events, reports.


@pytest.mark.spec("C5", "C6")
async def test_a_nodes_lease_lives_and_dies_on_the_server() -> None:
    async with cluster() as (server, client):
        reflector = Reflector(client, LEASE, namespace="purelb-system", idle_s=10)
        liveness = Liveness(reflector)
        lease = HeldLease(client, "n1", annotations={"purelb.io/subnets": "192.0.2.0/24"}, renew_s=0.2)
        async with running(reflector):
            task = asyncio.create_task(lease.run())
            await until(lambda: liveness.live() == {"n1"})
            view = reflector.get(("purelb-system", "purelb-node-n1"))
            assert view is not None
            assert (view.holder, view.duration_s) == ("n1", 10.0)
            assert view.annotations == {"purelb.io/subnets": "192.0.2.0/24"}
            await until(lambda: reflector.stats.events >= 4)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await lease.close()
            await until(lambda: liveness.live() == frozenset())
        assert server.get(LEASES.api_version, "Lease", "purelb-node-n1", "purelb-system") is None


@pytest.mark.spec("D8")
async def test_the_lead_goes_from_one_to_the_next_on_the_server() -> None:
    async with cluster() as (server, client):
        options: dict[str, Any] = {"duration_s": 3, "renew_deadline_s": 2, "retry_s": 0.1}
        elections = [LeaderElection(client, name, **options) for name in ("one", "two")]
        led: list[str] = []

        def lead(name: str) -> Any:
            async def work() -> None:
                led.append(name)
                await asyncio.Event().wait()

            return work

        tasks = [asyncio.create_task(e.run(lead(e.identity))) for e in elections]
        elections[0].set_annotation("purelb.io/history-head", "7:ab")
        await until(lambda: led)
        first = next(e for e in elections if e.leading)
        index = elections.index(first)
        tasks[index].cancel()
        with suppress(asyncio.CancelledError):
            await tasks[index]
        await until(lambda: len(led) == 2)
        assert set(led) == {"one", "two"}
        lease = server.get(LEASES.api_version, "Lease", "purelb-allocator", "purelb-system")
        assert lease is not None
        assert lease["spec"]["holderIdentity"] == led[1]
        assert lease["spec"]["leaseTransitions"] == 1
        tasks[1 - index].cancel()
        with suppress(asyncio.CancelledError):
            await tasks[1 - index]


async def test_events_are_taken_by_the_server_and_counted_there() -> None:
    async with cluster() as (server, client):
        server.create(service_object("echo"))
        view = await read(client, "echo")
        async with EventRecorder(client, "purelb-allocator", "pod-1") as recorder:
            note = EventNote("Normal", "IPAllocated", "Assigned IP 172.30.250.53 from pool default")
            for _ in range(2):
                recorder.service(view.key, view.uid, view.resource_version, note)
                assert await recorder.flush(5)
        data = await client.request("GET", f"/api/v1/namespaces/{NAMESPACE}/events")
        [event] = json.loads(data)["items"]
        assert event["count"] == 2
        assert event["involvedObject"]["uid"] == view.uid


@pytest.mark.spec("C15")
async def test_a_report_of_several_slices_is_read_back_whole() -> None:
    at = datetime(2026, 11, 23, 7, tzinfo=UTC)
    addresses = tuple(
        ReportedAddress(ip_address(0x0A000000 + i), "eth0", 24, AnnouncementState.PRESENT, at, 300) for i in range(1200)
    )
    whole = NodeReport("n1", "i1", at, 1, addresses, ())
    async with cluster() as (_server, client):
        reflector = Reflector(client, NODE_ANNOUNCEMENT, namespace="purelb-system")
        async with running(reflector):
            reports = [whole, replace(whole, sequence=2, addresses=addresses[:3])]
            writer = ReportWriter(client, lambda: reports.pop(0), "n1")
            writer.mark()
            assert await writer.flush()
            await until(lambda: join_slices(reflector.items().values(), "n1") == whole)
            assert len(reflector) == 3
            writer.mark()
            assert await writer.flush()
            await until(lambda: len(reflector) == 1)
            short = join_slices(reflector.items().values())
            assert short is not None
            assert (short.sequence, len(short.addresses)) == (2, 3)
