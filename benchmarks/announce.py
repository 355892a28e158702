"""From an ingress that is written to the address on an interface, and from a Service deleted to its address gone.

Time runs from when the request to the API server is sent until the node's kernel tells of the address.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks import machine
from benchmarks.nodes import FIRST, arrivals, crowd, make, nodes, remove, show, until
from benchmarks.tables import Table, percentile
from purelb_sm.domain.addresses import Address
from purelb_sm.sandbox.launcher import Sandbox

GONE_GOAL_S = 2.0
"""C11."""


async def bench(alone: int, burst: int) -> list[Table]:
    """The table `announce` (c)."""
    columns = ["what", "p50 ms", "p90 ms", "p99 ms", "max ms", "all of them, s"]
    table = Table("announce", "python -m benchmarks announce", machine.facts(), columns)
    async with nodes(1) as sandbox:
        came, went = await _one_by_one(sandbox, alone)
        _add(table, f"{alone:,} one at a time: ingress to address", came)
        _add(table, f"{alone:,} one at a time: deleted to gone", went)
        burst_came, all_came_s = await _at_once(sandbox, burst)
        _add(table, f"{burst:,} at once: ingress to address", burst_came, all_came_s)
        burst_went, all_went_s = await _none_left(sandbox, burst)
        _add(table, f"{burst:,} at once: deleted to gone", burst_went, all_went_s)
    table.goal(
        f"a deleted Service's address is gone within {GONE_GOAL_S:g} s",
        reached=max(went + burst_went) < GONE_GOAL_S,
        found=f"{max(went + burst_went):.2f} s at the most",
    )
    table.goal("aim: an address alone in 20 ms (p99)", reached=_ms(came, 0.99) <= 20, found=f"{_ms(came, 0.99):.1f} ms")
    return [table]


def _ms(times: Sequence[float], share: float) -> float:
    return 1000 * percentile(times, share)


def _add(table: Table, label: str, times: Sequence[float], whole_s: float | None = None) -> None:
    numbers = [_ms(times, share) for share in (0.5, 0.9, 0.99, 1.0)]
    table.add(label, *numbers, "" if whole_s is None else whole_s)


async def _one_by_one(sandbox: Sandbox, count: int) -> tuple[list[float], list[float]]:
    came, went = [], []
    with arrivals(sandbox, "node1") as seen:
        for number in range(count):
            name, address = f"alone{number}", FIRST + number
            await make(sandbox, name)
            began = time.monotonic()
            await show(sandbox, name, address)
            await until(f"{address} to come", lambda address=address: address in seen.came)  # type: ignore[misc]
            came.append(seen.came[address] - began)
            began = time.monotonic()
            await remove(sandbox, name)
            await until(f"{address} to go", lambda address=address: address in seen.went)  # type: ignore[misc]
            went.append(seen.went[address] - began)
    return came, went


def _of_burst(number: int) -> tuple[str, Address]:
    return f"burst{number}", FIRST + 100_000 + number


async def _at_once(sandbox: Sandbox, count: int) -> tuple[list[float], float]:
    sent: dict[Address, float] = {}

    async def shown(number: int) -> None:
        name, address = _of_burst(number)
        sent[address] = time.monotonic()
        await show(sandbox, name, address)

    await crowd(count, lambda number: make(sandbox, _of_burst(number)[0]))
    with arrivals(sandbox, "node1") as seen:
        began = time.monotonic()
        await crowd(count, shown)
        await until("all to come", lambda: len(seen.came) >= count)
    return [seen.came[address] - at for address, at in sent.items()], max(seen.came.values()) - began


async def _none_left(sandbox: Sandbox, count: int) -> tuple[list[float], float]:
    sent: dict[Address, float] = {}

    async def deleted(number: int) -> None:
        name, address = _of_burst(number)
        sent[address] = time.monotonic()
        await remove(sandbox, name)

    with arrivals(sandbox, "node1") as seen:
        began = time.monotonic()
        await crowd(count, deleted)
        await until("all to go", lambda: len(seen.went) >= count)
    return [seen.went[address] - at for address, at in sent.items()], max(seen.went.values()) - began
