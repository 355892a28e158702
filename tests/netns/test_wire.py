"""What the kernel and the wire show of what we do: read back with iproute2, captured by somebody else on the link."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, closing
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from purelb_sm.net import (
    Held,
    InterfaceUnsuitable,
    IPAddress,
    Kernel,
    KernelRefused,
    NetError,
    Sighting,
    Wanted,
    conflicts,
    monitor,
)
from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.addresses import add_request
from purelb_sm.net.conflicts import Heard, heard
from purelb_sm.net.neighbours import ARP_REQUEST, gratuitous_arp, unsolicited_na
from purelb_sm.net.ownership import ADDRESS_PROTOCOL
from purelb_sm.sandbox.cluster import Cluster, namespace
from purelb_sm.sandbox.cluster.layout import CLIENT, CLIENT_INTERFACE, NODE_INTERFACE
from tests.netns.support import ip, until

pytestmark = pytest.mark.root

V4, V6 = ip_address("172.30.250.53"), ip_address("fd30:250::53")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(2, state_directory=tmp_path) as up:
        yield up


@pytest.fixture
async def kernel(cluster: Cluster) -> AsyncIterator[Kernel]:
    """The kernel of node1."""
    async with Kernel(open_socket=cluster.open_socket("node1")) as kernel:
        yield kernel


@pytest.fixture
async def lone(make_namespace: Callable[[], str]) -> AsyncIterator[tuple[str, Kernel]]:
    """A namespace with nothing but a loopback, and its kernel."""
    name = make_namespace()
    async with Kernel(open_socket=namespace.socket_opener(name)) as kernel:
        yield name, kernel


def shown(name: str, address: IPAddress) -> dict[str, Any] | None:
    """What `ip -j -d address` says about the address."""
    rows = json.loads(ip(name, "-j", "-d", "address"))
    found = [info for row in rows for info in row.get("addr_info", []) if info.get("local") == str(address)]
    return found[0] if found else None


def protocol_of(name: str, address: IPAddress) -> int | None:
    """The address's protocol number as another library reads it (older iproute2 does not show it)."""

    def read() -> int | None:
        with IPRoute() as routes:
            found = [row for row in routes.get_addr() if row.get("address") == str(address)]
        assert len(found) == 1
        number: int | None = found[0].get("proto")
        return number

    return namespace.inside(name, read)


def local(address: IPAddress, lifetime_s: int | None = 300) -> Wanted:
    length = 24 if address.version == 4 else 64
    return Wanted(address, length, NODE_INTERFACE, lifetime_s, noprefixroute=True, nodad=True)


@pytest.mark.spec("C3", "C4")
@pytest.mark.parametrize("address", [V4, V6])
async def test_a_local_address_is_shown_with_lifetime_flags_and_our_mark(
    cluster: Cluster, kernel: Kernel, address: IPAddress
) -> None:
    assert await kernel.apply([local(address)], []) == {address: None}
    seen = shown(cluster.namespace_of("node1"), address)
    assert seen is not None
    assert 290 <= seen["valid_life_time"] <= 300
    assert 290 <= seen["preferred_life_time"] <= 300
    assert seen["noprefixroute"] is True
    assert protocol_of(cluster.namespace_of("node1"), address) == ADDRESS_PROTOCOL
    assert seen["prefixlen"] == (24 if address.version == 4 else 64)
    if address.version == 6:
        assert seen["nodad"] is True


@pytest.mark.spec("C3")
@pytest.mark.parametrize("address", [V4, V6])
async def test_a_preferred_lifetime_of_its_own_is_what_the_kernel_shows(
    cluster: Cluster, kernel: Kernel, address: IPAddress
) -> None:
    assert await kernel.apply([replace(local(address), preferred_s=100)], []) == {address: None}
    seen = shown(cluster.namespace_of("node1"), address)
    assert seen is not None
    assert 90 <= seen["preferred_life_time"] <= 100
    assert 290 <= seen["valid_life_time"] <= 300


