"""`purelb drain` and `purelb undrain` against an emulated API server, with real agents."""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from typer.testing import CliRunner

from purelb_sm.cli.main import command
from purelb_sm.domain import names
from purelb_sm.domain.draining import what_stays
from purelb_sm.domain.election import Electorate
from purelb_sm.net import KernelRefused
from purelb_sm.sandbox.apiserver import Fault
from tests.support.agents import Lab, a_lab
from tests.support.product import a_cluster, local_group
from tests.support.waiting import eventually

IP = "172.30.250.53"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with a_cluster(tmp_path, local_group("172.30.250.50-172.30.250.99")) as cluster, a_lab(cluster) as lab:
        yield lab


@dataclass(frozen=True)
class Answer:
    exit_code: int
    lines: list[str]


async def purelb(lab: Lab, *words: str) -> Answer:
    """What the verb says, without the logs of the agents in this process."""
    words = (*words, "--kubeconfig", str(lab.cluster.kubeconfig))
    result = await asyncio.to_thread(partial(CliRunner().invoke, command(), words))
    lines = [line for line in result.output.splitlines() if not re.match(r"\d{4}-\d\d-\d\d .*\[", line)]
    return Answer(result.exit_code, lines)


def mark(lab: Lab, node: str) -> str | None:
    found = lab.cluster.server.get("v1", "Node", node)
    assert found is not None
    return dict(found["metadata"].get("annotations") or {}).get(names.DRAIN)


@pytest.mark.spec("C17")
async def test_drain_waits_until_the_node_announces_nothing_and_undrain_brings_it_back(lab: Lab) -> None:
    await lab.start("node1", "node2")
    await lab.allocated("echo", IP)
    node = await lab.one_holder(IP)
    await eventually(lambda: lab.annotation("echo"))
    await eventually(lambda: (lab.report(node) or {}).get("addresses"))
    result = await purelb(lab, "drain", node, "--reason", "kernel update")
    assert result.exit_code == 0, result.lines
    assert result.lines[0] == f"{node} hands its addresses over"
    assert result.lines[-1] == f"{node} is drained: it announces nothing"
    assert node not in await lab.holders(IP)
    when, _, why = (mark(lab, node) or "").partition(" ")
    assert (when[-1:], why) == ("Z", "kernel update")
    again = await purelb(lab, "drain", node, "--no-wait")
    assert again == Answer(0, [f"{node} is drained already ({when} kernel update)"])
    assert mark(lab, node) == f"{when} kernel update", "who asks again does not change when and why"
    back = await purelb(lab, "undrain", node)
    assert back == Answer(0, [f"{node} is drained no more"])
    await lab.held_by(IP, node)
    assert (await purelb(lab, "undrain", node)).lines == [f"{node} was not drained"]


@pytest.mark.spec("C17")
async def test_drain_says_what_stays_and_why_without_waiting_for_the_end_of_the_time(lab: Lab) -> None:
    await lab.start("node1")
    await lab.allocated("echo", IP)
    await eventually(lambda: (lab.report("node1") or {}).get("addresses"))
    result = await purelb(lab, "drain", "node1", "--timeout", "600")
    assert result.exit_code == 1
    assert result.lines == [
        "node1 hands its addresses over",
        "1 address left",
        f"{IP} stays: no other node has its subnet",
    ]
    assert await lab.holders(IP) == ["node1"]
    label = {"labels": {names.EXCLUDE_LABEL: ""}}
    await lab.mark("node1", label)
    lines = (await purelb(lab, "undrain", "node1")).lines
    assert lines == [
        "node1 is drained no more",
        f"it announces only what nobody else can all the same: it has the label {names.EXCLUDE_LABEL}",
    ]


@pytest.mark.spec("C17")
async def test_drain_waits_no_longer_than_told_for_a_node_that_does_not_take_over(lab: Lab) -> None:
    await lab.start("node1", "node2", lease_s=20.0, renew_s=2.0)
    await lab.allocated("echo", IP)
    node = await lab.one_holder(IP)
    other = "node2" if node == "node1" else "node1"
    await eventually(lambda: (lab.report(node) or {}).get("addresses"))
    lab.kernels[other].refuse(ip_address(IP), KernelRefused(12))
    result = await purelb(lab, "drain", node, "--timeout", "1.5")
    assert result.exit_code == 1
    assert result.lines[-2:] == [
        "not within the time given",
        f"{IP} stays: {other} is to have it, and does not announce it yet",
    ]


@pytest.mark.spec("C17")
async def test_a_node_without_an_agent_or_without_a_node_is_told_of(lab: Lab) -> None:
    lab.cluster.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bare"}})
    result = await purelb(lab, "drain", "bare")
    assert result.exit_code == 0
    assert result.lines[-1].startswith("no agent runs on bare")
    assert mark(lab, "bare")
    for verb in ("drain", "undrain"):
        missing = await purelb(lab, verb, "nosuch")
        assert missing.exit_code == 2
        assert "there is no Node nosuch" in missing.lines[0]
    odd = await purelb(lab, "drain", "bare", "--reason", "two\nlines")
    assert odd.exit_code == 2


@pytest.mark.spec("C17")
@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("GET", "/nodes/bare", "you may not get nodes"),
        ("PATCH", "/nodes/bare", "you may not patch nodes"),
        ("GET", "/leases", "you may not list leases in purelb-system"),
        ("GET", "/nodeannouncements", "you may not list nodeannouncements in purelb-system"),
    ],
)
async def test_a_right_that_is_missing_is_named(lab: Lab, method: str, path: str, said: str) -> None:
    lab.cluster.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bare"}})
    lab.cluster.server.faults.add(Fault("forbidden", method=method, path=path))
    result = await purelb(lab, "drain", "bare")
    assert result.exit_code == 3
    assert said in result.lines[-1]


LAN = ip_network("10.0.0.0/24")
HERE, ROUTED = ip_address("10.0.0.1"), ip_address("172.31.1.1")


@pytest.mark.spec("C17")
@pytest.mark.parametrize(
    ("others", "draining", "elsewhere", "why", "for_good"),
    [
        ([], ["a"], [], ["no other node has its subnet", "no other node announces it"], [True, True]),
        (["b"], ["a", "b"], [], ["all others that have its subnet are drained, too", "no other"], [True, True]),
        (["b"], ["a"], [ROUTED], ["b is to have it", "another node announces it already"], [False, False]),
    ],
)
def test_why_an_address_stays(
    others: list[str], draining: list[str], elsewhere: list[object], why: list[str], for_good: list[bool]
) -> None:
    electorate = Electorate({node: [LAN] for node in ["a", *others]}, draining)
    if others and draining == ["a", "b"]:
        # Of two that are drained the first in the order keeps it.
        node = electorate.winner(HERE)
        assert node is not None
    else:
        node = "a"
    found = what_stays(node, {ROUTED, HERE}, electorate, elsewhere)  # type: ignore[arg-type]
    assert [one.address for one in found] == [HERE, ROUTED]
    assert all(one.why.startswith(text) for one, text in zip(found, why, strict=True)), found
    assert [one.for_good for one in found] == for_good


def test_kubectl_finds_the_program_as_a_plugin() -> None:
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["kubectl-purelb"] == scripts["purelb"]
