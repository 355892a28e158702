"""Who suspects whom: agents on a network of links that are cut and joined, in time that the test makes pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from itertools import permutations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from purelb_sm.domain.addresses import Network
from purelb_sm.domain.heartbeat import Heartbeat
from purelb_sm.domain.peers import FULL_RATE_PEERS, MAX_PEERS, SILENT_AFTER, TRIAL_S, Contact, Peers

INTERVAL_S = 0.2
STEP_MS = 20
SOON_S = (SILENT_AFTER + 2) * INTERVAL_S
"""By then whoever is to be suspected is."""
ONE: Network = ip_network("172.30.250.0/24")
TWO: Network = ip_network("172.30.251.0/24")


@dataclass
class Net:
    """Nodes that all know each other, by their Leases. `cut` holds (from, to)."""

    nodes: tuple[str, ...]
    subnets: dict[str, frozenset[Network]] = field(default_factory=dict)
    now_ms: int = 100_000
    cut: set[tuple[str, str]] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    asleep: set[str] = field(default_factory=set)
    uncounted: set[str] = field(default_factory=set)
    lease_valid: dict[str, bool] = field(default_factory=dict)
    begun: list[tuple[str, str, str]] = field(default_factory=list)
    ended: list[tuple[str, str, str]] = field(default_factory=list)
    counted_again: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.starts = dict.fromkeys(self.nodes, 1)
        self.agents: dict[str, Peers] = {}
        self.last_beat_ms: dict[str, int] = dict.fromkeys(self.nodes, 0)
        self.heard_ms: dict[tuple[str, str], int] = {}
        for node in self.nodes:
            self.agents[node] = Peers(self.incarnation(node), INTERVAL_S)
        self.read_leases()

    @property
    def now(self) -> float:
        return self.now_ms / 1000

    def incarnation(self, node: str) -> bytes:
        return f"{node}{self.starts[node]:03}".encode().ljust(8, b"_")

    def read_leases(self) -> None:
        for reader in self.nodes:
            own = self.subnets_of(reader)
            contacts = {
                node: Contact(self.incarnation(node), shared, node not in self.uncounted)
                for node in self.nodes
                if node != reader and (shared := own & self.subnets_of(node))
            }
            self.agents[reader].follow(contacts)
        self.note()

    def subnets_of(self, node: str) -> frozenset[Network]:
        return self.subnets.get(node, frozenset({ONE}))

    def restart(self, node: str) -> None:
        self.starts[node] += 1
        self.agents[node] = Peers(self.incarnation(node), INTERVAL_S)
        self.dead.discard(node)
        self.read_leases()

    def renew(self, node: str) -> None:
        """Everybody's watch shows it."""
        for reader, agent in self.agents.items():
            if reader == node:
                agent.own_renewed()
            else:
                agent.renewed(node, self.now)
        self.note()

    def isolate(self, *group: str) -> None:
        """Links between the group and the rest are cut, both ways."""
        rest = [node for node in self.nodes if node not in group]
        self.cut |= {(a, b) for a in group for b in rest} | {(b, a) for a in group for b in rest}

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 1000) // STEP_MS):
            self.now_ms += STEP_MS
            for number, node in enumerate(self.nodes):
                if node not in self.dead | self.asleep and (self.now_ms + 40 * number) % 200 == 0:
                    self.beat(node)
            for node in self.awake():
                self.agents[node].judge(self.now)
            self.note()

    def beat(self, node: str) -> None:
        late_ms = self.now_ms - self.last_beat_ms[node] - 200
        if self.last_beat_ms[node] and late_ms > 0:
            self.agents[node].forgive(late_ms / 1000)
        self.last_beat_ms[node] = self.now_ms
        said = self.agents[node].heartbeat(self.now, lease_valid=self.lease_valid.get(node, True))
        for other in self.awake():
            linked = self.subnets_of(node) & self.subnets_of(other) and (node, other) not in self.cut
            if other != node and linked:
                assert self.agents[other].hear(node, said, self.now)
                self.heard_ms[other, node] = self.now_ms

    def awake(self) -> list[str]:
        return [node for node in self.nodes if node not in self.dead | self.asleep]

    def note(self) -> None:
        for node in self.awake():
            changes, again = self.agents[node].news()
            for change in changes:
                (self.begun if change.suspected else self.ended).append((node, change.node, change.why))
            if again:
                self.counted_again.append(node)

    def suspected_by(self, node: str) -> set[str]:
        return set(self.agents[node].suspected)

    def cut_off(self, node: str) -> bool:
        return self.agents[node].cut_off(self.now, lease_valid=self.lease_valid.get(node, True))