@pytest.mark.spec("C3")
async def test_a_remote_address_is_permanent_with_the_groups_prefix(lone: tuple[str, Kernel]) -> None:
    name, kernel = lone
    await kernel.ensure_dummy("kube-lb0")
    for text, length in (("172.31.1.225", 32), ("172.31.2.1", 24), ("fd31:1::225", 128)):
        address = ip_address(text)
        assert await kernel.apply([Wanted(address, length, "kube-lb0", nodad=True)], []) == {address: None}
        seen = shown(name, address)
        assert seen is not None
        assert seen["prefixlen"] == length
        assert seen["valid_life_time"] == 2**32 - 1


@pytest.mark.spec("C3")
@pytest.mark.parametrize("address", [V4, V6])
async def test_an_address_that_nobody_renews_leaves_by_itself(
    cluster: Cluster, kernel: Kernel, address: IPAddress
) -> None:
    await kernel.apply([local(address, 1)], [])
    await until(lambda: shown(cluster.namespace_of("node1"), address) is None)
    assert await kernel.held() == []


@pytest.mark.spec("C2")
async def test_a_kernel_without_dummy_links_gets_a_bridge_without_ports(lone: tuple[str, Kernel]) -> None:
    name, kernel = lone
    tried = subprocess.run(["ip", "-n", name, "link", "add", "try0", "type", "dummy"], capture_output=True, check=False)
    if tried.returncode == 0:
        pytest.skip("this kernel has dummy links")
    assert await kernel.ensure_dummy("kube-lb0") == "bridge"
    shown_link = json.loads(ip(name, "-j", "-d", "link", "show", "kube-lb0"))[0]
    assert shown_link["linkinfo"]["info_kind"] == "bridge"
    assert "UP" in shown_link["flags"]


@pytest.mark.spec("C2")
@pytest.mark.dummy
async def test_a_kernel_with_dummy_links_gets_one(lone: tuple[str, Kernel]) -> None:
    name, kernel = lone
    tried = subprocess.run(
        ["ip", "-n", name, "link", "add", "try0", "type", "dummy"], capture_output=True, text=True, check=False
    )
    if tried.returncode != 0:
        pytest.skip(f"this kernel has no dummy links: {tried.stderr.strip()}")
    assert await kernel.ensure_dummy("kube-lb0") == "dummy"
    assert json.loads(ip(name, "-j", "-d", "link", "show", "kube-lb0"))[0]["linkinfo"]["info_kind"] == "dummy"


