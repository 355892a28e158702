"""Probes as an independent implementation builds them, what frames say, and which ones a filter lets by."""

from __future__ import annotations

import logging
import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purelb_sm.net import IPAddress, IPNetwork
from purelb_sm.net.conflicts import Heard, around, heard, program
from purelb_sm.net.neighbours import (
    ARP_REPLY,
    ARP_REQUEST,
    arp_probe,
    duplicate_solicitation,
    gratuitous_arp,
    question,
    unsolicited_na,
)

logging.getLogger("scapy").setLevel(logging.CRITICAL)
MAC, OTHER = bytes.fromhex("02fc0000a1ff"), bytes.fromhex("02fc0000b2ee")
V4, V6 = IPv4Address("172.30.250.53"), IPv6Address("fd30:250::53")


@pytest.mark.spec("C20")
@pytest.mark.parametrize("address", ["172.30.250.53", "0.0.0.1", "255.255.255.254"])
def test_an_arp_probe_is_what_scapy_builds(address: str) -> None:
    from scapy.layers.l2 import ARP, Ether

    expected = Ether(src=MAC.hex(":"), dst="ff:ff:ff:ff:ff:ff") / ARP(
        op=1, hwsrc=MAC.hex(":"), psrc="0.0.0.0", hwdst="00:00:00:00:00:00", pdst=address
    )
    assert arp_probe(MAC, IPv4Address(address)) == bytes(expected)


@pytest.mark.spec("C20")
@pytest.mark.parametrize("address", ["fd30:250::53", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "::1:0:0:1"])
def test_a_solicitation_for_duplicates_is_what_scapy_builds(address: str) -> None:
    from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
    from scapy.layers.l2 import Ether
    from scapy.utils6 import in6_getnsma, in6_getnsmac

    group = in6_getnsma(IPv6Address(address).packed)
    expected = (
        Ether(src=MAC.hex(":"), dst=in6_getnsmac(group))
        / IPv6(src="::", dst=str(IPv6Address(group)), hlim=255)
        / ICMPv6ND_NS(tgt=address)
    )
    assert duplicate_solicitation(MAC, IPv6Address(address)) == bytes(expected)


def test_each_family_has_its_question() -> None:
    assert question(MAC, V4) == [arp_probe(MAC, V4)]
    assert question(MAC, V6) == [duplicate_solicitation(MAC, V6)]


def arp(sender: str, target: str, operation: int = 1) -> bytes:
    from scapy.layers.l2 import ARP, Ether

    return bytes(
        Ether(src=OTHER.hex(":"), dst="ff:ff:ff:ff:ff:ff")
        / ARP(op=operation, hwsrc=OTHER.hex(":"), psrc=sender, pdst=target)
    )


def discovery(kind: str, target: str, source: str, option: bool = True, hop_limit: int = 255) -> bytes:
    from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, IPv6
    from scapy.layers.l2 import Ether

    message = (ICMPv6ND_NA if kind == "na" else ICMPv6ND_NS)(tgt=target)
    frame = Ether(src=MAC.hex(":"), dst="33:33:00:00:00:01") / IPv6(src=source, dst="ff02::1", hlim=hop_limit) / message
    return bytes(frame / ICMPv6NDOptDstLLAddr(lladdr=OTHER.hex(":")) if option else frame)


SAYS = [
    ("a reply", arp("172.30.250.53", "172.30.250.9", 2), Heard(V4, OTHER, False)),
    ("a request of who has it", arp("172.30.250.53", "172.30.250.9", 1), Heard(V4, OTHER, False)),
    ("a gratuitous request", gratuitous_arp(OTHER, V4, ARP_REQUEST), Heard(V4, OTHER, False)),
    ("a gratuitous reply", gratuitous_arp(OTHER, V4, ARP_REPLY), Heard(V4, OTHER, False)),
    ("a probe", arp_probe(OTHER, V4), Heard(V4, OTHER, True)),
    ("a request for it", arp("172.30.250.9", "172.30.250.53"), Heard(IPv4Address("172.30.250.9"), OTHER, False)),
    ("a reply of nobody", arp("0.0.0.0", "172.30.250.53", 2), None),
    ("an advertisement", discovery("na", str(V6), str(V6)), Heard(V6, OTHER, False)),
    ("one without option", discovery("na", str(V6), str(V6), option=False), Heard(V6, MAC, False)),
    ("unsolicited", unsolicited_na(OTHER, V6), Heard(V6, OTHER, False)),
    ("a solicitation for duplicates", duplicate_solicitation(OTHER, V6), Heard(V6, OTHER, True)),
    ("a solicitation", discovery("ns", str(V6), "fd30:250::9"), None),
    ("one from beyond the link", discovery("na", str(V6), str(V6), hop_limit=64), None),
    ("no bytes", b"", None),
]


