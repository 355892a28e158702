"""Reports of nodes: each move booked once, missed ones made up for, lies and repetitions without effect."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address

import pytest

from purelb_sm.domain.book import BookedAnnouncement
from purelb_sm.domain.reports import NodeReport, ReportedAddress
from purelb_sm.domain.states import AnnouncementState, AnnouncementTrigger, ServiceState
from purelb_sm.store.audit import Audit, Filter, HistoryRow
from tests.support.book import DNS, NOW, WEB, Agent, Desk

State, Trigger = AnnouncementState, AnnouncementTrigger


def announcing(desk: Desk) -> list[tuple[str, str, AnnouncementState]]:
    return [(a.node, a.interface, a.state) for a in announcements(desk)]


def announcements(desk: Desk) -> list[BookedAnnouncement]:
    """All that are not over, of all allocations that are not released."""
    from purelb_sm.store import loading

    with desk.unit(desk.now) as unit:
        loading.load_announcements_of(unit._ws, range(1, 50))
        return sorted((e.booked() for e in unit._ws.announcements.values()), key=lambda a: (a.node, a.interface))


def told(desk: Desk, kind: str = "announcement") -> list[HistoryRow]:
    audit = Audit.open(desk.url)
    try:
        return [row for row in audit.history(Filter()) if row.kind == kind]
    finally:
        audit.close()


def state_of(desk: Desk) -> ServiceState:
    service = desk.booked(WEB).service
    assert service is not None
    return service.state


@pytest.mark.spec("B1", "C15")
def test_a_report_makes_the_service_announcing(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    outcome = desk.report(Agent().add().report())
    assert (outcome.booked, outcome.changed, outcome.stale, outcome.unknown) == (2, frozenset({WEB}), False, ())
    assert state_of(desk) is ServiceState.ANNOUNCING
    assert announcing(desk) == [("node1", "eth0", State.PRESENT)]
    rows = told(desk)
    assert [(r.trigger, r.from_state, r.to_state) for r in rows] == [
        ("seen", None, "absent"),
        ("add", "absent", "adding"),
        ("added", "adding", "present"),
    ]
    assert {(r.actor, r.node, r.address, r.group) for r in rows} == {("agent/node1", "node1", "10.0.0.1", "default")}
    assert rows[-1].details == {
        "interface": "eth0",
        "prefixLength": 24,
        "reportedAt": "2026-11-24T03:12:01.000000Z",
        "seq": 2,
    }


@pytest.mark.spec("C15")
def test_the_last_announcer_gone_makes_it_silent(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    one, two = Agent("node1").add(), Agent("node2").add()
    desk.report(one.report())
    desk.report(two.report())
    desk.report(one.remove().report())
    assert state_of(desk) is ServiceState.ANNOUNCING
    outcome = desk.report(two.remove().report())
    assert outcome.changed == frozenset({WEB})
    assert state_of(desk) is ServiceState.ALLOCATED
    assert [r.trigger for r in told(desk, "service")] == ["observe", "allocate", "announce", "fall_silent"]


@pytest.mark.spec("C15")
def test_a_repeated_report_changes_nothing(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    report = Agent().add().report()
    desk.report(report)
    before = desk.book.head()
    assert desk.report(report).stale
    assert desk.book.head() == before


@pytest.mark.spec("C15")
def test_a_late_report_changes_nothing(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    agent = Agent().add()
    early = agent.report()
    late = agent.remove().report()
    desk.report(late)
    before = desk.book.head()
    assert desk.report(early).stale
    assert desk.book.head() == before
    assert state_of(desk) is ServiceState.ALLOCATED


@pytest.mark.spec("C15")
def test_each_move_is_booked_once_though_reports_overlap(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    agent = Agent().add()
    desk.report(agent.report())
    outcome = desk.report(agent.remove().report())
    assert (outcome.booked, outcome.ignored) == (2, 2)
    assert [r.trigger for r in told(desk)] == ["seen", "add", "added", "remove", "removed"]


def test_a_report_of_an_earlier_start_changes_nothing(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    old = Agent(incarnation="a", started_at=NOW)
    new = Agent(incarnation="b", started_at=NOW + timedelta(minutes=1)).add()
    desk.report(new.report())
    before = desk.book.head()
    assert desk.report(old.report()).stale
    assert desk.report(Agent(incarnation="c", started_at=new.started_at).report()).stale
    assert desk.book.head() == before


@pytest.mark.spec("C13")
def test_a_new_start_is_compared_as_a_whole(desk: Desk) -> None:
    """The agent was killed, and its successor found one address of two on the interface."""
    desk.allocate(WEB, "10.0.0.1")
    desk.allocate(DNS, "10.0.0.2")
    desk.report(Agent().add("10.0.0.1").add("10.0.0.2").report())
    successor = Agent(incarnation="b", started_at=NOW + timedelta(minutes=1))
    successor.move(Trigger.FOUND_PRESENT, State.PRESENT, "10.0.0.2")
    outcome = desk.report(successor.report())
    assert (outcome.booked, outcome.made_up, outcome.changed) == (0, 1, frozenset({WEB}))
    assert [a.address for a in announcements(desk)] == [ip_address("10.0.0.2")]
    assert state_of(desk) is ServiceState.ALLOCATED


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_missed_moves_are_made_up_for_from_the_full_state(desk: Desk, kept: int) -> None:
    desk.allocate(WEB, "10.0.0.1")
    agent = Agent().add()
    desk.report(agent.report())
    agent.remove().add(interface="eth1")
    outcome = desk.report(agent.report(last=kept))
    assert outcome.made_up > 0
    assert announcing(desk) == [("node1", "eth1", State.PRESENT)]
    assert state_of(desk) is ServiceState.ANNOUNCING
    assert desk.report(agent.remove(interface="eth1").report()).booked == 2
    assert announcing(desk) == []


def test_moves_that_no_machine_has_are_replaced_by_the_full_state(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    agent = Agent().move(Trigger.ADDED, State.PRESENT).move(Trigger.REMOVED, State.ABSENT)
    agent.move(Trigger.ADD, State.ADDING, "10.0.0.1")
    outcome = desk.report(agent.report())
    assert outcome.ignored >= 2
    assert announcing(desk) == [("node1", "eth0", State.ADDING)]


def test_one_impossible_move_among_good_ones_has_the_whole_state_compared(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    desk.allocate(DNS, "10.0.0.2")
    agent = Agent().add("10.0.0.1").add("10.0.0.2")
    desk.report(agent.report())
    agent.move(Trigger.REMOVED, State.ABSENT, "10.0.0.1")
    agent.move(Trigger.REMOVE, State.REMOVING, "10.0.0.2")
    outcome = desk.report(agent.report())
    assert (outcome.booked, outcome.ignored, outcome.made_up) == (1, 4 + 1, 1)
    assert [(str(a.address), a.state) for a in announcements(desk)] == [("10.0.0.2", State.REMOVING)]


@pytest.mark.parametrize("before", [None, *(s for s in State if s not in (State.ABSENT, State.LOST))])
@pytest.mark.parametrize("after", [s for s in State if s is not State.LOST])
def test_from_any_state_the_full_state_leads_to_any_other(
    desk: Desk, before: AnnouncementState | None, after: AnnouncementState
) -> None:
    desk.allocate(WEB, "10.0.0.1")
    if before is not None:
        desk.report(full(before, "a", 0))
    desk.report(full(after, "b", 1))
    expected = [] if after is State.ABSENT else [("node1", "eth0", after)]
    assert announcing(desk) == expected


def full(state: AnnouncementState, incarnation: str, minutes: int, address: str = "10.0.0.1") -> NodeReport:
    started = NOW + timedelta(minutes=minutes)
    item = ReportedAddress(ip_address(address), "eth0", 24, state, started, 300)
    return NodeReport("node1", incarnation, started, 7, (item,), ())


@pytest.mark.spec("C15")
def test_a_node_whose_lease_lapsed_is_lost(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    desk.report(Agent("node1").add().report())
    with desk.unit() as unit:
        outcome = unit.lose_node("node1", "its Lease lapsed")
        unit.commit()
    assert (outcome.booked, outcome.changed) == (1, frozenset({WEB}))
    assert announcing(desk) == [("node1", "eth0", State.LOST)]
    assert state_of(desk) is ServiceState.ALLOCATED
    last = told(desk)[-1]
    assert (last.trigger, last.actor, last.reason) == ("lose", "allocator-0", "its Lease lapsed")


def test_losing_a_node_twice_or_one_never_heard_of_changes_nothing(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    desk.report(Agent("node1").add().report())
    for node in ("node1", "node1", "node9"):
        with desk.unit() as unit:
            unit.lose_node(node, "its Lease lapsed")
            unit.commit()
    assert [r.trigger for r in told(desk)].count("lose") == 1


@pytest.mark.spec("C15")
def test_a_lost_node_that_comes_back_is_believed_without_a_new_move(desk: Desk) -> None:
    """Its Lease lapsed, its agent and its addresses went on: the same report is a full state now."""
    desk.allocate(WEB, "10.0.0.1")
    report = Agent("node1").add().report()
    desk.report(report)
    with desk.unit() as unit:
        unit.lose_node("node1", "its Lease lapsed")
        unit.commit()
    outcome = desk.report(report)
    assert (outcome.stale, outcome.made_up, outcome.changed) == (False, 1, frozenset({WEB}))
    assert state_of(desk) is ServiceState.ANNOUNCING
    assert desk.report(report).stale


def test_an_address_that_the_book_does_not_hold_is_told_and_taken_later(desk: Desk) -> None:
    """A node holds what a lost database does not know. Once it is adopted, the same report is good."""
    report = Agent().add("10.0.0.9").report()
    outcome = desk.report(report)
    assert (outcome.unknown, outcome.booked) == ((ip_address("10.0.0.9"),), 0)
    desk.allocate(WEB, "10.0.0.9")
    outcome = desk.report(report)
    assert (outcome.unknown, outcome.changed) == ((), frozenset({WEB}))
    assert state_of(desk) is ServiceState.ANNOUNCING


def test_a_report_for_a_released_address_is_of_no_allocation(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    desk.withdraw(WEB)
    desk.confirm(number)
    desk.expire()
    assert desk.report(Agent().add().report()).unknown == (ip_address("10.0.0.1"),)


@pytest.mark.parametrize(
    "change",
    [{"interface": "x" * 65}, {"interface": "a\0b"}, {"prefix_length": 33}, {"prefix_length": 2**52}],
)
def test_what_no_kernel_can_hold_is_not_booked(desk: Desk, change: dict[str, object]) -> None:
    """A node is not trusted: nonsense from it must not stop what others report."""
    desk.allocate(WEB, "10.0.0.1")
    report = Agent().add().report()
    mad = replace(
        report,
        addresses=tuple(replace(a, **change) for a in report.addresses),  # type: ignore[arg-type]
        transitions=tuple(replace(t, **change) for t in report.transitions),  # type: ignore[arg-type]
    )
    assert desk.report(mad).booked == 0
    assert announcing(desk) == []


def test_a_node_cannot_call_its_own_entries_lost(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    desk.report(Agent().add().report())
    desk.report(full(State.LOST, "b", 1))
    assert announcing(desk) == []


def test_one_node_cannot_speak_of_anothers_entries(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    desk.report(Agent("node1").add().report())
    desk.report(Agent("node2").report())
    assert announcing(desk) == [("node1", "eth0", State.PRESENT)]


def test_a_report_with_a_wild_number_only_silences_its_own_node(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    wild = replace(Agent("node1").add().report(), sequence=2**53 - 1)
    desk.report(wild)
    assert desk.report(Agent("node1").add().report()).stale
    desk.report(Agent("node2").add().report())
    assert ("node2", "eth0", State.PRESENT) in announcing(desk)
    desk.report(full(State.ABSENT, "b", 1))
    assert announcing(desk) == [("node2", "eth0", State.PRESENT)]


def test_moves_out_of_order_or_twice_are_booked_in_order_once(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    report = Agent().add().remove().report()
    shuffled = replace(report, transitions=tuple(reversed(report.transitions)) + report.transitions)
    outcome = desk.report(shuffled)
    assert outcome.booked == 4
    assert [r.trigger for r in told(desk)] == ["seen", "add", "added", "remove", "removed"]


def test_the_lifetime_in_the_kernel_is_kept(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    agent = Agent().add(valid_s=300)
    desk.report(agent.report())
    assert [a.valid_s for a in announcements(desk)] == [300]
    before = announcements(desk)[0]
    agent.move(Trigger.REMOVE, State.REMOVING, valid_s=None)
    desk.report(agent.report())
    (after,) = announcements(desk)
    assert (after.valid_s, after.state) == (None, State.REMOVING)
    assert after.id != before.id, "an announcement that moved is another row"


def test_every_state_keeps_its_own_period(desk: Desk) -> None:
    """One row per state: any past time can be asked for."""
    desk.allocate(WEB, "10.0.0.1")
    agent = Agent().add()
    desk.report(agent.report())
    present = desk.now
    with desk.unit() as unit:
        unit.lose_node("node1", "its Lease lapsed")
        unit.commit()
    lost = desk.now
    audit = Audit.open(desk.url)
    (then,) = audit.who_had(ip_address("10.0.0.1"), present)
    (now,) = audit.who_had(ip_address("10.0.0.1"), lost)
    audit.close()
    assert [(a.state, a.since, a.until) for a in then.announcers] == [("present", present, lost)]
    assert [(a.state, a.since, a.until) for a in now.announcers] == [("lost", lost, None)]


@pytest.mark.spec("B1", "C15", "C20")
def test_a_foreign_host_at_an_announced_address_is_a_row_of_history_and_ends_no_period(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    agent = Agent().add()
    desk.report(agent.report())
    (before,) = announcements(desk)
    said = "AddressConflict: 10.0.0.1 is used by 02:f0:00:00:00:01 on the link of eth0"
    desk.now += timedelta(minutes=1)
    outcome = desk.report(agent.move(Trigger.CONTEST, State.PRESENT, reason=said).report())
    assert (outcome.booked, outcome.made_up) == (1, 0)
    row = told(desk)[-1]
    assert (row.trigger, row.from_state, row.to_state, row.reason) == ("contest", "present", "present", said)
    assert (row.node, row.address, row.at) == ("node1", "10.0.0.1", desk.now)
    assert announcements(desk) == [before], "it has been announced all the time"
    assert state_of(desk) is ServiceState.ANNOUNCING
    desk.report(agent.remove().report())
    assert announcements(desk) == []
    assert state_of(desk) is ServiceState.ALLOCATED


def test_a_quiet_report_of_many_addresses_reads_only_what_moved(desk: Desk) -> None:
    """The full state of a node with thousands of addresses is not compared for every move of one."""
    desk.allocate(WEB, "10.0.0.1")
    desk.allocate(DNS, "10.0.0.2")
    agent = Agent().add("10.0.0.1")
    desk.report(agent.report())
    agent.add("10.0.0.2")
    with desk.unit() as unit:
        unit.take_report(agent.report())
        assert {a.address for a in unit._ws.announcements.values()} == {ip_address("10.0.0.2")}


def test_nodes_that_may_hold_something_are_named(desk: Desk) -> None:
    """Without a Lease, one of them is to be judged lost: also after a restart, when nobody remembers its Lease."""
    desk.allocate(WEB, "10.0.0.1")
    for node in ("node1", "node2", "node3"):
        desk.report(Agent(node).add().report())
    desk.report(Agent("node2", "b", NOW + timedelta(minutes=1)).report())
    with desk.unit() as unit:
        unit.lose_node("node3", "its Lease lapsed")
        assert unit.announcing_nodes() == {"node1"}