def a_net(*nodes: str) -> Net:
    """In which everybody has heard everybody."""
    net = Net(nodes)
    net.run(1.0)
    assert all(net.agents[node].heard(net.now) == set(nodes) - {node} for node in nodes)
    return net


def test_a_node_that_dies_is_suspected_by_all_after_three_and_a_half_intervals_and_not_before() -> None:
    net = a_net("a", "b", "c")
    net.dead = {"c"}
    net.run((SILENT_AFTER - 1) * INTERVAL_S - 0.02)
    assert not net.begun
    net.run(1.1 * INTERVAL_S)
    assert net.suspected_by("a") == net.suspected_by("b") == {"c"}
    assert "not heard for 0.7" in net.begun[0][2]
    assert "not by any of 1" in net.begun[0][2]


def test_nobody_is_suspected_who_never_was_heard() -> None:
    net = Net(("a", "b", "c"))
    net.cut = {("c", "a"), ("c", "b")}
    net.run(5)
    assert not net.begun


def test_nobody_is_suspected_who_never_heard_us() -> None:
    net = Net(("a", "b"))
    net.cut = {("a", "b")}
    net.run(2)
    net.dead = {"b"}
    net.run(5)
    assert not net.begun


def test_a_node_that_anybody_still_hears_is_not_suspected() -> None:
    net = a_net("a", "b", "c")
    net.cut = {("a", "c"), ("c", "a")}
    net.run(30)
    assert not net.begun
    net.dead = {"c"}
    net.run(SOON_S)
    assert net.suspected_by("a") == net.suspected_by("b") == {"c"}


def test_a_link_that_fails_in_one_direction_moves_nothing() -> None:
    net = a_net("a", "b", "c")
    net.cut = {("c", "a")}
    net.run(30)
    assert not net.begun


def test_a_node_that_is_cut_off_suspects_nobody_and_is_suspected() -> None:
    net = a_net("a", "b", "c", "d")
    net.isolate("a")
    net.run(SOON_S)
    assert net.suspected_by("a") == set()
    assert net.suspected_by("b") == net.suspected_by("c") == net.suspected_by("d") == {"a"}
    net.cut.clear()
    net.run(SOON_S)
    assert net.suspected_by("b") == set()
    assert {why for _, _, why in net.ended} == {"it is heard again"}
    assert "a" in net.counted_again


def test_two_that_die_together_are_suspected_while_there_is_one_to_ask() -> None:
    net = a_net("a", "b", "c", "d")
    net.dead = {"c", "d"}
    net.run(SOON_S)
    assert net.suspected_by("a") == net.suspected_by("b") == {"c", "d"}


def test_one_after_another_is_suspected() -> None:
    net = a_net("a", "b", "c")
    net.dead = {"c"}
    net.run(SOON_S)
    net.dead = {"b", "c"}
    net.run(SOON_S)
    assert net.suspected_by("a") == {"b", "c"}


def test_of_two_nodes_each_suspects_the_other_until_the_leases_say_otherwise() -> None:
    net = a_net("a", "b")
    net.isolate("a")
    net.run(SOON_S)
    assert (net.suspected_by("a"), net.suspected_by("b")) == ({"b"}, {"a"})
    net.renew("b")
    assert (net.suspected_by("a"), net.suspected_by("b")) == (set(), {"a"})
    net.renew("a")
    assert net.suspected_by("b") == set()
    net.run(60)
    assert len(net.begun) == 2, "it must be heard again before it can be suspected again"


