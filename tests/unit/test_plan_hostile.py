"""What hostile or unlucky input does to a plan: a named refusal, the same plan twice, nobody else's address."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Family
from purelb_sm.domain.book import NOTHING_BOOKED, Booked, BookedService, Hold, Leave, Plan, Reclaim, Refuse
from purelb_sm.domain.groups import parse_group
from purelb_sm.domain.plan import plan
from purelb_sm.domain.states import AllocationState, ServiceState
from purelb_sm.domain.views import Condition, Ingress, Port, ServiceView
from purelb_sm.errors import InvalidGroup, Reason
from purelb_sm.store.history import plain
from tests.support.domain import (
    KEY,
    NOW,
    allocation,
    booked_service,
    group,
    group_view,
    holding,
    pools,
    service,
    showing,
    world,
)
from tests.unit.test_plan import DUAL, DUAL_POOLS, addresses_of, published, refusal


def refused_booked(made: Plan) -> Booked:
    """What the book has after a refusal, as the store writes it."""
    why = next(a for a in made.actions if isinstance(a, Refuse))
    return Booked(service=booked_service(ServiceState.PENDING, reason=why.reason, message=plain(why.message)))


# -- ports --------------------------------------------------------------------------------------------------------


@pytest.mark.spec("E1")
@pytest.mark.parametrize("port", [Port("TCP", 0), Port("TCP", 65536), Port("TCP", -1), Port("FOO", 80), Port("", 80)])
def test_a_port_that_the_book_could_not_take_is_refused_by_name(port: Port) -> None:
    made = plan(KEY, service(ports=(Port("TCP", 80), port)), NOTHING_BOOKED, world(group()), NOW)
    assert refusal(made) is Reason.INVALID_REQUEST


@pytest.mark.spec("E1")
def test_a_bad_port_takes_nothing_from_a_service_that_has_an_address() -> None:
    view = showing(service(ports=(Port("FOO", 1),)), "172.30.250.53")
    made = plan(KEY, view, holding("172.30.250.53"), world(group()), NOW)
    assert not made.actions


# -- texts --------------------------------------------------------------------------------------------------------

NASTY = ["10.0.0.1," * 30_000, "a\0b", "x" * 253, "é" * 250, "\u202e\u0000", "𝕏" * 200]


@pytest.mark.spec("E1")
@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("name", [names.SERVICE_GROUP, names.ADDRESSES])
def test_a_refusal_is_booked_and_told_once_whatever_text_it_quotes(name: str, text: str) -> None:
    known = world(group())
    view = service(annotations={name: text})
    made = plan(KEY, view, NOTHING_BOOKED, known, NOW)
    assert refusal(made) is not None
    again = plan(KEY, published(view, made), refused_booked(made), known, NOW + timedelta(hours=1))
    assert again.silent


@pytest.mark.spec("E1")
@pytest.mark.parametrize("where", [names.ADDRESSES, "loadBalancerIP"])
@pytest.mark.parametrize(
    "text",
    [
        *("172.030.250.053", "172.30.250.053", "::ffff:172.30.250.53", "0xac.30.250.53", "2887711285", "172.30.64053"),
        *("172.30.250.53/32", "172.30.250.53%eth0", "fe80::1%eth0", "fd30::1%1", "1\u00b72.30.250.53", "\u0661.2.3.4"),
        *("0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1", "ff02::1", "255.255.255.255", "169.254.1.1"),
        "x" * 2**20,
        "172.30.250.53," * 70_000,
    ],
    ids=lambda text: text[:24],
)
def test_no_second_spelling_and_no_special_address_is_taken_for_one_of_ours(text: str, where: str) -> None:
    """Whether the address that it could be taken for is held or free."""
    wish = {"load_balancer_ip": text} if where == "loadBalancerIP" else {"annotations": {where: text}}
    view = service(ip_families=DUAL, ip_family_policy="PreferDualStack", **wish)
    for taken in ([], [ip_address("172.30.250.53")]):
        known = world(group("default", DUAL_POOLS))
        known.free.take_all(taken)
        before = known.free.counts("default", Family.IPV4)
        made = plan(KEY, view, NOTHING_BOOKED, known, NOW)
        assert refusal(made) is Reason.INVALID_REQUEST
        assert known.free.counts("default", Family.IPV4) == before
        assert plan(KEY, published(view, made), refused_booked(made), known, NOW).silent


@pytest.mark.spec("E1", "A31")
def test_a_foreign_ingress_with_nasty_text_is_booked_once() -> None:
    view = service(ingress=tuple(Ingress("", f"host\0{n}", "") for n in range(500)))
    made = plan(KEY, view, NOTHING_BOOKED, world(group()), NOW)
    assert plan(KEY, view, refused_booked(made), world(group()), NOW).silent


texts = st.text(max_size=40) | st.sampled_from(["10.0.0.7", "172.30.250.53", "fd30::53", "default", "", " ", *NASTY])
views = st.builds(
    service,
    type=st.sampled_from(["LoadBalancer", "LoadBalancer", "ClusterIP", "ExternalName", "junk", ""]),
    load_balancer_class=st.sampled_from([None, None, names.LOAD_BALANCER_CLASS, "", "x/y"]),
    load_balancer_ip=texts,
    ip_families=st.lists(st.sampled_from(["IPv4", "IPv6", "IPv5", ""]), max_size=4).map(tuple),
    ip_family_policy=st.sampled_from([None, "SingleStack", "PreferDualStack", "RequireDualStack", "junk"]),
    cluster_ip=st.sampled_from(["", "None", "10.96.0.1", "fd00::1", "junk"]),
    ports=st.lists(
        st.builds(Port, st.sampled_from(["TCP", "UDP", "SCTP", "tcp", "FOO", ""]), st.integers(-(2**70), 2**70)),
        max_size=3,
    ).map(tuple),
    annotations=st.dictionaries(
        st.sampled_from([names.SERVICE_GROUP, names.ADDRESSES, *names.OURS]), texts | st.just(names.BRAND), max_size=5
    ),
    ingress=st.lists(st.builds(Ingress, texts, texts, st.sampled_from(["", "VIP", "Proxy", "junk"])), max_size=3).map(
        tuple
    ),
    conditions=st.lists(
        st.builds(
            Condition,
            st.sampled_from([names.CONDITION_ALLOCATED, names.CONDITION_ANNOUNCED, "x"]),
            st.sampled_from(["True", "False", "", "junk"]),
            texts,
            texts,
            texts,
            st.none() | st.integers(),
        ),
        max_size=2,
        unique_by=lambda c: c.type,
    ).map(tuple),
    deleting=st.booleans(),
)
books = st.sampled_from(
    [
        NOTHING_BOOKED,
        holding("172.30.250.53"),
        holding("172.30.250.53", "fd30::53"),
        holding("172.30.250.53", uid="uid-0"),
        Booked(service=booked_service(ServiceState.PENDING)),
        Booked(former=booked_service(ServiceState.WITHDRAWN)),
        Booked(
            former=booked_service(ServiceState.WITHDRAWN),
            reclaimable=(allocation("172.30.250.54", AllocationState.RELEASING, number=7),),
        ),
    ]
)


def after(booked: Booked, made: Plan) -> Booked:
    """What the book has once the plan is committed, by a few lines of our own."""
    from purelb_sm.domain.book import Allocate, Observe, Revive, Withdraw

    current, held, back = booked.service, list(booked.held), list(booked.reclaimable)
    for action in made.actions:
        match action:
            case Observe() | Revive():
                current = BookedService(action.uid, KEY, ServiceState.PENDING, "", "", "", NOW)
            case Withdraw():
                current = None
            case Leave():
                gone = next(a for a in held if a.id == action.allocation_id)
                held.remove(gone)
                back.append(replace(gone, state=AllocationState.RELEASING))
            case Reclaim():
                mine = next(a for a in back if a.id == action.allocation_id)
                back.remove(mine)
                held.append(replace(mine, state=AllocationState.HELD, group=action.group))
            case Hold():
                held.append(allocation(str(action.address), number=20 + len(held) + len(back), group=action.group))
            case Allocate():
                assert current is not None
                current = replace(current, state=ServiceState.ALLOCATED, reason="", message="")
            case Refuse():
                assert current is not None
                current = replace(current, reason=action.reason.value, message=plain(action.message))
    former = booked.service if booked.service and current is None else booked.former
    return Booked(current, former if current is None else None, tuple(sorted(held, key=lambda a: a.id)), tuple(back))


@settings(max_examples=400, deadline=None)
@given(view=views, booked=books)
def test_no_service_makes_a_plan_fail_and_the_second_plan_is_silent(view: ServiceView, booked: Booked) -> None:
    known = world(group("default", DUAL_POOLS), group("other", pools("10.0.0.7-10.0.0.9")), broken={"bad": "no"})
    known.free.take_all(a.address for a in (*booked.held, *booked.reclaimable))
    current = view
    for _ in range(3):
        made = plan(KEY, current, booked, known, NOW)
        current, booked = published(current, made), after(booked, made)
        if made.silent:
            break
    else:
        pytest.fail(f"no end of it: {made}")
    for event in made.events:
        assert len(event.message) < 1024


# -- which group, which order -------------------------------------------------------------------------------------


def test_two_addresses_of_two_groups_are_told_the_same_way_at_every_pass() -> None:
    """Their allocations are numbered by when they were held, which need not be the order of families."""
    known = world(group("g4", pools("10.0.0.0/24")), group("g6", pools("fd30::/64")))
    view = service(ip_families=DUAL, ip_family_policy="RequireDualStack")
    booked = Booked(
        service=booked_service(),
        held=(allocation("fd30::1", number=1, group="g6"), allocation("10.0.0.1", number=2, group="g4")),
    )
    made = plan(KEY, view, booked, known, NOW)
    assert made.publication is not None
    assert made.publication.annotations[names.ALLOCATED_FROM] == "g4"
    asked = service(
        ip_families=DUAL, ip_family_policy="RequireDualStack", annotations={names.ADDRESSES: "fd30::1,10.0.0.1"}
    )
    fresh = Booked(reclaimable=tuple(replace(a, state=AllocationState.QUARANTINED) for a in booked.held))
    first = plan(KEY, asked, fresh, known, NOW)
    assert plan(KEY, published(asked, first), after(fresh, first), known, NOW).silent


def test_a_slip_in_an_annotation_does_not_turn_the_order_of_addresses_round() -> None:
    known = world(group("default", DUAL_POOLS))
    families = DUAL[::-1]
    booked = holding("172.30.250.53", "fd30::53")
    view = service(ip_families=families, ip_family_policy="RequireDualStack")
    good = published(view, plan(KEY, view, booked, known, NOW))
    assert [i.ip for i in good.ingress] == ["fd30::53", "172.30.250.53"]
    slip = replace(good, annotations={**good.annotations, names.ADDRESSES: "junk"})
    made = plan(KEY, slip, booked, known, NOW)
    assert made.publication is not None
    assert made.publication.ingress is None


def test_an_address_taken_back_belongs_to_the_group_that_has_its_range_now() -> None:
    known = world(group("renamed", pools("10.0.0.0/24")))
    was = allocation("10.0.0.7", AllocationState.QUARANTINED, number=3, group="before")
    view = service(annotations={names.ADDRESSES: "10.0.0.7"})
    known.free.take(was.address)
    booked = Booked(former=booked_service(ServiceState.WITHDRAWN), reclaimable=(was,))
    made = plan(KEY, view, booked, known, NOW)
    assert addresses_of(made) == ["10.0.0.7"]
    assert made.publication is not None
    assert made.publication.annotations[names.ALLOCATED_FROM] == "renamed"
    assert plan(KEY, published(view, made), after(booked, made), known, NOW).silent


@pytest.mark.parametrize("taken", [False, True])
def test_what_no_waiting_helps_is_said_whoever_has_what_at_the_moment(taken: bool) -> None:
    known = world(group())
    if taken:
        known.free.take(ip_address("172.30.250.53"))
    view = service(
        ip_families=DUAL, ip_family_policy="RequireDualStack", annotations={names.ADDRESSES: "172.30.250.53"}
    )
    assert refusal(plan(KEY, view, NOTHING_BOOKED, known, NOW)) is Reason.NO_POOL_FOR_FAMILY


# -- a lost book is rebuilt from what is shown ----------------------------------------------------------------------


@pytest.mark.spec("B12")
def test_what_is_shown_is_adopted_before_any_wish_is_served() -> None:
    """A shows one address and asks (in vain, so far) for the one that B shows: B must not lose it to A."""
    known = world(group())
    a = showing(service(uid="uid-a", annotations={names.ADDRESSES: "172.30.250.54"}), "172.30.250.53")
    b = showing(service(uid="uid-b"), "172.30.250.54")
    first = plan(KEY, a, NOTHING_BOOKED, known, NOW)
    assert addresses_of(first) == ["172.30.250.53"]
    assert first.again
    assert addresses_of(plan(KEY, b, NOTHING_BOOKED, known, NOW)) == ["172.30.250.54"]
    again = plan(KEY, published(a, first), after(NOTHING_BOOKED, first), known, NOW)
    assert not again.actions
    assert not again.again


@pytest.mark.spec("B12")
def test_what_is_shown_is_adopted_rather_than_what_the_claim_had_before() -> None:
    known = world(group())
    old = allocation("172.30.250.53", AllocationState.QUARANTINED, number=4)
    known.free.take(old.address)
    view = showing(service(), "172.30.250.59")
    assert addresses_of(plan(KEY, view, Booked(reclaimable=(old,)), known, NOW)) == ["172.30.250.59"]


# -- others' Services -----------------------------------------------------------------------------------------------


@pytest.mark.spec("A12")
def test_a_copied_brand_does_not_make_anothers_service_ours() -> None:
    """Somebody exported a Service of ours, and applied it under another name and class."""
    view = showing(service(load_balancer_class="example.com/other"), "203.0.113.9")
    assert plan(KEY, view, NOTHING_BOOKED, world(group()), NOW).silent


@pytest.mark.spec("A12", "A18")
def test_anothers_ingress_on_a_service_that_was_ours_stays() -> None:
    """Its type changed twice while we looked away: the class is another's now, and so is the ingress."""
    was = showing(service(), "172.30.250.53")
    view = replace(was, load_balancer_class="example.com/other", ingress=(Ingress("203.0.113.9", "", "VIP"),))
    made = plan(KEY, view, holding("172.30.250.53"), world(group()), NOW)
    after_ = published(view, made)
    assert [i.ip for i in after_.ingress] == ["203.0.113.9"]
    assert not set(after_.annotations) & set(names.OURS)


