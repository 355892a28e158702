"""Reservations in the book, on both engines: one chain with the leader's rows, and never two in each other's way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import text

from purelb_sm.domain.reservations import parse_reserved
from purelb_sm.errors import InvalidInput, StoreError
from purelb_sm.store.audit import Audit, Filter, HistoryRow
from purelb_sm.store.engine import make_engine
from purelb_sm.store.reserving import Registrar
from tests.support.book import DNS, NOW, WEB, Desk

RANGE = parse_reserved("10.0.0.4-10.0.0.7")
LATER = NOW + timedelta(hours=1)


@pytest.fixture
def registrar(desk: Desk) -> Iterator[Registrar]:
    made = Registrar.open(desk.url, actor="user/alice")
    yield made
    made.close()


def told(url: str) -> list[HistoryRow]:
    audit = Audit.open(url)
    try:
        audit.verify()
        return [row for row in audit.history(Filter()) if row.kind == "reservation"]
    finally:
        audit.close()


@pytest.mark.spec("A26", "B1", "B4")
def test_each_change_is_one_row_of_the_one_chain_and_raises_the_count(desk: Desk, registrar: Registrar) -> None:
    desk.allocate(WEB, "10.0.0.1")
    registrar.reserve(RANGE, WEB, "for the move", LATER, NOW)
    desk.allocate(DNS, "10.0.0.2")
    with desk.unit() as unit:
        assert unit.reservations_count == 1
        (kept,) = unit.reservations()
    assert (kept.range, kept.claim, kept.reason) == (RANGE, "shop/web", "for the move")
    assert (kept.created_by, kept.from_at, kept.expires_at) == ("user/alice", NOW, LATER)
    registrar.unreserve(RANGE, NOW + timedelta(minutes=1), "moved")
    with desk.unit() as unit:
        assert unit.reservations_count == 2
        assert unit.reservations() == []
    rows = told(desk.url)
    assert [(r.trigger, r.from_state, r.to_state, r.actor, r.reason) for r in rows] == [
        ("reserve", None, "reserved", "user/alice", "for the move"),
        ("unreserve", "reserved", "ended", "user/alice", "moved"),
    ]
    assert {(r.namespace, r.name, r.address, r.term) for r in rows} == {("shop", "web", "", desk.term)}
    assert rows[0].details == {"range": "10.0.0.4/30", "expiresAt": LATER.isoformat()}


@pytest.mark.spec("A26")
def test_the_same_again_is_a_renewal_or_nothing(desk: Desk, registrar: Registrar) -> None:
    registrar.reserve(RANGE, None, "a router", LATER, NOW)
    again = registrar.reserve(RANGE, None, " a router", LATER, NOW + timedelta(minutes=1))
    assert (again.news, again.reservation.from_at) == (False, NOW)
    longer = registrar.reserve(RANGE, None, "a router", None, NOW + timedelta(minutes=2))
    assert (longer.news, longer.reservation.expires_at) == (True, None)
    assert [(r.trigger, r.from_state) for r in told(desk.url)] == [("reserve", None), ("renew", "reserved")]
    assert [r.reservation.expires_at for r in registrar.recorded(NOW, ended=False)] == [None]
    assert desk.book.reservations_count() == 2


@pytest.mark.spec("A26")
@pytest.mark.parametrize("other", ["10.0.0.4", "10.0.0.7-10.0.0.8", "10.0.0.0/24", "10.0.0.5-10.0.0.6"])
def test_what_overlaps_is_refused_and_nothing_is_written(desk: Desk, registrar: Registrar, other: str) -> None:
    registrar.reserve(RANGE, None, "a router", LATER, NOW)
    before = desk.book.head()
    with pytest.raises(InvalidInput, match=r"10\.0\.0\.4/30 is reserved from everybody .* by user/alice: a router"):
        registrar.reserve(parse_reserved(other), None, "another", None, NOW)
    with pytest.raises(InvalidInput, match="is reserved from everybody"):
        registrar.reserve(RANGE, WEB, "for web", None, NOW)
    with pytest.raises(InvalidInput, match=r"is not reserved; reserved is 10\.0\.0\.4/30"):
        registrar.unreserve(parse_reserved(other), NOW)
    assert (desk.book.head(), desk.book.reservations_count()) == (before, 1)
    registrar.reserve(parse_reserved("10.0.0.8-10.0.0.9"), None, "beside it", None, NOW)
    registrar.reserve(parse_reserved("::a00:4"), None, "the same number in IPv6", None, NOW)


@pytest.mark.spec("A26", "E1")
def test_nonsense_is_refused(desk: Desk, registrar: Registrar) -> None:
    for reason, expires_at in (("", None), (" ", None), ("x", NOW), ("x", NOW - timedelta(days=1))):
        with pytest.raises(InvalidInput):
            registrar.reserve(RANGE, None, reason, expires_at, NOW)
    with pytest.raises(InvalidInput, match=r"10\.0\.0\.4/30 is not reserved$"):
        registrar.unreserve(RANGE, NOW)
    assert told(desk.url) == []
    registrar.reserve(RANGE, None, "\0 quoted ' \N{SNOWMAN}" + "x" * 5000, None, NOW)
    assert len(told(desk.url)) == 1


@pytest.mark.spec("A26")
def test_holders_are_named_and_keep_what_they_have(desk: Desk, registrar: Registrar) -> None:
    desk.allocate(WEB, "10.0.0.5")
    made = registrar.reserve(RANGE, None, "a router", None, NOW)
    assert [(str(a), claim) for a, claim in made.holders] == [("10.0.0.5", "shop/web")]
    assert (made.held, made.groups) == (1, ())
    assert [str(a.address) for a in desk.booked(WEB).held] == ["10.0.0.5"]


@pytest.mark.spec("A26")
def test_what_is_over_is_ended_by_whoever_comes_first(desk: Desk, registrar: Registrar) -> None:
    registrar.reserve(RANGE, None, "for an hour", LATER, NOW)
    assert registrar.recorded(LATER, ended=False) == []
    with desk.unit(LATER - timedelta(seconds=1)) as unit:
        assert unit.end_reservations() == []
    with desk.unit(LATER) as unit:
        assert [r.range for r in unit.end_reservations()] == [RANGE]
        unit.commit()
    other = parse_reserved("10.0.0.9")
    registrar.reserve(other, None, "for two", LATER + timedelta(hours=1), LATER)
    registrar.reserve(other, WEB, "then for web", None, LATER + timedelta(hours=2))
    rows = told(desk.url)
    assert [(r.trigger, r.actor, r.address) for r in rows] == [
        ("reserve", "user/alice", ""),
        ("expire", desk.actor, ""),
        ("reserve", "user/alice", "10.0.0.9"),
        ("expire", "user/alice", "10.0.0.9"),
        ("reserve", "user/alice", "10.0.0.9"),
    ]
    found = registrar.recorded(LATER + timedelta(hours=2), ended=True)
    assert [each.in_force(LATER + timedelta(hours=2)) for each in found] == [False, False, True]


@pytest.mark.spec("A26")
def test_an_end_that_was_not_kept_is_no_end(desk: Desk, registrar: Registrar) -> None:
    registrar.reserve(RANGE, None, "for an hour", LATER, NOW)
    with desk.unit(LATER) as unit:
        unit.end_reservations()
    with desk.unit(LATER) as unit:
        assert len(unit.reservations()) == 1


@pytest.mark.spec("A26")
def test_a_book_that_nobody_has_led_takes_reservations(database_url: str) -> None:
    registrar = Registrar.open(database_url, actor="user/alice")
    registrar.reserve(RANGE, None, "before all", None, NOW)
    registrar.close()
    desk = Desk(database_url)
    with desk.unit() as unit:
        assert [r.range for r in unit.reservations()] == [RANGE]
    desk.close()
    assert [(r.trigger, r.term) for r in told(database_url)] == [("reserve", 0)]


@pytest.mark.spec("A26", "B6")
def test_of_many_who_reserve_at_once_what_overlaps_one_does(desk: Desk) -> None:
    done: list[str] = []

    def reserve(number: int) -> None:
        registrar = Registrar.open(desk.url, actor=f"user/{number}")
        try:
            registrar.reserve(parse_reserved(f"10.0.0.{number}-10.0.0.9"), None, f"mine, says {number}", None, NOW)
            done.append("one")
        except InvalidInput:
            done.append("refused")
        except StoreError as error:
            done.append(str(error))
        finally:
            registrar.close()

    threads = [threading.Thread(target=reserve, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    desk.allocate(WEB, "10.0.0.20")
    for thread in threads:
        thread.join()
    assert sorted(done) == ["one", *["refused"] * 5]
    assert len(told(desk.url)) == 1


@pytest.mark.spec("A26")
def test_reading_needs_no_right_to_write(desk: Desk, registrar: Registrar) -> None:
    registrar.reserve(RANGE, None, "a router", None, NOW)
    reader = Registrar.open(desk.url, actor="", readonly=True)
    assert [r.reservation.range for r in reader.recorded(NOW, ended=True)] == [RANGE]
    with pytest.raises(StoreError):
        reader.unreserve(RANGE, NOW)
    reader.close()


def test_the_leadership_row_is_not_touched_but_for_the_count(desk: Desk, registrar: Registrar) -> None:
    engine = make_engine(desk.url)
    columns = "term, holder, raised_at, cluster"
    with engine.connect() as connection:
        before = connection.execute(text(f"SELECT {columns} FROM leadership")).one()
    registrar.reserve(RANGE, None, "a router", None, NOW)
    with engine.connect() as connection:
        assert connection.execute(text(f"SELECT {columns} FROM leadership")).one() == before
    engine.dispose()
