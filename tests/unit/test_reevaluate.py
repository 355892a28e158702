"""Planned anew on request: what moves, what stays, and that the wish goes with the write that shows what came of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Family
from purelb_sm.domain.book import Booked, Hold, Leave, Plan, Reclaim, Refuse
from purelb_sm.domain.choose import World
from purelb_sm.domain.plan import plan
from purelb_sm.domain.quota import HeldIn
from purelb_sm.domain.sharing import Member, Shared, SharedAddress, port_keys
from purelb_sm.domain.states import AllocationState, ServiceState
from purelb_sm.domain.views import Condition, ServiceView
from purelb_sm.errors import Reason
from tests.support.domain import KEY, NOW, allocation, booked_service, group, holding, pools, service, showing, world
from tests.unit.test_reservations import OTHER, a_world, reservation

ANEW = {names.RE_EVALUATE: "true"}
GONE = {names.RE_EVALUATE: None}


def two_groups(*taken: str) -> World:
    made = world(
        group("default", pools("10.0.0.0-10.0.0.3", "fd30::-fd30::3")),
        group("other", pools("10.0.1.0-10.0.1.3", "fd31::-fd31::3")),
        group("four", pools("10.0.2.0-10.0.2.3")),
    )
    made.free.take_all(ip_address(a) for a in taken)
    return made


def shown_as_given(view: ServiceView, *addresses: str, **annotations: str) -> ServiceView:
    """As it is after the write that gave it these addresses."""
    text = f"{', '.join(addresses)} from pool default"
    condition = Condition(names.CONDITION_ALLOCATED, "True", "Allocated", text, "2026-11-23T12:00:00Z", view.generation)
    shown = showing(view, *addresses)
    return replace(shown, annotations={**shown.annotations, **annotations}, conditions=(condition,))


def told(made: Plan) -> list[tuple[str, str]]:
    verbs: dict[Any, str] = {Hold: "hold", Reclaim: "reclaim", Leave: "leave"}
    return [(verbs[type(a)], str(a.address)) for a in made.actions if isinstance(a, Hold | Reclaim | Leave)]


def wish(group_name: str, **more: str) -> dict[str, str]:
    return {names.SERVICE_GROUP: group_name, **more}


@pytest.mark.spec("A23")
def test_a_changed_group_moves_nothing_until_asked() -> None:
    view = shown_as_given(service(), "10.0.0.1", **wish("other"))
    assert plan(KEY, view, holding("10.0.0.1"), two_groups("10.0.0.1"), NOW).silent


@pytest.mark.spec("A23", "B5")
def test_asked_it_moves_the_new_address_held_and_shown_in_the_step_that_lets_the_old_one_go() -> None:
    view = shown_as_given(service(), "10.0.0.1", **wish("other", **ANEW))
    made = plan(KEY, view, holding("10.0.0.1"), two_groups("10.0.0.1"), NOW)
    assert told(made) == [("hold", "10.0.1.0"), ("leave", "10.0.0.1")]
    assert made.publication is not None
    assert made.publication.ingress == (ip_address("10.0.1.0"),)
    assert made.publication.annotations == {names.ALLOCATED_FROM: "other", **GONE}
    assert [e.reason for e in made.events] == ["IPAllocated", "AddressReleased"]


@pytest.mark.spec("A23", "E4")
def test_a_move_whose_write_was_lost_is_shown_and_not_made_again() -> None:
    """The book has moved; the Service shows the old address and still asks."""
    view = shown_as_given(service(), "10.0.0.1", **wish("other", **ANEW))
    old = allocation("10.0.0.1", AllocationState.RELEASING, number=1)
    new = allocation("10.0.1.0", number=2, group="other")
    booked = Booked(service=booked_service(), held=(new,), reclaimable=(old,))
    made = plan(KEY, view, booked, two_groups("10.0.0.1", "10.0.1.0"), NOW)
    assert not made.actions
    assert made.publication is not None
    assert made.publication.ingress == (ip_address("10.0.1.0"),)
    assert made.publication.annotations == {names.ALLOCATED_FROM: "other", **GONE}


@pytest.mark.spec("A23")
def test_with_nothing_to_do_only_the_wish_goes() -> None:
    view = shown_as_given(service(), "10.0.0.1", **ANEW)
    made = plan(KEY, view, holding("10.0.0.1"), two_groups("10.0.0.1"), NOW)
    assert (made.actions, made.events) == ((), ())
    assert made.publication is not None
    assert (made.publication.ingress, made.publication.conditions) == (None, None)
    assert made.publication.annotations == GONE


@pytest.mark.spec("A23")
@pytest.mark.parametrize("value", ["false", "True", "yes", "", "true" * 1000])
def test_another_value_is_no_wish(value: str) -> None:
    view = shown_as_given(service(), "10.0.0.1", **wish("other", **{names.RE_EVALUATE: value}))
    assert plan(KEY, view, holding("10.0.0.1"), two_groups("10.0.0.1"), NOW).silent


@pytest.mark.spec("A23")
@pytest.mark.parametrize(
    ("taken", "to", "why"),
    [
        (["10.0.1.0", "10.0.1.1", "10.0.1.2", "10.0.1.3"], "other", "PoolExhausted: "),
        ([], "nowhere", "UnknownServiceGroup: there is no ServiceGroup nowhere; it keeps what it has"),
    ],
)
def test_a_move_that_cannot_be_made_leaves_all_as_it_is_and_is_told_once(taken: list[str], to: str, why: str) -> None:
    view = shown_as_given(service(), "10.0.0.1", **wish(to, **ANEW))
    there = two_groups("10.0.0.1", *taken)
    made = plan(KEY, view, holding("10.0.0.1"), there, NOW)
    assert made.actions == ()
    assert made.publication is not None
    assert (made.publication.ingress, made.publication.conditions) == (None, None)
    assert made.publication.annotations == GONE
    ((kind, reason, text),) = [(e.type, e.reason, e.message) for e in made.events]
    assert (kind, reason) == ("Warning", "AllocationFailed")
    assert text.startswith(why)
    assert there.free.counts("other", Family.IPV4)[1] == 4 - len(taken)


@pytest.mark.spec("A23", "A13")
def test_both_families_move_or_none() -> None:
    both = service(ip_families=("IPv4", "IPv6"), ip_family_policy="RequireDualStack")
    held = holding("10.0.0.1", "fd30::1")
    view = shown_as_given(both, "10.0.0.1", "fd30::1", **wish("other", **ANEW))
    made = plan(KEY, view, held, two_groups("10.0.0.1", "fd30::1"), NOW)
    assert told(made) == [("hold", "10.0.1.0"), ("hold", "fd31::"), ("leave", "10.0.0.1"), ("leave", "fd30::1")]
    without = shown_as_given(both, "10.0.0.1", "fd30::1", **wish("four", **ANEW))
    kept = plan(KEY, without, held, two_groups("10.0.0.1", "fd30::1"), NOW)
    assert kept.actions == ()
    assert [e.message.split(":")[0] for e in kept.events] == ["NoPoolForFamily"]


@pytest.mark.spec("A23", "A10")
def test_an_address_asked_for_by_name_stays_and_what_stands_beside_it_follows_its_group() -> None:
    both = service(ip_families=("IPv4", "IPv6"), ip_family_policy="RequireDualStack")
    asked = wish("other", **ANEW, **{names.ADDRESSES: "10.0.0.1"})
    view = shown_as_given(both, "10.0.0.1", "fd31::1", **asked)
    held = Booked(
        service=booked_service(), held=(allocation("10.0.0.1"), allocation("fd31::1", number=2, group="other"))
    )
    made = plan(KEY, view, held, two_groups("10.0.0.1", "fd31::1"), NOW)
    assert told(made) == [("hold", "fd30::"), ("leave", "fd31::1")]


@pytest.mark.spec("A23", "A22")
def test_an_orphaned_address_is_given_up_when_asked() -> None:
    view = shown_as_given(service(), "10.9.9.9", **ANEW)
    made = plan(KEY, view, holding("10.9.9.9"), two_groups(), NOW)
    assert told(made) == [("hold", "10.0.0.0"), ("leave", "10.9.9.9")]


@pytest.mark.spec("A23")
def test_a_pending_service_is_tried_and_the_wish_goes_either_way() -> None:
    pending = Booked(service=booked_service(ServiceState.PENDING, reason="PoolExhausted", message="none"))
    given = plan(KEY, service(annotations=ANEW), pending, two_groups(), NOW)
    assert told(given) == [("hold", "10.0.0.0")]
    assert given.publication is not None
    assert given.publication.annotations[names.RE_EVALUATE] is None
    refused = plan(KEY, service(annotations=wish("nowhere", **ANEW)), pending, two_groups(), NOW)
    assert [a.reason for a in refused.actions if isinstance(a, Refuse)] == [Reason.UNKNOWN_SERVICE_GROUP]
    assert refused.publication is not None
    assert refused.publication.annotations == GONE


@pytest.mark.spec("A23", "A11")
@pytest.mark.parametrize(
    ("asked", "reason"),
    [("junk", Reason.INVALID_REQUEST), ("10.0.0.2", Reason.ADDRESS_IN_USE), ("fd30::1", "AddressFamilyNotRequested")],
)
def test_one_that_keeps_what_it_has_as_its_wish_cannot_be_met_still_does_when_planned_anew(
    asked: str, reason: str
) -> None:
    view = shown_as_given(service(), "10.0.0.1", **wish("other", **ANEW, **{names.ADDRESSES: asked}))
    there = two_groups("10.0.0.1", "10.0.0.2")
    made = plan(KEY, view, holding("10.0.0.1"), there, NOW)
    assert (made.actions, made.waiting) == ((), True)
    assert made.publication is not None
    assert made.publication.ingress is None
    assert made.publication.annotations == GONE
    assert [(c.status, c.reason) for c in made.publication.conditions or ()] == [("False", reason)]
    assert [e.message.split(":")[0] for e in made.events] == [reason]


@pytest.mark.spec("A23", "A12", "A31")
def test_the_wish_of_a_service_that_is_not_ours_is_left_alone() -> None:
    for view in (
        service(annotations=ANEW, load_balancer_class="example.com/other"),
        service(annotations=ANEW, type="ClusterIP"),
        service(annotations=ANEW, deleting=True),
    ):
        assert plan(KEY, view, Booked(), two_groups(), NOW).silent
    bare = service(annotations=ANEW, ingress=showing(service(), "192.0.2.1").ingress)
    assert plan(KEY, bare, Booked(), two_groups(), NOW).publication is None
    waits = service(annotations=ANEW, ip_families=(), cluster_ip="")
    assert plan(KEY, waits, Booked(), two_groups(), NOW).publication is None


@pytest.mark.spec("A23", "A26")
def test_asked_it_moves_to_what_is_reserved_for_it_and_off_what_is_reserved_for_others() -> None:
    view = shown_as_given(service(), "10.0.0.1", **ANEW)
    own = plan(KEY, view, holding("10.0.0.1"), a_world(reservation("10.0.0.3", KEY), taken=("10.0.0.1",)), NOW)
    assert told(own) == [("hold", "10.0.0.3"), ("leave", "10.0.0.1")]
    off = plan(KEY, view, holding("10.0.0.1"), a_world(reservation("10.0.0.1", OTHER), taken=("10.0.0.1",)), NOW)
    assert told(off) == [("hold", "10.0.0.0"), ("leave", "10.0.0.1")]
    there = a_world(reservation("10.0.0.0-10.0.0.1", KEY), taken=("10.0.0.1",))
    assert told(plan(KEY, view, holding("10.0.0.1"), there, NOW)) == []


@pytest.mark.spec("A23", "A15")
def test_what_is_shared_is_left_in_a_second_step_and_the_wish_stays_until_then() -> None:
    """Its ports there are another's to take only when it does not show them any more."""
    there = two_groups("10.0.0.1")
    address, mine = ip_address("10.0.0.1"), port_keys(service().ports)
    members = (Member("uid-1", KEY, mine), Member("uid-2", OTHER, frozenset()))
    there = replace(there, shared=Shared([SharedAddress(address, "default", "k", KEY, members)]))
    view = shown_as_given(service(), "10.0.0.1", **wish("other", **ANEW, **{names.ALLOW_SHARED_IP: "k"}))
    booked = Booked(service=booked_service(), held=(allocation("10.0.0.1", sharing_key="k"),))
    made = plan(KEY, view, booked, there, NOW)
    assert told(made) == [("hold", "10.0.1.0")]
    assert made.again
    assert made.publication is not None
    assert names.RE_EVALUATE not in made.publication.annotations
    after = shown_as_given(service(), "10.0.1.0", **wish("other", **ANEW, **{names.ALLOW_SHARED_IP: "k"}))
    new = allocation("10.0.1.0", number=2, group="other", sharing_key="k")
    both = Booked(service=booked_service(), held=(allocation("10.0.0.1", sharing_key="k"), new))
    last = plan(KEY, after, both, there, NOW)
    assert told(last) == [("leave", "10.0.0.1")]
    assert last.publication is not None
    assert last.publication.annotations[names.RE_EVALUATE] is None


