"""Heartbeats as the agent sends and takes them, over a link in memory and in virtual time; and the real sockets."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from purelb_sm.agent.heartbeats import Heartbeats, Listener, Neighbour
from purelb_sm.agent.survey import OwnHomes
from purelb_sm.domain.heartbeat import MAX_SIZE, Heartbeat, pack, parse_beacon, sender_of
from purelb_sm.net import Datagrams, Home
from tests.support.segment import Plug, Segment
from tests.support.virtual_time import VirtualLoop, run_virtual, virtual_clock
from tests.support.waiting import eventually

SUBNET = ip_network("172.30.250.0/24")
INTERVAL_S = 0.2
SOON_S = 1.0


def homes(number: int) -> OwnHomes:
    return (("enp1s0", Home(SUBNET, ip_address(f"172.30.250.{10 + number}"))),)


@dataclass
class Node:
    """An agent's heartbeats, and what they told."""

    name: str
    homes: OwnHomes
    heartbeats: Heartbeats
    plug: Plug
    lease_valid: bool = True
    moved: int = 0
    counted_again: int = 0
    task: asyncio.Task[None] | None = None

    async def end(self) -> None:
        assert self.task is not None
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


@dataclass
class Link:
    """Nodes that have read each other's Leases."""

    segment: Segment = field(default_factory=Segment)
    nodes: dict[str, Node] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def add(self, *names: str, rests: bool = False) -> None:
        for name in names:
            plug = self.segment.plug(name)
            heartbeats = Heartbeats(
                plug,
                port=7473,
                interval_s=INTERVAL_S,
                rests=rests,
                lease_valid=lambda name=name: self.nodes[name].lease_valid,  # type: ignore[misc]
                clock=virtual_clock,
            )
            node = self.nodes[name] = Node(name, homes(len(self.nodes) + 1), heartbeats, plug)
            heartbeats.listener = Listener(_counter(node, "moved"), _counter(node, "counted_again"))
        self.read_leases()
        for name in names:
            self.nodes[name].task = asyncio.create_task(self.nodes[name].heartbeats.run())

    def read_leases(self, *uncounted: str) -> None:
        read = {}
        for name, node in self.nodes.items():
            beacon = parse_beacon(node.heartbeats.beacon(node.homes) or "")
            assert beacon is not None
            read[name] = Neighbour(beacon, frozenset({SUBNET}), name not in uncounted)
        for name, node in self.nodes.items():
            node.heartbeats.follow(node.homes, {other: read[other] for other in read if other != name})

    def cut_off(self, name: str) -> bool:
        return self.nodes[name].heartbeats.cut_off

    def suspected_by(self, name: str) -> set[str]:
        return set(self.nodes[name].heartbeats.suspected)


def _counter(node: Node, name: str) -> Callable[[], None]:
    def count() -> None:
        setattr(node, name, getattr(node, name) + 1)

    return count


@asynccontextmanager
async def a_link(*names: str, rests: bool = False) -> AsyncIterator[Link]:
    link = Link()
    link.add(*names, rests=rests)
    await asyncio.sleep(SOON_S)
    assert all(node.heartbeats.heard() == len(names) - 1 for node in link.nodes.values())
    yield link
    for node in link.nodes.values():
        await node.end()


