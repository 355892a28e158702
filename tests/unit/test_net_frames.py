"""Announcement frames, byte for byte as an independent implementation builds them, and when they are sent."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from purelb_sm.net import InterfaceMissing, IPAddress
from purelb_sm.net.fake import FakeKernel
from purelb_sm.net.neighbours import ARP_REPLY, ARP_REQUEST, announce, frames, gratuitous_arp, unsolicited_na

logging.getLogger("scapy").setLevel(logging.CRITICAL)
MAC = bytes.fromhex("02fc0000a1ff")


@pytest.mark.spec("C7")
@pytest.mark.parametrize("address", ["172.30.250.53", "0.0.0.1", "255.255.255.254"])
@pytest.mark.parametrize("operation", [ARP_REQUEST, ARP_REPLY])
def test_gratuitous_arp_is_what_scapy_builds(address: str, operation: int) -> None:
    from scapy.layers.l2 import ARP, Ether

    target = "ff:ff:ff:ff:ff:ff" if operation == ARP_REPLY else "00:00:00:00:00:00"
    expected = Ether(src=MAC.hex(":"), dst="ff:ff:ff:ff:ff:ff") / ARP(
        op=operation, hwsrc=MAC.hex(":"), psrc=address, hwdst=target, pdst=address
    )
    assert gratuitous_arp(MAC, IPv4Address(address), operation) == bytes(expected)


@pytest.mark.spec("C7")
@pytest.mark.parametrize("address", ["fd30:250::53", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "::1:0:0:1"])
def test_unsolicited_na_is_what_scapy_builds(address: str) -> None:
    from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
    from scapy.layers.l2 import Ether

    expected = (
        Ether(src=MAC.hex(":"), dst="33:33:00:00:00:01")
        / IPv6(src=address, dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(tgt=address, R=0, S=0, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr=MAC.hex(":"))
    )
    assert unsolicited_na(MAC, IPv6Address(address)) == bytes(expected)


def test_ipv4_is_told_as_request_and_as_reply() -> None:
    told = frames(MAC, ip_address("172.30.250.53"))
    assert [int.from_bytes(frame[20:22]) for frame in told] == [ARP_REQUEST, ARP_REPLY]


@pytest.mark.spec("C7")
async def test_ownership_is_asked_before_each_announcement_and_the_first_no_ends_it() -> None:
    ours = iter([True, True, False])
    sent: list[tuple[IPAddress, str]] = []

    def send(address: IPAddress, ifname: str) -> bool:
        sent.append((address, ifname))
        return True

    address = ip_address("172.30.250.53")
    count = await announce(
        send, address, "enp1s0", initial_delay_s=0, count=5, interval_s=0, still_ours=lambda: next(ours)
    )
    assert count == 2
    assert sent == [(address, "enp1s0")] * 2


async def test_a_cancelled_announcement_sends_nothing_more() -> None:
    kernel = FakeKernel()
    kernel.add_interface("enp1s0")
    address = ip_address("fd30:250::53")
    task = asyncio.create_task(kernel.announce(address, "enp1s0", 0, 5, 3600, still_ours=lambda: True))
    async with asyncio.timeout(10):
        while not kernel.announced:
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(kernel.announced) == 1


async def test_a_link_that_is_down_is_tried_again_at_the_next_turn() -> None:
    kernel = FakeKernel()
    kernel.add_interface("enp1s0")
    kernel.set_link("enp1s0", up=False)
    turns = 0

    def ours() -> bool:
        nonlocal turns
        turns += 1
        if turns == 3:
            kernel.set_link("enp1s0", up=True)
        return True

    assert await kernel.announce(ip_address("172.30.250.53"), "enp1s0", 0, 4, 0, still_ours=ours) == 2


async def test_an_interface_that_is_gone_is_an_error() -> None:
    with pytest.raises(InterfaceMissing):
        await FakeKernel().announce(ip_address("172.30.250.53"), "enp1s0", 0, still_ours=lambda: True)
