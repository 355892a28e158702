"""From JSON to the domain's views: the only place that knows how the cluster's objects are written.

Only the fields that a decision needs are read, straight into typed structs, which costs a tenth of building
dictionaries. Nulls, absent fields, unknown fields and unknown enum values are all fine. What contradicts the type of a
field we need raises `Undecodable`; the caller skips the object and counts it, and the rest goes on (E1).

Texts that many objects repeat are interned, so that a cache of 10,000 Services stays small.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from purelb_sm.domain.names import PREFIX
from purelb_sm.domain.views import (
    Condition,
    EndpointSliceView,
    EndpointView,
    Ingress,
    LeaseView,
    NodeView,
    ObjectView,
    Port,
    ServiceKey,
    ServiceView,
)
from purelb_sm.errors import InvalidInput
from purelb_sm.kube import resources
from purelb_sm.kube.resources import Resource

SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"

Data = bytes | msgspec.Raw
ObjectKey = tuple[str, str]
"""(namespace, name)"""


class Undecodable(InvalidInput):
    """An object of the cluster that is not written as its kind says."""

    reason = "Undecodable"


class Versioned(Protocol):
    """What the cache needs to know of a view."""

    @property
    def uid(self) -> str: ...

    @property
    def resource_version(self) -> str: ...


K = TypeVar("K")
V = TypeVar("V", bound=Versioned)
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Identity:
    """As much of an object as can be read of any: even one that we cannot decode has been seen to exist."""

    namespace: str
    name: str
    uid: str
    resource_version: str


@dataclass(frozen=True, slots=True)
class Kind(Generic[K, V]):
    """How one kind is found, read and keyed. Cluster-wide kinds are keyed by name, others by (namespace, name).

    decode   raises Undecodable
    key      from namespace and name, for objects that cannot be read
    key_of   from the view
    """

    resource: Resource
    decode: Callable[[Data], V]
    key: Callable[[str, str], K]
    key_of: Callable[[V], K]


class _Struct(msgspec.Struct, rename="camel", gc=False):
    """Base: fields are spelled as Python does, and read as Kubernetes spells them. Structs live for one decoding."""


class _Meta(_Struct):
    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str | None] | None = None
    annotations: dict[str, str | None] | None = None


class _Bare(_Struct):
    """Identity only: everything else of the object is skipped unread."""

    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None


class _BareObject(_Struct):
    metadata: _Bare


class _Port(_Struct):
    port: int
    protocol: str | None = None
    name: str | None = None


class _Ingress(_Struct):
    ip: str | None = None
    hostname: str | None = None
    ip_mode: str | None = None


class _LoadBalancer(_Struct):
    ingress: list[_Ingress] | None = None


class _Condition(_Struct):
    type: str | None = None
    status: str | None = None
    reason: str | None = None
    message: str | None = None
    last_transition_time: str | None = None
    observed_generation: int | None = None


class _ServiceSpec(_Struct):
    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    load_balancer_class: str | None = None
    load_balancer_ip: str | None = msgspec.field(default=None, name="loadBalancerIP")
    ip_families: list[str] | None = None
    ip_family_policy: str | None = None
    external_traffic_policy: str | None = None
    ports: list[_Port] | None = None


class _ServiceStatus(_Struct):
    load_balancer: _LoadBalancer | None = None
    conditions: list[_Condition] | None = None


class _Service(_Struct):
    metadata: _Meta
    spec: _ServiceSpec | None = None
    status: _ServiceStatus | None = None


class _EndpointConditions(_Struct):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class _Endpoint(_Struct):
    node_name: str | None = None
    conditions: _EndpointConditions | None = None


class _EndpointSlice(_Struct):
    metadata: _Meta
    endpoints: list[_Endpoint] | None = None


class _NodeStatus(_Struct):
    conditions: list[_Condition] | None = None


class _Node(_Struct):
    metadata: _Meta
    status: _NodeStatus | None = None


class _LeaseSpec(_Struct):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Lease(_Struct):
    metadata: _Meta
    spec: _LeaseSpec | None = None


class _Custom(_Struct):
    metadata: _Meta
    api_version: str | None = None
    kind: str | None = None
    spec: Any = None
    status: Any = None


def _reader(struct: type[S]) -> Callable[[Data], S]:
    """A decoder of `struct` that raises Undecodable, whatever is wrong: syntax, types, encoding, depth."""
    decode = msgspec.json.Decoder(struct).decode

    def read(data: Data) -> S:
        try:
            return decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Undecodable(f"{struct.__name__.strip('_')}: {error}") from error

    return read


_read_service = _reader(_Service)
_read_endpoint_slice = _reader(_EndpointSlice)
_read_node = _reader(_Node)
_read_lease = _reader(_Lease)
_read_custom = _reader(_Custom)
_read_bare = _reader(_BareObject)


def decode_identity(data: Data) -> Identity:
    """Name, uid and resourceVersion of any object. Raises Undecodable if not even those can be read."""
    meta = _read_bare(data).metadata
    return Identity(meta.namespace or "", meta.name or "", meta.uid or "", meta.resource_version or "")


def decode_service(data: Data) -> ServiceView:
    """A v1 Service. Raises Undecodable."""
    read = _read_service(data)
    meta, spec, status = read.metadata, read.spec or _ServiceSpec(), read.status or _ServiceStatus()
    return ServiceView(
        key=ServiceKey(_intern(meta.namespace), _name(meta)),
        uid=meta.uid or "",
        resource_version=meta.resource_version or "",
        type=_intern(spec.type) or "ClusterIP",
        generation=meta.generation,
        load_balancer_class=_intern(spec.load_balancer_class) if spec.load_balancer_class is not None else None,
        load_balancer_ip=spec.load_balancer_ip or "",
        ip_families=tuple(_intern(f) for f in spec.ip_families or ()),
        ip_family_policy=_intern(spec.ip_family_policy) if spec.ip_family_policy is not None else None,
        cluster_ip=spec.cluster_ip or "",
        external_traffic_policy=_intern(spec.external_traffic_policy) or "Cluster",
        ports=tuple(Port(_intern(p.protocol) or "TCP", p.port, _intern(p.name)) for p in spec.ports or ()),
        annotations=_ours(meta.annotations),
        ingress=_ingress(status.load_balancer),
        conditions=_conditions(status.conditions),
        deleting=meta.deletion_timestamp is not None,
        created_at=_time(meta.creation_timestamp),
    )


def decode_endpoint_slice(data: Data) -> EndpointSliceView:
    """A discovery.k8s.io/v1 EndpointSlice. Raises Undecodable."""
    read = _read_endpoint_slice(data)
    meta = read.metadata
    namespace = _intern(meta.namespace)
    service = (meta.labels or {}).get(SERVICE_NAME_LABEL)
    return EndpointSliceView(
        namespace=namespace,
        name=_name(meta),
        resource_version=meta.resource_version or "",
        uid=meta.uid or "",
        service=ServiceKey(namespace, service) if service else None,
        endpoints=tuple(_endpoint(e) for e in read.endpoints or ()),
    )


def _endpoint(read: _Endpoint) -> EndpointView:
    """Conditions that are not given: ready and serving are true, terminating is false (EndpointSlice API)."""
    conditions = read.conditions or _EndpointConditions()
    ready = conditions.ready is not False
    return EndpointView(
        node=_intern(read.node_name),
        ready=ready,
        serving=ready if conditions.serving is None else conditions.serving,
        terminating=bool(conditions.terminating),
    )


def decode_node(data: Data) -> NodeView:
    """A v1 Node. One that says nothing of being ready is taken as ready. Raises Undecodable."""
    read = _read_node(data)
    meta = read.metadata
    status = read.status or _NodeStatus()
    ready = [c.status for c in status.conditions or () if c.type == "Ready"]
    return NodeView(
        name=_name(meta),
        uid=meta.uid or "",
        resource_version=meta.resource_version or "",
        labels=_texts(meta.labels),
        ready=ready[0] == "True" if ready else True,
    )


def decode_lease(data: Data) -> LeaseView:
    """A coordination.k8s.io/v1 Lease. Raises Undecodable."""
    read = _read_lease(data)
    meta, spec = read.metadata, read.spec or _LeaseSpec()
    return LeaseView(
        name=_name(meta),
        namespace=_intern(meta.namespace),
        uid=meta.uid or "",
        resource_version=meta.resource_version or "",
        holder=spec.holder_identity or "",
        duration_s=float(spec.lease_duration_seconds or 0),
        renew_time=spec.renew_time or "",
        acquire_time=spec.acquire_time or "",
        transitions=spec.lease_transitions or 0,
        annotations=_ours(meta.annotations),
    )


def _custom(resource: Resource) -> Callable[[Data], ObjectView]:
    def decode(data: Data) -> ObjectView:
        read = _read_custom(data)
        meta = read.metadata
        return ObjectView(
            kind=_intern(read.kind) or resource.kind,
            api_version=_intern(read.api_version) or resource.api_version,
            namespace=_intern(meta.namespace),
            name=_name(meta),
            uid=meta.uid or "",
            resource_version=meta.resource_version or "",
            generation=meta.generation or 0,
            created_at=_time(meta.creation_timestamp),
            spec=read.spec,
            status=read.status,
            labels=_texts(meta.labels),
            annotations=_ours(meta.annotations),
        )

    return decode


def _by_name(_namespace: str, name: str) -> str:
    return name


def _by_both(namespace: str, name: str) -> ObjectKey:
    return (namespace, name)


def _custom_kind(resource: Resource) -> Kind[ObjectKey, ObjectView]:
    return Kind(resource, _custom(resource), _by_both, lambda view: (view.namespace, view.name))


SERVICE: Final[Kind[ServiceKey, ServiceView]] = Kind(
    resources.SERVICES, decode_service, ServiceKey, lambda view: view.key
)
ENDPOINT_SLICE: Final[Kind[ObjectKey, EndpointSliceView]] = Kind(
    resources.ENDPOINT_SLICES, decode_endpoint_slice, _by_both, lambda view: (view.namespace, view.name)
)
NODE: Final[Kind[str, NodeView]] = Kind(resources.NODES, decode_node, _by_name, lambda view: view.name)
LEASE: Final[Kind[ObjectKey, LeaseView]] = Kind(
    resources.LEASES, decode_lease, _by_both, lambda view: (view.namespace, view.name)
)
SERVICE_GROUP: Final = _custom_kind(resources.SERVICE_GROUPS)
LB_NODE_AGENT: Final = _custom_kind(resources.LB_NODE_AGENTS)
NODE_ANNOUNCEMENT: Final = _custom_kind(resources.NODE_ANNOUNCEMENTS)


def _name(meta: _Meta) -> str:
    if not meta.name:
        raise Undecodable("an object without a name")
    return meta.name


def _intern(text: str | None) -> str:
    return sys.intern(text) if text else ""


def _texts(read: dict[str, str | None] | None) -> dict[str, str]:
    return {_intern(key): _intern(value) for key, value in (read or {}).items()}


def _ours(read: dict[str, str | None] | None) -> dict[str, str]:
    """Only what is under purelb.io/: a Service may carry a megabyte of others' annotations."""
    if not read:
        return {}
    return {_intern(k): _intern(v) for k, v in read.items() if k.startswith(PREFIX)}


def _ingress(read: _LoadBalancer | None) -> tuple[Ingress, ...]:
    if read is None or not read.ingress:
        return ()
    return tuple(Ingress(i.ip or "", i.hostname or "", _intern(i.ip_mode)) for i in read.ingress)


def _conditions(read: Iterable[_Condition] | None) -> tuple[Condition, ...]:
    return tuple(
        Condition(
            type=_intern(c.type),
            status=_intern(c.status),
            reason=_intern(c.reason),
            message=c.message or "",
            last_transition_time=c.last_transition_time or "",
            observed_generation=c.observed_generation,
        )
        for c in read or ()
    )


def _time(text: str | None) -> datetime | None:
    """An RFC 3339 time as aware UTC; None for what is none. It decides nothing but an order, so it never refuses."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
