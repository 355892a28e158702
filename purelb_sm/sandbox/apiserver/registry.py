"""Which kinds are served, under which paths and verbs.

The built-in table follows what discovery of a real server (v1.36) says; kinds of custom resources come and go with
their CRDs. Nothing here knows objects or HTTP.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from purelb_sm.sandbox.apiserver.builtin import builtin
from purelb_sm.sandbox.apiserver.objects import group_version
from purelb_sm.sandbox.apiserver.schema import ANY, Schema

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
# The order in which a real server names the verbs of custom resources.
CUSTOM_VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")
PART_VERBS = ("get", "patch", "update")


@dataclass(frozen=True)
class Subresource:
    """A part of an object with its own path, such as `status`."""

    name: str
    kind: str
    verbs: tuple[str, ...] = PART_VERBS
    group: str = ""
    version: str = ""


@dataclass(frozen=True, eq=False)
class Resource:
    """One kind in one version, as served under one path."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    singular: str = ""
    list_kind: str = ""
    verbs: tuple[str, ...] = ALL_VERBS
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[Subresource, ...] = ()
    schema: Schema = ANY
    custom: bool = False
    columns: tuple[dict[str, object], ...] = ()  # additionalPrinterColumns
    storage_version: str = ""
    uniform: bool = True  # every served version shows the same fields, so stored bytes need no conversion
    selectable: tuple[str, ...] = ()
    deprecation: str = ""  # the warning to give with each answer

    @cached_property
    def bucket(self) -> str:
        """Where its objects are kept: the same for all versions of the kind."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @cached_property
    def api_version(self) -> str:
        return group_version(self.group, self.version)

    @cached_property
    def head(self) -> bytes:
        """What a stored object lacks to be complete; its first brace follows as a comma or an end."""
        if self.custom:
            return f'{{"apiVersion":"{self.api_version}","kind":"{self.kind}"'.encode()
        return f'{{"kind":"{self.kind}","apiVersion":"{self.api_version}"'.encode()

    @cached_property
    def storage_hash(self) -> str:
        name = f"{self.group}/{self.storage_version or self.version}/{self.kind}"
        return base64.b64encode(hashlib.sha256(name.encode()).digest()[:8]).decode()

    @cached_property
    def has_status(self) -> bool:
        return any(s.name == "status" for s in self.subresources)

    @property
    def stored(self) -> bool:
        return "list" in self.verbs

    def subresource(self, name: str) -> Subresource | None:
        return next((s for s in self.subresources if s.name == name), None)


@dataclass
class Registry:
    """Everything that is served; `revision` grows with each change so that caches of discovery know."""

    resources: dict[tuple[str, str, str], Resource] = field(default_factory=dict)
    revision: int = 0

    def add(self, resource: Resource) -> None:
        self.resources[resource.group, resource.version, resource.plural] = resource
        self.revision += 1

    def remove(self, group: str, plural: str) -> None:
        for key in [k for k in self.resources if k[0] == group and k[2] == plural]:
            del self.resources[key]
        self.revision += 1

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self.resources.get((group, version, plural))

    def by_kind(self, group: str, kind: str) -> Resource | None:
        return next((r for r in self.resources.values() if r.group == group and r.kind == kind), None)

    def versions(self, group: str) -> list[str]:
        """Served versions of a group, the preferred one first."""
        found = dict.fromkeys(r.version for r in self.resources.values() if r.group == group)
        found.update(dict.fromkeys(EMPTY_GROUPS.get(group, ())))
        return sorted(found, key=version_order)

    def groups(self) -> list[str]:
        named = [*GROUP_ORDER, *sorted({r.group for r in self.resources.values()} - {"", *GROUP_ORDER})]
        return [g for g in named if self.versions(g)]

    def of(self, group: str, version: str) -> Iterator[Resource]:
        """The resources of a group version, by name."""
        found = [r for r in self.resources.values() if (r.group, r.version) == (group, version)]
        return iter(sorted(found, key=lambda r: r.plural))


def version_order(version: str) -> tuple[int, int, int, str]:
    """Sorts v2 before v1 before v1beta1 before others: the priority rule of API versions."""
    rest = version.removeprefix("v")
    for rank, stage in enumerate(("", "beta", "alpha")):
        major, found, minor = rest.partition(stage) if stage else (rest, "", "0")
        if major.isdigit() and minor.isdigit() and (found or not stage):
            return rank, -int(major), -int(minor), version
    return 3, 0, 0, version


# The order in which a real server lists its groups.
GROUP_ORDER = (
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
)
# Groups and versions that exist but have no kinds here, since nothing in a sandbox needs them.
EMPTY_GROUPS = {
    "events.k8s.io": ("v1",),
    "certificates.k8s.io": ("v1",),
    "resource.k8s.io": ("v1",),
    "flowcontrol.apiserver.k8s.io": ("v1",),
    "autoscaling": ("v1",),
}

_PROXY = ("create", "delete", "get", "patch", "update")


def _made(
    group: str,
    version: str,
    plural: str,
    kind: str,
    *short: str,
    namespaced: bool = True,
    verbs: tuple[str, ...] = ALL_VERBS,
    categories: tuple[str, ...] = (),
    parts: tuple[Subresource, ...] = (),
    status: bool = False,
    typed: bool = True,
) -> Resource:
    if status:
        parts = (*parts, Subresource("status", kind))
    package = group.split(".")[0] if group else "core"
    schema = builtin(f"{package}/{version}.{kind}") if typed else ANY
    singular = "endpoints" if plural == "endpoints" else kind.lower()
    return Resource(
        group, version, plural, kind, namespaced, singular, f"{kind}List", verbs, short, categories, parts, schema
    )


def _core() -> Iterator[Resource]:
    def core(plural: str, kind: str, *short: str, cluster: bool = False, **more: object) -> Resource:
        return _made("", "v1", plural, kind, *short, namespaced=not cluster, **more)  # type: ignore[arg-type]

    scale = Subresource("scale", "Scale", group="autoscaling", version="v1")
    yield core("bindings", "Binding", verbs=("create",))
    yield core("componentstatuses", "ComponentStatus", "cs", cluster=True, verbs=("get", "list"), typed=False)
    yield core("configmaps", "ConfigMap", "cm")
    yield core("endpoints", "Endpoints", "ep")
    yield core("events", "Event", "ev")
    yield core("limitranges", "LimitRange", "limits")
    without_collection = tuple(v for v in ALL_VERBS if v != "deletecollection")
    finalize = Subresource("finalize", "Namespace", ("update",))
    yield core("namespaces", "Namespace", "ns", cluster=True, verbs=without_collection, parts=(finalize,), status=True)
    node_proxy = Subresource("proxy", "NodeProxyOptions", _PROXY)
    yield core("nodes", "Node", "no", cluster=True, parts=(node_proxy,), status=True)
    yield core("persistentvolumeclaims", "PersistentVolumeClaim", "pvc", status=True)
    yield core("persistentvolumes", "PersistentVolume", "pv", cluster=True, status=True)
    yield core("pods", "Pod", "po", categories=("all",), parts=_POD_PARTS, status=True)
    yield core("podtemplates", "PodTemplate")
    yield core(
        "replicationcontrollers", "ReplicationController", "rc", categories=("all",), parts=(scale,), status=True
    )
    yield core("resourcequotas", "ResourceQuota", "quota", status=True)
    yield core("secrets", "Secret")
    token = Subresource("token", "TokenRequest", ("create",), "authentication.k8s.io", "v1")
    yield core("serviceaccounts", "ServiceAccount", "sa", parts=(token,))
    service_proxy = Subresource("proxy", "ServiceProxyOptions", _PROXY)
    yield core("services", "Service", "svc", categories=("all",), parts=(service_proxy,), status=True)


_STREAM = ("create", "get")
_POD_PARTS = (
    Subresource("attach", "PodAttachOptions", _STREAM),
    Subresource("binding", "Binding", ("create",)),
    Subresource("ephemeralcontainers", "Pod"),
    Subresource("eviction", "Eviction", ("create",), "policy", "v1"),
    Subresource("exec", "PodExecOptions", _STREAM),
    Subresource("log", "Pod", ("get",)),
    Subresource("portforward", "PodPortForwardOptions", _STREAM),
    Subresource("proxy", "PodProxyOptions", _PROXY),
    Subresource("resize", "Pod"),
)


def _groups() -> Iterator[Resource]:
    everything = ("all",)
    for plural, kind, *short in (
        ("deployments", "Deployment", "deploy"),
        ("replicasets", "ReplicaSet", "rs"),
        ("statefulsets", "StatefulSet", "sts"),
        ("daemonsets", "DaemonSet", "ds"),
    ):
        yield _made("apps", "v1", plural, kind, *short, categories=everything, status=True)
    yield _made("apps", "v1", "controllerrevisions", "ControllerRevision")
    yield _made("batch", "v1", "jobs", "Job", categories=everything, status=True)
    yield _made("batch", "v1", "cronjobs", "CronJob", "cj", categories=everything, status=True)
    yield _made("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", "hpa", status=True)
    yield _made("coordination.k8s.io", "v1", "leases", "Lease")
    yield _made("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
    networking = "networking.k8s.io"
    yield _made(networking, "v1", "networkpolicies", "NetworkPolicy", "netpol")
    yield _made(networking, "v1", "ingresses", "Ingress", "ing", status=True)
    yield _made(networking, "v1", "ingressclasses", "IngressClass", namespaced=False)
    yield _made("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", "pdb", status=True)
    rbac = "rbac.authorization.k8s.io"
    yield _made(rbac, "v1", "roles", "Role")
    yield _made(rbac, "v1", "rolebindings", "RoleBinding")
    yield _made(rbac, "v1", "clusterroles", "ClusterRole", namespaced=False)
    yield _made(rbac, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False)
    yield _made("storage.k8s.io", "v1", "storageclasses", "StorageClass", "sc", namespaced=False)
    yield _made("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", "pc", namespaced=False)
    yield _made("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", namespaced=False)
    admission = "admissionregistration.k8s.io"
    yield _made(admission, "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", namespaced=False)
    yield _made(admission, "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", namespaced=False)
    crd = "customresourcedefinitions"
    names = ("crd", "crds")
    extensions = "apiextensions.k8s.io"
    yield _made(extensions, "v1", crd, "CustomResourceDefinition", *names, namespaced=False, status=True)
    yield _made("apiregistration.k8s.io", "v1", "apiservices", "APIService", namespaced=False, status=True, typed=False)
    for plural, kind in (
        ("selfsubjectaccessreviews", "SelfSubjectAccessReview"),
        ("selfsubjectrulesreviews", "SelfSubjectRulesReview"),
        ("subjectaccessreviews", "SubjectAccessReview"),
    ):
        yield _made("authorization.k8s.io", "v1", plural, kind, namespaced=False, verbs=("create",), typed=False)
    for plural, kind in (("tokenreviews", "TokenReview"), ("selfsubjectreviews", "SelfSubjectReview")):
        yield _made("authentication.k8s.io", "v1", plural, kind, namespaced=False, verbs=("create",), typed=False)


def builtin_registry() -> Registry:
    registry = Registry()
    for resource in (*_core(), *_groups()):
        registry.add(resource)
    return registry
