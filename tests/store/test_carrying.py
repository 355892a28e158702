"""A SQLite book's log goes into its file beside the work, and nobody is the worse for it where it cannot."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from purelb_sm.store import carrying, schema
from purelb_sm.store.engine import make_engine
from tests.support.waiting import eventually

ROW = "x" * 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "book.db"


@pytest.fixture
def engine(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A book whose log is long after a hundred rows, and which no commit carries over."""
    monkeypatch.setattr(carrying, "CARRY", 100_000)
    schema.upgrade(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as file:
        # The log of the upgrade goes with its last connection, and when that is collected is not known.
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    engine = make_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(text("PRAGMA wal_autocheckpoint=0"))
        connection.execute(text("CREATE TABLE t (x TEXT)"))
    yield engine
    engine.dispose()


def write(engine: Engine, rows: int) -> None:
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO t VALUES (:x)"), [{"x": ROW}] * rows)


def carriers(path: Path) -> list[threading.Thread]:
    """Of this book: other tests may have left theirs open."""
    return [thread for thread in threading.enumerate() if thread.name == f"carrier {path}"]


async def test_a_long_log_is_carried_over_without_a_commit_that_does_it(engine: Engine, path: Path) -> None:
    write(engine, 300)
    await eventually(lambda: path.stat().st_size > 300 * len(ROW))


async def test_who_reads_on_holds_up_nobody(engine: Engine, path: Path) -> None:
    open_snapshot = make_engine(f"sqlite:///{path}", readonly=True)
    with open_snapshot.connect() as reader:
        assert reader.execute(text("SELECT count(*) FROM t")).scalar() == 0
        for _ in range(5):
            write(engine, 300)
        assert reader.execute(text("SELECT count(*) FROM t")).scalar() == 0
    write(engine, 300)
    await eventually(lambda: path.stat().st_size > 1500 * len(ROW))
    open_snapshot.dispose()


async def test_a_book_of_which_little_is_written_has_no_thread(engine: Engine, path: Path) -> None:
    write(engine, 10)
    assert not carriers(path)
    write(engine, 300)
    assert len(carriers(path)) == 1
    engine.dispose()
    await eventually(lambda: not carriers(path))


async def test_a_carrier_that_cannot_tells_nobody_and_tries_again(
    engine: Engine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    carry = carrying.Carrier._carry

    def fails(self: carrying.Carrier) -> None:
        tried.append(1)
        if len(tried) == 1:
            raise sqlite3.OperationalError("disk I/O error")
        carry(self)

    monkeypatch.setattr(carrying.Carrier, "_carry", fails)
    write(engine, 300)
    await eventually(lambda: tried)
    write(engine, 300)
    await eventually(lambda: path.stat().st_size > 600 * len(ROW))
