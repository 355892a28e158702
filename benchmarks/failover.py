"""A local address moves to another node: after how long, and what a client misses that asks 100 times a second.

Three nodes, agents with their default settings, one client in a namespace of its own. Time runs from the fault: the
machine loses its power, the agent gets a signal, the Node is marked as drained. After each run all is as it was before.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.nodes import make, nodes, show
from benchmarks.tables import Table, percentile
from purelb_sm.domain import names
from purelb_sm.kube.client import MERGE_PATCH
from purelb_sm.kube.resources import NODES
from purelb_sm.sandbox.cluster import NodeProcess
from purelb_sm.sandbox.cluster.layout import CLIENT
from purelb_sm.sandbox.launcher import Sandbox, wait_until

ADDRESS, PORT, RATE = ip_address("172.30.250.53"), 80, 100
AFTER_S = 0.4
"""For so long the other node has to have answered, before a run is over."""
QUIET = 150
"""So many answers in a row by the node that holds the address, before the next run: agents that have just started have
not heard each other yet, and until then a dead one is replaced when its Lease runs out."""
PATIENCE_S = 60.0
ROOT = Path(__file__).parents[1]


class Request(NamedTuple):
    """One of the client's; `answered` None: lost."""

    sent: float
    answered: float | None
    node: str


@dataclass(frozen=True)
class Run:
    """`after_s` until another node answered; `gap_s` the longest time between two answers; `lost` requests."""

    after_s: float
    gap_s: float
    lost: int


class Client:
    """What the client's process has said so far."""

    def __init__(self, process: NodeProcess) -> None:
        self._process = process
        self._file = process.log_path.open()
        self._rest = ""
        self.requests: list[Request] = []

    def read(self) -> list[Request]:
        """All requests that are over, by when they were sent."""
        assert self._process.running, self._process.output()[-2000:]
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        for line in lines:
            sent, answered, node = line.split()
            self.requests.append(Request(float(sent), None if answered == "-" else float(answered), node))
        return self.requests

    def first_by_another(self, victim: str, since: float) -> float | None:
        found = (r.answered for r in self.read() if r.answered is not None and r.node != victim and r.answered > since)
        return next(found, None)

    def run_since(self, began: float, first: float) -> Run:
        """A run that began then, with the first answer of another node; what was asked shortly before belongs to it."""
        late = [r for r in self.read() if r.sent > began - 0.2]
        answers = sorted(r.answered for r in late if r.answered is not None)
        gap_s = max(later - earlier for earlier, later in pairwise(answers))
        return Run(first - began, gap_s, sum(r.answered is None for r in late))


@dataclass(frozen=True)
class Fault:
    """What happens to the node that holds the address, how it is undone, and what others were seen to need for it."""

    label: str
    make: Callable[[Sandbox, str], Awaitable[None]]
    undo: Callable[[Sandbox, str], Awaitable[None]]
    metallb: str = ""
    purelb: str = ""


async def _kill_agent(sandbox: Sandbox, node: str) -> None:
    await sandbox.kill_agent(node)


async def _terminate(sandbox: Sandbox, node: str) -> None:
    await sandbox.stop_agent(node)


async def _start(sandbox: Sandbox, node: str) -> None:
    await sandbox.start_agent(node)


async def _power_off(sandbox: Sandbox, node: str) -> None:
    await sandbox.power_off(node)


async def _power_on(sandbox: Sandbox, node: str) -> None:
    await sandbox.power_on(node)


async def _drain(sandbox: Sandbox, node: str) -> None:
    await _annotate(sandbox, node, "benchmark")


async def _undrain(sandbox: Sandbox, node: str) -> None:
    await _annotate(sandbox, node, None)


async def _annotate(sandbox: Sandbox, node: str, value: str | None) -> None:
    """What `purelb drain` writes, without the start of a process."""
    body = {"metadata": {"annotations": {names.DRAIN: value}}}
    await sandbox.client.request("PATCH", NODES.path(node), body=body, content_type=MERGE_PATCH)


