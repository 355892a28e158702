"""The book: what is applied is there when asked again, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address

from purelb_sm.domain.book import Allocate, Hold, Observe, Plan
from purelb_sm.domain.states import ServiceState
from purelb_sm.domain.views import Port, ServiceKey
from purelb_sm.store import Book

NOW = datetime(2026, 11, 24, 3, 12, tzinfo=UTC)


def test_an_allocation_is_there_when_asked_again(database_url: str) -> None:
    book = Book.open(database_url, actor="allocator-0")
    term = book.raise_term(NOW)
    key = ServiceKey("shop", "web")
    with book.transaction(term, NOW) as unit:
        unit.load({key: "u"})
        hold = Hold(key, "u", ip_address("10.0.0.1"), "default", (Port("TCP", 80),))
        unit.apply(Plan(key, (Observe(key, "u"), hold, Allocate(key, "u", "default"))))
        unit.commit()
    with book.transaction(term, NOW) as unit:
        booked = unit.load({key: "u"})[key]
    assert booked.service is not None
    assert booked.service.state is ServiceState.ALLOCATED
    assert [a.address for a in booked.held] == [ip_address("10.0.0.1")]
    assert book.head()[0] == 4
    book.close()
