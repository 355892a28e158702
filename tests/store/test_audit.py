"""Questions about any past time: who had it, who announced it, what was held (spec B2)."""

from __future__ import annotations

from datetime import datetime, timedelta
from ipaddress import ip_address

import pytest
from sqlalchemy import text

from purelb_sm.domain.book import Hold, Observe, Plan, Refuse
from purelb_sm.domain.states import AllocationState
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import DatabaseUnavailable, Reason, StoreError
from purelb_sm.store.audit import Audit, Filter, Holding
from purelb_sm.store.engine import make_engine, our_errors
from tests.support.book import DNS, HTTP, NOW, WEB, Agent, Desk

ONE = ip_address("10.0.0.1")


def who_had(desk: Desk, at: datetime, address: str = "10.0.0.1") -> list[Holding]:
    audit = Audit.open(desk.url)
    try:
        return audit.who_had(ip_address(address), at)
    finally:
        audit.close()


@pytest.mark.spec("B2")
def test_who_had_it_at_any_time_of_its_life(desk: Desk) -> None:
    """Held by one, released, quarantined, free, held by another: each time has its answer."""
    number = desk.allocate(WEB, "10.0.0.1")
    held = desk.now
    desk.withdraw(WEB)
    released = desk.now
    desk.confirm(number, quarantine_s=10)
    quarantined = desk.now
    desk.expire(later_s=20)
    free = desk.now
    desk.allocate(DNS, "10.0.0.1", group="other")
    again = desk.now
    instant = timedelta(microseconds=1)

    assert who_had(desk, held - instant) == []
    (then,) = who_had(desk, held)
    assert (then.service, then.uid, then.group) == (WEB, "uid-web", "default")
    assert (then.since, then.until, then.state) == (held, released, AllocationState.HELD)
    assert who_had(desk, released - instant) == [then]
    (out,) = who_had(desk, released)
    assert (out.service, out.state, out.claim) == (None, AllocationState.RELEASING, "shop/web")
    assert [h.state for h in who_had(desk, quarantined)] == [AllocationState.QUARANTINED]
    assert [h.state for h in who_had(desk, free - instant)] == [AllocationState.QUARANTINED]
    assert who_had(desk, free) == []
    (now,) = who_had(desk, again)
    assert (now.service, now.group, now.since, now.until) == (DNS, "other", again, None)
    assert who_had(desk, again + timedelta(days=365)) == [now]


