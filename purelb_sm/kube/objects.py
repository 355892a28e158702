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
from typing import Final, Generic, Protocol, TypeVar

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
from purelb_sm.kube import raw, resources
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


def _reader(struct: type[S]) -> Callable[[Data], S]:
    """A decoder of `struct` that raises Undecodable, whatever is wrong: syntax, types, encoding, depth."""
    decode = msgspec.json.Decoder(struct).decode

    def read(data: Data) -> S:
        try:
            return decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Undecodable(f"{struct.__name__}: {error}") from error

    return read


_read_service = _reader(raw.Service)
_read_endpoint_slice = _reader(raw.EndpointSlice)
_read_node = _reader(raw.Node)
_read_lease = _reader(raw.Lease)
_read_custom = _reader(raw.Custom)
_read_bare = _reader(raw.BareObject)


def decode_identity(data: Data) -> Identity:
    """Name, uid and resourceVersion of any object. Raises Undecodable if not even those can be read."""
    meta = _read_bare(data).metadata
    return Identity(meta.namespace or "", meta.name or "", meta.uid or "", meta.resource_version or "")


def decode_service(data: Data) -> ServiceView:
    """A v1 Service. Raises Undecodable."""
    read = _read_service(data)
    meta, spec, status = read.metadata, read.spec or raw.ServiceSpec(), read.status or raw.ServiceStatus()
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


def _endpoint(read: raw.Endpoint) -> EndpointView:
    """Conditions that are not given: ready is true, serving what ready is, terminating false (EndpointSlice API)."""
    conditions = read.conditions or raw.EndpointConditions()
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
    status = read.status or raw.NodeStatus()
    ready = [c.status for c in status.conditions or () if c.type == "Ready"]
    return NodeView(
        name=_name(meta),
        uid=meta.uid or "",
        resource_version=meta.resource_version or "",
        labels=_texts(meta.labels),
        ready=ready[0] == "True" if ready else True,
        annotations=_ours(meta.annotations),
    )


def decode_lease(data: Data) -> LeaseView:
    """A coordination.k8s.io/v1 Lease. Raises Undecodable."""
    read = _read_lease(data)
    meta, spec = read.metadata, read.spec or raw.LeaseSpec()
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


def _name(meta: raw.Meta) -> str:
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


def _ingress(read: raw.LoadBalancer | None) -> tuple[Ingress, ...]:
    if read is None or not read.ingress:
        return ()
    return tuple(Ingress(i.ip or "", i.hostname or "", _intern(i.ip_mode)) for i in read.ingress)


def _conditions(read: Iterable[raw.Condition] | None) -> tuple[Condition, ...]:
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
