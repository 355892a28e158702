"""Services deleted and made again at once, under the same names, faster than the allocator can follow.

PureLB gives 244 of 1,000 an address that another has, as it releases by name and not by uid. Here each is to have the
address that it had: the claim is the name, and the quarantine keeps it.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import machine
from benchmarks.load import Load, each, numbered, watching
from benchmarks.stage import stage
from benchmarks.tables import Table


async def bench(kubeconfig: Path | None, count: int, rounds: int = 3) -> list[Table]:
    """The table `recreate` (e)."""
    command = "python -m benchmarks recreate" + (" --kubeconfig FILE" if kubeconfig else "")
    columns = ["round", "Services", "seconds", "Services/s", "addresses shown twice", "moved"]
    table = Table("recreate", command, machine.facts(), columns)
    names = numbered("again", count)
    twice_ever = moved_ever = 0
    async with stage(kubeconfig) as ready:
        await ready.allocator()
        async with watching(ready.client) as load:
            await load.until_shown(await load.create(names))
            for number in range(1, rounds + 1):
                before = dict(load.seen.address)
                began = time.monotonic()
                twice = await _again(load, names)
                took_s = time.monotonic() - began
                moved = sum(load.seen.address[name] != before[name] for name in names)
                table.add(str(number), count, took_s, count / took_s, twice, moved)
                twice_ever, moved_ever = twice_ever + twice, moved_ever + moved
    table.goal("no address twice", reached=not twice_ever, found=str(twice_ever))
    table.goal("none moved that need not", reached=not moved_ever, found=str(moved_ever))
    return [table]


async def _again(load: Load, names: list[str]) -> int:
    """Deletes and makes each again, 16 at a time; answers with how many addresses two ever had at once."""
    uids: dict[str, float] = {}

    async def one(name: str) -> None:
        await load.delete([name], 1)
        uids.update(await load.create([name], 1))

    load.seen.shared.clear()
    await each(names, one, 16)
    await load.until_shown(uids)
    return len(load.seen.shared)
