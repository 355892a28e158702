"""What text means which address: one spelling for each, and no way to smuggle in a second."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purelb_sm.domain.addresses import AddressRange, parse_ip, parse_network, parse_range, parse_service_address
from purelb_sm.errors import InvalidAddress


@pytest.mark.spec("E1")
@pytest.mark.parametrize(
    "text",
    [
        "192.168.001.010",
        "::ffff:10.0.0.1",
        "fe80::1%eth0",
        "",
        " 10.0.0.1",
        "10.0.0",
        "10.0.0.256",
        "1" * 500,
        "１.2.3.4",
    ],
)
def test_a_second_spelling_or_junk_is_refused(text: str) -> None:
    with pytest.raises(InvalidAddress):
        parse_ip(text)


@pytest.mark.spec("E1")
@pytest.mark.parametrize(
    "text", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "fe80::1"]
)
def test_no_service_may_have_an_address_of_special_meaning(text: str) -> None:
    with pytest.raises(InvalidAddress):
        parse_service_address(text)


@pytest.mark.spec("A6")
@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("172.31.1.0/24", "172.31.1.0", "172.31.1.255"),
        ("192.168.1.240-192.168.1.250", "192.168.1.240", "192.168.1.250"),
        ("192.168.1.240  -   192.168.1.250", "192.168.1.240", "192.168.1.250"),
        ("10.0.0.7/32", "10.0.0.7", "10.0.0.7"),
        ("fd00::/64", "fd00::", "fd00::ffff:ffff:ffff:ffff"),
        ("fd00::1 - fd00::5", "fd00::1", "fd00::5"),
    ],
)
def test_a_pool_is_a_cidr_or_a_range(text: str, first: str, last: str) -> None:
    range_, warning = parse_range(text)
    assert (str(range_.first), str(range_.last), warning) == (first, last, None)


@pytest.mark.spec("A6")
def test_a_cidr_with_host_bits_starts_where_it_is_written_and_says_so() -> None:
    range_, warning = parse_range("10.0.0.5/24")
    assert str(range_) == "10.0.0.5-10.0.0.255"
    assert warning is not None
    assert "10.0.0.5-10.0.0.255" in warning


@pytest.mark.spec("A6", "E1")
@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.001-10.0.0.9",
        "010.0.0.0/24",
        "::ffff:10.0.0.1-::ffff:10.0.0.9",
        "::ffff:10.0.0.0/120",
        "fd00::1%eth0-fd00::2%eth0",
        "fd00::%1/64",
        "10.0.0.9-10.0.0.1",
        "10.0.0.1-fd00::1",
        "10.0.0.1",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/024",
        "10.0.0.0 /24",
        "10.0.0.0/ 24",
        "10.0.0.0/٢٤",
        "fd00:: /64",
        "fd00::/64%eth0",
        "10.0.0.1-::ffff:10.0.0.9",
        "a-b",
        "10.0.0.1-10.0.0.2-10.0.0.3",
    ],
)
def test_a_range_that_is_none_is_refused(text: str) -> None:
    for parse in (parse_range, parse_network):
        with pytest.raises(InvalidAddress):
            parse(text)


def test_a_subnet_has_no_host_bits() -> None:
    assert parse_network("10.0.0.0/24") == ip_network("10.0.0.0/24")
    with pytest.raises(InvalidAddress, match=r"10\.0\.0\.0/24"):
        parse_network("10.0.0.5/24")


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_a_named_refusal(text: str) -> None:
    for parse in (parse_ip, parse_service_address, parse_range, parse_network):
        try:
            parse(text)
        except InvalidAddress as error:
            assert len(str(error)) < 400


@given(st.ip_addresses())
def test_what_is_parsed_prints_as_it_was_written(address: object) -> None:
    text = str(address)
    try:
        assert str(parse_ip(text)) == text
    except InvalidAddress:
        assert "::ffff:" in text or "%" in text


def test_a_v6_subnet_is_never_materialised() -> None:
    range_ = AddressRange(ip_address("fd00::"), ip_address("fd00::ffff:ffff:ffff:ffff"))
    assert range_.size == 2**64
    assert ip_address("fd00::5") in range_
    assert ip_address("10.0.0.1") not in range_
