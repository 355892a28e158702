"""kill -9 of the allocator with many Services held, and a new start at once: how soon it serves, what it writes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.load import Load, numbered, watching
from benchmarks.stage import Stage, stage
from benchmarks.tables import Table

TRIES = 3
GOAL_S = {1000: 1.0, 10_000: 5.0}


async def bench(kubeconfig: Path | None, counts: Sequence[int]) -> list[Table]:
    """The table `restart` (d). Time runs from the start of the new process; the Service has waited since before."""
    command = "python -m benchmarks restart" + (" --kubeconfig FILE" if kubeconfig else "")
    columns = [
        "Services held",
        "try",
        "start to ingress of a new one, s",
        "writes for the old ones",
        "CPU s",
        "RSS MiB",
    ]
    table = Table("restart", command, machine.facts(), columns)
    for count in counts:
        async with stage(kubeconfig) as ready:
            took, writes = await _count(ready, count, table)
        goal_s = GOAL_S.get(count, 5.0)
        table.goal(
            f"with {count:,} Services a new one has its address within {goal_s:g} s",
            reached=max(took) < goal_s,
            found=f"{max(took):.2f} s at the most",
        )
        table.goal(f"no writes for the {count:,} old ones", reached=not writes, found=str(writes))
    return [table]


async def _count(ready: Stage, count: int, table: Table) -> tuple[list[float], int]:
    allocator = await ready.allocator()
    async with watching(ready.client) as load:
        names = numbered("old", count)
        await load.until_shown(await load.create(names))
        await load.until(lambda: load.seen.told >= count)
        times, all_writes = [], 0
        for attempt in range(1, TRIES + 1):
            await allocator.kill()
            asked = await load.create([f"new-{attempt}"])
            writes = _writes(load, names)
            began = time.monotonic()
            allocator = await ready.allocator(ready=False)
            await load.until_shown(asked)
            times.append(max(load.seen.shown[uid] for uid in asked) - began)
            # Served after all the old ones were looked at: what was to be written for them is out by then.
            await allocator.logged('"services"')
            await load.until_shown(await load.create([f"last-{attempt}"]))
            for_old = _writes(load, names) - writes
            all_writes += for_old
            used = allocator.usage()
            table.add(f"{count:,}", attempt, times[-1], for_old, used.cpu_s, used.peak_mib)
        return times, all_writes


def _writes(load: Load, names: Sequence[str]) -> int:
    return sum(load.seen.writes[name] for name in names)
