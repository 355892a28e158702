"""Bad days: writers that race, leaders that were killed, disks that are full, connections that are cut."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from sqlalchemy import event, text

from purelb_sm.domain.addresses import Address, AddressRange
from purelb_sm.domain.book import Allocate, Booked, Hold, Observe, Plan, Refuse
from purelb_sm.domain.states import ServiceState
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import Clash, DatabaseUnavailable, Reason, TermLost
from purelb_sm.store import Book, schema
from purelb_sm.store import engine as store_engine
from purelb_sm.store.audit import Audit, Filter
from purelb_sm.store.engine import make_engine
from tests.support.book import DNS, HTTP, NOW, WEB, Desk
from tests.support.databases import PostgresqlCluster, new_sqlite, postgresql_programs

LAST_EIGHT = AddressRange(ip_address("10.0.0.0"), ip_address("10.0.0.7"))


def free(book: Book, term: int) -> list[Address]:
    with book.transaction(term, NOW) as unit:
        held = list(unit.held_ranges([LAST_EIGHT]))
    first = int(LAST_EIGHT.first)
    addresses = [ip_address(first + n) for n in range(LAST_EIGHT.size)]
    return [address for address in addresses if not any(address in each for each in held)]


def race(url: str, term: int, number: int, start: threading.Barrier) -> tuple[str, int]:
    """One writer: looks, then holds the lowest free address, however old its look is by then."""
    book = Book.open(url, actor=f"writer-{number}")
    key, uid, clashes = ServiceKey("race", f"s{number}"), f"u{number}", 0
    try:
        start.wait(timeout=60)
        while True:
            addresses = free(book, term)
            end = (
                (Hold(key, uid, addresses[0], "default", HTTP), Allocate(key, uid, "default"))
                if addresses
                else (Refuse(key, uid, Reason.POOL_EXHAUSTED, "no address is free"),)
            )
            try:
                with book.transaction(term, NOW) as unit:
                    unit.load({key: uid})
                    unit.apply(Plan(key, (Observe(key, uid), *end)))
                    unit.commit()
                return ("given" if addresses else "refused"), clashes
            except Clash:
                clashes += 1
    finally:
        book.close()


@pytest.mark.spec("B7", "A17")
def test_sixteen_writers_race_for_the_last_eight_addresses(desk: Desk) -> None:
    """All of one term, as no real leaders are: what decides is the database alone."""
    start = threading.Barrier(16)
    with ThreadPoolExecutor(16) as pool:
        ends = [f.result() for f in [pool.submit(race, desk.url, desk.term, n, start) for n in range(16)]]
    assert Counter(end for end, _ in ends) == {"given": 8, "refused": 8}
    with desk.unit() as unit:
        assert list(unit.held_ranges([LAST_EIGHT])) == [LAST_EIGHT]
        states = Counter(service.state for service in unit.live_services())
    assert states == {ServiceState.ALLOCATED: 8, ServiceState.PENDING: 8}
    audit = Audit.open(desk.url)
    moves = Counter(row.trigger for row in audit.history(Filter(namespace="race")))
    assert moves == {"observe": 16, "hold": 8, "allocate": 8, "refuse": 8}
    audit.verify()
    audit.close()


@pytest.mark.spec("E6", "D8")
def test_a_leader_in_the_middle_of_a_transaction_finishes_or_loses(desk: Desk) -> None:
    """The new leader waits for a commit under way, and sees it; afterwards the old one commits nothing."""
    began, raised = threading.Event(), threading.Event()

    def succeed() -> tuple[int, int]:
        other = Book.open(desk.url, actor="allocator-1")
        began.wait(timeout=30)
        term = other.raise_term(NOW)
        raised.set()
        with other.transaction(term, NOW) as unit:
            seen = len(list(unit.live_services()))
        other.close()
        return term, seen

    with ThreadPoolExecutor(1) as pool:
        successor = pool.submit(succeed)
        with desk.unit() as unit:
            unit.load({WEB: "u"})
            unit.apply(
                Plan(WEB, (Observe(WEB, "u"), Hold(WEB, "u", LAST_EIGHT.first, "g", HTTP), Allocate(WEB, "u", "g")))
            )
            began.set()
            assert not raised.wait(timeout=0.3), "the term was raised under a transaction"
            unit.commit()
        assert successor.result(timeout=30) == (desk.term + 1, 1)
    with pytest.raises(TermLost):
        desk.allocate(DNS, "10.0.0.1")


@pytest.mark.spec("E4", "E3")
@pytest.mark.parametrize("seed", range(3))
def test_kill_9_in_the_middle_of_commits_loses_nothing_acknowledged(database_url: str, seed: int) -> None:
    """What was said to be committed is there, whole; what was not is there whole or not at all."""
    luck = random.Random(seed)
    said: list[int] = []
    for turn in range(2):
        start = turn * 100_000
        command = [sys.executable, "-m", "tests.store.writer", database_url, str(start)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        enough = luck.randint(1, 40)
        said += [int(writer.stdout.readline()) for _ in range(enough)]
        threading.Event().wait(luck.random() * 0.02)
        writer.kill()
        said += [int(line) for line in writer.stdout.read().split()]
        writer.wait(timeout=30)
        writer.stdout.close()
    _check_whole(database_url, said)


def _check_whole(url: str, said: list[int]) -> None:
    audit = Audit.open(url)
    verified = audit.verify()
    rows = list(audit.history(Filter(namespace="kill")))
    audit.close()
    assert verified.rows == verified.head[0]
    by_service: dict[str, list[str]] = {}
    for row in rows:
        by_service.setdefault(row.name, []).append(row.trigger)
    given = ["observe", "hold", "allocate"]
    assert all(moves in (given, [*given, "begin_release", "withdraw"]) for moves in by_service.values())
    assert {f"s{n}" for n in said} <= set(by_service)
    assert len(by_service) - len(said) <= 2, "at most the one under way at each kill"
    desk = Desk(url, "allocator-9")
    for number in said:
        booked = desk.booked(ServiceKey("kill", f"s{number}"))
        assert (booked.service is None) == (number % 3 == 0)
        assert len(booked.held) + len(booked.reclaimable) == 1
    desk.allocate(WEB, "10.200.0.1")
    desk.close()


@pytest.fixture
def sqlite_desk(tmp_path: Path, sqlite_template: Path) -> Iterator[Desk]:
    desk = Desk(new_sqlite(tmp_path, sqlite_template))
    yield desk
    desk.close()


@pytest.mark.spec("E3")
def test_a_full_disk_keeps_nothing_half_and_passes(sqlite_desk: Desk) -> None:
    desk = sqlite_desk
    desk.allocate(WEB, "10.0.0.1")
    before = desk.book.head()

    def no_room(connection: object, _record: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # type: ignore[attr-defined]

    desk.book.close()
    event.listen(desk.book._engine, "connect", no_room)
    big = {ServiceKey("n", f"s{i}"): f"u{i}" for i in range(400)}
    with pytest.raises(DatabaseUnavailable, match="full"):
        fill(desk, big)
    assert desk.book.head() == before
    event.remove(desk.book._engine, "connect", no_room)
    desk.book.close()
    fill(desk, big)
    assert desk.book.head()[0] == before[0] + 3 * 400


def fill(desk: Desk, keys: dict[ServiceKey, str]) -> None:
    with desk.unit() as unit:
        unit.load(keys)
        for n, (key, uid) in enumerate(keys.items()):
            hold = Hold(key, uid, ip_address("10.9.0.0") + n, "g", HTTP)
            unit.apply(Plan(key, (Observe(key, uid), hold, Allocate(key, uid, "g"))))
        unit.commit()


@pytest.mark.spec("E3")
def test_a_locked_database_is_waited_for_and_then_said(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_engine, "LOCK_WAIT_S", 0.2)
    desk = Desk(database_url)
    other = make_engine(database_url)
    with other.connect() as holder:
        holder.execute(text("UPDATE leadership SET holder = 'a hand'"))
        with pytest.raises(DatabaseUnavailable):
            desk.allocate(WEB, "10.0.0.1")
    other.dispose()
    desk.allocate(WEB, "10.0.0.1")
    desk.close()


@pytest.mark.spec("E3")
def test_a_file_that_was_taken_away_is_said_and_not_made_anew(sqlite_desk: Desk, tmp_path: Path) -> None:
    (file,) = tmp_path.glob("*.db")
    sqlite_desk.booked(WEB)
    file.rename(tmp_path / "moved")
    with pytest.raises(DatabaseUnavailable, match="no database at"):
        sqlite_desk.allocate(WEB, "10.0.0.1")
    assert not file.exists()
    (tmp_path / "moved").rename(file)
    sqlite_desk.allocate(WEB, "10.0.0.1")


def test_a_file_moved_into_place_is_the_one_that_is_written(
    sqlite_desk: Desk, tmp_path: Path, sqlite_template: Path
) -> None:
    """A backup was restored under a running process: nothing goes on into the file that nobody will read again."""
    (file,) = tmp_path.glob("*.db")
    sqlite_desk.allocate(WEB, "10.0.0.1")
    shutil.copyfile(sqlite_template, tmp_path / "backup")
    for log in tmp_path.glob("*.db-*"):
        log.unlink()
    (tmp_path / "backup").rename(file)
    with pytest.raises(TermLost, match="none"):
        sqlite_desk.allocate(DNS, "10.0.0.2")


def cut_all(cluster: PostgresqlCluster, url: str) -> None:
    """As an operator, a firewall or a failing server does it: every connection to this database ends now."""
    name = url.partition("?")[0].rpartition("/")[2]
    cluster.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")


@pytest.fixture
def postgresql_desk(postgresql_cluster: PostgresqlCluster) -> Iterator[Desk]:
    url = postgresql_cluster.borrow()
    desk = Desk(url)
    yield desk
    desk.close()
    postgresql_cluster.give_back(url)


@pytest.mark.spec("E3")
@pytest.mark.parametrize("when", ["before", "in the middle", "at commit"])
def test_a_cut_connection_keeps_all_or_nothing(
    postgresql_cluster: PostgresqlCluster, postgresql_desk: Desk, when: str
) -> None:
    desk = postgresql_desk
    desk.allocate(WEB, "10.0.0.1")
    before = desk.book.head()

    def begin_and_lose() -> None:
        with desk.unit() as unit:
            unit.load({DNS: "u"})
            if when == "in the middle":
                cut_all(postgresql_cluster, desk.url)
            plan = (Observe(DNS, "u"), Hold(DNS, "u", ip_address("10.0.0.2"), "g", HTTP), Allocate(DNS, "u", "g"))
            unit.apply(Plan(DNS, plan))
            unit.load({WEB: None})
            cut_all(postgresql_cluster, desk.url)
            unit.commit()

    if when == "before":
        cut_all(postgresql_cluster, desk.url)
        assert desk.book.head() == before, "a pooled connection that died is replaced, and nobody notices"
        return
    with pytest.raises(DatabaseUnavailable):
        begin_and_lose()
    assert desk.book.head() == before
    assert desk.booked(DNS) == Booked()
    desk.allocate(DNS, "10.0.0.2")


@pytest.mark.spec("E3")
def test_the_book_outlives_a_restart_of_the_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Stopped as if the power were cut, and started again: no new process needed."""
    programs = postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL IS NOT INSTALLED")
    cluster = PostgresqlCluster(programs, Path(tempfile.mkdtemp(prefix="plb-pg-")))
    try:
        cluster.prepare()
        cluster.start()
        url = cluster.new_database("template1")
        schema.upgrade(url)
        desk = Desk(url)
        desk.allocate(WEB, "10.0.0.1")
        cluster.stop(at_once=True)
        with pytest.raises(DatabaseUnavailable):
            desk.booked(WEB)
        with pytest.raises(DatabaseUnavailable):
            desk.book.head()
        cluster.start()
        assert desk.booked(WEB).held
        desk.allocate(DNS, "10.0.0.2")
        desk.close()
    finally:
        cluster.stop(at_once=True)
        shutil.rmtree(cluster.folder, ignore_errors=True)


