"""Which group may serve which namespace: by default, and as a boundary (A25)."""

from __future__ import annotations

from typing import Any

import pytest

from purelb_sm.domain.book import NOTHING_BOOKED, Hold, Plan, Refuse
from purelb_sm.domain.choose import World
from purelb_sm.domain.groups import Group
from purelb_sm.domain.namespaces import Bindings
from purelb_sm.domain.plan import plan
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import InvalidGroup, Reason
from tests.support.domain import NOW, group, holding, pools, service, showing, world

A, B = "tenant-a", "tenant-b"


def bound(name: str, octet: int, *namespaces: str, enforce: bool = False, default: bool = False) -> Group:
    spec = pools(f"10.0.{octet}.1-10.0.{octet}.9")
    spec |= {"namespaces": list(namespaces), "enforceNamespaces": enforce, "namespaceDefault": default}
    return group(name, spec)


def asks(namespace: str, where: World, **changes: Any) -> Plan:
    view = service(key=ServiceKey(namespace, "echo"), **changes)
    return plan(view.key, view, NOTHING_BOOKED, where, NOW)


def outcome(made: Plan) -> str:
    """The group that was chosen, or why none was."""
    for action in made.actions:
        if isinstance(action, Hold):
            return action.group
        if isinstance(action, Refuse):
            return action.reason.value
    raise AssertionError(made)


@pytest.mark.spec("A25")
@pytest.mark.parametrize(
    ("namespace", "annotation", "expected"),
    [
        (A, None, "a-pool"),
        (B, None, "default"),
        (A, "default", "default"),
        (B, "a-pool", "a-pool"),
    ],
)
def test_a_list_of_namespaces_is_a_default_and_no_boundary(namespace: str, annotation: str, expected: str) -> None:
    groups = world(bound("default", 1), bound("a-pool", 2, A))
    annotations = {"purelb.io/service-group": annotation} if annotation else {}
    assert outcome(asks(namespace, groups, annotations=annotations)) == expected


@pytest.mark.spec("A25")
@pytest.mark.parametrize(
    ("namespace", "annotations", "expected"),
    [
        (A, {}, "a-l2"),
        (A, {"purelb.io/service-group": "a-bgp"}, "a-bgp"),
        (A, {"purelb.io/service-group": "default"}, "NamespaceNotAllowed"),
        (A, {"purelb.io/addresses": "10.0.3.4"}, "a-bgp"),
        (A, {"purelb.io/addresses": "10.0.1.4"}, "NamespaceNotAllowed"),
        (B, {}, "default"),
        (B, {"purelb.io/service-group": "a-l2"}, "NamespaceNotAllowed"),
        # Its own flag is not set: the boundary is the namespace's.
        (B, {"purelb.io/service-group": "a-bgp"}, "NamespaceNotAllowed"),
        (B, {"purelb.io/addresses": "10.0.2.4"}, "NamespaceNotAllowed"),
        (B, {"purelb.io/addresses": "10.0.3.4"}, "NamespaceNotAllowed"),
    ],
)
def test_one_enforcing_group_is_a_boundary_both_ways_for_all_groups_of_the_namespace(
    namespace: str, annotations: dict[str, str], expected: str
) -> None:
    groups = world(bound("default", 1), bound("a-l2", 2, A, enforce=True, default=True), bound("a-bgp", 3, A))
    assert outcome(asks(namespace, groups, annotations=annotations)) == expected


@pytest.mark.spec("A25", "A11")
def test_a_forbidden_address_is_refused_alike_whether_it_is_in_use_or_not() -> None:
    groups = world(bound("default", 1), bound("a-pool", 2, A, enforce=True))
    free = asks(B, groups, annotations={"purelb.io/addresses": "10.0.2.1"})
    assert outcome(asks(A, groups)) == "a-pool"
    taken = asks(B, groups, annotations={"purelb.io/addresses": "10.0.2.1"})
    assert taken.actions == free.actions
    assert "echo" not in taken.events[0].message


@pytest.mark.spec("A25")
@pytest.mark.parametrize("marked", [(), (2, 3)])
def test_of_several_groups_without_one_default_none_is_taken(marked: tuple[int, ...]) -> None:
    relaxed = world(
        bound("default", 1), bound("one", 2, A, default=2 in marked), bound("two", 3, A, default=3 in marked)
    )
    made = asks(A, relaxed)
    assert outcome(made) == "default"
    warning = next(e for e in made.events if e.reason == "ConfigurationWarning")
    assert "one, two" in warning.message
    assert "namespaceDefault" in warning.message
    strict = world(
        bound("default", 1),
        bound("one", 2, A, default=2 in marked, enforce=True),
        bound("two", 3, A, default=3 in marked),
    )
    assert outcome(asks(A, strict)) == "AmbiguousServiceGroup"
    assert outcome(asks(A, strict, annotations={"purelb.io/service-group": "two"})) == "two"