def in_virtual_time(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def test() -> None:
        run_virtual(scenario())

    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    return test


@in_virtual_time
async def test_a_node_that_ends_is_suspected_within_four_intervals() -> None:
    async with a_link("a", "b", "c") as link:
        await link["c"].end()
        ended = virtual_clock()
        while not (link.suspected_by("a") and link.suspected_by("b")):
            await asyncio.sleep(0.01)
        assert 0.4 < virtual_clock() - ended < 0.8
        assert link["a"].moved == link["b"].moved == 1
        assert link["a"].heartbeats.suspicions == 1


@in_virtual_time
async def test_it_is_heard_again_and_counts() -> None:
    async with a_link("a", "b", "c") as link:
        link.segment.part("c")
        await asyncio.sleep(SOON_S)
        assert link.suspected_by("a") == {"c"}
        link.segment.cut.clear()
        await asyncio.sleep(SOON_S)
        assert link.suspected_by("a") == set()
        assert link["c"].counted_again == 1


@in_virtual_time
async def test_a_stall_of_the_loop_is_nobodys_silence() -> None:
    async with a_link("a", "b") as link:
        for stalled_s in (0.15, 0.5, 30.0):
            await asyncio.sleep(INTERVAL_S / 2)
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            loop._virtual.now += stalled_s
            link["a"].plug.take(b"something else to do first")
            await asyncio.sleep(SOON_S)
        assert not any(node.moved for node in link.nodes.values())


@in_virtual_time
async def test_junk_replays_and_forgeries_are_counted_and_change_nothing() -> None:
    async with a_link("a", "b") as link:
        link.segment.part("b")
        heard = next(one for sender, one in reversed(link.segment.carried) if sender == "b")
        incarnation = sender_of(heard)
        assert incarnation is not None
        forged = pack(Heartbeat(incarnation, 10**9, INTERVAL_S), b"x" * 16)
        stranger = pack(Heartbeat(b"stranger", 1, INTERVAL_S), b"x" * 16)
        for datagram in (b"", b"junk", heard + b"!", heard[:-1], b"\0" * (MAX_SIZE + 1), stranger, forged, heard):
            link["a"].plug.take(datagram)
        await asyncio.sleep(SOON_S)
        assert link.suspected_by("a") == {"b"}
        assert link["a"].heartbeats.rejected == {"malformed": 5, "unknown": 1, "forged": 1, "replayed": 1}


@in_virtual_time
async def test_what_one_incarnation_said_proves_nothing_to_the_next_of_who_hears_it() -> None:
    """Recorded heartbeats of the dead, played to an agent that has started anew: it believes that it hears it, but not
    that it is heard, and does not vouch for it."""
    async with a_link("a", "b", "c") as link:
        recorded = [one for sender, one in link.segment.carried if sender == "c"]
        link.segment.cut = {("b", "c"), ("c", "b")}
        await link["b"].end()
        link.add("b")
        await asyncio.sleep(SOON_S)
        await link["c"].end()
        for datagram in recorded[:6]:
            link["b"].plug.take(datagram)
            await asyncio.sleep(INTERVAL_S)
        assert link.suspected_by("a") == {"c"}


@in_virtual_time
async def test_a_flood_costs_so_much_and_no_more_and_makes_nobody_suspect() -> None:
    async with a_link("a") as link:
        await asyncio.sleep(INTERVAL_S / 2)
        link.add("b")
        await asyncio.sleep(SOON_S)
        assert link["a"].heartbeats.heard() == 1
        rng = random.Random(1)
        junk = b"PLB1" + rng.randbytes(38)
        before = link["a"].heartbeats.rejected.total()
        for _ in range(200):
            for _ in range(100):
                link["a"].plug.take(junk)
            await asyncio.sleep(0.01)
        taken = link["a"].heartbeats.rejected.total() - before
        assert 0 < taken <= 11 * (64 + 16) < 200 * 100
        # What was lost in it were heartbeats, too.
        link["a"].plug.waiting.clear()
        await asyncio.sleep(INTERVAL_S / 2)
        assert not link["a"].moved
        await asyncio.sleep(SOON_S)
        assert not link["b"].moved, "it has sent all the time"
        await link["b"].end()
        await asyncio.sleep(SOON_S)
        assert link.suspected_by("a") == {"b"}


@in_virtual_time
async def test_one_that_rests_says_so_and_is_not_missed() -> None:
    async with a_link("a", "b", "c", rests=True) as link:
        await link["c"].end()
        await asyncio.sleep(5)
        assert not link["a"].moved
        assert link["a"].heartbeats.heard() == 1


@in_virtual_time
async def test_a_node_whose_lease_ran_out_hears_so_from_those_that_count() -> None:
    async with a_link("a", "b", "c") as link:
        link["a"].lease_valid = False
        await asyncio.sleep(SOON_S)
        assert not link.cut_off("a")
        link.read_leases("a")
        await asyncio.sleep(SOON_S)
        assert link.cut_off("a")
        link["a"].lease_valid = True
        await asyncio.sleep(SOON_S)
        assert not link.cut_off("a")


@in_virtual_time
async def test_a_lone_node_sends_to_nobody_and_keeps_what_it_has() -> None:
    async with a_link("a") as link:
        link["a"].lease_valid = False
        await asyncio.sleep(60)
        assert not link.segment.carried
        assert not link.cut_off("a")


@in_virtual_time
async def test_each_sends_one_datagram_an_interval_to_each() -> None:
    async with a_link("a", "b", "c") as link:
        before = link["a"].heartbeats.sent
        await asyncio.sleep(10.0)
        assert link["a"].heartbeats.sent - before == pytest.approx(2 * 10.0 / INTERVAL_S, abs=2)


def test_without_an_interval_nothing_is_published_sent_or_suspected() -> None:
    async def scenario() -> None:
        plug = Segment().plug("a")
        off = Heartbeats(plug, port=7473, interval_s=0.0, rests=False, lease_valid=lambda: False, clock=virtual_clock)
        assert off.beacon(homes(1)) is None
        await asyncio.wait_for(off.run(), 1.0)
        assert not plug.addresses

    run_virtual(scenario())


def test_of_two_that_claim_to_be_one_incarnation_the_second_is_left_to_its_lease() -> None:
    async def scenario() -> None:
        link = Link()
        link.add("a", "b")
        beacon = parse_beacon(link["b"].heartbeats.beacon(link["b"].homes) or "")
        assert beacon is not None
        neighbour = Neighbour(beacon, frozenset({SUBNET}), True)
        link["a"].heartbeats.follow(link["a"].homes, {"b": neighbour, "mallory": neighbour})
        await asyncio.sleep(SOON_S)
        assert link["a"].heartbeats.heard() == 1
        for node in link.nodes.values():
            await node.end()

    run_virtual(scenario())


# The real sockets.


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def received(datagrams: Datagrams) -> bytes:
    return await eventually(lambda: datagrams.receive(2000), "a datagram")


async def test_datagrams_go_from_address_to_address_and_never_beyond_the_link() -> None:
    port = free_port()
    one, other = (Datagrams(port) for _ in range(2))
    heard: list[bool] = []
    try:
        one.listen([ip_address("127.0.0.1"), ip_address("::1")])
        other.on_readable(lambda: heard.append(True))
        other.listen([ip_address("127.0.0.2")])
        assert one.send(b"hello", ip_address("127.0.0.1"), ip_address("127.0.0.2"), port)
        assert await received(other) == b"hello"
        assert one.send(b"self", ip_address("::1"), ip_address("::1"), port)
        assert await received(one) == b"self"
        assert not one.send(b"not ours", ip_address("127.0.0.3"), ip_address("127.0.0.2"), port)
        assert not one.send(b"no family", ip_address("127.0.0.1"), ip_address("::1"), port)
        assert other.receive(2000) is None
        sockets = one._sockets
        assert sockets[ip_address("127.0.0.1")].getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 1
        assert sockets[ip_address("::1")].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) == 1
        one.send(b"ring", ip_address("127.0.0.1"), ip_address("127.0.0.2"), port)
        await eventually(lambda: heard)
    finally:
        one.close()
        other.close()


async def test_an_address_that_is_taken_or_not_there_is_tried_again() -> None:
    port = free_port()
    one, other = (Datagrams(port) for _ in range(2))
    try:
        one.listen([ip_address("127.0.0.1")])
        other.listen([ip_address("127.0.0.1"), ip_address("198.51.100.1")])
        assert not other.send(b"x", ip_address("127.0.0.1"), ip_address("127.0.0.1"), port)
        one.listen([])
        other.listen([ip_address("127.0.0.1")])
        assert other.send(b"x", ip_address("127.0.0.1"), ip_address("127.0.0.1"), port)
        assert await received(other) == b"x"
    finally:
        one.close()
        other.close()
