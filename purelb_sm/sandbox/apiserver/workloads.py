"""Pods and what makes them, stored only: nothing runs them, but their objects are checked and completed.

The defaults are those that a reader of the stored object meets (`kubectl get -o yaml`, `describe`); there is no
controller behind a Deployment or DaemonSet, so its status stays as it was written.
"""

from __future__ import annotations

from typing import Any, ClassVar

from purelb_sm.sandbox.apiserver.kinds import WithStatus
from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.status import FieldError, duplicate, invalid_value, not_supported, required
from purelb_sm.sandbox.apiserver.strategy import check_labels, check_name

_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_PROBE = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
_POD = {
    "restartPolicy": "Always",
    "terminationGracePeriodSeconds": 30,
    "dnsPolicy": "ClusterFirst",
    "schedulerName": "default-scheduler",
}


def default_pod(spec: JSON) -> None:
    for key, value in _POD.items():
        spec.setdefault(key, value)
    spec.setdefault("securityContext", {})
    if spec.get("serviceAccountName"):
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
    for container in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
        _default_container(container, host_network=bool(spec.get("hostNetwork")))
    for volume in spec.get("volumes") or ():
        _default_volume(volume)


def _default_container(container: JSON, *, host_network: bool) -> None:
    image = container.get("image") or ""
    tag = image.rpartition("/")[2].partition(":")[2]
    latest = "@" not in image and tag in ("", "latest")
    container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
    container.setdefault("resources", {})
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    for port in container.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if host_network and "containerPort" in port:
            port.setdefault("hostPort", port["containerPort"])
    for name in _PROBES:
        probe = container.get(name)
        if probe is not None:
            for key, value in _PROBE.items():
                probe.setdefault(key, value)
            if "httpGet" in probe:
                probe["httpGet"].setdefault("scheme", "HTTP")
    for variable in container.get("env") or ():
        source = (variable.get("valueFrom") or {}).get("fieldRef")
        if source is not None:
            source.setdefault("apiVersion", "v1")


def _default_volume(volume: JSON) -> None:
    for key in ("configMap", "secret", "downwardAPI", "projected"):
        if isinstance(volume.get(key), dict):
            volume[key].setdefault("defaultMode", 0o644)
    if isinstance(volume.get("hostPath"), dict):
        volume["hostPath"].setdefault("type", "")


def check_pod(spec: JSON, path: str) -> list[FieldError]:
    """Names, images, mounts: what a typing mistake in a manifest hits."""
    errors: list[FieldError] = []
    containers = spec.get("containers") or []
    if not containers:
        errors.append(required(f"{path}.containers"))
    volumes = {v.get("name") for v in spec.get("volumes") or ()}
    seen: set[Any] = set()
    for field in ("containers", "initContainers"):
        for i, container in enumerate(spec.get(field) or ()):
            at = f"{path}.{field}[{i}]"
            errors += _check_container(container, at, volumes)
            if container.get("name") in seen:
                errors.append(duplicate(f"{at}.name", container["name"]))
            seen.add(container.get("name"))
    if spec.get("restartPolicy") not in ("Always", "OnFailure", "Never"):
        kinds = ("Always", "OnFailure", "Never")
        errors.append(not_supported(f"{path}.restartPolicy", spec.get("restartPolicy"), kinds))
    return errors


def _check_container(container: JSON, at: str, volumes: set[Any]) -> list[FieldError]:
    errors = []
    name = container.get("name")
    errors += check_name("label", name, f"{at}.name") if name else [required(f"{at}.name")]
    if not container.get("image"):
        errors.append(required(f"{at}.image"))
    for j, mount in enumerate(container.get("volumeMounts") or ()):
        if mount.get("name") not in volumes:
            text = f"Not found: {mount.get('name')!r}".replace("'", '"')
            errors.append(FieldError(f"{at}.volumeMounts[{j}].name", "FieldValueNotFound", text))
    for j, port in enumerate(container.get("ports") or ()):
        if not 1 <= port.get("containerPort", 0) <= 65535:
            why = "must be between 1 and 65535, inclusive"
            errors.append(invalid_value(f"{at}.ports[{j}].containerPort", port.get("containerPort", 0), why))
    return errors


class Pods(WithStatus):
    returns_deleted: ClassVar[bool] = True
    selectable: ClassVar[dict[str, str]] = dict.fromkeys(
        (
            "metadata.name",
            "metadata.namespace",
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ),
        "",
    )

    def defaults(self, obj: JSON) -> None:
        default_pod(obj.setdefault("spec", {}))

    def prepare_create(self, obj: JSON) -> None:
        obj["status"] = {"phase": "Pending", "qosClass": "BestEffort"}

    def validate(self, obj: JSON, old: JSON | None) -> list[FieldError]:
        return check_pod(obj["spec"], "spec")


class Workload(WithStatus):
    """Deployment, DaemonSet, ReplicaSet, StatefulSet: a Pod template, a selector, an update strategy."""

    def __init__(self, spec: JSON, strategy: tuple[str, JSON] | None = None) -> None:
        self._spec = spec
        self._strategy = strategy

    def defaults(self, obj: JSON) -> None:
        spec = obj.setdefault("spec", {})
        for key, value in self._spec.items():
            spec.setdefault(key, value)
        if self._strategy is not None:
            key, rolling = self._strategy
            chosen = spec.setdefault(key, {})
            if chosen.setdefault("type", "RollingUpdate") == "RollingUpdate" and rolling:
                chosen["rollingUpdate"] = {**rolling, **(chosen.get("rollingUpdate") or {})}
        default_pod(spec.setdefault("template", {}).setdefault("spec", {}))

    def validate(self, obj: JSON, old: JSON | None) -> list[FieldError]:
        spec = obj["spec"]
        errors = []
        wanted = (spec.get("selector") or {}).get("matchLabels") or {}
        labels = (spec["template"].get("metadata") or {}).get("labels") or {}
        if not spec.get("selector"):
            errors.append(required("spec.selector"))
        errors += check_labels(wanted, "spec.selector.matchLabels")
        if any(labels.get(k) != v for k, v in wanted.items()):
            why = "`selector` does not match template `labels`"
            errors.append(invalid_value("spec.template.metadata.labels", str(labels), why))
        if old is not None and spec.get("selector") != old["spec"].get("selector"):
            errors.append(invalid_value("spec.selector", str(wanted), "field is immutable"))
        if spec.get("replicas", 0) < 0:
            errors.append(invalid_value("spec.replicas", spec["replicas"], "must be greater than or equal to 0"))
        return errors + check_pod(spec["template"]["spec"], "spec.template.spec")


def workloads() -> dict[str, Workload]:
    """One strategy for each kind, by the name of its bucket."""
    return {
        "deployments.apps": Workload(
            {"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600},
            ("strategy", {"maxUnavailable": "25%", "maxSurge": "25%"}),
        ),
        "daemonsets.apps": Workload(
            {"revisionHistoryLimit": 10},
            ("updateStrategy", {"maxUnavailable": 1, "maxSurge": 0}),
        ),
        "replicasets.apps": Workload({"replicas": 1}),
        "statefulsets.apps": Workload(
            {"replicas": 1, "revisionHistoryLimit": 10, "podManagementPolicy": "OrderedReady"},
            ("updateStrategy", {"partition": 0}),
        ),
    }
