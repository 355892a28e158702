"""The strategies of the built-in kinds besides Service and CustomResourceDefinition."""

from __future__ import annotations

import base64
import ipaddress
from typing import ClassVar

from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.status import (
    FieldError,
    StatusError,
    forbidden,
    invalid_value,
    not_supported,
    required,
)
from purelb_sm.sandbox.apiserver.strategy import Strategy, check_labels, keep_status


class WithStatus(Strategy):
    """A kind whose status is written through its subresource only."""

    generation: ClassVar[bool] = True

    def prepare_create(self, obj: JSON) -> None:
        obj.pop("status", None)

    def prepare_update(self, obj: JSON, old: JSON) -> None:
        keep_status(obj, old)


class Generic(Strategy):
    """A kind with a generation and without a status."""

    generation: ClassVar[bool] = True


class Nodes(Strategy):
    names: ClassVar[str] = "subdomain"
    selectable: ClassVar[dict[str, str]] = {"metadata.name": "", "spec.unschedulable": "false"}

    def prepare_create(self, obj: JSON) -> None:
        # An admission plugin keeps Pods off a new Node until it says that it is ready.
        taint = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
        obj.pop("status", None)
        taints = obj.setdefault("spec", {}).setdefault("taints", [])
        if not any(t.get("key") == taint["key"] and t.get("effect") == taint["effect"] for t in taints):
            taints.append(taint)

    def prepare_update(self, obj: JSON, old: JSON) -> None:
        keep_status(obj, old)


class Leases(Strategy):
    unconditional_update: ClassVar[bool] = False
    create_on_update: ClassVar[bool] = True

    def validate(self, obj: JSON, old: JSON | None) -> list[FieldError]:
        errors = []
        spec = obj.get("spec") or {}
        duration, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
        if duration is not None and duration <= 0:
            errors.append(invalid_value("spec.leaseDurationSeconds", duration, "must be greater than 0"))
        if transitions is not None and transitions < 0:
            errors.append(invalid_value("spec.leaseTransitions", transitions, "must be greater than or equal to 0"))
        return errors


class Events(Strategy):
    create_on_update: ClassVar[bool] = True
    names: ClassVar[str] = "path"
    selectable: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("metadata.name", "metadata.namespace", "reason", "source", "type", "reportingComponent"), ""),
        **{
            f"involvedObject.{key}": ""
            for key in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
        },
    }

    def validate(self, obj: JSON, old: JSON | None) -> list[FieldError]:
        meta, about = obj["metadata"], obj.get("involvedObject") or {}
        namespace = about.get("namespace", "")
        # Events about objects without a namespace are kept in `default`, older writers use their own namespace.
        if namespace and namespace != meta.get("namespace"):
            why = "does not match event.namespace"
            return [invalid_value("involvedObject.namespace", namespace, why)]
        if not namespace and meta.get("namespace") not in ("default", "kube-system"):
            return [invalid_value("involvedObject.namespace", namespace, "does not match event.namespace")]
        return self._new_style(obj) if obj.get("eventTime") is not None else []

    def _new_style(self, obj: JSON) -> list[FieldError]:
        """Events with `eventTime` were meant for events.k8s.io and carry more."""
        errors = [
            required(k) for k in ("reportingComponent", "reportingInstance", "action", "reason") if not obj.get(k)
        ]
        if obj.get("type") not in ("Normal", "Warning"):
            errors.append(invalid_value("type", obj.get("type", ""), "has invalid value"))
        return errors


class EndpointSlices(Strategy):
    generation: ClassVar[bool] = True

    def defaults(self, obj: JSON) -> None:
        for port in obj.get("ports") or ():
            port.setdefault("name", "")
            port.setdefault("protocol", "TCP")

    def validate(self, obj: JSON, old: JSON | None) -> list[FieldError]:
        kind = obj.get("addressType")
        if kind not in ("IPv4", "IPv6", "FQDN"):
            error = not_supported("addressType", kind, ("FQDN", "IPv4", "IPv6")) if kind else required("addressType")
            return [error]
        if old is not None and old.get("addressType") != kind:
            return [invalid_value("addressType", kind, "field is immutable")]
        errors = []
        for i, endpoint in enumerate(obj.get("endpoints") or ()):
            path = f"endpoints[{i}].addresses"
            addresses = endpoint.get("addresses") or []
            if not addresses:
                errors.append(required(path, "must contain at least 1 address"))
            for address in addresses:
                if kind != "FQDN" and _family(address) != kind:
                    article = "an IPv4" if kind == "IPv4" else "an IPv6"
                    errors.append(invalid_value(path, address, f"must be {article} address"))
        return errors


def _family(address: str) -> str:
    try:
        return f"IPv{ipaddress.ip_address(address).version}"
    except ValueError:
        return ""


# Namespaces that a real server refuses to delete.
_IMMORTAL = ("default", "kube-system", "kube-public")


