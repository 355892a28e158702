"""The chain: whatever is done to the rows behind our back, `verify` names the first that shows it (spec B4)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, text

from purelb_sm.errors import HistoryBroken, StoreError
from purelb_sm.models import History, table
from purelb_sm.store.audit import Audit, Filter
from purelb_sm.store.engine import make_engine
from purelb_sm.store.history import GENESIS, Head, Verified, digest
from tests.support.book import NOW, WEB, Agent, Desk

_H = table(History)


def verify(desk: Desk, known: Head | None = None) -> Verified:
    audit = Audit.open(desk.url)
    try:
        return audit.verify(known)
    finally:
        audit.close()


@contextmanager
def tampering(desk: Desk) -> Iterator[Connection]:
    """What somebody with the database's own password can do."""
    engine = make_engine(desk.url)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("ALTER TABLE history DISABLE TRIGGER ALL"))
        else:
            connection.execute(text("DROP TRIGGER history_no_update"))
            connection.execute(text("DROP TRIGGER history_no_delete"))
        yield connection
    engine.dispose()


def change(desk: Desk, statement: str, **values: object) -> None:
    with tampering(desk) as connection:
        connection.execute(text(statement), values)


@pytest.fixture
def busy(desk: Desk) -> Desk:
    """Twelve rows, of all kinds."""
    desk.allocate(WEB, "10.0.0.1")
    desk.report(Agent().add().report())
    desk.withdraw(WEB)
    desk.ask_again(WEB)
    assert desk.book.head()[0] >= 12
    return desk


@pytest.mark.spec("B4")
def test_an_untouched_history_verifies(busy: Desk) -> None:
    head = busy.book.head()
    assert verify(busy) == verify(busy, head) == Verified(head[0], head)


def test_an_empty_history_verifies(database_url: str) -> None:
    audit = Audit.open(database_url)
    assert audit.verify() == Verified(0, (0, GENESIS))
    assert audit.head() == (0, GENESIS)
    audit.close()


COLUMNS = [c.name for c in _H.columns if c.name not in ("seq", "prev_hash", "hash")]


@pytest.mark.spec("B4")
@pytest.mark.parametrize("column", [*COLUMNS, "prev_hash", "hash"])
def test_a_changed_column_is_found(busy: Desk, column: str) -> None:
    values: dict[str, Any] = {"at": NOW + timedelta(days=1), "term": 99, "hash": "f" * 64, "prev_hash": "f" * 64}
    with tampering(busy) as connection:
        connection.execute(_H.update().where(_H.c.seq == 5).values({column: values.get(column, "forged")}))
    with pytest.raises(HistoryBroken) as caught:
        verify(busy)
    assert caught.value.seq == 5


@pytest.mark.spec("B4")
def test_a_changed_row_with_a_new_hash_is_found(busy: Desk) -> None:
    with tampering(busy) as connection:
        row = dict(connection.execute(select(_H).where(_H.c.seq == 5)).one()._mapping)
        row["actor"] = "nobody"
        forged = digest(row["prev_hash"], row)
        connection.execute(_H.update().where(_H.c.seq == 5).values(actor="nobody", hash=forged))
    with pytest.raises(HistoryBroken) as caught:
        verify(busy)
    assert caught.value.seq == 6
    assert "row 5 was changed with its hash" in caught.value.why


@pytest.mark.spec("B4")
@pytest.mark.parametrize("seq", [1, 5])
def test_a_removed_row_is_found(busy: Desk, seq: int) -> None:
    change(busy, "DELETE FROM history WHERE seq = :seq", seq=seq)
    with pytest.raises(HistoryBroken) as caught:
        verify(busy)
    assert caught.value.seq == seq
    assert "missing" in caught.value.why


@pytest.mark.spec("B4")
@pytest.mark.parametrize("honest", [True, False], ids=["with a true hash of its own", "with any hash"])
def test_an_inserted_row_is_found(busy: Desk, honest: bool) -> None:
    """Put between two others by moving the later ones up, as somebody would who knows of the gap check."""
    with tampering(busy) as connection:
        rows = [dict(r._mapping) for r in connection.execute(select(_H).where(_H.c.seq >= 5).order_by(_H.c.seq))]
        connection.execute(_H.delete().where(_H.c.seq >= 5))
        false = {**rows[0], "trigger": "refuse"}
        false["hash"] = digest(false["prev_hash"], false) if honest else "0" * 64
        connection.execute(insert(_H), [false, *({**row, "seq": row["seq"] + 1} for row in rows)])
    with pytest.raises(HistoryBroken) as caught:
        verify(busy)
    assert caught.value.seq == (6 if honest else 5)


