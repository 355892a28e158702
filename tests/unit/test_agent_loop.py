"""The agent's loop: real agents with kernels in memory, against an API server over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from purelb_sm.agent import intake
from purelb_sm.domain import names
from purelb_sm.domain.groups import parse_group as real_parse_group
from purelb_sm.domain.reports import parse_report
from purelb_sm.domain.views import ObjectView
from purelb_sm.kube.client import MERGE_PATCH
from purelb_sm.kube.wire import utc_now
from purelb_sm.net import KernelRefused
from purelb_sm.sandbox.apiserver import Fault
from tests.support.agents import INTERFACE, Lab, RunningAgent, a_lab, node_kernel
from tests.support.product import JSON, NAMESPACE, a_cluster, local_group
from tests.support.waiting import eventually

LOCAL = local_group("172.30.250.50-172.30.250.99", "fd30:250::50-fd30:250::99")
ROUTED: JSON = {
    "apiVersion": "purelb.io/v2",
    "kind": "ServiceGroup",
    "metadata": {"name": "routed", "namespace": "purelb-system"},
    "spec": {"remote": {"v4pools": [{"subnet": "172.31.1.0/24", "pool": "172.31.1.0/24", "aggregation": "/32"}]}},
}
NOON = "2026-11-23T12:00:00Z"
IP, IP6, REMOTE = "172.30.250.53", "fd30:250::53", "172.31.1.225"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with a_cluster(tmp_path, LOCAL, ROUTED) as cluster, a_lab(cluster) as lab:
        yield lab


async def patch(lab: Lab, path: str, body: JSON) -> None:
    await lab.cluster.client.request("PATCH", path, body=body, content_type=MERGE_PATCH)


def group_path(name: str) -> str:
    return f"/apis/purelb.io/v2/namespaces/purelb-system/servicegroups/{name}"


def config(lab: Lab, **local: Any) -> None:
    metadata = {"name": "default", "namespace": "purelb-system"}
    lab.cluster.server.apply(
        {"apiVersion": "purelb.io/v2", "kind": "LBNodeAgent", "metadata": metadata, "spec": {"local": local}}
    )


# Where addresses go.


@pytest.mark.spec("C2", "C3", "C4")
async def test_exactly_one_node_holds_a_local_address_on_the_interface_of_its_subnet(lab: Lab) -> None:
    await lab.start("node1", "node2", "node3")
    await lab.allocated("echo", IP, IP6)
    for ip, length in ((IP, 24), (IP6, 64)):
        holder = await lab.one_holder(ip)
        held = (await lab.agents[holder].held())[ip_address(ip)]
        assert (held.interface, held.prefix_length, held.noprefixroute, held.mine) == (INTERFACE, length, True, True)
        assert held.valid_s is not None
        assert 290 <= held.valid_s <= 300


@pytest.mark.spec("C2", "C3")
async def test_every_node_holds_a_remote_address_on_kube_lb0_which_is_made_if_missing(lab: Lab) -> None:
    lab.kernels["node2"] = node_kernel(2, dummy_kind="bridge")
    await lab.start("node1", "node2", "node3")
    await lab.allocated("echo", REMOTE, group="routed")
    await lab.held_by(REMOTE, "node1", "node2", "node3")
    for node in lab.agents.values():
        held = (await node.held())[ip_address(REMOTE)]
        assert (held.interface, held.prefix_length, held.valid_s, held.noprefixroute) == ("kube-lb0", 32, None, False)
        assert not node.announced(REMOTE), "a router learns of remote addresses, neighbours do not"
    (event,) = await eventually(lambda: lab.cluster.events("NoDummyLinks"))
    assert event["involvedObject"]["name"] == "node2"
    assert "kube-lb0 is a bridge" in event["message"]


@pytest.mark.spec("C1", "C19")
async def test_a_service_without_our_brand_is_never_announced(lab: Lab) -> None:
    await lab.start("node1")
    await lab.allocated("foreign", "172.30.250.60", brand=None)
    await lab.allocated("other", "172.30.250.61", brand="MetalLB")
    await lab.allocated("elsewhere", "172.30.250.200")
    await lab.allocated("ours", IP)
    await lab.held_by(IP, "node1")
    assert [str(a) for a in await lab.agents["node1"].held()] == [IP]


@pytest.mark.spec("C1", "A8")
async def test_a_group_that_cannot_be_read_and_a_service_that_makes_no_sense_block_nobody(lab: Lab) -> None:
    await lab.start("node1")
    broken = local_group("172.30.250.60-172.30.250.50", name="broken")
    lab.cluster.create(broken)
    await lab.allocated("odd", "172.30.250.70", group="broken")
    await lab.allocated("echo", IP)
    await lab.held_by(IP, "node1")
    await lab.held_by("172.30.250.70", "node1")  # In the group default, whatever its annotation says.


@pytest.mark.spec("E1", "A8")
async def test_a_group_that_makes_us_stumble_costs_no_other_and_nobody_who_lives_on_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse_group(view: Any) -> Any:
        if view.spec.get("namespaces") == ["odd"]:
            raise TypeError("nobody thought of this")
        return real_parse_group(view)

    monkeypatch.setattr(intake, "parse_group", parse_group)
    await lab.start("node1")
    await lab.allocated("echo", IP)
    await lab.held_by(IP, "node1")
    await patch(lab, group_path("default"), {"spec": {"namespaces": ["odd"]}})
    await lab.allocated("later", REMOTE, group="routed")
    await lab.held_by(REMOTE, "node1")
    await lab.held_by(IP, "node1")


@pytest.mark.spec("A8", "C2")
async def test_of_groups_that_overlap_the_agents_use_the_one_that_the_allocator_uses(lab: Lab) -> None:
    """The older one was edited onto the younger one: an agent that was not there then would take the older."""
    pool = {"subnet": "172.31.1.0/24", "pool": "172.31.1.0/24"}
    await patch(lab, group_path("default"), {"spec": {"local": {"v4pools": [pool]}}})
    await lab.start("node1")
    await lab.allocated("routed", REMOTE, group="routed")
    await lab.allocated("six", IP6)
    await lab.held_by(IP6, "node1")
    assert await lab.holders(REMOTE) == []
    for name, generation, status in (("default", 2, "False"), ("routed", 1, "True")):
        conditions = [{"type": "Ready", "status": status, "reason": "x", "message": "", "lastTransitionTime": NOON}]
        told = {"observedGeneration": generation, "conditions": conditions}
        await patch(lab, group_path(name) + "/status", {"status": told})
    await lab.held_by(REMOTE, "node1")


async def test_a_slip_in_a_group_silences_nobody_who_lives_on_it(lab: Lab) -> None:
    await lab.start("node1", "node2")
    await lab.allocated("echo", IP)
    holder = await lab.one_holder(IP)
    await patch(lab, group_path("default"), {"spec": {"local": {"v4pools": [{"subnet": "x", "pool": "y"}]}}})
    await lab.allocated("later", REMOTE, group="routed")
    await lab.held_by(REMOTE, "node1", "node2")
    assert await lab.holders(IP) == [holder]
    await lab.agents[holder].kill()
    await lab.start(holder)
    assert IP in {str(a) for a in await lab.agents[holder].held()}


@pytest.mark.spec("C3")
async def test_the_lbnodeagent_decides_interface_lifetime_and_frames(lab: Lab) -> None:
    kernel = lab.kernel("node1")
    kernel.add_interface("eth1", "172.30.250.21/26")
    config(
        lab,
        localInterface="^eth",
        dummyInterface="ext0",
        garpConfig={"enabled": False},
        addressConfig={
            "localInterface": {"validLifetime": 600, "preferredLifetime": 60},
            "dummyInterface": {"validLifetime": 900},
        },
    )
    (node,) = await lab.start("node1")
    await lab.allocated("echo", IP)
    await lab.allocated("routed", REMOTE, group="routed")
    await eventually(lambda: len(node.agent.upkeep.announcer.holdings) == 2)
    held = await node.held()
    assert (held[ip_address(IP)].interface, held[ip_address(IP)].prefix_length) == ("eth1", 26)
    assert 590 <= (held[ip_address(IP)].valid_s or 0) <= 600
    assert held[ip_address(REMOTE)].interface == "ext0"
    assert 890 <= (held[ip_address(REMOTE)].valid_s or 0) <= 900
    asked = {(str(one.address), one.preferred_s) for adds, _ in node.kernel.applied for one in adds}
    assert asked == {(IP, 60), (REMOTE, None)}
    config(lab, localInterface="default")
    await eventually(lambda: node.agent.ledger.get(ip_address(IP), INTERFACE))
    await eventually(lambda: node.agent.ledger.get(ip_address(REMOTE), "kube-lb0"))
    await eventually(lambda: node.announced(IP) == 3)
    assert {(h.interface, str(h.address)) for h in await node.kernel.held()} == {(INTERFACE, IP), ("kube-lb0", REMOTE)}


async def test_a_node_whose_lbnodeagent_cannot_be_read_says_so_and_takes_no_local_address(lab: Lab) -> None:
    config(lab, localInterface="^eth[[:digit:]]$")
    await lab.start("node1")
    (event,) = await eventually(lambda: lab.cluster.events("ParseFailed"))
    assert (event["type"], event["involvedObject"]["kind"]) == ("Warning", "LBNodeAgent")
    assert "spec.local.localInterface" in event["message"]
    await lab.allocated("echo", IP)
    await lab.allocated("routed", REMOTE, group="routed")
    lab.cluster.server.delete("purelb.io/v2", "LBNodeAgent", "default", "purelb-system")
    await lab.held_by(IP, "node1")
    assert await lab.holders(REMOTE) == ["node1"]


def label(lab: Lab, node: str, **labels: str) -> None:
    lab.cluster.server.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}})


def config_for(lab: Lab, name: str, labels: dict[str, str], **local: Any) -> None:
    metadata = {"name": name, "namespace": "purelb-system"}
    spec = {"nodeSelector": {"matchLabels": labels}, "local": local}
    lab.cluster.server.apply({"apiVersion": "purelb.io/v2", "kind": "LBNodeAgent", "metadata": metadata, "spec": spec})


IPS = [f"172.30.250.{number}" for number in range(53, 61)]
NO_EXPRESSION = "^eth[[:digit:]]$"
"""An API server takes it, as PureLB does; here it would be read as another set of characters."""


@pytest.mark.spec("C3")
async def test_an_edit_that_one_node_cannot_read_moves_all_it_has_to_the_others_until_it_is_mended(lab: Lab) -> None:
    label(lab, "node1", rack="a")
    config_for(lab, "rack-a", {"rack": "a"}, localInterface="default")
    config(lab, localInterface="default")
    await lab.start("node1", "node2", "node3")
    for number, ip in enumerate(IPS):
        await lab.allocated(f"echo{number}", ip)
    await lab.allocated("routed", REMOTE, group="routed")
    before = {ip: await lab.one_holder(ip) for ip in IPS}
    assert "node1" in before.values()
    await lab.held_by(REMOTE, "node1", "node2", "node3")
    kept = [ip for ip, node in before.items() if node != "node1"]
    others = {name: len(lab.kernels[name].applied) for name in ("node2", "node3")}

    config_for(lab, "rack-a", {"rack": "a"}, localInterface=NO_EXPRESSION)
    await lab.held_by(REMOTE, "node2", "node3")
    for ip in IPS:
        assert await lab.held_elsewhere(ip, "node1") in ("node2", "node3")
    assert not await lab.kernels["node1"].held()
    assert {ip: await lab.one_holder(ip) for ip in kept} == {ip: before[ip] for ip in kept}
    for name, asked in others.items():
        assert not any(removed for _, removed in lab.kernels[name].applied[asked:])
    (event,) = await eventually(lambda: lab.cluster.events("ParseFailed"))
    assert (event["involvedObject"]["name"], event["type"]) == ("rack-a", "Warning")
    assert "spec.local.localInterface" in event["message"]
    assert NO_EXPRESSION in event["message"]

    config_for(lab, "rack-a", {"rack": "a"}, localInterface="^enp1s0$")
    await lab.held_by(REMOTE, "node1", "node2", "node3")
    await eventually(lambda: len(lab.agents["node1"].agent.ledger) == 1 + list(before.values()).count("node1"))
    assert {ip: await lab.one_holder(ip) for ip in IPS} == before


@pytest.mark.spec("C3")
async def test_a_nodes_labels_decide_at_any_time_whether_it_announces_and_where(lab: Lab) -> None:
    config_for(lab, "edge", {"role": "edge"}, dummyInterface="ext0")
    await lab.start("node1", "node2")
    await lab.allocated("routed", REMOTE, group="routed")
    await lab.allocated("echo", IP)
    assert await lab.holders(REMOTE) == await lab.holders(IP) == []
    label(lab, "node1", role="edge")
    await lab.held_by(REMOTE, "node1")
    await lab.held_by(IP, "node1")
    assert (await lab.agents["node1"].held())[ip_address(REMOTE)].interface == "ext0"
    label(lab, "node2", role="edge")
    await lab.held_by(REMOTE, "node1", "node2")
    label(lab, "node1", role="core")
    await lab.held_by(REMOTE, "node2")
    await lab.held_by(IP, "node2")


@pytest.mark.spec("C3")
async def test_of_two_objects_for_one_node_the_second_is_told_that_it_is_not_used(lab: Lab) -> None:
    config(lab, dummyInterface="ext0")
    config_for(lab, "another", {}, dummyInterface="ext1")
    await lab.start("node1")
    (event,) = await eventually(lambda: lab.cluster.events("ConfigurationWarning"))
    assert event["involvedObject"]["name"] == "default"
    assert event["message"] == "not used on node node1: LBNodeAgent another goes before it"
    await lab.allocated("routed", REMOTE, group="routed")
    await lab.held_by(REMOTE, "node1")
    assert (await lab.agents["node1"].held())[ip_address(REMOTE)].interface == "ext1"


@pytest.mark.spec("C3")
async def test_more_interfaces_are_tried_in_the_order_written_and_the_narrower_subnet_goes_first(lab: Lab) -> None:
    kernel = lab.kernel("node1")
    kernel.add_interface("eth1", "10.5.0.21/24")
    kernel.add_interface("eth2", "10.5.0.22/24")
    kernel.add_interface("eth3", "172.30.250.23/28", "10.5.0.23/24")
    spec = {"local": {"v4pools": [{"subnet": "10.5.0.0/24", "pool": "10.5.0.100-10.5.0.110"}]}}
    metadata = {"name": "storage", "namespace": "purelb-system"}
    lab.cluster.create({"apiVersion": "purelb.io/v2", "kind": "ServiceGroup", "metadata": metadata, "spec": spec})
    config(lab, interfaces=["missing0", "eth2", "eth1"])
    (node,) = await lab.start("node1")
    await lab.allocated("db", "10.5.0.100", group="storage")
    await lab.allocated("echo", IP)
    await lab.held_by("10.5.0.100", "node1")
    await lab.held_by(IP, "node1")
    assert (await node.held())[ip_address("10.5.0.100")].interface == "eth2"
    assert (await node.held())[ip_address(IP)].interface == INTERFACE
    config(lab, interfaces=["eth1", "eth2"])
    await eventually(lambda: node.agent.ledger.get(ip_address("10.5.0.100"), "eth1"))


@pytest.mark.spec("C3", "C4")
async def test_a_renamed_dummy_interface_gets_what_the_old_one_had_without_a_gap_and_foreign_addresses_stay(
    lab: Lab,
) -> None:
    (node,) = await lab.start("node1")
    await lab.allocated("routed", REMOTE, "172.31.1.226", group="routed")
    await eventually(lambda: len(node.agent.ledger) == 2)
    node.kernel.add_foreign("192.0.2.7/32", "kube-lb0")
    asked = len(node.kernel.applied)
    config(lab, dummyInterface="ext0")
    await eventually(lambda: {r.interface for r in node.agent.ledger} == {"ext0"} and len(node.agent.ledger) == 2)
    assert {h.interface for h in await node.kernel.held()} == {"ext0"}
    left = [str(h.address) for h in await node.kernel.addresses() if h.interface == "kube-lb0"]
    assert left == ["192.0.2.7"]
    changes = [("add", len(add)) if add else ("remove", len(remove)) for add, remove in node.kernel.applied[asked:]]
    assert changes == [("add", 2), ("remove", 2)], "there before it leaves"

    def said(*more: str) -> bool:
        told = lab.cluster.events("AnnouncingNonLocal")
        where = sorted(e["message"].rsplit(" ", 1)[1] for e in told for _ in range(e.get("count", 1)))
        return where == ["ext0", "ext0", *more, "kube-lb0", "kube-lb0"]

    await eventually(said, "an Event for each")
    node.agent.upkeep.returned()
    await lab.allocated("later", "172.31.1.227", group="routed")
    await eventually(lambda: said("ext0"), "an Event for the new one, and no other")


@pytest.mark.spec("C3", "C15")
async def test_another_lifetime_is_given_at_once_to_what_is_held_and_reported(lab: Lab) -> None:
    (node,) = await lab.start("node1")
    await lab.allocated("echo", IP)
    await lab.held_by(IP, "node1")
    for lifetime, expected in ((900, (890, 900)), (60, (50, 60)), (0, None), (300, (290, 300))):
        config(lab, addressConfig={"localInterface": {"validLifetime": lifetime}})

        async def given(expected: tuple[int, int] | None = expected) -> bool:
            valid_s = (await node.held())[ip_address(IP)].valid_s
            return valid_s is None if expected is None else valid_s in range(expected[0], expected[1] + 1)

        await eventually(given, f"a lifetime of {lifetime} s")

        def reported(lifetime: int = lifetime) -> bool:
            found = (lab.report("node1") or {}).get("addresses", [])
            return [address.get("validSeconds", 0) for address in found] == [lifetime]

        await eventually(reported, f"a report of {lifetime} s")
    assert not any(removed for _, removed in node.kernel.applied)
    assert node.announced(IP) <= 3


# Telling the neighbours, the users and the allocator.


@pytest.mark.spec("C7")
async def test_neighbours_are_told_three_times_after_each_local_address(lab: Lab) -> None:
    (node,) = await lab.start("node1")
    await lab.allocated("echo", IP, IP6)
    await eventually(lambda: node.announced(IP) == 3 and node.announced(IP6) == 3)
    times = [a.at for a in node.kernel.announced if str(a.address) == IP]
    assert all(later - earlier >= 0.49 for earlier, later in pairwise(times))
    assert {a.interface for a in node.kernel.announced} == {INTERFACE}


@pytest.mark.spec("C7")
async def test_no_frame_goes_out_for_an_address_that_is_not_ours_any_more(lab: Lab) -> None:
    config(lab, garpConfig={"initialDelay": "100ms", "interval": "300ms", "count": 10})
    (node,) = await lab.start("node1")
    await lab.allocated("echo", IP)
    await eventually(lambda: node.announced(IP) >= 2)
    lab.cluster.delete_service("echo")
    await lab.held_by(IP)
    told = node.announced(IP)
    await lab.allocated("other", "172.30.250.54")
    await eventually(lambda: node.announced("172.30.250.54") >= 3)
    assert node.announced(IP) == told < 10


@pytest.mark.spec("C8", "C9")
async def test_events_and_annotation_say_who_announces_what_and_where(lab: Lab) -> None:
    await lab.start("node3")
    await lab.allocated("echo", IP)
    await lab.allocated("routed", REMOTE, group="routed")
    local = await eventually(lambda: lab.cluster.events("AnnouncingLocal"))
    remote = await eventually(lambda: lab.cluster.events("AnnouncingNonLocal"))
    assert [
        (e["type"], e["message"], e["source"]["component"], e["involvedObject"]["name"]) for e in local + remote
    ] == [
        ("Normal", f"Node node3 announcing {IP} on interface {INTERFACE}", "purelb-lbnodeagent", "echo"),
        ("Normal", f"Announcing {REMOTE} from node node3 interface kube-lb0", "purelb-lbnodeagent", "routed"),
    ]
    await eventually(lambda: lab.annotation("echo") == f"node3, {INTERFACE}")
    assert lab.annotation("routed") is None


@pytest.mark.spec("C9")
async def test_two_nodes_write_one_annotation_and_undo_nothing(lab: Lab) -> None:
    await lab.start("node1", "node2")
    ips = [f"172.30.250.{n}" for n in range(50, 58)]
    await lab.allocated("echo", *ips)
    owners = {ip: await lab.one_holder(ip) for ip in ips}
    assert set(owners.values()) == {"node1", "node2"}
    expected = " ".join(f"{owners[ip]},{INTERFACE},{ip}" for ip in ips)
    await eventually(lambda: lab.annotation("echo") == expected)


@pytest.mark.spec("C9")
async def test_somebody_elses_write_in_between_is_not_lost(lab: Lab) -> None:
    service = f"/api/v1/namespaces/{NAMESPACE}/services/echo"
    lab.cluster.server.faults.add(Fault("delay", method="PATCH", path="/services/echo/status", delay_s=0.3, times=3))
    await lab.start("node1")
    await lab.allocated("echo", IP)
    await lab.held_by(IP, "node1")
    await patch(lab, service, {"metadata": {"annotations": {"purelb.io/service-group": "theirs", "other": "1"}}})
    await eventually(lambda: lab.annotation("echo") == f"node1, {INTERFACE}")
    assert lab.annotation("echo", "other") == "1"
    assert lab.annotation("echo", names.SERVICE_GROUP) == "theirs"


def report_of(lab: Lab, node: str) -> Any:
    found = lab.cluster.server.get("purelb.io/v2", "NodeAnnouncement", node, "purelb-system")
    if found is None:
        return None
    meta = found["metadata"]
    view = ObjectView(
        found["kind"], found["apiVersion"], meta["namespace"], meta["name"], meta["uid"], "1", 1, None, found["spec"]
    )
    return parse_report(view)


@pytest.mark.spec("C15")
async def test_the_report_holds_what_the_kernel_holds_and_how_it_came_to_it(lab: Lab) -> None:
    (node,) = await lab.start("node1")
    await eventually(lambda: report_of(lab, "node1"))
    await lab.allocated("echo", IP)
    report = await eventually(lambda: (r := report_of(lab, "node1")) and r.addresses and r)
    (entry,) = report.addresses
    assert (str(entry.address), entry.interface, entry.prefix_length, entry.state) == (IP, INTERFACE, 24, "present")
    assert entry.valid_s == 300
    assert report.incarnation == node.agent.incarnation
    assert [(t.seq, t.trigger, t.source, t.dest) for t in report.transitions] == [
        (1, "add", "absent", "adding"),
        (2, "added", "adding", "present"),
    ]
    assert entry.since == report.transitions[-1].at, "since it is in this state"
    lab.cluster.delete_service("echo")
    last = await eventually(lambda: (r := report_of(lab, "node1")) and not r.addresses and r)
    assert [(t.seq, t.trigger) for t in last.transitions[2:]] == [(3, "remove"), (4, "removed")]
    assert last.sequence > report.sequence


@pytest.mark.spec("C15")
async def test_what_the_kernel_refuses_is_failed_with_the_reason_and_tried_again_without_a_word(lab: Lab) -> None:
    lab.kernel("node1").refuse(ip_address(IP), KernelRefused(12))
    (node,) = await lab.start("node1")
    await lab.allocated("echo", IP)
    failed = await eventually(lambda: (r := report_of(lab, "node1")) and r.addresses and r)
    assert failed.addresses[0].state == "failed"
    assert "ENOMEM" in failed.addresses[0].reason
    await eventually(lambda: node.agent.upkeep.announcer.holdings.counters.failed >= 2)
    assert len(node.agent.ledger.report().transitions) == 2
    node.kernel.refuse(ip_address(IP), None)
    await lab.held_by(IP, "node1")
    await eventually(lambda: (r := report_of(lab, "node1")) and r.addresses[0].state == "present")


async def test_what_changes_nothing_for_us_writes_nothing(lab: Lab) -> None:
    await lab.start("node1")
    await lab.allocated("echo", IP)
    await eventually(lambda: lab.annotation("echo"))
    await eventually(lambda: (r := report_of(lab, "node1")) and r.addresses)
    await eventually(lambda: lab.cluster.events("AnnouncingLocal"))
    node = lab.agents["node1"]
    applied = len(node.kernel.applied)
    lab.cluster.requests.clear()
    for n in range(3):
        await patch(lab, f"/api/v1/namespaces/{NAMESPACE}/services/echo", {"metadata": {"labels": {"n": str(n)}}})
    view = lab.cluster.service("echo")
    await eventually(
        lambda: node.agent.watches.services.resource_version >= view["metadata"]["resourceVersion"], "the watch"
    )
    node.kernel.lose_notices()
    await asyncio.sleep(0)
    assert [w for w in lab.cluster.writes() if w[0] != "PATCH" or not w[1].endswith("/echo")] == []
    assert len(node.kernel.applied) == applied


# Going.


@pytest.mark.spec("C11")
@pytest.mark.parametrize("how", ["deleted", "type", "group", "brand", "class"])
async def test_what_is_ours_no_more_leaves_every_node(lab: Lab, how: str) -> None:
    await lab.start("node1", "node2")
    await lab.allocated("echo", REMOTE, group="routed")
    await lab.held_by(REMOTE, "node1", "node2")
    path = f"/api/v1/namespaces/{NAMESPACE}/services/echo"
    match how:
        case "deleted":
            lab.cluster.delete_service("echo")
        case "type":
            await patch(lab, path, {"spec": {"type": "ClusterIP"}})
        case "group":
            lab.cluster.server.delete("purelb.io/v2", "ServiceGroup", "routed", "purelb-system")
        case "brand":
            await patch(lab, path, {"metadata": {"annotations": {names.ALLOCATED_BY: None}}})
        case _:
            lab.cluster.delete_service("echo")
            await lab.allocated("echo", REMOTE, group="routed", loadBalancerClass="example.com/x")
    await lab.held_by(REMOTE)


def slices(lab: Lab, name: str, *endpoints: tuple[str, bool, bool], slice_: str = "") -> None:
    """An EndpointSlice of the Service, with (node, ready, serving) for each endpoint; not ready ones terminate."""
    lab.cluster.server.apply(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": slice_ or name,
                "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": [f"10.244.0.{number}"],
                    "nodeName": node,
                    "conditions": {"ready": ready, "serving": serving, "terminating": not ready},
                }
                for number, (node, ready, serving) in enumerate(endpoints, 1)
            ],
        }
    )


@pytest.mark.spec("C10")
async def test_with_policy_local_a_remote_address_is_where_the_endpoints_are(lab: Lab) -> None:
    await lab.start("node1", "node2", "node3")
    slices(lab, "other", ("node1", True, True))
    slices(lab, "echo", ("node1", True, True), ("node2", False, True), ("node3", False, False))
    await lab.allocated("echo", REMOTE, group="routed", externalTrafficPolicy="Local")
    await lab.held_by(REMOTE, "node1", "node2")
    slices(lab, "echo", ("node3", True, True), ("node3", True, True))
    await lab.held_by(REMOTE, "node3")
    lab.cluster.server.delete("discovery.k8s.io/v1", "EndpointSlice", "echo", NAMESPACE)
    await lab.held_by(REMOTE)
    await patch(lab, f"/api/v1/namespaces/{NAMESPACE}/services/echo", {"spec": {"externalTrafficPolicy": "Cluster"}})
    await lab.held_by(REMOTE, "node1", "node2", "node3")


@pytest.mark.spec("C10", "C13")
async def test_what_is_held_stays_until_the_endpoints_are_known(lab: Lab) -> None:
    (node,) = await lab.start("node1")
    slices(lab, "echo", ("node1", True, True))
    await lab.allocated("echo", REMOTE, group="routed", externalTrafficPolicy="Local")
    await lab.held_by(REMOTE, "node1")
    await node.kill()
    fault = lab.cluster.server.faults.add(Fault("error", path=r"/endpointslices"))
    node.kernel.applied.clear()
    (again,) = await lab.start("node1")
    await eventually(lambda: fault.hits >= 2)
    assert await lab.holders(REMOTE) == ["node1"]
    lab.cluster.server.faults.remove(fault.number)
    lab.cluster.server.delete("discovery.k8s.io/v1", "EndpointSlice", "echo", NAMESPACE)
    await lab.held_by(REMOTE)
    assert again.agent.ledger.report().addresses == ()


async def test_endpoints_are_not_watched_where_nobody_asks(lab: Lab) -> None:
    await lab.start("node1")
    await lab.allocated("echo", IP)
    await lab.held_by(IP, "node1")
    assert not [path for _, path in lab.cluster.requests if "endpointslices" in path]


@pytest.mark.spec("C19")
async def test_an_address_that_leaves_the_ingress_leaves_the_node(lab: Lab) -> None:
    await lab.start("node1")
    await lab.allocated("echo", IP, IP6)
    await lab.held_by(IP6, "node1")
    await eventually(lambda: lab.annotation("echo", names.ANNOUNCING_V6))
    await lab.show("echo", IP)
    await lab.held_by(IP6)
    assert await lab.holders(IP) == ["node1"]


@pytest.mark.spec("C12")
async def test_an_address_removed_by_hand_is_back_and_counted(lab: Lab) -> None:
    (node,) = await lab.start("node1")
    await lab.allocated("echo", IP)
    await eventually(lambda: node.announced(IP) == 3)
    node.kernel.remove_by_hand(ip_address(IP), INTERFACE)
    await eventually(lambda: node.announced(IP) == 6)
    assert await lab.holders(IP) == ["node1"]
    counted = {metric.name: metric.samples[0].value for metric in node.agent.metrics.registry.collect()}
    assert counted["purelb_lbnodeagent_address_vanished"] == 1
    moves = [t.trigger for t in node.agent.ledger.report().transitions]
    assert moves == ["add", "added", "found_absent", "add", "added"]


@pytest.mark.spec("C12")
async def test_a_link_that_flaps_gets_its_ipv6_address_back(lab: Lab) -> None:
    (node,) = await lab.start("node1")
    await lab.allocated("echo", IP, IP6)
    await lab.held_by(IP6, "node1")
    node.kernel.set_link(INTERFACE, up=False)
    node.kernel.add_foreign("fd30:250::b/64", INTERFACE)
    node.kernel.set_link(INTERFACE, up=True)
    await lab.held_by(IP6, "node1")
    assert await lab.holders(IP) == ["node1"]


@pytest.mark.spec("C2", "C12")
async def test_a_node_whose_link_is_dead_is_in_no_subnet_and_another_answers_until_it_is_back(lab: Lab) -> None:
    """The kernel keeps addresses and routes of a link without a carrier, and nobody would be answered."""
    holder, other = await two_with_address(lab)
    holder.kernel.set_link(INTERFACE, up=False)
    await lab.held_by(IP, other.name)
    assert holder.agent.lease.valid
    lease = lab.lease(holder.name)
    assert lease is not None
    assert lease["metadata"]["annotations"][names.SUBNETS] == ""
    holder.kernel.set_link(INTERFACE, up=True)
    await lab.held_by(IP, holder.name)


# Nodes that come and go.


async def two_with_address(lab: Lab) -> tuple[RunningAgent, RunningAgent]:
    """Two agents; the first holds the address."""
    await lab.start("node1", "node2")
    await lab.allocated("echo", IP)
    holder = await lab.one_holder(IP)
    await eventually(lambda: lab.annotation("echo") == f"{holder}, {INTERFACE}")
    return lab.agents[holder], lab.agents["node2" if holder == "node1" else "node1"]


@pytest.mark.spec("C6", "C9")
async def test_when_a_node_dies_another_takes_over_tells_the_neighbours_and_says_so(lab: Lab) -> None:
    holder, other = await two_with_address(lab)
    await holder.kill()
    await lab.held_by(IP, *sorted([holder.name, other.name]))
    await eventually(lambda: other.announced(IP) == 3)
    await eventually(lambda: lab.annotation("echo") == f"{other.name}, {INTERFACE}")


@pytest.mark.spec("C6")
async def test_told_to_stop_it_withdraws_deletes_its_lease_and_reports_before_it_ends(lab: Lab) -> None:
    await lab.allocated("routed", REMOTE, group="routed")
    holder, other = await two_with_address(lab)
    await lab.held_by(REMOTE, "node1", "node2")
    await holder.terminate()
    assert await holder.held() == {}
    assert lab.lease(holder.name) is None
    report = report_of(lab, holder.name)
    assert report.addresses == ()
    assert [(str(t.address), t.trigger) for t in report.transitions[-4:]] == [
        (IP, "remove"),
        (IP, "removed"),
        (REMOTE, "remove"),
        (REMOTE, "removed"),
    ], "an address that has an heir goes first"
    await lab.held_by(IP, other.name)
    await eventually(lambda: other.announced(IP) == 3)


@pytest.mark.spec("C6")
async def test_an_update_can_leave_the_addresses_where_they_are(lab: Lab) -> None:
    await lab.start("node1", keep_on_exit=True)
    await lab.allocated("echo", IP)
    await lab.held_by(IP, "node1")
    await lab.agents["node1"].terminate()
    assert await lab.holders(IP) == ["node1"]
    assert lab.lease("node1") is not None


@pytest.mark.spec("C13", "C4")
async def test_after_kill_9_what_is_there_is_taken_over_and_only_what_is_ours_is_cleaned_up(lab: Lab) -> None:
    await lab.start("node1")
    await lab.allocated("echo", IP)
    await lab.allocated("gone", "172.30.250.54")
    await lab.allocated("routed", REMOTE, group="routed")
    for ip in (IP, "172.30.250.54", REMOTE):
        await lab.held_by(ip, "node1")
    await lab.agents["node1"].kill()
    kernel = lab.kernels["node1"]
    kernel.add_foreign("172.30.250.99/24", INTERFACE)
    kernel.add_foreign("172.31.1.7/32", "kube-lb0")
    lab.cluster.delete_service("gone")
    kernel.applied.clear()
    (again,) = await lab.start("node1")
    assert {str(h.address) for h in await kernel.held()} == {IP, REMOTE}
    assert [str(held.address) for _, removed in kernel.applied for held in removed] == ["172.30.250.54"]
    added = [w for adds, _ in kernel.applied for w in adds]
    assert {str(w.address) for w in added} <= {IP, "172.30.250.54"}, "lifetimes are renewed, nothing else"
    assert {"172.30.250.99", "172.31.1.7"} <= {str(h.address) for h in await kernel.addresses()}
    triggers = {(str(t.address), str(t.trigger)) for t in again.agent.ledger.report().transitions}
    assert {(IP, "found_present"), (REMOTE, "found_present"), ("172.30.250.54", "removed")} <= triggers


@pytest.mark.spec("C7", "C13")
async def test_an_agent_that_was_away_too_long_takes_the_traffic_back(lab: Lab) -> None:
    """Another node answered meanwhile and told so; what was here all the time has to be told again."""
    holder, other = await two_with_address(lab)
    await holder.kill()
    await eventually(lambda: other.announced(IP) == 3)
    before = holder.announced(IP)
    await lab.start(holder.name)
    await lab.held_by(IP, holder.name)
    await eventually(lambda: holder.announced(IP) == before + 3)
    await eventually(lambda: lab.annotation("echo") == f"{holder.name}, {INTERFACE}")


@pytest.mark.spec("C7", "C13")
async def test_an_agent_that_renews_its_lease_late_takes_the_traffic_back_all_the_same(lab: Lab) -> None:
    """The Lease that its predecessor left may still count for the others when it starts."""
    holder, other = await two_with_address(lab)
    await holder.kill()
    await eventually(lambda: other.announced(IP) == 3)
    before = holder.announced(IP)
    path = f"leases/purelb-node-{holder.name}"
    lab.cluster.server.faults.add(Fault("delay", method="PATCH", path=path, delay_s=0.5, times=1))
    await lab.start(holder.name)
    await lab.held_by(IP, holder.name)
    await eventually(lambda: holder.announced(IP) == before + 3)


@pytest.mark.spec("C7", "C14")
async def test_a_node_that_alone_lost_the_api_server_takes_the_traffic_back(lab: Lab) -> None:
    holder, other = await two_with_address(lab)
    await eventually(lambda: holder.announced(IP) == 3)
    mute = lab.cluster.server.faults.add(Fault("error", method="PATCH", path=f"leases/purelb-node-{holder.name}"))
    await lab.held_by(IP, other.name)  # Its own watch tells it that the others go on without it.
    lab.cluster.server.faults.remove(mute.number)
    await lab.held_by(IP, holder.name)
    await eventually(lambda: holder.announced(IP) == 6)


async def test_a_foreign_address_in_the_place_of_ours_is_left_and_told(lab: Lab) -> None:
    lab.kernel("node1").add_foreign(f"{IP}/24", INTERFACE)
    (node,) = await lab.start("node1")
    await lab.allocated("echo", IP)
    report = await eventually(lambda: (r := report_of(lab, "node1")) and r.addresses and r)
    assert report.addresses[0].reason.startswith("ForeignAddress")
    lab.cluster.delete_service("echo")
    await eventually(lambda: not report_of(lab, "node1").addresses)
    assert IP in {str(h.address) for h in await node.kernel.addresses()}
    assert node.announced(IP) == 0


async def test_a_lease_that_somebody_deletes_is_made_again(lab: Lab) -> None:
    await lab.start("node1")
    await lab.allocated("echo", IP)
    await lab.held_by(IP, "node1")
    before = lab.lease("node1")
    assert before is not None
    lab.cluster.server.delete("coordination.k8s.io/v1", "Lease", "purelb-node-node1", "purelb-system")
    after = await eventually(lambda: lab.lease("node1"))
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["metadata"]["annotations"][names.SUBNETS] == "172.30.250.0/24,fd30:250::/64"
    await lab.held_by(IP, "node1")


@pytest.mark.spec("C5")
async def test_the_lease_names_the_nodes_subnets_and_follows_them(lab: Lab) -> None:
    (node,) = await lab.start("node1")
    lease = lab.lease("node1")
    assert lease is not None
    assert lease["metadata"]["annotations"][names.SUBNETS] == "172.30.250.0/24,fd30:250::/64"
    assert lease["spec"]["holderIdentity"] == "node1"
    node.kernel.add_foreign("10.9.8.7/25", INTERFACE)
    await eventually(
        lambda: (
            (lab.lease("node1") or {})["metadata"]["annotations"][names.SUBNETS]
            == "10.9.8.0/25,172.30.250.0/24,fd30:250::/64"
        )
    )


# Bad days of the API server.


@pytest.mark.spec("C13")
@pytest.mark.parametrize("kind", ["services", "servicegroups", "lbnodeagents", "leases", "nodes"])
async def test_nothing_is_withdrawn_before_every_kind_was_seen_whole(lab: Lab, kind: str) -> None:
    await lab.start("node1")
    await lab.allocated("echo", IP)
    await lab.held_by(IP, "node1")
    await lab.agents["node1"].kill()
    fault = lab.cluster.server.faults.add(Fault("error", method="GET", path=rf"/{kind}\?", watch=False))
    (node,) = await lab.start("node1", settle=False)
    await eventually(lambda: fault.hits >= 2)
    await eventually(lambda: node.agent.upkeep.announcer.holdings.counters.renewed >= 1)
    assert await lab.holders(IP) == ["node1"]
    assert not node.agent.upkeep.settled.is_set()
    lab.cluster.server.faults.remove(fault.number)
    await eventually(node.is_settled)
    assert await lab.holders(IP) == ["node1"]
    assert not any(removed for _, removed in node.kernel.applied)


@pytest.mark.spec("C14")
async def test_while_the_api_server_is_away_all_keep_what_they_hold_and_nobody_takes_over(lab: Lab) -> None:
    holder, other = await two_with_address(lab)
    everything = lab.cluster.server.faults.add(Fault("abort", path="/"))
    await eventually(lambda: not holder.agent.lease.valid and not other.agent.lease.valid, "both Leases to run out")
    assert await lab.holders(IP) == [holder.name]
    holder.kernel.remove_by_hand(ip_address(IP), INTERFACE)
    await lab.held_by(IP, holder.name)
    lab.cluster.server.faults.remove(everything.number)
    await eventually(lambda: holder.agent.lease.valid and other.agent.lease.valid)
    await lab.allocated("later", REMOTE, group="routed")
    await lab.held_by(REMOTE, "node1", "node2")
    assert await lab.holders(IP) == [holder.name]
    assert other.announced(IP) == 0, "it did not even move for a moment"


@pytest.mark.spec("C14")
async def test_strict_lets_everything_lapse_a_lifetime_after_the_lease_and_takes_it_up_again(lab: Lab) -> None:
    (node,) = await lab.start("node1", when_api_away="strict")
    await lab.allocated("echo", IP)
    await lab.allocated("routed", REMOTE, group="routed")
    await lab.held_by(REMOTE, "node1")
    await lab.held_by(IP, "node1")
    everything = lab.cluster.server.faults.add(Fault("abort", path="/"))
    await eventually(lambda: not node.agent.lease.valid)
    node.agent.upkeep.wake()
    node.kernel.remove_by_hand(ip_address(IP), INTERFACE)  # Its lifetime is over.
    await eventually(lambda: node.agent.upkeep.announcer.holdings.counters.vanished == 1)
    assert await lab.holders(IP) == []
    lab.cluster.server.faults.remove(everything.number)
    await lab.held_by(IP, "node1")


@pytest.mark.spec("E7", "C5")
@pytest.mark.parametrize("jump", [timedelta(hours=1), timedelta(hours=-1)], ids=["forward", "back"])
async def test_a_time_of_day_that_jumps_an_hour_moves_and_ends_nothing(lab: Lab, jump: timedelta) -> None:
    off = {"node1": timedelta(0), "node2": timedelta(0)}
    lab.times_of_day = {node: partial(lambda node: utc_now() + off[node], node) for node in off}
    holder, other = await two_with_address(lab)
    off[holder.name] = jump
    seen: set[str] = set()

    def renewed() -> bool:
        seen.add((lab.lease(holder.name) or {})["spec"]["renewTime"])
        return len(seen) > 10  # Three seconds, with Leases of two.

    await eventually(renewed)
    assert await lab.holders(IP) == [holder.name]
    assert (other.announced(IP), holder.announced(IP)) == (0, 3)
    assert holder.agent.liveness.live() == other.agent.liveness.live() == {"node1", "node2"}
    assert all(t.trigger in ("add", "added") for t in report_of(lab, holder.name).transitions)
