"""An emulated Kubernetes API server: the public face of this package.

    server = ApiServer(data_dir=Path("state"))
    async with serve(server, port=0) as url:
        ...

It answers as the recorded real server does (tests/contract), for the kinds that a LoadBalancer controller meets, and
serves a real kubectl. It is for demonstrations, tests and benchmarks on one machine: no TLS, one rule of access.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import yaml
from aiohttp import web

from purelb_sm.sandbox.apiserver import faults, reviews
from purelb_sm.sandbox.apiserver.cluster import Cluster
from purelb_sm.sandbox.apiserver.frontend import Frontend
from purelb_sm.sandbox.apiserver.intake import Request
from purelb_sm.sandbox.apiserver.journal import Journal
from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.operations import Operations
from purelb_sm.sandbox.apiserver.patching import APPLY_PATCH
from purelb_sm.sandbox.apiserver.registry import Resource
from purelb_sm.sandbox.apiserver.storage import Entry, Store

# Changes kept for each kind; a watch from before them gets 410.
HISTORY = 10_000
# A real cluster has written some hundred objects before anybody asks; version 1 is long compacted.
_FIRST_VERSION = 200
# Versions that a restart leaves out, so that every version from before it is told apart.
_RESTART_GAP = 1000
_MAX_BODY = 3 << 20


class ApiServer:
    """One emulated cluster. Not started, it can already be seeded through `create` and `apply`."""

    def __init__(
        self,
        data_dir: Path | None = None,
        tokens: Mapping[str, str] | None = None,
        history: int = HISTORY,
        *,
        bookmark_s: float = 10.0,
    ) -> None:
        """`tokens` maps bearer tokens to user names; without any, every request is let in.

        `history` bounds the changes kept for each kind. `bookmark_s` is the time between bookmarks of a watch.
        """
        journal = Journal(data_dir) if data_dir is not None else None
        start = _FIRST_VERSION if journal is None else max(_FIRST_VERSION, journal.last + _RESTART_GAP)
        self.store = Store(kept=history, start=start, journal=journal)
        if journal is not None:
            for (bucket, key), (rv, raw) in journal.found.items():
                self.store.load(bucket, key, rv, raw)
            journal.follow(self.store.rows)
        self.faults = faults.Faults()
        self.cluster = Cluster(self.store)
        self.cluster.start()
        # History begins now: whoever watched a former process has to list again.
        self.store.compact()
        self._operations = Operations(self.cluster)
        self._frontend = Frontend(self.cluster, reviews.Tokens(tokens), self.faults, bookmark_s=bookmark_s)

    def app(self) -> web.Application:
        """An aiohttp application with the whole API."""
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_route("*", "/{tail:.*}", self._frontend.handle)
        app.on_startup.append(self._begin)
        app.on_shutdown.append(self._end_watches)
        return app

    async def _begin(self, _: web.Application) -> None:
        # The same server may be served again after it went down.
        self._frontend.ending.clear()

    async def _end_watches(self, _: web.Application) -> None:
        self.end_watches()

    def end_watches(self) -> None:
        """Let every watch end in order, as a server does that is going down."""
        self._frontend.ending.set()
        for bucket in self.store.buckets.values():
            for watcher in tuple(bucket.watchers):
                watcher.wake()

    def close(self) -> None:
        self.store.close()

    # --- seeding, without HTTP ---------------------------------------------------------------------------------

    def resource(self, api_version: str, kind: str) -> Resource:
        """The served resource of a kind; raises KeyError."""
        group, _, version = api_version.rpartition("/")
        for resource in self.cluster.registry.resources.values():
            if (resource.group, resource.version, resource.kind) == (group, version, kind):
                return resource
        raise KeyError(f"{api_version} {kind}")

    def create(self, obj: JSON, *, manager: str = "seed") -> JSON:
        """Create an object as a POST would; returns what is stored. Raises StatusError."""
        resource = self.resource(obj["apiVersion"], obj["kind"])
        namespace = obj.get("metadata", {}).get("namespace") or ("default" if resource.namespaced else "")
        request = Request(resource, namespace, manager=manager)
        made = self._whole(resource, self._operations.create(request, _copy(obj)))
        self.cluster.settle()
        return made

    def apply(self, obj: JSON, *, manager: str = "seed", status: bool = False) -> JSON:
        """Server-side apply with force, as `kubectl apply --server-side`; with `status`, to the status subresource."""
        resource = self.resource(obj["apiVersion"], obj["kind"])
        meta = obj["metadata"]
        namespace = (meta.get("namespace") or "default") if resource.namespaced else ""
        part = "status" if status else ""
        request = Request(resource, namespace, meta["name"], part, manager=manager, force=True)
        entry, _ = self._operations.patch(request, APPLY_PATCH, _copy(obj))
        self.cluster.settle()
        return self._whole(resource, entry)

    def apply_all(self, documents: Iterable[JSON], *, manager: str = "seed") -> None:
        """Apply one after the other, such as the documents of a manifest."""
        for document in documents:
            if document:
                self.apply(document, manager=manager)

    def get(self, api_version: str, kind: str, name: str, namespace: str = "") -> JSON | None:
        """A stored object, or None."""
        resource = self.resource(api_version, kind)
        entry = self.store.bucket(resource.bucket).get((namespace if resource.namespaced else "", name))
        return None if entry is None else self._whole(resource, entry)

    def delete(self, api_version: str, kind: str, name: str, namespace: str = "") -> None:
        """Delete as a DELETE would; raises StatusError."""
        resource = self.resource(api_version, kind)
        self._operations.delete(Request(resource, namespace if resource.namespaced else "", name), {})
        self.cluster.settle()

    def _whole(self, resource: Resource, entry: Entry) -> JSON:
        head = {"apiVersion": resource.api_version, "kind": resource.kind}
        return {**head, **self.cluster.to_served(resource, entry)}


def _copy(obj: JSON) -> JSON:
    copied: JSON = msgspec.json.decode(msgspec.json.encode(obj))
    return copied


@asynccontextmanager
async def serve(
    server: ApiServer,
    *,
    sockets: Sequence[socket.socket] = (),
    host: str = "127.0.0.1",
    port: int = 0,
) -> AsyncIterator[str]:
    """Serve on the given listening sockets, or on host and port; yields the URL of the first one.

    A socket stays in the network namespace where it was opened, so one server can be reached from many.
    """
    runner = web.AppRunner(
        server.app(), access_log=None, handle_signals=False, shutdown_timeout=1.0, handler_cancellation=True
    )
    await runner.setup()
    try:
        for each in sockets:
            await web.SockSite(runner, each).start()
        if not sockets:
            await web.TCPSite(runner, host, port).start()
        address = runner.addresses[0]
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        yield f"http://{shown}:{address[1]}"
    finally:
        server.end_watches()
        await runner.cleanup()


def write_kubeconfig(path: Path, url: str, token: str | None = None) -> None:
    """A kubeconfig with one cluster, user and context named `sandbox`; readable by its owner only.

    kubectl never sends a token over plain HTTP, so a server with tokens is for other clients.
    """
    user = {"token": token} if token else {}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "sandbox", "cluster": {"server": url}}],
        "users": [{"name": "sandbox", "user": user}],
        "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": "sandbox", "namespace": "default"}}],
        "current-context": "sandbox",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
