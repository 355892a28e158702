"""The cluster's objects as JSON has them: only the fields that are looked at, each of which may be absent or null.

Read by msgspec straight from the bytes; `objects` makes the domain's views of them. A port's number is the one field
that must be there: a Service port without it means nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Struct(msgspec.Struct, rename="camel", gc=False):
    """Base: fields are spelled as Python does, and read as Kubernetes spells them. Structs live for one decoding."""


class Meta(Struct):
    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str | None] | None = None
    annotations: dict[str, str | None] | None = None


class Bare(Struct):
    """Identity only: everything else of the object is skipped unread."""

    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None


class BareObject(Struct):
    metadata: Bare


class Port(Struct):
    port: int
    protocol: str | None = None
    name: str | None = None


class Ingress(Struct):
    ip: str | None = None
    hostname: str | None = None
    ip_mode: str | None = None


class LoadBalancer(Struct):
    ingress: list[Ingress] | None = None


class Condition(Struct):
    type: str | None = None
    status: str | None = None
    reason: str | None = None
    message: str | None = None
    last_transition_time: str | None = None
    observed_generation: int | None = None


class ServiceSpec(Struct):
    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    load_balancer_class: str | None = None
    load_balancer_ip: str | None = msgspec.field(default=None, name="loadBalancerIP")
    ip_families: list[str] | None = None
    ip_family_policy: str | None = None
    external_traffic_policy: str | None = None
    ports: list[Port] | None = None


class ServiceStatus(Struct):
    load_balancer: LoadBalancer | None = None
    conditions: list[Condition] | None = None


class Service(Struct):
    metadata: Meta
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class EndpointConditions(Struct):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Endpoint(Struct):
    node_name: str | None = None
    conditions: EndpointConditions | None = None


class EndpointSlice(Struct):
    metadata: Meta
    endpoints: list[Endpoint] | None = None


class NodeStatus(Struct):
    conditions: list[Condition] | None = None


class Node(Struct):
    metadata: Meta
    status: NodeStatus | None = None


class LeaseSpec(Struct):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(Struct):
    metadata: Meta
    spec: LeaseSpec | None = None


class Custom(Struct):
    metadata: Meta
    api_version: str | None = None
    kind: str | None = None
    spec: Any = None
    status: Any = None
