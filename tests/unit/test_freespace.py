"""Free addresses as intervals: always what a plain set would say, at no cost for the size of the pool."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purelb_sm.domain.addresses import Family
from purelb_sm.domain.freespace import FreeSpace, IntervalSet
from tests.support.domain import group, pools


@given(st.lists(st.tuples(st.booleans(), st.integers(-2, 22)), max_size=60))
@settings(max_examples=200)
def test_an_interval_set_is_a_set(moves: list[tuple[bool, int]]) -> None:
    intervals, model = IntervalSet(0, 20), set(range(21))
    for add, value in moves:
        if add and 0 <= value <= 20:
            assert intervals.add(value) is (value not in model)
            model.add(value)
        elif not add:
            assert intervals.remove(value) is (value in model)
            model.discard(value)
        assert intervals.size == len(model)
        assert intervals.lowest(0, skip_edges=False) == min(model, default=None)
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


def test_avoided_octets_in_the_middle_of_a_large_pool_are_skipped() -> None:
    spec = {"local": {"v4pools": [{"subnet": "10.0.0.0/8", "pool": "10.0.0.254-10.0.2.1"}], "avoidFirstLast": True}}
    got = drain(FreeSpace({"g": group("g", spec)}))
    assert len(got) == 1 + 254 + 1
    assert IPv4Address("10.0.0.255") not in got
    assert IPv4Address("10.0.1.0") not in got


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
    rebuilt = FreeSpace(known)
    rebuilt.take_all(IPv4Address(base + n) for n in held)
    assert lived.lowest("g", Family.IPV4) == rebuilt.lowest("g", Family.IPV4)
    assert lived.counts("g", Family.IPV4) == rebuilt.counts("g", Family.IPV4) == (41, 41 - len(held))


def test_an_ipv6_subnet_costs_one_interval() -> None:
    free = FreeSpace({"g": group("g", pools("fd00::/64"))})
    assert str(free.lowest("g", Family.IPV6)) == "fd00::"
    assert free.take(ip_address("fd00::dead:beef"))
    assert not free.take(ip_address("fd00::dead:beef"))
    assert free.group_of(ip_address("fd00::1")) == "g"
    assert free.group_of(ip_address("fd01::1")) is None
    assert free.counts("g", Family.IPV6) == (2**64, 2**64 - 1)
