"""Objects of the cluster, well and badly written."""

from __future__ import annotations

import json
import random
import sys
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from purelb_sm.domain.book import Publication
from purelb_sm.domain.views import Condition, EndpointView, Ingress, Port, ServiceKey
from purelb_sm.errors import Conflict, Invalid
from purelb_sm.kube import objects
from purelb_sm.kube.objects import Kind, Undecodable
from purelb_sm.kube.publish import conflict_of, render
from purelb_sm.kube.resources import LEASES, NODES, SERVICE_GROUPS, SERVICES

KINDS: dict[str, Kind[Any, Any]] = {
    "service": objects.SERVICE,
    "slice": objects.ENDPOINT_SLICE,
    "node": objects.NODE,
    "lease": objects.LEASE,
    "group": objects.SERVICE_GROUP,
}


def data(item: object) -> bytes:
    return json.dumps(item).encode()


META = {"name": "echo", "namespace": "web", "uid": "u1", "resourceVersion": "42"}


def test_a_service_becomes_its_view() -> None:
    view = objects.decode_service(
        data(
            {
                "metadata": META
                | {
                    "generation": 3,
                    "creationTimestamp": "2026-11-23T07:00:00Z",
                    "deletionTimestamp": "2026-11-23T08:00:00Z",
                    "annotations": {"purelb.io/service-group": "g", "other": "x" * 10000},
                    "managedFields": [{"anything": [1, 2, {"deep": None}]}],
                },
                "spec": {
                    "type": "LoadBalancer",
                    "clusterIP": "10.0.0.1",
                    "loadBalancerClass": "purelb.io/purelb",
                    "loadBalancerIP": "172.30.250.53",
                    "ipFamilies": ["IPv4", "IPv6"],
                    "ipFamilyPolicy": "RequireDualStack",
                    "externalTrafficPolicy": "Local",
                    "ports": [{"port": 53, "protocol": "UDP", "name": "dns", "targetPort": "dns"}, {"port": 80}],
                },
                "status": {
                    "loadBalancer": {"ingress": [{"ip": "172.30.250.53", "ipMode": "VIP"}, {"hostname": "h"}]},
                    "conditions": [
                        {
                            "type": "purelb.io/Allocated",
                            "status": "True",
                            "reason": "R",
                            "message": "m",
                            "lastTransitionTime": "t",
                            "observedGeneration": 3,
                        }
                    ],
                },
            }
        )
    )
    assert view.key == ServiceKey("web", "echo")
    assert (view.uid, view.resource_version, view.generation) == ("u1", "42", 3)
    assert view.annotations == {"purelb.io/service-group": "g"}
    assert view.deleting
    assert view.created_at == datetime(2026, 11, 23, 7, tzinfo=UTC)
    assert view.ports == (Port("UDP", 53, "dns"), Port("TCP", 80, ""))
    assert view.ip_families == ("IPv4", "IPv6")
    assert view.load_balancer_class == "purelb.io/purelb"
    assert view.ingress == (Ingress("172.30.250.53", "", "VIP"), Ingress("", "h", ""))
    assert view.conditions == (Condition("purelb.io/Allocated", "True", "R", "m", "t", 3),)


@pytest.mark.spec("E1")
def test_nulls_and_absent_fields_are_what_they_would_be_by_default() -> None:
    nulls = {
        "metadata": META
        | dict.fromkeys(("annotations", "labels", "generation", "creationTimestamp", "deletionTimestamp")),
        "spec": dict.fromkeys(
            ("type", "ports", "ipFamilies", "ipFamilyPolicy", "clusterIP", "loadBalancerClass", "loadBalancerIP")
        ),
        "status": {"loadBalancer": None, "conditions": None},
    }
    bare = objects.decode_service(data({"metadata": META}))
    assert objects.decode_service(data(nulls)) == bare
    assert objects.decode_service(data({"metadata": META, "spec": None, "status": None})) == bare
    assert objects.decode_service(data(nulls | {"status": {"loadBalancer": {"ingress": None}}})) == bare
    assert bare.type == "ClusterIP"
    assert bare.load_balancer_class is None
    assert not bare.deleting


@pytest.mark.spec("E1")
def test_values_of_a_newer_server_are_taken_as_they_are() -> None:
    view = objects.decode_service(
        data(
            {
                "metadata": META,
                "newTopLevel": 1,
                "spec": {
                    "type": "Tomorrow",
                    "ipFamilies": ["IPv7"],
                    "ports": [{"port": 1, "protocol": "QUIC"}],
                    "new": {},
                },
                "status": {"loadBalancer": {"ingress": [{"ip": "x", "ipMode": "Odd", "ports": [{}]}]}},
            }
        )
    )
    assert (view.type, view.ip_families, view.ports[0].protocol, view.ingress[0].ip_mode) == (
        "Tomorrow",
        ("IPv7",),
        "QUIC",
        "Odd",
    )


