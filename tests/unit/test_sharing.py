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


@pytest.mark.spec("A15")
def test_a_key_means_something_in_its_group_only(tmp_path: Path) -> None:
    with an_office(tmp_path, default=pools("10.0.0.1-10.0.0.9"), other=pools("10.0.1.1-10.0.1.9")) as office:
        elsewhere = {names.SERVICE_GROUP: "other"}
        office.create("a", "K", "80")
        office.create("b", "K", "443", annotations=elsewhere)
        office.create("c", "K", "80", annotations=elsewhere)
        office.create("d", "K", "443")
        office.settle(*"abcd")
        assert [office.shown(name) for name in "abcd"] == [[ONE], ["10.0.1.1"], ["10.0.1.1"], [ONE]]


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


@pytest.mark.spec("A16", "A20")
@pytest.mark.parametrize("back", list(permutations("abc")))
def test_those_who_shared_an_address_get_it_back_in_whatever_order_they_come(
    office: Office, back: tuple[str, ...]
) -> None:
    on = dict(zip("abc", ("80", "443", "53/UDP"), strict=True))
    office.create("early", None)
    office.settle("early")
    for name in "abc":
        office.create(name, "K", on[name])
    office.settle(*"abc")
    assert office.shown("a") == [TWO]
    office.delete("early", *"abc")
    office.settle("early", *"abc")
    office.release()
    for name in back:
        office.create(name, "K", on[name])
        office.settle(name)
    assert [office.shown(name) for name in "abc"] == [[TWO]] * 3
    assert [r.trigger for r in office.history(address=ip_address(TWO)) if r.kind == "allocation"][-1] == "reclaim"


@pytest.mark.spec("A16", "A21")
def test_an_address_once_shared_is_not_given_to_a_stranger_before_its_quarantine_is_over(office: Office) -> None:
    office.create("a", "K", "80")
    office.settle("a")
    office.delete("a")
    office.settle("a")
    office.release()
    office.create("plain", None)
    office.create("other-key", "L")
    office.create("else/a", "K")
    office.settle("plain", "other-key", "else/a")
    assert ONE not in office.shown("plain") + office.shown("other-key") + office.shown("else/a")
    office.create("a", None, "80")
    office.settle("a")
    assert office.shown("a") == [ONE], "who had it last has it back, shared or not"


@pytest.mark.spec("A15", "A20")
def test_the_first_holder_that_comes_back_joins_those_who_stayed(office: Office) -> None:
    office.create("a", "K", "80")
    office.create("b", "K", "443")
    office.settle("a", "b")
    office.delete("a")
    office.settle("a")
    office.release(60)
    office.create("a", "K", "80")
    office.settle("a")
    assert office.shown("a") == office.shown("b") == [ONE]


@pytest.mark.spec("A15", "A20")
@pytest.mark.parametrize("key", ["K", None])
def test_made_again_at_once_under_its_name_a_member_leaves_nothing_behind(office: Office, key: str | None) -> None:
    """The deletion was never seen: its ports must not stand in the way of its successor."""
    office.create("a", "K", "80")
    office.create("b", "K", "443")
    office.settle("a", "b")
    office.create("a", key, "80")
    office.settle("a")
    assert office.shown("a") == ([ONE] if key else [TWO])
    office.create("b", key, "443")
    office.settle("b")
    assert office.shown("b") == [ONE]


@pytest.mark.spec("A15")
def test_both_families_are_shared_each_for_itself(office: Office) -> None:
    office.create("a", "K", "80", **DUAL)
    office.create("b", "K", "443", **DUAL)
    office.create("c", "K", "8443", ip_families=("IPv6",))
    office.settle("a", "b", "c")
    assert office.shown("a") == office.shown("b") == [ONE, "fd30::1"]
    assert office.shown("c") == ["fd30::1"]
    office.delete("a")
    office.settle("a")
    office.edit("b", ip_families=("IPv4",), ip_family_policy="SingleStack")
    office.settle("b")
    assert (office.shown("b"), office.shown("c")) == ([ONE], ["fd30::1"])