@pytest.mark.parametrize("first", ["a", "b"])
def test_whoever_was_suspected_by_mistake_tells_the_neighbours_when_the_other_has_given_back(first: str) -> None:
    second = {"a": "b", "b": "a"}[first]
    net = a_net("a", "b")
    net.isolate("a")
    net.run(SOON_S)
    for node in (first, second) * 2:
        given_back = not net.suspected_by("b")
        net.counted_again.clear()
        net.renew(node)
        assert given_back or net.suspected_by("b") or "a" in net.counted_again
        net.run(1.0)
    net.counted_again.clear()
    for node in (first, second) * 5:
        net.renew(node)
    assert net.counted_again.count("a") <= 2, "not with every renewal of its own for ever"


def test_a_lease_that_is_renewed_ends_a_suspicion_though_nothing_is_heard() -> None:
    net = a_net("a", "b", "c")
    net.isolate("c")
    net.run(SOON_S)
    net.renew("c")
    assert net.suspected_by("a") == net.suspected_by("b") == set()
    assert ("a", "c", "its Lease was renewed") in net.ended
    net.run(60)
    assert len(net.begun) == 2


def test_after_a_mistake_a_node_is_heard_for_a_while_before_it_is_suspected_again() -> None:
    net = a_net("a", "b", "c")
    for _ in range(5):
        net.isolate("c")
        net.run(SOON_S)
        net.cut.clear()
        net.run(SOON_S)
    assert len(net.begun) == 2
    net.run(TRIAL_S)
    net.isolate("c")
    net.run(SOON_S)
    assert net.suspected_by("a") == net.suspected_by("b") == {"c"}


def test_time_in_which_an_agent_did_not_run_is_no_silence() -> None:
    net = a_net("a", "b", "c")
    net.asleep = {"a"}
    net.run(30)
    assert net.suspected_by("b") == net.suspected_by("c") == {"a"}
    net.asleep.clear()
    net.run(SOON_S)
    assert not [who for who, _, _ in net.begun if who == "a"]
    assert net.suspected_by("b") == net.suspected_by("c") == set()
    assert "a" in net.counted_again


def test_a_node_that_was_suspected_learns_of_it_whoever_was_paused() -> None:
    net = a_net("a", "b")
    net.asleep = {"a"}
    net.run(SOON_S)
    net.asleep.clear()
    net.run(SOON_S)
    assert "a" in net.counted_again


@pytest.mark.parametrize("late", range(25, 50, 2))
def test_no_gap_goes_unnoticed_that_was_long_enough_for_a_suspicion(late: int) -> None:
    net = a_net("a", "b", "c")
    net.isolate("a")
    net.run(late * 0.02)
    net.cut.clear()
    net.run(SOON_S)
    if net.begun:
        assert "a" in net.counted_again
    assert net.suspected_by("b") == set()


def test_a_new_incarnation_is_a_stranger_and_the_suspicion_of_the_old_one_ends() -> None:
    net = a_net("a", "b", "c")
    net.dead = {"c"}
    net.run(SOON_S)
    net.restart("c")
    assert net.suspected_by("a") == set()
    net.run(1)
    net.dead = {"c"}
    net.run(SOON_S)
    assert net.suspected_by("a") == net.suspected_by("b") == {"c"}, "it has made no mistake, and is not on probation"


def test_a_node_whose_lease_ran_out_or_is_gone_is_not_suspected_any_more() -> None:
    net = a_net("a", "b", "c")
    net.dead = {"c"}
    net.run(SOON_S)
    net.uncounted = {"c"}
    net.read_leases()
    assert net.suspected_by("a") == set()
    net.run(5)
    assert net.suspected_by("a") == set()
    net.agents["a"].follow({})
    assert net.agents["a"].heard(net.now) == set()


def test_one_that_rests_is_not_missed() -> None:
    net = a_net("a", "b", "c")
    for agent in (net.agents["a"], net.agents["b"]):
        agent.hear("c", net.agents["c"].heartbeat(net.now, lease_valid=True, resting=True), net.now)
    net.dead = {"c"}
    net.run(5)
    assert not net.begun


def test_a_heartbeat_is_taken_once_and_in_order() -> None:
    net = a_net("a", "b")
    early, late = (net.agents["b"].heartbeat(net.now, lease_valid=True) for _ in range(2))
    assert net.agents["a"].hear("b", late, net.now)
    assert not net.agents["a"].hear("b", late, net.now)
    assert not net.agents["a"].hear("b", early, net.now)
    assert not net.agents["a"].hear("b", replace(late, incarnation=b"another_", sequence=10**6), net.now)
    assert not net.agents["a"].hear("nobody", replace(late, sequence=10**6), net.now)