@pytest.mark.spec("A18", "B5")
@pytest.mark.parametrize("change", [{"deleting": True}, {"load_balancer_class": "example.com/other"}])
def test_an_ingress_of_ours_goes_even_where_the_brand_was_taken_off(change: dict[str, Any]) -> None:
    """Else the address would be shown, and so be releasing, for ever."""
    view = service(ingress=(Ingress("172.30.250.53", "", "VIP"),), **change)
    made = plan(KEY, view, holding("172.30.250.53"), world(group()), NOW)
    assert published(view, made).ingress == ()
    assert plan(KEY, view, after(holding("172.30.250.53"), made), world(group()), NOW).publication == made.publication


@pytest.mark.spec("A31")
def test_an_ingress_with_an_address_that_is_on_its_way_back_from_this_service_is_not_foreign() -> None:
    back = allocation("172.30.250.53", AllocationState.RELEASING, number=3)
    view = service(ingress=(Ingress("172.30.250.53", "", "VIP"),))
    booked = Booked(former=booked_service(ServiceState.WITHDRAWN), reclaimable=(back,))
    made = plan(KEY, view, booked, world(group()), NOW)
    assert addresses_of(made) == ["172.30.250.53"]


# -- Events survive a write that was not taken ----------------------------------------------------------------------


