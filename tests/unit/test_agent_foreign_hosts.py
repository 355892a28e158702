"""Whole agents, and foreign hosts on their links that use the addresses that they are to announce."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from purelb_sm.domain import names
from purelb_sm.domain.reports import parse_report
from purelb_sm.domain.views import ObjectView
from tests.support.agents import INTERFACE, Lab, a_lab
from tests.support.product import JSON, a_cluster, local_group
from tests.support.waiting import eventually

FOREIGN = bytes.fromhex("02f000000001")
IP, IP6 = "172.30.250.53", "fd30:250::53"
GROUP = local_group("172.30.250.50-172.30.250.99", "fd30:250::50-fd30:250::99")


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with a_cluster(tmp_path, GROUP) as cluster, a_lab(cluster) as lab:
        yield lab


def configure(lab: Lab, *, garp: bool = True, **probe: Any) -> None:
    metadata = {"name": "default", "namespace": "purelb-system"}
    spec = {"local": {"conflictProbe": {"enabled": True, **probe}, "garpConfig": {"enabled": garp}}}
    lab.cluster.server.apply({"apiVersion": "purelb.io/v2", "kind": "LBNodeAgent", "metadata": metadata, "spec": spec})


def conflicts_told(lab: Lab) -> list[JSON]:
    found: list[JSON] = lab.cluster.events("AddressConflict")
    return found


@pytest.mark.spec("C20")
@pytest.mark.parametrize("ip", [IP, IP6])
async def test_a_foreign_answer_is_reported_and_told_and_forgotten_when_it_ends(lab: Lab, ip: str) -> None:
    configure(lab)
    (node,) = await lab.start("node1")
    node.kernel.add_station(ip_address(ip), INTERFACE, FOREIGN)
    await lab.allocated("echo", ip)
    event = (await eventually(lambda: conflicts_told(lab)))[0]
    assert (event["type"], event["involvedObject"]["name"]) == ("Warning", "echo")
    said = f"{ip} is used by {FOREIGN.hex(':')}, seen by node node1 on interface {INTERFACE}: not announced"
    assert event["message"] == said

    def reported() -> bool:
        report = lab.report("node1")
        return bool(report and [a for a in report["addresses"] if a["state"] == "failed"])

    await eventually(reported)
    spec = lab.report("node1")
    report = parse_report(ObjectView("NodeAnnouncement", "purelb.io/v2", "ns", "node1", "u", "1", 1, None, spec))
    (address,) = report.addresses
    assert FOREIGN.hex(":") in address.reason
    assert [move.dest.value for move in report.transitions] == ["adding", "failed"]
    assert await lab.holders(ip) == []
    assert not node.announced(ip)
    node.kernel.remove_station(ip_address(ip), INTERFACE)
    await lab.held_by(ip, "node1")


@pytest.mark.spec("C20")
async def test_without_the_probe_ipv4_is_announced_at_once_and_ipv6_where_the_group_skips_it(lab: Lab) -> None:
    group = {**GROUP, "spec": {"local": {**GROUP["spec"]["local"], "skipIPv6DAD": True}}}
    lab.cluster.server.apply(group)
    (node,) = await lab.start("node1")
    for ip in (IP, IP6):
        node.kernel.add_station(ip_address(ip), INTERFACE, FOREIGN)
    await lab.allocated("echo", IP, IP6)
    await lab.held_by(IP, "node1")
    await lab.held_by(IP6, "node1")
    assert node.kernel.probed == []
    assert node.kernel.listens_for() == set()


@pytest.mark.spec("C20")
async def test_a_failover_does_not_probe_and_the_peer_that_still_answers_is_no_foreign_host(lab: Lab) -> None:
    configure(lab)
    agents = {agent.name: agent for agent in await lab.start("node1", "node2")}
    await lab.allocated("echo", IP)
    holder = await lab.one_holder(IP)
    heir = agents["node2" if holder == "node1" else "node1"]
    assert [one.address for one in agents[holder].kernel.probed] == [ip_address(IP)] * 3
    await eventually(lambda: lab.annotation("echo"))
    await agents[holder].kill()
    await lab.held_by(IP, "node1", "node2")
    assert heir.kernel.probed == []
    assert conflicts_told(lab) == []


def moves(lab: Lab, node: str) -> list[JSON]:
    """Those that the node's report tells of."""
    found: list[JSON] = (lab.report(node) or {}).get("transitions", [])
    return found


