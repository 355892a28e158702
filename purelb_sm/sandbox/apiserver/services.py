"""Services: what the server fills in, refuses and hands out (cluster addresses, node ports).

Dual stack with IPv4 first, as the recordings show. Which numbers are in use is derived from the stored Services
(`Allocations.observe`), never booked separately, so nothing can leak.
Source: the Service page of the Kubernetes API reference and KEP-563 (dual stack).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, ClassVar

from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.service_checks import IPV4, IPV6, check_service, check_service_update
from purelb_sm.sandbox.apiserver.status import (
    FieldError,
    StatusError,
    invalid_value,
    not_supported,
)
from purelb_sm.sandbox.apiserver.storage import Change
from purelb_sm.sandbox.apiserver.strategy import Strategy, keep_status

# A real cluster has 30000-32767 by default; here ten thousand LoadBalancer Services are to fit.
NODE_PORTS = range(30000, 62768)
NETWORKS = {IPV4: ipaddress.ip_network("10.96.0.0/12"), IPV6: ipaddress.ip_network("fd00:10:96::/112")}

_EXTERNAL = ("NodePort", "LoadBalancer")
# Fields that only some types of Service have, and the types that have them.
_TYPED_FIELDS = {
    "externalTrafficPolicy": _EXTERNAL,
    "allocateLoadBalancerNodePorts": ("LoadBalancer",),
    "loadBalancerClass": ("LoadBalancer",),
}


class Allocations:
    """Addresses and node ports in use by the stored Services, and the search for free ones."""

    def __init__(self) -> None:
        self._used: dict[Any, int] = {}
        self._next_port = NODE_PORTS.start
        self._next_address = dict.fromkeys(NETWORKS, 10)

    def observe(self, change: Change) -> None:
        """Follow the store: count what the new version uses, uncount what the former used."""
        if change.type == "MODIFIED" and change.prev and change.prev.obj["spec"] == change.entry.obj["spec"]:
            return
        if change.prev is not None:
            self._count(change.prev.obj, -1)
        if change.type != "DELETED":
            self._count(change.entry.obj, +1)

    def load(self, obj: JSON) -> None:
        self._count(obj, +1)

    def in_use(self, value: Any) -> bool:
        return value in self._used

    def port(self, taken: set[int]) -> int:
        """A free node port besides those `taken` in the same Service; 500 when there is none, as in a real cluster."""
        for _ in NODE_PORTS:
            port = self._next_port
            self._next_port = port + 1 if port + 1 in NODE_PORTS else NODE_PORTS.start
            if port not in self._used and port not in taken:
                return port
        raise StatusError(500, "InternalError", "failed to allocate a nodePort: range is full")

    def address(self, family: str) -> str:
        network = NETWORKS[family]
        for _ in range(network.num_addresses):
            offset = self._next_address[family]
            self._next_address[family] = offset + 1 if offset + 2 < network.num_addresses else 10
            address = str(network[offset])
            if address not in self._used:
                return address
        raise StatusError(500, "InternalError", "failed to allocate a serviceIP: range is full")

    def _count(self, obj: JSON, step: int) -> None:
        for value in _held(obj.get("spec") or {}):
            count = self._used.get(value, 0) + step
            if count > 0:
                self._used[value] = count
            else:
                self._used.pop(value, None)


def _held(spec: JSON) -> Iterable[Any]:
    """What a Service uses up, each once: two ports of one Service may share a node port over TCP and UDP."""
    ports = {p["nodePort"] for p in spec.get("ports") or () if p.get("nodePort")}
    if spec.get("healthCheckNodePort"):
        ports.add(spec["healthCheckNodePort"])
    yield from ports
    yield from (ip for ip in spec.get("clusterIPs") or () if ip != "None")


class Services(Strategy):
    names: ClassVar[str] = "label"
    returns_deleted: ClassVar[bool] = True
    create_on_update: ClassVar[bool] = True
    selectable: ClassVar[dict[str, str]] = {
        "metadata.name": "",
        "metadata.namespace": "",
        "spec.clusterIP": "",
        "spec.type": "ClusterIP",
    }

    def __init__(self) -> None:
        self.allocations = Allocations()

    def defaults(self, obj: JSON) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("sessionAffinity", "None")
        if spec["sessionAffinity"] == "ClientIP":
            affinity = spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {})
            affinity.setdefault("timeoutSeconds", 10800)
        for port in spec.get("ports") or ():
            port.setdefault("protocol", "TCP")
            if port.get("targetPort") in (None, 0, "") and "port" in port:
                port["targetPort"] = port["port"]
        if spec["type"] in _EXTERNAL:
            spec.setdefault("externalTrafficPolicy", "Cluster")
        if spec["type"] != "ExternalName":
            spec.setdefault("internalTrafficPolicy", "Cluster")
        if spec["type"] == "LoadBalancer":
            spec.setdefault("allocateLoadBalancerNodePorts", True)
        status = obj.setdefault("status", {})
        balancer = status.setdefault("loadBalancer", {})
        for ingress in balancer.get("ingress") or ():
            if ingress.get("ip"):
                ingress.setdefault("ipMode", "VIP")

    def prepare_create(self, obj: JSON) -> None:
        obj["status"] = {"loadBalancer": {}}
        _align_cluster_ips(obj["spec"], None)

    def prepare_update(self, obj: JSON, old: JSON) -> None:
        keep_status(obj, old)
        spec, before = obj["spec"], old["spec"]
        _keep_allocated(spec, before)
        _align_cluster_ips(spec, before)
        _trim_downgrade(spec, before)
        _drop_by_type(spec, before)
        if spec["type"] != "LoadBalancer" and before["type"] == "LoadBalancer":
            obj["status"] = {**obj["status"], "loadBalancer": {}}

    def validate(self, obj: JSON, old: JSON | None) -> list[FieldError]:
        errors = check_service(obj["spec"])
        if old is not None:
            errors += check_service_update(obj["spec"], old["spec"])
        if not errors:
            errors = self._complete(obj["spec"], None if old is None else old["spec"])
        return errors

    def validate_status(self, obj: JSON, old: JSON) -> list[FieldError]:
        errors = []
        for i, ingress in enumerate(obj["status"]["loadBalancer"].get("ingress") or ()):
            path = f"status.loadBalancer.ingress[{i}]"
            if ingress.get("ip"):
                if not _is_address(ingress["ip"]):
                    why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
                    errors.append(invalid_value(f"{path}.ip", ingress["ip"], why))
                elif ingress.get("ipMode") not in ("VIP", "Proxy"):
                    errors.append(not_supported(f"{path}.ipMode", ingress["ipMode"], ("Proxy", "VIP")))
        if obj["status"]["loadBalancer"].get("ingress") and obj["spec"]["type"] != "LoadBalancer":
            text = "Forbidden: may only be used when `spec.type` is 'LoadBalancer'"
            errors.append(FieldError("status.loadBalancer.ingress", "FieldValueForbidden", text))
        return errors

    def _complete(self, spec: JSON, before: JSON | None) -> list[FieldError]:
        """Families, addresses and ports that are still missing; what was asked for must be free."""
        if spec["type"] == "ExternalName":
            return []
        _choose_families(spec)
        errors = self._addresses(spec, set(_held(before)) if before else set())
        return errors or self._ports(spec, set(_held(before)) if before else set())

    def _addresses(self, spec: JSON, own: set[Any]) -> list[FieldError]:
        asked = spec.get("clusterIPs") or []
        if asked == ["None"]:
            spec["clusterIP"] = "None"
            return []
        for ip in asked:
            network = NETWORKS[IPV6 if ":" in ip else IPV4]
            if ip not in own and ipaddress.ip_address(ip) not in network:
                why = f"failed to allocate IP {ip}: the provided IP is not in the valid range {network}"
            elif ip not in own and self.allocations.in_use(ip):
                why = f"failed to allocate IP {ip}: provided IP is already allocated"
            else:
                continue
            return [invalid_value("spec.clusterIPs", f"[{ip}]", why)]
        families = spec["ipFamilies"]
        spec["clusterIPs"] = [*asked, *(self.allocations.address(f) for f in families[len(asked) :])]
        spec["clusterIP"] = spec["clusterIPs"][0]
        return []

    def _ports(self, spec: JSON, own: set[Any]) -> list[FieldError]:
        wants = spec["type"] == "NodePort" or (
            spec["type"] == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts", True)
        )
        taken = {p["nodePort"] for p in spec.get("ports") or () if p.get("nodePort")}
        for i, port in enumerate(spec.get("ports") or ()):
            asked = port.get("nodePort")
            path = f"spec.ports[{i}].nodePort"
            if asked and asked not in own:
                if asked not in NODE_PORTS:
                    span = f"{NODE_PORTS.start}-{NODE_PORTS.stop - 1}"
                    why = f"provided port is not in the valid range. The range of valid ports is {span}"
                    return [invalid_value(path, asked, why)]
                if self.allocations.in_use(asked):
                    return [invalid_value(path, asked, "provided port is already allocated")]
            elif wants and not asked:
                port["nodePort"] = self.allocations.port(taken)
                taken.add(port["nodePort"])
        if spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
            if not spec.get("healthCheckNodePort"):
                spec["healthCheckNodePort"] = self.allocations.port(taken)
        else:
            spec.pop("healthCheckNodePort", None)
        return []


def _is_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text) is not None and "%" not in text
    except ValueError:
        return False


def _choose_families(spec: JSON) -> None:
    """`ipFamilyPolicy` and `ipFamilies` as they come out after what the user said about either."""
    given = spec.get("clusterIPs") or []
    headless = given == ["None"]
    families = list(spec.get("ipFamilies") or ())
    if not families and given and not headless:
        families = [IPV6 if ":" in ip else IPV4 for ip in given]
    if headless and not spec.get("selector") and "ipFamilyPolicy" not in spec and not families:
        # Whoever writes the endpoints of a headless Service without selector may use either family.
        spec["ipFamilyPolicy"] = "RequireDualStack"
    policy = spec.setdefault("ipFamilyPolicy", "RequireDualStack" if len(families) == 2 else "SingleStack")
    if not families:
        families = [IPV4]
    if policy != "SingleStack" and len(families) == 1:
        families.append(IPV6 if families[0] == IPV4 else IPV4)
    spec["ipFamilies"] = families


def _keep_allocated(spec: JSON, before: JSON) -> None:
    """What the server handed out and the writer left out stays as it was."""
    if spec["type"] != "ExternalName" and before["type"] != "ExternalName":
        if not spec.get("clusterIP") and not spec.get("clusterIPs"):
            spec["clusterIP"] = before.get("clusterIP", "")
        if not spec.get("clusterIPs") and spec.get("clusterIP") == before.get("clusterIP"):
            spec["clusterIPs"] = list(before.get("clusterIPs") or ())
        for key in ("ipFamilies", "ipFamilyPolicy"):
            if not spec.get(key) and before.get(key):
                spec[key] = before[key]
    if spec["type"] in _EXTERNAL and before["type"] in _EXTERNAL:
        known = {(p.get("protocol"), p.get("port")): p.get("nodePort") for p in before.get("ports") or ()}
        for port in spec.get("ports") or ():
            held = known.get((port.get("protocol"), port.get("port")))
            if not port.get("nodePort") and held and spec.get("allocateLoadBalancerNodePorts", True):
                port["nodePort"] = held
    if "healthCheckNodePort" not in spec and before.get("healthCheckNodePort"):
        spec["healthCheckNodePort"] = before["healthCheckNodePort"]


def _align_cluster_ips(spec: JSON, before: JSON | None) -> None:
    """`clusterIP` is the first of `clusterIPs`, whichever of them the writer changed."""
    first, every = spec.get("clusterIP") or "", spec.get("clusterIPs") or []
    if before is None:
        if first and not every:
            spec["clusterIPs"] = [first]
    elif first != before.get("clusterIP") and every == before.get("clusterIPs"):
        spec["clusterIPs"] = [first, *every[1:]] if first else []
    elif every != before.get("clusterIPs") and first == before.get("clusterIP") and every:
        spec["clusterIP"] = every[0]


def _trim_downgrade(spec: JSON, before: JSON) -> None:
    """Dual to single stack: the second family goes, unless the writer said which one."""
    if spec.get("ipFamilyPolicy") != "SingleStack" or before.get("ipFamilyPolicy") in (None, "SingleStack"):
        return
    for key in ("clusterIPs", "ipFamilies"):
        if len(spec.get(key) or ()) > 1 and spec[key] == before.get(key):
            spec[key] = spec[key][:1]
    if len(spec.get("ipFamilies") or ()) == 1:
        spec["clusterIPs"] = (spec.get("clusterIPs") or [])[:1]


def _drop_by_type(spec: JSON, before: JSON) -> None:
    """After a change of type, what the new type does not have goes, if the writer left it as it was."""
    kind = spec["type"]
    if kind == before["type"]:
        return
    for key, kinds in _TYPED_FIELDS.items():
        if kind not in kinds and spec.get(key) == before.get(key):
            spec.pop(key, None)
    if kind not in _EXTERNAL:
        held = {p.get("nodePort") for p in before.get("ports") or ()}
        for port in spec.get("ports") or ():
            if port.get("nodePort") in held:
                port.pop("nodePort", None)
    if kind == "ExternalName":
        for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"):
            if spec.get(key) == before.get(key):
                spec.pop(key, None)
