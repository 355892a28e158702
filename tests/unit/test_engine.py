"""The engine on a real book: one that is to blame is found and left out, and what may be wrong is asked anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from purelb_sm.allocator import engine as engine_module
from purelb_sm.allocator.engine import Engine
from purelb_sm.domain import names
from purelb_sm.domain.addresses import Family
from purelb_sm.domain.groups import parse_group as real_parse_group
from purelb_sm.domain.plan import plan as real_plan
from purelb_sm.domain.reports import NodeReport, ReportedAddress
from purelb_sm.domain.reservations import parse_reserved
from purelb_sm.domain.states import AnnouncementState
from purelb_sm.domain.views import ServiceKey, ServiceView
from purelb_sm.errors import Clash, DatabaseUnavailable, InvalidGroup, StoreError, TermLost
from purelb_sm.store import Book, Unit, schema
from purelb_sm.store.reserving import Registrar
from tests.support.domain import NOW, group_view, pools, service
from tests.support.office import an_office

ALONE = "10.0.0.0-10.0.0.0"


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(tmp_path: Path, clock: Clock) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path / 'book.db'}"
    schema.upgrade(url)
    book = Book.open(url, actor="test")
    try:
        term = book.raise_term(clock())
        made = Engine(
            book,
            term,
            clock=clock,
            load_balancer_class=names.LOAD_BALANCER_CLASS,
            default_class=True,
            settle_s=0.0,
        )
        made.set_groups([group_view("default", pools("10.0.0.0/24", quarantine="0s"))])
        yield made
    finally:
        book.close()


def views(count: int) -> dict[ServiceKey, ServiceView | None]:
    keys = [ServiceKey("test", f"s{n}") for n in range(count)]
    return {key: service(key=key, uid=f"uid-{key.name}") for key in keys}


@pytest.mark.spec("E1")
@pytest.mark.parametrize("error", [RuntimeError("x"), OverflowError("x"), Clash("x"), StoreError("x"), KeyError("x")])
def test_of_a_batch_only_the_one_to_blame_is_left_out_in_few_transactions(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    begun: list[int] = []
    transaction = Book.transaction

    def counted(self: Book, *rest: Any) -> Any:
        begun.append(1)
        return transaction(self, *rest)

    def plan(key: ServiceKey, *rest: Any) -> Any:
        if key.name == "s37":
            raise error
        return real_plan(key, *rest)

    monkeypatch.setattr(Book, "transaction", counted)
    monkeypatch.setattr(engine_module, "plan", plan)
    made = engine.plan_batch(views(64))
    assert {m.key.name for m in made} == {f"s{n}" for n in range(64) if n != 37}
    assert len(begun) <= 2 * 7
    given = [str(a) for m in made if m.publication for a in m.publication.ingress or ()]
    assert len(set(given)) == 63
    monkeypatch.undo()
    assert engine.plan_batch(views(64))[37].actions


@pytest.mark.parametrize("error", [DatabaseUnavailable("x"), TermLost("x")])
def test_a_database_that_is_away_blames_nobody(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: StoreError
) -> None:
    def commit(self: Unit) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Unit, "commit", commit)
        with pytest.raises(type(error)):
            engine.plan_batch(views(4))
    assert [len(m.actions) for m in engine.plan_batch(views(4))] == [3] * 4


@pytest.mark.spec("E3")
def test_what_a_commit_without_an_answer_freed_is_free(
    engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = views(3)
    engine.plan_batch(some)
    engine.plan_batch(dict.fromkeys(some))
    clock.now += timedelta(seconds=1)
    real = Unit.commit

    def commit(self: Unit) -> None:
        real(self)
        raise DatabaseUnavailable("cut")

    with monkeypatch.context() as patch:
        patch.setattr(Unit, "commit", commit)
        with pytest.raises(DatabaseUnavailable):
            engine.release_pass(lambda *_: False, None)
    fresh = {key: replace(view, uid=f"{view.uid}-2") for key, view in some.items() if view is not None}
    made = engine.plan_batch(dict(fresh))
    given = [str(a) for m in made if m.publication for a in m.publication.ingress or ()]
    assert given == ["10.0.0.0", "10.0.0.1", "10.0.0.2"]


@pytest.mark.spec("E1")
def test_a_report_that_cannot_be_booked_spoils_no_other(engine: Engine) -> None:
    (made,) = engine.plan_batch(views(1))
    assert made.publication is not None
    (address,) = made.publication.ingress or ()
    shown = (ReportedAddress(address, "eth0", 24, AnnouncementState.PRESENT, NOW, 300),)
    reports = [NodeReport(f"node{n}", "a", NOW, 1, shown, ()) for n in range(4)]
    # A number that no database takes, and a text that PostgreSQL refuses.
    reports[1] = replace(reports[1], sequence=2**70)
    reports[2] = replace(reports[2], incarnation="\ud800")
    outcomes = engine.take_reports(reports)
    assert [o.made_up for o in outcomes] == [1, 1]
    assert engine.announcing_nodes() == {"node0", "node3"}


@pytest.mark.spec("C15", "B5")
@pytest.mark.parametrize("later", [timedelta(hours=1), timedelta(hours=-1), timedelta(days=-20_000), timedelta(0)])
def test_an_agent_is_believed_whatever_its_clock_said_when_it_started(
    engine: Engine, later: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made,) = engine.plan_batch(views(1))
    assert made.publication is not None
    (address,) = made.publication.ingress or ()
    shown = (ReportedAddress(address, "eth0", 24, AnnouncementState.PRESENT, NOW, None),)
    first = NodeReport("node1", "one", NOW, 0, shown, ())
    second = NodeReport("node1", "two", NOW + later, 0, (), ())
    assert [o.made_up for o in engine.take_reports([first])] == [1]
    assert [o.made_up for o in engine.take_reports([second])] == [1]
    assert engine.announcing_nodes() == set()
    # The one before, if it still writes, is not.
    assert engine.take_reports([replace(first, sequence=5)]) == []
    assert engine.announcing_nodes() == set()


@pytest.mark.spec("E1", "A8")
def test_a_group_that_makes_us_stumble_costs_no_other(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_group(view: Any) -> Any:
        if view.name == "odd":
            raise TypeError("nobody thought of this")
        return real_parse_group(view)

    monkeypatch.setattr(engine_module, "parse_group", parse_group)
    odd, fine = (group_view(name, pools(p)) for name, p in (("odd", "10.0.1.0/24"), ("fine", "10.0.2.0/24")))
    verdicts = engine.set_groups([odd, fine])
    assert set(verdicts.accepted) == {"fine"}
    assert isinstance(verdicts.refused["odd"], InvalidGroup)


@pytest.mark.spec("A8", "A22")
def test_of_groups_that_overlap_a_new_leader_uses_the_one_that_was_used_before(tmp_path: Path) -> None:
    """Group a was edited onto group b while nobody looked; by age and name it would go first."""
    ranges = {"a": "10.0.1.0/24", "b": "10.0.2.0/24"}
    with an_office(tmp_path, **{name: pools(range_) for name, range_ in ranges.items()}) as office:
        office.groups = [group_view("a", pools("10.0.2.128/25")), group_view("b", pools("10.0.2.0/24"))]
        office.lead()
        for name in ("a", "b"):
            office.create(name, annotations={names.SERVICE_GROUP: name})
            office.settle(name)
        assert (office.shown("a"), office.refusal("a")) == ([], "InvalidServiceGroup")
        assert office.shown("b") == ["10.0.2.0"]


def test_the_free_space_of_an_odd_moment_is_never_used(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that was not kept has taken nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(Unit, "apply", lambda *_: (_ for _ in ()).throw(StoreError("no")))
        assert engine.plan_batch(views(2)) == []
    world = engine._world
    assert world is None or world.free.counts("default", Family.IPV4) == (256, 256)
    assert ip_address("10.0.0.0") in {
        a for m in engine.plan_batch(views(1)) if m.publication for a in m.publication.ingress or ()
    }


def reserve(
    engine: Engine, text: str, clock: Clock, until_s: float | None = None, claim: ServiceKey | None = None
) -> None:
    registrar = Registrar(engine._book._engine, "user/alice")
    expires_at = None if until_s is None else clock() + timedelta(seconds=until_s)
    registrar.reserve(parse_reserved(text), claim, "why not", expires_at, clock())


def nobody_shows(key: ServiceKey, address: object) -> bool:
    return False


@pytest.mark.spec("A26")
def test_the_end_of_a_reservation_is_waited_for_and_opens_what_nobody_holds(engine: Engine, clock: Clock) -> None:
    some = views(3)
    reserve(engine, "10.0.0.0/24", clock, until_s=60)
    assert all(made.waiting for made in engine.plan_batch(some))
    again_at = engine.release_pass(nobody_shows, None).again_at
    assert again_at == NOW + timedelta(seconds=60)
    clock.now = again_at - timedelta(microseconds=1)
    done = engine.release_pass(nobody_shows, None)
    assert (done.freed, done.again_at) == ([], again_at)
    clock.now = again_at
    done = engine.release_pass(nobody_shows, None)
    assert (len(done.freed), done.ended, done.unlocked, done.again_at) == (256, True, True, None)
    assert [made.waiting for made in engine.plan_batch(some)] == [False] * 3
    assert not engine.reservations_changed()


@pytest.mark.spec("A26", "A29")
def test_what_is_lifted_is_opened_by_the_pass_and_not_by_whoever_comes(engine: Engine, clock: Clock) -> None:
    reserve(engine, "10.0.0.0/24", clock)
    assert engine.plan_batch(views(1))[0].waiting
    engine.release_pass(nobody_shows, None)
    assert not engine.reservations_changed()
    Registrar(engine._book._engine, "user/alice").unreserve(parse_reserved("10.0.0.0/24"), clock())
    assert engine.reservations_changed()
    newcomer = ServiceKey("test", "newcomer")
    assert engine.plan_batch({newcomer: service(key=newcomer, uid="n")})[0].waiting
    assert engine.unsettled
    # Nor by a world that is built anew meanwhile.
    engine.set_groups([group_view("default", pools("10.0.0.0/25", quarantine="0s"))])
    assert engine.plan_batch({newcomer: service(key=newcomer, uid="n")})[0].waiting
    done = engine.release_pass(nobody_shows, None)
    assert (len(done.freed), done.unlocked) == (128, True)
    assert not engine.unsettled


@pytest.mark.spec("A26", "E3")
def test_an_end_that_may_not_have_been_kept_is_looked_up_again(
    engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve(engine, "10.0.0.0/24", clock, until_s=60)
    assert engine.plan_batch(views(1))[0].waiting
    clock.now += timedelta(seconds=61)

    def cut(self: Unit) -> None:
        raise DatabaseUnavailable("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(Unit, "commit", cut)
        with pytest.raises(DatabaseUnavailable):
            engine.release_pass(nobody_shows, None)
    assert engine.plan_batch(views(1))[0].waiting
    done = engine.release_pass(nobody_shows, None)
    assert (len(done.freed), done.ended) == (256, True)
    assert not engine.plan_batch(views(1))[0].waiting


@pytest.mark.spec("A26")
def test_what_comes_free_is_told_to_the_one_it_is_reserved_for(engine: Engine, clock: Clock) -> None:
    (key,) = some = views(1)
    promised = ServiceKey("shop", "web")
    engine.plan_batch(some)
    reserve(engine, "10.0.0.0", clock, claim=promised)
    engine.plan_batch({key: None})
    done = engine.release_pass(nobody_shows, None)
    assert (done.freed, done.claims) == ([ip_address("10.0.0.0")], [promised])
    assert not engine.any_free(done.freed)


@pytest.mark.spec("A22", "A17")
def test_two_groups_that_swap_their_ranges_at_once_move_nobody_and_give_nothing_twice(tmp_path: Path) -> None:
    low, high = pools("10.0.0.0-10.0.0.3"), pools("10.0.0.4-10.0.0.7")
    wish = {names.SERVICE_GROUP: "other"}
    with an_office(tmp_path, default=low, other=high) as office:
        office.create("a")
        office.create("b", annotations=wish)
        office.settle("a", "b")
        assert (office.shown("a"), office.shown("b")) == (["10.0.0.0"], ["10.0.0.4"])
        office.regroup(default=high, other=low)
        office.create("c")
        office.create("d", annotations=wish)
        office.settle("a", "b", "c", "d")
        assert (office.shown("a"), office.shown("b")) == (["10.0.0.0"], ["10.0.0.4"])
        assert (office.shown("c"), office.shown("d")) == (["10.0.0.5"], ["10.0.0.1"])
        # What leaves comes back to the group that has its range now.
        office.delete("a")
        office.settle("a")
        office.release()
        office.release(400)
        office.create("e", annotations=wish)
        office.settle("e")
        assert office.shown("e") == ["10.0.0.0"]


@pytest.mark.spec("A21")
def test_a_quarantine_lasts_as_it_was_when_it_began_whatever_becomes_of_the_group(tmp_path: Path) -> None:
    with an_office(tmp_path, default=pools(ALONE, quarantine="60s")) as office:
        office.create("a")
        office.settle("a")
        office.delete("a")
        office.settle("a")
        office.release()
        office.regroup(default=pools(ALONE, quarantine="0s"))
        office.create("b")
        for later_s in (0, 59.999):
            office.release(later_s)
            office.settle("b")
            assert office.refusal("b") == "PoolExhausted"
        # Exactly at its end.
        office.release(0.001)
        office.settle("b")
        assert office.shown("b") == ["10.0.0.0"]
        # The next one is as the group says now: over as soon as nobody shows the address any more.
        office.create("c")
        office.delete("b")
        office.settle("b", "c")
        assert office.refusal("c") == "PoolExhausted"
        office.release()
        office.settle("c")
        assert office.shown("c") == ["10.0.0.0"]


@pytest.mark.spec("A21")
@pytest.mark.parametrize("by_then", [{"default": pools(ALONE)}, {"default": {"local": {}}}, {}])
def test_without_a_word_of_its_group_a_quarantine_is_of_five_minutes(tmp_path: Path, by_then: dict[str, Any]) -> None:
    """And so it is where the group cannot be read by then, or is gone."""
    with an_office(tmp_path, default=pools(ALONE)) as office:
        office.create("a")
        office.settle("a")
        office.regroup(**by_then)
        office.delete("a")
        office.settle("a")
        office.release()
        office.regroup(default=pools(ALONE))
        office.create("b")
        office.release(299.999)
        office.settle("b")
        assert office.message("b").endswith("; 1 in quarantine, the first until 2026-11-23T12:05:00Z")
        office.release(0.001)
        office.settle("b")
        assert office.shown("b") == ["10.0.0.0"]


@pytest.mark.spec("A26", "A21")
@pytest.mark.parametrize("later_s", [60.0, 59.999])
def test_a_reservation_that_ends_with_the_release_of_what_it_covers(
    engine: Engine, clock: Clock, later_s: float
) -> None:
    """Both in one pass: the address is free, once; and a moment before the end it is still promised."""
    engine.set_groups([group_view("default", pools(ALONE, quarantine="60s"))])
    (key,) = has = views(1)
    engine.plan_batch(has)
    reserve(engine, "10.0.0.0", clock, until_s=60, claim=ServiceKey("shop", "web"))
    engine.plan_batch({key: None})
    engine.release_pass(nobody_shows, None)
    clock.now += timedelta(seconds=later_s)
    newcomer = ServiceKey("test", "newcomer")
    done = engine.release_pass(nobody_shows, None)
    over = later_s == 60.0
    assert (done.freed, done.ended, done.claims) == ([ip_address("10.0.0.0")] if over else [], over, [])
    made = engine.plan_batch({newcomer: service(key=newcomer, uid="n")})
    assert made[0].waiting is not over
    assert engine.take_usage()["default"].of(Family.IPV4).held == over


@pytest.mark.spec("A22")
def test_a_group_that_comes_again_with_other_ranges_has_the_old_addresses_as_orphans_until_they_go(
    tmp_path: Path,
) -> None:
    anew = {names.RE_EVALUATE: "true"}
    with an_office(tmp_path, default=pools("10.0.0.0-10.0.0.3", quarantine="0s")) as office:

        def numbers() -> tuple[int, int, int]:
            of = office.engine.take_usage()["default"].of(Family.IPV4)
            return of.held, of.available, of.orphaned

        office.create("a")
        office.create("b")
        office.settle("a", "b")
        office.regroup()
        assert numbers() == (2, 0, 2)
        office.create("c")
        office.settle("a", "b", "c")
        assert (office.shown("a"), office.refusal("a"), office.refusal("c")) == (["10.0.0.0"], "", "NoServiceGroup")
        office.regroup(default=pools("10.0.1.0-10.0.1.2", quarantine="0s"))
        office.settle("a", "b", "c")
        assert [office.shown(name) for name in "abc"] == [["10.0.0.0"], ["10.0.0.1"], ["10.0.1.0"]]
        assert numbers() == (3, 2, 2)
        # Asked to, one moves; the other is deleted; and one restart later it is all the same.
        office.edit("a", annotations=anew)
        office.settle("a")
        assert office.shown("a") == ["10.0.1.1"]
        office.release()
        office.release()
        assert numbers() == (3, 1, 1)
        office.lead()
        assert numbers() == (3, 1, 1)
        office.delete("b")
        office.settle("b")
        office.release()
        office.release()
        assert numbers() == (2, 1, 0)


@pytest.mark.spec("A8", "A22")
def test_after_a_restart_the_group_that_was_edited_onto_another_is_still_the_one_that_is_refused(
    tmp_path: Path,
) -> None:
    low, high = pools("10.0.0.0/25"), pools("10.0.0.128/25")
    with an_office(tmp_path, default=low, other=high) as office:
        office.regroup(default=high, other=high)
        assert set(office.engine._groups) == {"other"}
        office.lead()
        assert set(office.engine._groups) == {"other"}


@pytest.mark.spec("A19", "A21")
@pytest.mark.parametrize(("later_s", "back"), [(59.999, "10.0.0.1"), (60, "10.0.0.0")])
def test_turned_back_it_has_its_old_address_within_the_quarantine_and_after_it_any_that_is_free(
    tmp_path: Path, later_s: float, back: str
) -> None:
    with an_office(tmp_path, default=pools("10.0.0.0-10.0.0.2", quarantine="60s")) as office:
        for name in ("a", "b"):
            office.create(name)
        office.settle("a", "b")
        office.edit("b", type="ClusterIP", ingress=())
        office.delete("a")
        office.settle("a", "b")
        office.release()
        office.release(later_s)
        office.edit("b", type="LoadBalancer")
        office.settle("b")
        assert office.shown("b") == [back]
        office.create("c")
        office.settle("c")
        assert office.shown("c") == (["10.0.0.2"] if back == "10.0.0.1" else ["10.0.0.1"])
