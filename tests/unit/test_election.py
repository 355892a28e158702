"""The election decides alike everywhere, and moves no more than it must."""

from __future__ import annotations

from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Network
from purelb_sm.domain.draining import Draining, asked_of, why_leaving
from purelb_sm.domain.election import Electorate, parse_subnets, rank, render_subnets
from purelb_sm.domain.views import NodeView

SUBNETS: list[Network] = [
    ip_network("10.0.0.0/24"),
    ip_network("10.0.0.0/16"),
    ip_network("192.168.7.0/26"),
    ip_network("2001:db8::/64"),
    ip_network("2001:db8:0:1::/64"),
]
nodes = st.dictionaries(
    st.from_regex(r"[a-z]([a-z0-9-]{0,12}[a-z0-9])?", fullmatch=True), st.sets(st.sampled_from(SUBNETS)), max_size=9
)
addresses = st.sampled_from(SUBNETS).flatmap(
    lambda net: st.integers(0, net.num_addresses - 1).map(lambda n: net[n])
) | st.ip_addresses(v=4)


@pytest.mark.spec("C5")
@given(nodes, addresses)
def test_winner_is_the_first_by_sha256_of_those_with_the_subnet(
    live: dict[str, set[Network]], address: IPv4Address | IPv6Address
) -> None:
    have = [n for n, subnets in live.items() if any(s.version == address.version and address in s for s in subnets)]
    expected = min(have, key=lambda n: sha256(f"{n}#{address}".encode()).hexdigest(), default=None)
    assert Electorate(live).winner(address) == expected


@pytest.mark.spec("C5")
@given(nodes, addresses, st.randoms(use_true_random=False))
def test_all_decide_alike_whatever_the_order_in_which_they_learnt_of_each_other(live, address, random) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(live.items())
    random.shuffle(shuffled)
    one, other = Electorate(live), Electorate(dict(shuffled))
    assert one == other
    assert hash(one) == hash(other)
    assert one.winner(address) == other.winner(address)


@pytest.mark.spec("C5")
@given(nodes.filter(bool), st.data())
def test_a_node_that_goes_moves_only_its_own_addresses(live: dict[str, set[Network]], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(live)))
    before, after = Electorate(live), Electorate({n: s for n, s in live.items() if n != gone})
    for address in (ip_network("10.0.0.0/24")[i] for i in range(32)):
        if before.winner(address) != gone:
            assert after.winner(address) == before.winner(address)
        else:
            assert after.winner(address) != gone


@given(nodes, nodes, addresses)
def test_the_short_way_to_the_next_winner_leads_to_the_same_node(
    before: dict[str, set[Network]], after: dict[str, set[Network]], address: IPv4Address | IPv6Address
) -> None:
    old, new = Electorate(before), Electorate({**before, **after})
    assert new.next_winner(address, old.winner(address), new.changed_since(old)) == new.winner(address)
    assert old.next_winner(address, new.winner(address), old.changed_since(new)) == old.winner(address)


def test_addresses_spread_over_the_nodes() -> None:
    live = Electorate({f"node{n}": {SUBNETS[0]} for n in range(4)})
    counts: dict[str | None, int] = {}
    for n in range(200):
        winner = live.winner(ip_address(f"10.0.0.{n}"))
        counts[winner] = counts.get(winner, 0) + 1
    assert set(counts) == set(live.nodes)
    assert min(counts.values()) > 25


def test_nobody_without_the_subnet_wins() -> None:
    assert Electorate({"a": {SUBNETS[3]}, "b": set()}).winner(ip_address("10.0.0.1")) is None


def test_one_node_with_nested_subnets_is_one_candidate() -> None:
    live = Electorate({"a": {SUBNETS[0], SUBNETS[1]}})
    assert live.candidates(ip_address("10.0.0.1")) == ["a"]


def test_an_ipv6_address_is_never_in_an_ipv4_subnet_of_the_same_number() -> None:
    live = Electorate({"a": {ip_network("0.0.0.0/0")}})
    assert live.winner(ip_address("::1.2.3.4")) is None


def test_the_annotation_says_the_subnets_and_nothing_else() -> None:
    text = render_subnets([SUBNETS[3], SUBNETS[0], SUBNETS[0]])
    assert text == "10.0.0.0/24,2001:db8::/64"
    assert parse_subnets(text) == {SUBNETS[0], SUBNETS[3]}
    assert parse_subnets("") == frozenset()


def test_another_nodes_slip_in_its_annotation_stops_nobody() -> None:
    assert parse_subnets("10.0.0.0/24, rubbish,10.0.0.1/24,300.0.0.0/8,,2001:db8::/64") == {SUBNETS[0], SUBNETS[3]}


def test_a_lease_with_endless_subnets_is_read_only_so_far() -> None:
    many = ",".join(f"10.{a}.{b}.0/24" for a in range(8) for b in range(200))
    assert len(parse_subnets(many)) == 256


def test_rank_depends_on_node_and_address() -> None:
    a, b = ip_address("10.0.0.1"), ip_address("10.0.0.2")
    assert len({rank("x", a), rank("x", b), rank("y", a), rank("y", b)}) == 4


