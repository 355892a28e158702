"""Two-phase release: an address is free only when nobody shows it, nobody announces it, and its quarantine is over."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_address

import pytest

from purelb_sm.domain.book import Hold, Observe, Plan
from purelb_sm.domain.states import AllocationState, AnnouncementState, AnnouncementTrigger
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import IllegalTransition, StoreError
from tests.support.book import DNS, HTTP, WEB, Agent, Desk


def states(desk: Desk) -> list[AllocationState]:
    with desk.unit() as unit:
        booked = unit.load({WEB: None})[WEB]
    return [a.state for a in (*booked.held, *booked.reclaimable)]


@pytest.mark.spec("B5")
def test_a_release_lists_all_that_can_hold_it_up(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    desk.report(Agent("node1").add(valid_s=300).report())
    desk.report(Agent("node2").add(interface="kube-lb0", valid_s=None).report())
    desk.withdraw(WEB)
    with desk.unit() as unit:
        (found,) = unit.releasing(10)
    assert (found.allocation.id, found.since, found.members) == (number, desk.now - timedelta(seconds=1), (WEB,))
    told = [(a.node, a.interface, a.prefix_length, a.state, a.valid_s) for a in found.announcements]
    present = AnnouncementState.PRESENT
    assert told == [("node1", "eth0", 24, present, 300), ("node2", "kube-lb0", 24, present, None)]
    assert all(a.allocation_id == number and a.address == ip_address("10.0.0.1") for a in found.announcements)


def test_every_former_member_of_a_shared_address_may_still_show_it(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    with desk.unit() as unit:
        unit.load({WEB: "uid-web", DNS: "uid-dns"})
        unit.apply(Plan(DNS, (Observe(DNS, "uid-dns"),)))
        workspace = unit._ws
        workspace.join(workspace.allocations[number], workspace.services["uid-dns"], ())
        unit.commit()
    desk.withdraw(WEB)
    desk.withdraw(DNS)
    with desk.unit() as unit:
        assert unit.releasing(10)[0].members == (DNS, WEB)


@pytest.mark.spec("B5")
@pytest.mark.parametrize("state", ["adding", "present", "removing", "lost"])
def test_a_release_is_not_confirmed_while_a_node_may_hold_the_address(desk: Desk, state: str) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    agent = Agent().move(AnnouncementTrigger.ADD, AnnouncementState.ADDING)
    if state != "adding":
        agent.move(AnnouncementTrigger.ADDED, AnnouncementState.PRESENT)
    if state == "removing":
        agent.move(AnnouncementTrigger.REMOVE, AnnouncementState.REMOVING)
    desk.report(agent.report())
    desk.withdraw(WEB)
    if state == "lost":
        with desk.unit() as unit:
            unit.lose_node("node1", "its Lease lapsed")
            unit.commit()
    with pytest.raises(IllegalTransition, match="guard"):
        desk.confirm(number)
    assert states(desk) == [AllocationState.RELEASING]


@pytest.mark.spec("B5")
def test_a_release_is_confirmed_when_the_node_has_let_go(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    agent = Agent().add()
    desk.report(agent.report())
    desk.withdraw(WEB)
    outcome = desk.report(agent.remove().report())
    assert outcome.releasing == {number}
    desk.confirm(number, quarantine_s=60)
    with desk.unit() as unit:
        (back,) = unit.load({WEB: None})[WEB].reclaimable
        assert unit.releasing(10) == []
        assert unit.next_expiry() == back.quarantined_until
    assert back.state is AllocationState.QUARANTINED


@pytest.mark.spec("B5")
def test_a_silent_node_judged_gone_does_not_hold_up_a_release(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    desk.report(Agent().add().report())
    with desk.unit() as unit:
        unit.lose_node("node1", "its Lease lapsed")
        unit.commit()
    desk.withdraw(WEB)
    with desk.unit() as unit:
        (found,) = unit.releasing(10)
        gone = [a.id for a in found.announcements]
        unit.confirm_release(number, desk.now + timedelta(minutes=5), "lifetime over", gone=gone)
        unit.commit()
    with desk.unit() as unit:
        assert unit.lose_node("node1", "again").booked == 0, "its announcement is over"
    assert states(desk) == [AllocationState.QUARANTINED]


@pytest.mark.spec("B5")
def test_a_judgement_does_not_outlive_what_it_was_made_of(desk: Desk) -> None:
    """The node came back and holds the address between our judging it gone and the confirmation."""
    number = desk.allocate(WEB, "10.0.0.1")
    agent = Agent().add()
    desk.report(agent.report())
    with desk.unit() as unit:
        unit.lose_node("node1", "its Lease lapsed")
        unit.commit()
    desk.withdraw(WEB)
    with desk.unit() as unit:
        gone = [a.id for a in unit.releasing(10)[0].announcements]
    desk.report(agent.report())
    with desk.unit() as unit, pytest.raises(IllegalTransition):
        unit.confirm_release(number, desk.now, gone=gone)
    assert states(desk) == [AllocationState.RELEASING]


def test_what_failed_on_a_node_does_not_hold_up_a_release_and_ends_with_it(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    agent = Agent().move(AnnouncementTrigger.ADD, AnnouncementState.ADDING)
    desk.report(agent.move(AnnouncementTrigger.FAIL, AnnouncementState.FAILED).report())
    desk.withdraw(WEB)
    desk.confirm(number)
    desk.expire()
    again = desk.allocate(DNS, "10.0.0.1")
    desk.withdraw(DNS)
    with desk.unit() as unit:
        (found,) = unit.releasing(10)
    assert (found.allocation.id, found.announcements) == (again, ())


def test_stuck_releases_hide_no_others(desk: Desk) -> None:
    numbers = [desk.allocate(ServiceKey("n", f"s{i}"), f"10.0.0.{i}") for i in range(5)]
    for i in range(5):
        desk.withdraw(ServiceKey("n", f"s{i}"))
    with desk.unit() as unit:
        first = unit.releasing(2)
        rest = unit.releasing(10, after=first[-1].allocation.id)
    assert [r.allocation.id for r in first + rest] == numbers


def test_only_what_is_releasing_is_confirmed(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    with pytest.raises(IllegalTransition):
        desk.confirm(number)
    with pytest.raises(StoreError, match="no allocation 99"):
        desk.confirm(99)


@pytest.mark.spec("A21")
def test_a_quarantine_ends_at_its_time_and_not_before(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    desk.withdraw(WEB)
    desk.confirm(number, quarantine_s=60)
    until = desk.now + timedelta(seconds=60)
    with desk.unit(until - timedelta(microseconds=1)) as unit:
        assert unit.expire(10) == []
    with desk.unit(until) as unit:
        assert [a.id for a in unit.expire(10)] == [number]
        unit.commit()
    with desk.unit() as unit:
        assert unit.next_expiry() is None
        assert unit.load({WEB: None})[WEB].reclaimable == ()


def test_the_first_to_expire_go_first(desk: Desk) -> None:
    for i, quarantine in enumerate((30, 10, 20)):
        key = ServiceKey("n", f"s{i}")
        number = desk.allocate(key, f"10.0.0.{i}")
        desk.withdraw(key)
        with desk.unit() as unit:
            unit.confirm_release(number, desk.now.replace(minute=30, second=quarantine))
            unit.commit()
    with desk.unit(desk.now + timedelta(hours=1)) as unit:
        assert [str(a.address) for a in unit.expire(2)] == ["10.0.0.1", "10.0.0.2"]


def test_an_expired_address_is_not_reclaimed(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    desk.withdraw(WEB)
    desk.confirm(number)
    desk.expire()
    assert desk.booked(WEB, "new").reclaimable == ()
    desk.do(WEB, Observe(WEB, "new"), Hold(WEB, "new", ip_address("10.0.0.1"), "default", HTTP))
    assert desk.booked(WEB).held[0].id != number


def test_a_node_judged_gone_that_comes_back_is_heard(desk: Desk) -> None:
    """It still holds the address, which is another's by now, and has nothing new to report: the book must know."""
    number = desk.allocate(WEB, "10.0.0.1")
    report = Agent().add().report()
    desk.report(report)
    desk.withdraw(WEB)
    with desk.unit() as unit:
        gone = [a.id for a in unit.releasing(1)[0].announcements]
        unit.confirm_release(number, desk.now, gone=gone)
        unit.commit()
    desk.expire()
    desk.allocate(DNS, "10.0.0.1")
    outcome = desk.report(report)
    assert (outcome.stale, outcome.made_up, outcome.changed) == (False, 1, frozenset({DNS}))


