"""Particular addresses: `spec.loadBalancerIP` and `purelb.io/addresses`, in tables (spec A10, A11)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Family
from purelb_sm.domain.book import NOTHING_BOOKED, Booked, Hold, Leave, Plan, Refuse
from purelb_sm.domain.choose import World
from purelb_sm.domain.plan import plan
from purelb_sm.domain.states import AllocationState, ServiceState
from purelb_sm.domain.views import ServiceView
from purelb_sm.errors import Reason
from tests.support.domain import KEY, NOW, allocation, booked_service, group, holding, pools, service, showing, world

V4, V6 = ("IPv4",), ("IPv6",)
DUAL = ("IPv4", "IPv6")
TAKEN, TAKEN6 = "172.30.250.54", "fd30::54"


def a_world() -> World:
    known = world(
        group("default", pools("172.30.250.53-172.30.250.60", "fd30::53-fd30::60")),
        group("virtual", pools("172.31.1.0/24", "fd31::/64", kind="remote")),
        group("only4", pools("172.32.1.0/24")),
    )
    known.free.take_all([ip_address(TAKEN), ip_address(TAKEN6)])
    return known


def counts(known: World) -> dict[tuple[str, Family], tuple[int, int]]:
    return {(name, family): known.free.counts(name, family) for name in known.groups for family in Family}


def asking(
    addresses: str | None = None,
    *,
    spec: str = "",
    families: tuple[str, ...] = V4,
    policy: str | None = None,
    service_group: str | None = None,
) -> ServiceView:
    wanted = {names.ADDRESSES: addresses, names.SERVICE_GROUP: service_group}
    return service(
        annotations={k: v for k, v in wanted.items() if v is not None},
        load_balancer_ip=spec,
        ip_families=families,
        ip_family_policy=policy or ("SingleStack" if len(families) == 1 else "RequireDualStack"),
    )


def shown(made: Plan) -> list[str]:
    return [str(a) for a in (made.publication.ingress if made.publication else None) or ()]


def reasons(made: Plan) -> list[str]:
    return [event.reason for event in made.events]


GIVEN: list[tuple[dict[str, Any], list[str], str, list[str]]] = [
    ({"addresses": "172.31.1.225"}, ["172.31.1.225"], "virtual", []),
    ({"spec": "172.31.1.225"}, ["172.31.1.225"], "virtual", ["DeprecationWarning"]),
    # `addresses` wins, and what is not looked at is not warned of.
    ({"addresses": "172.30.250.58", "spec": "172.31.1.225"}, ["172.30.250.58"], "default", []),
    ({"addresses": "172.30.250.58", "spec": "junk"}, ["172.30.250.58"], "default", []),
    # .0 and .255 are given when asked for, and so is what the search would have given last.
    ({"addresses": "172.31.1.0"}, ["172.31.1.0"], "virtual", []),
    ({"addresses": "172.30.250.60"}, ["172.30.250.60"], "default", []),
    # The address decides, whatever group is named beside it, even one that is not there.
    (
        {"addresses": "172.31.1.225", "service_group": "default"},
        ["172.31.1.225"],
        "virtual",
        ["ConfigurationWarning"],
    ),
    ({"addresses": "172.31.1.225", "service_group": "none"}, ["172.31.1.225"], "virtual", ["ConfigurationWarning"]),
    (
        {"addresses": "172.31.1.225", "service_group": "virtual"},
        ["172.31.1.225"],
        "virtual",
        ["ConfigurationWarning"],
    ),
    (
        {"spec": "172.31.1.225", "service_group": "default"},
        ["172.31.1.225"],
        "virtual",
        ["ConfigurationWarning", "DeprecationWarning"],
    ),
    # One of each family: in the order of ipFamilies, whatever the order written; spaces mean nothing.
    (
        {"addresses": "fd31::9,172.31.1.9", "families": DUAL},
        ["172.31.1.9", "fd31::9"],
        "virtual",
        [],
    ),
    (
        {"addresses": "  172.31.1.9 \t,\n fd31::9  ", "families": ("IPv6", "IPv4")},
        ["fd31::9", "172.31.1.9"],
        "virtual",
        [],
    ),
    # Out of two groups: each address is where it is, and the first one names the group.
    (
        {"addresses": "172.32.1.9,fd30::59", "families": DUAL},
        ["172.32.1.9", "fd30::59"],
        "only4",
        [],
    ),
    # One of two: the other comes from the same group, the lowest that is free.
    ({"addresses": "172.30.250.58", "families": DUAL}, ["172.30.250.58", "fd30::53"], "default", []),
    ({"addresses": "fd31::9", "families": DUAL}, ["172.31.1.0", "fd31::9"], "virtual", []),
    ({"spec": "fd31::9", "families": DUAL}, ["172.31.1.0", "fd31::9"], "virtual", ["DeprecationWarning"]),
    ({"spec": "fd31::9, 172.31.1.9", "families": DUAL}, ["172.31.1.9", "fd31::9"], "virtual", ["DeprecationWarning"]),
    # PreferDualStack, and a group that has no pool for the other: one is enough.
    (
        {"addresses": "172.32.1.9", "families": DUAL, "policy": "PreferDualStack"},
        ["172.32.1.9"],
        "only4",
        [],
    ),
    # Another spelling of the same address.
    ({"addresses": "FD31:0:0:0::0009", "families": V6}, ["fd31::9"], "virtual", []),
    ({"addresses": "   "}, ["172.30.250.53"], "default", []),
    ({"addresses": "", "spec": "172.31.1.225"}, ["172.30.250.53"], "default", []),
]


@pytest.mark.spec("A10")
@pytest.mark.parametrize(("wish", "got", "from_group", "warned"), GIVEN, ids=lambda value: str(value)[:60])
def test_an_address_asked_for_is_given_where_it_is_free(
    wish: dict[str, Any], got: list[str], from_group: str, warned: list[str]
) -> None:
    known = a_world()
    made = plan(KEY, asking(**wish), NOTHING_BOOKED, known, NOW)
    assert shown(made) == got
    assert made.publication is not None
    assert made.publication.annotations[names.ALLOCATED_FROM] == from_group
    assert reasons(made) == [*warned, "IPAllocated"]
    assert all(not known.free.is_free(ip_address(address)) for address in got)


REFUSED: list[tuple[dict[str, Any], Reason]] = [
    ({"addresses": TAKEN}, Reason.ADDRESS_IN_USE),
    ({"spec": TAKEN}, Reason.ADDRESS_IN_USE),
    ({"addresses": "203.0.113.1"}, Reason.ADDRESS_OUTSIDE_GROUPS),
    ({"addresses": "172.30.250.61"}, Reason.ADDRESS_OUTSIDE_GROUPS),
    ({"addresses": "fd31::9"}, Reason.ADDRESS_FAMILY_NOT_REQUESTED),
    ({"spec": "fd31::9"}, Reason.ADDRESS_FAMILY_NOT_REQUESTED),
    ({"addresses": "172.31.1.9,fd31::9"}, Reason.ADDRESS_FAMILY_NOT_REQUESTED),
    ({"addresses": "172.31.1.9,172.31.1.10"}, Reason.INVALID_REQUEST),
    ({"addresses": "172.31.1.9,172.31.1.9"}, Reason.INVALID_REQUEST),
    ({"addresses": "172.31.1.9,fd31::9,fd31::10", "families": DUAL}, Reason.INVALID_REQUEST),
    ({"addresses": "172.31.1.9,"}, Reason.INVALID_REQUEST),
    ({"addresses": "172.31.1.9 172.31.1.10"}, Reason.INVALID_REQUEST),
    ({"addresses": "172.31.1.9;fd31::9", "families": DUAL}, Reason.INVALID_REQUEST),
    ({"addresses": "172.31.1.0/24"}, Reason.INVALID_REQUEST),
    ({"addresses": "172.31.1.9-172.31.1.10"}, Reason.INVALID_REQUEST),
    ({"addresses": "172.031.001.009"}, Reason.INVALID_REQUEST),
    ({"addresses": "::ffff:172.31.1.9"}, Reason.INVALID_REQUEST),
    ({"addresses": "fe80::1%eth0", "families": V6}, Reason.INVALID_REQUEST),
    ({"addresses": "localhost"}, Reason.INVALID_REQUEST),
    ({"spec": "localhost"}, Reason.INVALID_REQUEST),
    # Several, and one of them cannot be had, the first or the last: nothing is kept of the other.
    ({"addresses": f"172.31.1.9,{TAKEN6}", "families": DUAL}, Reason.ADDRESS_IN_USE),
    ({"addresses": f"{TAKEN6},172.31.1.9", "families": DUAL}, Reason.ADDRESS_IN_USE),
    ({"addresses": f"{TAKEN},fd31::9", "families": DUAL}, Reason.ADDRESS_IN_USE),
    ({"addresses": "172.31.1.9,fd99::9", "families": DUAL}, Reason.ADDRESS_OUTSIDE_GROUPS),
    ({"addresses": "172.31.1.9,junk", "families": DUAL}, Reason.INVALID_REQUEST),
    # Both families are wanted, and the group of the one asked for has no pool of the other.
    ({"addresses": "172.32.1.9", "families": DUAL}, Reason.NO_POOL_FOR_FAMILY),
    # Nobody gets another address in its place, PreferDualStack or not.
    ({"addresses": TAKEN, "families": DUAL, "policy": "PreferDualStack"}, Reason.ADDRESS_IN_USE),
    ({"addresses": TAKEN, "service_group": "virtual"}, Reason.ADDRESS_IN_USE),
]


@pytest.mark.spec("A11")
@pytest.mark.parametrize(("wish", "reason"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_cannot_be_given_is_refused_and_nothing_is_kept(wish: dict[str, Any], reason: Reason) -> None:
    known = a_world()
    before = counts(known)
    made = plan(KEY, asking(**wish), NOTHING_BOOKED, known, NOW)
    assert [a.reason for a in made.actions if isinstance(a, Refuse)] == [reason]
    assert not [a for a in made.actions if isinstance(a, Hold | Leave)]
    assert shown(made) == []
    assert counts(known) == before
    assert made.waiting
    assert reasons(made) == ["AllocationFailed"]


@pytest.mark.spec("A11")
@pytest.mark.parametrize(("wish", "reason"), REFUSED, ids=lambda value: str(value)[:60])
def test_one_that_has_an_address_keeps_it_when_its_new_wish_is_refused(wish: dict[str, Any], reason: Reason) -> None:
    known = a_world()
    families = wish.get("families", V4)
    had = ["172.31.1.77"] if families != V6 else ["fd31::77"]
    known.free.take_all(ip_address(a) for a in had)
    before = counts(known)
    made = plan(KEY, showing(asking(**wish), *had, group="virtual"), holding(*had), known, NOW)
    if reason is Reason.NO_POOL_FOR_FAMILY and not made.waiting:
        pytest.skip("what it has is of another group, and that one has the pool")
    assert not [a for a in made.actions if isinstance(a, Hold | Leave)]
    assert made.publication is None or made.publication.ingress is None
    assert counts(known) == before
    assert reasons(made) == ["AllocationFailed"]


@pytest.mark.spec("A11")
def test_the_holder_is_not_named() -> None:
    known = a_world()
    made = plan(KEY, asking(TAKEN), NOTHING_BOOKED, known, NOW)
    (event,) = made.events
    assert event.message == f"AddressInUse: requested address {TAKEN} is in use"


@pytest.mark.spec("A10")
def test_warnings_are_said_once() -> None:
    known = a_world()
    view = asking(spec="172.31.1.225", service_group="default")
    made = plan(KEY, view, NOTHING_BOOKED, known, NOW)
    assert reasons(made) == ["ConfigurationWarning", "DeprecationWarning", "IPAllocated"]
    assert made.publication is not None
    has = replace(holding("172.31.1.225"), service=booked_service(ServiceState.ALLOCATED))
    written = replace(
        showing(view, "172.31.1.225", group="virtual"), conditions=made.publication.conditions or view.conditions
    )
    assert reasons(plan(KEY, written, has, known, NOW)) == []
    # Not by a look at what is booked and not yet written, and not after a restart.
    relabelled = replace(written, resource_version="11")
    assert reasons(plan(KEY, relabelled, has, known, NOW)) == []


@pytest.mark.spec("A10")
def test_an_address_asked_for_later_takes_the_place_of_the_one_that_was_given() -> None:
    known = a_world()
    known.free.take(ip_address("172.30.250.53"))
    view = showing(asking("172.31.1.225"), "172.30.250.53")
    made = plan(KEY, view, holding("172.30.250.53"), known, NOW)
    assert shown(made) == ["172.31.1.225"]
    assert [str(a.address) for a in made.actions if isinstance(a, Leave)] == ["172.30.250.53"]
    assert reasons(made) == ["IPAllocated", "AddressReleased"]


@pytest.mark.spec("A10")
def test_an_address_that_the_claim_had_is_given_back_when_it_asks_for_it() -> None:
    known = a_world()
    was = allocation("172.31.1.225", AllocationState.QUARANTINED, group="virtual")
    known.free.take(was.address)
    made = plan(KEY, asking("172.31.1.225"), Booked(reclaimable=(was,)), known, NOW)
    assert shown(made) == ["172.31.1.225"]