@pytest.mark.spec("A23", "A24")
def test_into_a_multi_pool_group_and_out_of_it() -> None:
    many = pools("10.0.3.0-10.0.3.3", "10.0.4.0-10.0.4.3", kind="remote", multiPool=True)
    there = world(group("default", pools("10.0.0.0-10.0.0.3")), group("many", many))
    there.free.take_all(ip_address(a) for a in ("10.0.0.1", "10.0.4.2"))
    into = shown_as_given(service(), "10.0.0.1", **wish("many", **ANEW))
    made = plan(KEY, into, holding("10.0.0.1"), there, NOW)
    assert told(made) == [("hold", "10.0.3.0"), ("hold", "10.0.4.0"), ("leave", "10.0.0.1")]
    held = Booked(
        service=booked_service(),
        held=(allocation("10.0.3.0", group="many"), allocation("10.0.4.0", number=2, group="many")),
    )
    out = shown_as_given(service(), "10.0.3.0", "10.0.4.0", **wish("default", **ANEW))
    made = plan(KEY, out, held, there, NOW)
    assert told(made) == [("hold", "10.0.0.0"), ("leave", "10.0.3.0"), ("leave", "10.0.4.0")]


@pytest.mark.spec("A23", "A25")
def test_a_move_across_the_boundary_of_a_namespace_is_not_made() -> None:
    fenced = group("fenced", pools("10.0.5.0-10.0.5.3") | {"namespaces": ["shop"], "enforceNamespaces": True})
    there = world(group("default", pools("10.0.0.0-10.0.0.3")), fenced)
    there.free.take(ip_address("10.0.0.1"))
    view = shown_as_given(service(), "10.0.0.1", **wish("fenced", **ANEW))
    made = plan(KEY, view, holding("10.0.0.1"), there, NOW)
    assert made.actions == ()
    assert [e.message.split(":")[0] for e in made.events] == ["NamespaceNotAllowed"]