@pytest.mark.spec("A15")
def test_a_clash_in_one_family_keeps_neither(office: Office) -> None:
    office.create("six", "K", "80", ip_families=("IPv6",))
    office.create("both", "K", "80", **DUAL)
    office.settle("six", "both")
    assert (office.shown("both"), office.refusal("both")) == ([], "PortConflict")
    office.create("plain", None)
    office.settle("plain")
    assert office.shown("plain") == [ONE], "what was found for the other family is free again"


# -- ports edited while shared ------------------------------------------------------------------------------------


@pytest.mark.spec("A15")
def test_ports_follow_the_service_in_the_book(office: Office) -> None:
    office.create("a", "K", "80")
    office.settle("a")
    office.edit("a", ports=ports("8080", "80/UDP"))
    office.settle("a")
    office.create("b", "K", "80")
    office.create("c", "K", "8080")
    office.settle("b", "c")
    assert office.shown("a") == office.shown("b") == [ONE]
    assert office.refusal("c") == "PortConflict"
    told = [r.details for r in office.history(address=ip_address(ONE)) if r.trigger == "set_ports"]
    assert told == [{"ports": ["TCP/8080", "UDP/80"]}]


@pytest.mark.spec("A15")
def test_ports_of_an_address_that_is_not_shared_are_followed_too(office: Office) -> None:
    office.create("a", None, "80")
    office.settle("a")
    office.edit("a", ports=ports("443"))
    office.settle("a")
    office.rekey("a", "K")
    office.create("b", "K", "80")
    office.create("c", "K", "443")
    office.settle("a", "b", "c")
    assert [office.shown(name) for name in "abc"] == [[ONE], [ONE], []]


@pytest.mark.spec("A15")
def test_an_edit_that_takes_anothers_port_disturbs_only_who_made_it(office: Office) -> None:
    office.create("first", "K", "80")
    office.create("second", "K", "443")
    office.settle("first", "second")
    office.edit("second", ports=ports("80", "443"))
    office.settle("second", "first")
    assert (office.shown("first"), office.refusal("first")) == ([ONE], "")
    assert (office.shown("second"), office.refusal("second")) == ([], "PortConflict")
    assert [n.reason for name, n in office.events if name == "second"] == ["IPAllocated", "AllocationFailed"]
    # What it had it keeps: nobody takes it, and it is shown again when the edit is taken back.
    office.create("third", "K", "443")
    office.settle("third")
    assert office.refusal("third") == "PortConflict"
    office.edit("second", ports=ports("443"))
    office.settle("second")
    assert office.shown("second") == [ONE]


@pytest.mark.spec("A15")
def test_a_clash_ends_when_the_other_goes(office: Office) -> None:
    office.create("first", "K", "80")
    office.create("second", "K", "443")
    office.settle("first", "second")
    office.edit("second", ports=ports("80"))
    office.settle("second")
    office.delete("first")
    office.settle("second", "first")
    assert (office.shown("second"), office.refusal("second")) == ([ONE], "")


@pytest.mark.spec("A15")
@pytest.mark.parametrize("order", list(permutations("abc")))
def test_services_that_exchange_their_ports_do_not_wait_for_each_other(office: Office, order: tuple[str, ...]) -> None:
    for name, port in zip("abc", ("80", "81", "82"), strict=True):
        office.create(name, "K", port)
    office.settle(*"abc")
    for name, port in zip("abc", ("81", "82", "80"), strict=True):
        office.edit(name, ports=ports(port))
    office.settle(*order)
    assert [(office.shown(name), office.refusal(name)) for name in "abc"] == [([ONE], "")] * 3
    office.create("d", "K", "80", "82")
    office.settle("d")
    assert office.refusal("d") == "PortConflict"
    assert all(made.silent for made in office.plan(*"abcd"))


