"""The allocator against an emulated API server over real HTTP, in one process, with a real database file.

Nodes are played by the test: a Lease that is renewed, and a NodeAnnouncement.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from purelb_sm.allocator.app import Allocator
from purelb_sm.domain import names
from purelb_sm.domain.reports import NodeReport, ReportedAddress, ReportedTransition, render_report
from purelb_sm.domain.states import AnnouncementState, AnnouncementTrigger
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.leases import HeldLease
from purelb_sm.sandbox.apiserver import ApiServer, Fault, serve, write_kubeconfig
from purelb_sm.settings import AllocatorSettings
from purelb_sm.store import Book, schema
from tests.support.waiting import eventually

JSON = dict[str, Any]
ROOT = Path(__file__).parents[2]
NAMESPACE = "test"
QUICK = {"settle_s": 0.0, "web_port": 0, "leader_retry_s": 0.2, "leader_renew_s": 2.0, "leader_lease_s": 3.0}


def crds() -> list[JSON]:
    return [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "deploy" / "crds").glob("[!k]*.yaml"))]


def local_group(*pools: str, name: str = "default", quarantine: str = "0s", kind: str = "local") -> JSON:
    entries = [{"subnet": "172.30.250.0/24" if ":" not in p else "fd30:250::/64", "pool": p} for p in pools]
    v4 = [e for e in entries if ":" not in e["pool"]]
    v6 = [e for e in entries if ":" in e["pool"]]
    spec = {kind: {"quarantine": quarantine, **({"v4pools": v4} if v4 else {}), **({"v6pools": v6} if v6 else {})}}
    return {
        "apiVersion": "purelb.io/v2",
        "kind": "ServiceGroup",
        "metadata": {"name": name, "namespace": "purelb-system"},
        "spec": spec,
    }


def group_object(name: str, spec: JSON, namespace: str = "purelb-system") -> JSON:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "purelb.io/v2", "kind": "ServiceGroup", "metadata": metadata, "spec": spec}


def key_of(name: str) -> tuple[str, str]:
    """(namespace, name) of `namespace/name`, or of a name alone."""
    namespace, _, bare = name.rpartition("/")
    return namespace or NAMESPACE, bare


def service_object(name: str = "echo", *, annotations: dict[str, str] | None = None, **spec: Any) -> JSON:
    namespace, bare = key_of(name)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": bare, "namespace": namespace, "annotations": annotations or {}},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], **spec},
    }


@dataclass
class Cluster:
    """An API server with our CRDs. `requests` counts what reached it, as (method, path)."""

    server: ApiServer
    url: str
    kubeconfig: Path
    client: KubeClient
    requests: list[tuple[str, str]] = field(default_factory=list)

    def create(self, obj: JSON) -> JSON:
        return self.server.create(obj)

    def service(self, name: str = "echo") -> JSON:
        namespace, bare = key_of(name)
        found = self.server.get("v1", "Service", bare, namespace)
        assert found is not None, f"no Service {name}"
        return found

    def versions(self, name: str, since: str) -> list[JSON]:
        """The Service as each write after the resourceVersion `since` has left it."""
        bucket = self.server.store.bucket(self.server.resource("v1", "Service").bucket)
        return [change.entry.obj for change in bucket.since(int(since)) if change.entry.key == key_of(name)]

    def delete_service(self, name: str = "echo") -> None:
        namespace, bare = key_of(name)
        self.server.delete("v1", "Service", bare, namespace)

    async def patch_service(self, name: str, patch: JSON) -> None:
        from purelb_sm.kube.client import MERGE_PATCH

        namespace, bare = key_of(name)
        path = f"/api/v1/namespaces/{namespace}/services/{bare}"
        await self.client.request("PATCH", path, body=patch, content_type=MERGE_PATCH)

    async def patch_status(self, name: str, status: JSON) -> None:
        from purelb_sm.kube.client import MERGE_PATCH

        namespace, bare = key_of(name)
        path = f"/api/v1/namespaces/{namespace}/services/{bare}/status"
        await self.client.request("PATCH", path, body={"status": status}, content_type=MERGE_PATCH)

    def shown(self, name: str = "echo") -> list[str]:
        """The addresses in the Service's ingress."""
        status = self.service(name).get("status", {})
        return [entry["ip"] for entry in status.get("loadBalancer", {}).get("ingress", [])]

    async def given(self, name: str = "echo") -> list[str]:
        """Waits until the Service shows an address."""
        return await eventually(lambda: self.shown(name), f"an address for {name}")

    async def edit_groups(self, *groups: JSON) -> None:
        """Writes these groups, all of them before the allocator can have seen one, and waits until it goes by them."""
        for obj in groups:
            self.server.apply(obj)
        for obj in groups:
            name = obj["metadata"]["name"]
            await eventually(partial(self._judged, name), f"a verdict on ServiceGroup {name} as it is")

    def _judged(self, name: str) -> bool:
        found = self.server.get("purelb.io/v2", "ServiceGroup", name, "purelb-system")
        assert found is not None
        return bool((found.get("status") or {}).get("observedGeneration") == found["metadata"]["generation"])

    def condition(self, name: str = "echo") -> JSON | None:
        conditions = self.service(name).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == "purelb.io/Allocated"), None)

    def events(self, reason: str = "") -> list[JSON]:
        resource = self.server.resource("v1", "Event")
        bucket = self.server.store.bucket(resource.bucket)
        keys = [entry.key for entry in bucket.entries()]
        found = [self.server.get("v1", "Event", name, namespace) for namespace, name in keys]
        return [e for e in found if e is not None and reason in ("", e["reason"])]

    def writes(self) -> list[tuple[str, str]]:
        """Requests that change something, but for Leases."""
        return [(m, p) for m, p in self.requests if m != "GET" and "/leases" not in p]


