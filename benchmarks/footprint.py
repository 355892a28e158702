"""What an agent needs: memory and CPU with so many addresses, while it takes them up and when nothing happens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence

from benchmarks import machine
from benchmarks.nodes import FIRST, arrivals, crowd, make, nodes, show, until
from benchmarks.tables import Table
from purelb_sm.kube.resources import NAMESPACES
from purelb_sm.sandbox.launcher import Sandbox

SETTLE_S = 5.0
RENEWALS = 5
"""Hardly anything but the Lease is written in `SETTLE_S`: Events and reports are out."""


async def bench(counts: Sequence[int], idle_s: float) -> list[Table]:
    """The table `agent` (d)."""
    columns = [
        "addresses",
        "taken up in, s",
        "CPU for that, s",
        "RSS MiB now",
        "peak",
        "idle for, s",
        "CPU of one core",
    ]
    table = Table("agent", "python -m benchmarks agent", machine.facts(), columns)
    for count in counts:
        async with nodes(1) as sandbox:
            await _measure(sandbox, count, idle_s, table)
    return [table]


async def _measure(sandbox: Sandbox, count: int, idle_s: float, table: Table) -> None:
    pid = sandbox.agents["node1"].pid
    before, began = machine.usage(pid), time.monotonic()
    with arrivals(sandbox, "node1") as seen:

        async def one(number: int) -> None:
            await make(sandbox, f"service{number}")
            await show(sandbox, f"service{number}", FIRST + number)

        await crowd(count, one)
        await until("all to come", lambda: len(seen.came) >= count, 600.0)
    took_s = time.monotonic() - began
    await _settled(sandbox)
    taken, began = machine.usage(pid), time.monotonic()
    await asyncio.sleep(idle_s)
    after, idled_s = machine.usage(pid), time.monotonic() - began
    share = (after.cpu_s - taken.cpu_s) / idled_s
    taking_s = taken.cpu_s - before.cpu_s
    table.add(f"{count:,}", took_s, taking_s, after.now_bytes / 2**20, after.peak_mib, idled_s, f"{share:.2%}")
    table.goal(f"idle under 1% of a core with {count:,} addresses", reached=share < 0.01, found=f"{share:.2%}")


async def _settled(sandbox: Sandbox) -> None:
    """Waits until nothing is written any more, as the API server counts versions."""
    before = -RENEWALS - 1
    while (now := await _version(sandbox)) - before > RENEWALS:
        before = now
        await asyncio.sleep(SETTLE_S)


async def _version(sandbox: Sandbox) -> int:
    found = json.loads(await sandbox.client.request("GET", NAMESPACES.collection(), query={"limit": "1"}))
    return int(found["metadata"]["resourceVersion"])