KILLED = Fault("node without power", _power_off, _power_on, "5.1-6.0 s", "8.9-12.0 s")
AGENT_KILLED = Fault("agent kill -9", _kill_agent, _start, "5.8-6.9 s", "11.5-12.0 s, then two hold it")
TERMINATED = Fault("agent SIGTERM", _terminate, _start, "65-88 ms, gap 17-23 ms", "2.1 s, gap 75-111 ms")
DRAINED = Fault("node drained", _drain, _undrain)
FAULTS = (KILLED, AGENT_KILLED, TERMINATED, DRAINED)


async def bench(runs: int) -> list[Table]:
    """The table `failover` (b)."""
    columns = ["what happens", "runs", "another answers after, ms: min", "p50", "p90", "p99", "max"]
    columns += ["longest gap, ms: p50", "p99", "max", "lost requests: p50", "p99", "max"]
    columns += ["MetalLB: another answers after (measured elsewhere)", "PureLB 0.17 (measured elsewhere)"]
    table = Table("failover", "python -m benchmarks failover", machine.facts(), columns)
    async with nodes(3) as sandbox:
        await make(sandbox, "echo", group="default", port=PORT)
        await show(sandbox, "echo", ADDRESS)
        client = await _client(sandbox)
        for fault in FAULTS:
            _add(table, fault, [await _run(sandbox, client, fault) for _ in range(runs)])
    return [table]


async def _client(sandbox: Sandbox) -> Client:
    argv = [sys.executable, "-m", "benchmarks.client", str(ADDRESS), str(PORT), str(RATE)]
    env = {"PYTHONPATH": str(ROOT)}
    log = sandbox.log_path("client")
    return Client(await sandbox.cluster.start_process(CLIENT, argv, env, log_path=log))


async def _run(sandbox: Sandbox, client: Client, fault: Fault) -> Run:
    victim = await wait_until(lambda: _at_rest(sandbox, client), PATIENCE_S, "one node to hold and answer")
    began = time.monotonic()
    await fault.make(sandbox, victim)

    async def taken_over() -> float | None:
        return client.first_by_another(victim, began)

    first = await wait_until(taken_over, PATIENCE_S, f"another node than {victim} to answer", every_s=0.02) or began

    async def over() -> bool:
        return client.read()[-1].sent > max(first, time.monotonic() - 1.0) + AFTER_S

    await wait_until(over, PATIENCE_S, "the client to go on", every_s=0.02)
    run = client.run_since(began, first)
    await fault.undo(sandbox, victim)
    return run


async def _at_rest(sandbox: Sandbox, client: Client) -> str:
    """The node that alone holds the address, if the client has had no other answer for a while."""
    holders = list(await sandbox.holders(ADDRESS))
    last = client.read()[-QUIET:]
    calm = len(last) == QUIET and all(r.node == holders[0] for r in last) if len(holders) == 1 else False
    return holders[0] if calm and last[-1].sent > time.monotonic() - 1.0 else ""


def _add(table: Table, fault: Fault, runs: list[Run]) -> None:
    after = [1000 * run.after_s for run in runs]
    gaps = [1000 * run.gap_s for run in runs]
    lost = [float(run.lost) for run in runs]
    numbers = [percentile(after, share) for share in (0.0, 0.5, 0.9, 0.99, 1.0)]
    numbers += [percentile(gaps, share) for share in (0.5, 0.99, 1.0)]
    counts = [f"{percentile(lost, share):.0f}" for share in (0.5, 0.99, 1.0)]
    table.add(fault.label, len(runs), *numbers, *counts, fault.metallb, fault.purelb)
    _goals(table, fault, after, lost)


def _goals(table: Table, fault: Fault, after_ms: list[float], lost: list[float]) -> None:
    half, most, worst = (percentile(after_ms, share) for share in (0.5, 0.99, 1.0))
    if fault in (KILLED, AGENT_KILLED):
        found = f"{half:.0f} ms; {most:.0f} ms"
        goal = f"{fault.label}: replaced in under 1 s at the median and 2 s at the 99th percentile"
        table.goal(goal, reached=half < 1000 and most < 2000, found=found)
        return
    table.goal(f"{fault.label}: another answers within 1 s", reached=worst < 1000, found=f"{worst:.0f} ms at the most")
    table.goal(f"{fault.label}: 2 requests lost at the most", reached=max(lost) <= 2, found=f"{max(lost):.0f}")
