"""Nothing that the book asks is answered by reading a whole table: time does not grow with what is in it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from purelb_sm.domain.addresses import AddressRange
from purelb_sm.domain.book import Allocate, Hold, Join, Observe, Plan, Refuse
from purelb_sm.domain.views import Port, ServiceKey
from purelb_sm.errors import Reason
from purelb_sm.store.audit import Audit, Filter
from tests.support.book import DNS, HTTP, NOW, WEB, Agent, Desk
from tests.support.databases import new_sqlite

API, SSH = ServiceKey("shop", "api"), ServiceKey("shop", "ssh")


def plans(engine: Engine, work: Callable[[], Any]) -> dict[str, list[str]]:
    """SQLite's query plan of every statement that `work` sends."""
    found: dict[str, list[str]] = {}

    def note(_c: object, cursor: Any, statement: str, parameters: Any, _context: object, many: bool) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            values = parameters[0] if many else parameters
            plan = cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)
            found[statement] = [row[-1] for row in plan]

    event.listen(engine, "before_cursor_execute", note)
    try:
        work()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return found


def scans(found: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Steps that read a table, or an index of all its rows, from end to end."""
    # The empty list of an IN is a subquery of no rows; these indexes hold only what is live or due; the head of the
    # history is one step at its end.
    waiting = "ix_service_waiting (cluster=?)"
    fine = ("ix_announcement_live_node", "ix_allocation_releasing", "ix_allocation_quarantined_until", waiting)
    return [
        (step, statement)
        for statement, steps in found.items()
        for step in steps
        # Every row of a table has the same cluster: to search by that alone is to read them all.
        if (step.startswith("SCAN") or step.endswith("(cluster=?)"))
        and not step.endswith(fine)
        and not step.startswith(("SCAN (", "SCAN CONSTANT", "SCAN wanted VIRTUAL TABLE"))
        and "ORDER BY history.seq DESC" not in statement
    ]


@pytest.fixture
def desk(tmp_path: Path, sqlite_template: Path) -> Any:
    made = Desk(new_sqlite(tmp_path, sqlite_template))
    yield made
    made.close()


def test_no_transaction_scans_a_table(desk: Desk) -> None:
    agent = Agent()

    def day() -> None:
        number = desk.allocate(WEB, "10.0.0.1")
        desk.report(agent.add().report())
        desk.report(agent.add("10.0.0.9").report(last=1))
        desk.do(DNS, Observe(DNS, "u"), Refuse(DNS, "u", Reason.POOL_EXHAUSTED, "full"))
        with desk.unit() as unit:
            unit.waiting(10)
            unit.announcing_nodes()
            unit.held_in(["shop", "infra"], ["default"])
            unit.announcers([WEB, DNS])
            list(unit.held_ranges([AddressRange(ip_address("10.0.0.0"), ip_address("10.0.0.255"))]))
            unit.lose_node("node2", "?")
        hold = Hold(API, "v", ip_address("10.0.0.2"), "default", HTTP, sharing_key="K")
        desk.do(API, Observe(API, "v"), hold, Allocate(API, "v", "default"))
        with desk.unit() as unit:
            unit.load({SSH: "w"})
            join = Join(SSH, "w", ip_address("10.0.0.2"), "default", "K", (Port("TCP", 22),))
            made = Plan(SSH, (Observe(SSH, "w"), join, Allocate(SSH, "w", "default")))
            unit.expect([made])
            unit.apply(made)
            unit.commit()
        with desk.unit() as unit:
            assert [len(one.members) for one in unit.shared()] == [2]
        desk.withdraw(WEB)
        desk.ask_again(WEB)
        desk.withdraw(WEB)
        desk.report(agent.remove().report())
        with desk.unit() as unit:
            unit.releasing(10)
        desk.confirm(number)
        with desk.unit() as unit:
            unit.next_expiry()
        desk.expire()

    found = plans(desk.book._engine, day)
    assert len(found) > 20
    assert scans(found) == []


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(address=ip_address("10.0.0.1")),
        Filter(service=WEB),
        Filter(node="node1"),
        Filter(namespace="shop"),
        Filter(group="default"),
    ],
)
def test_the_history_of_one_thing_is_found_by_an_index(desk: Desk, wanted: Filter) -> None:
    desk.allocate(WEB, "10.0.0.1")
    audit = Audit.open(desk.url)
    found = plans(audit._engine, lambda: list(audit.history(wanted)))
    audit.close()
    assert scans(found) == []


def test_who_had_an_address_is_found_by_an_index(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    desk.withdraw(WEB)
    audit = Audit.open(desk.url)
    found = plans(audit._engine, lambda: [audit.who_had(ip_address("10.0.0.1"), at) for at in (desk.now, NOW)])
    audit.close()
    assert scans(found) == []


def test_explaining_and_counting_read_what_is_live_and_no_more(desk: Desk) -> None:
    """Counts are of live allocations, by the index that holds no others; the groups in force are few."""
    desk.allocate(WEB, "10.0.0.1")
    desk.withdraw(WEB)
    desk.do(DNS, Observe(DNS, "u"), Refuse(DNS, "u", Reason.POOL_EXHAUSTED, "full"))
    audit = Audit.open(desk.url)
    found = plans(audit._engine, lambda: (audit.explain(WEB, NOW), audit.explain(DNS, NOW), audit.groups(NOW)))
    audit.close()
    live = ("uq_allocation_live_address", "ix_allocation_claim")
    fine = (*live, "uq_service_group_live_name", "ix_reservation_live")
    assert len(found) > 10
    assert [each for each in scans(found) if not each[0].endswith(fine)] == []