def test_a_leader_that_hangs_does_not_lock_its_successor_out(postgresql_desk: Desk) -> None:
    """PostgreSQL ends a session that idles in a transaction; then the successor's turn comes."""
    engine = postgresql_desk.book._engine
    with engine.connect() as connection:
        assert connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar() == "1min"
        connection.execute(text("SET idle_in_transaction_session_timeout = 200"))
        connection.commit()
        hung = connection.execute(text("SELECT * FROM leadership FOR UPDATE")).one()
        assert hung.term == postgresql_desk.term
        successor = Book.open(postgresql_desk.url, actor="next")
        assert successor.raise_term(NOW) == postgresql_desk.term + 1
        successor.close()
        connection.invalidate()


def test_options_of_the_url_are_kept_beside_ours(postgresql_cluster: PostgresqlCluster) -> None:
    url = postgresql_cluster.borrow()
    engine = make_engine(f"{url}&options=-c%20work_mem%3D7MB")
    with engine.connect() as connection:
        asked = [connection.execute(text(f"SHOW {name}")).scalar() for name in ("work_mem", "timezone")]
    engine.dispose()
    postgresql_cluster.give_back(url)
    assert asked == ["7MB", "UTC"]


def test_a_clash_names_no_more_than_the_constraint(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    with pytest.raises(Clash) as caught:
        desk.allocate(DNS, "10.0.0.1")
    assert "shop" not in str(caught.value)
    assert "web" not in str(caught.value)


@pytest.mark.spec("E7")
def test_a_clock_that_jumps_back_breaks_no_constraint(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    desk.now -= timedelta(hours=1)
    desk.withdraw(WEB)
    desk.confirm(number)
    assert desk.expire() == 1
