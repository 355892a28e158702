"""Whatever is sent, the emulated API server answers with a Status: a crash here would look like a bug of the client."""

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from purelb_sm.sandbox.apiserver import ApiServer, StatusError
from purelb_sm.sandbox.apiserver.intake import Request
from purelb_sm.sandbox.apiserver.operations import Operations
from purelb_sm.sandbox.apiserver.patching import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH
from purelb_sm.sandbox.apiserver.selectors import parse_fields, parse_labels
from tests.api.sandbox_client import JSON, service

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
META = {"name": "x", "labels": {"a": "b"}, "annotations": {"a": "b"}, "finalizers": ["example.org/f"]}
CONTAINER = {"name": "c", "image": "i:1", "ports": [{"containerPort": 1}], "env": [{"name": "A", "value": "b"}]}
TEMPLATE = {
    "metadata": {"labels": {"a": "b"}},
    "spec": {"containers": [CONTAINER], "volumes": [{"name": "v", "hostPath": {"path": "/"}}]},
}
SCHEMA = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {"type": "string"}}}}}
VERSION = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": SCHEMA}}
OBJECTS: list[JSON] = [
    {**service("x", ipFamilies=["IPv4"], clusterIPs=["10.96.1.1"], clusterIP="10.96.1.1"), "metadata": META},
    {"apiVersion": "v1", "kind": "Node", "metadata": META, "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}},
    {"apiVersion": "v1", "kind": "Namespace", "metadata": META},
    {"apiVersion": "v1", "kind": "Secret", "metadata": META, "data": {"a": "YQ=="}, "stringData": {"b": "c"}},
    {"apiVersion": "v1", "kind": "Pod", "metadata": META, "spec": TEMPLATE["spec"]},
    {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {**META, "namespace": "default"},
        "involvedObject": {"kind": "Service", "namespace": "default", "name": "x"},
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "source": {"component": "c"},
    },
    {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": META,
        "spec": {"holderIdentity": "a", "renewTime": "2026-01-01T00:00:00.000000Z", "leaseDurationSeconds": 1},
    },
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": META,
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}],
        "ports": [{"port": 1}],
    },
    {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": META,
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": TEMPLATE, "updateStrategy": {}},
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": META,
        "roleRef": {"kind": "Role", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "a", "namespace": "n"}],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": META,
        "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["nodes"]}],
    },
    {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": META,
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}},
    },
    {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "xs.test.example"},
        "spec": {
            "group": "test.example",
            "scope": "Namespaced",
            "names": {"plural": "xs", "kind": "X"},
            "versions": [VERSION],
        },
    },
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a value."""
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in ((*path, k), *places(v, (*path, k)))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in ((*path, i), *places(v, (*path, i)))]
    return []


@st.composite
def spoilt(draw: st.DrawFn, obj: JSON) -> JSON:
    """The object with nonsense in one or two places."""
    made = copy.deepcopy(obj)
    for path in draw(st.lists(st.sampled_from(places(obj)), min_size=1, max_size=2)):
        holder: Any = made
        try:
            for part in path[:-1]:
                holder = holder[part]
            if isinstance(holder, list) is isinstance(path[-1], int):
                holder[path[-1]] = draw(VALUES)
        except (KeyError, IndexError, TypeError):
            continue
    return made


QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
KINDS = pytest.mark.parametrize("obj", OBJECTS, ids=lambda obj: obj["kind"])


def request(server: ApiServer, obj: JSON, **more: Any) -> Request:
    resource = server.resource(obj["apiVersion"], obj["kind"])
    return Request(resource, "default" if resource.namespaced else "", obj["metadata"]["name"], **more)


@KINDS
@QUICK
@given(data=st.data())
def test_a_spoilt_object_is_stored_or_refused(obj: JSON, data: st.DataObject) -> None:
    server = ApiServer()
    body = data.draw(spoilt(obj))
    try:
        entry = Operations(server.cluster).create(request(server, obj), body)
        server.cluster.settle()
    except StatusError as refusal:
        assert refusal.code in (400, 404, 422, 500), refusal.body
        assert refusal.reason != "InternalError" or "resourceVersion" in refusal.message
        return
    assert entry.obj["metadata"]["uid"]


@KINDS
@QUICK
@given(data=st.data())
def test_a_spoilt_patch_is_taken_or_refused(obj: JSON, data: st.DataObject) -> None:
    server = ApiServer()
    server.create(obj)
    body = data.draw(spoilt(obj))
    part = data.draw(st.sampled_from(["", "status"]))
    kind = data.draw(st.sampled_from([MERGE_PATCH, STRATEGIC_PATCH, JSON_PATCH, "apply"]))
    if kind == JSON_PATCH:
        path = "/" + "/".join(map(str, data.draw(st.sampled_from(places(obj)))))
        patch: Any = [
            {"op": data.draw(st.sampled_from(["add", "remove", "replace"])), "path": path, "value": data.draw(VALUES)}
        ]
    else:
        patch = body
    content_type = "application/apply-patch+yaml" if kind == "apply" else kind
    asked = request(server, obj, subresource=part, manager="m", force=True)
    try:
        entry, _ = Operations(server.cluster).patch(asked, content_type, patch)
        server.cluster.settle()
    except StatusError as refusal:
        assert refusal.code in (400, 404, 409, 422), refusal.body
        return
    assert entry.obj["metadata"]["name"] == obj["metadata"]["name"]


@given(st.text(alphabet="ab=!,()<> in.notin", max_size=20))
def test_a_selector_is_read_or_refused(text: str) -> None:
    for parse in (parse_labels, lambda t: parse_fields(t, {"a": ""})):
        try:
            parse(text)
        except StatusError as refusal:
            assert refusal.code == 400