@pytest.mark.spec("A18")
def test_the_event_of_a_release_is_told_when_the_write_is_taken_at_last() -> None:
    known = world(group())
    known.free.take(ip_address("172.30.250.53"))
    view = replace(showing(service(), "172.30.250.53"), deleting=True)
    booked = holding("172.30.250.53")
    first = plan(KEY, view, booked, known, NOW)
    second = plan(KEY, view, after(booked, first), known, NOW)
    assert not second.actions
    assert [e.message for e in second.events] == ["Released IP 172.30.250.53"]
    third = plan(KEY, published(view, second), after(booked, first), known, NOW)
    assert third.silent


@pytest.mark.spec("A14")
def test_the_event_of_a_family_that_left_is_told_when_the_write_is_taken_at_last() -> None:
    known = world(group("default", DUAL_POOLS))
    known.free.take_all([ip_address("172.30.250.53"), ip_address("fd30::53")])
    view = showing(service(), "172.30.250.53", "fd30::53")
    booked = holding("172.30.250.53", "fd30::53")
    first = plan(KEY, view, booked, known, NOW)
    second = plan(KEY, view, after(booked, first), known, NOW)
    assert [e.message for e in second.events] == ["Released IP fd30::53"]
    assert plan(KEY, published(view, second), after(booked, first), known, NOW).silent


