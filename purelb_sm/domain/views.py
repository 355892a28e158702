"""What we look at of the cluster's objects: frozen, small, with every field present.

A cache holds tens of thousands of these, so they carry only what a decision needs. `kube` makes them from JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple


class ServiceKey(NamedTuple):
    """A Service by namespace and name: what the work queue holds, and the claim under which an address is held."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Port(NamedTuple):
    """One port of a Service: `protocol` as TCP, UDP or SCTP."""

    protocol: str
    port: int
    name: str = ""


PortKey = tuple[str, int]
"""A port as it can be taken on an address: (protocol, number)."""


class Ingress(NamedTuple):
    """One entry of `status.loadBalancer.ingress`, as it stands there."""

    ip: str = ""
    hostname: str = ""
    ip_mode: str = ""


class Condition(NamedTuple):
    """One entry of `status.conditions` (meta/v1 Condition). `last_transition_time` is kept as written."""

    type: str
    status: str
    reason: str
    message: str
    last_transition_time: str
    observed_generation: int | None = None


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A Service as far as we decide by it. `annotations` holds those under `purelb.io/` only."""

    key: ServiceKey
    uid: str
    resource_version: str
    type: str = "ClusterIP"
    generation: int | None = None
    load_balancer_class: str | None = None
    load_balancer_ip: str = ""
    ip_families: tuple[str, ...] = ()
    ip_family_policy: str | None = None
    cluster_ip: str = ""
    external_traffic_policy: str = "Cluster"
    ports: tuple[Port, ...] = ()
    annotations: dict[str, str] = field(default_factory=dict)
    ingress: tuple[Ingress, ...] = ()
    conditions: tuple[Condition, ...] = ()
    deleting: bool = False
    created_at: datetime | None = None

    def annotation(self, name: str) -> str | None:
        return self.annotations.get(name)


@dataclass(frozen=True, slots=True)
class LeaseView:
    """A coordination.k8s.io Lease. `duration_s` is `spec.leaseDurationSeconds`; times are as written, never compared
    with our clock (liveness is judged by when we saw `resource_version` change)."""

    name: str
    namespace: str
    uid: str
    resource_version: str
    holder: str = ""
    duration_s: float = 0.0
    renew_time: str = ""
    acquire_time: str = ""
    transitions: int = 0
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeView:
    """A Node: its labels and annotations decide whether and how it announces. `annotations` are ours only."""

    name: str
    uid: str
    resource_version: str
    labels: dict[str, str] = field(default_factory=dict)
    ready: bool = True
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EndpointView:
    """One endpoint of an EndpointSlice: where it is, and whether traffic may go there."""

    node: str
    ready: bool
    serving: bool
    terminating: bool


@dataclass(frozen=True, slots=True)
class EndpointSliceView:
    """An EndpointSlice with the Service it belongs to (label `kubernetes.io/service-name`)."""

    namespace: str
    name: str
    resource_version: str
    service: ServiceKey | None
    endpoints: tuple[EndpointView, ...] = ()
    uid: str = ""


@dataclass(frozen=True, slots=True)
class ObjectView:
    """An object of one of our own kinds, with its spec as parsed JSON: the domain reads it into its own types."""

    kind: str
    api_version: str
    namespace: str
    name: str
    uid: str
    resource_version: str
    generation: int
    created_at: datetime | None
    spec: object
    status: object = None
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