def _served(server: ApiServer, kind: str) -> bool:
    try:
        return bool(server.resource("purelb.io/v2", kind))
    except KeyError:
        return False


@asynccontextmanager
async def a_cluster(
    tmp_path: Path, *groups: JSON, namespaces: Sequence[str] = (), **more: Any
) -> AsyncIterator[Cluster]:
    server = ApiServer(**more)
    for document in crds():
        server.create(document)
    for namespace in ("purelb-system", NAMESPACE, *namespaces):
        server.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    # A definition is established a moment after it was taken, as on a real server.
    await eventually(lambda: _served(server, "ServiceGroup") and _served(server, "NodeAnnouncement"))
    for group in groups:
        server.create(group)
    async with serve(server) as url:
        kubeconfig = tmp_path / "kubeconfig"
        write_kubeconfig(kubeconfig, url)
        async with await KubeClient.connect(str(kubeconfig)) as client:
            cluster = Cluster(server, url, kubeconfig, client)

            def count(request: web.Request) -> bool:
                cluster.requests.append((request.method, request.path))
                return False

            server.faults.add(Fault("delay", predicate=count))
            yield cluster


def a_database(tmp_path: Path) -> str:
    """A new SQLite book."""
    url = f"sqlite:///{tmp_path / 'purelb.db'}"
    schema.upgrade(url)
    return url


@asynccontextmanager
async def an_allocator(cluster: Cluster, database: str, **more: Any) -> AsyncIterator[Allocator]:
    """An allocator that runs while the block does. Its end is orderly: the Lease is given back."""
    settings = AllocatorSettings(**{**QUICK, "kubeconfig": cluster.kubeconfig, "database": database, **more})
    book = Book.open(database, cluster=settings.cluster_name, actor="test-allocator")
    async with await KubeClient.connect(str(cluster.kubeconfig)) as client:
        allocator = Allocator(settings, client, book)
        task = asyncio.create_task(allocator.run())
        try:
            yield allocator
            if task.done():
                task.result()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            book.close()


@dataclass
class PlayedNode:
    """What a node's agent would write: its Lease is alive, and it reports what the test says its kernel holds."""

    cluster: Cluster
    name: str
    report: NodeReport
    sequence: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def holds(self, address: str, present: bool = True) -> None:
        """The kernel took the address (or let it go): two moves, as an agent reports them."""
        state, trigger = AnnouncementState, AnnouncementTrigger
        moves = (
            [(trigger.ADD, state.ABSENT, state.ADDING), (trigger.ADDED, state.ADDING, state.PRESENT)]
            if present
            else [(trigger.REMOVE, state.PRESENT, state.REMOVING), (trigger.REMOVED, state.REMOVING, state.ABSENT)]
        )
        now = datetime.now(UTC)
        made = tuple(
            ReportedTransition(next(self.sequence), now, ip_address(address), "eth0", 24, t, source, dest)
            for t, source, dest in moves
        )
        others = tuple(a for a in self.report.addresses if str(a.address) != address)
        mine = (ReportedAddress(ip_address(address), "eth0", 24, state.PRESENT, now, 300),) if present else ()
        self.report = replace(
            self.report,
            sequence=made[-1].seq,
            addresses=others + mine,
            transitions=(*self.report.transitions, *made),
        )
        await self.write()

    async def write(self) -> None:
        obj = {
            "apiVersion": "purelb.io/v2",
            "kind": "NodeAnnouncement",
            "metadata": {"name": self.name, "namespace": "purelb-system", "labels": {"purelb.io/node": self.name}},
            "spec": {**render_report(self.report), "slice": 0, "slices": 1},
        }
        self.cluster.server.apply(obj)


@asynccontextmanager
async def a_node(cluster: Cluster, name: str = "node1", *subnets: str) -> AsyncIterator[PlayedNode]:
    """A node in these subnets that is alive while the block runs; afterwards its Lease stays, and lapses."""
    if cluster.server.get("v1", "Node", name) is None:
        cluster.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    lease = HeldLease(cluster.client, name, duration_s=2.0, renew_s=0.5)
    lease.set_annotations({names.SUBNETS: ",".join(subnets)} if subnets else {})
    await lease.renew()
    task = asyncio.create_task(lease.run())
    now = datetime.now(UTC)
    try:
        yield PlayedNode(cluster, name, NodeReport(name, f"{name}-{now.timestamp()}", now, 0, (), ()))
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
