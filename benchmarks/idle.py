"""The allocator when nothing happens: what it writes, and what it costs."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from pathlib import Path

from benchmarks import machine
from benchmarks.load import numbered, watching
from benchmarks.stage import INSTALL_NAMESPACE, Stage, stage
from benchmarks.tables import Table
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.resources import LEASES

SETTLE_S = 3.0
"""After the last address: Events, group status and the head of the history are out by then."""


async def bench(kubeconfig: Path | None, counts: tuple[int, ...], idle_s: float) -> list[Table]:
    """The table `idle` (7). Writes are those of the whole API server, so that nothing can be overlooked."""
    command = "python -m benchmarks idle" + (" --kubeconfig FILE" if kubeconfig else "")
    columns = ["Services held", "seconds", "API writes but for the Lease", "Lease renewals", "rows of history"]
    table = Table("idle", command, machine.facts(), [*columns, "CPU of one core", "RSS MiB now"])
    for count in counts:
        async with stage(kubeconfig) as ready:
            writes, share = await _idle(ready, count, idle_s, table)
        found = "not counted on a real cluster" if writes is None else str(writes)
        table.goal(f"no writes with {count:,} Services", reached=not writes, found=found)
        table.goal(f"under 1% of a core with {count:,} Services", reached=share < 0.01, found=f"{share:.2%}")
    return [table]


async def _idle(ready: Stage, count: int, idle_s: float, table: Table) -> tuple[int | None, float]:
    allocator = await ready.allocator()
    async with watching(ready.client) as load:
        await load.until_shown(await load.create(numbered("idle", count)))
        await load.until(lambda: load.seen.told >= count)
    await asyncio.sleep(SETTLE_S)
    leases, watcher = await _count_leases(ready.client)
    version, rows = await ready.version(), _history(ready)
    before, began = allocator.usage(), time.monotonic()
    await asyncio.sleep(idle_s)
    after, took_s = allocator.usage(), time.monotonic() - began
    renewals = len(leases)
    writes = None if ready.real else await ready.version() - version - renewals
    watcher.cancel()
    share = (after.cpu_s - before.cpu_s) / took_s
    shown = "" if writes is None else f"{writes:,}"
    table.add(f"{count:,}", took_s, shown, renewals, _history(ready) - rows, f"{share:.2%}", after.now_bytes / 2**20)
    return writes, share


async def _count_leases(client: KubeClient) -> tuple[list[bytes], asyncio.Task[None]]:
    """Every change of a Lease of ours from now on."""
    seen: list[bytes] = []
    started = asyncio.Event()
    path = LEASES.collection(INSTALL_NAMESPACE)

    async def watch() -> None:
        lines = client.stream(path, {"watch": "true", "resourceVersion": version}, idle_s=600)
        async for line in lines:
            started.set()
            seen.extend([line] if line else [])

    version = await _version_of(client, path)
    task = asyncio.create_task(watch())
    await started.wait()
    return seen, task


async def _version_of(client: KubeClient, path: str) -> str:
    return str(json.loads(await client.request("GET", path))["metadata"]["resourceVersion"])


def _history(ready: Stage) -> int:
    """How many rows the book's history has."""
    with sqlite3.connect(ready.database.removeprefix("sqlite:///")) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM history").fetchone()[0])