@pytest.mark.spec("E1")
@pytest.mark.parametrize(
    "item",
    [
        {"metadata": None},
        {},
        [],
        None,
        5,
        {"metadata": META | {"name": None}},
        {"metadata": META | {"name": ""}},
        {"metadata": META, "spec": {"ports": [{"port": "eighty"}]}},
        {"metadata": META, "spec": {"ports": [{"port": 80.5}]}},
        {"metadata": META, "spec": {"ports": [{}]}},
        {"metadata": META, "spec": {"ports": {}}},
        {"metadata": META, "spec": "x"},
        {"metadata": META | {"annotations": {"purelb.io/x": 5}}},
        {"metadata": META, "status": {"conditions": [None]}},
    ],
)
def test_what_is_no_service_is_refused_by_name(item: object) -> None:
    with pytest.raises(Undecodable):
        objects.decode_service(data(item))


@pytest.mark.spec("E1")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"metadata":',
        b"\xff\xfe",
        b'{"metadata":{"name":"\xff"}}',
        b'{"metadata":{"name":"\\ud800"}}',
        b'{"metadata":{"name":"x"},"spec":' + b"[" * 100_000,
        b'{"metadata":{"name":"x"},"spec":' + b'{"a":' * 100_000,
        b"[" * 100_000,
    ],
    ids=range(9),
)
def test_bytes_that_are_no_object_are_refused_by_name(kind: str, raw: bytes) -> None:
    with pytest.raises(Undecodable):
        KINDS[kind].decode(raw)


WHOLE: dict[str, Any] = {
    "metadata": META
    | {
        "generation": 3,
        "creationTimestamp": "2026-11-23T07:00:00Z",
        "labels": {"kubernetes.io/service-name": "echo"},
        "annotations": {"purelb.io/x": "y"},
    },
    "spec": {
        "type": "LoadBalancer",
        "clusterIP": "10.0.0.1",
        "ipFamilies": ["IPv4"],
        "ports": [{"port": 80, "protocol": "TCP", "name": "n"}],
        "holderIdentity": "h",
        "leaseDurationSeconds": 10,
        "renewTime": "t",
    },
    "status": {
        "loadBalancer": {"ingress": [{"ip": "10.0.0.1", "ipMode": "VIP"}]},
        "conditions": [{"type": "Ready", "status": "True"}],
    },
    "endpoints": [{"nodeName": "n", "conditions": {"ready": True}}],
}
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    1e308,
    "",
    "x" * 2000,
    "\0",
    "0x1",
    [],
    [None],
    {},
    {"a": None},
    [[{}]],
)


def spoilt(value: Any, rng: random.Random) -> Any:
    """The value with one odd thing somewhere in it."""
    if rng.random() < 0.25 or not value or not isinstance(value, dict | list):
        return rng.choice(ODD)
    if isinstance(value, list):
        return [spoilt(value[0], rng), *value[1:]]
    key = rng.choice(sorted(value))
    return value | {key: spoilt(value[key], rng)}


@pytest.mark.spec("E1")
@pytest.mark.parametrize("kind", KINDS)
def test_no_json_at_all_raises_anything_else(kind: str) -> None:
    refused = 0
    for seed in range(3000):
        try:
            KINDS[kind].decode(data(spoilt(WHOLE, random.Random(seed))))
        except Undecodable:
            refused += 1
    assert 100 < refused < 2900, "some are taken and some are not, else this shows nothing"


def test_a_time_that_is_none_decides_nothing() -> None:
    for text in ("", "yesterday", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+23:00"):
        view = objects.decode_service(data({"metadata": META | {"creationTimestamp": text}}))
        assert view.created_at is None


def test_repeated_texts_are_kept_once() -> None:
    item = {
        "metadata": META | {"annotations": {"purelb.io/allocated-from": "default-" + "x" * 20}},
        "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": 80, "name": "http-web"}]},
    }
    one, two = objects.decode_service(data(item)), objects.decode_service(data(item))
    assert one.key.namespace is two.key.namespace
    assert one.annotations["purelb.io/allocated-from"] is two.annotations["purelb.io/allocated-from"]
    assert one.ports[0].name is two.ports[0].name
    assert sys.getrefcount(one.type) > 2


def test_endpoints_are_ready_unless_said_otherwise() -> None:
    view = objects.decode_endpoint_slice(
        data(
            {
                "metadata": META | {"labels": {"kubernetes.io/service-name": "echo", "x": None}},
                "endpoints": [
                    {"nodeName": "n1"},
                    {"nodeName": "n2", "conditions": {"ready": False, "serving": True, "terminating": True}},
                    {"nodeName": "n3", "conditions": {"ready": False, "serving": None}},
                    {"conditions": None},
                ],
            }
        )
    )
    assert view.service == ServiceKey("web", "echo")
    assert view.endpoints == (
        EndpointView("n1", True, True, False),
        EndpointView("n2", False, True, True),
        EndpointView("n3", False, False, False),
        EndpointView("", True, True, False),
    )
    assert objects.decode_endpoint_slice(data({"metadata": META, "endpoints": None})).service is None


def test_a_node_is_ready_unless_it_says_otherwise() -> None:
    def ready(*conditions: dict[str, str]) -> bool:
        return objects.decode_node(data({"metadata": META, "status": {"conditions": list(conditions)}})).ready

    assert ready()
    assert ready({"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"})
    assert not ready({"type": "Ready", "status": "False"})
    assert not ready({"type": "Ready", "status": "Unknown"})


