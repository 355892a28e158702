"""How many addresses of a group a namespace may hold (A30): what counts, what is refused, where there is room again."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from purelb_sm.allocator.blocked import Blocked
from purelb_sm.domain.book import NOTHING_BOOKED, Booked, Hold, Join, Leave, Plan, Reclaim, Refuse
from purelb_sm.domain.choose import Choice, World
from purelb_sm.domain.plan import plan
from purelb_sm.domain.quota import HeldIn, Quota, Room, may_be_served
from purelb_sm.domain.states import AllocationState
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import Reason, Refused
from tests.support.domain import KEY, NOW, allocation, booked_service, group, holding, pools, service, showing, world

V4, V6 = "10.0.0.1-10.0.0.9", "fd00::1-fd00::9"
DUAL: dict[str, Any] = {"ip_families": ("IPv4", "IPv6"), "ip_family_policy": "RequireDualStack"}


def limited(limit: int, *ranges: str, **more: Any) -> World:
    return world(group("default", pools(*(ranges or (V4, V6)), **more) | {"maxPerNamespace": limit}))


def ask(where: World, name: str, namespace: str = "test", **changes: Any) -> Plan:
    key = ServiceKey(namespace, name)
    return plan(key, service(key=key, uid=f"uid-{namespace}-{name}", **changes), NOTHING_BOOKED, where, NOW)


def result(made: Plan) -> str:
    """The addresses that are given, or why none is."""
    why = [a.reason.value for a in made.actions if isinstance(a, Refuse)]
    return why[0] if why else " ".join(str(a.address) for a in made.actions if isinstance(a, Hold | Reclaim | Join))


@pytest.mark.spec("A30")
def test_the_last_that_fits_is_given_and_the_next_of_the_same_batch_is_not() -> None:
    where = limited(2)
    assert [result(ask(where, name)) for name in "abc"] == ["10.0.0.1", "10.0.0.2", "QuotaExceeded"]
    assert where.free.is_free(ip_address("10.0.0.3"))
    # The quota of one namespace is nothing to another.
    assert result(ask(where, "a", "other")) == "10.0.0.3"


@pytest.mark.spec("A30")
def test_a_refusal_names_group_namespace_and_limit_and_waits_for_room() -> None:
    where = limited(1)
    ask(where, "a")
    made = ask(where, "b")
    assert made.waiting
    assert made.obstacles == (Room("test", "default"),)
    message = made.events[0].message
    assert "default" in message
    assert "namespace test" in message
    assert "at most 1 address" in message
    assert "uid-test-a" not in message


@pytest.mark.spec("A30", "A13")
def test_both_families_fit_or_none_is_given() -> None:
    where = limited(3)
    assert result(ask(where, "a", **DUAL)) == "10.0.0.1 fd00::1"
    assert result(ask(where, "b", **DUAL)) == "QuotaExceeded"
    assert where.free.is_free(ip_address("10.0.0.2"))
    assert where.free.is_free(ip_address("fd00::2"))
    assert result(ask(where, "c")) == "10.0.0.2"


@pytest.mark.spec("A30", "A24")
def test_every_address_of_a_multi_pool_service_counts() -> None:
    where = limited(4, "10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24", kind="remote", multiPool=True)
    assert result(ask(where, "a")) == "10.0.1.0 10.0.2.0 10.0.3.0"
    assert result(ask(where, "b")) == "QuotaExceeded"
    assert where.free.is_free(ip_address("10.0.1.1"))


@pytest.mark.spec("A30", "A10")
def test_an_address_asked_for_by_name_counts_too() -> None:
    where = limited(1)
    assert result(ask(where, "a", annotations={"purelb.io/addresses": "10.0.0.7"})) == "10.0.0.7"
    assert result(ask(where, "b", annotations={"purelb.io/addresses": "10.0.0.8"})) == "QuotaExceeded"
    assert where.free.is_free(ip_address("10.0.0.8"))


@pytest.mark.spec("A30")
def test_each_group_counts_for_itself() -> None:
    where = world(
        group("default", pools("10.0.0.1-10.0.0.9") | {"maxPerNamespace": 1}),
        group("free", pools("10.0.1.1-10.0.1.9")),
        group("tight", pools("10.0.2.1-10.0.2.9") | {"maxPerNamespace": 1}),
    )
    wishes = [None, "free", "free", "tight", "tight", None]
    notes = [{"purelb.io/service-group": wish} if wish else {} for wish in wishes]
    given = [result(ask(where, f"s{n}", annotations=note)) for n, note in enumerate(notes)]
    assert given == ["10.0.0.1", "10.0.1.1", "10.0.1.2", "10.0.2.1", "QuotaExceeded", "QuotaExceeded"]


@pytest.mark.spec("A30", "A15")
def test_a_shared_address_counts_once_for_its_namespace() -> None:
    where = limited(1)
    note = {"purelb.io/allow-shared-ip": "k"}
    given = []
    for number, name in enumerate("abc"):
        ports = tuple(p._replace(port=80 + number) for p in service().ports)
        given.append(result(ask(where, name, annotations=note, ports=ports)))
    assert given == ["10.0.0.1"] * 3
    assert where.quota.held("test", "default") == 1
    assert result(ask(where, "d")) == "QuotaExceeded"


@pytest.mark.spec("A30", "A15")
def test_an_address_shared_across_namespaces_counts_once_in_each() -> None:
    where = world(group("default", pools(V4) | {"maxPerNamespace": 1, "sharing": "Cluster"}))
    where = replace(where, groups={"default": replace(where.groups["default"], shares_across_namespaces=True)})
    note = {"purelb.io/allow-shared-ip": "k"}
    for number, namespace in enumerate(("one", "two")):
        ports = tuple(p._replace(port=80 + number) for p in service().ports)
        assert result(ask(where, "a", namespace, annotations=note, ports=ports)) == "10.0.0.1"
        assert result(ask(where, "b", namespace)) == "QuotaExceeded"


@pytest.mark.spec("A30", "A18")
def test_who_leaves_makes_room_and_says_so_unless_others_of_the_namespace_stay() -> None:
    quota = Quota({"default": 3})
    address = ip_address("10.0.0.1")
    a, b = ServiceKey("test", "a"), ServiceKey("test", "b")
    quota.follow([Hold(a, "a", address, "default", ()), Join(b, "b", address, "default", "k", ())])
    assert quota.held("test", "default") == 1
    assert quota.follow([Leave(a, "a", 1, address, "")]) == []
    assert quota.follow([Leave(b, "b", 1, address, "")]) == [Room("test", "default", 3)]
    assert quota.held("test", "default") == 0
    # What was never counted is not counted down.
    assert quota.follow([Leave(b, "b", 1, address, "")]) == []
    assert quota.held("test", "default") == 0


@pytest.mark.spec("A30", "A22")
def test_a_limit_lowered_below_use_takes_nothing_and_gives_nothing() -> None:
    where = limited(1)
    mine = holding("10.0.0.1", "10.0.0.2")
    where.quota.learn({"test"}, [HeldIn("test", "default", a.address, 1) for a in mine.held])
    where.free.take_all(a.address for a in mine.held)
    view = showing(service(), "10.0.0.1", "10.0.0.2")
    assert not plan(KEY, view, mine, where, NOW).actions
    assert result(ask(where, "b")) == "QuotaExceeded"


@pytest.mark.spec("A30", "A10")
@pytest.mark.parametrize("limit", [1, 2])
def test_at_the_limit_an_address_can_be_changed_for_another(limit: int) -> None:
    where = limited(limit)
    held = [HeldIn("test", "default", ip_address(f"10.0.0.{n}"), 1) for n in (1, 2)]
    where.quota.learn({"test"}, held)
    where.free.take_all(one.address for one in held)
    view = showing(service(annotations={"purelb.io/addresses": "10.0.0.5"}), "10.0.0.1")
    made = plan(KEY, view, holding("10.0.0.1"), where, NOW)
    assert result(made) == "10.0.0.5"
    assert where.quota.held("test", "default") == 2


@pytest.mark.spec("A30", "A14")
def test_a_family_added_at_the_limit_is_refused_and_the_other_kept() -> None:
    where = limited(1)
    where.quota.learn({"test"}, [HeldIn("test", "default", ip_address("10.0.0.1"), 1)])
    where.free.take(ip_address("10.0.0.1"))
    made = plan(KEY, showing(service(**DUAL), "10.0.0.1"), holding("10.0.0.1"), where, NOW)
    assert not made.actions
    assert made.publication is not None
    assert made.publication.ingress is None
    assert made.publication.conditions is not None
    assert made.publication.conditions[0].reason == Reason.QUOTA_EXCEEDED


@pytest.mark.spec("A30", "A20")
def test_a_namesake_takes_over_at_the_limit() -> None:
    """The old one leaves in the same plan: its address does not stand in the way of its own return."""
    where = limited(1)
    where.quota.learn({"test"}, [HeldIn("test", "default", ip_address("10.0.0.1"), 1)])
    where.free.take(ip_address("10.0.0.1"))
    booked = Booked(service=booked_service(uid="old"), held=(allocation("10.0.0.1"),))
    assert result(plan(KEY, service(uid="new"), booked, where, NOW)) == "10.0.0.1"
    assert where.quota.held("test", "default") == 1


@pytest.mark.spec("A30", "A19")
def test_what_is_in_quarantine_is_held_by_nobody_and_counts_when_it_is_had_back() -> None:
    where = limited(1)
    where.free.take(ip_address("10.0.0.1"))
    quarantined = allocation("10.0.0.1", AllocationState.QUARANTINED, quarantined_until=NOW)
    assert result(ask(where, "other")) == "10.0.0.2"
    assert result(plan(KEY, service(), Booked(reclaimable=(quarantined,)), where, NOW)) == "QuotaExceeded"


@pytest.mark.spec("A30", "B12")
def test_what_is_shown_is_adopted_over_any_limit_and_counts() -> None:
    where = limited(1)
    views = [showing(service(key=ServiceKey("test", n), uid=n), f"10.0.0.{i}") for i, n in enumerate("ab", 1)]
    assert [result(plan(v.key, v, NOTHING_BOOKED, where, NOW)) for v in views] == ["10.0.0.1", "10.0.0.2"]
    assert where.quota.held("test", "default") == 2


def test_without_a_limit_nothing_is_learned_or_counted() -> None:
    where = world(group())
    assert where.quota.unknown(["test"]) == []
    ask(where, "a")
    assert where.quota.held("test", "default") == 0


def test_a_namespace_is_learned_once_even_if_it_holds_nothing() -> None:
    quota = Quota({"default": 1})
    assert quota.unknown(["b", "a", "b"]) == ["a", "b"]
    quota.learn(["a"], [])
    assert quota.unknown(["b", "a"]) == ["b"]


def test_the_check_is_by_group_and_ignores_what_the_namespace_has_already() -> None:
    quota = Quota({"x": 1, "y": 1})
    quota.learn(["n"], [HeldIn("n", "x", ip_address("10.0.0.1"), 2), HeldIn("n", "z", ip_address("10.0.0.9"), 1)])
    quota.check("n", [], [Choice(ip_address("10.0.0.1"), "x"), Choice(ip_address("10.0.1.1"), "y")])
    with pytest.raises(Refused, match="at most 1 address; 2 at once"):
        quota.check("n", [], [Choice(ip_address("10.0.1.1"), "y"), Choice(ip_address("10.0.1.2"), "y")])
    # The address stays held by the other member, so leaving it makes no room.
    with pytest.raises(Refused):
        quota.check("n", [allocation("10.0.0.1")], [Choice(ip_address("10.0.0.2"), "x")])


@pytest.mark.spec("A30")
def test_who_needs_more_than_there_is_room_for_does_not_stand_before_who_needs_less() -> None:
    assert [room for room, _ in may_be_served([Room("n", "g", 1)])] == [Room("n", "g", 1)]
    assert [room.addresses for room, _ in may_be_served([Room("n", "g", 1), Room("n", "g", 3)])] == [1, 2, 3]
    assert len(list(may_be_served([Room("n", "g", 10**6)]))) == 64


@pytest.mark.spec("A30", "A29")
def test_of_thousands_that_wait_for_a_quota_few_are_called_and_the_longest_waiting_first() -> None:
    blocked = Blocked()
    keys = [ServiceKey("n", f"s{number}") for number in range(5000)]
    for key in keys:
        blocked.note(key, (Room("n", "g", 1),))
    blocked.note(ServiceKey("n", "big"), (Room("n", "g", 2),))
    called = blocked.waiting_for([Room("n", "g", 1)])
    assert called == keys[: len(called)]
    assert 1 <= len(called) < 100
    # Refused once more, they keep their places.
    for key in called[:10]:
        blocked.note(key, (Room("n", "g", 1),))
    blocked.note(called[0], ())
    assert blocked.waiting_for([Room("n", "g", 1)])[:9] == keys[1:10]
    assert ServiceKey("n", "big") in blocked.waiting_for([Room("n", "g", 1), Room("n", "g", 2)])
    # So many that leave at once call as many.
    assert set(blocked.waiting_for(Room("n", "g", number + 1) for number in range(1000))) >= set(keys[1:1001])
    assert blocked.waiting_for([Room("n", "other", 1), Room("m", "g", 1)]) == []
