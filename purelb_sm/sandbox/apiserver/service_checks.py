"""What a Service may look like: the checks of its spec, apart from what is handed out.

Texts follow a real server's, so that a person who meets one in the sandbox finds it in a search; the tests compare
paths and reasons.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.status import (
    FieldError,
    duplicate,
    forbidden,
    invalid_value,
    not_supported,
    required,
)
from purelb_sm.sandbox.apiserver.strategy import LABEL, check_labels, is_qualified

IPV4, IPV6 = "IPv4", "IPv6"
TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_POLICIES = ("PreferDualStack", "RequireDualStack", "SingleStack")
_PROTOCOLS = ("SCTP", "TCP", "UDP")
_RANGE = "must be between 1 and 65535, inclusive"
_PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")


def check_service(spec: JSON) -> list[FieldError]:
    """The checks that hold at create and at update, in the order of a real server."""
    errors = _check_ports(spec)
    errors += check_labels(spec.get("selector") or {}, "spec.selector")
    if spec.get("sessionAffinity") not in ("ClientIP", "None"):
        errors.append(not_supported("spec.sessionAffinity", spec.get("sessionAffinity"), ("ClientIP", "None")))
    errors += _check_families(spec)
    errors += _check_cluster_ips(spec)
    for i, ip in enumerate(spec.get("externalIPs") or ()):
        if not _address(ip):
            errors.append(invalid_value(f"spec.externalIPs[{i}]", ip, "must be a valid IP address"))
    if spec["type"] not in TYPES:
        errors.append(not_supported("spec.type", spec["type"], TYPES))
        return errors
    if spec["type"] == "ExternalName" and not spec.get("externalName"):
        errors.append(required("spec.externalName"))
    errors += _check_policies(spec)
    errors += _check_balancer(spec)
    return errors


def check_service_update(spec: JSON, before: JSON) -> list[FieldError]:
    """What a stored Service may not change."""
    errors = []
    if spec["type"] == before["type"] == "LoadBalancer":
        if spec.get("loadBalancerClass") != before.get("loadBalancerClass"):
            value = spec.get("loadBalancerClass")
            errors.append(invalid_value("spec.loadBalancerClass", value, "may not change once set"))
        held, wanted = before.get("healthCheckNodePort"), spec.get("healthCheckNodePort")
        if held and wanted != held and spec.get("externalTrafficPolicy") == "Local":
            errors.append(invalid_value("spec.healthCheckNodePort", wanted, "field is immutable"))
    if "ExternalName" not in (spec["type"], before["type"]) and before.get("clusterIPs"):
        first = (spec.get("clusterIPs") or [""])[0]
        if first != before["clusterIPs"][0]:
            errors.append(invalid_value("spec.clusterIPs[0]", first, "may not change once set"))
        families, held = spec.get("ipFamilies") or [], before.get("ipFamilies") or []
        if families and held and families[0] != held[0]:
            errors.append(invalid_value("spec.ipFamilies[0]", families[0], "may not change once set"))
    return errors


def _check_ports(spec: JSON) -> list[FieldError]:
    ports = spec.get("ports") or []
    headless = spec.get("clusterIP") == "None"
    if not ports:
        return [] if headless or spec["type"] == "ExternalName" else [required("spec.ports")]
    errors: list[FieldError] = []
    names: set[str] = set()
    pairs: set[tuple[Any, Any]] = set()
    for i, port in enumerate(ports):
        path = f"spec.ports[{i}]"
        errors += _check_port(port, path, named=len(ports) > 1)
        name = port.get("name")
        if name in names:
            errors.append(duplicate(f"{path}.name", name))
        if name:
            names.add(name)
        pair = (port.get("protocol"), port.get("port"))
        if pair in pairs:
            errors.append(duplicate(path, port.get("port")))
        pairs.add(pair)
    return errors


def _check_port(port: JSON, path: str, *, named: bool) -> list[FieldError]:
    errors: list[FieldError] = []
    name, number, target = port.get("name") or "", port.get("port", 0), port.get("targetPort")
    if named and not name:
        errors.append(required(f"{path}.name"))
    elif name and not (LABEL.fullmatch(name) and len(name) <= 63):
        why = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-'"
        errors.append(invalid_value(f"{path}.name", name, why))
    if not 1 <= number <= 65535:
        errors.append(invalid_value(f"{path}.port", number, _RANGE))
    if port.get("protocol") not in _PROTOCOLS:
        errors.append(not_supported(f"{path}.protocol", port.get("protocol"), _PROTOCOLS))
    if isinstance(target, int) and not 1 <= target <= 65535:
        errors.append(invalid_value(f"{path}.targetPort", target, _RANGE))
    elif isinstance(target, str) and not _PORT_NAME.fullmatch(target):
        why = "must contain at least one letter (a-z), only lower case alphanumeric characters and '-', and be short"
        errors.append(invalid_value(f"{path}.targetPort", target, why))
    return errors


def _check_families(spec: JSON) -> list[FieldError]:
    errors = []
    families, policy = spec.get("ipFamilies") or [], spec.get("ipFamilyPolicy")
    if spec["type"] == "ExternalName":
        if families:
            errors.append(forbidden("spec.ipFamilies", "may not be set for ExternalName services"))
        return errors
    for i, family in enumerate(families):
        if family not in (IPV4, IPV6):
            errors.append(not_supported(f"spec.ipFamilies[{i}]", family, (IPV4, IPV6)))
        elif family in families[:i]:
            errors.append(duplicate(f"spec.ipFamilies[{i}]", family))
    if policy is not None and policy not in _POLICIES:
        errors.append(not_supported("spec.ipFamilyPolicy", policy, _POLICIES))
    elif policy == "SingleStack" and len(families) > 1:
        why = "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"
        errors.append(invalid_value("spec.ipFamilyPolicy", policy, why))
    return errors


def _check_cluster_ips(spec: JSON) -> list[FieldError]:
    every = spec.get("clusterIPs") or []
    if spec["type"] == "ExternalName":
        return [forbidden("spec.clusterIPs", "may not be set for ExternalName services")] if every else []
    if "None" in every:
        if len(every) > 1:
            return [invalid_value("spec.clusterIPs", "None", "'None' must be the first and only value")]
        if spec["type"] in ("NodePort", "LoadBalancer"):
            return [
                invalid_value("spec.clusterIPs[0]", "None", f"may not be set to 'None' for {spec['type']} services")
            ]
        return []
    errors = []
    families = spec.get("ipFamilies") or []
    for i, ip in enumerate(every):
        path = f"spec.clusterIPs[{i}]"
        if not _address(ip):
            errors.append(invalid_value(path, ip, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))
        elif i < len(families) and families[i] != (IPV6 if ":" in ip else IPV4):
            errors.append(invalid_value(path, ip, f"expected an {families[i]} value as indicated by `ipFamilies[{i}]`"))
    if every and not spec.get("clusterIP"):
        errors.append(required("spec.clusterIP", "must be set when `clusterIPs` is specified"))
    elif every and spec["clusterIP"] != every[0]:
        errors.append(invalid_value("spec.clusterIPs", every[0], "first value must match `clusterIP`"))
    return errors


def _check_policies(spec: JSON) -> list[FieldError]:
    errors = []
    external = spec["type"] in ("NodePort", "LoadBalancer")
    traffic = spec.get("externalTrafficPolicy")
    if traffic is not None and not external and not spec.get("externalIPs"):
        errors.append(
            invalid_value("spec.externalTrafficPolicy", traffic, "may only be set for externally-accessible services")
        )
    elif traffic is not None and traffic not in ("Cluster", "Local"):
        errors.append(not_supported("spec.externalTrafficPolicy", traffic, ("Cluster", "Local")))
    inner = spec.get("internalTrafficPolicy")
    if inner is not None and inner not in ("Cluster", "Local"):
        errors.append(not_supported("spec.internalTrafficPolicy", inner, ("Cluster", "Local")))
    if not external and any(p.get("nodePort") for p in spec.get("ports") or ()):
        at = next(i for i, p in enumerate(spec["ports"]) if p.get("nodePort"))
        errors.append(forbidden(f"spec.ports[{at}].nodePort", "may not be used when `type` is 'ClusterIP'"))
    health = spec.get("healthCheckNodePort")
    if health and traffic is not None and spec["type"] != "LoadBalancer":
        why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        errors.append(invalid_value("spec.healthCheckNodePort", health, why))
    return errors


def _check_balancer(spec: JSON) -> list[FieldError]:
    errors = []
    balancer = spec["type"] == "LoadBalancer"
    only = "may only be used when `type` is 'LoadBalancer'"
    if spec.get("allocateLoadBalancerNodePorts") is not None and not balancer:
        errors.append(forbidden("spec.allocateLoadBalancerNodePorts", only))
    name = spec.get("loadBalancerClass")
    if name is not None and not balancer:
        errors.append(forbidden("spec.loadBalancerClass", only))
    elif name is not None and not is_qualified(name):
        errors.append(invalid_value("spec.loadBalancerClass", name, "must be a qualified name"))
    ranges = spec.get("loadBalancerSourceRanges") or ()
    if ranges and not balancer:
        errors.append(forbidden("spec.LoadBalancerSourceRanges", only))
    for i, text in enumerate(ranges):
        if not _network(text.strip()):
            why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
            errors.append(invalid_value(f"spec.loadBalancerSourceRanges[{i}]", text, why))
    return errors


def _address(text: Any) -> bool:
    try:
        return isinstance(text, str) and "%" not in text and ipaddress.ip_address(text) is not None
    except ValueError:
        return False


def _network(text: Any) -> bool:
    try:
        return isinstance(text, str) and "/" in text and ipaddress.ip_network(text, strict=False) is not None
    except ValueError:
        return False
