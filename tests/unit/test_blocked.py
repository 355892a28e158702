"""Who waits for what: woken by that and by nothing else, in the order of waiting, and nothing is kept for nobody."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from purelb_sm.allocator.blocked import Blocked
from purelb_sm.domain.addresses import Family
from purelb_sm.domain.outlook import NoneFree
from purelb_sm.domain.sharing import Obstacle
from purelb_sm.domain.views import ServiceKey

ONE = ip_address("10.0.0.1")
HTTP, HTTPS, ITSELF = Obstacle(ONE, "TCP", 80), Obstacle(ONE, "TCP", 443), Obstacle(ONE)
A, B, C = (ServiceKey("test", name) for name in "abc")


@pytest.mark.spec("A29")
def test_the_longest_waiting_comes_first_and_only_who_waits_for_it() -> None:
    blocked = Blocked()
    blocked.note(B, (HTTP,))
    blocked.note(A, (HTTP, HTTPS))
    blocked.note(C, (ITSELF,))
    assert blocked.waiting_for([HTTP]) == [B, A]
    assert blocked.waiting_for([HTTPS, HTTP]) == [A, B]
    assert blocked.waiting_for([Obstacle(ONE, "UDP", 80)]) == []
    # Refused once more, it keeps its place.
    blocked.note(B, (HTTP, HTTPS))
    assert blocked.waiting_for([HTTP]) == [B, A]


@pytest.mark.spec("A29")
def test_who_waits_for_something_else_stands_before_nobody() -> None:
    blocked = Blocked()
    free4, free6 = NoneFree("default", Family.IPV4), NoneFree("default", Family.IPV6)
    blocked.note(A, (free4, HTTP))
    blocked.note(B, (free6,))
    assert blocked.concerned([C, B, A], {free4}) == [C, A], "of C nothing is known"
    assert blocked.concerned([A, B, C], {ITSELF, free6, free4}) == [A, B, C]
    assert blocked.concerned([A, B, C], {ITSELF}) == [C]


def test_who_waits_no_more_is_forgotten() -> None:
    blocked = Blocked()
    for _ in range(3):
        blocked.note(A, (HTTP, HTTPS, HTTP))
    blocked.note(A, (HTTPS,))
    assert blocked.waiting_for([HTTP]) == []
    blocked.note(A, ())
    blocked.note(B, ())
    assert len(blocked) == 0
    assert not blocked._waiters