@pytest.mark.spec("A15")
def test_ports_are_followed_while_another_wish_is_refused(office: Office) -> None:
    office.create("a", "K", "80")
    office.settle("a")
    office.edit("a", annotations={names.ADDRESSES: "192.0.2.1"}, ports=ports("81"))
    office.create("b", "K", "81")
    office.create("c", "K", "80")
    office.settle("a", "b", "c")
    assert (office.shown("a"), office.refusal("a")) == ([ONE], "AddressOutsideGroups")
    assert (office.refusal("b"), office.shown("c")) == ("PortConflict", [ONE])


# -- the key edited -----------------------------------------------------------------------------------------------


@pytest.mark.spec("A15")
def test_a_changed_key_moves_the_service_and_no_port_of_it_is_taken_while_it_shows(office: Office) -> None:
    office.create("a", "K", "80")
    office.create("b", "K", "443")
    office.create("other", "L", "53")
    office.settle("a", "b", "other")
    office.rekey("b", "L")
    (made,) = office.plan("b")
    assert [type(action).__name__ for action in made.actions] == ["Join", "Allocate"], "the old one is not left yet"
    office.create("eager", "K", "443")
    office.settle("eager")
    assert office.refusal("eager") == "PortConflict"
    office.settle("b", "eager")
    assert [office.shown(name) for name in ("a", "b", "other", "eager")] == [[ONE], [TWO], [TWO], [ONE]]


@pytest.mark.spec("A15")
def test_a_key_taken_away_from_one_of_several_moves_it(office: Office) -> None:
    office.create("a", "K", "80")
    office.create("b", "K", "443")
    office.settle("a", "b")
    office.rekey("a", None)
    office.settle("a")
    assert (office.shown("a"), office.shown("b")) == ([TWO], [ONE])
    office.create("c", "K", "80")
    office.settle("c")
    assert office.shown("c") == [ONE]


@pytest.mark.spec("A15")
@pytest.mark.parametrize("order", list(permutations("abc")))
@pytest.mark.parametrize("key", ["L", None])
def test_all_who_share_an_address_change_their_key_at_once_and_each_has_one_address(
    office: Office, key: str | None, order: tuple[str, ...]
) -> None:
    """Each leaves it to the others, and finds itself alone with it when it has moved."""
    for name, port in zip("abc", ("80", "81", "82"), strict=True):
        office.create(name, "K", port)
    office.settle(*"abc")
    for name in "abc":
        office.rekey(name, key)
    office.settle(*order)
    assert [len(office.shown(name)) for name in "abc"] == [1, 1, 1]
    assert len({office.shown(name)[0] for name in "abc"}) == (1 if key else 3)
    assert all(made.silent for made in office.plan(*"abc"))


@pytest.mark.spec("A15")
def test_a_change_of_key_that_is_taken_back_half_way_leaves_one_address(office: Office) -> None:
    office.create("a", "K", "80")
    office.create("b", "K", "81")
    office.settle("a", "b")
    office.rekey("b", "L")
    office.plan("b")
    assert office.shown("b") == [TWO]
    office.rekey("b", "K")
    office.settle("b")
    assert office.shown("b") == [ONE]
    office.release()
    assert office.who_has(ip_address(TWO)) == []


@pytest.mark.spec("A15")
def test_who_is_alone_keeps_the_address_under_any_key(office: Office) -> None:
    office.create("a", "K", "80")
    office.settle("a")
    for key, joiner in ((None, False), ("L", True), ("M", False)):
        office.rekey("a", key)
        office.settle("a")
        assert office.shown("a") == [ONE]
        office.create("b", "L", "443")
        office.settle("b")
        assert (office.shown("b") == [ONE]) is joiner
        office.delete("b")
        office.settle("b")
        office.release()
        office.release(11)


@pytest.mark.spec("A15")
def test_a_key_that_comes_after_the_address_moves_nothing_and_this_is_told_once(office: Office) -> None:
    office.create("a", "K", "80")
    office.create("b", None, "443")
    office.settle("a", "b")
    office.rekey("b", "K")
    office.settle("b")
    office.settle("b")
    assert office.shown("b") == [TWO]
    warned = [n.message for name, n in office.events if name == "b" and n.type == "Warning"]
    assert warned == ["10.0.0.2 was given before the sharing key, and is kept: other Services share 10.0.0.1 under it"]


