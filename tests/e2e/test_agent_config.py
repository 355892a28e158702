"""LBNodeAgents edited while addresses are held, on nodes with real kernels: what these hold then, and who says so."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.kube.resources import EVENTS
from purelb_sm.sandbox.cluster.layout import BRIDGE, FABRIC, NODE_INTERFACE
from purelb_sm.sandbox.launcher import Options
from tests.e2e.conftest import Start
from tests.support.stage import LOCAL, LOCAL6, QUICK, REMOTE, Stage, watched_stage

pytestmark = pytest.mark.root

SECOND = "enp2s0"


@pytest.fixture
async def stage(start_sandbox: Start) -> AsyncIterator[Stage]:
    with watched_stage(await start_sandbox(Options(nodes=2, allocator=False, agent_flags=QUICK))) as stage:
        yield stage


async def configure(stage: Stage, **local: Any) -> None:
    await stage.sandbox.apply(
        {
            "apiVersion": "purelb.io/v2",
            "kind": "LBNodeAgent",
            "metadata": {"name": "default", "namespace": names.INSTALL_NAMESPACE},
            "spec": {"local": local},
        }
    )


def second_cable(stage: Stage, node: str) -> str:
    """A second interface in the nodes' subnets; its MAC."""
    fabric, far = stage.cluster.namespace_of(FABRIC), stage.cluster.namespace_of(node)
    for words in (
        ("-n", fabric, "link", "add", "second", "type", "veth", "peer", "name", SECOND, "netns", far),
        ("-n", fabric, "link", "set", "second", "master", BRIDGE, "up"),
        ("-n", far, "link", "set", SECOND, "up"),
        ("-n", far, "address", "add", "172.30.250.200/24", "dev", SECOND, "noprefixroute"),
        ("-n", far, "address", "add", "fd30:250::200/64", "dev", SECOND, "noprefixroute", "nodad"),
    ):
        subprocess.run(["ip", *words], check=True)
    shown = re.search(r"link/ether (\S+)", stage.ip(node, "link", "show", SECOND))
    assert shown is not None
    return shown[1]


async def on(stage: Stage, node: str, address: Address, interface: str, lifetime_s: range) -> None:
    """Waits until the node holds the address there and nowhere else, with a lifetime out of these."""

    async def so() -> bool:
        shown = stage.ip(node, "-o", "address", "show", "to", str(address))
        found = re.fullmatch(rf"\d+: {interface}\s.*valid_lft (\d+)sec.*\n?", shown)
        return found is not None and int(found[1]) in lifetime_s

    await stage.sandbox.until(f"{address} on {interface} of {node} for {lifetime_s} s", so)


@pytest.mark.spec("C3", "C4", "C7", "C12")
async def test_edits_move_addresses_to_other_interfaces_and_lifetimes_and_leave_what_is_foreign(stage: Stage) -> None:
    await stage.allocated("echo", LOCAL, LOCAL6)
    await stage.allocated("routed", REMOTE, group="routed", port=81)
    await stage.held_by(REMOTE, *stage.cluster.nodes)
    await stage.one_holder(LOCAL)
    mac = second_cable(stage, "node1")
    for node in stage.cluster.nodes:
        stage.ip(node, "address", "add", "172.31.1.7/32", "dev", "kube-lb0")
    async with stage.cluster.sniff() as wire:
        remote = {"dummyInterface": {"validLifetime": 900}}
        # Only node1 has it, so that node2 has no subnet left to offer.
        await configure(stage, localInterface=f"^{SECOND}$", dummyInterface="ext0", addressConfig=remote)
        for address in (LOCAL, LOCAL6):
            await stage.held_by(address, "node1")
            await on(stage, "node1", address, SECOND, range(280, 301))
        for node in stage.cluster.nodes:
            await on(stage, node, REMOTE, "ext0", range(870, 901))
            assert "172.31.1.7/32" in stage.ip(node, "address", "show", "dev", "kube-lb0")

        async def told() -> bool:
            sightings = [s for s in wire.seen if s.gratuitous and s.mac == mac]
            return {s.address for s in sightings} >= {LOCAL, LOCAL6}

        await stage.sandbox.until("gratuitous ARP and NA from the second interface", told)
    with stage.watched("node1") as lines:
        lifetimes = {"localInterface": {"validLifetime": 60}, "dummyInterface": {"validLifetime": 120}}
        await configure(stage, localInterface=f"^{SECOND}$", dummyInterface="ext0", addressConfig=lifetimes)
        for address in (LOCAL, LOCAL6):
            await on(stage, "node1", address, SECOND, range(40, 61))
        await on(stage, "node1", REMOTE, "ext0", range(100, 121))
    assert not [line for line in lines if line.startswith("Deleted")]
    await stage.answered_by(LOCAL, "node1")
    await stage.answered_by(LOCAL6, "node1")


@pytest.mark.spec("C3")
async def test_an_object_that_cannot_be_read_silences_its_nodes_and_says_so_until_it_is_mended(stage: Stage) -> None:
    await stage.allocated("echo", LOCAL)
    await stage.allocated("routed", REMOTE, group="routed", port=81)
    await stage.held_by(REMOTE, *stage.cluster.nodes)
    before = await stage.one_holder(LOCAL)
    # The API server takes it, as PureLB does; in Python it would be another set of characters.
    await configure(stage, localInterface="^enp[[:digit:]]")
    await stage.held_by(REMOTE)
    await stage.held_by(LOCAL)

    async def said() -> bool:
        events = await stage.sandbox.items(EVENTS, names.INSTALL_NAMESPACE)
        found = [e for e in events if (e["reason"], e["involvedObject"]["kind"]) == ("ParseFailed", "LBNodeAgent")]
        return bool(found) and all("spec.local.localInterface" in e["message"] for e in found)

    await stage.sandbox.until("the Event", said)
    await configure(stage, localInterface="^enp[0-9]")
    await stage.held_by(REMOTE, *stage.cluster.nodes)
    await stage.held_by(LOCAL, before)
    await on(stage, before, LOCAL, NODE_INTERFACE, range(270, 301))
    await stage.answered_by(LOCAL, before)
