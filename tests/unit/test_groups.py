"""ServiceGroups: what is read, what is refused by name of field and value, and which of two that overlap is used."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purelb_sm.domain.addresses import Family
from purelb_sm.domain.groups import PoolType, accept_groups, parse_group
from purelb_sm.errors import InvalidGroup
from tests.support.domain import NOW, group, group_view, pools

SUBNET = "172.31.1.0/24"


def v4(pool: Any, subnet: Any = SUBNET, **more: Any) -> dict[str, Any]:
    return {"local": {"v4pools": [{"subnet": subnet, "pool": pool, **more}]}}


@pytest.mark.spec("A6")
def test_every_way_to_write_pools_is_read_in_order() -> None:
    spec = {
        "local": {
            "v4pools": [
                {"subnet": SUBNET, "pool": "172.31.1.10-172.31.1.12"},
                {"subnet": SUBNET, "pool": "172.31.1.1/32"},
            ],
            "v6pools": [{"subnet": "fd00::/64", "pool": "fd00::/64"}],
            "v4pool": {"subnet": "172.31.2.0/24", "pool": "172.31.2.0/24"},
            "v6pool": {"subnet": "fd01::/64", "pool": "fd01::1-fd01::2"},
            "subnet": "172.31.3.0/24",
            "pool": "172.31.3.0/24",
            "aggregation": "/32",
        }
    }
    read = group("g", spec, version="v1")
    assert [str(p.range) for p in read.pools_of(Family.IPV4)] == [
        "172.31.1.10-172.31.1.12",
        "172.31.1.1-172.31.1.1",
        "172.31.2.0-172.31.2.255",
        "172.31.3.0-172.31.3.255",
    ]
    assert [p.range.size for p in read.pools_of(Family.IPV6)] == [2**64, 2]


@pytest.mark.spec("A7")
@pytest.mark.parametrize(
    ("value", "length"), [(None, 24), ("default", 24), ("/32", 32), ("32", 32), (25, 25), ("/8", 8)]
)
def test_aggregation_is_the_prefix_of_remote_addresses(value: object, length: int) -> None:
    item: dict[str, Any] = {"subnet": SUBNET, "pool": SUBNET}
    if value is not None:
        item["aggregation"] = value
    assert group("g", {"remote": {"v4pools": [item]}}).pools[0].prefix_length == length


@pytest.mark.spec("A7", "A8")
@pytest.mark.parametrize("value", ["/33", "0", "/-1", "x", "//24", True, 3.5, [], "/0032"])
def test_another_aggregation_refuses_the_group_by_name(value: object) -> None:
    with pytest.raises(InvalidGroup, match=r"spec\.local\.v4pools\[0\]\.aggregation"):
        group("g", v4(SUBNET, aggregation=value))


@pytest.mark.spec("A7", "A8")
@pytest.mark.parametrize("value", [None, "default"])
@pytest.mark.parametrize(("family", "subnet", "pool"), [("4", "0.0.0.0/0", "10.0.0.0/24"), ("6", "::/0", "fd00::/64")])
def test_the_prefix_of_all_addresses_is_none_for_a_node(family: str, subnet: str, pool: str, value: object) -> None:
    """A remote address with it would make a node look for the whole Internet on its own interface."""
    item = {"subnet": subnet, "pool": pool, "aggregation": value}
    with pytest.raises(InvalidGroup, match=rf"v{family}pools\[0\]\.aggregation.* as the subnet is all of"):
        group("g", {"remote": {f"v{family}pools": [item]}})
    read = group("g", {"remote": {f"v{family}pools": [item | {"aggregation": "/32"}]}})
    assert read.pools[0].prefix_length == 32


@pytest.mark.spec("A6", "A8", "E1")
@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (None, "spec"),
        ([], "spec"),
        ({}, "spec"),
        ({"local": None}, "spec"),
        ({"local": {}}, "spec.local"),
        ({"local": {"v4pools": None}}, "spec.local"),
        ({"local": {"v4pools": {}}}, "spec.local.v4pools"),
        ({"local": {"v4pools": ["x"]}}, "spec.local.v4pools[0]"),
        (v4(SUBNET, None), "spec.local.v4pools[0].subnet"),
        (v4(None), "spec.local.v4pools[0].pool"),
        (v4(7), "spec.local.v4pools[0].pool"),
        (v4("172.31.1.9-172.31.1.1"), "spec.local.v4pools[0].pool"),
        (v4("172.31.2.0/24"), "spec.local.v4pools[0].pool"),
        (v4("172.31.1.0-172.31.2.1"), "spec.local.v4pools[0].pool"),
        (v4("172.31.0.255-172.31.1.9"), "spec.local.v4pools[0].pool"),
        (v4("fd00::/64", "fd00::/64"), "spec.local.v4pools[0].pool"),
        ({"local": {"v6pools": [{"subnet": SUBNET, "pool": SUBNET}]}}, "spec.local.v6pools[0].pool"),
        (v4(SUBNET, "172.31.1.5/24"), "spec.local.v4pools[0].subnet"),
        (v4(SUBNET, "172.31.1.0 /24"), "spec.local.v4pools[0].subnet"),
        (v4(SUBNET, "172.31.1.0-172.31.1.255"), "spec.local.v4pools[0].subnet"),
        (v4("224.0.0.0/24", "224.0.0.0/24"), "spec.local.v4pools[0].pool"),
        (v4("127.0.0.0/24", "127.0.0.0/24"), "spec.local.v4pools[0].pool"),
        (v4("0.0.0.0/24", "0.0.0.0/24"), "spec.local.v4pools[0].pool"),
        (v4("172.31.001.010-172.31.001.020"), "spec.local.v4pools[0].pool"),
        (v4("172.31.1.0/24", "172.31.001.0/24"), "spec.local.v4pools[0].subnet"),
        (v4("::ffff:172.31.1.0/120", "::ffff:172.31.1.0/120"), "spec.local.v4pools[0].subnet"),
        (v4("x" * 2**20), "spec.local.v4pools[0].pool"),
        (pools("172.31.1.0/24", "172.31.1.128/25"), "spec.local.v4pools[1]"),
        (pools("172.31.1.5-172.31.1.9", "172.31.1.9-172.31.1.12"), "spec.local.v4pools[1]"),
        (pools("172.31.1.0/24", quarantine="soon"), "spec.local.quarantine"),
        (pools("172.31.1.0/24", quarantine=5), "spec.local.quarantine"),
        (pools("172.31.1.0/24", avoidFirstLast="yes"), "spec.local.avoidFirstLast"),
    ],
)
def test_a_group_that_cannot_be_read_names_field_and_value(spec: object, field: str) -> None:
    with pytest.raises(InvalidGroup) as caught:
        parse_group(group_view("g", spec))
    assert caught.value.field == field


@pytest.mark.spec("A9")
def test_v2_has_exactly_one_kind_and_v1_leaves_the_kind_to_the_agents() -> None:
    pool = {"v4pools": [{"subnet": SUBNET, "pool": SUBNET}]}
    assert group("g", {"remote": pool}).pool_type is PoolType.REMOTE
    assert not group("g", {"remote": pool}).agent_decides
    assert group("g", {"local": pool}, version="v1").agent_decides
    for spec, version in (({"local": pool, "remote": pool}, "v2"), ({}, "v2"), ({"remote": pool}, "v1")):
        with pytest.raises(InvalidGroup, match="exactly one of"):
            group("g", spec, version=version)
    for version in ("v1", "v2"):
        with pytest.raises(InvalidGroup, match="not supported yet: list the ranges"):
            group("g", {"netbox": {"url": "http://x"}}, version=version)
    with pytest.raises(InvalidGroup, match="not supported yet"):
        group("g", {"external": {}})


@pytest.mark.spec("A8")
def test_of_groups_that_overlap_the_older_is_used_and_the_other_names_it() -> None:
    old = group("old", pools("172.31.1.0/24"), created=NOW)
    nested = group("nested", pools("172.31.3.0/24", "172.31.1.16/28"), created=NOW + timedelta(seconds=1))
    apart = group("apart", pools("172.31.2.0/24"), created=NOW + timedelta(seconds=2))
    for order in ([old, nested, apart], [apart, nested, old]):
        accepted, refused = accept_groups(order, {})
        assert set(accepted) == {"old", "apart"}
        assert str(refused["nested"]) == (
            "spec.local.v4pools[1]: '172.31.1.16-172.31.1.31': overlaps 172.31.1.0-172.31.1.255 of ServiceGroup old"
        )


@pytest.mark.spec("A8")
@pytest.mark.parametrize(
    "range_",
    [
        "172.31.1.0/24",
        "172.31.1.0-172.31.1.20",
        "172.31.1.29-172.31.1.255",
        "172.31.1.25/32",
        "172.31.1.20-172.31.1.29",
    ],
)
def test_a_range_that_contains_another_touches_its_end_or_lies_in_it_overlaps_it(range_: str) -> None:
    """With each of the pools of a group, also where others are around it."""
    old = group("old", pools("172.31.5.0/24", "172.31.1.20-172.31.1.29", "172.31.0.0/24", "fd00::/64"), created=NOW)
    young = group("young", pools("172.31.9.0/24", range_), created=NOW + timedelta(seconds=1))
    accepted, refused = accept_groups([young, old], {})
    assert (set(accepted), set(refused)) == ({"old"}, {"young"})
    assert "172.31.1.20-172.31.1.29 of ServiceGroup old" in str(refused["young"])
    beside = group("beside", pools("172.31.1.0-172.31.1.19", "172.31.1.30-172.31.1.255", "fd00:0:0:1::/64"))
    assert set(accept_groups([beside, old], {})[0]) == {"beside", "old"}


@pytest.mark.spec("A8")
def test_a_group_edited_onto_another_loses_whatever_their_age() -> None:
    before = {"old": group("old", pools("172.31.9.0/24")).pools, "young": group("young", pools("172.31.1.0/24")).pools}
    edited = group("old", pools("172.31.1.0/25"), created=NOW)
    young = group("young", pools("172.31.1.0/24"), created=NOW + timedelta(days=1))
    accepted, refused = accept_groups([edited, young], before)
    assert set(accepted) == {"young"}
    assert set(refused) == {"old"}


@pytest.mark.spec("A8", "A22")
@pytest.mark.parametrize("first", ["one", "two"])
def test_two_groups_that_swap_their_ranges_are_both_accepted_once_both_are_seen(first: str) -> None:
    """Whichever edit is seen first: alone it overlaps the other, which then keeps what it has."""
    low, high = pools("172.31.1.0/25"), pools("172.31.1.128/25")
    before = {"one": group("one", low).pools, "two": group("two", high).pools}
    edited = {"one": group("one", high, created=NOW), "two": group("two", low, created=NOW + timedelta(days=1))}
    other = "two" if first == "one" else "one"
    unedited = group(other, high if other == "two" else low, created=NOW - timedelta(days=1))
    accepted, refused = accept_groups([edited[first], unedited], before)
    assert (set(accepted), set(refused)) == ({other}, {first})
    accepted, refused = accept_groups(edited.values(), {name: each.pools for name, each in accepted.items()})
    assert (set(accepted), set(refused)) == ({"one", "two"}, set())


FIELDS = ["local", "remote", "v4pools", "v6pools", "v4pool", "subnet", "pool", "aggregation", "quarantine"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@given(json_values, st.sampled_from(["v1", "v2", "v3", ""]))
def test_any_object_is_a_group_or_a_named_error(spec: object, version: str) -> None:
    try:
        parse_group(group_view("g", spec, version=version))
    except InvalidGroup as error:
        assert error.field.startswith("spec")
