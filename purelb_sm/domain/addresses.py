"""Addresses and ranges: strict parsing, one canonical form, sizes up to 2^128 without materialising anything.

Owns what text means which address. Knows nothing of groups or Services.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from purelb_sm.errors import InvalidAddress

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_V4_BITS, _V6_BITS = 32, 128


class Family(StrEnum):
    """An IP family, spelled as in `spec.ipFamilies`."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"

    @property
    def bits(self) -> int:
        return _V4_BITS if self is Family.IPV4 else _V6_BITS


def family_of(item: Address | Network) -> Family:
    return Family.IPV4 if item.version == 4 else Family.IPV6


def address_at(family: Family, value: int) -> Address:
    """The address with this number. ValueError outside the family."""
    return IPv4Address(value) if family is Family.IPV4 else IPv6Address(value)


def parse_ip(text: str) -> Address:
    """The address that `text` spells, in a form of which there is only one: no leading zeros, zone or mapped IPv4.

    Raises InvalidAddress. Two spellings of one address must never both be accepted as different: RFC 4291 section
    2.5.5.2 mapped addresses and zone ids (RFC 4007) are refused rather than translated.
    """
    if not text.isascii() or len(text) > 64:
        raise InvalidAddress(text, "is not an IP address")
    if "%" in text:
        raise InvalidAddress(text, "carries a zone, which only has a meaning on one host")
    try:
        address = ip_address(text)
    except ValueError:
        raise InvalidAddress(text, "is not an IP address") from None
    if address.version == 6 and address.ipv4_mapped is not None:
        raise InvalidAddress(text, f"is an IPv4 address in IPv6 clothes: write {address.ipv4_mapped}")
    return address


def parse_service_address(text: str) -> Address:
    """An address that a Service may have: not unspecified, loopback, multicast, link-local or broadcast.

    Raises InvalidAddress.
    """
    address = parse_ip(text)
    why = unusable(address)
    if why:
        raise InvalidAddress(text, why)
    return address


def unusable(address: Address) -> str | None:
    """Why no Service may have this address, or None. RFC 6890 and the registries it names."""
    found = _first_unusable(AddressRange(address, address))
    return None if found is None else f"is {found[1]}"


@dataclass(frozen=True, slots=True, order=True)
class AddressRange:
    """All addresses from `first` to `last`, both included, of one family."""

    first: Address
    last: Address

    def __post_init__(self) -> None:
        if self.first.version != self.last.version:
            raise ValueError(f"{self.first} and {self.last} are of different families")
        if int(self.first) > int(self.last):
            raise ValueError(f"{self.first} is after {self.last}")

    @property
    def family(self) -> Family:
        return family_of(self.first)

    @property
    def size(self) -> int:
        return int(self.last) - int(self.first) + 1

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, IPv4Address | IPv6Address) or address.version != self.first.version:
            return False
        return int(self.first) <= int(address) <= int(self.last)

    def overlaps(self, other: AddressRange) -> bool:
        if self.family is not other.family:
            return False
        return int(self.first) <= int(other.last) and int(other.first) <= int(self.last)

    def common(self, other: AddressRange) -> AddressRange | None:
        """What is in both."""
        return AddressRange(max(self.first, other.first), min(self.last, other.last)) if self.overlaps(other) else None

    def within(self, network: Network) -> bool:
        return (
            network.version == self.first.version
            and self.first in network
            and int(self.last) <= int(network.broadcast_address)
        )

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def unusable_within(range_: AddressRange) -> str | None:
    """Which addresses of a range no Service may have, in a sentence, or None. The ends alone do not tell."""
    found = _first_unusable(range_)
    return None if found is None else f"contains {found[0]}, {found[1]}"


_UNUSABLE = (
    ("0.0.0.0/32", "the unspecified address"),
    ("127.0.0.0/8", "a loopback address"),
    ("169.254.0.0/16", "a link-local address"),
    ("224.0.0.0/4", "a multicast address"),
    ("255.255.255.255/32", "the broadcast address"),
    ("::/128", "the unspecified address"),
    ("::1/128", "a loopback address"),
    ("::ffff:0:0/96", "an IPv4 address in IPv6 clothes"),
    ("fe80::/10", "a link-local address"),
    ("ff00::/8", "a multicast address"),
)


def _first_unusable(range_: AddressRange) -> tuple[Network, str] | None:
    for network, covered, what in _NO_SERVICE_HAS:
        if range_.overlaps(covered):
            return network, what
    return None


_NO_SERVICE_HAS = tuple(
    (network, AddressRange(network.network_address, network.broadcast_address), what)
    for network, what in ((ip_network(text), what) for text, what in _UNUSABLE)
)


_DASH = re.compile(r"\s*-\s*")


def parse_range(text: str) -> tuple[AddressRange, str | None]:
    """A pool as users write it: a CIDR or `first-last` (spaces around the dash are fine).

    Returns the range and, where the text covers something else than it seems to, a sentence that says what: a CIDR
    with host bits starts at the address as written, which is what PureLB does. Raises InvalidAddress.
    """
    text = text.strip()
    if "/" in text:
        return _parse_cidr(text)
    parts = _DASH.split(text)
    if len(parts) != 2:
        raise InvalidAddress(text, "is neither a CIDR nor first-last")
    first, last = (parse_ip(part) for part in parts)
    if first.version != last.version:
        raise InvalidAddress(text, "mixes IPv4 and IPv6")
    if int(first) > int(last):
        raise InvalidAddress(text, "first is after last")
    return AddressRange(first, last), None


def parse_network(text: str) -> Network:
    """A CIDR without host bits (a `subnet`). Raises InvalidAddress."""
    range_, warning = parse_range(text)
    network = ip_network(text.strip(), strict=False) if "/" in text else None
    if network is None:
        raise InvalidAddress(text, "is not a CIDR")
    if warning:
        raise InvalidAddress(text, f"has host bits set; the network is {network}")
    assert range_.first == network.network_address
    return network


def _parse_cidr(text: str) -> tuple[AddressRange, str | None]:
    address_text, _, length = text.partition("/")
    start = parse_ip(address_text)
    if not (length.isascii() and length.isdigit()) or (len(length) > 1 and length[0] == "0"):
        raise InvalidAddress(text, "the prefix length is not a number")
    bits = family_of(start).bits
    if int(length) > bits:
        raise InvalidAddress(text, f"the prefix length is over {bits}")
    network = ip_network((int(start), int(length))) if int(length) == bits else _network_of(start, int(length))
    covered = AddressRange(start, network.broadcast_address)
    if start == network.network_address:
        return covered, None
    return covered, f"{text} has host bits set: it covers {covered}, not all of {network}"


def _network_of(address: Address, length: int) -> Network:
    return ip_network(f"{address}/{length}", strict=False)


def in_family_order(addresses: Iterator[Address], families: tuple[Family, ...]) -> list[Address]:
    """Sorted by the place of their family in `families`, then by value."""
    return sorted(addresses, key=lambda a: (families.index(family_of(a)) if family_of(a) in families else 9, int(a)))