@pytest.mark.spec("B2")
def test_who_announced_it_then(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    one, two = Agent("node1").add(), Agent("node2")
    desk.report(one.report())
    on_one = desk.now
    desk.report(one.remove().report())
    nowhere = desk.now
    desk.report(two.add(interface="enp1s0").report())
    on_two = desk.now

    def nodes(at: datetime) -> list[tuple[str, str, datetime, datetime | None]]:
        return [(a.node, a.interface, a.since, a.until) for h in who_had(desk, at) for a in h.announcers]

    assert nodes(on_one - timedelta(microseconds=1)) == []
    assert nodes(on_one) == [("node1", "eth0", on_one, nowhere)]
    assert nodes(nowhere) == []
    assert nodes(on_two) == [("node2", "enp1s0", on_two, None)]


@pytest.mark.spec("B2")
def test_all_who_share_an_address_are_named(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    with desk.unit() as unit:
        unit.load({WEB: "uid-web", DNS: "uid-dns"})
        unit.apply(Plan(DNS, (Observe(DNS, "uid-dns"),)))
        workspace = unit._ws
        workspace.join(workspace.allocations[number], workspace.services["uid-dns"], ())
        unit.commit()
    assert [h.service for h in who_had(desk, desk.now)] == [WEB, DNS]
    assert [h.service for h in who_had(desk, desk.now - timedelta(seconds=1))] == [WEB]


@pytest.mark.spec("B2")
def test_everything_held_at_a_time(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.7")
    early = desk.now
    desk.allocate(DNS, "fd00::1")
    desk.allocate(ServiceKey("n", "x"), "10.0.0.3")
    desk.report(Agent().add("10.0.0.3").report())
    desk.withdraw(WEB)
    audit = Audit.open(desk.url)
    then = list(audit.state_at(early))
    now = list(audit.state_at(desk.now))
    assert list(audit.state_at(NOW)) == []
    audit.close()
    assert [(str(h.address), h.service) for h in then] == [("10.0.0.7", WEB)]
    assert [(str(h.address), h.service, h.state.value, len(h.announcers)) for h in now] == [
        ("10.0.0.3", ServiceKey("n", "x"), "held", 1),
        ("10.0.0.7", None, "releasing", 0),
        ("fd00::1", DNS, "held", 0),
    ]


@pytest.fixture
def told(desk: Desk) -> Desk:
    desk.allocate(WEB, "10.0.0.1", group="default")
    desk.allocate(DNS, "10.0.0.2", group="other")
    desk.report(Agent("node1").add("10.0.0.1").report())
    desk.report(Agent("node2").add("10.0.0.2").report())
    desk.do(ServiceKey("shop", "new"), Observe(ServiceKey("shop", "new"), "n"))
    return desk


def subjects(desk: Desk, **wanted: object) -> set[tuple[str, str]]:
    audit = Audit.open(desk.url)
    try:
        rows = list(audit.history(Filter(**wanted)))  # type: ignore[arg-type]
    finally:
        audit.close()
    assert [r.seq for r in rows] == sorted(r.seq for r in rows)
    return {(r.kind, r.name or r.address) for r in rows}


@pytest.mark.spec("B2")
def test_history_is_found_by_what_it_is_about(told: Desk) -> None:
    assert subjects(told, address=ONE) == {("allocation", "web"), ("announcement", "10.0.0.1")}
    assert subjects(told, node="node2") == {("announcement", "10.0.0.2"), ("service", "dns")}
    assert subjects(told, namespace="shop") == {("service", "web"), ("allocation", "web"), ("service", "new")}
    assert subjects(told, group="other") == {
        ("service", "dns"),
        ("allocation", "dns"),
        ("announcement", "10.0.0.2"),
    }
    assert subjects(told, group="other", node="node2", namespace="infra") == {("service", "dns")}


@pytest.mark.spec("B2")
def test_the_history_of_a_service_has_what_nodes_did_with_its_addresses(told: Desk) -> None:
    found = subjects(told, service=WEB)
    assert found == {("service", "web"), ("allocation", "web"), ("announcement", "10.0.0.1")}


def test_what_nodes_did_for_a_later_holder_is_not_a_services_history(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    desk.withdraw(WEB)
    desk.confirm(number)
    desk.expire()
    desk.allocate(DNS, "10.0.0.1")
    desk.report(Agent().add().report())
    assert ("announcement", "10.0.0.1") not in subjects(desk, service=WEB)
    assert ("announcement", "10.0.0.1") in subjects(desk, service=DNS)


@pytest.mark.spec("B2")
def test_history_between_two_times(desk: Desk) -> None:
    for i in range(4):
        desk.do(ServiceKey("n", f"s{i}"), Observe(ServiceKey("n", f"s{i}"), f"u{i}"))
    since, until = NOW + timedelta(seconds=2), NOW + timedelta(seconds=4)
    assert subjects(desk, since=since, until=until) == {("service", "s1"), ("service", "s2")}


def test_an_auditor_cannot_write(desk: Desk) -> None:
    engine = make_engine(desk.url, readonly=True)
    with pytest.raises((DatabaseUnavailable, StoreError)), our_errors(), engine.begin() as connection:
        connection.execute(text("INSERT INTO leadership (id, cluster, term, holder) VALUES (1, 'x', 1, 'x')"))
    engine.dispose()


def test_an_auditor_hinders_no_writer_and_sees_one_moment(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    audit = Audit.open(desk.url)
    rows = audit.history(Filter())
    first = next(rows)
    desk.allocate(DNS, "10.0.0.2")
    assert [first.seq, *(r.seq for r in rows)] == [1, 2, 3, 4]
    audit.close()


VIEWED: dict[str, tuple[str, tuple[object, ...]]] = {
    "v_history WHERE seq = 3": ('kind, "trigger", address', ("allocation", "hold", "10.0.0.1")),
    "v_services WHERE name = 'p'": ("namespace, name, state, reason", ("n", "p", "pending", "QuotaExceeded")),
    "v_allocations": ("address, family, state", ("10.0.0.1", "IPv4", "held")),
    "v_holdings": ("address, namespace, name, until_at", ("10.0.0.1", "shop", "web", None)),
    "v_announcements": ("address, node, interface, state", ("10.0.0.1", "node1", "eth0", "present")),
}


@pytest.mark.parametrize("view", VIEWED)
def test_the_views_answer_an_auditor(desk: Desk, view: str) -> None:
    desk.allocate(WEB, "10.0.0.1")
    desk.report(Agent().add().report())
    key = ServiceKey("n", "p")
    desk.do(key, Observe(key, "p"), Refuse(key, "p", Reason.QUOTA_EXCEEDED, "no"))
    columns, expected = VIEWED[view]
    engine = make_engine(desk.url, readonly=True)
    with engine.connect() as connection:
        assert tuple(connection.execute(text(f"SELECT {columns} FROM {view}")).one()) == expected
    engine.dispose()


def test_a_row_that_was_made_unreadable_is_still_shown(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    engine = make_engine(desk.url)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("ALTER TABLE history DISABLE TRIGGER ALL"))
        else:
            connection.execute(text("DROP TRIGGER history_no_update"))
        connection.execute(text("UPDATE history SET details = 'rubbish' WHERE seq = 2"))
    engine.dispose()
    audit = Audit.open(desk.url)
    assert list(audit.history(Filter()))[1].details == {"unreadable": "rubbish"}
    audit.close()


def test_a_hold_without_more_is_visible_at_once(desk: Desk) -> None:
    desk.do(WEB, Observe(WEB, "u"), Hold(WEB, "u", ONE, "default", HTTP))
    assert [h.service for h in who_had(desk, desk.now)] == [WEB]
