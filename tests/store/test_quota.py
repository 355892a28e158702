"""Quotas on the book (A30): learned in the transaction that gives, exact across batches, leaders and lost commits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import pytest

from purelb_sm.allocator.engine import Engine
from purelb_sm.domain import names
from purelb_sm.domain.book import Hold, Plan
from purelb_sm.domain.views import Port, ServiceKey, ServiceView
from purelb_sm.errors import DatabaseUnavailable, TermLost
from purelb_sm.store import Book, Unit
from tests.support.domain import NOW, group_view, pools, service


def now() -> datetime:
    return NOW


class Office:
    """Leaders one after the other on one book. `limit` is what the only group says."""

    def __init__(self, url: str, limit: int) -> None:
        self.url, self.limit = url, limit
        self.books: list[Book] = []

    def engine(self) -> Engine:
        book = Book.open(self.url, actor=f"allocator-{len(self.books)}")
        self.books.append(book)
        term = book.raise_term(NOW)
        made = Engine(
            book, term, clock=now, load_balancer_class=names.LOAD_BALANCER_CLASS, default_class=True, settle_s=0.0
        )
        self.set_limit(made, self.limit)
        return made

    def set_limit(self, engine: Engine, limit: int) -> None:
        spec = pools("10.0.0.0/24", "fd00::/120", quarantine="0s") | {"maxPerNamespace": limit}
        engine.set_groups([group_view("default", spec)])


@pytest.fixture
def office(database_url: str) -> Iterator[Office]:
    made = Office(database_url, 3)
    yield made
    for book in made.books:
        book.close()


def views(namespace: str, numbers: Iterable[int], **changes: Any) -> dict[ServiceKey, ServiceView | None]:
    keys = [ServiceKey(namespace, f"s{n}") for n in numbers]
    return {key: service(key=key, uid=f"uid-{key}", **changes) for key in keys}


def gone(namespace: str, numbers: Iterable[int]) -> dict[ServiceKey, ServiceView | None]:
    return dict.fromkeys(views(namespace, numbers))


def given(plans: Iterable[Plan]) -> int:
    return sum(isinstance(a, Hold) for made in plans for a in made.actions)


@pytest.mark.spec("A30")
def test_a_batch_that_exceeds_the_quota_gets_as_many_as_fit(office: Office) -> None:
    engine = office.engine()
    made = engine.plan_batch({**views("a", range(5)), **views("b", range(2))})
    assert [given([p]) for p in made] == [1, 1, 1, 0, 0, 1, 1]
    assert given(engine.plan_batch(views("a", range(5, 8)))) == 0
    assert given(engine.plan_batch(views("b", range(5, 8)))) == 1


@pytest.mark.spec("A30", "E6")
def test_of_two_leaders_only_the_one_of_the_last_term_gives_and_it_knows_what_the_other_gave(office: Office) -> None:
    old = office.engine()
    assert given(old.plan_batch(views("a", range(2)))) == 2
    new = office.engine()
    with pytest.raises(TermLost):
        old.plan_batch(views("a", [2]))
    assert given(new.plan_batch(views("a", range(2, 5)))) == 1
    with pytest.raises(TermLost):
        old.plan_batch(views("a", [9]))


@pytest.mark.spec("A30")
def test_what_left_makes_room_before_its_address_is_free(office: Office) -> None:
    engine = office.engine()
    engine.plan_batch(views("a", range(4)))
    left = engine.plan_batch(gone("a", [0]))
    assert left[0].cleared
    assert given(engine.plan_batch(views("a", range(3, 6)))) == 1


@pytest.mark.spec("A30", "A15")
def test_shared_addresses_are_learned_as_one_each(office: Office) -> None:
    note = {"purelb.io/allow-shared-ip": "k"}
    shared = {
        key: service(key=key, uid=f"uid-{key}", annotations=note, ports=(Port("TCP", 80 + n),))
        for n, key in enumerate(views("a", range(4)))
    }
    assert given(office.engine().plan_batch(dict(shared))) == 1
    engine = office.engine()
    assert given(engine.plan_batch(views("a", range(10, 15)))) == 2
    # All but one member leave: the address is held still.
    engine.plan_batch(gone("a", range(3)))
    assert given(engine.plan_batch(views("a", range(20, 22)))) == 0
    engine.plan_batch(gone("a", [3]))
    assert given(engine.plan_batch(views("a", range(20, 22)))) == 1


@pytest.mark.spec("A30", "A22")
def test_a_limit_that_is_lowered_and_raised_counts_what_is_held(office: Office) -> None:
    engine = office.engine()
    engine.plan_batch(views("a", range(3)))
    office.set_limit(engine, 1)
    assert given(engine.plan_batch(views("a", range(5)))) == 0
    engine.plan_batch(gone("a", [0, 1]))
    assert given(engine.plan_batch(views("a", [3]))) == 0
    office.set_limit(engine, 3)
    assert given(engine.plan_batch(views("a", range(3, 7)))) == 2


@pytest.mark.spec("A30", "E3")
@pytest.mark.parametrize("kept", [True, False])
def test_after_a_commit_without_an_answer_the_book_is_asked_what_is_held(
    office: Office, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = office.engine()
    engine.plan_batch(views("a", [0]))
    real = Unit.commit

    def commit(self: Unit) -> None:
        if kept:
            real(self)
        raise DatabaseUnavailable("cut off")

    monkeypatch.setattr(Unit, "commit", commit)
    with pytest.raises(DatabaseUnavailable):
        engine.plan_batch(views("a", [1]))
    monkeypatch.undo()
    assert given(engine.plan_batch(views("a", range(2, 7)))) == (1 if kept else 2)


@pytest.mark.spec("A30", "A13")
def test_two_families_count_two(office: Office) -> None:
    engine = office.engine()
    dual = views("a", range(2), ip_families=("IPv4", "IPv6"), ip_family_policy="RequireDualStack")
    made = engine.plan_batch(dual)
    assert [given([p]) for p in made] == [2, 0]


@pytest.mark.spec("A30")
def test_a_namespace_is_asked_of_the_book_once_and_one_without_limit_never(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    real = Unit.held_in

    def held_in(self: Unit, namespaces: Any, groups: Any) -> Any:
        asked.append(list(namespaces))
        return real(self, namespaces, groups)

    monkeypatch.setattr(Unit, "held_in", held_in)
    engine = office.engine()
    for batch in (views("a", [0]), {**views("a", [1]), **views("b", [0])}, gone("a", [0]), views("b", [1])):
        engine.plan_batch(batch)
    assert asked == [["a"], ["b"]]
    engine.set_groups([group_view("default", pools("10.0.0.0/24"))])
    engine.plan_batch(views("c", [0]))
    assert asked == [["a"], ["b"]]