def test_only_those_who_could_hear_a_node_are_asked_about_it() -> None:
    """A node with a leg in each of two subnets, of which one goes: the others of the second say nothing about the
    first."""
    net = Net(("a", "b", "c", "d"), {"a": frozenset({ONE, TWO}), "d": frozenset({TWO})})
    net.run(1)
    net.cut = {(x, y) for x, y in permutations("abcd", 2) if {x, y} in ({"a", "b"}, {"a", "c"})}
    net.run(SOON_S)
    assert net.suspected_by("a") == set()
    assert net.suspected_by("b") == net.suspected_by("c") == {"a"}


# Cut off.


def test_a_node_is_cut_off_when_its_lease_ran_out_and_it_hears_none_of_those_that_it_heard() -> None:
    net = a_net("a", "b", "c")
    net.isolate("a")
    net.run(SOON_S)
    assert not net.cut_off("a")
    net.lease_valid["a"] = False
    assert net.cut_off("a")
    net.cut.clear()
    net.run(1)
    assert not net.cut_off("a"), "the others do not say that they have taken over"
    net.lease_valid["a"] = True
    assert not net.cut_off("a")


def test_without_the_api_server_nobody_is_cut_off_who_hears_others() -> None:
    net = a_net("a", "b", "c")
    net.lease_valid = dict.fromkeys("abc", False)
    net.uncounted = {"a"}
    net.read_leases()
    net.run(60)
    assert not any(net.cut_off(node) for node in "abc")
    assert all(net.agents[node].vouched(net.now) for node in "abc"), "so what they take over, they may tell"
    net.isolate("a")
    net.run(SOON_S)
    assert not net.agents["a"].vouched(net.now)


def test_a_node_learns_from_the_others_that_it_no_longer_counts() -> None:
    net = a_net("a", "b", "c")
    net.lease_valid["a"] = False
    net.run(1)
    assert not net.cut_off("a")
    net.uncounted = {"a"}
    net.read_leases()
    net.run(1)
    assert net.cut_off("a")
    assert not net.agents["a"].vouched(net.now)
    net.isolate("a")
    net.run(60)
    assert net.cut_off("a"), "it stays so until its Lease is renewed"
    net.lease_valid["a"] = True
    assert not net.cut_off("a")


@pytest.mark.parametrize("nodes", ["a", "ab"])
def test_one_that_may_be_the_last_left_is_not_cut_off(nodes: str) -> None:
    net = a_net(*nodes)
    net.dead = set(nodes) - {"a"}
    net.lease_valid["a"] = False
    net.run(60)
    assert not net.cut_off("a")


# Cost.


def crowd(count: int) -> dict[str, Contact]:
    return {f"n{n}": Contact(n.to_bytes(8), frozenset({ONE}), True) for n in range(1, count + 1)}


def test_a_crowd_is_sent_to_less_often_and_waits_longer() -> None:
    one, other = Peers(b"1" * 8, INTERVAL_S), Peers((2).to_bytes(8), INTERVAL_S)
    for agent in (one, other):
        agent.follow(crowd(4 * FULL_RATE_PEERS))
    assert one.interval_s == 4 * INTERVAL_S
    hears_us = frozenset({b"1" * 4})
    one.hear("n2", replace(other.heartbeat(0.0, lease_valid=True), hears=hears_us), 0.0)
    one.judge(4 * SILENT_AFTER * INTERVAL_S - 0.01)
    assert one.suspected == set()
    one.judge(4 * SILENT_AFTER * INTERVAL_S)
    assert one.suspected == {"n2"}


def test_too_large_a_crowd_is_left_to_its_leases() -> None:
    agent = Peers(b"1" * 8, INTERVAL_S)
    agent.follow(crowd(MAX_PEERS + 1))
    assert not agent.hear("n1", Heartbeat((1).to_bytes(8), 1, 0.2), 0.0)


