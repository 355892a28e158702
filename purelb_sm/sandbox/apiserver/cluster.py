"""The state of one emulated cluster: which kinds there are, their objects, and what happens behind the API.

Stands between the store, which knows only bytes and keys, and the operations, which know only single objects: it turns
a stored object into the version that was asked for, and runs the few controllers without which a `kubectl apply` or
`delete` would not end (custom resource definitions become established, namespaces are emptied).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from purelb_sm.sandbox.apiserver import definitions, kinds
from purelb_sm.sandbox.apiserver.custom import CustomStrategy
from purelb_sm.sandbox.apiserver.objects import JSON, new_uid, now
from purelb_sm.sandbox.apiserver.registry import Resource, builtin_registry
from purelb_sm.sandbox.apiserver.services import NETWORKS, Services
from purelb_sm.sandbox.apiserver.storage import DELETED, Change, Entry, Store, encode
from purelb_sm.sandbox.apiserver.strategy import Strategy
from purelb_sm.sandbox.apiserver.workloads import Pods, workloads

NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")


class Cluster:
    """Registry, store and strategies, kept in step with each other."""

    def __init__(self, store: Store) -> None:
        self.registry = builtin_registry()
        self.store = store
        self._services = Services()
        self._plain = Strategy()
        self._strategies: dict[str, Strategy] = {
            "services": self._services,
            "nodes": kinds.Nodes(),
            "namespaces": kinds.Namespaces(),
            "events": kinds.Events(),
            "secrets": kinds.Secrets(),
            "configmaps": kinds.ConfigMaps(),
            "leases.coordination.k8s.io": kinds.Leases(),
            "endpointslices.discovery.k8s.io": kinds.EndpointSlices(),
            "roles.rbac.authorization.k8s.io": kinds.Roles(),
            "clusterroles.rbac.authorization.k8s.io": kinds.Roles(),
            "rolebindings.rbac.authorization.k8s.io": kinds.Bindings(),
            "clusterrolebindings.rbac.authorization.k8s.io": kinds.Bindings(),
            "poddisruptionbudgets.policy": kinds.Disruptions(),
            "networkpolicies.networking.k8s.io": kinds.Generic(),
            "pods": Pods(),
            definitions.BUCKET: definitions.Definitions(),
            **workloads(),
        }
        self._with_status = kinds.WithStatus()
        self._custom: dict[tuple[str, str], CustomStrategy] = {}
        self._todo: deque[Callable[[], None]] = deque()
        store.listeners.append(self._notice)

    def strategy(self, resource: Resource) -> Strategy:
        if resource.custom:
            return self._custom[resource.bucket, resource.version]
        found = self._strategies.get(resource.bucket)
        if found is not None:
            return found
        return self._with_status if resource.has_status else self._plain

    # --- versions of a kind ------------------------------------------------------------------------------------

    def view(self, resource: Resource, entry: Entry) -> JSON:
        """A stored object as the resource's version has it; to look at, not to change."""
        if resource.uniform:
            return entry.obj
        return self._custom[resource.bucket, resource.version].convert(entry.copy())

    def to_served(self, resource: Resource, entry: Entry) -> JSON:
        """The same, to change."""
        obj = entry.copy()
        if not resource.uniform:
            obj = self._custom[resource.bucket, resource.version].convert(obj)
        return obj

    def to_storage(self, resource: Resource, obj: JSON) -> JSON:
        if resource.uniform or resource.version == resource.storage_version:
            return obj
        storage = self._custom.get((resource.bucket, resource.storage_version))
        return obj if storage is None else storage.convert(obj)

    def raw(self, resource: Resource, entry: Entry) -> bytes:
        """The bytes of a stored object without apiVersion and kind; converted once per version and entry."""
        if resource.uniform:
            return entry.raw
        views = entry.views = entry.views or {}
        found = views.get(resource.version)
        if found is None:
            found = views[resource.version] = encode(self.view(resource, entry))
        return found

    def shown(self, resource: Resource, entry: Entry) -> bytes:
        """The bytes of a whole object; never re-encoded, as the stored bytes lack only their head."""
        return resource.head + b"," + self.raw(resource, entry)[1:]

    # --- life and death ----------------------------------------------------------------------------------------

    @staticmethod
    def lingers(bucket: str, obj: JSON) -> bool:
        """Whether a DELETE only marks the object, since something has to be done first."""
        return bool(obj["metadata"].get("finalizers")) or bucket in ("namespaces", definitions.BUCKET)

    def may_go(self, bucket: str, obj: JSON) -> bool:
        """Whether the removal of the last finalizer removes the object."""
        return bucket != "namespaces" or not self._content(obj["metadata"]["name"])

    @staticmethod
    def mark_deletion(bucket: str, obj: JSON, *, counts: bool) -> None:
        """Mark an object that is to go but lingers; `counts` says that this is a new generation of it."""
        meta = obj["metadata"]
        meta["deletionTimestamp"] = now()
        if bucket == "namespaces":
            obj["status"] = {**(obj.get("status") or {}), "phase": "Terminating"}
        elif bucket == definitions.BUCKET:
            definitions.begin_deletion(obj)
        else:
            meta["deletionGracePeriodSeconds"] = 0
            if counts:
                meta["generation"] = meta.get("generation", 1) + 1

    def start(self) -> None:
        """Take up what a former process left: definitions to serve, numbers in use, deletions under way."""
        for entry in tuple(self.store.bucket(definitions.BUCKET).entries()):
            self._define(entry)
            if entry.obj["metadata"].get("deletionTimestamp"):
                self._todo.append(lambda e=entry: self._purge_definition(e.key))  # type: ignore[misc]
        for entry in self.store.bucket("services").entries():
            self._services.allocations.load(entry.obj)
        for entry in self.store.bucket("namespaces").entries():
            if entry.obj["metadata"].get("deletionTimestamp"):
                self._todo.append(lambda e=entry: self._purge_namespace(e.key[1]))  # type: ignore[misc]
        self._seed()
        self.settle()

    def _seed(self) -> None:
        """What every cluster has from the beginning."""
        for name in NAMESPACES:
            if self.store.bucket("namespaces").get(("", name)) is None:
                self._put("namespaces", "", name, namespace_body(name))
        if self.store.bucket("services").get(("default", "kubernetes")) is None:
            self._put("services", "default", "kubernetes", _kubernetes_service())

    def _put(self, bucket: str, namespace: str, name: str, body: JSON) -> None:
        meta = body.setdefault("metadata", {})
        meta.update(name=name, uid=new_uid(), creationTimestamp=now())
        if namespace:
            meta["namespace"] = namespace
        self.store.create(bucket, (namespace, name), body)

    # --- behind the API ----------------------------------------------------------------------------------------

    def _notice(self, bucket: str, change: Change) -> None:
        """Follow every change; what has to be written because of it is written after the answer has gone out."""
        if bucket == "services":
            self._services.allocations.observe(change)
        elif bucket == definitions.BUCKET:
            self._notice_definition(change)
        elif bucket == "namespaces" and change.type != DELETED and "deletionTimestamp" in change.entry.obj["metadata"]:
            self._later(lambda: self._purge_namespace(change.entry.key[1]))
        if change.type == DELETED:
            self._continue_deletions(bucket, change.entry.key[0])

    def _continue_deletions(self, bucket: str, namespace: str) -> None:
        """An object that is gone may be the last one that a namespace or a definition waited for."""
        definition = self.store.bucket(definitions.BUCKET).get(("", bucket))
        if definition is not None and definition.obj["metadata"].get("deletionTimestamp"):
            self._later(lambda: self._purge_definition(("", bucket)))
        if namespace:
            holder = self.store.bucket("namespaces").get(("", namespace))
            if holder is not None and holder.obj["metadata"].get("deletionTimestamp"):
                self._later(lambda: self._purge_namespace(namespace))

    def _later(self, work: Callable[[], None]) -> None:
        self._todo.append(work)
        try:
            asyncio.get_running_loop().call_soon(self.settle)
        except RuntimeError:
            # Objects are being seeded before there is a loop: who seeds settles.
            return

    def settle(self) -> None:
        """Do now what is to follow from the writes so far."""
        while self._todo:
            self._todo.popleft()()

    def _notice_definition(self, change: Change) -> None:
        obj, key = change.entry.obj, change.entry.key
        if change.type == DELETED:
            self.registry.remove(obj["spec"]["group"], obj["spec"]["names"]["plural"])
        elif obj["metadata"].get("deletionTimestamp"):
            self._later(lambda: self._purge_definition(key))
        elif change.prev is None:
            self._later(lambda: self._establish(key))
        elif obj["spec"] != change.prev.obj["spec"]:
            self._define(change.entry)

    def _establish(self, key: tuple[str, str]) -> None:
        entry = self.store.bucket(definitions.BUCKET).get(key)
        if entry is None:
            return
        obj = entry.copy()
        obj["status"] = definitions.established(obj)
        self._define(self.store.update(definitions.BUCKET, entry, obj))

    def _define(self, entry: Entry) -> None:
        obj = entry.obj
        self.registry.remove(obj["spec"]["group"], obj["spec"]["names"]["plural"])
        for stale in self.store.bucket(entry.key[1]).entries():
            stale.views = None
        for resource, strategy in definitions.resources_of(obj):
            self._custom[resource.bucket, resource.version] = strategy
            if resource.version in definitions.served(obj):
                self.registry.add(resource)

    def _purge_definition(self, key: tuple[str, str]) -> None:
        """Remove the objects of a definition, then the definition, unless finalizers hold one of them."""
        entry = self.store.bucket(definitions.BUCKET).get(key)
        if entry is None:
            return
        for each in tuple(self.store.bucket(key[1]).entries()):
            self._remove(key[1], each)
        if self.store.bucket(key[1]).count:
            return
        obj = entry.copy()
        obj["metadata"]["finalizers"] = [f for f in obj["metadata"]["finalizers"] if f != definitions.FINALIZER]
        if obj["metadata"]["finalizers"]:
            self.store.update(definitions.BUCKET, entry, obj)
        else:
            self.store.delete(definitions.BUCKET, entry)

    def _purge_namespace(self, name: str) -> None:
        entry = self.store.bucket("namespaces").get(("", name))
        if entry is None:
            return
        for bucket, each in self._content(name):
            self._remove(bucket, each)
        if not self._content(name) and not entry.obj["metadata"].get("finalizers"):
            self.store.delete("namespaces", entry)

    def _content(self, namespace: str) -> list[tuple[str, Entry]]:
        return (
            [(b.name, e) for b in tuple(self.store.buckets.values()) for e in tuple(b.entries(namespace))]
            if namespace
            else []
        )

    def _remove(self, bucket: str, entry: Entry) -> None:
        if not entry.obj["metadata"].get("finalizers"):
            self.store.delete(bucket, entry)
        elif not entry.obj["metadata"].get("deletionTimestamp"):
            obj = entry.copy()
            self.mark_deletion(bucket, obj, counts="generation" in obj["metadata"])
            self.store.update(bucket, entry, obj)


def namespace_body(name: str) -> JSON:
    return {
        "metadata": {"labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }


def _kubernetes_service() -> JSON:
    """The Service of the API server itself: the first address of the IPv4 range."""
    address = str(NETWORKS["IPv4"][1])
    return {
        "metadata": {"labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": 6443}],
            "clusterIP": address,
            "clusterIPs": [address],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    }