@pytest.mark.spec("A15")
def test_a_change_of_key_whose_address_has_no_room_keeps_the_old_one(office: Office) -> None:
    office.create("a", "K", "80")
    office.create("b", "K", "443")
    office.create("c", "L", "443")
    office.settle("a", "b", "c")
    office.rekey("b", "L")
    office.settle("b")
    assert (office.shown("b"), office.refusal("b")) == ([ONE], "PortConflict")
    office.edit("c", ports=ports("444"))
    office.settle("b", "c")
    assert (office.shown("b"), office.refusal("b")) == ([TWO], "")


@pytest.mark.spec("A15", "A18")
@pytest.mark.parametrize("change", [{"type": "ClusterIP"}, {"load_balancer_class": "example.com/other"}])
def test_a_member_that_turns_away_keeps_its_ports_until_it_shows_nothing(
    office: Office, change: dict[str, str]
) -> None:
    office.create("a", "K", "80")
    office.create("b", "K", "443")
    office.settle("a", "b")
    office.edit("a", **change)
    (made,) = office.plan("a")
    assert not made.actions
    assert made.again
    office.settle("a")
    assert (office.shown("a"), office.shown("b")) == ([], [ONE])
    assert office.who_has(ip_address(ONE)) == ["b"]
    assert [n.reason for name, n in office.events if name == "a"] == ["IPAllocated", "AddressReleased"]


# -- asked by name, adopted, taken over ---------------------------------------------------------------------------


@pytest.mark.spec("A10", "A15")
def test_an_address_asked_for_by_name_is_joined_under_its_key_only(office: Office) -> None:
    office.create("a", "K", "80", annotations={names.ADDRESSES: "10.0.0.5"})
    office.create("b", "K", "443", annotations={names.ADDRESSES: "10.0.0.5"})
    office.create("c", "K", "80", annotations={names.ADDRESSES: "10.0.0.5"})
    office.create("d", "L", "8443", annotations={names.ADDRESSES: "10.0.0.5"})
    office.create("e", None, "8443", annotations={names.ADDRESSES: "10.0.0.5"})
    office.create("f", "K", "53")
    office.settle(*"abcdef")
    assert [office.shown(name) for name in "abf"] == [["10.0.0.5"]] * 3
    assert [office.refusal(name) for name in "cde"] == ["PortConflict", "AddressInUse", "AddressInUse"]


@pytest.mark.spec("A15")
def test_who_waits_for_an_address_by_name_joins_when_its_holder_shares_it(office: Office) -> None:
    office.create("a", None, "80")
    office.create("b", "K", "443", annotations={names.ADDRESSES: ONE})
    office.settle("a", "b")
    assert office.refusal("b") == "AddressInUse"
    office.rekey("a", "K")
    office.settle("b", "a")
    assert office.shown("b") == [ONE]


@pytest.mark.spec("B12", "A15")
def test_a_lost_book_is_rebuilt_with_all_members(office: Office, tmp_path: Path) -> None:
    office.create("a", "K", "80", **DUAL)
    office.create("b", "K", "443", **DUAL)
    office.create("c", None, "80")
    office.settle("a", "b", "c")
    (tmp_path / "new").mkdir()
    with an_office(tmp_path / "new", default=pools("10.0.0.1-10.0.0.9", "fd30::1-fd30::9")) as new:
        new.services = dict(office.services)
        before = dict(office.services)
        new.settle("b", "c", "a")
        assert new.services == before, "nothing is written for what is right"
        assert new.who_has(ip_address(ONE)) == ["a", "b"]
        new.create("d", "K", "443")
        new.settle("d")
        assert new.refusal("d") == "PortConflict"