@pytest.mark.spec("A23", "A24", "A30")
def test_ranges_that_the_quota_does_not_allow_are_not_added_and_its_condition_stays_true() -> None:
    """It has all that it needs: to say that it is refused would be wrong, and unsaid again by the next plan."""
    many = pools("10.0.3.0-10.0.3.3", "10.0.4.0-10.0.4.3", kind="remote", multiPool=True) | {"maxPerNamespace": 1}
    there = world(group("default", many))
    there.free.take(ip_address("10.0.3.0"))
    there.quota.learn(["test"], [HeldIn("test", "default", ip_address("10.0.3.0"), 1)])
    view = shown_as_given(service(), "10.0.3.0", **ANEW, **{names.POOL_TYPE: "remote"})
    made = plan(KEY, view, holding("10.0.3.0"), there, NOW)
    assert (made.actions, made.waiting) == ((), False)
    assert made.publication is not None
    assert (made.publication.ingress, made.publication.conditions) == (None, None)
    assert made.publication.annotations == GONE
    ((reason, text),) = [(e.reason, e.message) for e in made.events]
    assert reason == "AllocationFailed"
    assert text.startswith("QuotaExceeded: ")
    assert text.endswith("; it keeps what it has")
    assert there.free.is_free(ip_address("10.0.4.0"))
