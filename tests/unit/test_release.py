"""Phase two of a release: what holds it up, and what does not."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from purelb_sm.domain.addresses import Address
from purelb_sm.domain.book import BookedAnnouncement, Releasing
from purelb_sm.domain.release import may_confirm
from purelb_sm.domain.states import AllocationState, AnnouncementState
from purelb_sm.domain.views import ServiceKey
from tests.support.domain import KEY, NOW, allocation

SETTLE_S = 3.0
LATER = NOW + timedelta(seconds=SETTLE_S)


def announced(state: AnnouncementState, *, valid_s: int | None = 300, since: datetime = NOW) -> BookedAnnouncement:
    address = allocation("172.30.250.53").address
    return BookedAnnouncement(1, 1, address, "node1", "eth0", 24, state, since, valid_s)


def releasing(*announcements: BookedAnnouncement) -> Releasing:
    return Releasing(allocation("172.30.250.53", AllocationState.RELEASING), NOW, (KEY,), announcements)


def nobody_shows(_: ServiceKey, __: Address) -> bool:
    return False


@pytest.mark.spec("B5")
def test_confirmed_when_no_status_shows_it_and_no_node_holds_it() -> None:
    assert may_confirm(releasing(), nobody_shows, {"node1"}, SETTLE_S, LATER).confirmed


@pytest.mark.spec("B5")
def test_a_service_that_still_shows_the_address_holds_it_up_for_ever() -> None:
    verdict = may_confirm(releasing(), lambda *_: True, set(), SETTLE_S, NOW + timedelta(days=365))
    assert not verdict.confirmed
    assert "test/echo" in verdict.waits_for


@pytest.mark.spec("B5")
def test_an_agent_that_added_it_a_moment_ago_gets_time_to_report() -> None:
    verdict = may_confirm(releasing(), nobody_shows, {"node1"}, SETTLE_S, LATER - timedelta(milliseconds=1))
    assert not verdict.confirmed
    assert verdict.again_at == LATER


@pytest.mark.spec("B5")
@pytest.mark.parametrize(
    ("state", "confirmed"),
    [
        (AnnouncementState.ADDING, False),
        (AnnouncementState.PRESENT, False),
        (AnnouncementState.REMOVING, False),
        (AnnouncementState.LOST, False),
        (AnnouncementState.FAILED, True),
        (AnnouncementState.ABSENT, True),
    ],
)
def test_a_node_that_may_hold_it_holds_it_up(state: AnnouncementState, confirmed: bool) -> None:
    assert may_confirm(releasing(announced(state)), nobody_shows, {"node1"}, SETTLE_S, LATER).confirmed is confirmed


@pytest.mark.spec("B5")
def test_a_silent_nodes_address_counts_until_its_lifetime_is_over() -> None:
    lost = releasing(announced(AnnouncementState.LOST))
    before = may_confirm(lost, nobody_shows, {"node1"}, SETTLE_S, NOW + timedelta(seconds=299))
    assert before.again_at == NOW + timedelta(seconds=300)
    assert not before.confirmed
    assert may_confirm(lost, nobody_shows, {"node1"}, SETTLE_S, NOW + timedelta(seconds=300)).confirmed


@pytest.mark.spec("B5")
def test_a_silent_nodes_permanent_address_counts_until_the_node_leaves_the_cluster() -> None:
    lost = releasing(announced(AnnouncementState.LOST, valid_s=None))
    far = NOW + timedelta(days=30)
    assert not may_confirm(lost, nobody_shows, {"node1"}, SETTLE_S, far).confirmed
    assert not may_confirm(lost, nobody_shows, None, SETTLE_S, far).confirmed
    assert may_confirm(lost, nobody_shows, {"node2"}, SETTLE_S, far).confirmed
