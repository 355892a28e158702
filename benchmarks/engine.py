"""The engine alone: plans, machines, history and durable commits, while many addresses are in use already.

Every book is filled first (benchmarks/filling.py), all of them before anything is measured; then batches go to each in
turn, so that a noisy moment of the machine meets all sizes alike. What is compared is the time that half of the batches
took less than. The measured part is `Engine.plan_batch`, as the allocator calls it, and nothing is published.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine
from benchmarks.filling import dense, fill, key_of, network_of, scattered
from benchmarks.tables import Table
from purelb_sm.allocator.engine import Engine
from purelb_sm.cli.lean import uncollected
from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address, Family
from purelb_sm.domain.views import ObjectView, Port, ServiceView
from purelb_sm.settings import AllocatorSettings
from purelb_sm.store import Book, schema
from tests.support.databases import PostgresqlCluster, postgresql_programs

BATCH = AllocatorSettings.model_fields["batch_max"].default
ROUNDS = 12
SIZES = (0, 10_000, 100_000, 1_000_000)
NEW = 2_000_000_000
"""The Services that the measured batches bring are numbered from here on: none of them is in a book that was filled."""

Layout = Callable[[Family, int], Iterator[Address]]
SPACES: tuple[tuple[str, Family, Layout], ...] = (
    ("IPv4 /8", Family.IPV4, dense),
    ("IPv4 /8, scattered", Family.IPV4, scattered),
    ("IPv6 /64", Family.IPV6, dense),
)


@dataclass
class Measured:
    """One book: how many addresses it had in use, what leading it took, and the time of each batch per allocation."""

    size: int
    engine: Engine
    lead_s: float
    lead_mib: float
    walls_us: list[float] = field(default_factory=list)
    cpus_us: list[float] = field(default_factory=list)

    @property
    def wall_us(self) -> float:
        return statistics.median(self.walls_us)

    @property
    def rate(self) -> float:
        """Allocations a second over all batches, the slow ones included."""
        return 1e6 / statistics.fmean(self.walls_us)


async def bench(database: str, sizes: Sequence[int], rounds: int = ROUNDS) -> list[Table]:
    """The table `engine` (a), or that of PostgreSQL."""
    name = "engine" if database == "SQLite" else f"engine-{database.lower()}"
    columns = ["space", "in use", "allocations/s", "µs each (p50)", "CPU µs each (p50)", "of the time at 0"]
    table = Table(name, f"python -m benchmarks {name}", machine.facts(), [*columns, "s to lead", "MiB to lead"])
    worst, empty, slowest = 0.0, float("inf"), float("inf")
    # The collector as the verb `allocator` has it.
    with uncollected():
        pass
    with tempfile.TemporaryDirectory(prefix="plb-bench-") as folder, _databases(database, Path(folder)) as new:
        for space, family, layout in SPACES:
            found = _space(new, family, layout, sizes, rounds)
            for each in found:
                _add(table, space, each, found[0])
            worst = max(worst, found[-1].wall_us / found[0].wall_us)
            empty = min(empty, found[0].rate)
            slowest = min(slowest, *(each.rate for each in found))
    text = f"at {sizes[-1]:,} in use at most 1.5 times the time at 0"
    table.goal(text, reached=worst <= 1.5, found=f"{worst:.2f} times at the most")
    if database == "SQLite":
        rates = f"{empty:,.0f}/s; {slowest:,.0f}/s at the least with others in use"
        table.goal("at least 2,000 allocations/s into an empty book", reached=empty >= 2000, found=rates)
    return [table]


def _add(table: Table, space: str, one: Measured, first: Measured) -> None:
    cpu_us = statistics.median(one.cpus_us)
    numbers = [one.rate, one.wall_us, cpu_us, f"{one.wall_us / first.wall_us:.2f}", one.lead_s, one.lead_mib]
    table.add(space, f"{one.size:,}", *numbers)


def _space(
    new: Callable[[], str], family: Family, layout: Layout, sizes: Sequence[int], rounds: int
) -> Sequence[Measured]:
    with ExitStack() as stack:
        found = []
        for size in sizes:
            url = new()
            filled(url, family, layout(family, size))
            book = Book.open(url, actor="benchmark")
            stack.callback(book.close)
            found.append(lead(book, family, size))
        brought = NEW
        for number in range(rounds + 1):
            # Back and forth, so that none of them always comes after the same.
            for one in found if number % 2 else found[::-1]:
                batch(one, family, brought, counts=number > 0)
                brought += BATCH
        return found


def filled(url: str, family: Family, addresses: Iterator[Address]) -> None:
    """The group is booked by an engine, and then the Services that have these addresses."""
    book = Book.open(url, actor="benchmark")
    try:
        term = book.raise_term(now())
        an_engine(book, term).set_groups([a_group(family)])
        head = book.head()
    finally:
        book.close()
    fill(url, term, head, addresses)


def lead(book: Book, family: Family, size: int) -> Measured:
    """What a new leader does before it gives its first address: memory is what it keeps of the book after that."""
    term = book.raise_term(now())
    engine = an_engine(book, term)
    began = time.perf_counter()
    engine.set_groups([a_group(family)])
    engine.take_usage()
    lead_s = time.perf_counter() - began
    tracemalloc.start()
    try:
        again = an_engine(book, term)
        again.set_groups([a_group(family)])
        again.take_usage()
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return Measured(size, engine, lead_s, kept / 2**20)


def batch(one: Measured, family: Family, start: int, *, counts: bool) -> None:
    views = {view.key: view for view in (a_service(family, start + n) for n in range(BATCH))}
    wall, cpu = time.perf_counter(), time.process_time()
    plans = one.engine.plan_batch(views)
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    if len(plans) != len(views) or not all(made.publication for made in plans):
        raise RuntimeError("some Services of the benchmark got no address")
    if counts:
        one.walls_us.append(wall_s / len(views) * 1e6)
        one.cpus_us.append(cpu_s / len(views) * 1e6)


def an_engine(book: Book, term: int) -> Engine:
    return Engine(
        book, term, clock=now, load_balancer_class=names.LOAD_BALANCER_CLASS, default_class=True, settle_s=3.0
    )


def a_group(family: Family) -> ObjectView:
    subnet = str(network_of(family))
    pools = {"v4pools" if family is Family.IPV4 else "v6pools": [{"subnet": subnet, "pool": subnet}]}
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return ObjectView("ServiceGroup", "purelb.io/v2", "purelb-system", "default", "uid", "1", 1, at, {"remote": pools})


def a_service(family: Family, number: int) -> ServiceView:
    return ServiceView(
        key=key_of(number),
        uid=str(uuid.uuid4()),
        resource_version="1",
        type="LoadBalancer",
        ip_families=(str(family),),
        ip_family_policy="SingleStack",
        cluster_ip="10.96.0.1",
        ports=(Port("TCP", 80),),
    )


@contextmanager
def _databases(database: str, folder: Path) -> Iterator[Callable[[], str]]:
    """Makes new books: each call answers the URL of an empty one."""
    if database == "SQLite":
        yield lambda: _upgraded(f"sqlite:///{folder / uuid.uuid4().hex}.db")
        return
    programs = postgresql_programs()
    if programs is None:
        raise RuntimeError("PostgreSQL is not installed: the package postgresql has it")
    cluster = PostgresqlCluster(programs, Path(tempfile.mkdtemp(prefix="plb-pg-")), durable=True)
    try:
        cluster.prepare()
        cluster.start()
        yield lambda: _upgraded(cluster.new_database("template1"))
    finally:
        cluster.stop(at_once=True)
        shutil.rmtree(cluster.folder, ignore_errors=True)


def _upgraded(url: str) -> str:
    schema.upgrade(url)
    return url


def now() -> datetime:
    return datetime.now(UTC)
