"""LBNodeAgent objects are read as PureLB's users wrote them, or refused by field and value."""

from __future__ import annotations

from typing import Any

import pytest

from purelb_sm.domain.agent_config import (
    DEFAULT_CONFIG,
    AddressConfig,
    AgentConfig,
    Choice,
    GarpConfig,
    ProbeConfig,
    choose_config,
    parse_agent_config,
    parse_selector,
)
from purelb_sm.domain.views import ObjectView
from purelb_sm.errors import InvalidAgentConfig


def lbna(spec: object, name: str = "default", version: str = "v2") -> ObjectView:
    return ObjectView("LBNodeAgent", f"purelb.io/{version}", "purelb-system", name, "u-" + name, "1", 1, None, spec)


def local(**body: Any) -> ObjectView:
    return lbna({"local": body})


@pytest.mark.spec("C3", "C7")
def test_without_an_object_the_defaults_hold() -> None:
    config = choose_config([], {}).config
    assert config == DEFAULT_CONFIG
    assert config == AgentConfig(
        "",
        "default",
        (),
        "kube-lb0",
        GarpConfig(True, 0.1, 3, 0.5, True),
        local=AddressConfig(300, None, True),
        remote=AddressConfig(None, None, False),
    )


@pytest.mark.spec("C3")
def test_v2_is_read() -> None:
    assert parse_agent_config(
        local(
            localInterface="eth.*|enp0s[0-9]",
            interfaces=["bond0", "eth9"],
            dummyInterface="lb-ext",
            garpConfig={
                "enabled": False,
                "initialDelay": "1s",
                "count": 5,
                "interval": "250ms",
                "verifyBeforeSend": False,
            },
            addressConfig={
                "localInterface": {"validLifetime": 600, "preferredLifetime": 120, "noPrefixRoute": False},
                "dummyInterface": {"validLifetime": 0, "noPrefixRoute": True},
            },
        )
    ) == AgentConfig(
        "default",
        "eth.*|enp0s[0-9]",
        ("bond0", "eth9"),
        "lb-ext",
        GarpConfig(False, 1.0, 5, 0.25, False),
        AddressConfig(600, 120, False),
        AddressConfig(None, None, True),
    )


@pytest.mark.spec("C20")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_probe_is_off_for_ipv4_until_it_is_asked_for(version: str) -> None:
    assert DEFAULT_CONFIG.probe == ProbeConfig(False, 3, 0.1)

    def read(probe: object) -> ProbeConfig:
        return parse_agent_config(lbna({"local": {"conflictProbe": probe}}, "x", version)).probe

    assert read({"enabled": True, "count": 2, "interval": "50ms"}) == ProbeConfig(True, 2, 0.05)
    assert read({}) == ProbeConfig()


@pytest.mark.spec("C3")
def test_v1_is_read_under_its_own_names() -> None:
    config = parse_agent_config(
        lbna({"local": {"localint": "eth1", "extlbint": "kube-lb9", "sendgarp": False}}, "x", "v1")
    )
    assert (config.local_interface, config.dummy_interface, config.garp) == ("eth1", "kube-lb9", GarpConfig())


@pytest.mark.spec("C3")
@pytest.mark.parametrize(
    ("config", "name", "yes"),
    [
        (AgentConfig(local_interface="eth.*"), "eth0", True),
        (AgentConfig(local_interface="^eth0$"), "veth0", False),
        (AgentConfig(local_interface="eth0"), "wlan0", False),
        (AgentConfig(), "eth0", False),
        (AgentConfig(interfaces=("bond0",)), "bond0", True),
        (AgentConfig(interfaces=("bond0",)), "bond01", False),
        (AgentConfig(local_interface=".*"), "kube-lb0", False),
    ],
)
def test_selected_interfaces(config: AgentConfig, name: str, yes: bool) -> None:
    assert config.selects(name) is yes


@pytest.mark.spec("C3")
def test_interfaces_are_preferred_by_name_where_the_expression_finds_them_and_then_as_they_are_written() -> None:
    config = AgentConfig(local_interface="^eth", interfaces=("zzz0", "bond0", "eth1"))
    assert sorted(["bond0", "eth1", "eth0", "zzz0"], key=config.preference) == ["eth0", "eth1", "zzz0", "bond0"]


