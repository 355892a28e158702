"""`purelb.io/node-affinity: service-endpoints`: a local address rather on a node with an endpoint of its Service."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purelb_sm.agent import endpoints
from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.announce import Announcements, Desired, Keep, Kind, Place
from purelb_sm.domain.book import NOTHING_BOOKED
from purelb_sm.domain.election import Electorate
from purelb_sm.domain.plan import plan
from purelb_sm.domain.views import ServiceKey, ServiceView
from purelb_sm.kube.client import MERGE_PATCH
from purelb_sm.sandbox.apiserver import Fault
from tests.support import domain
from tests.support.agents import Lab, a_lab
from tests.support.product import NAMESPACE, a_cluster, local_group, service_object
from tests.support.waiting import eventually
from tests.unit.test_agent_loop import ROUTED, slices
from tests.unit.test_announce import GROUPS, LAN, service

NEAR = {names.NODE_AFFINITY: names.SERVICE_ENDPOINTS}
IP, REMOTE = "172.30.250.53", "172.31.1.225"
ADDRESS = ip_address(IP)
NODES = "abcd"


class On:
    """Endpoints that are where the test says; None: not known."""

    def __init__(self, **nodes: Collection[str] | None) -> None:
        self.at: dict[str, Collection[str] | None] = dict(nodes)

    def here(self, service: ServiceKey) -> bool | None:
        raise AssertionError("nobody asks whether they are here")

    def nodes(self, service: ServiceKey) -> Collection[str] | None:
        return self.at.get(service.name, frozenset())


def near(name: str, *ips: str, value: str = names.SERVICE_ENDPOINTS, **changes: Any) -> ServiceView:
    view = service(name, *ips, **changes)
    view.annotations[names.NODE_AFFINITY] = value
    return view


def place(node: str = "a", live: str = NODES, draining: str = "") -> Place:
    electorate = Electorate(dict.fromkeys(live, (LAN,)), draining)
    return Place(node, electorate, (("eth0", LAN),), groups=GROUPS)


def holders(where: On, *views: ServiceView, address: Address = ADDRESS, **more: str) -> list[str]:
    """The nodes that hold the address, each asked for itself."""
    found = []
    for node in more.get("live", NODES):
        table = Announcements(place(node, **more), where)
        for view in views:
            table.update(view)
        if isinstance(table.decide(address), Desired):
            found.append(node)
    return found


def ordinary(candidates: str = NODES) -> str:
    winner = place(live=candidates).electorate.winner(ADDRESS)
    assert winner is not None
    return winner


OTHERS = "".join(node for node in NODES if node != ordinary())


@pytest.mark.spec("C18")
@pytest.mark.parametrize("node", NODES)
def test_the_address_is_on_the_node_with_the_endpoint(node: str) -> None:
    assert holders(On(s={node}), near("s", IP)) == [node]


@pytest.mark.spec("C18")
def test_of_several_nodes_with_endpoints_one_holds_it_and_all_agree_which() -> None:
    assert holders(On(s=set(OTHERS)), near("s", IP)) == [ordinary(OTHERS)]


@pytest.mark.spec("C18")
@pytest.mark.parametrize("where", [set(), {"x"}, {"x", "y"}], ids=["no endpoint", "elsewhere", "on dead nodes"])
def test_where_no_node_is_eligible_the_ordinary_winner_holds_it(where: set[str]) -> None:
    assert holders(On(s=where), near("s", IP)) == [ordinary()]


@pytest.mark.spec("C18")
@pytest.mark.parametrize("value", ["", "Service-Endpoints", "topology-zone", "service-endpoints "])
def test_a_value_that_is_not_known_is_ignored(value: str) -> None:
    assert holders(On(s={OTHERS[0]}), near("s", IP, value=value)) == [ordinary()]


@pytest.mark.spec("C17", "C18")
def test_a_node_with_an_endpoint_that_is_drained_comes_after_those_without() -> None:
    near_one, rest = OTHERS[0], "".join(node for node in NODES if node != OTHERS[0])
    where = On(s={near_one})
    assert holders(where, near("s", IP), draining=near_one) == [ordinary(rest)]
    assert holders(where, near("s", IP), draining=rest) == [near_one]
    assert holders(where, near("s", IP), draining=NODES) == [ordinary()]


@pytest.mark.spec("C18", "A15")
def test_a_shared_address_is_on_a_node_with_an_endpoint_of_any_member_that_asks() -> None:
    where = On(s={OTHERS[0]}, t={OTHERS[1]}, u={OTHERS[2]})
    both = ordinary(OTHERS[:2])
    assert holders(where, near("s", IP), near("t", IP)) == [both]
    assert holders(where, near("s", IP), service("u", IP)) == [OTHERS[0]]


@pytest.mark.spec("C18")
def test_a_remote_address_is_everywhere_all_the_same() -> None:
    view = near("s", REMOTE, group="routed")
    assert holders(On(s={"a"}), view, address=ip_address(REMOTE)) == list(NODES)
    assert holders(On(s=None), view, address=ip_address(REMOTE)) == list(NODES)


@pytest.mark.spec("C18")
def test_until_the_endpoints_are_known_nothing_is_added_and_what_is_held_stays() -> None:
    where = On(s=None)
    tables = {node: Announcements(place(node), where) for node in NODES}
    for table in tables.values():
        table.update(near("s", IP))
        assert isinstance(table.decide(ADDRESS), Keep)
    where.at["s"] = {OTHERS[1]}
    for node, table in tables.items():
        assert table.endpoints_moved(ServiceKey("test", "s")) == (ADDRESS,)
        assert isinstance(table.decide(ADDRESS), Desired) == (node == OTHERS[1])


def test_endpoints_of_a_service_that_does_not_follow_them_make_nobody_look() -> None:
    table = Announcements(place(), On())
    table.update(service("s", IP))
    assert table.endpoints_moved(ServiceKey("test", "s")) == ()
    assert table.endpoints_moved(ServiceKey("test", "nobody")) == ()


STEP = st.one_of(
    st.tuples(st.just("update"), st.sampled_from("stu"), st.tuples(st.booleans(), st.booleans())),
    st.tuples(st.just("forget"), st.sampled_from("stu"), st.none()),
    st.tuples(st.just("endpoints"), st.sampled_from("stu"), st.none() | st.frozensets(st.sampled_from("abcdx"))),
    st.tuples(
        st.just("move"),
        st.just(""),
        st.tuples(st.frozensets(st.sampled_from(NODES)), st.frozensets(st.sampled_from(NODES))),
    ),
)


@pytest.mark.spec("C2", "C5", "C17", "C18")
@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=20))
def test_the_short_way_decides_as_the_long_way_and_never_for_two_nodes(steps: list[tuple[str, str, Any]]) -> None:
    """What each node decides, looking only at what each step names, is what a node that starts now would decide."""
    where, views, live, drained = On(), {}, NODES, ""
    tables = {node: Announcements(place(node), where) for node in NODES}
    seen: dict[str, dict[Address, Any]] = {node: {} for node in NODES}
    for step, name, what in steps:
        if step == "endpoints":
            where.at[name] = what
        elif step == "update":
            asks, both = what
            ips = (IP, "172.30.250.54") if both else (IP,)
            views[name] = near(name, *ips) if asks else service(name, *ips)
        elif step == "forget":
            views.pop(name, None)
        else:
            live, drained = "".join(sorted(what[0])), "".join(sorted(what[1]))
        found: dict[Address, list[str]] = {}
        for node, table in tables.items():
            now = place(node, live, drained)
            look = _step(table, step, name, views, now)
            seen[node].update({address: table.decide(address) for address in look})
            fresh = Announcements(now, where)
            for view in views.values():
                fresh.update(view)
            wanted = {a: v for a in fresh.addresses() if (v := fresh.decide(a)) is not None}
            assert {a: v for a, v in seen[node].items() if v is not None} == wanted
            for address, verdict in wanted.items():
                if isinstance(verdict, Desired) and verdict.kind is Kind.LOCAL:
                    found.setdefault(address, []).append(node)
        assert all(len(some) == 1 for some in found.values())


def _step(
    table: Announcements, step: str, name: str, views: Mapping[str, ServiceView], now: Place
) -> Collection[Address]:
    key = ServiceKey("test", name)
    match step:
        case "endpoints":
            return table.endpoints_moved(key)
        case "update":
            return table.update(views[name])
        case "forget":
            return table.forget(key)
        case _:
            return table.move(now)


# What the allocator says of it.


@pytest.mark.spec("C18")
@pytest.mark.parametrize(("value", "warned"), [("service-endpoints", False), ("zone", True), ("", True), (None, False)])
def test_an_unknown_value_is_warned_of_when_the_address_is_given(value: str | None, warned: bool) -> None:
    annotations = {} if value is None else {names.NODE_AFFINITY: value}
    view = domain.service(annotations=annotations)
    made = plan(view.key, view, NOTHING_BOOKED, domain.world(domain.group()), domain.NOW)
    told = [note for note in made.events if note.reason == "ConfigurationWarning"]
    assert bool(told) is warned
    assert all(note.type == "Warning" and "service-endpoints" in note.message for note in told)


# Agents.


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with (
        a_cluster(tmp_path, local_group("172.30.250.50-172.30.250.99"), ROUTED) as cluster,
        a_lab(cluster) as lab,
    ):
        yield lab


@pytest.mark.spec("C10", "C18")
async def test_ready_endpoints_count_and_where_there_are_none_those_that_still_serve(lab: Lab) -> None:
    told: list[ServiceKey | None] = []
    found = endpoints.ServiceEndpoints(lab.cluster.client, "node1", time.monotonic, told.append)
    task = asyncio.create_task(found.run())
    echo = ServiceKey(NAMESPACE, "echo")
    try:
        slices(lab, "echo", ("node1", True, True), ("node1", False, True), ("node2", False, True))
        assert (found.nodes(echo), found.here(echo)) == (None, None)
        found.need()
        await eventually(lambda: told)
        assert (found.nodes(echo), found.here(echo)) == ({"node1"}, True)
        slices(lab, "echo", ("node1", False, False), ("node2", False, True))
        await eventually(lambda: found.nodes(echo) == {"node2"})
        assert found.here(echo) is False
        # A second slice of the Service, as of the other family or beyond a hundred endpoints.
        slices(lab, "echo", ("node3", True, True), slice_="echo-2")
        await eventually(lambda: found.nodes(echo) == {"node3"})
        lab.cluster.server.delete("discovery.k8s.io/v1", "EndpointSlice", "echo-2", NAMESPACE)
        await eventually(lambda: found.nodes(echo) == {"node2"})
        slices(lab, "echo")
        await eventually(lambda: found.nodes(echo) == frozenset())
        assert found.nodes(ServiceKey(NAMESPACE, "nobody")) == frozenset()
        assert told[0] is None
        assert set(told[1:]) == {echo}
        before = len(told)
        slices(lab, "echo", ("node4", False, False))
        slices(lab, "other", ("node1", True, True))
        await eventually(lambda: len(told) > before)
        assert told[before:] == [ServiceKey(NAMESPACE, "other")], "what takes no traffic is no news"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.spec("C10", "C18")
@pytest.mark.parametrize(
    ("ready", "serving", "terminating", "counts"),
    [
        (True, True, False, True),
        (True, False, False, True),
        (False, True, True, True),
        (False, True, False, False),
        (False, False, True, False),
        (False, False, False, False),
        (None, None, None, True),
        (None, None, True, True),
        (False, None, True, False),
        (False, None, None, False),
    ],
)
async def test_which_endpoints_take_traffic(
    lab: Lab, ready: bool | None, serving: bool | None, terminating: bool | None, counts: bool
) -> None:
    """What is not given: ready is true, serving is what ready is, terminating is false (EndpointSlice API)."""
    found = endpoints.ServiceEndpoints(lab.cluster.client, "node1", time.monotonic, lambda _: None)
    conditions = {"ready": ready, "serving": serving, "terminating": terminating}
    data = {
        "metadata": {"name": "echo", "namespace": NAMESPACE, "uid": "u", "resourceVersion": "1"},
        "endpoints": [
            {"nodeName": "node1", "conditions": {k: v for k, v in conditions.items() if v is not None}},
            {"conditions": {"ready": True}},
        ],
    }
    nodes = {endpoint.node for endpoint in found._decode(json.dumps(data).encode()).endpoints}
    assert nodes == ({"node1"} if counts else set())


THREE = ("node1", "node2", "node3")


def lab_winner(*candidates: str) -> str:
    winner = Electorate({name: (ip_network("172.30.250.0/24"),) for name in candidates}).winner(ADDRESS)
    assert winner is not None
    return winner


async def allocated_near(lab: Lab, name: str = "echo") -> None:
    annotations = {names.ALLOCATED_BY: names.BRAND, names.ALLOCATED_FROM: "default", **NEAR}
    lab.cluster.create(service_object(name, annotations=annotations))
    await lab.show(name, IP)


async def annotate(lab: Lab, name: str, value: str | None) -> None:
    path = f"/api/v1/namespaces/{NAMESPACE}/services/{name}"
    body = {"metadata": {"annotations": {names.NODE_AFFINITY: value}}}
    await lab.cluster.client.request("PATCH", path, body=body, content_type=MERGE_PATCH)


@pytest.mark.spec("C18")
async def test_the_address_follows_the_endpoints_and_comes_back_when_there_are_none(lab: Lab) -> None:
    usual = lab_winner(*THREE)
    one, other = (node for node in THREE if node != usual)
    await lab.start(*THREE)
    slices(lab, "echo", (one, True, True))
    await lab.allocated("echo", IP)
    await lab.held_by(IP, usual)
    await annotate(lab, "echo", names.SERVICE_ENDPOINTS)
    await lab.held_by(IP, one)
    await eventually(lambda: lab.annotation("echo") == f"{one}, enp1s0")
    # Moved by a rolling update: the new endpoint is ready, the old one serves while it ends.
    slices(lab, "echo", (one, False, True), (other, True, True))
    await lab.held_by(IP, other)
    await eventually(lambda: lab.annotation("echo") == f"{other}, enp1s0")
    slices(lab, "echo", (other, False, False))
    await lab.held_by(IP, usual)
    slices(lab, "echo", (one, True, True))
    await lab.held_by(IP, one)
    await annotate(lab, "echo", None)
    await lab.held_by(IP, usual)


@pytest.mark.spec("C18")
async def test_a_node_with_the_endpoint_that_dies_is_replaced_by_the_ordinary_winner(lab: Lab) -> None:
    usual = lab_winner(*THREE)
    one = next(node for node in THREE if node != usual)
    await lab.start(*THREE)
    slices(lab, "echo", (one, True, True))
    await allocated_near(lab)
    await lab.held_by(IP, one)
    await lab.agents[one].kill()
    rest = [node for node in THREE if node != one]
    await lab.held_by(IP, one, lab_winner(*rest))  # The dead node's kernel still has it: nobody is there to remove it.


@pytest.mark.spec("C18", "C13")
async def test_an_agent_that_starts_keeps_what_it_holds_until_it_knows_the_endpoints(lab: Lab) -> None:
    usual = lab_winner(*THREE[:2])
    one = next(node for node in THREE[:2] if node != usual)
    await lab.start(*THREE[:2])
    slices(lab, "echo", (one, True, True))
    await allocated_near(lab)
    await lab.held_by(IP, one)
    await lab.agents[one].kill()
    fault = lab.cluster.server.faults.add(Fault("error", path=r"/endpointslices"))
    lab.kernels[one].applied.clear()
    await lab.start(one)
    await eventually(lambda: fault.hits >= 2)
    assert one in await lab.holders(IP)
    lab.cluster.server.faults.remove(fault.number)
    await lab.held_by(IP, one)


@pytest.mark.spec("C18")
async def test_endpoints_that_cannot_be_read_silence_nobody_for_ever(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints.ServiceEndpoints.__init__, "__defaults__", (0.5,))
    fault = lab.cluster.server.faults.add(Fault("error", path=r"/endpointslices"))
    usual = lab_winner(*THREE)
    one = next(node for node in THREE if node != usual)
    slices(lab, "echo", (one, True, True))
    await lab.start(*THREE)
    await allocated_near(lab)
    await lab.held_by(IP, usual)
    lab.cluster.server.faults.remove(fault.number)
    await lab.held_by(IP, one)
