"""The book that the benchmarks fill in bulk is the one that an engine would have written, row for row."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

from sqlalchemy import select

from benchmarks import engine as bench
from benchmarks.filling import key_of
from purelb_sm.domain.addresses import Family
from purelb_sm.models import Allocation, History, Membership, PortClaim, Service, table
from purelb_sm.store import Book
from purelb_sm.store.audit import Audit
from purelb_sm.store.engine import make_engine
from tests.support.databases import new_sqlite

OWN = {"uid", "service_uid", "actor", "term", "seq", "prev_hash", "hash"}
"""What two books that say the same do not have in common; times, too."""


def rows(url: str, model: Any) -> list[dict[str, Any]]:
    engine = make_engine(url, readonly=True)
    try:
        with engine.connect() as connection:
            found = connection.execute(select(table(model)).order_by(*table(model).primary_key)).mappings().all()
    finally:
        engine.dispose()
    kept = [{k: v for k, v in row.items() if k not in OWN and not k.endswith("at") and k != "since"} for row in found]
    if model is History:
        kept = [row for row in kept if row["kind"] in ("service", "allocation")]
    return sorted(kept, key=str)


def test_a_book_filled_in_bulk_is_what_an_engine_writes(
    database_url: str, tmp_path: Path, sqlite_template: Path
) -> None:
    addresses = [ip_address(f"10.0.0.{number}") for number in range(5)]
    bench.filled(database_url, Family.IPV4, iter(addresses))
    lived = new_sqlite(tmp_path, sqlite_template)
    book = Book.open(lived, actor="test")
    engine = bench.an_engine(book, book.raise_term(bench.now()))
    engine.set_groups([bench.a_group(Family.IPV4)])
    views = [bench.a_service(Family.IPV4, number) for number in range(1, 6)]
    assert [view.key for view in views] == [key_of(number) for number in range(1, 6)]
    engine.plan_batch({view.key: view for view in views})
    book.close()
    for model in (Service, Allocation, Membership, PortClaim, History):
        assert rows(database_url, model) == rows(lived, model), model
    audit = Audit.open(database_url)
    assert audit.verify().rows == len(addresses) * 3 + 2
    audit.close()
    # And an engine that leads it goes on where it ends.
    book = Book.open(database_url, actor="test")
    measured = bench.lead(book, Family.IPV4, 5)
    bench.batch(measured, Family.IPV4, bench.NEW, counts=True)
    book.close()
    assert len(measured.walls_us) == 1
