"""What a Service's condition `Announced` says, and when its owner is told of silence."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address

import pytest

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.announced import Announcers, HeldAddress, Silence, Told, silence, tell_announced
from purelb_sm.domain.publication import (
    condition_allocated,
    condition_refused,
    current_condition,
    publish_allocated,
    publish_refused,
    publish_withdrawn,
)
from purelb_sm.domain.views import Condition, ServiceView
from purelb_sm.errors import Reason
from tests.support.domain import KEY, NOW, service, showing
from tests.support.office import taken

V4, V6, OTHER = "172.30.250.53", "fd30:250::53", "172.30.250.54"
LATER = NOW + timedelta(seconds=40)
ALLOCATED = Condition(names.CONDITION_ALLOCATED, "True", "Allocated", "172.30.250.53 from pool default", "T", 1)


def shown(*addresses: str) -> ServiceView:
    return replace(showing(service(), *addresses), conditions=(ALLOCATED,))


def by(nodes: int, *silent: str, of: tuple[str, ...] = (V4,), node: str = "node3") -> Announcers:
    held = tuple(HeldAddress(ip_address(a), NOW if a in silent else None) for a in of)
    return Announcers(KEY, "uid-1", held, nodes, node if nodes else "", "enp1s0" if nodes else "")


def addresses(*texts: str) -> tuple[Address, ...]:
    return tuple(ip_address(text) for text in texts)


def said(view: ServiceView, made: Told | None) -> ServiceView:
    """The Service once the write is taken."""
    assert made is not None
    assert (made.publication.ingress, made.publication.annotations) == (None, {}), "it is the condition alone"
    return taken(view, made.publication, "11")


def verdict(view: ServiceView) -> tuple[str, str, str]:
    condition = current_condition(view, names.CONDITION_ANNOUNCED)
    assert condition is not None
    return condition.status, condition.reason, condition.message


CASES = [
    (by(1), (), ("True", "Announced", "by node3 (enp1s0)")),
    (by(5), (), ("True", "Announced", "by 5 nodes")),
    (by(0, V4), (V4,), ("False", "NotAnnounced", f"no node announces {V4}")),
    (by(1, V6, of=(V4, V6)), (V6,), ("True", "PartlyAnnounced", f"by node3 (enp1s0); no node announces {V6}")),
    (by(1, V6, of=(V4, V6)), (), ("True", "Announced", "by node3 (enp1s0)")),
    (by(0, V4, V6, of=(V4, V6)), (V4, V6), ("False", "NotAnnounced", f"no node announces {V4}, {V6}")),
]


@pytest.mark.spec("C16")
@pytest.mark.parametrize(("found", "overdue", "wanted"), CASES)
def test_the_condition_says_by_how_many_nodes_and_which_address_is_silent(
    found: Announcers, overdue: tuple[str, ...], wanted: tuple[str, str, str]
) -> None:
    view = shown(*(str(held.address) for held in found.addresses))
    after = said(view, tell_announced(view, found, addresses(*overdue), NOW))
    assert verdict(after) == wanted
    assert ALLOCATED in after.conditions
    assert tell_announced(after, found, addresses(*overdue), LATER) is None, "it is not said twice"


@pytest.mark.spec("C16")
def test_what_was_allocated_a_moment_ago_costs_no_second_write() -> None:
    assert tell_announced(shown(V4), by(0, V4), (), NOW) is None


@pytest.mark.spec("C16")
def test_who_is_announced_no_more_is_told_at_once_and_warned_when_it_lasts() -> None:
    view = shown(V4)
    view = said(view, tell_announced(view, by(1), (), NOW))
    made = tell_announced(view, by(0, V4), (), LATER)
    assert made is not None
    assert made.events == ()
    view = said(view, made)
    assert verdict(view) == ("False", "NotAnnounced", "no node announces it")
    made = tell_announced(view, by(0, V4), addresses(V4), LATER)
    assert made is not None
    (note,) = made.events
    assert (note.type, note.reason) == ("Warning", "NotAnnounced")
    assert note.message.startswith(f"No node announces {V4}. What would help: a live node in the subnet")


@pytest.mark.spec("C16")
def test_the_time_of_the_last_transition_moves_with_the_status_only() -> None:
    def since(view: ServiceView) -> str:
        condition = current_condition(view, names.CONDITION_ANNOUNCED)
        assert condition is not None
        return condition.last_transition_time

    view = shown(V4)
    view = said(view, tell_announced(view, by(1), (), NOW))
    first = since(view)
    view = said(view, tell_announced(view, by(1, node="node4"), (), LATER))
    assert since(view) == first
    view = said(view, tell_announced(view, by(0, V4), (), LATER))
    assert since(view) != first


@pytest.mark.spec("C16")
@pytest.mark.parametrize(
    ("before", "now_silent", "events"),
    [
        ((V4,), (V4, V6), 1),
        ((V4, V6), (V6,), 0),
        ((V4, V6), (V4,), 0),
        ((OTHER,), (V4,), 1),
        (("172.30.250.5",), ("172.30.250.53",), 1),
        (("172.30.250.53",), ("172.30.250.5",), 1),
    ],
)
def test_an_event_tells_of_addresses_that_it_has_not_told_of_in_this_episode(
    before: tuple[str, ...], now_silent: tuple[str, ...], events: int
) -> None:
    view = shown(V4, V6)
    view = said(view, tell_announced(view, by(0, *before, of=before), addresses(*before), NOW))
    made = tell_announced(view, by(1, *now_silent, of=now_silent), addresses(*now_silent), LATER)
    assert made is not None
    assert len(made.events) == events


@pytest.mark.spec("C16")
def test_after_an_end_of_the_silence_the_next_one_is_told_again() -> None:
    view = shown(V4)
    for _ in range(2):
        made = tell_announced(view, by(0, V4), addresses(V4), NOW)
        assert made is not None
        assert len(made.events) == 1
        view = said(view, made)
        view = said(view, tell_announced(view, by(1), (), NOW))


def test_a_service_with_many_addresses_is_told_of_in_a_bounded_sentence() -> None:
    many = tuple(f"fd30:250::{n:x}" for n in range(1, 60))
    view = shown(*many)
    view = said(view, tell_announced(view, by(0, *many, of=many), addresses(*many), NOW))
    message = verdict(view)[2]
    assert message.endswith("fd30:250::6 and 53 more")
    assert tell_announced(view, by(0, *many, of=many), addresses(*many), NOW) is None


@pytest.mark.spec("C16", "C19")
@pytest.mark.parametrize(
    "view",
    [replace(shown(V4), uid="another"), replace(shown(V4), annotations={})],
    ids=["made again", "without our brand"],
)
def test_nothing_is_said_on_a_service_that_the_book_does_not_mean(view: ServiceView) -> None:
    assert tell_announced(view, by(1), (), NOW) is None


@pytest.mark.spec("C16")
def test_the_write_of_an_allocation_leaves_the_condition_as_it_is() -> None:
    view = shown(V4)
    view = said(view, tell_announced(view, by(1), (), NOW))
    held = addresses(V4, V6)
    publication = publish_allocated(view, held, "default", "local", condition_allocated(view, held, "default", NOW))
    assert publication is not None
    assert verdict(taken(view, publication, "12"))[0] == "True"


@pytest.mark.spec("C9", "C20")
@pytest.mark.parametrize(
    ("before", "now", "gone"),
    [
        ((V4,), (OTHER,), {names.ANNOUNCING_V4}),
        ((V4, V6), (OTHER, V6), {names.ANNOUNCING_V4}),
        ((V4, V6), (V4, "fd30:250::54"), {names.ANNOUNCING_V6}),
        ((V4,), (V4, OTHER), set()),
        ((V4, OTHER), (OTHER,), set()),
        ((), (V4,), set()),
        ((V4,), (V4,), set()),
    ],
)
def test_who_announced_the_old_address_is_not_said_of_the_new_one(
    before: tuple[str, ...], now: tuple[str, ...], gone: set[str]
) -> None:
    view = shown(*before)
    text = {names.ANNOUNCING_V4: "node3, enp1s0", names.ANNOUNCING_V6: "node3, enp1s0"}
    view = replace(view, annotations={**view.annotations, **text})
    publication = publish_allocated(
        view, addresses(*now), "default", "local", condition_allocated(view, addresses(*now), "default", NOW)
    )
    changed = publication.annotations if publication else {}
    assert {name for name, value in changed.items() if value is None} == gone


@pytest.mark.spec("C16", "A18")
def test_the_condition_goes_with_the_address() -> None:
    view = shown(V4)
    view = said(view, tell_announced(view, by(1), (), NOW))
    refused = publish_refused(view, condition_refused(view, Reason.POOL_EXHAUSTED, "none is free", NOW))
    withdrawn = publish_withdrawn(view, ingress_is_ours=True)
    for publication in (refused, withdrawn):
        assert publication is not None
        assert current_condition(taken(view, publication, "12"), names.CONDITION_ANNOUNCED) is None


@pytest.mark.spec("C16", "E7")
@pytest.mark.parametrize(
    ("age_s", "wanted"),
    [
        (0, Silence((), 30)),
        (29, Silence((), 1)),
        (30, Silence(addresses(V4))),
        (3600, Silence(addresses(V4))),
        (-3600, Silence((), 30)),
    ],
)
def test_silence_is_overdue_after_its_time_whatever_the_clock_does(age_s: int, wanted: Silence) -> None:
    assert silence(by(0, V4), 30, NOW + timedelta(seconds=age_s)) == wanted


def test_what_is_announced_is_never_overdue() -> None:
    assert silence(by(2), 30, NOW + timedelta(days=400)) == Silence()


def test_of_several_silent_addresses_the_next_that_is_due_is_waited_for() -> None:
    held = (HeldAddress(ip_address(V4), NOW), HeldAddress(ip_address(V6), NOW + timedelta(seconds=20)))
    found = Announcers(KEY, "uid-1", held)
    assert silence(found, 30, NOW + timedelta(seconds=35)) == Silence(addresses(V4), 15)