async def test_a_bridge_that_has_ports_is_not_used_for_remote_addresses(lone: tuple[str, Kernel]) -> None:
    name, kernel = lone
    ip(name, "link", "add", "kube-lb0", "type", "bridge")
    ip(name, "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    ip(name, "link", "set", "veth0", "master", "kube-lb0")
    with pytest.raises(InterfaceUnsuitable, match="ports"):
        await kernel.ensure_dummy("kube-lb0")


@pytest.mark.parametrize("bad", ["", "a-name-of-16-bytes", "in/valid"])
async def test_a_name_that_no_interface_can_have_is_an_error(lone: tuple[str, Kernel], bad: str) -> None:
    with pytest.raises(NetError):
        await lone[1].ensure_dummy(bad)


@pytest.mark.spec("C7")
@pytest.mark.parametrize("address", [V4, V6])
async def test_announcements_are_on_the_wire_spaced_and_from_the_nodes_mac(
    cluster: Cluster, kernel: Kernel, address: IPAddress
) -> None:
    mac = await cluster.mac("node1")
    began = time.time()
    async with cluster.sniff() as sniffer:
        assert await kernel.announce(address, NODE_INTERFACE, 0.1, 3, 0.15, still_ours=lambda: True) == 3
        per_turn = 2 if address.version == 4 else 1
        await sniffer.wait_for(lambda _: len(sniffer.announcements(address)) >= 3 * per_turn, 10)
        seen = sniffer.announcements(address)
    assert len(seen) == 3 * per_turn
    assert {one.mac for one in seen} == {mac}
    expected = ["arp-request", "arp-reply"] if address.version == 4 else ["neighbor-advertisement"]
    assert [one.kind for one in seen] == expected * 3
    turns = [one.at for one in seen[::per_turn]]
    # The wall clock of the stamps is not the loop's, and its ticks are coarse: hence a little less than asked for.
    assert turns[0] - began >= 0.09
    assert all(later - earlier >= 0.14 for earlier, later in itertools.pairwise(turns))


@pytest.mark.spec("C7")
async def test_an_address_that_was_lost_is_not_announced_again(cluster: Cluster, kernel: Kernel) -> None:
    ours = True
    async with cluster.sniff() as sniffer:
        announcing = asyncio.create_task(kernel.announce(V4, NODE_INTERFACE, 0, 5, 0.1, still_ours=lambda: ours))
        await sniffer.wait_for(lambda _: len(sniffer.announcements(V4)) >= 2, 10)
        ours = False
        sent = await announcing
        await sniffer.wait_for(lambda _: len(sniffer.announcements(V4)) >= 2 * sent, 10)
        assert sent < 5
        assert len(sniffer.announcements(V4)) == 2 * sent


@pytest.mark.spec("C7")
@pytest.mark.parametrize("address", [V4, V6])
async def test_an_announcement_corrects_a_neighbours_entry(
    cluster: Cluster, kernel: Kernel, address: IPAddress
) -> None:
    wrong, mac = "02:00:00:00:00:99", await cluster.mac("node1")
    client = cluster.namespace_of(CLIENT)
    ip(client, "neigh", "replace", str(address), "lladdr", wrong, "dev", CLIENT_INTERFACE, "nud", "stale")

    def entry() -> str:
        return str(json.loads(ip(client, "-j", "neigh", "show", str(address)))[0].get("lladdr"))

    assert entry() == wrong
    await kernel.announce(address, NODE_INTERFACE, 0, 1, 0, still_ours=lambda: True)
    await until(lambda: entry() == mac)


@pytest.mark.spec("C2", "C7")
@pytest.mark.parametrize("address", [V4, V6])
async def test_an_address_that_moves_and_is_announced_answers_from_the_new_node(
    cluster: Cluster, kernel: Kernel, address: IPAddress
) -> None:
    await cluster.set_ports(None, [80])
    await kernel.apply([local(address)], [])
    assert await cluster.fetch(address, 80, 10) == "node1\n"
    await kernel.apply([], await kernel.held())
    async with Kernel(open_socket=cluster.open_socket("node2")) as other:
        await other.apply([local(address)], [])
        await other.announce(address, NODE_INTERFACE, 0, 1, 0, still_ours=lambda: True)
        mac = await cluster.mac("node2")
        client = cluster.namespace_of(CLIENT)
        await until(lambda: mac in ip(client, "neigh", "show", str(address)))
        assert await cluster.fetch(address, 80, 10) == "node2\n"


@pytest.mark.spec("C20")
@pytest.mark.parametrize("address", [V4, V6])
async def test_a_probe_asks_everybody_and_changes_nobodys_entry(
    cluster: Cluster, kernel: Kernel, address: IPAddress
) -> None:
    known, client = "02:00:00:00:00:99", cluster.namespace_of(CLIENT)
    ip(client, "neigh", "replace", str(address), "lladdr", known, "dev", CLIENT_INTERFACE, "nud", "stale")
    async with cluster.sniff() as sniffer:
        for _ in range(3):
            assert kernel.probe(address, NODE_INTERFACE)
        seen = await sniffer.wait_for(lambda all_: sum(s.asked == address for s in all_) >= 3, 10)
    mine = [one for one in seen if one.asked == address]
    assert {one.mac for one in mine} == {await cluster.mac("node1")}
    if address.version == 4:
        assert {(one.kind, int(one.address)) for one in mine} == {("arp-request", 0)}
    else:
        assert {(one.kind, any(one.frame[22:38])) for one in mine} == {("neighbor-solicitation", False)}
    assert known in ip(client, "neigh", "show", str(address))


@pytest.mark.spec("C20")
async def test_what_a_busy_link_says_of_other_addresses_wakes_nobody(
    cluster: Cluster, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    told: list[Sighting] = []

    def counted(frame: bytes) -> Heard | None:
        read.append(frame)
        return heard(frame)

    monkeypatch.setattr(conflicts, "heard", counted)
    kernel.on_sighting(told.append)
    kernel.listen([V4, V4 + 1, V6, V6 + 1], NODE_INTERFACE)
    mac = bytes.fromhex("020000000099")
    with closing(cluster.open_socket(CLIENT)(socket.AF_PACKET, socket.SOCK_RAW, 0)) as talker:
        talker.bind((CLIENT_INTERFACE, 0))
        for turn in range(500):
            talker.send(gratuitous_arp(mac, IPv4Address("172.30.250.128") + turn % 100, ARP_REQUEST))
            talker.send(unsolicited_na(mac, IPv6Address("fd30:250:1::") + turn))
            talker.send(unsolicited_na(mac, IPv6Address("fd30:250::9:0:0") + turn))
        talker.send(gratuitous_arp(mac, IPv4Address(str(V4)), ARP_REQUEST))
        talker.send(unsolicited_na(mac, IPv6Address(str(V6))))
    await until(lambda: {one.address for one in told} == {V4, V6})
    assert {one.mac for one in told} == {mac}
    assert len(read) <= 10, "the kernel has kept the rest away"


async def test_who_listens_no_more_leaves_no_socket(cluster: Cluster, kernel: Kernel) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert cluster.nodes
    for _ in range(5):
        kernel.listen([V4, V6], NODE_INTERFACE)
        assert len(os.listdir("/proc/self/fd")) == before + 2
        kernel.stop_listening([V4, V6], NODE_INTERFACE)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(InterfaceUnsuitable):
        kernel.listen([V4], "lo")
    assert len(os.listdir("/proc/self/fd")) == before


async def test_frames_need_an_ethernet(kernel: Kernel) -> None:
    with pytest.raises(InterfaceUnsuitable):
        await kernel.announce(V4, "lo", 0, 1, 0, still_ours=lambda: True)


async def test_an_address_that_somebody_else_has_is_shown_as_a_duplicate(cluster: Cluster, kernel: Kernel) -> None:
    async with Kernel(open_socket=cluster.open_socket("node2")) as other:
        await other.apply([local(V6)], [])
    await kernel.apply([Wanted(V6, 64, NODE_INTERFACE, None, noprefixroute=True, nodad=False)], [])
    async with asyncio.timeout(20):
        while not (held := (await kernel.held())[0]).duplicate:
            await asyncio.sleep(0.05)
    assert held.tentative
    assert await kernel.apply([], [held]) == {V6: None}


async def test_with_a_lifetime_the_kernel_drops_a_duplicate_at_once(cluster: Cluster, kernel: Kernel) -> None:
    async with Kernel(open_socket=cluster.open_socket("node2")) as other:
        await other.apply([local(V6)], [])
    await kernel.apply([Wanted(V6, 64, NODE_INTERFACE, 300, noprefixroute=True, nodad=False)], [])
    async with asyncio.timeout(20):
        while await kernel.held():
            await asyncio.sleep(0.05)


async def test_a_thousand_addresses_are_held_and_leave(lone: tuple[str, Kernel]) -> None:
    name, kernel = lone
    await kernel.ensure_dummy("kube-lb0")
    wanted = [Wanted(IPv4Address("10.0.0.0") + k, 32, "kube-lb0") for k in range(500)]
    wanted += [Wanted(IPv6Address("fd31:1::") + k + 1, 128, "kube-lb0", nodad=True) for k in range(500)]
    answers = await kernel.apply(wanted, [])
    assert set(answers.values()) == {None}
    held = await kernel.held()
    assert {one.address for one in held} == {one.address for one in wanted}
    assert ip(name, "-o", "address", "show", "dev", "kube-lb0", "scope", "global").count("\n") == 1000
    await kernel.apply([], held)
    assert await kernel.held() == []


@pytest.mark.spec("C12")
async def test_notices_that_were_lost_are_told_as_resync(
    lone: tuple[str, Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "_RECEIVE_BUFFER", 4096)
    name, kernel = lone
    await kernel.ensure_dummy("kube-lb0")
    async with asyncio.timeout(30), aclosing(kernel.changes()) as changes:
        assert (await anext(changes)).kind == "resync"
        wanted = [Wanted(IPv4Address("10.0.0.0") + k, 32, "kube-lb0") for k in range(300)]
        index = next(link.index for link in await kernel.interfaces() if link.name == "kube-lb0")
        # Straight into the kernel, without giving the loop a turn to read what it tells.
        sock = nl.RtnlSocket(namespace.socket_opener(name))
        sock.transact([add_request(one, index, b"", renew=False) for one in wanted])
        sock.close()
        async for change in changes:
            if change.kind == "resync":
                break


async def test_a_watcher_that_leaves_leaves_no_socket(lone: tuple[str, Kernel]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        async with aclosing(lone[1].changes()) as changes:
            await anext(changes)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_the_journal_is_void_after_a_reboot_and_drops_what_is_gone(
    make_namespace: Callable[[], str], tmp_path: Path
) -> None:
    name = make_namespace()
    opener = namespace.socket_opener(name)

    def open_kernel() -> Kernel:
        return Kernel(open_socket=opener, use_journal=True, journal_directory=tmp_path)

    one, two = ip_address("172.31.1.1"), ip_address("172.31.1.2")
    async with open_kernel() as kernel:
        assert kernel.mark == "journal"
        await kernel.ensure_dummy("kube-lb0")
        await kernel.apply([Wanted(one, 32, "kube-lb0"), Wanted(two, 32, "kube-lb0")], [])
    assert protocol_of(name, one) is None
    ip(name, "address", "del", f"{one}/32", "dev", "kube-lb0")
    async with open_kernel() as kernel:
        # Somebody else's now, although we once had it.
        ip(name, "address", "add", f"{one}/32", "dev", "kube-lb0")
        assert [held.address for held in await kernel.held()] == [two]
    path = next(tmp_path.glob("addresses-*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot": "another"}))
    async with open_kernel() as kernel:
        assert await kernel.held() == []
    path.write_text("{")
    async with open_kernel() as kernel:
        assert await kernel.held() == []
        assert isinstance((await kernel.apply([], [Held(two, 32, "kube-lb0", True, None)]))[two], Exception)


async def test_without_rights_the_kernel_says_so(make_namespace: Callable[[], str]) -> None:
    name = make_namespace()
    program = (
        "import asyncio\nfrom purelb_sm.net import Kernel, NotPermitted\n"
        "async def main():\n"
        "    try:\n        async with Kernel():\n            print('open')\n"
        "    except NotPermitted:\n        print('not permitted')\n"
        "asyncio.run(main())"
    )
    done = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", name, "setpriv", "--bounding-set", "-all,+dac_override", "--inh-caps", "-all", "--"),
        sys.executable,
        "-c",
        program,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await done.communicate()
    assert out.decode().split("\n")[-2:] == ["not permitted", ""]


async def test_a_request_the_kernel_refuses_carries_its_errno_and_words(lone: tuple[str, Kernel]) -> None:
    _name, kernel = lone
    await kernel.ensure_dummy("kube-lb0")
    address = ip_address("172.31.1.1")
    answers = await kernel.apply([Wanted(address, 32, "kube-lb0", lifetime_s=0)], [])
    refused = answers[address]
    assert isinstance(refused, KernelRefused)
    assert refused.errno == errno.EINVAL
    assert "Invalid argument" in str(refused)