@pytest.mark.spec("B12", "A15")
@pytest.mark.parametrize(
    ("key", "port", "outcome"), [(None, "443", [TWO]), ("L", "443", [TWO]), ("K", "443", [ONE]), ("K", "80", [])]
)
def test_of_two_that_show_one_address_without_sharing_it_one_gets_another(
    office: Office, tmp_path: Path, key: str | None, port: str, outcome: list[str]
) -> None:
    office.create("a", "K", "80")
    office.create("b", "K", "443")
    office.settle("a", "b")
    (tmp_path / "new").mkdir()
    with an_office(tmp_path / "new", default=pools("10.0.0.1-10.0.0.9")) as new:
        new.services = dict(office.services)
        new.rekey("b", key)
        new.edit("b", ports=ports(port))
        new.settle("a", "b")
        assert (new.shown("a"), new.shown("b")) == ([ONE], outcome)


@pytest.mark.spec("A15", "B12")
def test_another_leader_knows_who_shares_what(office: Office) -> None:
    office.create("a", "K", "80")
    office.create("b", "K", "443")
    office.settle("a", "b")
    office.lead()
    office.create("c", "K", "443")
    office.create("d", "K", "53/UDP")
    office.settle("a", "b", "c", "d")
    assert [office.shown(name) for name in "abcd"] == [[ONE], [ONE], [], [ONE]]
    office.plan("c")
    assert all(made.silent for made in office.plan("a", "b", "c", "d"))


@pytest.mark.spec("A15", "A22")
def test_an_address_that_the_group_has_lost_gets_no_new_members(office: Office) -> None:
    office.create("a", "K", "80")
    office.settle("a")
    office.regroup(default=pools("10.0.0.3-10.0.0.9"))
    office.create("b", "K", "443")
    office.create("c", "K", "53")
    office.settle("a", "b", "c")
    assert [office.shown(name) for name in "abc"] == [[ONE], ["10.0.0.3"], ["10.0.0.3"]]


@pytest.mark.spec("E1", "A15")
@pytest.mark.parametrize("key", ["", "   ", "\t\n"])
def test_an_empty_key_shares_nothing(office: Office, key: str) -> None:
    office.create("a", key, "80")
    office.create("b", key, "443")
    office.settle("a", "b")
    assert (office.shown("a"), office.shown("b")) == ([ONE], [TWO])


@pytest.mark.spec("E1", "A15")
@pytest.mark.parametrize("key", ["x" * 2**20, "x" * 254, "a\0b", "a\ud800b", "a\nb", "\u200b", "\x1b[31m"])
def test_a_hostile_key_is_refused_by_name_and_moves_nothing(office: Office, key: str) -> None:
    office.create("fresh", key, "80")
    office.create("holder", "K", "80")
    office.settle("fresh", "holder")
    assert (office.shown("fresh"), office.refusal("fresh")) == ([], "InvalidRequest")
    assert names.ALLOW_SHARED_IP in office.message("fresh")
    office.rekey("holder", key)
    office.settle("holder")
    assert (office.shown("holder"), office.refusal("holder")) == ([ONE], "InvalidRequest")


@pytest.mark.spec("E1", "A15")
@pytest.mark.parametrize("key", ["schlüssel", "鍵", "🔑", "a b", "'; DROP TABLE allocation; --", "%s", "x" * 253])
def test_any_key_that_can_be_printed_is_one(office: Office, key: str) -> None:
    office.create("a", key, "80")
    office.create("b", f" {key}\n", "443")
    office.create("c", key + "!" if len(key) < 253 else "y", "53")
    office.settle("a", "b", "c")
    assert (office.shown("a"), office.shown("b"), office.shown("c")) == ([ONE], [ONE], [TWO])
    office.lead()
    office.create("d", key, "54")
    office.settle("d")
    assert office.shown("d") == [ONE]


@pytest.mark.spec("A15", "A29")
def test_who_found_the_group_exhausted_joins_the_address_that_comes_under_its_key(tmp_path: Path) -> None:
    with an_office(tmp_path, default=pools("10.0.0.1-10.0.0.1", quarantine="10s")) as office:
        office.create("alone", None, "80")
        office.settle("alone")
        office.create("waits", "K", "443")
        office.rekey("alone", "K")
        # It is refused first; then the other's address is to be had together with it.
        office.settle("waits", "alone")
        assert office.shown("waits") == office.shown("alone") == ["10.0.0.1"]
