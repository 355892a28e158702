"""The whole allocator in a process of its own, against an API server in a process of its own.

What is made at once is made by 16 requests at a time. From create to ingress is what a user sees: from the moment the
request to make the Service is sent until a watch shows its address. Services per second counts from the first request
until the last address and the last Event are there. The ceiling is the same for a bare loop that makes the same writes
with as many requests at once and decides nothing (benchmarks/bare.py); the two take turns, and of their runs the one in
the middle is shown, since on a small machine one run tells little.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import machine
from benchmarks.load import Load, numbered, watching
from benchmarks.stage import Process, Stage, stage
from benchmarks.tables import Table, percentile

ALONE = 100
"""So many are made one after the other to measure one alone."""
FULL = 10_000
TRIES = 3
LATER = (1, 200, 1000)


@dataclass(frozen=True)
class Run:
    """What one crowd of Services met with. Times in seconds."""

    waits: Sequence[float]
    rate: float
    cpu_s: float
    peak_mib: float

    def of(self, share: float) -> float:
        """A percentile in milliseconds."""
        return 1000 * percentile(self.waits, share)


async def bench(kubeconfig: Path | None, counts: Sequence[int], full: int) -> list[Table]:
    """The tables `allocator` (b) and `crowded` (c)."""
    table = _table("allocator", kubeconfig)
    runs: dict[int, Run] = {}
    shares: dict[int, float] = {}
    for count in counts:
        found = [await _pair(kubeconfig, count) for _ in range(TRIES)]
        shares[count] = statistics.median(run.rate / ceiling.rate for ceiling, run in found)
        ceiling, runs[count] = (_middle(each) for each in zip(*found, strict=True))
        _add(table, f"{count:,}", runs[count], ceiling, shares[count])
    _goals(table, runs, shares)
    return [table, await _crowded(kubeconfig, runs, full)]


async def _pair(kubeconfig: Path | None, count: int) -> tuple[Run, Run]:
    """The bare loop, and the allocator, each on a stage of its own."""
    async with stage(kubeconfig) as ready:
        ceiling = await _measure(ready, await ready.bare(), count)
    async with stage(kubeconfig) as ready:
        return ceiling, await _measure(ready, await ready.allocator(), count)


def _middle(runs: Sequence[Run]) -> Run:
    return sorted(runs, key=lambda run: run.rate)[len(runs) // 2]


def _table(name: str, kubeconfig: Path | None) -> Table:
    columns = ["Services at once", "p50 ms", "p90 ms", "p99 ms", "max ms", "Services/s", "allocator CPU s"]
    columns += ["peak RSS MiB", "bare loop: p50 ms", "bare loop: Services/s", "of the ceiling"]
    command = "python -m benchmarks allocator" + (" --kubeconfig FILE" if kubeconfig else "")
    return Table(name, command, machine.facts(), columns)


def _add(table: Table, label: str, run: Run, ceiling: Run | None = None, share: float = 0.0) -> None:
    numbers = [run.of(0.5), run.of(0.9), run.of(0.99), run.of(1.0), run.rate, run.cpu_s, run.peak_mib]
    bare: list[object] = ["", "", ""]
    if ceiling is not None:
        bare = [ceiling.of(0.5), ceiling.rate, f"{share:.0%}"]
    table.add(label, *numbers, *bare)


def _goals(table: Table, runs: dict[int, Run], shares: dict[int, float]) -> None:
    many = [count for count in runs if count > 1]
    if 1 in runs:
        alone = runs[1].of(0.5)
        table.goal("one Service alone under 10 ms (p50)", reached=alone < 10, found=f"{alone:.1f} ms")
        table.goal("aim: 5 ms alone", reached=alone <= 5, found=f"{alone:.1f} ms")
    if many:
        share = min(shares[count] for count in many)
        table.goal("at least 80% of the ceiling", reached=share >= 0.8, found=f"{share:.0%} at the least")
        slowest = min(runs[count].rate for count in many)
        table.goal("aim: 300 Services/s", reached=slowest >= 300, found=f"{slowest:.0f}/s at the least")


async def _crowded(kubeconfig: Path | None, alone: dict[int, Run], full: int) -> Table:
    """The same while `full` Services have their addresses already."""
    table = _table("crowded", kubeconfig)
    async with stage(kubeconfig) as ready:
        allocator = await ready.allocator()
        async with watching(ready.client) as load:
            filling = await _crowd(load, allocator, numbered("old", full))
            _add(table, f"{full:,} into none", filling)
            worst = 0.0
            for count in (count for count in LATER if count in alone):
                now = _middle([await _among(load, allocator, count, attempt) for attempt in range(TRIES)])
                _add(table, f"{count:,} more", now)
                before = alone[count]
                grown = now.of(0.5) / before.of(0.5) if count == 1 else before.rate / now.rate
                worst = max(worst, grown)
            table.goal(
                f"at {full:,} Services no slower than 1.2 times", reached=worst <= 1.2, found=f"{worst:.2f} times"
            )
            peak = allocator.usage().peak_mib
            table.goal(f"aim: under 200 MiB with {full:,} Services", reached=peak < 200, found=f"{peak:.0f} MiB")
    return table


async def _measure(ready: Stage, process: Process, count: int) -> Run:
    async with watching(ready.client) as load:
        await _one_by_one(load, process, 3, "warm")
        return await _among(load, process, count)


async def _among(load: Load, process: Process, count: int, attempt: int = 0) -> Run:
    if count == 1:
        return await _one_by_one(load, process, ALONE, f"alone-{attempt}")
    return await _crowd(load, process, numbered(f"crowd{count}-{attempt}", count))


async def _crowd(load: Load, process: Process, names: Sequence[str]) -> Run:
    before, told, began = process.usage(), load.seen.told + len(names), time.monotonic()
    asked = await load.create(names)
    await load.until_shown(asked)
    await load.until(partial(_told, load, told))
    ended = max(load.seen.last_told, *(load.seen.shown[uid] for uid in asked))
    after = process.usage()
    waits = [load.seen.shown[uid] - at for uid, at in asked.items()]
    return Run(waits, len(names) / (ended - began), after.cpu_s - before.cpu_s, after.peak_mib)


async def _one_by_one(load: Load, process: Process, count: int, prefix: str) -> Run:
    """Each made when the one before has its address and its Event: nothing else is going on."""
    before, waits, began = process.usage(), [], time.monotonic()
    for name in numbered(prefix, count):
        told = load.seen.told + 1
        asked = await load.create([name], 1)
        await load.until_shown(asked)
        await load.until(partial(_told, load, told))
        waits += [load.seen.shown[uid] - at for uid, at in asked.items()]
    after = process.usage()
    return Run(waits, count / (time.monotonic() - began), after.cpu_s - before.cpu_s, after.peak_mib)


def _told(load: Load, count: int) -> bool:
    return load.seen.told >= count
