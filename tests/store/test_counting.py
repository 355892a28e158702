"""Counts of allocations follow every move of a transaction, and addresses that no range has any more are found."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_address

import pytest

from purelb_sm.domain.addresses import AddressRange, Family, parse_range
from purelb_sm.domain.book import Leave, Plan, Withdraw
from purelb_sm.domain.groups import Group
from purelb_sm.domain.states import AllocationState
from purelb_sm.store.audit import Audit, Filter
from purelb_sm.store.counting import Interval, intervals, subtract
from tests.support.book import DNS, WEB, Desk
from tests.support.domain import group, pools

HELD, RELEASING, QUARANTINED = AllocationState.HELD, AllocationState.RELEASING, AllocationState.QUARANTINED


def counts(desk: Desk) -> dict[tuple[str, Family, AllocationState], int]:
    with desk.unit(desk.now) as unit:
        return unit.live_counts()


def test_a_transaction_says_by_how_much_it_changes_the_counts(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.7")
    desk.allocate(DNS, "fd00::7")
    assert counts(desk) == {("default", Family.IPV4, HELD): 1, ("default", Family.IPV6, HELD): 1}
    tallies = []
    desk.withdraw(WEB)
    with desk.unit() as unit:
        (releasing,) = unit.releasing(10)
        unit.confirm_release(releasing.allocation.id, desk.now)
        unit.commit()
        tallies.append({k: n for k, n in unit.tally.items() if n})
    with desk.unit(desk.now + timedelta(seconds=1)) as unit:
        unit.expire(10)
        unit.commit()
        tallies.append({k: n for k, n in unit.tally.items() if n})
    assert tallies == [
        {("default", Family.IPV4, RELEASING): -1, ("default", Family.IPV4, QUARANTINED): 1},
        {("default", Family.IPV4, QUARANTINED): -1},
    ]
    assert counts(desk) == {("default", Family.IPV6, HELD): 1}


def ranges(*texts: str) -> list[AddressRange]:
    return [parse_range(text)[0] for text in texts]


@pytest.mark.spec("A22")
def test_addresses_outside_every_range_are_found_in_both_families(desk: Desk) -> None:
    for number, address in enumerate(("10.0.0.7", "10.0.1.7", "fd00::7", "fd01::7", "255.0.0.1", "::2")):
        desk.allocate(WEB._replace(name=f"s{number}"), address)
    with desk.unit(desk.now) as unit:
        assert unit.orphans(ranges("10.0.0.0/24", "fd00::/64")) == {
            ip_address(a): "default" for a in ("10.0.1.7", "fd01::7", "255.0.0.1", "::2")
        }
        assert len(unit.orphans([])) == 6
        assert unit.orphans(ranges("10.0.0.7-10.0.0.7", "10.0.1.0/24", "fd00::/15", "255.0.0.0/8", "::/64")) == {}


@pytest.mark.spec("A22")
def test_the_history_says_since_when_an_address_is_an_orphan_and_when_a_range_has_it_again(desk: Desk) -> None:
    def record(*texts: str) -> None:
        known: dict[str, Group] = {"default": group("default", pools(*texts))} if texts else {}
        with desk.unit() as unit:
            unit.record_groups(known, {})
            unit.commit()

    record("10.0.0.0/24")
    desk.allocate(WEB, "10.0.0.7")
    desk.allocate(DNS, "10.0.0.200")
    record("10.0.0.0/25")
    record("10.0.0.0/25", "10.0.1.0/24")
    record()
    record("10.0.0.0/24")
    audit = Audit.open(desk.url)
    try:
        rows = [r for r in audit.history(Filter(group="default")) if r.kind == "group" and r.address]
        found = [(r.trigger, r.address, f"{r.namespace}/{r.name}") for r in rows]
        assert found == [
            ("orphan", "10.0.0.200", str(DNS)),
            ("orphan", "10.0.0.7", str(WEB)),
            ("cover", "10.0.0.7", str(WEB)),
            ("cover", "10.0.0.200", str(DNS)),
        ]
        assert audit.verify().rows
    finally:
        audit.close()


@pytest.mark.parametrize(
    ("wanted", "without", "left"),
    [
        ([(0, 9)], [], [(0, 9)]),
        ([(0, 9)], [(0, 9)], []),
        ([(0, 9)], [(3, 4), (6, 6)], [(0, 2), (5, 5), (7, 9)]),
        ([(0, 9)], [(0, 0), (9, 20)], [(1, 8)]),
        ([(0, 4), (6, 9)], [(3, 7)], [(0, 2), (8, 9)]),
        ([(5, 6), (8, 9)], [(0, 1), (9, 9)], [(5, 6), (8, 8)]),
        ([(5, 6)], [(0, 20)], []),
        ([], [(0, 20)], []),
    ],
)
def test_what_is_left_of_intervals(wanted: list[Interval], without: list[Interval], left: list[Interval]) -> None:
    assert subtract(wanted, without) == left


def test_neighbouring_ranges_are_one_interval_and_families_do_not_mix() -> None:
    found = intervals(ranges("10.0.1.0/24", "10.0.0.0/24", "fd00::/64"))
    assert [last - first + 1 for first, last in found] == [512, 2**64]


def test_nothing_is_counted_twice_when_one_transaction_moves_an_address_twice(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.7")
    with desk.unit() as unit:
        unit.load({WEB: None})
        leave = Leave(WEB, f"uid-{WEB.name}", number, ip_address("10.0.0.7"), "gone")
        unit.apply(Plan(WEB, (leave, Withdraw(WEB, f"uid-{WEB.name}", "gone"))))
        (releasing,) = unit.releasing(10)
        unit.confirm_release(releasing.allocation.id, desk.now)
        unit.commit()
        changes = {k: n for k, n in unit.tally.items() if n}
    assert changes == {("default", Family.IPV4, HELD): -1, ("default", Family.IPV4, QUARANTINED): 1}
