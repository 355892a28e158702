"""The rules of the CRDs in more depth: families, bounds, lifetimes; and that schema and code know the same fields."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from purelb_sm.domain.agent_config import parse_agent_config, parse_selector
from purelb_sm.domain.groups import parse_group
from purelb_sm.domain.views import ObjectView
from purelb_sm.errors import Invalid
from purelb_sm.kube.resources import LB_NODE_AGENTS, SERVICE_GROUPS, Resource
from tests.api.test_deploy_crds import DEPLOY, NS, POOL, V1_AGENTS, V1_GROUPS, Api, api, bare

__all__ = ["api", "bare"]

POOL6 = {"subnet": "fd30:250::/64", "pool": "fd30:250::53-fd30:250::99"}
IPV4_ONLY = "an IPv4 pool must have IPv4 addresses, those of IPv6 go into v6pools"
IPV6_ONLY = "an IPv6 pool must have IPv6 addresses, those of IPv4 go into v4pools"

REFUSED: list[tuple[Resource, dict[str, Any], str]] = [
    (SERVICE_GROUPS, {"external": {}, "local": {"v4pools": [POOL]}}, "exactly one of local, remote or external"),
    (SERVICE_GROUPS, {"local": {"v4pools": [POOL6]}}, IPV4_ONLY),
    (SERVICE_GROUPS, {"remote": {"v4pools": [POOL, POOL6]}}, IPV4_ONLY),
    (SERVICE_GROUPS, {"local": {"v4pool": POOL6}}, IPV4_ONLY),
    (V1_GROUPS, {"local": {"v4pools": [POOL | {"subnet": "fd00::/64"}]}}, IPV4_ONLY),
    (SERVICE_GROUPS, {"local": {"v6pools": [POOL]}}, IPV6_ONLY),
    (SERVICE_GROUPS, {"local": {"v6pool": POOL}}, IPV6_ONLY),
    (SERVICE_GROUPS, {"remote": {"v6pools": [POOL6 | {"subnet": "10.0.0.0/8"}]}}, IPV6_ONLY),
    (SERVICE_GROUPS, {"local": {"v4pools": [POOL | {"pool": "1" * 129}]}}, "may not be more than 128"),
    (SERVICE_GROUPS, {"local": {"v4pools": [POOL] * 1025}}, "must have at most 1024 items"),
    *[
        (resource, {"local": {"addressConfig": {where: {"validLifetime": 59}}}}, "or at least 60 seconds")
        for resource in (LB_NODE_AGENTS, V1_AGENTS)
        for where in ("localInterface", "dummyInterface")
    ],
    (
        LB_NODE_AGENTS,
        {"local": {"addressConfig": {"dummyInterface": {"validLifetime": 0, "preferredLifetime": 60}}}},
        "preferredLifetime must be 0 too",
    ),
    *[
        (
            LB_NODE_AGENTS,
            {"nodeSelector": {"matchExpressions": [{"key": "a", **expression}]}, "local": {}},
            "values must be given with In and NotIn, and with them only",
        )
        for expression in (
            {"operator": "In"},
            {"operator": "NotIn", "values": []},
            {"operator": "Exists", "values": ["b"]},
        )
    ],
    *[
        (resource, {"local": {field: text}}, "must be default or a regular expression")
        for resource, field in (
            (LB_NODE_AGENTS, "localInterface"),
            (V1_AGENTS, "localint"),
            (V1_AGENTS, "localInterface"),
            (LB_NODE_AGENTS, "localint"),
        )
        for text in ("eth[", "(eth0", "*")
    ],
    (LB_NODE_AGENTS, {"local": {"localInterface": "e" * 513}}, "may not be more than 512"),
    *[
        (LB_NODE_AGENTS, {"local": {"addressGuard": guard}}, "addressGuard is not supported")
        for guard in ({}, {"mode": "enforce"}, {"mode": "monitor", "failurePolicy": "closed"})
    ],
    (
        LB_NODE_AGENTS,
        {"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Is", "values": ["b"]}]}, "local": {}},
        'Unsupported value: "Is"',
    ),
]


@pytest.mark.spec("A9")
@pytest.mark.parametrize(("resource", "spec", "sentence"), REFUSED, ids=lambda value: str(value)[:60])
async def test_what_cannot_be_meant_is_refused_in_a_sentence(
    api: Api, resource: Resource, spec: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await api.create(resource, spec)
    assert sentence in str(refused.value)


GOOD: list[tuple[Resource, dict[str, Any]]] = [
    (SERVICE_GROUPS, {"local": {"v4pools": [POOL], "v6pools": [POOL6], "multiPool": True, "balancePools": False}}),
    (SERVICE_GROUPS, {"remote": {"v4pool": POOL, "v6pool": POOL6, "balancePools": True, "multiPool": False}}),
    (SERVICE_GROUPS, {"local": {"v4pools": [POOL], "skipIPv6DAD": True, "quarantine": "0s", "avoidFirstLast": True}}),
    # What makes no sense, but is no matter of families, is answered by the allocator.
    (SERVICE_GROUPS, {"local": {"v6pools": [POOL6 | {"pool": "nonsense"}]}}),
    (SERVICE_GROUPS, {"local": {"v6pools": [POOL6 | {"pool": "fd30:250::-172.30.250.1"}]}}),
    (V1_GROUPS, {"local": {"v4pools": [POOL], "v6pools": [POOL6]}}),
    (V1_GROUPS, {"local": {"subnet": "fd30::/64", "pool": "fd30::/120", "aggregation": "/128"}}),
    (LB_NODE_AGENTS, {"local": {"addressConfig": {"localInterface": {"validLifetime": 60, "preferredLifetime": 60}}}}),
    (LB_NODE_AGENTS, {"local": {"addressConfig": {"dummyInterface": {"validLifetime": 0, "preferredLifetime": 0}}}}),
    (LB_NODE_AGENTS, {"local": {"localInterface": "^(eth|enp)[0-9]+(s0)?$"}}),
    (LB_NODE_AGENTS, {"local": {"addressGuard": {"failurePolicy": "open", "mode": "monitor", "hook": "tcx"}}}),
    (
        V1_AGENTS,
        {"local": {"localint": "eth[01]", "extlbint": "kube-lb0", "sendgarp": True, "garpConfig": {"enabled": True}}},
    ),
    (
        LB_NODE_AGENTS,
        {
            "nodeSelector": {
                "matchLabels": {"a": "b"},
                "matchExpressions": [
                    {"key": "a", "operator": "In", "values": ["b"]},
                    {"key": "c", "operator": "DoesNotExist"},
                ],
            },
            "local": {
                "interfaces": ["eth1"],
                "garpConfig": {"count": 10},
                "conflictProbe": {"enabled": True, "count": 1},
            },
        },
    ),
]


@pytest.mark.spec("A9")
@pytest.mark.parametrize(("resource", "spec"), GOOD, ids=lambda value: str(value)[:60])
async def test_what_makes_sense_is_taken(api: Api, resource: Resource, spec: dict[str, Any]) -> None:
    await api.create(resource, spec)


async def test_kubectl_says_the_sentence_of_each_rule(api: Api) -> None:
    manifest = (
        f"apiVersion: purelb.io/v2\nkind: ServiceGroup\nmetadata: {{name: one, namespace: {NS}}}\n"
        "spec: {local: {v4pools: [{subnet: 'fd00::/64', pool: 'fd00::/120'}]}, remote: {}}\n"
    )
    with pytest.raises(AssertionError) as refused:
        await api.kubectl("apply", "-f", "-", stdin=manifest)
    said = str(refused.value)
    assert 'The ServiceGroup "one" is invalid' in said
    assert "spec.local.v4pools[0]: Invalid value" in said
    assert IPV4_ONLY in said
    assert "exactly one of local, remote or external must be given" in said


def schema_of(name: str, version: str) -> dict[str, Any]:
    document = yaml.safe_load((DEPLOY / "crds" / f"{name}.yaml").read_text())
    found = next(v for v in document["spec"]["versions"] if v["name"] == version)
    schema: dict[str, Any] = found["schema"]["openAPIV3Schema"]
    return schema


class Noted(dict[str, Any]):
    """A part of a spec that notes which fields are asked of it."""

    def __init__(self, where: str, asked: set[str], content: dict[str, Any]) -> None:
        super().__init__(content)
        self.where, self.asked = where, asked

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(f"{self.where}.{name}")
        return super().get(name, default)


def paths(schema: dict[str, Any], where: str) -> set[str]:
    """Every field of a schema, those inside of lists and objects included."""
    found: set[str] = set()
    for name, field in schema.get("properties", {}).items():
        found.add(f"{where}.{name}")
        found |= paths(field.get("items", field), f"{where}.{name}")
    return found


def read_by_the_allocator(kind: str) -> set[str]:
    """What is asked of a v2 group of this kind."""
    asked: set[str] = set()
    where = f"spec.{kind}"
    one = {"subnet": "172.31.0.0/24", "pool": "172.31.0.0/24"}
    other = {"subnet": "fd31::/64", "pool": "fd31::/64"}
    body = {
        "v4pools": [Noted(f"{where}.v4pools", asked, dict(POOL))],
        "v6pools": [Noted(f"{where}.v6pools", asked, dict(POOL6))],
        "v4pool": Noted(f"{where}.v4pool", asked, one),
        "v6pool": Noted(f"{where}.v6pool", asked, other),
    }
    spec = Noted("spec", asked, {kind: Noted(where, asked, body)})
    parse_group(ObjectView("ServiceGroup", "purelb.io/v2", NS, "one", "u", "1", 1, None, spec))
    return asked


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("kind", ["local", "remote"])
def test_the_schema_has_the_fields_that_the_allocator_reads_and_no_others(version: str, kind: str) -> None:
    known = paths(schema_of("servicegroups", version)["properties"]["spec"], "spec")
    asked = read_by_the_allocator(kind)
    # v1's way to name one pool, which only `local` has: its two other fields are read where there is a `pool`.
    assert asked - known <= {"spec.remote.pool"}
    other = tuple(f"spec.{name}" for name in ("external", "netbox", "local", "remote") if name != kind)
    unread = {path for path in known - asked if not path.startswith(other)}
    assert unread <= {"spec.local.subnet", "spec.local.aggregation"}


def read_by_the_agent() -> set[str]:
    asked: set[str] = set()

    def noted(where: str, *children: str) -> Noted:
        return Noted(where, asked, {child: noted(f"{where}.{child}") for child in children})

    local = noted("spec.local", "garpConfig", "addressConfig", "addressGuard", "conflictProbe")
    local["addressConfig"] = noted("spec.local.addressConfig", "localInterface", "dummyInterface")
    # Were it empty, it would be as if it were not there.
    local["addressGuard"]["failurePolicy"] = "open"
    spec = Noted("spec", asked, {"local": local, "nodeSelector": noted("spec.nodeSelector")})
    view = ObjectView("LBNodeAgent", "purelb.io/v2", NS, "one", "u", "1", 1, None, spec)
    parse_agent_config(view)
    parse_selector(view)
    return asked


@pytest.mark.spec("C3")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_schema_has_the_fields_that_the_agents_read_and_no_others(version: str) -> None:
    known = paths(schema_of("lbnodeagents", version)["properties"]["spec"], "spec")
    asked = read_by_the_agent()
    assert asked - known == set()
    unread = {path for path in known - asked if not path.startswith("spec.nodeSelector.matchExpressions.")}
    assert unread == {"spec.local.sendgarp"}


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("name", ["servicegroups", "lbnodeagents", "nodeannouncements"])
def test_what_rules_look_into_is_bounded_so_that_an_api_server_can_tell_their_cost(name: str, version: str) -> None:
    """A real one refuses a CRD whose rules could cost too much, reckoned from the longest lists and texts."""
    document = yaml.safe_load((DEPLOY / "crds" / f"{name}.yaml").read_text())
    if version not in {v["name"] for v in document["spec"]["versions"]}:
        return
    unbounded: list[str] = []
    has_rules(schema_of(name, version), name, unbounded)
    assert unbounded == []


def has_rules(schema: dict[str, Any], where: str, unbounded: list[str]) -> bool:
    """Whether it has rules. Notes lists with rules beneath them, and what rules look into, where they have no bound."""
    rules = " ".join(rule["rule"] for rule in schema.get("x-kubernetes-validations", []))
    found = bool(rules)
    for name, field in schema.get("properties", {}).items():
        looked_into = f"self.{name}.contains" in rules or f"self.{name}.size" in rules
        if looked_into and not {"maxLength", "maxItems"} & set(field):
            unbounded.append(f"{where}.{name}")
        found |= has_rules(field, f"{where}.{name}", unbounded)
    if "items" in schema and has_rules(schema["items"], where, unbounded):
        found = True
        if "maxItems" not in schema:
            unbounded.append(where)
    return found


def rules(schema: dict[str, Any], where: str = "") -> dict[str, list[tuple[str, str]]]:
    """Each rule and what it says, by the field that it is about."""
    found: dict[str, list[tuple[str, str]]] = {}
    if mine := schema.get("x-kubernetes-validations"):
        found[where] = [(rule["rule"], rule["message"]) for rule in mine]
    for name, field in schema.get("properties", {}).items():
        found |= rules(field, f"{where}.{name}".lstrip("."))
    return found | (rules(schema["items"], where) if "items" in schema else {})


@pytest.mark.spec("A9")
def test_both_versions_of_a_group_have_the_same_rules_wherever_they_have_the_same_field() -> None:
    """So that what is shown of one field in one version holds for all."""
    one, two = (rules(schema_of("servicegroups", version)) for version in ("v1", "v2"))
    assert {path: each for path, each in one.items() if path != "spec"} == {
        path: each for path, each in two.items() if path != "spec"
    }
    for kind in ("local", "remote"):
        assert [text for _, text in two[f"spec.{kind}"]] == [
            "multiPool and balancePools cannot go together, it is every pool or one pool"
        ]
        for field, text in (("v4pool", IPV4_ONLY), ("v6pool", IPV6_ONLY)):
            assert two[f"spec.{kind}.{field}"] == two[f"spec.{kind}.{field}s"]
            assert [told for _, told in two[f"spec.{kind}.{field}"]] == [text]
            assert two[f"spec.{kind}.{field}"] == two[f"spec.local.{field}"]
    assert one["spec"][2:] == two["spec"][1:]
    agents = [rules(schema_of("lbnodeagents", version)) for version in ("v1", "v2")]
    assert agents[0] == agents[1]


COUNTS = ("allocated", "available", "quarantined", "reserved", "orphaned")
STATUS = {
    *(f"{count}IPv{family}" for count in COUNTS for family in "46"),
    *("observedGeneration", "announce", "ipam", "addresses", "boundNamespaces", "conditions"),
}


@pytest.mark.spec("A28")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_schema_of_the_status_has_what_the_allocator_writes(version: str) -> None:
    status = schema_of("servicegroups", version)["properties"]["status"]["properties"]
    assert set(status) == STATUS
    assert {field["format"] for name, field in status.items() if "IPv" in name} == {"int64"}