# Nodes that are being drained.


@st.composite
def electorates(draw: st.DrawFn) -> Electorate:
    live = draw(nodes)
    return Electorate(live, draw(st.sets(st.sampled_from(sorted(live)))) if live else ())


def holders(live: Electorate, address: IPv4Address | IPv6Address) -> set[str]:
    """Those that may answer: with the subnet, and not drained if there is one that is not."""
    have = {n for n in live.nodes if live.has_subnet_of(n, address)}
    return (have - live.draining) or have


@pytest.mark.spec("C17", "C5")
@given(electorates(), addresses)
def test_a_drained_node_wins_only_where_nobody_else_has_the_subnet_and_nobody_never(
    live: Electorate, address: IPv4Address | IPv6Address
) -> None:
    allowed = holders(live, address)
    winner = live.winner(address)
    assert winner == min(allowed, key=lambda n: rank(n, address), default=None)
    assert (winner is None) == (not live.candidates(address))


@pytest.mark.spec("C17", "C5")
@given(electorates().filter(lambda live: bool(live.nodes)), addresses, st.data())
def test_a_drain_moves_only_what_the_node_had_and_its_end_brings_back_just_that(
    live: Electorate, address: IPv4Address | IPv6Address, data: st.DataObject
) -> None:
    node = data.draw(st.sampled_from(sorted(set(live.nodes))))
    without = Electorate(live.nodes, live.draining - {node})
    drained = Electorate(live.nodes, live.draining | {node})
    before, after = without.winner(address), drained.winner(address)
    assert before in (after, node)
    if after == node:
        assert set(drained.candidates(address)) <= drained.draining
    for old, new, was in ((without, drained, before), (drained, without, after)):
        assert new.next_winner(address, was, new.changed_since(old)) == new.winner(address)


@pytest.mark.spec("C17")
@given(electorates(), electorates(), addresses)
def test_the_short_way_to_the_next_winner_knows_who_is_drained(
    old: Electorate, other: Electorate, address: IPv4Address | IPv6Address
) -> None:
    new = Electorate({**old.nodes, **other.nodes}, other.draining)
    assert new.next_winner(address, old.winner(address), new.changed_since(old)) == new.winner(address)
    assert old.next_winner(address, new.winner(address), old.changed_since(new)) == old.winner(address)


@pytest.mark.spec("C17")
def test_electorates_differ_by_who_is_drained_and_a_node_that_is_not_live_is_not_drained() -> None:
    live = {"a": {SUBNETS[0]}, "b": {SUBNETS[0]}}
    assert Electorate(live, {"a"}) != Electorate(live)
    assert Electorate(live, {"a", "gone"}) == Electorate(live, ["a"])
    assert hash(Electorate(live, {"a", "gone"})) == hash(Electorate(live, ["a"]))


@pytest.mark.spec("C17")
@pytest.mark.parametrize(
    ("annotations", "labels", "expected"),
    [
        ({}, {}, None),
        ({names.DRAIN: "2026-11-23T07:00:00Z kernel update"}, {}, Draining.DRAINED),
        ({names.DRAIN: ""}, {names.EXCLUDE_LABEL: "true"}, Draining.DRAINED),
        ({}, {names.EXCLUDE_LABEL: ""}, Draining.EXCLUDED),
        ({}, {names.EXCLUDE_LABEL: "false"}, Draining.EXCLUDED),
        ({"purelb.io/drained": "yes"}, {"exclude-from-external-load-balancers": "true"}, None),
    ],
)
def test_label_and_annotation_count_by_being_there(
    annotations: dict[str, str], labels: dict[str, str], expected: Draining | None
) -> None:
    assert asked_of(NodeView("node1", "u", "1", labels=labels, annotations=annotations)) is expected
    assert asked_of(None) is None


@pytest.mark.parametrize(
    ("labels", "annotations", "lease", "said"),
    [
        ({}, {}, None, ""),
        ({}, {names.DRAIN: "2026-11-29T03:12:00Z disk"}, None, "it is drained (2026-11-29T03:12:00Z disk)"),
        ({}, {names.DRAIN: ""}, "drain", "it is drained"),
        ({names.EXCLUDE_LABEL: ""}, {}, None, f"its Node has the label {names.EXCLUDE_LABEL}"),
        ({names.EXCLUDE_LABEL: ""}, {names.DRAIN: ""}, "excluded", f"its Node has the label {names.EXCLUDE_LABEL}"),
        ({}, {names.DRAIN: ""}, "stopping", "its agent was told to stop"),
        ({}, {}, "stopping", "its agent was told to stop"),
        ({}, {}, "what a newer agent may say", ""),
    ],
)
def test_why_a_node_gives_its_addresses_up_is_told_by_its_lease_first(
    labels: dict[str, str], annotations: dict[str, str], lease: str | None, said: str
) -> None:
    node = NodeView("node1", "u", "1", labels=labels, annotations=annotations)
    assert why_leaving(node, {} if lease is None else {names.DRAINING: lease}) == said
