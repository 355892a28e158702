"""A Service with several addresses of one family, each in another subnet (A24), as the nodes announce it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.agents import INTERFACE, Lab, a_lab, node_kernel
from tests.support.product import a_cluster, group_object
from tests.support.waiting import eventually

RACKS = [{"subnet": f"10.0.{n}.0/24", "pool": f"10.0.{n}.100-10.0.{n}.150"} for n in (1, 2)]
ROUTED = [{"subnet": f"172.31.{n}.0/24", "pool": f"172.31.{n}.0/24", "aggregation": "/32"} for n in (1, 2)]
ONE, TWO = "10.0.1.100", "10.0.2.100"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    groups = (
        group_object("default", {"local": {"v4pools": RACKS, "multiPool": True}}),
        group_object("routed", {"remote": {"v4pools": ROUTED, "multiPool": True}}),
    )
    async with a_cluster(tmp_path, *groups) as cluster, a_lab(cluster) as lab:
        for number, name in enumerate(("node1", "node2"), 1):
            lab.kernels[name] = node_kernel(number, subnet=f"10.0.{number}")
        yield lab


@pytest.mark.spec("A24", "C9")
async def test_each_subnet_has_its_own_announcer_and_the_annotation_names_them_all(lab: Lab) -> None:
    await lab.start("node1", "node2")
    await lab.allocated("echo", ONE)
    await eventually(lambda: lab.annotation("echo") == f"node1, {INTERFACE}")
    # An address is added: what is there stays, and the annotation is written in its longer form.
    await lab.show("echo", ONE, TWO)
    await lab.held_by(TWO, "node2")
    await eventually(lambda: lab.annotation("echo") == f"node1,{INTERFACE},{ONE} node2,{INTERFACE},{TWO}")
    await lab.held_by(ONE, "node1")
    # And taken away again.
    await lab.show("echo", TWO)
    await lab.held_by(ONE)
    await eventually(lambda: lab.annotation("echo") == f"node2, {INTERFACE}")
    await lab.held_by(TWO, "node2")


@pytest.mark.spec("A24", "C6")
async def test_a_subnet_that_loses_its_last_node_costs_the_other_addresses_nothing(lab: Lab) -> None:
    (_, second) = await lab.start("node1", "node2")
    await lab.allocated("echo", ONE, TWO)
    await lab.held_by(ONE, "node1")
    await lab.held_by(TWO, "node2")
    await second.terminate()
    await lab.held_by(TWO)
    await lab.held_by(ONE, "node1")
    await eventually(lambda: f"node1,{INTERFACE},{ONE}" in (lab.annotation("echo") or ""))


@pytest.mark.spec("A24")
async def test_every_node_holds_every_address_of_a_remote_multi_pool_service(lab: Lab) -> None:
    await lab.start("node1", "node2")
    await lab.allocated("routed", "172.31.1.0", "172.31.2.0", group="routed")
    for address in ("172.31.1.0", "172.31.2.0"):
        await lab.held_by(address, "node1", "node2")
    assert lab.annotation("routed") is None
