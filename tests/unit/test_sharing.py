"""Sharing as users meet it: Services with keys and ports on one side, who has which address on the other (A15, A16)."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from itertools import permutations
from pathlib import Path

import pytest

from purelb_sm.domain import names
from tests.support.domain import pools
from tests.support.office import Office, an_office, ports

ONE, TWO = "10.0.0.1", "10.0.0.2"
DUAL = {"ip_families": ("IPv4", "IPv6"), "ip_family_policy": "RequireDualStack"}


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with an_office(tmp_path, default=pools("10.0.0.1-10.0.0.9", "fd30::1-fd30::9", quarantine="10s")) as made:
        yield made


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[Office]:
    with an_office(tmp_path, default=pools("10.0.0.1-10.0.0.9", sharing="Cluster")) as made:
        yield made


@pytest.mark.spec("A15")
def test_services_with_one_key_and_different_ports_have_one_address(office: Office) -> None:
    office.create("a", "K", "80")
    office.create("b", "K", "443")
    office.create("c", "K", "80/UDP", "53/UDP")
    office.create("d", None, "80")
    office.settle("a")
    office.settle("b")
    office.settle("c")
    office.settle("d")
    assert [office.shown(name) for name in "abcd"] == [[ONE], [ONE], [ONE], [TWO]]
    assert office.who_has(ip_address(ONE)) == ["a", "b", "c"]


@pytest.mark.spec("A15")
@pytest.mark.parametrize("order", list(permutations("abc")))
def test_those_of_one_batch_meet_on_one_address_whatever_their_order(office: Office, order: tuple[str, ...]) -> None:
    for name, port in zip("abc", ("80", "443", "53/UDP"), strict=True):
        office.create(name, "K", port)
    office.create("x", "L", "80")
    office.settle("x", *order)
    assert {name: office.shown(name) for name in "abcx"} == {"a": [TWO], "b": [TWO], "c": [TWO], "x": [ONE]}


@pytest.mark.spec("A15")
@pytest.mark.parametrize("together", [True, False])
def test_a_port_that_repeats_is_refused_and_the_holder_is_not_named(office: Office, together: bool) -> None:
    office.create("first", "K", "80", "443")
    office.create("second", "K", "8080", "443")
    if together:
        office.settle("first", "second")
    else:
        office.settle("first")
        office.settle("second")
    assert office.shown("first") == [ONE]
    assert office.shown("second") == []
    assert office.refusal("second") == "PortConflict"
    assert "TCP/443 of 10.0.0.1" in office.message("second")
    assert "first" not in office.message("second")


@pytest.mark.spec("A15")
def test_who_waits_for_a_port_gets_it_when_it_is_given_up(office: Office) -> None:
    office.create("first", "K", "80")
    office.create("other", "K", "443")
    office.create("second", "K", "80")
    office.settle("first", "other", "second")
    assert office.refusal("second") == "PortConflict"
    office.edit("first", ports=ports("81"))
    office.settle("first", "second")
    assert [office.shown(name) for name in ("first", "other", "second")] == [[ONE]] * 3


@pytest.mark.spec("A15")
def test_a_key_means_something_in_its_namespace_only(office: Office) -> None:
    office.create("one/a", "K", "80")
    office.create("two/a", "K", "443")
    office.settle("one/a", "two/a")
    assert (office.shown("one/a"), office.shown("two/a")) == ([ONE], [TWO])
    office.create("two/b", "K", "8443", annotations={names.ADDRESSES: ONE})
    office.settle("two/b")
    assert office.refusal("two/b") == "SharingNotAllowed"
    assert "one" not in office.message("two/b").replace(ONE, "")
    office.create("two/c", None, "8443", annotations={names.ADDRESSES: ONE})
    office.settle("two/c")
    assert office.refusal("two/c") == "AddressInUse"


@pytest.mark.spec("A15")
def test_a_group_that_says_so_shares_across_namespaces(wide: Office) -> None:
    wide.create("one/a", "K", "80")
    wide.create("two/a", "K", "443")
    wide.create("three/a", "K", "443")
    wide.create("four/a", "K", "53/UDP", annotations={names.ADDRESSES: ONE})
    wide.settle("one/a", "two/a", "three/a", "four/a")
    assert [wide.shown(f"{ns}/a") for ns in ("one", "two", "three", "four")] == [[ONE], [ONE], [], [ONE]]
    assert wide.refusal("three/a") == "PortConflict"


@pytest.mark.spec("A16")
@pytest.mark.parametrize("order", list(permutations("abc")))
def test_the_last_to_leave_releases_the_address(office: Office, order: tuple[str, ...]) -> None:
    for name, port in zip("abc", ("80", "443", "53/UDP"), strict=True):
        office.create(name, "K", port)
    office.settle(*"abc")
    for name in order[:2]:
        office.delete(name)
        office.settle(name)
        office.release(60)
        assert office.shown(order[2]) == [ONE]
        assert [r.trigger for r in office.history(address=ip_address(ONE)) if r.kind == "allocation"] == ["hold"]
    office.delete(order[2])
    office.settle(order[2])
    office.release()
    office.release(11)
    last = [r.trigger for r in office.history(address=ip_address(ONE)) if r.kind == "allocation"]
    assert last == ["hold", "begin_release", "confirm_release", "expire"]
    office.create("new", None)
    office.settle("new")
    assert office.shown("new") == [ONE]