@pytest.mark.spec("C3")
def test_where_purelb_would_go_on_without_its_guard_so_do_we() -> None:
    assert parse_agent_config(local(addressGuard={"failurePolicy": "open"})) == AgentConfig("default")
    assert parse_agent_config(local(addressGuard={})) == AgentConfig("default")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (None, "spec"),
        ({"local": []}, "spec.local"),
        ({"local": {"localInterface": "eth["}}, "spec.local.localInterface"),
        ({"local": {"localInterface": 7}}, "spec.local.localInterface"),
        ({"local": {"localint": "(?P<a"}}, "spec.local.localint"),
        ({"local": {"localInterface": "eth[[:digit:]]"}}, "spec.local.localInterface"),
        ({"local": {"localInterface": "eth(?i)0"}}, "spec.local.localInterface"),
        ({"local": {"localInterface": "(eth0){99999999999}"}}, "spec.local.localInterface"),
        ({"local": {"addressGuard": {"mode": "enforce"}}}, "spec.local.addressGuard"),
        ({"local": {"addressGuard": {"mode": "enforce", "failurePolicy": "closed"}}}, "spec.local.addressGuard"),
        ({"local": {"addressGuard": "on"}}, "spec.local.addressGuard"),
        ({"local": {"interfaces": "eth0"}}, "spec.local.interfaces"),
        ({"local": {"interfaces": ["eth0", None]}}, "spec.local.interfaces[1]"),
        ({"local": {"interfaces": ["a/b"]}}, "spec.local.interfaces[0]"),
        ({"local": {"dummyInterface": "kube-lb0-but-too-long"}}, "spec.local.dummyInterface"),
        ({"local": {"garpConfig": {"count": 0}}}, "spec.local.garpConfig.count"),
        ({"local": {"garpConfig": {"count": 11}}}, "spec.local.garpConfig.count"),
        ({"local": {"garpConfig": {"count": True}}}, "spec.local.garpConfig.count"),
        ({"local": {"garpConfig": {"enabled": "yes"}}}, "spec.local.garpConfig.enabled"),
        ({"local": {"garpConfig": {"initialDelay": "soon"}}}, "spec.local.garpConfig.initialDelay"),
        ({"local": {"garpConfig": {"interval": 5}}}, "spec.local.garpConfig.interval"),
        ({"local": {"conflictProbe": True}}, "spec.local.conflictProbe"),
        ({"local": {"conflictProbe": {"enabled": 1}}}, "spec.local.conflictProbe.enabled"),
        ({"local": {"conflictProbe": {"count": 0}}}, "spec.local.conflictProbe.count"),
        ({"local": {"conflictProbe": {"interval": "19ms"}}}, "spec.local.conflictProbe.interval"),
        ({"local": {"conflictProbe": {"interval": "3s"}}}, "spec.local.conflictProbe.interval"),
        (
            {"local": {"addressConfig": {"localInterface": {"validLifetime": 59}}}},
            "spec.local.addressConfig.localInterface.validLifetime",
        ),
        (
            {"local": {"addressConfig": {"localInterface": {"preferredLifetime": 301}}}},
            "spec.local.addressConfig.localInterface.preferredLifetime",
        ),
        (
            {"local": {"addressConfig": {"dummyInterface": {"preferredLifetime": 60}}}},
            "spec.local.addressConfig.dummyInterface.preferredLifetime",
        ),
        ({"local": {"addressConfig": {"dummyInterface": "x"}}}, "spec.local.addressConfig.dummyInterface"),
    ],
)
def test_what_cannot_be_read_is_refused_by_field(spec: object, field: str) -> None:
    with pytest.raises(InvalidAgentConfig) as caught:
        parse_agent_config(lbna(spec))
    assert caught.value.field == field


IN_ZONE_A = {"nodeSelector": {"matchLabels": {"zone": "a"}}, "local": {"localInterface": "eth1"}}


@pytest.mark.spec("C3")
def test_a_selector_that_names_the_node_goes_before_one_for_all() -> None:
    views = [lbna({"local": {"localInterface": "eth0"}}, "aaa"), lbna(IN_ZONE_A, "zzz")]
    in_a, in_b = choose_config(views, {"zone": "a"}).config, choose_config(views, {"zone": "b"}).config
    assert in_a is not None
    assert in_b is not None
    assert (in_a.source, in_b.source) == ("zzz", "aaa")


