"""Any order of asking, leaving, reporting, losing, confirming, expiring and crashing: the book stays true.

After every step: no address is live twice, states agree with members and nodes, and the history alone, read from its
first row, gives the very states that the tables hold. At the end the chain verifies.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import Engine, text

from purelb_sm.domain.book import Allocate, Hold, Leave, Observe, Plan, Reclaim, Refuse, Revive, Withdraw
from purelb_sm.domain.states import AnnouncementState, AnnouncementTrigger
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import Clash, IllegalTransition, Reason, TermLost
from purelb_sm.store import Book, Unit, schema
from purelb_sm.store.audit import Audit
from purelb_sm.store.engine import make_engine
from tests.support.book import HTTP, NOW, Agent
from tests.support.databases import PostgresqlCluster
from tests.support.replay import history_gives_the_states

KEYS = [ServiceKey("n", name) for name in "abc"]
ADDRESSES = [f"10.0.0.{n}" for n in range(3)]
NODES = ["node1", "node2"]

keys, addresses, nodes = st.sampled_from(KEYS), st.sampled_from(ADDRESSES), st.sampled_from(NODES)


class Bookkeeping(RuleBasedStateMachine):
    """Moves as the allocator and agents make them, sensible and not; a refused one must change nothing."""

    url = ""

    @initialize()
    def start(self) -> None:
        self.now, self.fresh = NOW, 0
        self.book = Book.open(self.url, actor="a")
        self.engine = make_engine(self.url)
        _empty(self.engine)
        self.term = self.book.raise_term(self.now)
        self.agents = {node: Agent(node) for node in NODES}
        self.latest: dict[str, str] = {}

    def attempt(self, change: Callable[[Unit], object], *, crash: bool = False) -> bool:
        """One transaction. False: refused, and then nothing of it may be there."""
        self.now += timedelta(seconds=1)
        before = self.book.head()
        try:
            with self.book.transaction(self.term, self.now) as unit:
                change(unit)
                if crash:
                    raise InterruptedError
                unit.commit()
        except (Clash, IllegalTransition, InterruptedError):
            assert self.book.head() == before
            return False
        return True

    def plan(self, key: ServiceKey, *actions: Any, crash: bool = False) -> bool:
        def change(unit: Unit) -> None:
            unit.load({key: self.latest.get(str(key))})
            unit.apply(Plan(key, actions))

        return self.attempt(change, crash=crash)

    def look(self, key: ServiceKey) -> Any:
        with self.book.transaction(self.term, self.now) as unit:
            return unit.load({key: self.latest.get(str(key))})[key]

    @rule(key=keys, address=addresses, crash=st.booleans())
    def ask(self, key: ServiceKey, address: str, crash: bool) -> None:
        """A Service asks: a new one, one that was withdrawn, or one that has something already and wants another."""
        booked = self.look(key)
        if booked.service is not None:
            uid, begin = booked.service.uid, list[Observe | Revive]()
        elif booked.former is not None:
            uid, begin = booked.former.uid, [Revive(key, booked.former.uid)]
        else:
            self.fresh += 1
            uid = f"u{self.fresh}"
            begin = [Observe(key, uid)]
        back = [Reclaim(key, uid, a.id, a.address, HTTP) for a in booked.reclaimable]
        hold = [] if back else [Hold(key, uid, ip_address(address), "default", HTTP)]
        if self.plan(key, *begin, *back, *hold, Allocate(key, uid, "default"), crash=crash):
            self.latest[str(key)] = uid

    @rule(key=keys)
    def refuse(self, key: ServiceKey) -> None:
        booked = self.look(key)
        if booked.service is not None:
            self.plan(key, Refuse(key, booked.service.uid, Reason.POOL_EXHAUSTED, "full"))

    @rule(key=keys, crash=st.booleans(), forget=st.booleans())
    def leave(self, key: ServiceKey, crash: bool, forget: bool) -> None:
        """It asks no more. `forget`: deleted, so that its name comes back under another uid."""
        booked = self.look(key)
        if booked.service is None:
            return
        uid = booked.service.uid
        leaves = [Leave(key, uid, a.id, a.address, "deleted") for a in booked.held]
        if self.plan(key, *leaves, Withdraw(key, uid, "deleted"), crash=crash) and forget:
            self.latest.pop(str(key), None)

    @rule(node=nodes, address=addresses)
    def work_the_kernel(self, node: str, address: str) -> None:
        agent = self.agents[node]
        held = (address, "eth0") in agent.shown
        agent.remove(address) if held else agent.add(address)

    @rule(node=nodes, last=st.one_of(st.none(), st.integers(0, 3)), twice=st.booleans())
    def report(self, node: str, last: int | None, twice: bool) -> None:
        report = self.agents[node].report(last)
        self.attempt(lambda unit: unit.take_report(report))
        self._believed(node)
        if twice:
            before = self.book.head()
            self.attempt(lambda unit: unit.take_report(report))
            assert self.book.head() == before

    def _believed(self, node: str) -> None:
        """What the node holds is what the book says of it, as far as the book holds the addresses at all."""
        live = set(_column(self.engine, "SELECT address_text FROM allocation WHERE released_at IS NULL"))
        query = f"""SELECT a.address_text, n.state FROM announcement n JOIN allocation a ON a.id = n.allocation_id
            WHERE n.until_at IS NULL AND n.node = '{node}'"""
        shown = {address: "present" for address, _ in self.agents[node].shown if address in live}
        assert dict(_rows(self.engine, query)) == shown

    @rule(node=nodes)
    def restart_agent(self, node: str) -> None:
        """A new start finds what the old one left in the kernel."""
        old = self.agents[node]
        started = self.now + timedelta(seconds=1)
        new = Agent(node, f"{node}-{started}", started)
        for address, _ in old.shown:
            new.move(AnnouncementTrigger.FOUND_PRESENT, AnnouncementState.PRESENT, address)
        self.agents[node] = new

    @rule(node=nodes)
    def lose(self, node: str) -> None:
        self.attempt(lambda unit: unit.lose_node(node, "its Lease lapsed"))

    @rule(gone=st.booleans(), quarantine_s=st.sampled_from([0, 30]))
    def confirm(self, gone: bool, quarantine_s: int) -> None:
        def change(unit: Unit) -> None:
            for each in unit.releasing(1):
                judged = [a.id for a in each.announcements] if gone else []
                until = self.now + timedelta(seconds=quarantine_s)
                unit.confirm_release(each.allocation.id, until, gone=judged)

        self.attempt(change)

    @rule(later_s=st.sampled_from([0, 31]))
    def expire(self, later_s: int) -> None:
        self.now += timedelta(seconds=later_s)
        self.attempt(lambda unit: unit.expire(10))

    @rule()
    def fail_over(self) -> None:
        """Another leads; what the old one tries now is refused."""
        old = self.term
        self.term = self.book.raise_term(self.now)
        with pytest.raises(TermLost), self.book.transaction(old, self.now):
            pass

    @precondition(lambda self: hasattr(self, "engine"))
    @invariant()
    def no_address_is_live_twice(self) -> None:
        live = _column(self.engine, "SELECT address_text FROM allocation WHERE released_at IS NULL")
        assert len(live) == len(set(live))

    @precondition(lambda self: hasattr(self, "engine"))
    @invariant()
    def members_agree_with_states(self) -> None:
        members = "SELECT allocation_id FROM membership WHERE until_at IS NULL"
        held = _column(self.engine, "SELECT id FROM allocation WHERE state = 'held'")
        assert sorted(held) == sorted(_column(self.engine, members))
        query = """SELECT s.uid FROM membership m JOIN service s ON s.uid = m.service_uid
            WHERE m.until_at IS NULL AND s.state = 'withdrawn'"""
        assert _column(self.engine, query) == []

    @precondition(lambda self: hasattr(self, "engine"))
    @invariant()
    def announcing_is_said_of_those_that_are(self) -> None:
        query = """SELECT DISTINCT m.service_uid FROM membership m
            JOIN announcement n ON n.allocation_id = m.allocation_id
            WHERE m.until_at IS NULL AND n.until_at IS NULL AND n.state = 'present'"""
        announced = set(_column(self.engine, query))
        said = set(_column(self.engine, "SELECT uid FROM service WHERE state = 'announcing'"))
        pending = set(_column(self.engine, "SELECT uid FROM service WHERE state = 'pending'"))
        assert said == announced - pending

    @precondition(lambda self: hasattr(self, "engine"))
    @invariant()
    def no_announcement_outlives_its_allocation(self) -> None:
        query = """SELECT n.id FROM announcement n JOIN allocation a ON a.id = n.allocation_id
            WHERE n.until_at IS NULL AND a.released_at IS NOT NULL"""
        assert _column(self.engine, query) == []

    @precondition(lambda self: hasattr(self, "engine"))
    @invariant()
    def the_history_alone_gives_the_same_states(self) -> None:
        history_gives_the_states(lambda query: _rows(self.engine, query))

    @precondition(lambda self: hasattr(self, "engine"))
    @invariant()
    def periods_of_one_thing_do_not_overlap(self) -> None:
        for table, key in (("membership", "allocation_id, service_uid"), ("announcement", "allocation_id, node")):
            open_ = Counter(_rows(self.engine, f"SELECT {key} FROM {table} WHERE until_at IS NULL"))
            assert all(count == 1 for count in open_.values())

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.dispose()
        audit = Audit.open(self.url)
        audit.verify(self.book.head())
        audit.close()
        self.book.close()


def _rows(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def _column(engine: Engine, query: str) -> list[Any]:
    return [row[0] for row in _rows(engine, query)]


def _empty(engine: Engine) -> None:
    """Every example begins with an empty book: rows go, the schema stays."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text(f"TRUNCATE {', '.join(_TABLES)}"))
            return
        names = ("history_no_update", "history_no_delete")
        made = [connection.execute(_SQL_OF, {"name": name}).scalar_one() for name in names]
        for statement in (*(f"DROP TRIGGER {n}" for n in names), *(f"DELETE FROM {t}" for t in _TABLES), *made):
            connection.exec_driver_sql(statement)


_SQL_OF = text("SELECT sql FROM sqlite_master WHERE name = :name")
_TABLES = ("port_claim", "membership", "announcement", "allocation", "service", "history", "leadership", "node_report")


def _search(url: str, examples: int, steps: int) -> None:
    class Machine(Bookkeeping):
        pass

    Machine.url = url
    Machine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    Machine.TestCase().runTest()


@pytest.mark.spec("B1", "A17", "E4")
def test_any_order_of_moves_keeps_the_book_true() -> None:
    # In memory where there is room: the fsync of hundreds of examples is not what is tested here.
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="plb-book-", dir=shm if shm.is_dir() else None))
    try:
        url = f"sqlite:///{folder / 'book.db'}"
        schema.upgrade(url)
        _search(url, 30, 25)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.spec("B6")
def test_the_other_engine_keeps_it_true_as_well(postgresql_cluster: PostgresqlCluster) -> None:
    url = postgresql_cluster.borrow()
    _search(url, 5, 25)
    postgresql_cluster.give_back(url)