@pytest.mark.spec("C20")
@pytest.mark.parametrize(("frame", "expected"), [pytest.param(f, e, id=name) for name, f, e in SAYS])
def test_what_a_frame_says(frame: bytes, expected: Heard | None) -> None:
    assert heard(frame) == expected
    for length in range(len(frame)):
        cut = heard(frame[:length])
        assert cut is None or cut.address == (expected.address if expected else None)


@given(st.binary(max_size=100), st.sampled_from([b"\x08\x06\x00\x01\x08\x00\x06\x04", b"\x86\xdd"]))
def test_no_frame_is_too_odd_to_be_looked_at(noise: bytes, kind: bytes) -> None:
    heard(noise[:12] + kind + noise[12:])


def lets_by(steps: list[tuple[int, int, int, int]], frame: bytes) -> bool:
    """Runs a filter as the kernel does: a load beyond the frame's end drops it."""
    at = loaded = 0
    while True:
        code, yes, no, k = steps[at]
        at += 1
        if code == 0x06:
            return k > 0
        if code in (0x30, 0x20):
            size = 1 if code == 0x30 else 4
            if k + size > len(frame):
                return False
            loaded = int.from_bytes(frame[k : k + size])
        elif code == 0x54:
            loaded &= k
        else:
            at += yes if loaded == k else no


BLOCKS: list[IPNetwork] = [
    *(IPv4Network((V4, length), strict=False) for length in (0, 1, 8, 23, 24, 31, 32)),
    *(IPv6Network((V6, length), strict=False) for length in (0, 1, 32, 63, 64, 65, 127, 128)),
]


@pytest.mark.spec("C20")
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_filter_lets_by_what_speaks_of_its_block_and_nothing_else(block: IPNetwork) -> None:
    rng = random.Random(5)
    near = [V4, V6, *(type(a)(int(a) ^ (1 << bit)) for a in (V4, V6) for bit in range(a.max_prefixlen))]
    frames = [frame for _, frame, _ in SAYS]
    frames += [question(OTHER, address)[0] for address in near]
    frames += [gratuitous_arp(OTHER, a, 1) for a in near if isinstance(a, IPv4Address)]
    frames += [unsolicited_na(OTHER, a) for a in near if isinstance(a, IPv6Address)]
    frames += [frame[: rng.randrange(len(frame))] for frame in frames if frame]
    ours = [f for f in frames if f[12:14] == (b"\x08\x06" if block.version == 4 else b"\x86\xdd")]
    for frame in ours:
        said = heard(frame)
        if said is not None:
            assert lets_by(program(block), frame) is (said.address in block), (frame.hex(), said)
    if block.version == 6:
        assert not lets_by(program(block), discovery("ns", str(V6), "fd30:250::9"))
        assert not lets_by(program(block), discovery("na", str(V6), str(V6), hop_limit=64))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8), st.sampled_from([IPv4Address, IPv6Address]))
def test_the_block_around_addresses_is_the_smallest_with_all_of_them(
    numbers: list[int], kind: type[IPv4Address] | type[IPv6Address]
) -> None:
    addresses: list[IPAddress] = [kind(number) for number in numbers]
    block: IPNetwork | None = None
    for address in addresses:
        block = around(block, address)
    assert block is not None
    assert all(address in block for address in addresses)
    halves: list[Any] = list(block.subnets()) if block.prefixlen < block.max_prefixlen else []
    assert not any(all(address in half for address in addresses) for half in halves)


def test_a_block_does_not_grow_for_what_is_in_it() -> None:
    block = ip_network("172.30.250.0/24")
    assert around(block, ip_address("172.30.250.99")) is block
