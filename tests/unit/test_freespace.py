"""Free addresses as intervals: always what a plain set would say, at no cost for the size of the pool."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purelb_sm.domain.addresses import AddressRange, Family
from purelb_sm.domain.freespace import FreeSpace
from purelb_sm.domain.intervals import IntervalSet
from tests.support.domain import group, pools


class Crumbs(IntervalSet):
    """Blocks so small that there are many of them."""

    BLOCK = 2
    __slots__ = ()


KINDS = st.sampled_from((IntervalSet, Crumbs))


@given(KINDS, st.lists(st.tuples(st.booleans(), st.integers(-2, 22)), max_size=60))
@settings(max_examples=400)
def test_an_interval_set_is_a_set(kind: type[IntervalSet], moves: list[tuple[bool, int]]) -> None:
    intervals, model = kind(0, 20), set(range(21))
    for add, value in moves:
        if add and 0 <= value <= 20:
            assert intervals.add(value) is (value not in model)
            model.add(value)
        elif not add:
            assert intervals.remove(value) is (value in model)
            model.discard(value)
        assert intervals.size == len(model)
        for floor in (0, 7):
            assert intervals.lowest(floor, skip_edges=False) == min((n for n in model if n >= floor), default=None)
        assert all((v in intervals) is (v in model) for v in range(-1, 23))


def drain(free: FreeSpace) -> list[IPv4Address]:
    got = []
    while (address := free.lowest("g", Family.IPV4)) is not None:
        assert isinstance(address, IPv4Address)
        assert free.take(address)
        got.append(address)
    return got


@pytest.mark.spec("A5")
def test_the_lowest_free_address_of_the_first_range_that_has_one() -> None:
    free = FreeSpace({"g": group("g", pools("172.31.1.20-172.31.1.21", "172.31.1.0/30"))})
    assert [int(a) & 0xFF for a in drain(free)] == [20, 21, 0, 1, 2, 3]
    free.give_back(ip_address("172.31.1.2"))
    free.give_back(ip_address("172.31.1.21"))
    assert str(free.lowest("g", Family.IPV4)) == "172.31.1.21"


@pytest.mark.spec("A5")
def test_first_and_last_are_given_out_unless_the_group_says_otherwise() -> None:
    plain = FreeSpace({"g": group("g", pools("172.31.1.0/24"))})
    assert [int(a) & 0xFF for a in drain(plain)] == list(range(256))
    careful = FreeSpace({"g": group("g", pools("172.31.1.0/24", avoidFirstLast=True))})
    assert [int(a) & 0xFF for a in drain(careful)] == list(range(1, 255))


@pytest.mark.spec("A5")
def test_avoided_octets_in_the_middle_of_a_large_pool_are_skipped() -> None:
    spec = {"local": {"v4pools": [{"subnet": "10.0.0.0/8", "pool": "10.0.0.254-10.0.2.1"}], "avoidFirstLast": True}}
    got = drain(FreeSpace({"g": group("g", spec)}))
    assert len(got) == 1 + 254 + 1
    assert IPv4Address("10.0.0.255") not in got
    assert IPv4Address("10.0.1.0") not in got


@pytest.mark.spec("A5")
def test_what_is_avoided_is_the_edges_of_the_subnet_and_of_ipv6_nothing_else() -> None:
    spec = {
        "remote": {
            "v4pools": [{"subnet": "10.0.0.8/29", "pool": "10.0.0.8/29"}],
            "v6pools": [
                {"subnet": "fd00::/126", "pool": "fd00::/126"},
                {"subnet": "fd00:1::/64", "pool": "fd00:1::/120"},
            ],
            "avoidFirstLast": True,
        }
    }
    free = FreeSpace({"g": group("g", spec)})
    assert [int(a) & 0xFF for a in drain(free)] == [9, 10, 11, 12, 13, 14]
    found = []
    while (address := free.lowest("g", Family.IPV6)) is not None:
        found.append(address)
        assert free.take(address)
    assert [str(a) for a in found[:3]] == ["fd00::1", "fd00::2", "fd00:1::1"]
    assert str(found[-1]) == "fd00:1::ff"
    # Asked for by name, they are given: whoever names one means it.
    assert free.take(ip_address("10.0.0.8"))


@given(st.lists(st.integers(0, 40), max_size=50), st.lists(st.integers(0, 40), max_size=50))
def test_rebuilding_from_what_is_held_gives_the_same_space(take: list[int], back: list[int]) -> None:
    known = {"g": group("g", pools("172.31.1.0-172.31.1.40"))}
    base = int(ip_address("172.31.1.0"))
    lived: FreeSpace = FreeSpace(known)
    held: set[int] = set()
    for n in take:
        assert lived.take(IPv4Address(base + n)) is (n not in held)
        held.add(n)
    lived.lowest("g", Family.IPV4)
    for n in back:
        assert lived.give_back(IPv4Address(base + n)) is (n in held)
        held.discard(n)
    one_by_one, in_ranges = FreeSpace(known), FreeSpace(known)
    one_by_one.take_all(IPv4Address(base + n) for n in held)
    # Some of them together, and one range that reaches beyond the pool.
    in_ranges.take_ranges(span(n, n + 1) for n in held if n + 1 in held)
    in_ranges.take_ranges(span(n, n if n < 40 else 99) for n in held)
    for rebuilt in (one_by_one, in_ranges):
        assert lived.lowest("g", Family.IPV4) == rebuilt.lowest("g", Family.IPV4)
        assert lived.counts("g", Family.IPV4) == rebuilt.counts("g", Family.IPV4) == (41, 41 - len(held))
        assert rebuilt.spaces("g", Family.IPV4)[0].used == len(held)


def test_an_ipv6_subnet_costs_one_interval() -> None:
    free = FreeSpace({"g": group("g", pools("fd00::/64"))})
    assert str(free.lowest("g", Family.IPV6)) == "fd00::"
    assert free.take(ip_address("fd00::dead:beef"))
    assert not free.take(ip_address("fd00::dead:beef"))
    assert free.group_of(ip_address("fd00::1")) == "g"
    assert free.group_of(ip_address("fd01::1")) is None
    assert free.counts("g", Family.IPV6) == (2**64, 2**64 - 1)


PIECES = st.lists(st.tuples(st.integers(-3, 23), st.integers(0, 8)), max_size=4)


@given(KINDS, st.lists(st.tuples(st.booleans(), PIECES), max_size=12))
@settings(max_examples=400)
def test_an_interval_set_takes_and_gives_whole_intervals_as_a_set_does(
    kind: type[IntervalSet],
    moves: list[tuple[bool, list[tuple[int, int]]]],
) -> None:
    intervals, model = kind(), set[int]()
    for joins, pieces in moves:
        if joins:
            inside = sorted({n for low, length in pieces for n in range(low, low + length + 1)})
            intervals.join([(n, n) for n in inside])
            model |= set(inside)
        else:
            for low, length in pieces:
                taken = [n for a, b in intervals.cut(low, low + length) for n in range(a, b + 1)]
                assert taken == sorted(model & set(range(low, low + length + 1)))
                model -= set(taken)
        listed = list(intervals)
        assert [n for low, high in listed for n in range(low, high + 1)] == sorted(model)
        assert all(high + 1 < low for (_, high), (low, _) in pairwise(listed))
        assert intervals.size == len(model)


BASE = int(ip_address("172.31.1.0"))
SPANS = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted)
STEPS = st.one_of(
    st.tuples(st.just("take"), st.integers(0, 30)),
    st.tuples(st.just("back"), st.integers(0, 30)),
    st.tuples(st.just("reserve"), SPANS),
    st.tuples(st.just("lift"), st.lists(SPANS, max_size=3)),
)


def span(first: int, last: int) -> AddressRange:
    return AddressRange(IPv4Address(BASE + first), IPv4Address(BASE + last))


@pytest.mark.spec("A26")
@given(st.lists(STEPS, max_size=40))
@settings(max_examples=300)
def test_what_is_reserved_is_never_free_and_is_free_again_when_lifted_unless_held(steps: list[tuple[str, Any]]) -> None:
    """Against plain sets: two pools with a gap that no pool has (11 to 14)."""
    free = FreeSpace({"g": group("g", pools("172.31.1.15-172.31.1.25", "172.31.1.2-172.31.1.10"))})
    pool = {*range(2, 11), *range(15, 26)}
    held, reserved = set[int](), set[int]()
    for verb, what in steps:
        if verb == "take":
            assert free.take(IPv4Address(BASE + what)) is (what in pool - held)
            held |= {what} & pool
        elif verb == "back":
            assert free.give_back(IPv4Address(BASE + what)) is (what in held)
            held.discard(what)
        elif verb == "reserve":
            free.reserve([span(*what)])
            reserved |= set(range(what[0], what[1] + 1)) & pool
        else:
            staying = {n for first, last in what for n in range(first, last + 1)} & reserved
            opened = free.lift_except([span(*each) for each in what], 1000)
            assert {int(a) - BASE for a in opened} == reserved - staying - held
            reserved = staying
        may = pool - held - reserved
        first_range = [n for n in may if n >= 15] or may
        lowest = free.lowest("g", Family.IPV4)
        assert (None if lowest is None else int(lowest) - BASE) == min(first_range, default=None)
        assert free.counts("g", Family.IPV4) == (20, len(may))
        assert free.reserved("g", Family.IPV4) == len(reserved - held)
        assert {n for n in range(31) if free.is_free(IPv4Address(BASE + n))} == may
        for first, last in ((0, 30), (3, 3), (8, 16)):
            kept = {n for n in reserved - held if first <= n <= last}
            found = free.lowest_kept("g", span(first, last))
            got = None if found is None else int(found) - BASE
            assert got == min([n for n in kept if n >= 15] or kept, default=None)


@pytest.mark.spec("A26")
def test_an_ipv6_subnet_reserved_whole_costs_one_interval() -> None:
    free = FreeSpace({"g": group("g", pools("fd00::/64"))})
    free.take(ip_address("fd00::5"))
    whole = AddressRange(ip_address("fd00::"), ip_address("fd00::ffff:ffff:ffff:ffff"))
    free.reserve([whole])
    assert free.lowest("g", Family.IPV6) is None
    assert free.counts("g", Family.IPV6) == (2**64, 0)
    assert free.reserved("g", Family.IPV6) == 2**64 - 1
    free.give_back(ip_address("fd00::5"))
    opened = free.lift_except([], 3)
    assert [str(a) for a in opened] == ["fd00::", "fd00::1", "fd00::2"]
    assert free.counts("g", Family.IPV6) == (2**64, 2**64)


@pytest.mark.spec("A26")
def test_an_avoided_address_is_given_where_it_is_reserved_by_itself() -> None:
    free = FreeSpace({"g": group("g", pools("172.31.1.0/24", avoidFirstLast=True))})
    free.reserve([span(0, 3)])
    assert str(free.lowest_kept("g", span(0, 3))) == "172.31.1.1"
    assert str(free.lowest_kept("g", span(0, 0))) == "172.31.1.0"


def test_a_pool_in_a_million_pieces_is_kept_in_small_blocks() -> None:
    """What moves when an interval appears or goes is bounded, whatever the number of the others."""
    intervals = IntervalSet(0, 200_000)
    for value in range(1, 200_000, 2):
        intervals.remove(value)
    assert max(map(len, intervals._lows)) <= 2 * IntervalSet.BLOCK
    intervals.join([(value, value) for value in range(1, 100_000, 4)])
    assert max(map(len, intervals._lows)) <= 2 * IntervalSet.BLOCK
    for value in range(200_001):
        intervals.remove(value)
    assert list(intervals) == []
    assert intervals._firsts == []
    assert intervals.add(5)