@pytest.mark.spec("A3")
def test_an_ip_mode_that_is_not_vip_is_put_right() -> None:
    known = world(group())
    good = published(service(), plan(KEY, service(), holding("172.30.250.53"), known, NOW))
    for mode, right in (("VIP", True), ("", True), ("Proxy", False)):
        view = replace(good, ingress=(Ingress("172.30.250.53", "", mode),))
        assert (plan(KEY, view, holding("172.30.250.53"), known, NOW).publication is None) is right
    named = replace(good, ingress=(Ingress("172.30.250.53", "a.example", "VIP"),))
    assert plan(KEY, named, holding("172.30.250.53"), known, NOW).publication is not None


# -- groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.spec("E1", "A8")
@pytest.mark.parametrize("text", ["9" * 400 + "h", "99999999999h", "400d", "x" * 100_000, "-1s"])
def test_a_quarantine_that_no_clock_can_count_is_refused(text: str) -> None:
    with pytest.raises(InvalidGroup) as caught:
        parse_group(group_view("default", pools("10.0.0.0/24", quarantine=text)))
    assert len(str(caught.value)) < 400


@pytest.mark.spec("E1", "A6")
@pytest.mark.parametrize(
    ("subnet", "pool"),
    [
        ("0.0.0.0/0", "126.0.0.0-128.0.0.0"),
        ("0.0.0.0/0", "223.255.255.0-240.0.0.1"),
        ("0.0.0.0/0", "169.253.0.0-169.255.0.0"),
        ("::/0", "::2-1::"),
        ("::/0", "fe00::-ff00::"),
    ],
)
def test_a_range_with_unusable_addresses_in_its_middle_is_refused(subnet: str, pool: str) -> None:
    family = "v6pools" if ":" in pool else "v4pools"
    spec = {"local": {family: [{"subnet": subnet, "pool": pool}]}}
    with pytest.raises(InvalidGroup):
        parse_group(group_view("default", spec))


scalars = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | texts
json = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "local",
                    "remote",
                    "external",
                    "netbox",
                    "v4pools",
                    "v6pools",
                    "v4pool",
                    "pool",
                    "subnet",
                    "aggregation",
                    "quarantine",
                    "avoidFirstLast",
                    "announce",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(spec=json, version=st.sampled_from(["v1", "v2"]))
def test_a_group_of_any_shape_is_read_or_refused_by_name(spec: Any, version: str) -> None:
    try:
        parse_group(group_view("default", spec, version=version))
    except InvalidGroup as error:
        assert len(str(error)) < 600


def test_a_group_with_very_many_pools_is_read_in_time() -> None:
    import time

    ranges = [f"10.{n // 250}.{n % 250}.0/25" for n in range(1024)]
    spec = {"local": {"v4pools": [{"subnet": "10.0.0.0/8", "pool": r} for r in ranges]}}
    started = time.process_time()
    parse_group(group_view("default", spec))
    assert time.process_time() - started < 2.0
