"""The book: what a plan says happened is there when asked again, and nothing of what was not committed."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from purelb_sm.domain.addresses import AddressRange
from purelb_sm.domain.book import Allocate, Booked, Hold, Leave, Observe, Plan, Reclaim, Refuse, Revive, Withdraw
from purelb_sm.domain.groups import Group, Pool, PoolType
from purelb_sm.domain.states import AllocationState, ServiceState
from purelb_sm.domain.views import Port, ServiceKey
from purelb_sm.errors import Clash, IllegalTransition, InvalidGroup, Reason, StoreError, TermLost
from purelb_sm.store import Book
from purelb_sm.store.audit import Audit, Filter, HistoryRow
from tests.support.book import DNS, HTTP, NOW, WEB, Agent, Desk

ONE, TWO = ip_address("10.0.0.1"), ip_address("10.0.0.2")


def history_of(desk: Desk, **wanted: Any) -> list[HistoryRow]:
    audit = Audit.open(desk.url)
    try:
        return list(audit.history(Filter(**wanted)))
    finally:
        audit.close()


def moves(desk: Desk, kind: str) -> list[tuple[str, str | None, str | None]]:
    return [(r.trigger, r.from_state, r.to_state) for r in history_of(desk) if r.kind == kind]


@pytest.mark.spec("B1")
def test_an_allocation_is_three_transitions_and_three_rows(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    booked = desk.booked(WEB)
    assert booked.service is not None
    assert (booked.service.state, booked.service.group) == (ServiceState.ALLOCATED, "default")
    assert [(a.address, a.claim, a.state) for a in booked.held] == [(ONE, "shop/web", AllocationState.HELD)]
    told = [(r.kind, r.trigger, r.from_state, r.to_state) for r in history_of(desk)]
    assert told == [
        ("leadership", "raise_term", "0", "1"),
        ("service", "observe", None, "pending"),
        ("allocation", "hold", None, "held"),
        ("service", "allocate", "pending", "allocated"),
    ]


@pytest.mark.spec("B1")
def test_a_row_of_history_says_when_who_what_and_for_whom(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    row = next(r for r in history_of(desk) if r.trigger == "hold")
    assert (row.at, row.actor, row.term) == (NOW + timedelta(seconds=1), "allocator-0", 1)
    assert (row.namespace, row.name, row.uid) == ("shop", "web", "uid-web")
    assert (row.address, row.group) == ("10.0.0.1", "default")


def test_what_is_not_committed_never_was(desk: Desk) -> None:
    before = desk.book.head()
    with desk.unit() as unit:
        unit.load({WEB: "u"})
        unit.apply(Plan(WEB, (Observe(WEB, "u"), Hold(WEB, "u", ONE, "g", HTTP), Allocate(WEB, "u", "g"))))
        assert unit.load({WEB: "u"})[WEB].held, "a unit sees its own work"
    assert desk.booked(WEB) == Booked()
    assert desk.book.head() == before


def test_an_error_inside_a_transaction_keeps_nothing(desk: Desk) -> None:
    def fail() -> None:
        with desk.unit() as unit:
            unit.load({WEB: "u"})
            unit.apply(Plan(WEB, (Observe(WEB, "u"),)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert desk.booked(WEB) == Booked()


def test_a_unit_that_failed_cannot_be_committed(desk: Desk) -> None:
    with desk.unit() as unit:
        unit.load({WEB: "u"})
        with pytest.raises(IllegalTransition):
            unit.apply(Plan(WEB, (Observe(WEB, "u"), Allocate(WEB, "u", "g"))))
        with pytest.raises(StoreError, match="failed"):
            unit.commit()
    assert desk.booked(WEB) == Booked()


def test_a_unit_is_over_once_committed(desk: Desk) -> None:
    with desk.unit() as unit:
        unit.commit()
        with pytest.raises(StoreError, match="committed"):
            unit.load({WEB: None})


@pytest.mark.spec("A17")
def test_two_services_never_hold_one_address(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    before = desk.book.head()
    with pytest.raises(Clash):
        desk.allocate(DNS, "10.0.0.1")
    assert desk.booked(DNS) == Booked()
    assert desk.book.head() == before


@pytest.mark.spec("A17")
def test_two_services_of_one_batch_never_hold_one_address(desk: Desk) -> None:
    with desk.unit() as unit:
        unit.load({WEB: "u1", DNS: "u2"})
        unit.apply(Plan(WEB, (Observe(WEB, "u1"), Hold(WEB, "u1", ONE, "g", HTTP), Allocate(WEB, "u1", "g"))))
        unit.apply(Plan(DNS, (Observe(DNS, "u2"), Hold(DNS, "u2", ONE, "g", HTTP), Allocate(DNS, "u2", "g"))))
        with pytest.raises(Clash):
            unit.commit()
    assert desk.booked(WEB) == desk.booked(DNS) == Booked()


@pytest.mark.spec("A17", "A21")
@pytest.mark.parametrize("stage", ["releasing", "quarantined"])
def test_an_address_on_its_way_out_is_nobody_elses_yet(desk: Desk, stage: str) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    desk.withdraw(WEB)
    if stage == "quarantined":
        desk.confirm(number)
    with pytest.raises(Clash):
        desk.allocate(DNS, "10.0.0.1")


def test_a_released_address_can_be_held_by_another(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    desk.withdraw(WEB)
    desk.confirm(number)
    assert desk.expire() == 1
    assert desk.allocate(DNS, "10.0.0.1") != number


def test_an_address_may_end_and_begin_in_one_transaction(desk: Desk) -> None:
    """What ends is written before what begins, whatever the order of the plans."""
    number = desk.allocate(WEB, "10.0.0.1")
    desk.withdraw(WEB)
    desk.confirm(number, quarantine_s=0)
    with desk.unit() as unit:
        unit.load({DNS: "u2"})
        unit.expire(10)
        unit.apply(Plan(DNS, (Observe(DNS, "u2"), Hold(DNS, "u2", ONE, "g", HTTP), Allocate(DNS, "u2", "g"))))
        unit.commit()
    assert [a.address for a in desk.booked(DNS).held] == [ONE]


@pytest.mark.spec("A20")
def test_a_service_made_again_takes_its_address_back(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1", uid="old")
    desk.withdraw(WEB)
    desk.confirm(number)
    booked = desk.booked(WEB, "new")
    assert (booked.service, booked.former) == (None, None)
    assert [(a.id, a.state) for a in booked.reclaimable] == [(number, AllocationState.QUARANTINED)]
    desk.ask_again(WEB, "new")
    held = desk.booked(WEB).held
    assert [(a.id, a.state, a.quarantined_until) for a in held] == [(number, AllocationState.HELD, None)]


@pytest.mark.spec("A20")
def test_a_namesake_replaces_a_service_in_one_plan(desk: Desk) -> None:
    """Deleted and made again before we looked: one live row of the name, and the address stays."""
    number = desk.allocate(WEB, "10.0.0.1", uid="old")
    desk.do(
        WEB,
        Leave(WEB, "old", number, ONE, "replaced"),
        Withdraw(WEB, "old", "replaced"),
        Observe(WEB, "new"),
        Reclaim(WEB, "new", number, ONE, HTTP),
        Allocate(WEB, "new", "default"),
        uid="new",
    )
    booked = desk.booked(WEB)
    assert booked.service is not None
    assert (booked.service.uid, [a.id for a in booked.held]) == ("new", [number])


@pytest.mark.spec("A19")
def test_a_service_that_asks_again_is_the_same_row(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    desk.withdraw(WEB, "type changed")
    booked = desk.booked(WEB, "uid-web")
    assert booked.service is None
    assert booked.former is not None
    assert (booked.former.state, booked.former.reason) == (ServiceState.WITHDRAWN, "type changed")
    desk.ask_again(WEB)
    assert moves(desk, "service")[-2:] == [("revive", "withdrawn", "pending"), ("allocate", "pending", "allocated")]
    assert [a.address for a in desk.booked(WEB).held] == [ONE]


def test_of_two_namesakes_one_leaves_before_the_other_returns(desk: Desk) -> None:
    """Both in one plan, and at no statement are there two live rows of the name."""
    desk.do(WEB, Observe(WEB, "zz"))
    desk.do(WEB, Withdraw(WEB, "zz", "deleted"))
    desk.do(WEB, Observe(WEB, "aa"))
    desk.do(WEB, Withdraw(WEB, "aa", "deleted"), Revive(WEB, "zz"), uid="zz")
    service = desk.booked(WEB).service
    assert service is not None
    assert service.uid == "zz"
    desk.do(WEB, Withdraw(WEB, "zz", "deleted"), Revive(WEB, "aa"), uid="aa")


def test_an_address_is_not_reclaimed_by_another_claim(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    desk.withdraw(WEB)
    with desk.unit() as unit:
        unit.load({WEB: None, DNS: "u2"})
        with pytest.raises(IllegalTransition, match="guard"):
            unit.apply(Plan(DNS, (Observe(DNS, "u2"), Reclaim(DNS, "u2", number, ONE, HTTP))))


def test_a_refusal_is_kept_and_the_wait_counts_from_the_first(desk: Desk) -> None:
    desk.do(WEB, Observe(WEB, "u"), Refuse(WEB, "u", Reason.POOL_EXHAUSTED, "no address is free", "default"))
    first = desk.booked(WEB).service
    desk.do(WEB, Refuse(WEB, "u", Reason.UNKNOWN_SERVICE_GROUP, "there is no group x", "x"))
    service = desk.booked(WEB).service
    assert first is not None
    assert service is not None
    assert (service.state, service.reason, service.message) == (
        ServiceState.PENDING,
        "UnknownServiceGroup",
        "there is no group x",
    )
    assert service.since == first.since
    last = history_of(desk)[-1]
    assert (last.trigger, last.reason, last.details) == (
        "refuse",
        "UnknownServiceGroup",
        {"message": "there is no group x"},
    )


@pytest.mark.spec("A29")
def test_who_has_waited_longest_comes_first(desk: Desk) -> None:
    for name in ("c", "a", "b"):
        key = ServiceKey("shop", name)
        desk.do(key, Observe(key, name), Refuse(key, name, Reason.POOL_EXHAUSTED, "full"))
    desk.allocate(WEB)
    key = ServiceKey("shop", "c")
    desk.do(key, Refuse(key, "c", Reason.POOL_EXHAUSTED, "still full"))
    with desk.unit() as unit:
        assert [service.key.name for service in unit.waiting(2)] == ["c", "a"]


def test_an_allocated_service_is_reallocated_not_allocated(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    desk.do(
        WEB,
        Hold(WEB, "uid-web", TWO, "other", HTTP),
        Leave(WEB, "uid-web", number, ONE, "not asked for any more"),
        Allocate(WEB, "uid-web", "other"),
    )
    booked = desk.booked(WEB)
    assert [a.address for a in booked.held] == [TWO]
    assert [a.address for a in booked.reclaimable] == [ONE]
    assert moves(desk, "service")[-1] == ("reallocate", "allocated", "allocated")
    assert history_of(desk)[-1].details == {"addresses": ["10.0.0.2"]}


def test_a_service_without_an_address_cannot_be_allocated(desk: Desk) -> None:
    with pytest.raises(IllegalTransition, match="guard"):
        desk.do(WEB, Observe(WEB, "u"), Allocate(WEB, "u", "default"))


def test_a_member_cannot_be_withdrawn(desk: Desk) -> None:
    desk.allocate(WEB)
    with pytest.raises(StoreError, match="member"):
        desk.do(WEB, Withdraw(WEB, "uid-web", "deleted"))


def test_a_withdrawn_service_holds_nothing(desk: Desk) -> None:
    desk.allocate(WEB)
    desk.withdraw(WEB)
    with pytest.raises(IllegalTransition, match="withdrawn"):
        desk.do(WEB, Hold(WEB, "uid-web", TWO, "g", HTTP))


def test_nobody_leaves_what_he_is_no_member_of(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    desk.allocate(DNS, "10.0.0.2")
    with desk.unit() as unit:
        unit.load({WEB: "uid-web", DNS: "uid-dns"})
        with pytest.raises(StoreError, match="no member"):
            unit.apply(Plan(DNS, (Leave(DNS, "uid-dns", number, ONE, "?"),)))


def test_a_plan_on_what_was_not_loaded_is_refused(desk: Desk) -> None:
    desk.allocate(WEB)
    with pytest.raises(StoreError, match="not loaded"), desk.unit() as unit:
        unit.apply(Plan(WEB, (Withdraw(WEB, "uid-web", "deleted"),)))


@pytest.mark.spec("A16")
def test_a_shared_address_is_released_with_its_last_member(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1", ports=(Port("TCP", 80),))
    with desk.unit() as unit:
        unit.load({WEB: "uid-web", DNS: "uid-dns"})
        unit.apply(Plan(DNS, (Observe(DNS, "uid-dns"),)))
        # No action for joining exists yet: the rows and the rule for leaving do.
        workspace = unit._ws
        workspace.join(workspace.allocations[number], workspace.services["uid-dns"], (Port("UDP", 53),))
        unit.commit()
    desk.do(DNS, Allocate(DNS, "uid-dns", "default"))
    desk.withdraw(WEB)
    assert [a.state for a in desk.booked(DNS).held] == [AllocationState.HELD]
    assert [r.trigger for r in history_of(desk) if r.kind == "membership"] == ["leave"]
    desk.withdraw(DNS)
    assert moves(desk, "allocation")[-1] == ("begin_release", "held", "releasing")


def test_two_services_never_have_one_port_of_an_address(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1", ports=(Port("TCP", 80),))
    with desk.unit() as unit:
        unit.load({WEB: "uid-web", DNS: "uid-dns"})
        unit.apply(Plan(DNS, (Observe(DNS, "uid-dns"),)))
        workspace = unit._ws
        workspace.join(workspace.allocations[number], workspace.services["uid-dns"], (Port("TCP", 80),))
        with pytest.raises(Clash):
            unit.commit()


@pytest.mark.spec("E6", "D8")
def test_the_old_leader_commits_nothing(desk: Desk) -> None:
    """Paused past its Lease and woken: its term is over, so its first statement is refused."""
    other = Desk(desk.url, "allocator-1")
    try:
        assert other.term == desk.term + 1
        with pytest.raises(TermLost, match="allocator-1"):
            desk.allocate(WEB, "10.0.0.1")
        assert other.booked(WEB) == Booked()
        other.allocate(DNS, "10.0.0.1")
    finally:
        other.close()


def test_every_leader_has_a_term_of_its_own(desk: Desk) -> None:
    terms = [desk.book.raise_term(NOW) for _ in range(3)]
    assert terms == [desk.term + 1, desk.term + 2, desk.term + 3]
    told = [(r.kind, r.trigger, r.to_state, r.reason) for r in history_of(desk)]
    assert told[0] == ("leadership", "raise_term", "1", "the first")
    assert told[-1] == ("leadership", "raise_term", "4", "succeeds allocator-0")


def test_a_book_of_another_cluster_is_refused(desk: Desk) -> None:
    stranger = Book.open(desk.url, cluster="prod", actor="x")
    with pytest.raises(StoreError, match="cluster 'default'"):
        stranger.raise_term(NOW)
    stranger.close()


def test_a_new_book_has_no_term_to_work_under(database_url: str) -> None:
    book = Book.open(database_url, actor="x")
    with pytest.raises(TermLost), book.transaction(1, NOW):
        pass
    book.close()


def test_addresses_in_use_are_told_range_by_range(desk: Desk) -> None:
    kept = desk.allocate(ServiceKey("n", "a"), "10.0.0.9")
    desk.allocate(ServiceKey("n", "b"), "10.0.1.1")
    desk.allocate(ServiceKey("n", "c"), "fd00::5")
    desk.allocate(ServiceKey("n", "d"), "10.0.0.3")
    desk.withdraw(ServiceKey("n", "a"))
    desk.confirm(kept)
    v4 = AddressRange(ip_address("10.0.0.0"), ip_address("10.0.0.255"))
    everything_v6 = AddressRange(ip_address("::1"), ip_address("ffff::"))
    with desk.unit() as unit:
        assert [str(a) for a in unit.held_ranges([v4, everything_v6])] == [
            "10.0.0.3-10.0.0.3",
            "10.0.0.9-10.0.0.9",
            "fd00::5-fd00::5",
        ]


def test_addresses_in_use_are_told_with_their_neighbours(desk: Desk) -> None:
    """And those beside a range are not of it, nor do neighbours of two ranges become one."""
    for number in (1, 2, 3, 4, 6, 7, 9):
        desk.allocate(ServiceKey("n", f"s{number}"), f"10.0.0.{number}")
    ranges = [AddressRange(ip_address(f"10.0.0.{a}"), ip_address(f"10.0.0.{b}")) for a, b in ((2, 3), (4, 7), (10, 20))]
    with desk.unit() as unit:
        found = [str(each) for each in unit.held_ranges(ranges)]
    assert found == ["10.0.0.2-10.0.0.3", "10.0.0.4-10.0.0.4", "10.0.0.6-10.0.0.7"]


def test_live_services_are_those_not_withdrawn(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    desk.allocate(DNS, "10.0.0.2")
    desk.withdraw(DNS)
    with desk.unit() as unit:
        assert [(s.key, s.state) for s in unit.live_services()] == [(WEB, ServiceState.ALLOCATED)]


def test_a_batch_costs_few_statements_whatever_its_size(desk: Desk) -> None:
    counts = []
    for start, size in ((0, 10), (1000, 400)):
        statements: list[str] = []
        keys = {ServiceKey("n", f"s{i}"): f"u{i}" for i in range(start, start + size)}
        with desk.unit() as unit, counting(desk, statements):
            unit.load(keys)
            for i, (key, uid) in enumerate(keys.items()):
                hold = Hold(key, uid, ip_address("10.1.0.0") + start + i, "g", HTTP)
                unit.apply(Plan(key, (Observe(key, uid), hold, Allocate(key, uid, "g"))))
            unit.commit()
        counts.append(len(statements))
    assert counts[0] == counts[1] <= 12


class counting:  # noqa: N801  # reads as a verb where it is used
    """Notes every statement that the book's engine sends."""

    def __init__(self, desk: Desk, into: list[str]) -> None:
        self.engine, self.into = desk.book._engine, into

    def _note(self, _c: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        self.into.append(statement)

    def __enter__(self) -> None:
        from sqlalchemy import event

        event.listen(self.engine, "before_cursor_execute", self._note)

    def __exit__(self, *_error: object) -> None:
        from sqlalchemy import event

        event.remove(self.engine, "before_cursor_execute", self._note)


def test_text_that_a_database_cannot_hold_is_kept_as_well_as_can_be(desk: Desk) -> None:
    desk.do(WEB, Observe(WEB, "u"), Refuse(WEB, "u", Reason.INVALID_REQUEST, "bad \0 and \ud800 " + "x" * 5000))
    service = desk.booked(WEB).service
    assert service is not None
    assert service.message.startswith("bad � and ")
    assert len(service.message) < 3000
    audit = Audit.open(desk.url)
    audit.verify()
    audit.close()


def group(name: str = "default", first: str = "10.0.0.0", generation: int = 1, **more: Any) -> Group:
    start = ip_address(first)
    pools = (Pool(AddressRange(start, start + 255), ip_network(f"{first}/24"), 24),)
    values: dict[str, Any] = {"name": name, "namespace": "purelb-system", "uid": f"g-{name}", "created_at": NOW}
    values |= {"resource_version": "1", "generation": generation, "pool_type": PoolType.LOCAL, "agent_decides": False}
    return Group(**(values | {"pools": pools} | more))


def record(desk: Desk, *groups: Group, **refused: InvalidGroup) -> None:
    with desk.unit() as unit:
        unit.record_groups({g.name: g for g in groups}, refused)
        unit.commit()


@pytest.mark.spec("A8")
def test_accepted_groups_are_remembered(desk: Desk) -> None:
    six = Pool(
        AddressRange(ip_address("fd00::"), ip_address("fd00::ffff:ffff:ffff:ffff")), ip_network("fd00::/64"), 128
    )
    default, other = group(), group("other", "10.0.9.0")
    wide = group("default", pools=(six, *default.pools))
    record(desk, wide, other, broken=InvalidGroup("spec", "x", "is not a mapping"))
    with desk.unit() as unit:
        assert unit.accepted_pools() == {"default": wide.pools, "other": other.pools}


def test_groups_are_written_only_when_they_changed(desk: Desk) -> None:
    broken = InvalidGroup("spec.local.v4pools[0].pool", "10.0.0", "is neither a CIDR nor first-last")
    record(desk, group(), bad=broken)
    record(desk, group(resource_version="2"), bad=broken)
    assert [(r.trigger, r.group) for r in history_of(desk) if r.kind == "group"] == [
        ("refuse", "bad"),
        ("accept", "default"),
    ]
    record(desk, group(generation=2, quarantine_s=0.0), bad=broken)
    record(desk)
    with desk.unit() as unit:
        assert unit.accepted_pools() == {}
    told = [(r.trigger, r.group) for r in history_of(desk) if r.kind == "group"]
    assert told[2:] == [("accept", "default"), ("remove", "bad"), ("remove", "default")]


def test_pools_that_are_read_otherwise_are_written_though_the_object_is_the_same(desk: Desk) -> None:
    """A newer program may read an object differently than the one that wrote the book."""
    record(desk, group())
    narrow = Pool(AddressRange(ip_address("10.0.0.1"), ip_address("10.0.0.9")), ip_network("10.0.0.0/24"), 24)
    record(desk, group(pools=(narrow,)))
    with desk.unit() as unit:
        assert unit.accepted_pools() == {"default": (narrow,)}


def test_a_refused_group_is_not_accepted_any_more(desk: Desk) -> None:
    record(desk, group())
    record(desk, default=InvalidGroup("spec", "", "has no pool"))
    with desk.unit() as unit:
        assert unit.accepted_pools() == {}


def test_a_revived_service_starts_without_its_old_reasons(desk: Desk) -> None:
    desk.do(WEB, Observe(WEB, "u"), Refuse(WEB, "u", Reason.POOL_EXHAUSTED, "full"))
    desk.do(WEB, Withdraw(WEB, "u", "deleted"))
    desk.do(WEB, Revive(WEB, "u"))
    service = desk.booked(WEB).service
    assert service is not None
    assert (service.state, service.reason, service.message) == (ServiceState.PENDING, "", "")


@pytest.mark.spec("B5")
def test_a_service_that_takes_back_an_announced_address_is_announcing_at_once(desk: Desk) -> None:
    """The node never let go of it, so nothing will be reported: the book must see it by itself."""
    desk.allocate(WEB, "10.0.0.1")
    desk.report(Agent().add().report())
    desk.withdraw(WEB)
    desk.ask_again(WEB)
    service = desk.booked(WEB).service
    assert service is not None
    assert service.state is ServiceState.ANNOUNCING


def test_a_reallocated_service_stays_announcing_by_the_address_it_keeps(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.1")
    desk.report(Agent().add().report())
    desk.do(WEB, Hold(WEB, "uid-web", ip_address("fd00::1"), "default", HTTP), Allocate(WEB, "uid-web", "default"))
    assert moves(desk, "service")[-2:] == [
        ("reallocate", "announcing", "allocated"),
        ("announce", "allocated", "announcing"),
    ]


def test_a_service_that_gives_up_its_announced_address_falls_silent(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.1")
    desk.do(WEB, Hold(WEB, "uid-web", TWO, "default", HTTP), Allocate(WEB, "uid-web", "default"))
    desk.report(Agent().add().report())
    desk.do(WEB, Leave(WEB, "uid-web", number, ONE, "not asked for any more"))
    assert moves(desk, "service")[-1] == ("fall_silent", "announcing", "allocated")
