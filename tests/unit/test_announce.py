"""What a node should announce, decided from values alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address, Network
from purelb_sm.domain.agent_config import AddressConfig, AgentConfig, ProbeConfig
from purelb_sm.domain.announce import Announcements, Desired, Groups, Keep, Kind, Place
from purelb_sm.domain.announcing import Holder, announcing_changes, parse_announcing, render_announcing
from purelb_sm.domain.election import Electorate
from purelb_sm.domain.groups import Group, parse_group
from purelb_sm.domain.views import Ingress, ObjectView, ServiceKey, ServiceView

LAN, LAN6, OTHER = ip_network("172.30.250.0/24"), ip_network("2001:db8:30::/64"), ip_network("192.168.9.0/24")


def group(name: str, kind: str, *pools: tuple[str, str, str], version: str = "v2") -> Group:
    spec: dict[str, Any] = {kind: {}}
    for subnet, pool, aggregation in pools:
        family = "v6pools" if ":" in subnet else "v4pools"
        spec[kind].setdefault(family, []).append({"subnet": subnet, "pool": pool, "aggregation": aggregation})
    created = datetime(2026, 1, 1, tzinfo=UTC)
    return parse_group(
        ObjectView("ServiceGroup", f"purelb.io/{version}", "purelb-system", name, "u", "1", 1, created, spec)
    )


LOCAL = group(
    "default",
    "local",
    ("172.30.250.0/24", "172.30.250.50-172.30.250.60", "default"),
    ("2001:db8:30::/64", "2001:db8:30::8000/113", "default"),
)
REMOTE = group("routed", "remote", ("172.31.1.0/24", "172.31.1.0/24", "/32"), ("fd00:1::/64", "fd00:1::/64", "/128"))
V1 = group("virtual", "local", ("172.32.0.0/16", "172.32.0.0/24", "/24"), version="v1")
GROUPS = Groups((LOCAL, REMOTE, V1))


def service(name: str, *ips: str, group: str = "default", **changes: Any) -> ServiceView:
    values: dict[str, Any] = {
        "key": ServiceKey("test", name),
        "uid": "uid-" + name,
        "resource_version": "1",
        "type": "LoadBalancer",
        "ingress": tuple(Ingress(ip) for ip in ips),
        "annotations": {names.ALLOCATED_BY: names.BRAND, names.ALLOCATED_FROM: group},
    }
    return ServiceView(**(values | changes))


def place(node: str = "a", live: Mapping[str, tuple[Network, ...]] | None = None, **changes: Any) -> Place:
    live = {"a": (LAN, LAN6), "b": (LAN, LAN6), "c": (OTHER,)} if live is None else live
    own = tuple((f"eth{net.version}", net) for net in live.get(node, ()))
    values: dict[str, Any] = {"node": node, "electorate": Electorate(live), "subnets": own, "groups": GROUPS}
    return Place(**(values | changes))


def verdicts(where: Place, *views: ServiceView) -> dict[Address, Any]:
    table = Announcements(where)
    for view in views:
        table.update(view)
    return {address: v for address in table.addresses() if (v := table.decide(address)) is not None}


@pytest.mark.spec("C2")
def test_exactly_one_node_holds_a_local_address() -> None:
    for last in range(50, 61):
        address = ip_address(f"172.30.250.{last}")
        holders = [n for n in "abc" if address in verdicts(place(n), service("s", str(address)))]
        assert holders == [place().electorate.winner(address)]


@pytest.mark.spec("C2", "C3")
def test_a_local_address_goes_on_the_interface_of_its_subnet_with_its_prefix_and_a_lifetime() -> None:
    found = verdicts(place(live={"a": (LAN, LAN6)}), service("s", "172.30.250.53", "2001:db8:30::8001"))
    key = (ServiceKey("test", "s"),)
    one, other = ip_address("172.30.250.53"), ip_address("2001:db8:30::8001")
    assert found == {
        one: Desired(one, Kind.LOCAL, "eth4", 24, 300, None, True, key),
        other: Desired(other, Kind.LOCAL, "eth6", 64, 300, None, True, key, guarded=True),
    }


@pytest.mark.spec("C2", "C3")
@pytest.mark.parametrize("reverse", [False, True])
def test_of_several_subnets_with_the_address_the_narrowest_is_taken_and_of_equal_ones_the_first(reverse: bool) -> None:
    narrow = ip_network("172.30.250.48/28")
    own = [("wide0", LAN), ("narrow0", narrow), ("narrow1", narrow), ("lan6", LAN6)]
    own = own[::-1] if reverse else own
    where = place(live={"a": (LAN, narrow, LAN6)}, subnets=tuple(own))
    found = verdicts(where, service("s", "172.30.250.53", "2001:db8:30::8001"))
    shown = {str(address): (one.interface, one.prefix_length) for address, one in found.items()}
    first = "narrow1" if reverse else "narrow0"
    assert shown == {"172.30.250.53": (first, 28), "2001:db8:30::8001": ("lan6", 64)}


@pytest.mark.spec("C20")
@pytest.mark.parametrize("probe", [False, True])
@pytest.mark.parametrize("skip", [None, False, True])
def test_foreign_hosts_are_looked_for_as_configuration_and_group_say(probe: bool, skip: bool | None) -> None:
    pools = {f"v{lan.version}pool": {"subnet": str(lan), "pool": str(lan)} for lan in (LAN, LAN6)}
    spec = {"local": pools | ({} if skip is None else {"skipIPv6DAD": skip})}
    view = ObjectView("ServiceGroup", "purelb.io/v2", "purelb-system", "default", "u", "1", 1, None, spec)
    where = place(
        live={"a": (LAN, LAN6)},
        groups=Groups((parse_group(view), REMOTE)),
        config=AgentConfig(probe=ProbeConfig(enabled=probe)),
    )
    found = verdicts(
        where,
        service("s", "172.30.250.53", "2001:db8:30::8001"),
        service("r", "172.31.1.225", "fd00:1::225", group="routed"),
    )
    guarded = {str(address) for address, verdict in found.items() if verdict.guarded}
    assert guarded == ({"172.30.250.53"} if probe else set()) | (set() if skip else {"2001:db8:30::8001"})


def test_a_group_that_skips_the_probe_from_now_on_has_all_its_addresses_looked_at() -> None:
    other = replace(LOCAL, skip_ipv6_dad=True)
    table = Announcements(place())
    table.update(service("s", "2001:db8:30::8001"))
    assert set(table.move(place(groups=Groups((other, REMOTE, V1))))) == {ip_address("2001:db8:30::8001")}


@pytest.mark.spec("C2", "C3")
def test_every_node_holds_a_remote_address_for_ever_with_the_groups_aggregation() -> None:
    address = ip_address("172.31.1.225")
    for node in "abc":
        found = verdicts(place(node), service("s", str(address), group="routed"))
        assert found[address] == Desired(
            address, Kind.REMOTE, "kube-lb0", 32, None, None, False, (ServiceKey("test", "s"),)
        )


@pytest.mark.spec("C2")
def test_a_local_group_whose_subnet_no_node_has_is_announced_by_nobody() -> None:
    assert verdicts(place(live={"a": (OTHER,)}), service("s", "172.30.250.53")) == {}


@pytest.mark.spec("C2")
def test_a_v1_address_is_remote_while_no_node_has_its_subnet_and_local_once_one_has() -> None:
    view, address = service("s", "172.32.0.9", group="virtual"), ip_address("172.32.0.9")
    remote = verdicts(place(), view)[address]
    assert (remote.kind, remote.interface, remote.prefix_length) == (Kind.REMOTE, "kube-lb0", 24)
    live = {"a": (LAN,), "c": (ip_network("172.32.0.0/16"),)}
    assert verdicts(place("a", live), view) == {}
    local = verdicts(place("c", live), view)[address]
    assert (local.kind, local.interface, local.prefix_length) == (Kind.LOCAL, "eth4", 16)


@pytest.mark.spec("C3")
def test_the_nodes_config_decides_how_addresses_are_put_there() -> None:
    config = AgentConfig(
        dummy_interface="ext0", local=AddressConfig(600, 60, False), remote=AddressConfig(900, None, True)
    )
    found = verdicts(
        place(live={"a": (LAN,)}, config=config), service("l", "172.30.250.50"), service("r", "172.31.1.0")
    )
    assert [(d.interface, d.lifetime_s, d.preferred_s, d.noprefixroute) for d in found.values()] == [
        ("eth4", 600, 60, False),
        ("ext0", 900, None, True),
    ]


@pytest.mark.spec("C1", "C19")
@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": {}},
        {"annotations": {names.ALLOCATED_BY: "MetalLB"}},
        {"annotations": {names.ALLOCATED_BY: "purelb"}},
        {"type": "ClusterIP"},
        {"type": "NodePort"},
        {"load_balancer_class": "example.com/other"},
        {"deleting": True},
        {"ingress": ()},
        {"ingress": (Ingress(hostname="172.31.1.1"),)},
        {"ingress": (Ingress("172.031.1.1"),)},
        {"ingress": (Ingress("::ffff:172.31.1.1"),)},
    ],
    ids=str,
)
def test_what_is_not_ours_is_never_announced(changes: dict[str, Any]) -> None:
    assert verdicts(place(), service("s", **({"ingress": (Ingress("172.31.1.1"),)} | changes))) == {}


@pytest.mark.spec("C1")
@pytest.mark.parametrize("ip", ["172.30.250.49", "172.30.250.61", "8.8.8.8", "172.30.250.1", "2001:db8:30::1"])
def test_an_address_outside_every_group_is_never_taken_up(ip: str) -> None:
    table = Announcements(place(live={"a": (LAN, LAN6)}))
    table.update(service("s", ip))
    assert not isinstance(table.decide(ip_address(ip)), Desired)
    table.update(service("s", ip, group="no-such-group"))
    assert table.decide(ip_address(ip)) is None


@pytest.mark.spec("C1")
def test_our_own_class_and_none_are_ours() -> None:
    assert len(verdicts(place(), service("s", "172.31.1.1", load_balancer_class=names.LOAD_BALANCER_CLASS))) == 1
    assert len(verdicts(place(), service("s", "172.31.1.1", load_balancer_class=None))) == 1


@pytest.mark.spec("C11")
def test_a_group_that_is_gone_takes_its_addresses_along() -> None:
    table = Announcements(place())
    table.update(service("s", "172.31.1.1", group="routed"))
    assert table.decide(ip_address("172.31.1.1")) is not None
    assert list(table.move(place(groups=Groups((LOCAL,))))) == [ip_address("172.31.1.1")]
    assert table.decide(ip_address("172.31.1.1")) is None


def test_a_group_that_cannot_be_used_leaves_what_is_held_and_concerns_no_other() -> None:
    table = Announcements(place(groups=Groups((REMOTE,), unusable=["default"]), live={"a": (LAN,)}))
    table.update(service("s", "172.30.250.53"))
    table.update(service("t", "172.31.1.1", group="routed"))
    assert isinstance(table.decide(ip_address("172.30.250.53")), Keep)
    assert isinstance(table.decide(ip_address("172.31.1.1")), Desired)


def test_a_holder_outside_the_edited_ranges_keeps_what_it_has() -> None:
    narrowed = group("default", "local", ("172.30.250.0/24", "172.30.250.58-172.30.250.60", "default"))
    table = Announcements(place(groups=Groups((narrowed,)), live={"a": (LAN,)}))
    table.update(service("s", "172.30.250.53"))
    assert isinstance(table.decide(ip_address("172.30.250.53")), Keep)


@pytest.mark.spec("C3")
def test_a_node_that_may_not_announce_has_nothing_and_leaves_local_addresses_to_the_others() -> None:
    """Neither what it would win, nor what every node has, nor what is in no group any more."""
    table = Announcements(place(config=None, live={"a": (LAN,), "b": (LAN,)}))
    for number in range(20):
        table.update(service(f"l{number}", f"172.30.250.{53 + number}"))
    table.update(service("s", "172.31.1.1"))
    table.update(service("o", "192.0.2.1"))
    assert {table.decide(address) for address in table.addresses()} == {None}
    concerned = set(table.move(place(live={"a": (LAN,), "b": (LAN,)})))
    assert ip_address("172.31.1.1") in concerned
    assert isinstance(table.decide(ip_address("172.31.1.1")), Desired)


class At:
    def __init__(self, **here: bool | None) -> None:
        self._here = here

    def here(self, service: ServiceKey) -> bool | None:
        return self._here.get(service.name)

    def nodes(self, service: ServiceKey) -> None:
        raise AssertionError("nobody asks on which nodes they are")


@pytest.mark.parametrize(("here", "kind"), [(True, Desired), (False, type(None)), (None, Keep)])
def test_policy_local_of_a_remote_address_follows_the_endpoints(here: bool | None, kind: type) -> None:
    table = Announcements(place(), At(s=here))
    table.update(service("s", "172.31.1.1", external_traffic_policy="Local"))
    assert type(table.decide(ip_address("172.31.1.1"))) is kind


def test_a_shared_remote_address_is_held_if_any_of_its_services_needs_it_here() -> None:
    table = Announcements(place(), At(s=False))
    table.update(service("s", "172.31.1.1", external_traffic_policy="Local"))
    table.update(service("t", "172.31.1.1"))
    verdict = table.decide(ip_address("172.31.1.1"))
    assert isinstance(verdict, Desired)
    assert verdict.services == (ServiceKey("test", "s"), ServiceKey("test", "t"))
    table.forget(ServiceKey("test", "t"))
    assert table.decide(ip_address("172.31.1.1")) is None


@pytest.mark.spec("C19")
def test_an_address_that_leaves_the_ingress_is_looked_at_and_let_go() -> None:
    table = Announcements(place())
    table.update(service("s", "172.31.1.1", "fd00:1::1"))
    assert table.update(service("s", "172.31.1.1")) == (ip_address("172.31.1.1"), ip_address("fd00:1::1"))
    assert table.decide(ip_address("fd00:1::1")) is None
    assert table.update(service("s", "172.31.1.1", resource_version="2")) == ()
    assert table.forget(ServiceKey("test", "s")) == (ip_address("172.31.1.1"),)
    assert table.forget(ServiceKey("test", "s")) == ()


def test_a_service_among_many_costs_only_its_own_addresses() -> None:
    table = Announcements(place())
    for n in range(200):
        table.update(service(f"s{n}", f"172.31.1.{n}"))
    assert table.update(service("s7", "172.31.1.7", "fd00:1::7")) == (ip_address("172.31.1.7"), ip_address("fd00:1::7"))


def test_a_new_resource_version_of_a_group_makes_nobody_look() -> None:
    table = Announcements(place())
    table.update(service("s", "172.31.1.1"))
    again = replace(REMOTE, resource_version="99", generation=7)
    assert not table.move(place(groups=Groups((LOCAL, again, V1))))


LIVE = st.dictionaries(
    st.sampled_from("abcde"), st.sampled_from([(LAN,), (LAN, LAN6), (OTHER,), (ip_network("172.32.0.0/16"),)])
)
ADDRESS = st.sampled_from(
    ["172.30.250.50", "172.30.250.53", "172.31.1.1", "172.32.0.9", "172.32.0.10", "2001:db8:30::8001", "9.9.9.9"]
)
STEP = st.one_of(
    st.tuples(st.just("update"), st.sampled_from("stuv"), st.lists(ADDRESS, max_size=3)),
    st.tuples(st.just("forget"), st.sampled_from("stuv"), st.none()),
    st.tuples(st.just("move"), st.just(""), LIVE),
)


@pytest.mark.spec("C2", "C5")
@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=25))
def test_the_short_way_decides_as_the_long_way(steps: list[tuple[str, str, Any]]) -> None:
    """Looking only at what each step names leads to what a node that starts now would decide."""
    table, now, views = Announcements(place(live={})), place(live={}), {}
    seen: dict[Address, Any] = {}
    for step, name, what in steps:
        if step == "update":
            views[name] = service(name, *what)
            look = table.update(views[name])
        elif step == "forget":
            views.pop(name, None)
            look = table.forget(ServiceKey("test", name))
        else:
            now = place(live=what)
            look = tuple(table.move(now))
        for address in look:
            seen[address] = table.decide(address)
        assert {a: v for a, v in seen.items() if v is not None} == verdicts(now, *views.values())


@settings(max_examples=100, deadline=None)
@given(LIVE, st.lists(ADDRESS, max_size=5))
@pytest.mark.spec("C2")
def test_no_two_live_nodes_hold_one_local_address(live: dict[str, tuple[Network, ...]], ips: list[str]) -> None:
    holders: dict[Address, list[str]] = {}
    for node in live:
        for address, verdict in verdicts(place(node, live), service("s", *ips)).items():
            if isinstance(verdict, Desired) and verdict.kind is Kind.LOCAL:
                holders.setdefault(address, []).append(node)
    assert all(len(nodes) == 1 for nodes in holders.values())


# The annotations.

ONE, TWO, SIX = ip_address("172.30.250.50"), ip_address("172.30.250.51"), ip_address("2001:db8:30::8001")


def write(
    text: str | None, addresses: list[Address], node: str, mine: dict[Address, str], given_up: tuple[Address, ...] = ()
) -> dict[str, str | None]:
    annotations = {} if text is None else {names.ANNOUNCING_V4: text}
    view = service("s", *map(str, addresses), annotations=annotations)
    return announcing_changes(view, addresses, node, mine, given_up)


@pytest.mark.spec("C9")
@pytest.mark.parametrize(
    ("text", "addresses", "mine", "expected"),
    [
        (None, [ONE], {ONE: "enp1s0"}, "a, enp1s0"),
        ("b, eth0", [ONE], {ONE: "enp1s0"}, "a, enp1s0"),
        ("b, eth0", [ONE, TWO], {TWO: "e1"}, "a,e1,172.30.250.51"),
        ("b,e0,172.30.250.50", [ONE, TWO], {TWO: "e1"}, "b,e0,172.30.250.50 a,e1,172.30.250.51"),
        ("b,e0,172.30.250.51 a,e1,172.30.250.50", [TWO], {}, "b, e0"),
        ("a,e0,172.30.250.50 b,e1,172.30.250.51", [ONE, TWO], {}, "b,e1,172.30.250.51"),
        ("a, eth0", [ONE], {}, None),
        ("rubbish", [ONE], {}, None),
        ("x,y,z,not-an-ip , ,", [ONE, TWO], {ONE: "eth0,1"}, "a,eth0,1,172.30.250.50"),
    ],
)
def test_a_node_writes_its_own_entry_and_only_that(
    text: str | None, addresses: list[Address], mine: dict[Address, str], expected: str | None
) -> None:
    assert write(text, addresses, "a", mine, (ONE, TWO)) == {names.ANNOUNCING_V4: expected}
    assert write(expected, addresses, "a", mine, (ONE, TWO)) == {}


@pytest.mark.spec("C9")
def test_the_loser_leaves_its_entry_for_the_winner_to_replace() -> None:
    assert write("a, eth0", [ONE], "a", {}) == {}
    assert write("a, eth0", [ONE], "b", {ONE: "eth0"}) == {names.ANNOUNCING_V4: "b, eth0"}


@pytest.mark.spec("C9")
def test_a_family_of_its_own_for_each_family_and_none_for_remote() -> None:
    view = service("s", str(ONE), str(SIX), annotations={names.ANNOUNCING_V6: "b, eth0"})
    changes = announcing_changes(view, [ONE, SIX], "a", {ONE: "e0"}, remote=(SIX,))
    assert changes == {names.ANNOUNCING_V4: "a, e0", names.ANNOUNCING_V6: None}


HOLDERS = st.dictionaries(
    st.sampled_from([ONE, TWO, ip_address("172.30.250.52")]),
    st.builds(Holder, st.sampled_from(["a", "b.example", "c-1"]), st.sampled_from(["eth0", "br,0", "en.7"])),
)


@pytest.mark.spec("C9")
@given(HOLDERS, st.integers(1, 3))
def test_what_is_written_is_read_again(holders: dict[Address, Holder], count: int) -> None:
    addresses = [ONE, TWO, ip_address("172.30.250.52")][:count]
    here = {a: h for a, h in holders.items() if a in addresses}
    assert parse_announcing(render_announcing(here, addresses), addresses) == here


@pytest.mark.spec("C9")
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([ONE, TWO])), max_size=12))
def test_nodes_that_write_in_any_order_come_to_rest_and_undo_nobody(turns: list[tuple[str, Address]]) -> None:
    owner = {ONE: "a", TWO: "b"}
    text: str | None = None
    for node in [*(n for n, _ in turns), "a", "b", "c"]:
        mine = {a: "eth0" for a, n in owner.items() if n == node}
        lost = [a for a, n in owner.items() if n != node]
        annotations = {} if text is None else {names.ANNOUNCING_V4: text}
        view = service("s", str(ONE), str(TWO), annotations=annotations)
        changes = announcing_changes(view, [ONE, TWO], node, mine, lost)
        text = changes.get(names.ANNOUNCING_V4, text)
    assert text == "a,eth0,172.30.250.50 b,eth0,172.30.250.51"