@pytest.mark.spec("C3")
def test_an_empty_selector_is_for_all_and_names_decide_within_a_kind() -> None:
    views = [lbna({"nodeSelector": {}, "local": {}}, "bbb"), lbna({"local": {}}, "aaa"), lbna({"local": {}}, "ccc")]
    for order in (views, views[::-1]):
        chosen = choose_config(order, {}).config
        assert chosen is not None
        assert chosen.source == "aaa"


@pytest.mark.spec("C3")
@pytest.mark.parametrize("extra", [[], ["nothing"]])
def test_a_node_that_no_object_is_for_announces_nothing(extra: list[str]) -> None:
    views = [lbna(IN_ZONE_A, "mine"), *[lbna({}, name) for name in extra]]
    assert choose_config(views, {"zone": "b"}) == Choice(None)
    assert choose_config(views, {"zone": "a"}).used == "mine"
    # With one for all beside it that node goes on, whatever its name.
    chosen = choose_config([*views, lbna({"local": {}}, "zzz")], {"zone": "b"})
    assert (chosen.used, chosen.unused) == ("zzz", ())


@pytest.mark.spec("C3")
def test_objects_that_say_the_same_node_twice_are_told_and_an_exception_to_the_rule_is_not() -> None:
    exception, rule = lbna(IN_ZONE_A, "exception"), lbna({"local": {}}, "rule")
    again, twice = lbna({"local": {}}, "second"), lbna(IN_ZONE_A, "too")
    nowhere = lbna({"nodeSelector": IN_ZONE_A["nodeSelector"]}, "a-without-local")
    views = [again, rule, twice, exception, nowhere]
    in_a, in_b = choose_config(views, {"zone": "a"}), choose_config(views, {"zone": "b"})
    assert (in_a.used, in_a.unused) == ("exception", (twice,))
    assert (in_b.used, in_b.unused) == ("rule", (again,))


def test_an_object_without_local_is_passed_over() -> None:
    chosen = choose_config([lbna({}, "aaa"), lbna({"local": {"localInterface": "eth5"}}, "bbb")], {}).config
    assert chosen is not None
    assert chosen.local_interface == "eth5"


@pytest.mark.parametrize(
    ("expression", "labels", "yes"),
    [
        ({"key": "k", "operator": "In", "values": ["a", "b"]}, {"k": "b"}, True),
        ({"key": "k", "operator": "In", "values": ["a"]}, {}, False),
        ({"key": "k", "operator": "NotIn", "values": ["a"]}, {}, True),
        ({"key": "k", "operator": "NotIn", "values": ["a"]}, {"k": "a"}, False),
        ({"key": "k", "operator": "Exists"}, {"k": ""}, True),
        ({"key": "k", "operator": "Exists"}, {}, False),
        ({"key": "k", "operator": "DoesNotExist"}, {}, True),
        ({"key": "k", "operator": "DoesNotExist"}, {"k": ""}, False),
    ],
)
def test_match_expressions(expression: dict[str, Any], labels: dict[str, str], yes: bool) -> None:
    (requirement,) = parse_selector(lbna({"nodeSelector": {"matchExpressions": [expression]}}))
    assert requirement.holds(labels) is yes


@pytest.mark.parametrize(
    "selector",
    [
        [],
        {"matchLabels": {"a": 1}},
        {"matchExpressions": {"key": "a"}},
        {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]},
        {"matchExpressions": [{"key": "a", "operator": "In"}]},
        {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["1"]}]},
        {"matchExpressions": [None]},
    ],
)
def test_an_object_whose_selector_cannot_be_read_is_no_nodes(selector: object) -> None:
    choice = choose_config([lbna({"nodeSelector": selector, "local": {"localInterface": "eth7"}})], {})
    assert choice.config == DEFAULT_CONFIG
    assert [view.name for view, _ in choice.problems] == ["default"]


def test_a_node_does_not_guess_when_its_own_object_cannot_be_read() -> None:
    views = [lbna({"local": {"localInterface": "eth0"}}, "all")]
    views.append(lbna({**IN_ZONE_A, "local": {"localInterface": "eth["}}, "mine"))
    choice = choose_config(views, {"zone": "a"})
    assert choice.config is None
    assert [(view.name, error.field) for view, error in choice.problems] == [("mine", "spec.local.localInterface")]
    others = choose_config(views, {}).config
    assert others is not None
    assert others.source == "all"
