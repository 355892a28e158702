"""Which ranges serve a Service: one of each (multiPool), the emptiest (balancePools), those where nodes are (A24)."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from purelb_sm.domain.addresses import AddressRange
from purelb_sm.domain.book import NOTHING_BOOKED, Booked, Hold, Leave, Plan, Reclaim, Refuse
from purelb_sm.domain.choose import World
from purelb_sm.domain.groups import Group
from purelb_sm.domain.plan import plan
from purelb_sm.domain.ranges import Reach
from purelb_sm.domain.reservations import Reservation, Reservations
from purelb_sm.domain.states import AllocationState
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import InvalidGroup
from tests.support.domain import KEY, NOW, allocation, group, holding, pools, service, showing, world

V4 = ("10.0.1.1-10.0.1.4", "10.0.2.1-10.0.2.4", "10.0.3.1-10.0.3.4")
V6 = ("fd00:1::1-fd00:1::4", "fd00:2::1-fd00:2::4")
DUAL: dict[str, Any] = {"ip_families": ("IPv6", "IPv4"), "ip_family_policy": "RequireDualStack"}


def multi(*ranges: str, kind: str = "local", version: str = "v2", **more: Any) -> Group:
    return group("default", pools(*(ranges or V4), kind=kind, multiPool=True, **more), version=version)


def reach(*subnets: str) -> Reach:
    return Reach(ip_network(s) for s in subnets)


def near(*subnets: str, groups: tuple[Group, ...] = ()) -> World:
    return world(*(groups or (multi(),)), reach=reach(*subnets))


def held(made: Plan) -> list[str]:
    return [str(a.address) for a in made.actions if isinstance(a, Hold | Reclaim)]


def refused(made: Plan) -> str:
    return next(a.reason.value for a in made.actions if isinstance(a, Refuse))


def ask(where: World, booked: Booked = NOTHING_BOOKED, **changes: Any) -> Plan:
    return plan(KEY, service(**changes), booked, where, NOW)


@pytest.mark.spec("A24")
def test_a_local_service_gets_one_address_of_each_range_where_a_live_node_is() -> None:
    made = ask(near("10.0.1.0/24", "10.0.3.0/24", "192.168.0.0/16"))
    assert held(made) == ["10.0.1.1", "10.0.3.1"]
    assert made.publication is not None
    assert [str(a) for a in made.publication.ingress or ()] == ["10.0.1.1", "10.0.3.1"]


@pytest.mark.spec("A24")
@pytest.mark.parametrize("pool_group", [multi(kind="remote"), multi(version="v1")])
def test_every_range_of_a_group_that_nodes_need_no_subnet_for(pool_group: Group) -> None:
    assert held(ask(world(pool_group))) == ["10.0.1.1", "10.0.2.1", "10.0.3.1"]


@pytest.mark.spec("A24")
def test_ingress_is_in_the_order_of_families_and_then_of_ranges_as_written() -> None:
    shuffled = multi(V4[2], V6[1], V4[0], V6[0], V4[1], kind="remote")
    made = ask(world(shuffled), **DUAL)
    assert made.publication is not None
    assert [str(a) for a in made.publication.ingress or ()] == [
        "fd00:2::1",
        "fd00:1::1",
        "10.0.3.1",
        "10.0.1.1",
        "10.0.2.1",
    ]
    assert "fd00:2::1, fd00:1::1, 10.0.3.1" in made.events[0].message


@pytest.mark.spec("A24")
def test_without_a_node_in_any_subnet_it_is_refused_and_nothing_is_taken() -> None:
    where = near("10.9.0.0/24")
    assert refused(ask(where)) == "NoNodeInSubnet"
    assert where.free.is_free(ip_address("10.0.1.1"))


@pytest.mark.spec("A24")
def test_a_family_that_cannot_be_served_gives_back_what_the_other_had_taken() -> None:
    where = world(multi(*V4, *V6), reach=reach("10.0.1.0/24"))
    assert refused(ask(where, ip_families=("IPv4", "IPv6"), ip_family_policy="RequireDualStack")) == "NoNodeInSubnet"
    assert where.free.is_free(ip_address("10.0.1.1"))


@pytest.mark.spec("A24")
def test_a_full_range_is_passed_over_and_all_full_is_refused() -> None:
    where = near("10.0.0.0/16")
    where.free.take_all(ip_address(f"10.0.2.{i}") for i in range(1, 5))
    assert held(ask(where)) == ["10.0.1.1", "10.0.3.1"]
    where.free.take_all(ip_address(f"10.0.{r}.{i}") for r in (1, 3) for i in range(1, 5))
    assert refused(ask(where)) == "PoolExhausted"


@pytest.mark.spec("A24")
@pytest.mark.parametrize(
    ("annotation", "of_group", "count"), [("true", False, 3), ("false", True, 1), ("true", True, 3), (None, True, 3)]
)
def test_the_annotation_goes_before_the_group(annotation: str | None, of_group: bool, count: int) -> None:
    annotations = {} if annotation is None else {"purelb.io/multi-pool": annotation}
    where = world(group("default", pools(*V4, multiPool=of_group)), reach=reach("10.0.0.0/8"))
    assert len(held(ask(where, annotations=annotations))) == count


@pytest.mark.spec("A24", "E1")
@pytest.mark.parametrize("value", ["yes", "", "True", "1", "true,false", "\x00"])
def test_another_value_of_the_annotation_is_refused_by_name(value: str) -> None:
    made = ask(near("10.0.0.0/8"), annotations={"purelb.io/multi-pool": value})
    assert refused(made) == "InvalidRequest"
    assert "purelb.io/multi-pool" in made.events[0].message


@pytest.mark.spec("A24")
def test_later_nodes_and_ranges_add_nothing_until_somebody_asks_for_it() -> None:
    where = near("10.0.0.0/16")
    where.free.take(ip_address("10.0.1.1"))
    view = showing(service(), "10.0.1.1")
    quiet = plan(KEY, view, holding("10.0.1.1"), where, NOW)
    assert not quiet.actions
    view.annotations["purelb.io/re-evaluate"] = "true"
    made = plan(KEY, view, holding("10.0.1.1"), where, NOW)
    assert held(made) == ["10.0.2.1", "10.0.3.1"]
    assert not [a for a in made.actions if isinstance(a, Leave)]
    assert made.publication is not None
    assert [str(a) for a in made.publication.ingress or ()] == ["10.0.1.1", "10.0.2.1", "10.0.3.1"]


@pytest.mark.spec("A24")
def test_a_range_whose_last_node_died_keeps_its_holders_and_gives_nothing_new() -> None:
    where = near("10.0.1.0/24")
    where.free.take_all(ip_address(a) for a in ("10.0.1.1", "10.0.3.1"))
    view = showing(service(), "10.0.1.1", "10.0.3.1")
    for anew in ({}, {"purelb.io/re-evaluate": "true"}):
        view.annotations.update(anew)
        made = plan(KEY, view, holding("10.0.1.1", "10.0.3.1"), where, NOW)
        assert not made.actions
        assert made.publication is None or made.publication.ingress is None
    other = ServiceKey("test", "other")
    assert held(plan(other, service(key=other, uid="u"), NOTHING_BOOKED, where, NOW)) == ["10.0.1.2"]


@pytest.mark.spec("A24")
def test_re_evaluation_with_nothing_to_add_changes_nothing() -> None:
    where = near("10.0.0.0/16")
    addresses = ("10.0.1.1", "10.0.2.1", "10.0.3.1")
    where.free.take_all(ip_address(a) for a in addresses)
    view = showing(service(), *addresses)
    quiet = plan(KEY, view, holding(*addresses), where, NOW)
    view.annotations["purelb.io/re-evaluate"] = "true"
    again = plan(KEY, view, holding(*addresses), where, NOW)
    assert (again.actions, again.events) == (quiet.actions, quiet.events) == ((), ())


@pytest.mark.spec("A24", "A22")
def test_multi_pool_switched_off_leaves_holders_what_they_have() -> None:
    where = world(group("default", pools(*V4)))
    addresses = ("10.0.1.1", "10.0.2.1")
    where.free.take_all(ip_address(a) for a in addresses)
    assert not plan(KEY, showing(service(), *addresses), holding(*addresses), where, NOW).actions


@pytest.mark.spec("A24", "A23")
def test_multi_pool_switched_off_and_planned_anew_the_first_of_each_family_stays() -> None:
    where = world(group("default", pools(V4[1], V4[0], *V6)))
    addresses = ("10.0.1.1", "10.0.2.2", "fd00:1::1", "fd00:2::1")
    where.free.take_all(ip_address(a) for a in addresses)
    notes = {"purelb.io/re-evaluate": "true"}
    view = showing(service(annotations=notes, **DUAL), "fd00:1::1", "fd00:2::1", "10.0.2.2", "10.0.1.1")
    made = plan(KEY, view, holding(*addresses), where, NOW)
    assert not held(made)
    assert sorted(str(a.address) for a in made.actions if isinstance(a, Leave)) == ["10.0.1.1", "fd00:2::1"]
    assert made.publication is not None
    assert [str(a) for a in made.publication.ingress or ()] == ["fd00:1::1", "10.0.2.2"]


@pytest.mark.spec("A24", "A10")
def test_an_address_asked_for_is_the_only_one_of_its_family() -> None:
    where = world(multi(*V4, *V6, kind="remote"))
    made = ask(where, **DUAL, annotations={"purelb.io/addresses": "10.0.2.3"})
    assert held(made) == ["fd00:1::1", "fd00:2::1", "10.0.2.3"]


@pytest.mark.spec("A24", "A10")
def test_re_evaluation_of_a_pinned_service_does_not_ask_for_its_own_address() -> None:
    where = near("10.0.0.0/16")
    where.free.take(ip_address("10.0.2.3"))
    notes = {"purelb.io/addresses": "10.0.2.3", "purelb.io/re-evaluate": "true"}
    view = showing(service(annotations=notes), "10.0.2.3")
    assert not plan(KEY, view, holding("10.0.2.3"), where, NOW).actions


@pytest.mark.spec("A24", "A20")
def test_made_again_it_gets_back_its_address_of_each_range() -> None:
    where = near("10.0.0.0/16")
    old = tuple(
        allocation(a, AllocationState.QUARANTINED, number=i + 1, quarantined_until=NOW)
        for i, a in enumerate(("10.0.3.3", "10.0.1.2"))
    )
    where.free.take_all(a.address for a in old)
    made = ask(where, Booked(reclaimable=old), uid="uid-2")
    assert sorted(held(made)) == ["10.0.1.2", "10.0.2.1", "10.0.3.3"]
    assert {a.allocation_id for a in made.actions if isinstance(a, Reclaim)} == {1, 2}


@pytest.mark.spec("A24", "A14")
def test_a_family_added_later_gets_an_address_of_each_of_its_ranges() -> None:
    where = world(multi(*V4, *V6, kind="remote"))
    where.free.take(ip_address("10.0.1.1"))
    view = showing(service(ip_families=("IPv4", "IPv6"), ip_family_policy="RequireDualStack"), "10.0.1.1")
    assert held(plan(KEY, view, holding("10.0.1.1"), where, NOW)) == ["fd00:1::1", "fd00:2::1"]


@pytest.mark.spec("A24")
def test_balanced_goes_to_the_range_with_the_fewest_in_use() -> None:
    where = world(group("default", pools("10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/30", balancePools=True)))
    where.free.take_all([ip_address("10.0.1.0"), ip_address("10.0.1.1"), ip_address("10.0.3.0")])
    given = []
    for number in range(6):
        view = service(key=ServiceKey("test", f"s{number}"), uid=f"u{number}")
        given += held(plan(view.key, view, NOTHING_BOOKED, where, NOW))
    assert given == ["10.0.2.0", "10.0.2.1", "10.0.3.1", "10.0.1.2", "10.0.2.2", "10.0.3.2"]


@pytest.mark.spec("A24")
def test_balanced_counts_again_what_was_given_back_and_passes_over_full_ranges() -> None:
    where = world(group("default", pools("10.0.1.0/31", "10.0.2.0/24", balancePools=True)))
    where.free.take_all(
        [ip_address("10.0.1.0"), ip_address("10.0.1.1"), *(ip_address(f"10.0.2.{i}") for i in range(5))]
    )
    assert held(ask(where)) == ["10.0.2.5"]
    where.free.give_back(ip_address("10.0.1.1"))
    assert held(ask(where)) == ["10.0.1.1"]


@pytest.mark.spec("A24")
def test_each_family_is_balanced_by_itself() -> None:
    where = world(group("default", pools(*V4, *V6, balancePools=True)))
    where.free.take_all([ip_address("10.0.1.1"), ip_address("fd00:1::1"), ip_address("10.0.2.1")])
    assert held(ask(where, **DUAL)) == ["fd00:2::1", "10.0.3.1"]


@pytest.mark.spec("A24", "A8")
@pytest.mark.parametrize("kind", ["local", "remote"])
def test_multi_and_balanced_together_refuse_the_group(kind: str) -> None:
    with pytest.raises(InvalidGroup, match=rf"spec\.{kind}\.balancePools"):
        group("g", pools(*V4, kind=kind, multiPool=True, balancePools=True))


@pytest.mark.spec("A24")
def test_the_annotation_on_a_balanced_group_refuses_the_service() -> None:
    where = world(group("default", pools(*V4, balancePools=True)), reach=reach("10.0.0.0/8"))
    assert refused(ask(where, annotations={"purelb.io/multi-pool": "true"})) == "InvalidRequest"
    assert held(ask(where, annotations={"purelb.io/multi-pool": "false"})) == ["10.0.1.1"]


@pytest.mark.spec("A24", "E1")
def test_more_ranges_than_a_service_can_show_are_refused_by_name() -> None:
    many = [f"10.1.{i}.0/28" for i in range(65)]
    with pytest.raises(InvalidGroup, match=r"spec\.remote\.multiPool"):
        group("g", pools(*many, kind="remote", multiPool=True))
    where = world(group("default", pools(*many, kind="remote")))
    assert refused(ask(where, annotations={"purelb.io/multi-pool": "true"})) == "InvalidRequest"
    assert where.free.is_free(ip_address("10.1.0.0"))


@pytest.mark.parametrize(
    ("subnets", "range_", "expected"),
    [
        ((), "10.0.0.1-10.0.0.9", False),
        (("10.0.0.0/24",), "10.0.0.1-10.0.0.9", True),
        (("10.0.0.0/24",), "10.0.1.0-10.0.1.9", False),
        (("10.0.0.0/8", "10.0.0.0/24"), "10.200.0.0-10.200.0.9", True),
        (("10.0.0.0/24", "10.0.2.0/24"), "10.0.0.255-10.0.1.0", True),
        (("10.0.0.0/24", "10.0.2.0/24"), "10.0.1.0-10.0.1.255", False),
        (("10.0.0.0/24", "10.0.2.0/24"), "9.0.0.0-11.0.0.0", True),
        (("::a00:0/120",), "10.0.0.1-10.0.0.9", False),
        (("fd00::/64", "10.0.0.0/24"), "fd00::1-fd00::2", True),
    ],
)
def test_a_range_is_in_reach_if_a_live_subnet_has_some_of_it(
    subnets: tuple[str, ...], range_: str, expected: bool
) -> None:
    first, _, last = range_.partition("-")
    assert reach(*subnets).touches(AddressRange(ip_address(first), ip_address(last))) is expected


@pytest.mark.spec("A24", "A26")
def test_in_each_range_what_is_reserved_for_the_service_comes_first_and_for_others_never() -> None:
    mine, other = str(KEY), "else/where"
    promised = Reservations(
        Reservation(n, AddressRange(ip_address(a), ip_address(b)), claim, "", "", NOW)
        for n, (a, b, claim) in enumerate(
            [("10.0.1.1", "10.0.1.2", other), ("10.0.2.3", "10.0.2.4", mine), ("10.0.3.1", "10.0.3.4", None)]
        )
    )
    where = world(multi(), reach=reach("10.0.0.0/16"), reservations=promised)
    where.free.reserve(promised.ranges)
    assert held(ask(where)) == ["10.0.1.3", "10.0.2.3"]