def test_a_lease_with_nothing_in_it_is_held_by_nobody() -> None:
    view = objects.decode_lease(
        data({"metadata": META, "spec": {"holderIdentity": None, "leaseDurationSeconds": None}})
    )
    assert (view.holder, view.duration_s, view.transitions) == ("", 0.0, 0)


def test_a_list_item_without_kind_gets_that_of_its_list() -> None:
    view = objects.SERVICE_GROUP.decode(data({"metadata": META, "spec": {"local": {"v4pools": [1, None]}}}))
    assert (view.kind, view.api_version) == ("ServiceGroup", "purelb.io/v2")
    assert view.spec == {"local": {"v4pools": [1, None]}}
    written = {"kind": "ServiceGroup", "apiVersion": "purelb.io/v1", "metadata": META}
    assert objects.SERVICE_GROUP.decode(data(written)).api_version == "purelb.io/v1"


RECORDINGS = Path(__file__).parent.parent / "contract" / "recordings"


def recorded_services() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def search(value: object) -> None:
        if isinstance(value, dict):
            if value.get("kind") == "Service" and "metadata" in value:
                found.append(value)
            for inner in value.values():
                search(inner)
        elif isinstance(value, list):
            for inner in value:
                search(inner)

    for file in sorted(RECORDINGS.glob("*.json")):
        for step in json.loads(file.read_text())["steps"]:
            search(step["response"])
    return found


def test_every_service_a_real_server_answered_with_can_be_read() -> None:
    services = [s for s in recorded_services() if s["metadata"].get("name")]
    assert len(services) > 20
    for item in services:
        view = objects.decode_service(data(item))
        assert view.type == item["spec"]["type"]
        assert len(view.ports) == len(item["spec"]["ports"])
        assert len(view.ingress) == len(item["status"]["loadBalancer"].get("ingress", []))


# Paths.


def test_paths_are_those_of_the_api() -> None:
    assert SERVICES.collection() == "/api/v1/services"
    assert SERVICES.path("a", "ns", "status") == "/api/v1/namespaces/ns/services/a/status"
    assert NODES.path("n") == "/api/v1/nodes/n"
    assert LEASES.collection("x") == "/apis/coordination.k8s.io/v1/namespaces/x/leases"
    assert SERVICE_GROUPS.api_version == "purelb.io/v2"


def test_no_name_reaches_another_path() -> None:
    assert SERVICES.path("../../pods?x=1#", "ns") == "/api/v1/namespaces/ns/services/..%2F..%2Fpods%3Fx%3D1%23"
    for name in ("", ".", ".."):
        with pytest.raises(ValueError):
            SERVICES.path(name, "ns")
    with pytest.raises(ValueError):
        SERVICES.path("a")


# Publications.

KEY = ServiceKey("web", "echo")


def publication(**changes: Any) -> Publication:
    fields: dict[str, Any] = {"ingress": None, "annotations": {}, "conditions": None}
    return Publication(KEY, "u1", "42", **(fields | changes))


@pytest.mark.spec("A3")
def test_one_patch_carries_ingress_annotations_and_conditions_under_both_guards() -> None:
    body = render(
        publication(
            ingress=(ip_address("172.30.250.53"), ip_address("2001:db8::5")),
            annotations={"purelb.io/allocated-by": "PureLB", "purelb.io/pool-type": None},
            conditions=(
                Condition("purelb.io/Allocated", "True", "R", "m", "t", 3),
                Condition("x", "False", "", "", "t"),
            ),
        )
    )
    assert body == {
        "metadata": {
            "uid": "u1",
            "resourceVersion": "42",
            "annotations": {"purelb.io/allocated-by": "PureLB", "purelb.io/pool-type": None},
        },
        "status": {
            "loadBalancer": {
                "ingress": [{"ip": "172.30.250.53", "ipMode": "VIP"}, {"ip": "2001:db8::5", "ipMode": "VIP"}]
            },
            "conditions": [
                {
                    "type": "purelb.io/Allocated",
                    "status": "True",
                    "reason": "R",
                    "message": "m",
                    "lastTransitionTime": "t",
                    "observedGeneration": 3,
                },
                {"type": "x", "status": "False", "reason": "", "message": "", "lastTransitionTime": "t"},
            ],
        },
    }


def test_nothing_is_left_alone_and_empty_is_removed() -> None:
    guards = {"uid": "u1", "resourceVersion": "42"}
    assert render(publication()) == {"metadata": guards}
    assert render(publication(ingress=(), conditions=())) == {
        "metadata": guards,
        "status": {"loadBalancer": None, "conditions": None},
    }


def test_another_uid_is_a_conflict_and_other_invalid_things_are_not() -> None:
    other = Invalid('Service "echo" is invalid: metadata.uid: Invalid value: "x": field is immutable', status=422)
    assert isinstance(conflict_of(other), Conflict)
    bad = Invalid('Service "echo" is invalid: status.loadBalancer.ingress[0].ip: Invalid value', status=422)
    assert conflict_of(bad) is bad
