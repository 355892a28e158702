"""Short ways to make domain values in tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

from purelb_sm.domain import names
from purelb_sm.domain.book import Booked, BookedAllocation, BookedService
from purelb_sm.domain.choose import World
from purelb_sm.domain.freespace import FreeSpace
from purelb_sm.domain.groups import Group, parse_group
from purelb_sm.domain.quota import Quota
from purelb_sm.domain.states import AllocationState, ServiceState
from purelb_sm.domain.views import Ingress, ObjectView, Port, ServiceKey, ServiceView

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
KEY = ServiceKey("test", "echo")
LOCAL_SPEC = {"local": {"v4pools": [{"subnet": "172.30.250.0/24", "pool": "172.30.250.53-172.30.250.60"}]}}


def group_view(name: str, spec: Any, *, version: str = "v2", created: datetime = NOW) -> ObjectView:
    return ObjectView(
        "ServiceGroup", f"purelb.io/{version}", "purelb-system", name, f"uid-{name}", "1", 1, created, spec
    )


def group(name: str = "default", spec: Any = None, *, version: str = "v2", created: datetime = NOW) -> Group:
    return parse_group(group_view(name, LOCAL_SPEC if spec is None else spec, version=version, created=created))


def pools(*ranges: str, kind: str = "local", **more: Any) -> dict[str, Any]:
    """A v2 spec with these pools, each in the smallest usual subnet: /24 or /64."""
    v4 = [{"subnet": _subnet(r), "pool": r} for r in ranges if ":" not in r]
    v6 = [{"subnet": _subnet(r), "pool": r} for r in ranges if ":" in r]
    return {kind: {"v4pools": v4, "v6pools": v6, **more}}


def _subnet(range_: str) -> str:
    first = range_.split("-")[0].split("/")[0].strip()
    if ":" in first:
        return str(ip_address(int(ip_address(first)) >> 64 << 64)) + "/64"
    return first.rsplit(".", 1)[0] + ".0/24"


def world(*groups: Group, **more: Any) -> World:
    known = {g.name: g for g in groups}
    more.setdefault("quota", Quota.of(known))
    return World(known, FreeSpace(known), **more)


def service(**changes: Any) -> ServiceView:
    base = ServiceView(
        key=KEY,
        uid="uid-1",
        resource_version="10",
        type="LoadBalancer",
        ip_families=("IPv4",),
        ip_family_policy="SingleStack",
        cluster_ip="10.96.0.10",
        ports=(Port("TCP", 80),),
    )
    return replace(base, **changes)


def showing(view: ServiceView, *addresses: str, group: str = "default", **annotations: str) -> ServiceView:
    """The Service as it looks when these addresses are published under our brand."""
    ours = {names.ALLOCATED_BY: names.BRAND, names.ALLOCATED_FROM: group, names.POOL_TYPE: "local"}
    return replace(
        view,
        ingress=tuple(Ingress(a, "", "VIP") for a in addresses),
        annotations={**view.annotations, **ours, **annotations},
    )


def allocation(
    address: str, state: AllocationState = AllocationState.HELD, *, number: int = 1, group: str = "default", **more: Any
) -> BookedAllocation:
    return BookedAllocation(number, ip_address(address), group, more.pop("claim", str(KEY)), state, NOW, **more)


def booked_service(
    state: ServiceState = ServiceState.ALLOCATED, *, uid: str = "uid-1", reason: str = "", message: str = ""
) -> BookedService:
    return BookedService(uid, KEY, state, reason, message, "default", NOW)


def holding(*addresses: str, uid: str = "uid-1", state: ServiceState = ServiceState.ALLOCATED) -> Booked:
    held = tuple(allocation(a, number=i + 1) for i, a in enumerate(addresses))
    return Booked(service=booked_service(state, uid=uid), held=held)
