"""What can be known of deploy/ without an API server: the versions of a kind agree, the RBAC has no wildcard."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
import yaml

from purelb_sm.domain.addresses import parse_ip
from purelb_sm.domain.groups import PoolType, parse_group
from purelb_sm.domain.reports import (
    MAX_TRANSITIONS,
    NodeReport,
    ReportedAddress,
    ReportedTransition,
    render_report,
)
from purelb_sm.domain.states import AnnouncementState, AnnouncementTrigger
from purelb_sm.domain.views import ObjectView
from purelb_sm.errors import InvalidGroup

DEPLOY = Path(__file__).parents[2] / "deploy"


def documents(folder: str) -> list[dict[str, Any]]:
    return [
        document
        for file in sorted((DEPLOY / folder).glob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text())
        if document["kind"] != "Kustomization"
    ]


def schema(kind: str, version: str) -> dict[str, Any]:
    crd = next(d for d in documents("crds") if d["spec"]["names"]["kind"] == kind)
    found = next(v for v in crd["spec"]["versions"] if v["name"] == version)
    return cast("dict[str, Any]", found["schema"]["openAPIV3Schema"])


def fields(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field with its type, and its default if it has one."""
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", (child.get("type") or "int-or-string", child.get("default"))
        yield from fields(child, f"{path}.{name}")
        yield from fields(child.get("items", {}), f"{path}.{name}[]")


@pytest.mark.parametrize("kind", ["ServiceGroup", "LBNodeAgent"])
def test_both_versions_have_the_same_fields_so_that_none_is_pruned_when_read_as_the_other(kind: str) -> None:
    differing = set(fields(schema(kind, "v1"))) ^ set(fields(schema(kind, "v2")))
    assert {path for path, _ in differing} == ({".spec.local.announce"} if kind == "ServiceGroup" else set())


def view(document: dict[str, Any], kind: str) -> ObjectView:
    metadata = document["metadata"]
    return ObjectView(
        kind=kind,
        api_version=document["apiVersion"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid="u",
        resource_version="1",
        generation=1,
        created_at=None,
        spec=document["spec"],
    )


@pytest.mark.parametrize("document", [d for d in documents("samples") if d["kind"] == "ServiceGroup"], ids=str)
def test_every_sample_group_is_accepted_by_the_allocator(document: dict[str, Any]) -> None:
    assert parse_group(view(document, "ServiceGroup")).warnings == ()


@pytest.mark.spec("A9")
def test_what_was_written_as_v1_is_known_as_such_when_read_as_v2() -> None:
    """As the API server does it: the default of the version it was written as, then shown as the other version."""
    written = next(d for d in documents("samples") if d["apiVersion"] == "purelb.io/v1")
    local = schema("ServiceGroup", "v1")["properties"]["spec"]["properties"]["local"]["properties"]
    stored = written | {
        "apiVersion": "purelb.io/v2",
        "spec": {"local": {"announce": local["announce"]["default"]} | written["spec"]["local"]},
    }
    group = parse_group(view(stored, "ServiceGroup"))
    assert group.agent_decides
    assert group.pool_type is PoolType.LOCAL


def test_a_group_written_as_v2_is_local_or_remote_as_it_says() -> None:
    written = next(d for d in documents("samples") if d["metadata"]["name"] == "localaddr")
    assert not parse_group(view(written, "ServiceGroup")).agent_decides
    assert dict(fields(schema("ServiceGroup", "v2")))[".spec.local.announce"] == ("string", None)


def test_netbox_written_as_v1_is_refused_with_the_hint_when_read_as_v2() -> None:
    written = {
        "apiVersion": "purelb.io/v2",
        "metadata": {"name": "netbox", "namespace": "purelb-system"},
        "spec": {"netbox": {"url": "http://netbox", "tenant": "purelb"}},
    }
    with pytest.raises(InvalidGroup, match="not supported yet"):
        parse_group(view(written, "ServiceGroup"))


def report() -> NodeReport:
    at = datetime(2026, 11, 1, tzinfo=UTC)
    return NodeReport(
        node="node1",
        incarnation="i",
        started_at=at,
        sequence=3,
        addresses=(ReportedAddress(parse_ip("172.30.250.53"), "eth0", 24, AnnouncementState.PRESENT, at, 300, "why"),),
        transitions=(
            ReportedTransition(
                seq=1,
                at=at,
                address=parse_ip("172.30.250.53"),
                interface="eth0",
                prefix_length=24,
                trigger=AnnouncementTrigger.ADD,
                source=AnnouncementState.ABSENT,
                dest=AnnouncementState.ADDING,
                reason="why",
            ),
        ),
    )


def test_a_report_loses_no_field_to_the_schema_of_node_announcements() -> None:
    spec = schema("NodeAnnouncement", "v2")["properties"]["spec"]

    def unknown(value: object, node: dict[str, Any], path: str) -> Iterator[str]:
        if isinstance(value, dict):
            for name, child in value.items():
                if name not in node.get("properties", {}):
                    yield f"{path}.{name}"
                else:
                    yield from unknown(child, node["properties"][name], f"{path}.{name}")
        elif isinstance(value, list):
            for item in value:
                yield from unknown(item, node["items"], f"{path}[]")

    rendered = render_report(report())
    assert list(unknown(rendered, spec, "spec")) == []
    jsonschema.validate(rendered, spec)
    assert spec["properties"]["transitions"]["maxItems"] >= MAX_TRANSITIONS


def rules() -> list[tuple[str, dict[str, Any]]]:
    roles = [d for d in documents("base") if d["kind"] in ("Role", "ClusterRole")]
    return [(f"{d['kind']} {d['metadata']['name']}", rule) for d in roles for rule in d["rules"]]


def test_no_rule_has_a_wildcard_or_reaches_for_secrets() -> None:
    for role, rule in rules():
        asked = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
        assert not asked & {"*", "secrets", "configmaps", "pods", "impersonate", "escalate", "bind"}, role


def test_only_the_allocator_may_change_a_service_itself_and_only_agents_reports() -> None:
    def may(resource: str, verb: str) -> set[str]:
        return {role for role, rule in rules() if resource in rule["resources"] and verb in rule["verbs"]}

    assert may("services", "patch") == {"ClusterRole purelb-allocator"}
    assert may("nodeannouncements", "patch") == {"Role purelb-agent"}
    assert may("servicegroups/status", "patch") == {"Role purelb-allocator"}
    assert may("services", "update") == set()


def pod_specs() -> Iterator[dict[str, Any]]:
    for document in documents("base"):
        if document["kind"] in ("Deployment", "DaemonSet"):
            yield document["spec"]["template"]["spec"]


def test_every_container_is_locked_down_and_has_bounds() -> None:
    for pod in pod_specs():
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"]["drop"] == ["ALL"]
            assert set(context["capabilities"].get("add", [])) <= {"NET_ADMIN", "NET_RAW"}
            assert container["resources"]["limits"]["memory"]
        assert all({"livenessProbe", "readinessProbe"} <= set(c) for c in pod["containers"])


def test_two_allocators_never_open_one_sqlite_file_during_an_update() -> None:
    deployment = next(d for d in documents("base") if d["kind"] == "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
