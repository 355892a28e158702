"""plan(): tables of (Service, book, cluster) → what is done. No clock, no server, no database."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Family
from purelb_sm.domain.book import (
    NOTHING_BOOKED,
    Allocate,
    Booked,
    Hold,
    Leave,
    Observe,
    Plan,
    Reclaim,
    Refuse,
    Revive,
    Withdraw,
)
from purelb_sm.domain.choose import World
from purelb_sm.domain.plan import plan
from purelb_sm.domain.states import AllocationState, ServiceState
from purelb_sm.domain.views import Condition, Ingress, ServiceView
from purelb_sm.errors import Reason
from tests.support.domain import KEY, NOW, allocation, booked_service, group, holding, pools, service, showing, world

DUAL = ("IPv4", "IPv6")
DUAL_POOLS = pools("172.30.250.53-172.30.250.54", "fd30::53-fd30::54")


def kinds(made: Plan) -> list[type]:
    return [type(action) for action in made.actions]


def addresses_of(made: Plan) -> list[str]:
    return [str(a.address) for a in made.actions if isinstance(a, Hold | Reclaim)]


def refusal(made: Plan) -> Reason | None:
    return next((a.reason for a in made.actions if isinstance(a, Refuse)), None)


def published(view: ServiceView, made: Plan) -> ServiceView:
    """The Service after the API server took the publication."""
    p = made.publication
    if p is None:
        return view
    kept = {k: v for k, v in view.annotations.items() if k not in p.annotations}
    ingress = view.ingress if p.ingress is None else tuple(Ingress(str(a), "", "VIP") for a in p.ingress)
    return replace(
        view,
        annotations=kept | {k: v for k, v in p.annotations.items() if v is not None},
        ingress=ingress,
        conditions=view.conditions if p.conditions is None else p.conditions,
    )


@pytest.mark.spec("A1", "A3")
def test_a_plain_service_gets_the_lowest_address_of_the_default_group_in_one_write() -> None:
    made = plan(KEY, service(), NOTHING_BOOKED, world(group()), NOW)
    assert kinds(made) == [Observe, Hold, Allocate]
    publication = made.publication
    assert publication is not None
    assert publication.resource_version == "10"
    assert publication.ingress == (ip_address("172.30.250.53"),)
    assert publication.annotations == {
        "purelb.io/allocated-by": "PureLB",
        "purelb.io/allocated-from": "default",
        "purelb.io/pool-type": "local",
    }
    assert publication.conditions is not None
    assert [(c.type, c.status) for c in publication.conditions] == [("purelb.io/Allocated", "True")]
    assert [(e.type, e.reason, e.message) for e in made.events] == [
        ("Normal", "IPAllocated", "Assigned IP 172.30.250.53 from pool default")
    ]


@pytest.mark.spec("A3")
@pytest.mark.parametrize("kind", ["local", "remote"])
def test_the_pool_type_is_that_of_the_group(kind: str) -> None:
    made = plan(KEY, service(), NOTHING_BOOKED, world(group("default", pools("172.31.1.0/24", kind=kind))), NOW)
    assert made.publication is not None
    assert made.publication.annotations[names.POOL_TYPE] == kind


@pytest.mark.spec("A1")
def test_without_a_default_group_it_is_refused_and_told_once() -> None:
    view = service()
    made = plan(KEY, view, NOTHING_BOOKED, world(group("other")), NOW)
    assert kinds(made) == [Observe, Refuse]
    assert refusal(made) is Reason.NO_SERVICE_GROUP
    assert [(e.type, e.reason) for e in made.events] == [("Warning", "AllocationFailed")]
    after = published(view, made)
    assert [(c.status, c.reason) for c in after.conditions] == [("False", "NoServiceGroup")]
    refused = next(a for a in made.actions if isinstance(a, Refuse))
    booked = Booked(service=booked_service(ServiceState.PENDING, reason=refused.reason, message=refused.message))
    again = plan(KEY, after, booked, world(group("other")), NOW + timedelta(hours=1))
    assert again.silent
    assert again.waiting


@pytest.mark.spec("A2")
def test_an_annotation_picks_the_group_and_an_unknown_or_broken_one_is_refused() -> None:
    known = world(group("default"), group("sg", pools("10.0.0.7-10.0.0.9")), broken={"bad": "spec: no"})
    asks = {name: service(annotations={names.SERVICE_GROUP: name}) for name in ("sg", "nope", "bad")}
    assert addresses_of(plan(KEY, asks["sg"], NOTHING_BOOKED, known, NOW)) == ["10.0.0.7"]
    assert refusal(plan(KEY, asks["nope"], NOTHING_BOOKED, known, NOW)) is Reason.UNKNOWN_SERVICE_GROUP
    assert refusal(plan(KEY, asks["bad"], NOTHING_BOOKED, known, NOW)) is Reason.INVALID_SERVICE_GROUP


@pytest.mark.spec("A2", "E1")
@pytest.mark.parametrize(
    ("text", "got", "reason"),
    [
        (" sg\n", ["10.0.0.7"], None),
        ("SG", [], Reason.UNKNOWN_SERVICE_GROUP),
        ("default,sg", [], Reason.UNKNOWN_SERVICE_GROUP),
        # As in PureLB, a name that is empty is none, and is not to be taken for no wish at all.
        ("", [], Reason.INVALID_REQUEST),
        (" \t", [], Reason.INVALID_REQUEST),
        ("x" * 254, [], Reason.INVALID_REQUEST),
    ],
)
def test_the_name_of_a_group_is_taken_as_it_is_but_for_blanks(text: str, got: list[str], reason: Reason | None) -> None:
    known = world(group("default"), group("sg", pools("10.0.0.7-10.0.0.9")))
    made = plan(KEY, service(annotations={names.SERVICE_GROUP: text}), NOTHING_BOOKED, known, NOW)
    assert (addresses_of(made), refusal(made)) == (got, reason)


@pytest.mark.spec("A3", "A13")
@pytest.mark.parametrize("families", [DUAL, DUAL[::-1]])
def test_dual_stack_shows_both_addresses_in_the_order_of_ip_families_in_one_event(families: tuple[str, ...]) -> None:
    view = service(ip_families=families, ip_family_policy="RequireDualStack")
    made = plan(KEY, view, NOTHING_BOOKED, world(group("default", DUAL_POOLS)), NOW)
    assert made.publication is not None
    expected = {"IPv4": "172.30.250.53", "IPv6": "fd30::53"}
    assert [str(a) for a in made.publication.ingress or ()] == [expected[f] for f in families]
    assert len(made.events) == 1
    assert ", ".join(expected[f] for f in families) in made.events[0].message


@pytest.mark.spec("A13")
@pytest.mark.parametrize(
    ("policy", "families", "spec", "got", "reason"),
    [
        ("SingleStack", ("IPv6",), DUAL_POOLS, ["fd30::53"], None),
        ("SingleStack", ("IPv6",), pools("10.0.0.0/24"), [], Reason.NO_POOL_FOR_FAMILY),
        ("RequireDualStack", DUAL, pools("10.0.0.0/24"), [], Reason.NO_POOL_FOR_FAMILY),
        ("PreferDualStack", DUAL, pools("10.0.0.0/24"), ["10.0.0.0"], None),
        ("PreferDualStack", DUAL, pools("fd30::/64"), ["fd30::"], None),
        ("PreferDualStack", DUAL, DUAL_POOLS, ["172.30.250.53", "fd30::53"], None),
        ("PreferDualStack", ("IPv4",), pools("fd30::/64"), [], Reason.NO_POOL_FOR_FAMILY),
        (None, ("IPv4",), DUAL_POOLS, ["172.30.250.53"], None),
        ("SingleStack", ("IPv5",), DUAL_POOLS, [], Reason.INVALID_REQUEST),
    ],
)
def test_families(
    policy: str | None, families: tuple[str, ...], spec: Any, got: list[str], reason: Reason | None
) -> None:
    view = service(ip_families=families, ip_family_policy=policy)
    made = plan(KEY, view, NOTHING_BOOKED, world(group("default", spec)), NOW)
    assert (addresses_of(made), refusal(made)) == (got, reason)


@pytest.mark.spec("A13")
def test_without_families_and_cluster_ip_it_waits_in_silence_and_with_a_cluster_ip_it_takes_its_family() -> None:
    known = world(group("default", DUAL_POOLS))
    for cluster_ip in ("", "None"):
        made = plan(KEY, service(ip_families=(), cluster_ip=cluster_ip), NOTHING_BOOKED, known, NOW)
        assert made.silent
        assert made.waiting
    assert addresses_of(plan(KEY, service(ip_families=(), cluster_ip="fd00::1"), NOTHING_BOOKED, known, NOW)) == [
        "fd30::53"
    ]


@pytest.mark.spec("A13")
def test_when_the_second_family_fails_nothing_of_the_first_is_kept() -> None:
    known = world(group("default", pools("172.30.250.53-172.30.250.53", "fd30::53-fd30::53")))
    known.free.take(ip_address("fd30::53"))
    view = service(ip_families=DUAL, ip_family_policy="RequireDualStack")
    assert refusal(plan(KEY, view, NOTHING_BOOKED, known, NOW)) is Reason.POOL_EXHAUSTED
    assert known.free.is_free(ip_address("172.30.250.53"))


@pytest.mark.spec("A12")
@pytest.mark.parametrize(
    ("class_", "default_class", "served"),
    [(None, True, True), (None, False, False), (names.LOAD_BALANCER_CLASS, False, True), ("other/lb", True, False)],
)
def test_only_services_of_our_class_are_touched(class_: str | None, default_class: bool, served: bool) -> None:
    known = world(group(), default_class=default_class)
    made = plan(KEY, service(load_balancer_class=class_), NOTHING_BOOKED, known, NOW)
    assert bool(made.actions) is served
    assert made.silent is not served


@pytest.mark.spec("A12")
def test_another_class_with_an_ingress_of_its_own_is_never_touched() -> None:
    view = service(load_balancer_class="other/lb", ingress=(Ingress("172.30.250.53", "", "VIP"),))
    assert plan(KEY, view, NOTHING_BOOKED, world(group()), NOW).silent


def test_a_pass_that_finds_no_difference_does_nothing() -> None:
    known = world(group())
    view = service()
    after = published(view, plan(KEY, view, NOTHING_BOOKED, known, NOW))
    for state in (ServiceState.ALLOCATED, ServiceState.ANNOUNCING):
        made = plan(KEY, after, holding("172.30.250.53", state=state), known, NOW + timedelta(days=9))
        assert made.silent


def test_a_publication_lost_by_a_crash_is_made_again_without_moving_anything() -> None:
    made = plan(KEY, service(), holding("172.30.250.55"), world(group()), NOW)
    assert not made.actions
    assert made.publication is not None
    assert made.publication.ingress == (ip_address("172.30.250.55"),)
    assert [e.reason for e in made.events] == ["IPAllocated"]


@pytest.mark.spec("A18")
def test_a_deleted_service_leaves_its_addresses_and_is_withdrawn() -> None:
    made = plan(KEY, None, holding("172.30.250.53"), world(group()), NOW)
    assert kinds(made) == [Leave, Withdraw]
    assert made.publication is None
    assert plan(KEY, None, NOTHING_BOOKED, world(group()), NOW).silent


@pytest.mark.spec("A18")
@pytest.mark.parametrize(
    "change", [{"type": "ClusterIP", "ingress": ()}, {"load_balancer_class": "other/lb"}, {"deleting": True}]
)
def test_a_service_that_lives_on_without_us_loses_what_is_ours_and_nothing_else(change: dict[str, Any]) -> None:
    other = Condition("example.com/Other", "True", "Fine", "", "2026-01-01T00:00:00Z")
    known = world(group())
    first = published(service(), plan(KEY, service(), NOTHING_BOOKED, known, NOW))
    mine = {**first.annotations, "purelb.io/announcing-IPv4": "node1, eth0", names.SERVICE_GROUP: "default"}
    view = replace(first, annotations=mine, conditions=(*first.conditions, other), **change)
    made = plan(KEY, view, holding("172.30.250.53"), known, NOW)
    assert kinds(made) == [Leave, Withdraw]
    assert [(e.reason, e.message) for e in made.events] == [("AddressReleased", "Released IP 172.30.250.53")]
    after = published(view, made)
    assert after.annotations == {names.SERVICE_GROUP: "default"}
    assert after.conditions == (other,)
    assert after.ingress == ()
    assert plan(KEY, after, NOTHING_BOOKED, known, NOW).silent


def test_a_namesake_with_another_uid_withdraws_the_old_one_and_takes_its_address_over() -> None:
    made = plan(KEY, service(uid="uid-2"), holding("172.30.250.57"), world(group()), NOW)
    assert kinds(made) == [Leave, Withdraw, Observe, Reclaim, Allocate]
    assert addresses_of(made) == ["172.30.250.57"]
    assert {a.uid for a in made.actions if isinstance(a, Leave | Withdraw)} == {"uid-1"}
    assert {a.uid for a in made.actions if isinstance(a, Observe | Reclaim | Allocate)} == {"uid-2"}


def test_a_claim_that_asks_again_gets_its_address_back() -> None:
    quarantined = allocation("172.30.250.58", AllocationState.QUARANTINED, number=9)
    booked = Booked(former=booked_service(ServiceState.WITHDRAWN), reclaimable=(quarantined,))
    made = plan(KEY, service(), booked, world(group()), NOW)
    assert kinds(made) == [Revive, Reclaim, Allocate]
    assert addresses_of(made) == ["172.30.250.58"]


def test_an_address_shown_under_our_brand_that_the_book_lost_is_adopted() -> None:
    made = plan(KEY, showing(service(), "172.30.250.59"), NOTHING_BOOKED, world(group()), NOW)
    held = next(a for a in made.actions if isinstance(a, Hold))
    assert str(held.address) == "172.30.250.59"
    assert "adopted" in held.reason


def test_an_address_shown_but_booked_for_another_gives_way_to_a_new_one() -> None:
    known = world(group())
    known.free.take(ip_address("172.30.250.59"))
    made = plan(KEY, showing(service(), "172.30.250.59"), NOTHING_BOOKED, known, NOW)
    assert addresses_of(made) == ["172.30.250.53"]
    assert made.publication is not None
    assert made.publication.ingress == (ip_address("172.30.250.53"),)


def test_an_ingress_of_another_controller_is_left_alone_and_said_once() -> None:
    view = service(ingress=(Ingress("203.0.113.9", "", "VIP"),))
    made = plan(KEY, view, NOTHING_BOOKED, world(group()), NOW)
    assert made.publication is None
    assert refusal(made) is Reason.FOREIGN_INGRESS
    assert [e.type for e in made.events] == ["Warning"]
    refused = next(a for a in made.actions if isinstance(a, Refuse))
    booked = Booked(service=booked_service(ServiceState.PENDING, reason=refused.reason, message=refused.message))
    assert plan(KEY, view, booked, world(group()), NOW).silent


@pytest.mark.parametrize("field", ["annotation", "spec"])
def test_a_particular_address_is_given_if_free_and_the_group_named_beside_it_is_warned_of(field: str) -> None:
    known = world(group(), group("virtual", pools("172.31.1.0/24", kind="remote")))
    wish = (
        {"annotations": {names.ADDRESSES: " 172.31.1.225 "}}
        if field == "annotation"
        else {
            "load_balancer_ip": "172.31.1.225",
            "annotations": {names.SERVICE_GROUP: "default"},
        }
    )
    made = plan(KEY, service(**wish), NOTHING_BOOKED, known, NOW)
    assert addresses_of(made) == ["172.31.1.225"]
    assert made.publication is not None
    assert made.publication.annotations[names.POOL_TYPE] == "remote"
    reasons = (
        ["IPAllocated"] if field == "annotation" else ["ConfigurationWarning", "DeprecationWarning", "IPAllocated"]
    )
    assert [e.reason for e in made.events] == reasons


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("172.30.250.54", Reason.ADDRESS_IN_USE),
        ("203.0.113.1", Reason.ADDRESS_OUTSIDE_GROUPS),
        ("fd30::1", Reason.ADDRESS_FAMILY_NOT_REQUESTED),
        ("172.30.250.55,172.30.250.56", Reason.INVALID_REQUEST),
        ("172.030.250.055", Reason.INVALID_REQUEST),
        ("localhost", Reason.INVALID_REQUEST),
        ("172.30.250.55,", Reason.INVALID_REQUEST),
    ],
)
def test_a_particular_address_that_cannot_be_given_is_refused_by_name(text: str, reason: Reason) -> None:
    known = world(group())
    known.free.take(ip_address("172.30.250.54"))
    made = plan(KEY, service(annotations={names.ADDRESSES: text}), NOTHING_BOOKED, known, NOW)
    assert refusal(made) is reason
    assert known.free.counts("default", Family.IPV4)[1] == 7


def test_a_slip_in_an_annotation_never_takes_a_held_address_away() -> None:
    view = showing(service(annotations={names.ADDRESSES: "junk"}), "172.30.250.53")
    made = plan(KEY, view, holding("172.30.250.53"), world(group()), NOW)
    assert not made.actions
    after = published(view, made)
    assert [i.ip for i in after.ingress] == ["172.30.250.53"]
    assert [(c.status, c.reason) for c in after.conditions] == [("False", "InvalidRequest")]
    assert plan(KEY, after, holding("172.30.250.53"), world(group()), NOW).silent


@pytest.mark.spec("A14")
def test_a_family_added_later_comes_from_the_group_that_is_held_and_one_removed_leaves() -> None:
    known = world(group("default", pools("10.0.0.0/24")), group("dual", DUAL_POOLS))
    known.free.take(ip_address("172.30.250.53"))
    held = allocation("172.30.250.53", group="dual")
    booked = Booked(service=booked_service(), held=(held,))
    grown = service(ip_families=DUAL, ip_family_policy="RequireDualStack")
    made = plan(KEY, showing(grown, "172.30.250.53", group="dual"), booked, known, NOW)
    assert kinds(made) == [Hold, Allocate]
    assert addresses_of(made) == ["fd30::53"]
    both = Booked(service=booked_service(), held=(held, allocation("fd30::53", number=2, group="dual")))
    shrunk = showing(service(), "172.30.250.53", "fd30::53", group="dual")
    made = plan(KEY, shrunk, both, known, NOW)
    assert kinds(made) == [Leave, Allocate]
    assert [e.message for e in made.events] == ["Released IP fd30::53"]


def test_two_plans_of_one_batch_never_propose_one_address() -> None:
    known: World = world(group("default", pools("10.0.0.0-10.0.0.1")))
    made = [plan(KEY, service(uid=f"u{n}"), NOTHING_BOOKED, known, NOW) for n in range(3)]
    assert [addresses_of(m) for m in made] == [["10.0.0.0"], ["10.0.0.1"], []]
    assert refusal(made[2]) is Reason.POOL_EXHAUSTED