@pytest.mark.spec("A25")
def test_a_warning_of_ambiguity_is_not_said_again_of_what_is_shown() -> None:
    groups = world(bound("default", 1), bound("one", 2, A), bound("two", 3, A))
    groups.free.take_all([a.address for a in holding("10.0.1.1").held])
    view = showing(service(key=ServiceKey(A, "echo")), "10.0.1.1")
    assert plan(view.key, view, holding("10.0.1.1"), groups, NOW).events == ()


@pytest.mark.spec("A25")
def test_a_default_group_that_serves_one_confined_namespace_serves_no_other() -> None:
    groups = world(bound("default", 1, A, enforce=True))
    assert outcome(asks(A, groups)) == "default"
    assert outcome(asks(B, groups)) == "NamespaceNotAllowed"


@pytest.mark.spec("A25", "A22")
def test_a_boundary_that_comes_later_takes_nothing_from_a_holder() -> None:
    groups = world(bound("default", 1), bound("a-pool", 2, A, enforce=True))
    groups.free.take_all([a.address for a in holding("10.0.1.1").held])
    view = showing(service(key=ServiceKey(A, "echo")), "10.0.1.1")
    made = plan(view.key, view, holding("10.0.1.1"), groups, NOW)
    assert not [a for a in made.actions if not isinstance(a, Hold)]
    assert made.publication is None or made.publication.ingress is None


@pytest.mark.spec("A25")
def test_a_namespace_listed_twice_is_listed_once() -> None:
    assert outcome(asks(A, world(bound("a-pool", 2, A, A, enforce=True)))) == "a-pool"


@pytest.mark.spec("A25")
def test_what_is_ambiguous_does_not_depend_on_the_order_of_groups() -> None:
    one, two, three = bound("one", 2, A, B), bound("two", 3, A), bound("three", 4, B, default=True)
    some = Bindings({g.name: g for g in (one, two, three)})
    other = Bindings({g.name: g for g in (three, two, one)})
    assert some.conflicts() == other.conflicts()
    assert set(some.conflicts()) == {"one", "two"}
    assert some.default_group(B) == other.default_group(B) == "three"


@pytest.mark.spec("A25", "A8")
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"namespaces": "a"}, r"spec\.namespaces: 'a': must be a list"),
        ({"namespaces": ["ok", None]}, r"spec\.namespaces\[1\]: None"),
        ({"namespaces": ["Upper"]}, r"spec\.namespaces\[0\]: 'Upper'"),
        ({"namespaces": ["a" * 64]}, r"spec\.namespaces\[0\]"),
        ({"namespaces": ["a/b"]}, r"spec\.namespaces\[0\]"),
        ({"namespaces": ["-a"]}, r"spec\.namespaces\[0\]"),
        ({"namespaces": ["a\n"]}, r"spec\.namespaces\[0\]"),
        ({"namespaces": ["*"]}, r"spec\.namespaces\[0\]"),
        ({"namespaces": [f"n{i}" for i in range(1025)]}, r"spec\.namespaces: 1025: has more than 1024"),
        ({"enforceNamespaces": True}, r"spec\.enforceNamespaces: True: needs namespaces"),
        ({"enforceNamespaces": "true", "namespaces": ["a"]}, r"spec\.enforceNamespaces: 'true': must be true or false"),
        ({"namespaceDefault": True, "namespaces": []}, r"spec\.namespaceDefault: True: needs namespaces"),
        ({"maxPerNamespace": 0}, r"spec\.maxPerNamespace: 0: must be a whole number from 1"),
        ({"maxPerNamespace": -1}, r"spec\.maxPerNamespace: -1"),
        ({"maxPerNamespace": True}, r"spec\.maxPerNamespace: True"),
        ({"maxPerNamespace": "3"}, r"spec\.maxPerNamespace: '3'"),
        ({"maxPerNamespace": 1.5}, r"spec\.maxPerNamespace: 1.5"),
        ({"maxPerNamespace": 2**40}, r"spec\.maxPerNamespace"),
    ],
)
def test_a_slip_in_the_rule_refuses_the_group_by_field_and_value(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidGroup, match=named):
        group("g", pools("10.0.0.1-10.0.0.9") | fields)


@pytest.mark.spec("A25")
def test_a_thousand_groups_of_one_namespace_make_a_short_sentence() -> None:
    many = {f"g{i:04}": bound(f"g{i:04}", 1, A, enforce=True) for i in range(1000)}
    why = Bindings(many).ambiguity(A)
    assert len(why) < 200
    assert "995 more" in why
    assert Reason.AMBIGUOUS_SERVICE_GROUP in set(Reason)