@pytest.mark.spec("C20")
async def test_an_agent_says_its_macs_in_its_lease_and_knows_those_of_the_others(lab: Lab) -> None:
    configure(lab)
    other = lab.kernel("node2")
    other.remove_interface(INTERFACE)
    other.add_interface("spare")
    other.add_interface(INTERFACE, "172.30.250.12/24", "fd30:250::12/64")
    other.set_default_route(4, INTERFACE)
    one, two = await lab.start("node1", "node2")
    macs = {str(i.mac and i.mac.hex(":")) for i in await other.interfaces()}
    said = lab.lease("node2")
    assert said is not None
    assert set(said["metadata"]["annotations"][names.MACS].split(",")) == macs
    await lab.allocated("echo", IP)
    holder = await lab.one_holder(IP)
    # Of the other node, and, as a loop in the network may bring it back, of its own.
    for kernel in (one.kernel, two.kernel):
        (mac,) = [link.mac for link in await kernel.interfaces() if link.name == INTERFACE]
        assert mac is not None
        lab.agents[holder].kernel.see(ip_address(IP), INTERFACE, mac)
    lab.agents[holder].kernel.see(ip_address(IP), INTERFACE, FOREIGN)
    event = (await eventually(lambda: conflicts_told(lab)))[0]
    assert FOREIGN.hex(":") in event["message"]
    assert event["message"].endswith("announced all the same")
    assert len(conflicts_told(lab)) == 1
    assert await lab.holders(IP) == [holder]
    reason = f"AddressConflict: {IP} is used by {FOREIGN.hex(':')} on the link of {INTERFACE}"
    await eventually(lambda: [m for m in moves(lab, holder) if m["trigger"] == "contest"])
    *_, added, contest = moves(lab, holder)
    assert (added["trigger"], contest["from"], contest["to"], contest["reason"]) == (
        "added",
        "present",
        "present",
        reason,
    )
    (entry,) = (lab.report(holder) or {})["addresses"]
    assert (entry["state"], entry["since"], entry["validSeconds"]) == ("present", added["at"], 300)
    assert "reason" not in entry, "what is right is no failure"
    counted = {m.name: m.samples[0].value for m in lab.agents[holder].agent.metrics.registry.collect()}
    assert counted["purelb_lbnodeagent_conflicts_announced"] == 1
    assert counted["purelb_lbnodeagent_conflict_defences"] == 1


@pytest.mark.spec("C20", "C7")
async def test_how_often_is_asked_and_whether_is_defended_is_read_from_the_lbnodeagent(lab: Lab) -> None:
    configure(lab, count=2, interval="20ms", garp=False)
    (node,) = await lab.start("node1")
    await lab.allocated("echo", IP)
    await lab.held_by(IP, "node1")
    assert [one.address for one in node.kernel.probed] == [ip_address(IP)] * 2
    node.kernel.see(ip_address(IP), INTERFACE, FOREIGN)
    await eventually(lambda: conflicts_told(lab))
    assert node.announced(IP) == 0


@pytest.mark.spec("C20")
async def test_a_winner_that_changes_in_the_middle_of_the_probes_leaves_one_holder_and_no_conflict(lab: Lab) -> None:
    configure(lab, count=10, interval="100ms")
    await lab.start("node1")
    await lab.allocated("echo", IP)
    first = lab.agents["node1"]
    await eventually(lambda: first.kernel.probed)
    await lab.start("node2", "node3")
    holder = await lab.one_holder(IP)
    winner = first.agent.table.winner(ip_address(IP))
    assert holder == winner
    if holder != "node1":
        assert ip_address(IP) not in first.kernel.listens_for()
    assert conflicts_told(lab) == []


@pytest.mark.spec("C20")
async def test_an_agent_told_to_stop_in_the_middle_of_its_probes_puts_nothing_there(lab: Lab) -> None:
    configure(lab, count=10, interval="1s")
    (node,) = await lab.start("node1")
    await lab.allocated("echo", IP)
    await eventually(lambda: node.kernel.probed)
    await node.terminate()
    assert node.kernel.listens_for() == set()
    assert await lab.holders(IP) == []