@pytest.mark.spec("B4")
def test_two_rows_that_changed_places_are_found(busy: Desk) -> None:
    change(busy, "UPDATE history SET seq = 1000 WHERE seq = 5")
    with tampering_again(busy) as connection:
        connection.execute(text("UPDATE history SET seq = 5 WHERE seq = 6"))
        connection.execute(text("UPDATE history SET seq = 6 WHERE seq = 1000"))
    with pytest.raises(HistoryBroken) as caught:
        verify(busy)
    assert caught.value.seq == 5


@contextmanager
def tampering_again(desk: Desk) -> Iterator[Connection]:
    """The triggers are off already."""
    engine = make_engine(desk.url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@pytest.mark.spec("B4")
def test_a_cut_off_tail_shows_against_a_head_known_from_outside(busy: Desk) -> None:
    head = busy.book.head()
    change(busy, "DELETE FROM history WHERE seq > :seq", seq=head[0] - 2)
    assert verify(busy).rows == head[0] - 2, "the chain by itself cannot show it"
    with pytest.raises(HistoryBroken) as caught:
        verify(busy, head)
    assert caught.value.seq == head[0] - 1


@pytest.mark.spec("B4")
def test_a_history_rewritten_from_some_row_on_shows_against_a_known_head(busy: Desk) -> None:
    head = busy.book.head()
    with tampering(busy) as connection:
        rows = [dict(r._mapping) for r in connection.execute(select(_H).order_by(_H.c.seq))]
        connection.execute(_H.delete())
        last = GENESIS
        for row in rows:
            row["actor"], row["prev_hash"] = "nobody", last
            row["hash"] = last = digest(last, row)
        connection.execute(insert(_H), rows)
    assert verify(busy).rows == head[0]
    with pytest.raises(HistoryBroken, match="rewritten"):
        verify(busy, head)


def test_a_known_head_that_others_were_added_to_still_holds(busy: Desk) -> None:
    head = busy.book.head()
    busy.withdraw(WEB)
    assert verify(busy, head).head[0] > head[0]


def test_the_hash_is_what_the_documentation_says(busy: Desk) -> None:
    """Anybody can check a row with a JSON encoder and SHA-256."""
    engine = make_engine(busy.url, readonly=True)
    with engine.connect() as connection:
        row = connection.execute(select(_H).where(_H.c.seq == 3)).one()
    engine.dispose()
    columns = [
        3,
        "2026-11-24T03:12:01.000000Z",
        1,
        "allocator-0",
        "allocation",
        "shop",
        "web",
        "uid-web",
        "default",
        "10.0.0.1",
        None,
        "hold",
        None,
        "held",
        "",
        "{}",
    ]
    text_ = row.prev_hash + "\n" + json.dumps(columns, separators=(",", ":"))
    assert row.hash == hashlib.sha256(text_.encode("ascii")).hexdigest()


def test_the_first_row_follows_sixty_four_zeros(desk: Desk) -> None:
    engine = make_engine(desk.url, readonly=True)
    with engine.connect() as connection:
        assert connection.execute(select(_H.c.prev_hash).where(_H.c.seq == 1)).scalar_one() == "0" * 64
    engine.dispose()


@pytest.mark.parametrize(
    "at",
    [
        datetime(2026, 11, 24, 3, 12, 0, 1, tzinfo=UTC),
        datetime(2026, 11, 24, 3, 12, 0, 999999, tzinfo=UTC),
        datetime(2026, 11, 24, 3, 12, tzinfo=UTC),
        datetime(2026, 11, 24, 5, 12, 0, 123456, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_times_are_exact_to_the_microsecond(desk: Desk, at: datetime) -> None:
    desk.book.raise_term(at)
    audit = Audit.open(desk.url)
    row = list(audit.history(Filter()))[-1]
    audit.verify()
    audit.close()
    assert row.at == at
    assert row.at.tzinfo is UTC


@pytest.mark.spec("E7")
def test_history_is_ordered_by_number_when_the_clock_jumps(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    desk.now -= timedelta(hours=1)
    desk.withdraw(WEB)
    audit = Audit.open(desk.url)
    rows = list(audit.history(Filter()))
    audit.verify()
    audit.close()
    assert [r.seq for r in rows] == list(range(1, len(rows) + 1))
    assert rows[-1].at < rows[1].at


def test_a_time_without_a_zone_is_refused(desk: Desk) -> None:
    with pytest.raises(StoreError, match="zone"):
        desk.book.raise_term(datetime(2026, 1, 1))  # noqa: DTZ001  # it is what is tested


def test_a_long_history_is_read_in_pieces(desk: Desk) -> None:
    for _ in range(40):
        desk.book.raise_term(NOW)
    from purelb_sm.store import history
    from purelb_sm.store.engine import Db

    engine = make_engine(desk.url, readonly=True)
    with engine.connect() as connection:
        assert history.verify(Db(connection), chunk=7).rows == 41
    engine.dispose()