def came_back(desk: Desk, valid_s: int | None = 300) -> int:
    """An address in quarantine that a node, once judged gone, was found to hold again."""
    number = desk.allocate(WEB, "10.0.0.1")
    report = Agent().add(valid_s=valid_s).report()
    desk.report(report)
    desk.withdraw(WEB)
    with desk.unit() as unit:
        gone = [a.id for a in unit.releasing(1)[0].announcements]
        unit.confirm_release(number, desk.now + timedelta(seconds=10), gone=gone)
        unit.commit()
    desk.report(report)
    return number


def expired(desk: Desk, later_s: float, nodes: set[str] | None = None) -> list[int]:
    desk.now += timedelta(seconds=later_s)
    with desk.unit() as unit:
        found = [a.id for a in unit.expire(10, nodes)]
        unit.commit()
    return found


@pytest.mark.spec("B5", "A21")
def test_a_quarantine_does_not_end_while_a_node_holds_the_address_again(desk: Desk) -> None:
    """Else the address would be another's while that node still answers for it."""
    number = came_back(desk)
    assert expired(desk, 60) == []
    with desk.unit() as unit:
        assert unit.next_expiry() is None, "asking again before the node moved would be of no use"
    desk.report(Agent("node1").add().remove().report())
    assert expired(desk, 0) == [number]


@pytest.mark.spec("B5")
def test_a_silent_node_holds_up_a_quarantine_for_the_lifetime_of_its_address(desk: Desk) -> None:
    number = came_back(desk, valid_s=300)
    with desk.unit() as unit:
        unit.lose_node("node1", "its Lease lapsed")
        unit.commit()
    lost = desk.now
    assert expired(desk, 60) == []
    with desk.unit() as unit:
        assert unit.next_expiry() == lost + timedelta(seconds=300)
    assert expired(desk, 300) == [number]
    with desk.unit() as unit:
        assert unit.lose_node("node1", "again").booked == 0


def test_a_node_that_left_the_cluster_holds_up_no_quarantine(desk: Desk) -> None:
    number = came_back(desk, valid_s=None)
    assert expired(desk, 60, {"node1", "node2"}) == []
    assert expired(desk, 60, {"node2"}) == [number]
