"""Addresses in a kernel: how fast they come and go, beside `ip -batch`, and what it costs to see that nothing changed.

In a network namespace of its own, on the interface for routed addresses, with what an agent keeps of each address: its
state and its moves. A pass without a change is all that an agent does after a notice of the kernel: the addresses it
holds, the interfaces, default routes and subnets. The dump itself is what the kernel takes to say all its addresses.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from ipaddress import ip_address

from benchmarks import machine
from benchmarks.tables import Table
from purelb_sm.agent.announcer import CHUNK
from purelb_sm.agent.holdings import Holdings, wanted
from purelb_sm.agent.ledger import Ledger
from purelb_sm.agent.survey import own_homes
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.agent_config import DEFAULT_CONFIG
from purelb_sm.domain.announce import Desired, Kind
from purelb_sm.domain.names import KUBE_LB0
from purelb_sm.domain.views import ServiceKey
from purelb_sm.net import Kernel
from purelb_sm.net import rtnetlink as nl
from purelb_sm.sandbox.cluster import namespace

FIRST = {4: ip_address("10.128.0.1"), 6: ip_address("fd31:1::1")}
GOALS_S = {1000: 1.0, 10_000: 10.0}
PASS_GOAL_MS = 100.0
TRIES = 5
_SERVICE = (ServiceKey("benchmark", "one"),)
COLUMNS = [
    "addresses",
    "added, s",
    "ip -batch, s",
    "removed, s",
    "ip -batch, s",
    "dump, ms",
    "pass without a change, ms",
]


async def bench(counts: Sequence[int]) -> list[Table]:
    """The table `kernel` (a)."""
    columns = [*COLUMNS, "one of them renewed, ms", "CPU of a pass, ms"]
    table = Table("kernel", "python -m benchmarks kernel", machine.facts(), columns)
    for count in counts:
        for family in (4, 6):
            await _measure(table, count, family)
    return [table]


async def _measure(table: Table, count: int, family: int) -> None:
    added, removed, batch_added, batch_removed = 0.0, 0.0, *_batch(count, family)
    name = f"plb-bench{os.getpid()}"
    namespace.create(name)
    try:
        async with Kernel(open_socket=namespace.socket_opener(name)) as kernel:
            await kernel.ensure_dummy(KUBE_LB0)
            holdings = Holdings(kernel, Ledger("bench", "one", lambda: datetime.now(UTC)), time.monotonic)
            desired = [_desired(FIRST[family] + k) for k in range(count)]
            added = await _timed(lambda: _add(holdings, desired))
            # What a new agent would see first is not what it sees when nothing has changed since.
            await holdings.look()
            dumped_ms = min(_dump_ms(name) for _ in range(TRIES))
            began = time.process_time()
            pass_ms = 1000 * min([await _timed(lambda: _pass(kernel, holdings)) for _ in range(TRIES)])
            cpu_ms = 1000 * (time.process_time() - began) / TRIES
            one = wanted(desired[count // 2])
            one_ms = 1000 * min([await _timed(lambda: kernel.apply([one], [])) for _ in range(TRIES)])
            removed = await _timed(lambda: _remove(holdings, desired))
    finally:
        namespace.remove(name)
    label = f"{count:,} IPv{family}"
    table.add(label, added, batch_added, removed, batch_removed, dumped_ms, pass_ms, one_ms, cpu_ms)
    _goals(table, label, count, added, pass_ms - dumped_ms)


def _goals(table: Table, label: str, count: int, added_s: float, beside_ms: float) -> None:
    goal_s = GOALS_S.get(count, 1.0)
    table.goal(f"{label} addresses appear in under {goal_s:g} s", reached=added_s < goal_s, found=f"{added_s:.2f} s")
    table.goal(
        f"a pass over {label} without a change in under {PASS_GOAL_MS:.0f} ms beside the dump",
        reached=beside_ms < PASS_GOAL_MS,
        found=f"{beside_ms:.0f} ms",
    )


def _desired(address: Address) -> Desired:
    length = address.max_prefixlen
    return Desired(address, Kind.REMOTE, KUBE_LB0, length, None, None, noprefixroute=False, services=_SERVICE)


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def _add(holdings: Holdings, desired: Sequence[Desired]) -> None:
    for start in range(0, len(desired), CHUNK):
        await holdings.add(desired[start : start + CHUNK])


async def _remove(holdings: Holdings, desired: Sequence[Desired]) -> None:
    for start in range(0, len(desired), CHUNK):
        await holdings.remove([held for one in desired[start : start + CHUNK] for held in holdings.of(one.address)])


async def _pass(kernel: Kernel, holdings: Holdings) -> None:
    surprising, gone = await holdings.look()
    assert not surprising, "nothing has changed"
    assert not gone, "nothing has changed"
    await own_homes(kernel, DEFAULT_CONFIG, await kernel.interfaces())


def _dump_ms(name: str) -> float:
    with closing(nl.RtnlSocket(namespace.socket_opener(name))) as sock:
        began = time.perf_counter()
        sock.dump(nl.RTM_GETADDR, struct.pack("=BBBBI", socket.AF_UNSPEC, 0, 0, 0, 0))
        return 1000 * (time.perf_counter() - began)


def _batch(count: int, family: int) -> tuple[float, float]:
    """Seconds for adding and removing with `ip -batch`, in a namespace that has nothing else, on the same interface."""
    name = f"plb-batch{os.getpid()}"
    namespace.create(name)
    try:
        ip = ["ip", "-n", name]
        kind = "dummy" if _makes(ip, "dummy") else "bridge"
        if kind == "bridge":
            subprocess.run([*ip, "link", "add", KUBE_LB0, "type", kind], check=True)
        subprocess.run([*ip, "link", "set", KUBE_LB0, "arp", "off", "up"], check=True)
        took = []
        for verb in ("add", "del"):
            more = " nodad" if verb == "add" and family == 6 else ""
            lines = [
                f"address {verb} {FIRST[family] + k}/{FIRST[family].max_prefixlen} dev {KUBE_LB0}{more}\n"
                for k in range(count)
            ]
            began = time.perf_counter()
            subprocess.run([*ip, "-batch", "-"], input="".join(lines), text=True, check=True)
            took.append(time.perf_counter() - began)
        return took[0], took[1]
    finally:
        namespace.remove(name)


def _makes(ip: Sequence[str], kind: str) -> bool:
    return (
        subprocess.run([*ip, "link", "add", KUBE_LB0, "type", kind], capture_output=True, check=False).returncode == 0
    )
