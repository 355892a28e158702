"""One annotation, many writers: whatever order reads and conditional patches come in, it ends as the truth is (C9)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.announcing import Holder, announcing_changes, holders_of
from purelb_sm.domain.views import Ingress, ServiceView
from purelb_sm.kube.client import MERGE_PATCH
from tests.support.agents import INTERFACE, Lab, a_lab, node_kernel
from tests.support.product import NAMESPACE, a_cluster, local_group
from tests.support.waiting import eventually
from tests.unit.test_announce import service

NODES = ("a", "b", "c")
ADDRESSES = tuple(
    ip_address(text)
    for text in ("172.30.250.50", "172.30.250.51", "172.30.250.52", "2001:db8:30::8001", "2001:db8:30::8002")
)


@dataclass
class Truth:
    """For each address: the node that holds it; None while nobody can. `remote`: it is on every node."""

    holders: dict[Address, str | None] = field(default_factory=dict)
    remote: set[Address] = field(default_factory=set)
    live: set[str] = field(default_factory=lambda: set(NODES))

    def holder(self, address: Address) -> Holder | None:
        node = self.holders.get(address)
        return Holder(node, "eth0") if node is not None and address not in self.remote else None


class Merging(RuleBasedStateMachine):
    """Agents read the Service when they get to it, and compute their patch from that; it arrives later, or too late.

    What an agent holds it knows at once, as it is its own kernel; what others do it takes from the truth when it
    computes, since the election needs no words.
    """

    def __init__(self) -> None:
        super().__init__()
        self.truth = Truth()
        self.server = service("s", annotations={})
        self.versions = 1
        self.sending: dict[str, tuple[str, dict[str, str | None], Truth]] = {}

    @initialize(
        shown=st.lists(st.sampled_from(ADDRESSES), min_size=2, max_size=5, unique=True),
        nodes=st.lists(st.sampled_from(NODES), min_size=5, max_size=5),
    )
    def begin(self, shown: list[Address], nodes: list[str]) -> None:
        self._show(tuple(shown))
        self.truth.holders.update(zip(ADDRESSES, nodes, strict=True))

    # What happens.

    @rule(shown=st.lists(st.sampled_from(ADDRESSES), max_size=5, unique=True))
    def ingress_changes(self, shown: list[Address]) -> None:
        self._show(tuple(shown))

    @rule(address=st.sampled_from(ADDRESSES), node=st.sampled_from(NODES))
    def address_moves(self, address: Address, node: str) -> None:
        self.truth.holders[address] = node if node in self.truth.live else None

    @rule(address=st.sampled_from(ADDRESSES))
    def nobody_can_hold_it(self, address: Address) -> None:
        self.truth.holders[address] = None

    @rule(address=st.sampled_from(ADDRESSES))
    def it_becomes_remote_or_local(self, address: Address) -> None:
        self.truth.remote ^= {address}

    @rule(node=st.sampled_from(NODES))
    def node_dies_or_comes_back(self, node: str) -> None:
        if node in self.truth.live and len(self.truth.live) > 1:
            self.truth.live.discard(node)
            self.sending.pop(node, None)
            for address, holder in self.truth.holders.items():
                if holder == node:
                    self.truth.holders[address] = None
        else:
            self.truth.live.add(node)

    @rule(text=st.sampled_from(["", "rubbish", "x, eth9", "a,eth0", "b,eth0,172.30.250.50 c,,"]))
    def somebody_scribbles(self, text: str) -> None:
        self._take({names.ANNOUNCING_V4: text})

    # What agents do.

    @rule(node=st.sampled_from(NODES))
    def read_and_compute(self, node: str) -> None:
        if node in self.truth.live and (changes := self._changes(node, self.server)):
            self.sending[node] = (self.server.resource_version, changes, deepcopy(self.truth))

    @rule(node=st.sampled_from(NODES))
    def all_at_once(self, node: str) -> None:
        self.read_and_compute(node)
        self.send(node)

    @rule(node=st.sampled_from(NODES))
    def send(self, node: str) -> None:
        version, changes, known = self.sending.pop(node, ("", {}, self.truth))
        if version != self.server.resource_version:
            return
        before = holders_of(self.server, self._shown())
        self._take(changes)
        after = holders_of(self.server, self._shown())
        for address, holder in before.items():
            if holder == self.truth.holder(address) == known.holder(address):
                assert after.get(address) == holder, "it undid what was right, and its own or another's to say"

    @invariant()
    def one_settled_round_makes_it_true(self) -> None:
        """From every state: when each live node has had two turns, in any order, the annotation is the truth."""
        for order in (sorted(self.truth.live), sorted(self.truth.live, reverse=True)):
            view = self.server
            for node in (*order, *order):
                changes = self._changes(node, view)
                view = _patched(view, changes, "settling")
            shown = self._shown()
            wanted = {a: h for a in shown if (h := self.truth.holder(a)) is not None}
            assert holders_of(view, shown) == wanted
            assert not any(self._changes(node, view) for node in order), "they come to rest"
            assert all(self._one_family(view, annotation) for annotation in (names.ANNOUNCING_V4, names.ANNOUNCING_V6))

    # How.

    def _changes(self, node: str, view: ServiceView) -> dict[str, str | None]:
        shown = [ip_address(entry.ip) for entry in view.ingress]
        local = [a for a in shown if a not in self.truth.remote]
        mine = {a: "eth0" for a in local if self.truth.holders.get(a) == node}
        given_up = [a for a in local if self.truth.holders.get(a) is None]
        remote = [a for a in shown if a in self.truth.remote]
        first = min(self.truth.live)
        return announcing_changes(
            view, shown, node, mine, given_up, remote, lambda n: node == first and n not in self.truth.live
        )

    def _shown(self) -> tuple[Address, ...]:
        return tuple(ip_address(entry.ip) for entry in self.server.ingress)

    def _show(self, shown: tuple[Address, ...]) -> None:
        self.versions += 1
        ingress = tuple(Ingress(str(address)) for address in shown)
        self.server = replace(self.server, ingress=ingress, resource_version=str(self.versions))

    def _take(self, changes: dict[str, str | None]) -> None:
        self.versions += 1
        self.server = _patched(self.server, changes, str(self.versions))

    @staticmethod
    def _one_family(view: ServiceView, annotation: str) -> bool:
        text = view.annotation(annotation) or ""
        return (":" in text.replace(", ", "")) <= (annotation == names.ANNOUNCING_V6)


def _patched(view: ServiceView, changes: dict[str, str | None], version: str) -> ServiceView:
    kept = {name: text for name, text in view.annotations.items() if name not in changes}
    written = {name: text for name, text in changes.items() if text is not None}
    return replace(view, annotations=kept | written, resource_version=version)


TestMerging = pytest.mark.spec("C9")(Merging.TestCase)
TestMerging.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.spec("C9")
@pytest.mark.parametrize("order", sorted(set(permutations("aaaabbbb"))), ids="".join)
def test_two_that_write_at_the_same_time_undo_nothing_in_any_order(order: tuple[str, ...]) -> None:
    """Each reads, sends, reads and sends again: every interleaving of that. What is sent too late is not taken."""
    shown = ADDRESSES[:2]
    mine = {"a": {shown[0]: "eth0"}, "b": {shown[1]: "eth1"}}
    server = service("s", *map(str, shown), annotations={})
    sending: dict[str, tuple[ServiceView, dict[str, str | None]] | None] = {}
    for turn, node in enumerate(order):
        written = sending.pop(node, None)
        if written is None:
            sending[node] = (server, announcing_changes(server, shown, node, mine[node]))
            continue
        read, changes = written
        before = holders_of(server, shown)
        if read.resource_version == server.resource_version and changes:
            server = _patched(server, changes, f"v{turn}")
        assert before.items() <= holders_of(server, shown).items()
    for node in ("a", "b"):
        server = _patched(server, announcing_changes(server, shown, node, mine[node]), "last")
    assert server.annotation(names.ANNOUNCING_V4) == f"a,eth0,{shown[0]} b,eth1,{shown[1]}"


# Agents.

IP = "172.30.250.53"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    groups = (local_group("172.30.250.50-172.30.250.99"),)
    async with a_cluster(tmp_path, *groups) as cluster, a_lab(cluster) as lab:
        yield lab


def patches(lab: Lab) -> int:
    return sum(1 for method, path in lab.cluster.requests if method == "PATCH" and "/services/echo" in path)


@pytest.mark.spec("C9")
async def test_the_entry_of_a_dead_node_goes_where_no_other_can_replace_it(lab: Lab) -> None:
    for number in (2, 3, 4):
        lab.kernels[f"node{number}"] = node_kernel(number, subnet="192.168.9")
    (alone, *_) = await lab.start("node1", "node2", "node3", "node4")
    await lab.allocated("echo", IP)
    await eventually(lambda: lab.annotation("echo") == f"node1, {INTERFACE}")
    lab.cluster.requests.clear()
    await alone.kill()
    await eventually(lambda: lab.annotation("echo") is None)
    assert patches(lab) == 1, "one node does it for all"


@pytest.mark.spec("C9")
async def test_a_service_whose_address_every_node_holds_loses_the_annotation_of_when_one_did(lab: Lab) -> None:
    """A group may have been local before, or an address of a v1 group been in the subnet of a node."""
    lab.cluster.create(local_group("172.30.250.10-172.30.250.20", name="routed", kind="remote"))
    await lab.start("node1", "node2")
    await lab.allocated("echo", "172.30.250.12", group="routed")
    await lab.held_by("172.30.250.12", "node1", "node2")
    path = f"/api/v1/namespaces/{NAMESPACE}/services/echo"
    body = {"metadata": {"annotations": {names.ANNOUNCING_V4: f"node1, {INTERFACE}"}}}
    await lab.cluster.client.request("PATCH", path, body=body, content_type=MERGE_PATCH)
    await eventually(lambda: lab.annotation("echo") is None)
    assert await lab.holders("172.30.250.12") == ["node1", "node2"]


@pytest.mark.spec("C9")
async def test_who_is_undone_again_and_again_writes_ever_more_slowly(lab: Lab) -> None:
    await lab.start("node1")
    await lab.allocated("echo", IP)
    mine, loop = f"node1, {INTERFACE}", asyncio.get_running_loop()
    path = f"/api/v1/namespaces/{NAMESPACE}/services/echo"
    await eventually(lambda: lab.annotation("echo") == mine)
    began = loop.time()
    for _ in range(5):
        body = {"metadata": {"annotations": {names.ANNOUNCING_V4: "node2, eth0"}}}
        await lab.cluster.client.request("PATCH", path, body=body, content_type=MERGE_PATCH)
        await eventually(lambda: lab.annotation("echo") == mine)
    assert loop.time() - began > 0.8 * (0.1 + 0.2 + 0.4 + 0.8 + 1.6)
    # An address that was gone in between is news, and told at once.
    await lab.show("echo", "172.30.250.54")
    await lab.held_by(IP)
    began = loop.time()
    await lab.show("echo", IP)
    await eventually(lambda: lab.annotation("echo") == mine)