class Namespaces(Strategy):
    names: ClassVar[str] = "label"
    returns_deleted: ClassVar[bool] = True
    selectable: ClassVar[dict[str, str]] = {"metadata.name": "", "status.phase": ""}

    def defaults(self, obj: JSON) -> None:
        obj.setdefault("status", {}).setdefault("phase", "Active")
        name = obj["metadata"].get("name")
        if name:
            obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = name

    def prepare_create(self, obj: JSON) -> None:
        obj["spec"] = {"finalizers": ["kubernetes"]}
        obj["status"] = {"phase": "Active"}

    def prepare_update(self, obj: JSON, old: JSON) -> None:
        obj["spec"] = old["spec"]
        keep_status(obj, old)

    def validate_delete(self, obj: JSON) -> None:
        name = obj["metadata"]["name"]
        if name in _IMMORTAL:
            text = f'namespaces "{name}" is forbidden: this namespace may not be deleted'
            raise StatusError(403, "Forbidden", text, {"name": name, "kind": "namespaces"})


class Secrets(Strategy):
    selectable: ClassVar[dict[str, str]] = {"metadata.name": "", "metadata.namespace": "", "type": ""}

    def defaults(self, obj: JSON) -> None:
        obj.setdefault("type", "Opaque")
        for key, value in (obj.pop("stringData", None) or {}).items():
            obj.setdefault("data", {})[key] = base64.b64encode(value.encode()).decode()

    def validate(self, obj: JSON, old: JSON | None) -> list[FieldError]:
        if old is not None and obj["type"] != old["type"]:
            return [invalid_value("type", obj["type"], "field is immutable")]
        return _check_immutable(obj, old)


class ConfigMaps(Strategy):
    def validate(self, obj: JSON, old: JSON | None) -> list[FieldError]:
        return _check_immutable(obj, old)


def _check_immutable(obj: JSON, old: JSON | None) -> list[FieldError]:
    if old is None or not old.get("immutable"):
        return []
    changed = [k for k in ("data", "binaryData", "immutable") if obj.get(k) != old.get(k)]
    return [forbidden(key, "field is immutable when `immutable` is set") for key in changed[:1]]


class Roles(Strategy):
    names: ClassVar[str] = "path"

    def validate(self, obj: JSON, old: JSON | None) -> list[FieldError]:
        errors = []
        for i, rule in enumerate(obj.get("rules") or ()):
            if not rule.get("verbs"):
                errors.append(required(f"rules[{i}].verbs", "verbs must contain at least one value"))
            if rule.get("nonResourceURLs"):
                continue
            if not rule.get("apiGroups"):
                errors.append(required(f"rules[{i}].apiGroups", "resource rules must supply at least one api group"))
            if not rule.get("resources"):
                errors.append(required(f"rules[{i}].resources", "resource rules must supply at least one resource"))
        return errors


class Bindings(Strategy):
    """RoleBinding and ClusterRoleBinding."""

    names: ClassVar[str] = "path"

    def defaults(self, obj: JSON) -> None:
        reference = obj.setdefault("roleRef", {})
        reference.setdefault("apiGroup", "rbac.authorization.k8s.io")
        for subject in obj.get("subjects") or ():
            if subject.get("kind") in ("User", "Group"):
                subject.setdefault("apiGroup", "rbac.authorization.k8s.io")

    def validate(self, obj: JSON, old: JSON | None) -> list[FieldError]:
        errors = []
        reference = obj["roleRef"]
        if reference.get("kind") not in ("Role", "ClusterRole"):
            errors.append(not_supported("roleRef.kind", reference.get("kind"), ("ClusterRole", "Role")))
        if not reference.get("name"):
            errors.append(required("roleRef.name"))
        if old is not None and reference != old.get("roleRef"):
            errors.append(invalid_value("roleRef", reference.get("name"), "cannot change roleRef"))
        for i, subject in enumerate(obj.get("subjects") or ()):
            if subject.get("kind") not in ("ServiceAccount", "User", "Group"):
                kinds = ("Group", "ServiceAccount", "User")
                errors.append(not_supported(f"subjects[{i}].kind", subject.get("kind"), kinds))
            if not subject.get("name"):
                errors.append(required(f"subjects[{i}].name"))
            if subject.get("kind") == "ServiceAccount" and not subject.get("namespace"):
                errors.append(required(f"subjects[{i}].namespace"))
        return errors


class Disruptions(WithStatus):
    """PodDisruptionBudget."""

    def validate(self, obj: JSON, old: JSON | None) -> list[FieldError]:
        spec = obj.get("spec") or {}
        if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
            why = "minAvailable and maxUnavailable cannot be both set"
            return [invalid_value("spec", "{}", why)]
        return check_labels((spec.get("selector") or {}).get("matchLabels") or {}, "spec.selector.matchLabels")