def test_nobody_can_ask_to_be_waited_for_for_long() -> None:
    net = a_net("a", "b", "c")
    slow = replace(net.agents["c"].heartbeat(net.now, lease_valid=True), interval_s=60.0)
    for node in "ab":
        net.agents[node].hear("c", replace(slow, hears=frozenset(b"a001 b001"[i : i + 4] for i in (0, 5))), net.now)
    net.dead = {"c"}
    net.run(10)
    assert net.suspected_by("a") == net.suspected_by("b") == {"c"}


# Whatever happens.

NODES = ("a", "b", "c", "d")
links = st.sampled_from(sorted(permutations(NODES, 2)))
events = st.one_of(
    st.tuples(st.just("cut"), st.sets(links, max_size=6)),
    st.tuples(st.just("join"), st.sets(links, max_size=12)),
    st.tuples(st.just("isolate"), st.sampled_from(NODES)),
    st.tuples(st.just("heal"), st.none()),
    st.tuples(st.just("kill"), st.sampled_from(NODES[2:])),
    st.tuples(st.just("restart"), st.sampled_from(NODES[2:])),
    st.tuples(st.just("pause"), st.sampled_from(NODES[2:])),
    st.tuples(st.just("renew"), st.sampled_from(NODES)),
)
schedules = st.lists(st.tuples(events, st.integers(0, 75)), max_size=8)


def apply(net: Net, event: tuple[str, object]) -> None:
    match event:
        case ("cut", links) if isinstance(links, set):
            net.cut |= links
        case ("join", links) if isinstance(links, set):
            net.cut -= links
        case ("isolate", str(node)):
            net.isolate(node)
        case ("heal", _):
            net.cut.clear()
            net.asleep.clear()
        case ("kill", str(node)):
            net.dead.add(node)
        case ("restart", str(node)):
            net.restart(node)
        case ("pause", str(node)):
            net.asleep ^= {node}
        case ("renew", str(node)) if node not in net.dead:
            net.renew(node)


class Watched(Net):
    """Checks at every moment what must never be."""

    def note(self) -> None:
        before = {node: len(self.begun) for node in self.nodes}
        super().note()
        for node in self.awake():
            for suspect in self.agents[node].suspected:
                heard_ms = self.heard_ms.get((node, suspect), 0)
                assert self.now_ms - heard_ms >= 700, "its heartbeats arrive"
        for node, suspect, why in self.begun[min(before.values(), default=0) :]:
            if "nobody else" not in why:
                others = [other for other in self.nodes if other not in (node, suspect)]
                assert any(self.now_ms - self.heard_ms.get((node, o), 0) < 700 for o in others), "it is itself cut off"


def without(cut: Iterable[tuple[str, str]], *pairs: set[str]) -> set[tuple[str, str]]:
    return {link for link in cut if set(link) not in pairs}


@settings(max_examples=60, deadline=None)
@given(schedules)
@example([(("isolate", "a"), 20), (("kill", "c"), 30)])
def test_whatever_happens_nobody_is_suspected_who_is_heard_and_one_cut_off_suspects_nobody(
    schedule: list[tuple[tuple[str, object], int]],
) -> None:
    net = Watched(NODES)
    net.run(1)
    for event, steps in schedule:
        apply(net, event)
        net.run(steps * STEP_MS / 1000)
    # And when all is well again, and everybody was heard for a while, nobody is suspected.
    for node in sorted(net.dead):
        net.restart(node)
    net.cut.clear()
    net.asleep.clear()
    net.run(SOON_S)
    assert not any(net.suspected_by(node) for node in NODES)


@settings(max_examples=40, deadline=None)
@given(schedules)
def test_two_that_hear_each_other_and_hear_alike_suspect_alike(
    schedule: list[tuple[tuple[str, object], int]],
) -> None:
    net = Net(NODES)
    net.run(1)
    for event, steps in schedule:
        apply(net, event)
        # Both hear and are heard by the others alike, and each other always.
        net.cut = without(net.cut, {"a", "b"})
        net.cut = {(x.replace("b", "a"), y.replace("b", "a")) for x, y in net.cut}
        net.cut |= {(x.replace("a", "b"), y.replace("a", "b")) for x, y in net.cut}
        # Long enough for whoever is new to have heard both, when it is next heard.
        net.run(0.6 + steps * STEP_MS / 1000)
    net.run(SOON_S)
    assert net.suspected_by("a") == net.suspected_by("b")
