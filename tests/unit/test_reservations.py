"""Who may have what is reserved: nobody, or the Service that it is for, and never by taking it from its holder."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purelb_sm.cli.times import parse_until
from purelb_sm.domain import names
from purelb_sm.domain.addresses import AddressRange
from purelb_sm.domain.book import Booked, Hold, Leave, Plan, Reclaim, Refuse
from purelb_sm.domain.choose import World
from purelb_sm.domain.plan import plan
from purelb_sm.domain.reservations import Reservation, Reservations, parse_reserved, range_text
from purelb_sm.domain.states import AllocationState, ServiceState
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import InvalidAddress, Reason
from tests.support.domain import (
    KEY,
    NOW,
    allocation,
    booked_service,
    group,
    holding,
    pools,
    service,
    showing,
    world,
)

OTHER = ServiceKey("shop", "web")


def reservation(text: str, claim: ServiceKey | None = None, number: int = 1, hours: int | None = None) -> Reservation:
    expires_at = None if hours is None else NOW + timedelta(hours=hours)
    return Reservation(
        number, parse_reserved(text), str(claim) if claim else None, "why not", "user/alice", NOW, expires_at
    )


def a_world(
    *those: Reservation, taken: tuple[str, ...] = (), ranges: tuple[str, ...] = ("10.0.0.0-10.0.0.3",)
) -> World:
    table = Reservations(those)
    made = world(group("default", pools(*ranges)), reservations=table)
    made.free.take_all(ip_address(a) for a in taken)
    made.free.reserve(table.ranges)
    return made


def held(made: Plan) -> list[tuple[str, str]]:
    return [(str(a.address), a.reason) for a in made.actions if isinstance(a, Hold)]


def refused(made: Plan) -> tuple[Reason, str] | None:
    return next(((a.reason, a.message) for a in made.actions if isinstance(a, Refuse)), None)


def asking(address: str) -> dict[str, dict[str, str]]:
    return {"annotations": {names.ADDRESSES: address}}


@pytest.mark.spec("A26")
def test_what_is_reserved_is_passed_over() -> None:
    made = plan(
        KEY, service(), Booked(), a_world(reservation("10.0.0.0-10.0.0.1"), reservation("10.0.0.2", OTHER)), NOW
    )
    assert held(made) == [("10.0.0.3", "")]


@pytest.mark.spec("A26")
def test_what_is_reserved_for_a_service_it_gets_before_the_lowest() -> None:
    made = plan(KEY, service(), Booked(), a_world(reservation("10.0.0.2-10.0.0.3", KEY), taken=("10.0.0.2",)), NOW)
    assert held(made) == [("10.0.0.3", "reserved for it")]


@pytest.mark.spec("A26")
@pytest.mark.parametrize("where", ["192.0.2.7", "fd30::7", "10.0.0.1"])
def test_what_is_reserved_elsewhere_or_in_use_keeps_nobody_waiting(where: str) -> None:
    made = plan(KEY, service(), Booked(), a_world(reservation(where, KEY), taken=("10.0.0.1",)), NOW)
    assert held(made) == [("10.0.0.0", "")]


@pytest.mark.spec("A26", "A11")
@pytest.mark.parametrize("claim", [None, OTHER])
@pytest.mark.parametrize("taken", [(), ("10.0.0.2",)])
def test_an_asked_address_that_is_reserved_is_refused_without_saying_for_whom(
    claim: ServiceKey | None, taken: tuple[str, ...]
) -> None:
    view = service(**asking("10.0.0.2"))
    made = plan(KEY, view, Booked(), a_world(reservation("10.0.0.0/29", claim), taken=taken), NOW)
    assert refused(made) == (Reason.ADDRESS_RESERVED, "requested address 10.0.0.2 is reserved")
    assert str(OTHER) not in repr(made)
    assert made.waiting


@pytest.mark.spec("A26", "A10")
def test_an_asked_address_that_is_reserved_for_the_service_is_given() -> None:
    made = plan(KEY, service(**asking("10.0.0.2")), Booked(), a_world(reservation("10.0.0.2", KEY)), NOW)
    assert [address for address, _ in held(made)] == ["10.0.0.2"]


@pytest.mark.spec("A26")
def test_a_reservation_takes_nothing_from_a_holder() -> None:
    view = showing(service(), "10.0.0.2")
    made = plan(KEY, view, holding("10.0.0.2"), a_world(reservation("10.0.0.2", OTHER), taken=("10.0.0.2",)), NOW)
    assert not made.actions
    assert [a.reason for a in made.events] == []


def coming_back(*addresses: str) -> Booked:
    state = AllocationState.QUARANTINED
    return Booked(reclaimable=tuple(allocation(a, state, number=n + 1) for n, a in enumerate(addresses)))


@pytest.mark.spec("A26", "A20")
def test_who_comes_back_does_not_get_what_was_reserved_meanwhile_and_history_says_why() -> None:
    there = a_world(reservation("10.0.0.2", OTHER), taken=("10.0.0.2",))
    made = plan(KEY, service(), coming_back("10.0.0.2"), there, NOW)
    assert held(made) == [("10.0.0.0", "10.0.0.2, which it had, is reserved")]
    asked = plan(KEY, service(**asking("10.0.0.2")), coming_back("10.0.0.2"), there, NOW)
    assert refused(asked) == (Reason.ADDRESS_RESERVED, "requested address 10.0.0.2 is reserved")


@pytest.mark.spec("A26", "A20")
def test_who_comes_back_gets_what_is_reserved_for_it_rather_than_what_it_had() -> None:
    taken = ("10.0.0.1", "10.0.0.2")
    there = a_world(reservation("10.0.0.2-10.0.0.3", KEY), taken=taken)
    assert held(plan(KEY, service(), coming_back("10.0.0.1"), there, NOW)) == [("10.0.0.3", "reserved for it")]
    both = plan(
        KEY, service(), coming_back("10.0.0.1", "10.0.0.2"), a_world(reservation("10.0.0.2", KEY), taken=taken), NOW
    )
    assert [(a.allocation_id, str(a.address)) for a in both.actions if isinstance(a, Reclaim)] == [(2, "10.0.0.2")]


@pytest.mark.spec("A26", "B12")
def test_what_a_service_shows_is_adopted_although_it_is_reserved() -> None:
    there = a_world(reservation("10.0.0.2", OTHER))
    made = plan(KEY, showing(service(), "10.0.0.2"), Booked(), there, NOW)
    assert held(made) == [("10.0.0.2", "adopted from the cluster")]
    assert there.free.reserved("default", parse_reserved("10.0.0.2").family) == 0


@pytest.mark.spec("A26", "A13")
def test_a_choice_that_comes_to_nothing_gives_the_reserved_address_back_as_reserved() -> None:
    there = a_world(reservation("10.0.0.1", KEY), ranges=("10.0.0.0-10.0.0.3", "fd30::1-fd30::1"), taken=("fd30::1",))
    both = service(ip_families=("IPv4", "IPv6"), ip_family_policy="RequireDualStack")
    assert refused(plan(KEY, both, Booked(), there, NOW)) is not None
    assert not there.free.is_free(ip_address("10.0.0.1"))
    assert held(plan(OTHER, service(key=OTHER), Booked(), there, NOW)) == [("10.0.0.0", "")]
    assert held(plan(KEY, service(), Booked(), there, NOW)) == [("10.0.0.1", "reserved for it")]


@pytest.mark.spec("A26")
def test_a_whole_ipv6_subnet_is_reserved_for_one_service() -> None:
    there = a_world(reservation("fd30::/64", KEY), ranges=("10.0.0.0-10.0.0.3", "fd30::/64"))
    six = {"ip_families": ("IPv6",)}
    stranger = plan(OTHER, service(key=OTHER, **six), Booked(), there, NOW)
    assert refused(stranger) == (Reason.POOL_EXHAUSTED, "ServiceGroup default has no free IPv6 address")
    assert held(plan(KEY, service(**six), Booked(), there, NOW)) == [("fd30::", "reserved for it")]


@pytest.mark.spec("A26")
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5), st.booleans()), max_size=8))
def test_the_table_says_what_a_list_would_say(wished: list[tuple[int, int, bool]]) -> None:
    base, those = int(ip_address("10.0.0.0")), list[Reservation]()
    for number, (first, length, own) in enumerate(wished):
        range_ = AddressRange(IPv4Address(base + first), IPv4Address(base + first + length))
        if not any(each.range.overlaps(range_) for each in those):
            expires_at = NOW + timedelta(seconds=first)
            those.append(Reservation(number, range_, str(KEY) if own else None, "x", "y", NOW, expires_at))
    table = Reservations(those)
    for value in range(48):
        address = IPv4Address(base + value)
        found = next((each for each in those if address in each.range), None)
        assert table.at(address) == found
        assert table.keeps_from(address, KEY) is (found is not None and found.claim is None)
        assert table.keeps_from(address, OTHER) is (found is not None)
    assert table.at(ip_address("fd00::1")) is None
    assert list(table.of(KEY)) == sorted((r for r in those if r.claim), key=lambda r: int(r.range.first))
    assert table.next_end() == min((r.expires_at for r in those if r.expires_at), default=None)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.0.0.7", "10.0.0.7"),
        (" 10.0.0.7/32 ", "10.0.0.7"),
        ("10.0.0.7 - 10.0.0.9", "10.0.0.7-10.0.0.9"),
        ("10.0.0.0-10.0.0.255", "10.0.0.0/24"),
        ("fd00::/64", "fd00::/64"),
        ("FD00::0007", "fd00::7"),
    ],
)
def test_what_is_to_be_reserved_as_typed_and_as_shown(text: str, shown: str) -> None:
    assert range_text(parse_reserved(text)) == shown


@pytest.mark.spec("A26", "E1")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "ten",
        "10.0.0.5/24",
        "10.0.0.9-10.0.0.7",
        "10.0.0.7-fd00::9",
        "10.0.0.7-",
        "10.0.0.007",
        "::ffff:10.0.0.1",
        "0.0.0.0/0",
        "::/0",
        "224.0.0.1",
        "127.0.0.1",
        "fe80::1%eth0",
        "10.0.0.0/33",
        "1" * 5000,
    ],
)
def test_nonsense_is_not_reserved(text: str) -> None:
    with pytest.raises(InvalidAddress):
        parse_reserved(text)


def test_an_end_as_people_type_it() -> None:
    assert parse_until("2h", NOW) == NOW + timedelta(hours=2)
    assert parse_until("2026-12-24", NOW).isoformat() == "2026-12-24T00:00:00+00:00"
    assert parse_until("2026-12-24T08:00:00+02:00", NOW).isoformat() == "2026-12-24T06:00:00+00:00"
    for odd in ("soon", "2h ago", "-2h", "", "99999999999999d", "0001-01-01T00:00:00+14:00"):
        with pytest.raises(ValueError, match="time"):
            parse_until(odd, NOW)


def test_a_pending_service_is_not_told_again_while_nothing_changes() -> None:
    text = "requested address 10.0.0.2 is reserved"
    booked = Booked(service=booked_service(ServiceState.PENDING, reason=Reason.ADDRESS_RESERVED.value, message=text))
    made = plan(KEY, service(**asking("10.0.0.2")), booked, a_world(reservation("10.0.0.2")), NOW)
    assert not made.actions
    assert not any(isinstance(a, Leave) for a in made.actions)
