"""An exhausted group says how many of its addresses are in quarantine and until when, and says it once (spec A21)."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address

import pytest

from purelb_sm.domain.addresses import Address, Family
from purelb_sm.domain.book import NOTHING_BOOKED, Booked, Plan, Refuse
from purelb_sm.domain.choose import World
from purelb_sm.domain.outlook import Outlook, Quarantined
from purelb_sm.domain.plan import plan
from purelb_sm.domain.states import ServiceState
from purelb_sm.domain.views import ServiceView
from purelb_sm.errors import Reason
from tests.support.domain import KEY, NOW, booked_service, group, pools, service, world

LATER = NOW + timedelta(minutes=3)


def resting(address: str, minutes: float, group: str = "default") -> Quarantined:
    return Quarantined(group, ip_address(address), NOW + timedelta(minutes=minutes))


def full(*those: Quarantined) -> World:
    known = world(group("default", pools("10.0.0.0/30")), outlook=Outlook(those))
    known.free.take_all(ip_address(f"10.0.0.{n}") for n in range(4))
    return known


def refused(made: Plan) -> str:
    (found,) = [a for a in made.actions if isinstance(a, Refuse)]
    assert found.reason is Reason.POOL_EXHAUSTED
    return found.message


@pytest.mark.spec("A21")
def test_the_refusal_says_how_many_are_in_quarantine_and_until_when() -> None:
    known = full(resting("10.0.0.2", 5), resting("10.0.0.3", 3))
    made = plan(KEY, service(), NOTHING_BOOKED, known, NOW)
    text = "ServiceGroup default has no free IPv4 address; 2 in quarantine, the first until 2026-11-23T12:03:00Z"
    assert refused(made) == text
    assert made.publication is not None
    assert [c.message for c in made.publication.conditions or ()] == [text]
    assert [e.message for e in made.events] == [f"PoolExhausted: {text}"]


@pytest.mark.spec("A21")
def test_without_any_in_quarantine_it_does_not_speak_of_that() -> None:
    elsewhere = (resting("10.0.1.1", 1, "other"), resting("fd00::1", 1))
    assert refused(plan(KEY, service(), NOTHING_BOOKED, full(*elsewhere), NOW)).endswith("no free IPv4 address")


def told(known: World) -> tuple[ServiceView, Booked]:
    """A Service that was refused, as the cluster and the book have it after that."""
    made = plan(KEY, service(), NOTHING_BOOKED, known, NOW)
    assert made.publication is not None
    view = replace(service(), conditions=made.publication.conditions or ())
    row = booked_service(ServiceState.PENDING, reason=Reason.POOL_EXHAUSTED.value, message=refused(made))
    return view, Booked(service=row)


@pytest.mark.spec("A21")
def test_who_is_refused_again_is_told_nothing_as_long_as_the_first_to_come_free_is_the_same() -> None:
    known = full(resting("10.0.0.3", 3))
    view, booked = told(known)
    assert plan(KEY, view, booked, known, LATER).silent
    known.outlook.follow((), [resting("10.0.0.2", 5)])
    assert plan(KEY, view, booked, known, LATER).silent
    known.outlook.follow([ip_address("10.0.0.3")], ())
    assert refused(plan(KEY, view, booked, known, LATER)).endswith(
        "1 in quarantine, the first until 2026-11-23T12:05:00Z"
    )
    known.outlook.follow([ip_address("10.0.0.2")], ())
    assert refused(plan(KEY, view, booked, known, LATER)) == "ServiceGroup default has no free IPv4 address"


def test_the_outlook_is_that_of_a_plain_table() -> None:
    rng = random.Random(7)
    outlook, plain = Outlook(), dict[Address, Quarantined]()
    for step in range(2000):
        address = ip_address(f"10.0.0.{rng.randrange(40)}")
        if address in plain and rng.random() < 0.6:
            del plain[address]
            outlook.follow([address], ())
        elif address not in plain:
            plain[address] = resting(str(address), rng.randrange(1000) + step, rng.choice("ab"))
            outlook.follow((), [plain[address]])
        for name in "ab":
            mine = [each.until for each in plain.values() if each.group == name]
            assert outlook.of(name, Family.IPV4) == (len(mine), min(mine, default=None))
