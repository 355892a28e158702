"""deploy/ against the emulated API server: it is accepted whole, and each rule of the CRDs speaks in a sentence."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from purelb_sm.domain.groups import parse_group
from purelb_sm.domain.reports import parse_report
from purelb_sm.errors import Invalid
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.objects import NODE_ANNOUNCEMENT, SERVICE_GROUP
from purelb_sm.kube.resources import LB_NODE_AGENTS, NODE_ANNOUNCEMENTS, SERVICE_GROUPS, SERVICES, Resource
from purelb_sm.sandbox.apiserver import ApiServer, serve, write_kubeconfig
from purelb_sm.sandbox.launcher import contents
from purelb_sm.sandbox.launcher.api import kubectl

DEPLOY = Path(__file__).parents[2] / "deploy"
NS = "purelb-system"
V1_GROUPS = Resource("purelb.io", "v1", "ServiceGroup", "servicegroups")
V1_AGENTS = Resource("purelb.io", "v1", "LBNodeAgent", "lbnodeagents")
POOL = {"subnet": "172.30.250.0/24", "pool": "172.30.250.53-172.30.250.99"}

_decode = msgspec.json.Decoder().decode


@dataclass
class Api:
    """An emulated API server with our CRDs in it, or (`bare`) with nothing."""

    client: KubeClient
    kubeconfig: Path

    async def kubectl(self, *words: str, stdin: str = "") -> str:
        program = kubectl()
        assert program is not None, "no kubectl: tools/install.sh fetches one"
        started = await asyncio.create_subprocess_exec(
            *(program, *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.kubeconfig.parent)},
        )
        out, _ = await started.communicate(stdin.encode())
        assert started.returncode == 0, out.decode()
        return out.decode()

    async def create(self, resource: Resource, spec: dict[str, Any], name: str = "one") -> dict[str, Any]:
        body = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, "namespace": NS},
            "spec": spec,
        }
        answer = await self.client.request("POST", resource.collection(NS), body=body)
        created: dict[str, Any] = _decode(answer)
        return created


@pytest.fixture
async def bare(tmp_path: Path) -> AsyncIterator[Api]:
    server = ApiServer()
    async with serve(server, port=0) as url, KubeClient.at(url) as client:
        write_kubeconfig(tmp_path / "kubeconfig", url)
        yield Api(client, tmp_path / "kubeconfig")
    server.close()


@pytest.fixture
async def api(bare: Api) -> Api:
    await contents.apply_namespace(bare.client)
    await contents.apply_crds(bare.client)
    return bare


async def test_the_base_is_taken_whole_and_a_second_time_unchanged(bare: Api) -> None:
    first = await bare.kubectl("apply", "-k", str(DEPLOY / "base"))
    assert {line.split()[-1] for line in first.splitlines()} == {"created"}
    again = await bare.kubectl("apply", "-k", str(DEPLOY / "base"))
    assert {line.split()[-1] for line in again.splitlines()} == {"unchanged"}


async def test_every_sample_is_taken(api: Api) -> None:
    done = await api.kubectl("apply", "-k", str(DEPLOY / "samples"))
    assert {line.split()[-1] for line in done.splitlines()} == {"created"}


@pytest.mark.spec("D4")
@pytest.mark.parametrize("short", ["sg", "sgs", "lbna", "lbnas", "na", "nas", "purelb"])
async def test_the_short_names_are_known_to_kubectl(api: Api, short: str) -> None:
    assert await api.kubectl("get", short, "-n", NS) == f"No resources found in {NS} namespace.\n"


async def test_get_shows_the_columns_of_a_group(api: Api) -> None:
    await api.create(SERVICE_GROUPS, {"local": {"v4pools": [POOL]}})
    status = {
        "announce": "Local",
        "ipam": "Cluster",
        "allocatedIPv4": 2,
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    await api.client.request(
        "PATCH",
        SERVICE_GROUPS.path("one", NS, "status"),
        body={"status": status},
        content_type="application/merge-patch+json",
    )
    heads, row, *_ = (line.split() for line in (await api.kubectl("get", "sg", "-n", NS)).splitlines())
    assert heads == ["NAME", "ANNOUNCE", "IPAM", "READY", "ALLOCATED-V4", "ALLOCATED-V6", "AGE"]
    assert row[:5] == ["one", "Local", "Cluster", "True", "2"]


REFUSED = [
    (SERVICE_GROUPS, {}, "exactly one of local, remote or external must be given"),
    (
        SERVICE_GROUPS,
        {"local": {"v4pools": [POOL]}, "remote": {"v4pools": [POOL]}},
        "exactly one of local, remote or external must be given",
    ),
    (V1_GROUPS, {}, "exactly one of local or netbox must be given"),
    (V1_GROUPS, {"local": {}, "netbox": {}}, "exactly one of local or netbox must be given"),
    (V1_GROUPS, {"remote": {"v4pools": [POOL]}}, "remote and external need apiVersion purelb.io/v2"),
    (V1_GROUPS, {"local": {}, "external": {}}, "remote and external need apiVersion purelb.io/v2"),
    (
        LB_NODE_AGENTS,
        {"local": {"localint": "eth0", "localInterface": "eth1"}},
        "localint is the v1 name of localInterface, give one of them",
    ),
    (
        V1_AGENTS,
        {"local": {"extlbint": "lb0", "dummyInterface": "lb1"}},
        "extlbint is the v1 name of dummyInterface, give one of them",
    ),
    (
        LB_NODE_AGENTS,
        {"local": {"addressConfig": {"localInterface": {"validLifetime": 60, "preferredLifetime": 61}}}},
        "preferredLifetime must not be longer than validLifetime",
    ),
    (LB_NODE_AGENTS, {"local": {"garpConfig": {"count": 11}}}, "less than or equal to 10"),
    (LB_NODE_AGENTS, {"local": {"conflictProbe": {"count": 11}}}, "less than or equal to 10"),
    (V1_AGENTS, {"local": {"conflictProbe": {"enabled": "yes"}}}, 'must be of type boolean: "string"'),
    (SERVICE_GROUPS, {"local": {"v4pools": [{"pool": "172.30.250.53/32"}]}}, "subnet: Required value"),
    (SERVICE_GROUPS, {"local": {"v4pools": "172.30.250.0/24"}}, 'must be of type array: "string"'),
    (SERVICE_GROUPS, {"local": {"announce": "somehow"}}, 'announce: Unsupported value: "somehow"'),
    *(
        (resource, {"local": {"v4pools": [POOL]}, **fields}, sentence)
        for resource in (SERVICE_GROUPS, V1_GROUPS)
        for fields, sentence in (
            ({"enforceNamespaces": True}, "enforceNamespaces needs namespaces, without them it would enforce nothing"),
            ({"enforceNamespaces": True, "namespaces": []}, "enforceNamespaces needs namespaces"),
            ({"namespaceDefault": True}, "namespaceDefault needs namespaces, without them it is the default of none"),
            ({"namespaces": ["Upper"]}, "namespaces[0]: Invalid value"),
            ({"namespaces": ["a" * 64]}, "namespaces[0]: Too long"),
            ({"maxPerNamespace": 0}, "greater than or equal to 1"),
            ({"maxPerNamespace": "3"}, "maxPerNamespace: Invalid value"),
        )
    ),
    *(
        (resource, {kind: {"v4pools": [POOL], "multiPool": True, "balancePools": True}}, "cannot go together")
        for resource, kind in ((SERVICE_GROUPS, "local"), (SERVICE_GROUPS, "remote"), (V1_GROUPS, "local"))
    ),
]


@pytest.mark.spec("A9")
@pytest.mark.parametrize(("resource", "spec", "sentence"), REFUSED, ids=lambda value: str(value)[:40])
async def test_what_excludes_each_other_is_refused_in_a_sentence(
    api: Api, resource: Resource, spec: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await api.create(resource, spec)
    assert sentence in str(refused.value)


TAKEN = [
    {"local": {"v4pools": [POOL | {"pool": "172.30.250.99-172.30.250.53"}]}},
    {"local": {"v4pools": [POOL | {"pool": "nonsense"}]}},
    {"local": {"v4pools": [POOL | {"aggregation": 33}]}},
    {"local": {"v4pools": [POOL | {"aggregation": "/x"}]}},
    {"local": {"v4pools": [POOL, POOL]}},
    {"local": {"v4pools": [POOL], "quarantine": "soon"}},
    {"local": {}},
    {"external": {"provider": "somebody"}},
    {"local": {"v4pools": [POOL]}, "namespaces": ["a", "a"], "enforceNamespaces": True, "namespaceDefault": True},
    {"local": {"v4pools": [POOL]}, "namespaces": [], "enforceNamespaces": False, "maxPerNamespace": 1},
    {"local": {"v4pools": [POOL], "multiPool": True, "balancePools": False}},
]


@pytest.mark.spec("A8")
@pytest.mark.parametrize("spec", TAKEN, ids=str)
async def test_what_the_allocator_answers_with_parse_failed_is_not_refused_by_the_schema(
    api: Api, spec: dict[str, Any]
) -> None:
    created = await api.create(SERVICE_GROUPS, spec)
    assert created["spec"] == spec


@pytest.mark.spec("A7")
@pytest.mark.parametrize("aggregation", ["default", "/32", "32", 32])
async def test_aggregation_is_a_text_or_a_number(api: Api, aggregation: object) -> None:
    created = await api.create(SERVICE_GROUPS, {"remote": {"v4pools": [POOL | {"aggregation": aggregation}]}})
    assert created["spec"]["remote"]["v4pools"][0]["aggregation"] == aggregation


@pytest.mark.spec("A9")
async def test_a_group_written_as_v1_is_still_known_as_such_when_read_as_v2(api: Api) -> None:
    await api.create(V1_GROUPS, {"local": {"subnet": "172.31.1.0/24", "pool": "172.31.1.0/24", "aggregation": "/32"}})
    await api.create(SERVICE_GROUPS, {"local": {"v4pools": [POOL]}}, "two")
    one, two = [
        parse_group(SERVICE_GROUP.decode(await api.client.request("GET", SERVICE_GROUPS.path(name, NS))))
        for name in ("one", "two")
    ]
    assert (one.agent_decides, str(one.pools[0].range)) == (True, "172.31.1.0-172.31.1.255")
    assert not two.agent_decides


async def test_no_field_of_a_v1_agent_is_lost_when_it_is_read_as_v2(api: Api) -> None:
    spec = {"local": {"localint": "eth0", "extlbint": "lb0", "sendgarp": True}}
    await api.create(V1_AGENTS, spec)
    read = await api.client.get(LB_NODE_AGENTS.path("one", NS), _decode)
    assert read["spec"] == spec


async def test_a_report_is_read_back_as_it_was_written(api: Api) -> None:
    spec = {
        "node": "one",
        "incarnation": "i",
        "startedAt": "2026-11-01T00:00:00.000000Z",
        "sequence": 3,
        "slice": 0,
        "slices": 1,
        "addresses": [
            {
                "address": "172.30.250.53",
                "interface": "eth0",
                "prefixLength": 24,
                "state": "present",
                "since": "2026-11-01T00:00:00.000000Z",
                "validSeconds": 300,
            }
        ],
        "transitions": [],
    }
    await api.create(NODE_ANNOUNCEMENTS, spec)
    raw = await api.client.request("GET", NODE_ANNOUNCEMENTS.path("one", NS))
    assert _decode(raw)["spec"] == spec
    assert parse_report(NODE_ANNOUNCEMENT.decode(raw)).sequence == 3


async def test_fields_that_we_do_not_know_are_named_by_kubectl_instead_of_ignored(api: Api) -> None:
    manifest = (
        "apiVersion: purelb.io/v2\nkind: ServiceGroup\n"
        f"metadata: {{name: one, namespace: {NS}}}\n"
        f"spec: {{enforceEverything: true, local: {{v4pools: [{{subnet: 10.0.0.0/24, pool: 10.0.0.0/24}}]}}}}\n"
    )
    with pytest.raises(AssertionError, match=r'unknown field "spec\.enforceEverything"'):
        await api.kubectl("apply", "-f", "-", stdin=manifest)


PAGE_GROUP = {"local": {"v4pools": [{"subnet": "172.31.1.0/24", "pool": "172.31.1.0/24", "aggregation": "/32"}]}}
PAGE_SERVICES: list[tuple[str, str, dict[str, Any]]] = [
    ("servicetest", "localaddr", {"ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}),
    ("specificaddress", "virtualsub", {"loadBalancerIP": "172.31.1.225"}),
    ("endpoints", "virtualsub", {"externalTrafficPolicy": "Local", "ipFamilyPolicy": "SingleStack"}),
]


async def test_the_objects_of_purelbs_page_are_taken_as_they_stand(api: Api) -> None:
    await api.create(V1_GROUPS, PAGE_GROUP, "virtualsub")
    for name, group, spec in PAGE_SERVICES:
        body = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "annotations": {"purelb.io/service-group": group}},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "targetPort": 8080}], **spec},
        }
        created = _decode(await api.client.request("POST", SERVICES.collection("default"), body=body))
        assert {**created["spec"], **spec} == created["spec"]
