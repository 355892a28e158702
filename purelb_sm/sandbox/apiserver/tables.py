"""The Table form of objects, which `kubectl get` prints.

Columns and cells of the built-in kinds follow a real server; custom resources have the columns of their CRD.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Sequence
from typing import Any

from purelb_sm.sandbox.apiserver.cluster import Cluster
from purelb_sm.sandbox.apiserver.jsonpaths import find
from purelb_sm.sandbox.apiserver.objects import JSON, dig
from purelb_sm.sandbox.apiserver.registry import Resource
from purelb_sm.sandbox.apiserver.storage import Entry

Cells = Callable[[JSON], Sequence[Any]]


def column(name: str, *, wide: bool = False, kind: str = "string", form: str = "", about: str = "") -> JSON:
    priority = 1 if wide else 0
    return {"name": name, "type": kind, "format": form, "description": about or name, "priority": priority}


_NAME = column("Name", form="name", about="Name must be unique within a namespace.")


def age(timestamp: Any, now: dt.datetime | None = None) -> str:
    """How long ago a time was, as kubectl prints durations (`5s`, `3m20s`, `4h`, `326d`)."""
    if not isinstance(timestamp, str) or not timestamp:
        return "<unknown>"
    then = dt.datetime.fromisoformat(timestamp.replace("Z", "+00:00"))
    seconds = int(((now or dt.datetime.now(dt.UTC)) - then).total_seconds())
    if seconds < -1:
        return "<invalid>"
    return human(max(0, seconds))


def human(seconds: int) -> str:
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 365 * 2:
        return f"{days}d"
    if days < 365 * 8:
        return f"{days // 365}y{days % 365}d" if days % 365 else f"{days // 365}y"
    return f"{days // 365}y"


def _age(obj: JSON) -> str:
    return age(obj["metadata"].get("creationTimestamp"))


def _name(obj: JSON) -> str:
    return str(obj["metadata"]["name"])


def _selector(labels: JSON | None) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted((labels or {}).items())) or "<none>"


def _service_external(obj: JSON) -> str:
    spec = obj["spec"]
    if spec["type"] == "ExternalName":
        return str(spec.get("externalName", ""))
    shown = list(spec.get("externalIPs") or ())
    if spec["type"] == "LoadBalancer":
        ingress = dig(obj, ("status", "loadBalancer", "ingress")) or ()
        held = [str(i.get("ip") or i.get("hostname")) for i in ingress]
        return ",".join([*held, *shown]) or "<pending>"
    return ",".join(shown) or "<none>"


def _service_port(port: JSON) -> str:
    node = f":{port['nodePort']}" if port.get("nodePort") else ""
    return f"{port['port']}{node}/{port.get('protocol', 'TCP')}"


def _service(obj: JSON) -> Sequence[Any]:
    spec = obj["spec"]
    ports = ",".join(_service_port(p) for p in spec.get("ports") or ()) or "<none>"
    address = spec.get("clusterIP") or "<none>"
    return _name(obj), spec["type"], address, _service_external(obj), ports, _age(obj), _selector(spec.get("selector"))


def _event(obj: JSON) -> Sequence[Any]:
    about = obj["involvedObject"]
    first = obj.get("firstTimestamp") or obj.get("eventTime")
    last = dig(obj, ("series", "lastObservedTime")) or obj.get("lastTimestamp") or first
    source = obj.get("source") or {}
    where = ", ".join(s for s in (source.get("component") or obj.get("reportingComponent"), source.get("host")) if s)
    count = dig(obj, ("series", "count")) or obj.get("count") or 1
    kind = f"{about.get('kind', '').lower()}/{about.get('name', '')}"
    message = str(obj.get("message", "")).strip()
    return (
        age(last),
        obj.get("type", ""),
        obj.get("reason", ""),
        kind,
        about.get("fieldPath", ""),
        where,
        message,
        age(first),
        count,
        _name(obj),
    )


def _node(obj: JSON) -> Sequence[Any]:
    status, meta = obj["status"], obj["metadata"]
    ready = next((c for c in status.get("conditions") or () if c["type"] == "Ready"), None)
    state = "Unknown" if ready is None else "Ready" if ready["status"] == "True" else "NotReady"
    if obj["spec"].get("unschedulable"):
        state += ",SchedulingDisabled"
    prefix = "node-role.kubernetes.io/"
    roles = sorted(k.removeprefix(prefix) for k in meta.get("labels") or () if k.startswith(prefix))
    held = {a["type"]: a["address"] for a in reversed(status.get("addresses") or ())}
    info = status["nodeInfo"]
    return (
        _name(obj),
        state,
        ",".join(roles) or "<none>",
        _age(obj),
        info["kubeletVersion"],
        held.get("InternalIP", "<none>"),
        held.get("ExternalIP", "<none>"),
        info["osImage"] or "<unknown>",
        info["kernelVersion"] or "<unknown>",
        info["containerRuntimeVersion"] or "<unknown>",
    )


def _endpoint_slice(obj: JSON) -> Sequence[Any]:
    ports = ",".join(str(p.get("port")) for p in obj.get("ports") or ()) or "<unset>"
    every = [a for e in obj.get("endpoints") or () for a in e.get("addresses") or ()]
    shown = ",".join(every[:3]) + (f" + {len(every) - 3} more..." if len(every) > 3 else "")
    return _name(obj), obj.get("addressType", ""), ports, shown or "<unset>", _age(obj)


def _lease(obj: JSON) -> Sequence[Any]:
    return _name(obj), obj["spec"].get("holderIdentity", ""), _age(obj)


def _namespace(obj: JSON) -> Sequence[Any]:
    return _name(obj), dig(obj, ("status", "phase")) or "", _age(obj)


def _images(obj: JSON) -> tuple[str, str]:
    containers = dig(obj, ("spec", "template", "spec", "containers")) or ()
    return ",".join(c["name"] for c in containers), ",".join(c.get("image", "") for c in containers)


def _deployment(obj: JSON) -> Sequence[Any]:
    status = obj.get("status") or {}
    ready = f"{status.get('readyReplicas', 0)}/{obj['spec'].get('replicas', 0)}"
    wanted = _selector(dig(obj, ("spec", "selector", "matchLabels")))
    counts = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    return _name(obj), ready, *counts, _age(obj), *_images(obj), wanted


def _daemon_set(obj: JSON) -> Sequence[Any]:
    status = obj.get("status") or {}
    keys = ("desiredNumberScheduled", "currentNumberScheduled", "numberReady", "updatedNumberScheduled")
    counts = [status.get(k, 0) for k in (*keys, "numberAvailable")]
    nodes = _selector(dig(obj, ("spec", "template", "spec", "nodeSelector")))
    wanted = _selector(dig(obj, ("spec", "selector", "matchLabels")))
    return _name(obj), *counts, nodes, _age(obj), *_images(obj), wanted


def _pod(obj: JSON) -> Sequence[Any]:
    spec, status = obj["spec"], obj.get("status") or {}
    states = status.get("containerStatuses") or ()
    ready = sum(bool(s.get("ready")) for s in states)
    restarts = sum(s.get("restartCount", 0) for s in states)
    phase = "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", "")
    where = status.get("podIP") or "<none>", spec.get("nodeName") or "<none>"
    nominated = status.get("nominatedNodeName") or "<none>"
    total = len(spec.get("containers") or ())
    return _name(obj), f"{ready}/{total}", phase, restarts, _age(obj), *where, nominated, "<none>"


def _definition(obj: JSON) -> Sequence[Any]:
    return _name(obj), obj["metadata"].get("creationTimestamp", "")


def _config_map(obj: JSON) -> Sequence[Any]:
    return _name(obj), len(obj.get("data") or {}) + len(obj.get("binaryData") or {}), _age(obj)


def _secret(obj: JSON) -> Sequence[Any]:
    return _name(obj), obj.get("type", ""), len(obj.get("data") or {}), _age(obj)


def _service_account(obj: JSON) -> Sequence[Any]:
    return _name(obj), len(obj.get("secrets") or ()), _age(obj)


def _role(obj: JSON) -> Sequence[Any]:
    return _name(obj), obj["metadata"].get("creationTimestamp", "")


def _binding(obj: JSON) -> Sequence[Any]:
    reference = obj["roleRef"]
    by_kind: dict[str, list[str]] = {"User": [], "Group": [], "ServiceAccount": []}
    for subject in obj.get("subjects") or ():
        prefix = f"{subject.get('namespace')}/" if subject["kind"] == "ServiceAccount" else ""
        by_kind[subject["kind"]].append(prefix + subject["name"])
    return _name(obj), f"{reference['kind']}/{reference['name']}", _age(obj), *(", ".join(v) for v in by_kind.values())


def _plain(obj: JSON) -> Sequence[Any]:
    return _name(obj), _age(obj)


_AGE = column("Age")
_WORKLOAD_WIDE = (column("Containers", wide=True), column("Images", wide=True), column("Selector", wide=True))
_BINDING = (
    [_NAME, column("Role"), _AGE, *(column(n, wide=True) for n in ("Users", "Groups", "ServiceAccounts"))],
    _binding,
)
_ROLE = ([_NAME, column("Created At", form="date")], _role)


def _number(name: str) -> JSON:
    return column(name, kind="integer")


_TABLES: dict[str, tuple[list[JSON], Cells]] = {
    "services": (
        [_NAME, *map(column, ("Type", "Cluster-IP", "External-IP", "Port(s)", "Age")), column("Selector", wide=True)],
        _service,
    ),
    "events": (
        [
            *map(column, ("Last Seen", "Type", "Reason", "Object")),
            column("Subobject", wide=True),
            column("Source", wide=True),
            column("Message"),
            column("First Seen", wide=True),
            column("Count", wide=True),
            column("Name", form="name", wide=True),
        ],
        _event,
    ),
    "nodes": (
        [
            _NAME,
            *map(column, ("Status", "Roles", "Age", "Version")),
            *(
                column(name, wide=True)
                for name in ("Internal-IP", "External-IP", "OS-Image", "Kernel-Version", "Container-Runtime")
            ),
        ],
        _node,
    ),
    "endpointslices.discovery.k8s.io": (
        [_NAME, *map(column, ("AddressType", "Ports", "Endpoints", "Age"))],
        _endpoint_slice,
    ),
    "leases.coordination.k8s.io": ([_NAME, column("Holder"), _AGE], _lease),
    "namespaces": ([_NAME, column("Status"), _AGE], _namespace),
    "deployments.apps": (
        [_NAME, column("Ready"), _number("Up-to-date"), _number("Available"), _AGE, *_WORKLOAD_WIDE],
        _deployment,
    ),
    "daemonsets.apps": (
        [
            _NAME,
            *map(_number, ("Desired", "Current", "Ready", "Up-to-date", "Available")),
            column("Node Selector"),
            _AGE,
            *_WORKLOAD_WIDE,
        ],
        _daemon_set,
    ),
    "pods": (
        [
            _NAME,
            *map(column, ("Ready", "Status", "Restarts", "Age")),
            *(column(n, wide=True) for n in ("IP", "Node", "Nominated Node", "Readiness Gates")),
        ],
        _pod,
    ),
    "customresourcedefinitions.apiextensions.k8s.io": ([_NAME, column("Created At", form="date")], _definition),
    "configmaps": ([_NAME, column("Data"), _AGE], _config_map),
    "secrets": ([_NAME, column("Type"), column("Data"), _AGE], _secret),
    "serviceaccounts": ([_NAME, column("Secrets"), _AGE], _service_account),
    "roles.rbac.authorization.k8s.io": _ROLE,
    "clusterroles.rbac.authorization.k8s.io": _ROLE,
    "rolebindings.rbac.authorization.k8s.io": _BINDING,
    "clusterrolebindings.rbac.authorization.k8s.io": _BINDING,
}
_DEFAULT: tuple[list[JSON], Cells] = ([_NAME, _AGE], _plain)


def _custom(resource: Resource) -> tuple[list[JSON], Cells]:
    """The columns of a CRD, read by JSON path; without any there is the age."""
    wanted: list[Any] = list(resource.columns)
    if not wanted:
        wanted = [{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]
    columns = [_NAME]
    for each in wanted:
        made = column(each["name"], kind=each["type"], form=each.get("format", ""), about=each.get("description", ""))
        made["priority"] = each.get("priority", 0)
        columns.append(made)

    def cells(obj: JSON) -> Sequence[Any]:
        return (_name(obj), *(_cell(find(obj, each["jsonPath"]), each["type"]) for each in wanted))

    return columns, cells


def _cell(found: list[Any], kind: str) -> Any:
    if not found or found[0] is None:
        return None
    value = found[0]
    if kind == "date":
        return age(value)
    if kind == "integer":
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    if kind in ("boolean", "number"):
        return value if isinstance(value, int | float) else None
    if len(found) > 1:
        return ",".join(str(v) for v in found)
    # Lists and objects in a text column: JSON without spaces, as a real API server prints them.
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def table(cluster: Cluster, resource: Resource, entries: Sequence[Entry], meta: JSON, include: str) -> JSON:
    """A Table of some objects of one kind; `include` says how much of each object goes along."""
    columns, cells = _custom(resource) if resource.custom else _TABLES.get(resource.bucket, _DEFAULT)
    rows = []
    for entry in entries:
        obj = cluster.view(resource, entry)
        row: JSON = {"cells": list(cells(obj))}
        if include == "Object":
            row["object"] = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
        elif include != "None":
            partial = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
            row["object"] = {**partial, "metadata": obj["metadata"]}
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta,
        "columnDefinitions": columns,
        "rows": rows,
    }
