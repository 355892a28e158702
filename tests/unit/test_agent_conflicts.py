"""Foreign hosts that use an address: what is found out before one is announced, and what is done while one is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purelb_sm.agent.announcer import Announcer
from purelb_sm.agent.conflicts import DEFENCES_MAX, DEFEND_S, NOBODY, TELL_AGAIN_S, Conflicts, Surroundings
from purelb_sm.agent.ledger import Ledger, Where
from purelb_sm.agent.stations import FORMER_MAX, MEMORY_S, Stations
from purelb_sm.agent.survey import own_macs
from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.agent_config import ProbeConfig
from purelb_sm.domain.announce import Desired, Keep, Kind, Verdict
from purelb_sm.domain.macs import MAX_MACS, parse_macs, render_macs
from purelb_sm.domain.states import AnnouncementState
from purelb_sm.domain.views import LeaseView, ServiceKey
from purelb_sm.net import Interface, KernelRefused
from purelb_sm.net.fake import FakeKernel
from tests.support.virtual_time import run_virtual, virtual_clock

ONE, TWO, SIX = ip_address("10.0.0.1"), ip_address("10.0.0.2"), ip_address("2001:db8::1")
FOREIGN, PEER = bytes.fromhex("02f000000001"), bytes.fromhex("020000000009")
ETH0: Where = (ONE, "eth0")


class Link:
    """Conflicts on a kernel in memory in virtual time, and what they tell."""

    def __init__(self, **around: Any) -> None:
        self.kernel = FakeKernel(clock=virtual_clock)
        self.kernel.add_interface("eth0")
        self.ended: list[Address] = []
        self.told: list[tuple[Where, bytes, bool]] = []
        self.conflicts = Conflicts(
            self.kernel, Surroundings(**around), self.ended.extend, lambda *what: self.told.append(what)
        )

    async def finding(self, where: Where, within_s: float = 5.0) -> bytes:
        """What is found, as soon as it is."""
        async with asyncio.timeout(within_s):
            while (found := self.conflicts.ask(where)) is None:
                await asyncio.sleep(0.001)
        return found

    def probed(self, address: Address = ONE) -> list[float]:
        return [round(one.at, 2) for one in self.kernel.probed if one.address == address]

    def defended(self, address: Address = ONE) -> list[float]:
        return [round(one.at, 1) for one in self.kernel.announced if one.address == address]


def on_link(play: Callable[[Link], Coroutine[Any, Any, None]], **around: Any) -> Link:
    async def main() -> Link:
        link = Link(**around)
        task = asyncio.create_task(link.conflicts.run())
        await play(link)
        task.cancel()
        await asyncio.wait({task})
        assert link.kernel.listens_for() == set(), "what ends listens to nothing any more"
        return link

    return run_virtual(main())


# Before.


@pytest.mark.spec("C20")
@pytest.mark.parametrize("address", [ONE, SIX])
def test_an_address_that_nobody_uses_is_free_after_three_probes_in_three_tenths_of_a_second(address: Address) -> None:
    async def play(link: Link) -> None:
        assert await link.finding((address, "eth0")) == NOBODY
        assert virtual_clock() == pytest.approx(0.3, abs=0.02)
        assert link.ended == [address]
        assert link.told == []

    link = on_link(play)
    assert link.probed(address) == pytest.approx([0.0, 0.1, 0.2], abs=0.02)


@pytest.mark.spec("C20")
@pytest.mark.parametrize("address", [ONE, SIX])
def test_an_address_that_a_foreign_host_uses_is_found_in_use_and_told_once(address: Address) -> None:
    where = (address, "eth0")

    async def play(link: Link) -> None:
        link.kernel.add_station(address, "eth0", FOREIGN)
        for _ in range(3):
            assert await link.finding(where) == FOREIGN
        assert link.told == [(where, FOREIGN, False)]
        assert link.conflicts.counters.found == 3
        await asyncio.sleep(TELL_AGAIN_S)
        assert await link.finding(where) == FOREIGN
        assert len(link.told) == 2
        link.kernel.remove_station(address, "eth0")
        assert await link.finding(where) == NOBODY

    on_link(play)


@pytest.mark.spec("C20")
def test_who_probes_for_the_same_address_at_the_same_time_is_in_conflict() -> None:
    async def play(link: Link) -> None:
        link.conflicts.ask(ETH0)
        await asyncio.sleep(0.05)
        link.kernel.see(ONE, "eth0", FOREIGN, asks=True)
        assert await link.finding(ETH0) == FOREIGN

    on_link(play)


@pytest.mark.spec("C20")
def test_a_node_of_ours_is_no_foreign_host_whether_it_holds_the_address_or_probes_for_it() -> None:
    async def play(link: Link) -> None:
        link.kernel.add_station(ONE, "eth0", PEER)
        link.kernel.see(ONE, "eth0", PEER, asks=True)
        assert await link.finding(ETH0) == NOBODY
        # Nor does it hide one that answers beside it.
        link.conflicts.ask(ETH0)
        await asyncio.sleep(0.25)
        link.kernel.see(ONE, "eth0", FOREIGN)
        assert await link.finding(ETH0) == FOREIGN

    on_link(play, is_ours=lambda mac: mac == PEER)


@pytest.mark.spec("C20")
def test_a_node_whose_lease_comes_by_while_we_probe_is_no_foreign_host() -> None:
    known: set[bytes] = set()

    async def play(link: Link) -> None:
        link.kernel.add_station(ONE, "eth0", PEER)
        link.conflicts.ask(ETH0)
        await asyncio.sleep(0.2)
        known.add(PEER)
        assert await link.finding(ETH0) == NOBODY

    on_link(play, is_ours=lambda mac: mac in known)


@pytest.mark.spec("C20")
def test_what_is_given_up_in_the_middle_is_asked_for_no_more() -> None:
    async def play(link: Link) -> None:
        link.conflicts.ask(ETH0)
        link.conflicts.ask((TWO, "eth0"))
        await asyncio.sleep(0.15)
        link.conflicts.forget(ONE)
        assert link.kernel.listens_for() == {TWO}
        await asyncio.sleep(5)
        assert link.ended == [TWO]
        assert len(link.probed(ONE)) == 2
        # Begun anew it is asked for anew, whatever is left of the first time.
        assert await link.finding(ETH0) == NOBODY
        assert len(link.probed(ONE)) == 5

    on_link(play)


@pytest.mark.spec("C20")
def test_while_a_link_is_down_nobody_can_be_asked_and_nothing_is_found() -> None:
    async def play(link: Link) -> None:
        link.kernel.set_link("eth0", up=False)
        link.kernel.add_station(ONE, "eth0", FOREIGN)
        link.conflicts.ask(ETH0)
        await asyncio.sleep(60)
        assert link.ended == []
        assert link.probed() == []
        link.kernel.set_link("eth0", up=True)
        assert await link.finding(ETH0) == FOREIGN

    on_link(play)


def test_where_there_is_no_link_there_is_nobody_and_the_addition_shows_what_is_wrong() -> None:
    async def play(link: Link) -> None:
        assert link.conflicts.ask((ONE, "gone0")) == NOBODY
        link.conflicts.ask(ETH0)
        link.kernel.remove_interface("eth0")
        assert await link.finding(ETH0) == NOBODY

    on_link(play)


@pytest.mark.spec("C20")
def test_a_thousand_are_probed_at_once_and_the_loop_has_its_turns() -> None:
    addresses = [ONE + k for k in range(1000)]

    async def play(link: Link) -> None:
        link.kernel.add_station(addresses[777], "eth0", FOREIGN)
        longest, before = 0, 0
        for address in addresses:
            assert link.conflicts.ask((address, "eth0")) is None
        async with asyncio.timeout(1):
            while len(link.ended) < 1000:
                await asyncio.sleep(0)
                longest = max(longest, len(link.kernel.probed) - before)
                before = len(link.kernel.probed)
                await asyncio.sleep(0.001)
        assert longest <= 64
        found = {address for address in addresses if link.conflicts.ask((address, "eth0"))}
        assert found == {addresses[777]}
        assert len(link.kernel.probed) == 3000

    on_link(play)


@pytest.mark.spec("C20")
def test_how_often_and_how_fast_is_configured() -> None:
    async def play(link: Link) -> None:
        link.conflicts.config = ProbeConfig(True, 2, 1.0)
        assert await link.finding(ETH0) == NOBODY

    assert on_link(play).probed() == pytest.approx([0.0, 1.0], abs=0.02)


# While it is announced.


@pytest.mark.spec("C20")
def test_a_foreign_host_is_told_and_answered_once_in_ten_seconds_however_much_it_talks() -> None:
    async def play(link: Link) -> None:
        link.conflicts.guard(ETH0)
        for _ in range(300):
            link.kernel.see(ONE, "eth0", FOREIGN)
            await asyncio.sleep(0.1)
        assert link.told == [(ETH0, FOREIGN, True)]
        link.conflicts.let_go(ETH0)
        link.kernel.see(ONE, "eth0", FOREIGN)
        await asyncio.sleep(60)

    link = on_link(play)
    times = link.defended()
    assert len(times) == 3
    assert all(later - earlier >= DEFEND_S for earlier, later in pairwise(times))
    assert link.conflicts.counters.defences == 3


@pytest.mark.spec("C20")
@pytest.mark.parametrize("frame", ["of a peer", "that only asks", "of a peer that joins just now"])
def test_frames_that_are_no_conflict_are_passed_over(frame: str) -> None:
    known: set[bytes] = {PEER} if frame == "of a peer" else set()

    async def play(link: Link) -> None:
        link.conflicts.guard(ETH0)
        asks = frame == "that only asks"
        link.kernel.see(ONE, "eth0", FOREIGN if asks else PEER, asks=asks)
        await asyncio.sleep(0.3)
        known.add(PEER)
        await asyncio.sleep(30)
        assert link.told == []

    assert on_link(play, is_ours=lambda mac: mac in known).defended() == []


@pytest.mark.spec("C20")
@pytest.mark.parametrize("why", ["our Lease is not valid", "no gratuitous ARP is wanted", "it is ours no more"])
def test_an_address_is_not_defended_when(why: str) -> None:
    async def play(link: Link) -> None:
        link.conflicts.defends = why != "no gratuitous ARP is wanted"
        link.conflicts.guard(ETH0)
        link.kernel.see(ONE, "eth0", FOREIGN)
        await asyncio.sleep(0.5)
        if why == "it is ours no more":
            link.conflicts.let_go(ETH0)
        await asyncio.sleep(30)
        assert len(link.told) == (why != "it is ours no more")

    assert on_link(play, may_defend=lambda: why != "our Lease is not valid").defended() == []


@pytest.mark.spec("C20")
def test_one_that_takes_all_addresses_does_not_make_us_flood_the_link() -> None:
    addresses = [ONE + k for k in range(500)]

    async def play(link: Link) -> None:
        for address in addresses:
            link.conflicts.guard((address, "eth0"))
        for _ in range(10):
            for address in addresses:
                link.kernel.see(address, "eth0", FOREIGN)
            await asyncio.sleep(1.0)
        assert len(link.kernel.announced) <= DEFENCES_MAX

    on_link(play)


@pytest.mark.spec("C20")
@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.booleans()), max_size=60))
def test_whatever_is_heard_no_address_is_defended_twice_in_ten_seconds(heard: list[tuple[int, int, bool]]) -> None:
    async def play(link: Link) -> None:
        for which, pause, talks in heard:
            where = (ONE + which, "eth0")
            link.conflicts.guard(where)
            if talks:
                link.kernel.see(*where, FOREIGN)
            elif pause % 3 == 0:
                link.conflicts.let_go(where)
            await asyncio.sleep(pause / 10)
        await asyncio.sleep(5)

    link = on_link(play)
    for which in range(4):
        times = [one.at for one in link.kernel.announced if one.address == ONE + which]
        assert all(later - earlier >= DEFEND_S for earlier, later in pairwise(times))


# With the rest of the agent.


class Listener:
    def __init__(self) -> None:
        self.conflicts: list[tuple[Where, bytes, bool]] = []

    def announced(self, desired: Desired, *, new: bool) -> None: ...

    def heard(self, address: Address) -> None: ...

    def withdrawn(self, address: Address) -> None: ...

    def bridged(self, interface: str, kind: str) -> None: ...

    def elsewhere(self, address: Address) -> None: ...

    def conflict(self, where: Where, mac: bytes, announced: bool) -> None:
        self.conflicts.append((where, mac, announced))


class Passes:
    """An announcer in virtual time, which works on what its probes have ended for and what is to be tried again."""

    def __init__(self, **around: Any) -> None:
        self.kernel = FakeKernel(clock=virtual_clock)
        self.kernel.add_interface("eth0")
        self.ledger = Ledger("node", "i", lambda: datetime(2026, 11, 1, tzinfo=UTC))
        self.verdicts: dict[Address, Verdict] = {}
        self.listener = Listener()
        self._todo: set[Address] = set()
        self.announcer = Announcer(
            self.kernel,
            self.ledger,
            self.verdicts.get,
            self.listener,
            virtual_clock,
            Surroundings(**around),
            self._todo.update,
        )

    def want(self, address: Address, *, guarded: bool = True) -> None:
        services = (ServiceKey("test", "s"),)
        self.verdicts[address] = Desired(address, Kind.LOCAL, "eth0", 24, 300, None, True, services, guarded)
        self._todo.add(address)

    def unwant(self, address: Address) -> None:
        del self.verdicts[address]
        self._todo.add(address)

    async def live(self, duration_s: float) -> None:
        end = virtual_clock() + duration_s
        while virtual_clock() < end:
            todo = {*self._todo, *self.announcer.holdings.due()}
            self._todo.clear()
            await self.announcer.work(todo)
            await asyncio.sleep(0.01)

    async def held(self) -> set[Address]:
        return {held.address for held in await self.kernel.held()}

    def moves(self, address: Address = ONE) -> list[str]:
        return [f"{m.source} {m.dest} {m.reason}".strip() for m in self.ledger.report().transitions]


def passes(play: Callable[[Passes], Coroutine[Any, Any, None]], **around: Any) -> Passes:
    async def main() -> Passes:
        passes = Passes(**around)
        task = asyncio.create_task(passes.announcer.conflicts.run())
        await play(passes)
        task.cancel()
        await asyncio.wait({task})
        return passes

    return run_virtual(main())


REASON = f"AddressConflict: {ONE} is used by {FOREIGN.hex(':')} on the link of eth0"


@pytest.mark.spec("C20")
def test_an_address_in_use_is_failed_with_the_mac_and_comes_up_by_itself_when_the_foreign_host_goes() -> None:
    async def play(node: Passes) -> None:
        node.kernel.add_station(ONE, "eth0", FOREIGN)
        node.want(ONE)
        await node.live(60)
        assert await node.held() == set()
        assert node.moves() == ["absent adding", f"adding failed {REASON}"], "what stays as it is is not told again"
        assert node.listener.conflicts == [((ONE, "eth0"), FOREIGN, False)]
        assert node.announcer.holdings.counters.failed == 0
        # Back-off: after 1, 2, 4, 8, 16 and 30 seconds.
        assert 5 * 3 <= len(node.kernel.probed) <= 7 * 3
        node.kernel.remove_station(ONE, "eth0")
        await node.live(31)
        assert await node.held() == {ONE}
        assert node.moves()[2:] == ["failed adding", "adding present"]

    passes(play)


@pytest.mark.spec("C20")
def test_while_probes_are_under_way_nothing_is_tried_and_nothing_goes_round_in_circles() -> None:
    async def play(node: Passes) -> None:
        node.kernel.add_station(ONE, "eth0", FOREIGN)
        node.want(ONE)
        while not node.announcer.holdings.due():
            await node.live(0.05)
        await node.announcer.work({ONE})
        assert node.announcer.holdings.due() == set()
        assert node.announcer.holdings.next_retry() == float("inf")
        await node.live(1)
        assert node.announcer.holdings.next_retry() != float("inf")

    passes(play)


@pytest.mark.spec("C20")
@pytest.mark.parametrize("why", ["not guarded", "announced before", "here already"])
def test_an_address_is_put_there_at_once_when(why: str) -> None:
    async def play(node: Passes) -> None:
        node.kernel.add_station(ONE, "eth0", FOREIGN)
        if why == "here already":
            node.want(ONE, guarded=False)
            await node.live(0.02)
        node.want(ONE, guarded=why != "not guarded")
        await node.live(0.02)
        assert await node.held() == {ONE}
        assert node.kernel.probed == []
        assert node.kernel.listens_for() == (set() if why == "not guarded" else {ONE})

    passes(play, announced=lambda _: why == "announced before")


@pytest.mark.spec("C20")
def test_what_is_not_wanted_any_more_is_neither_probed_nor_put_there() -> None:
    async def play(node: Passes) -> None:
        node.want(ONE)
        await node.live(0.15)
        node.unwant(ONE)
        await node.live(0.02)
        assert node.kernel.listens_for() == set()
        await node.live(5)
        assert node.moves() == []
        assert len(node.kernel.probed) == 2
        node.kernel.add_station(ONE, "eth0", FOREIGN)
        node.want(ONE)
        await node.live(0.5)
        node.unwant(ONE)
        await node.live(60)
        assert len(node.ledger) == 0
        assert node.announcer.holdings.next_retry() is None

    passes(play)


@pytest.mark.spec("C20")
def test_what_cannot_be_decided_is_probed_no_further() -> None:
    async def play(node: Passes) -> None:
        node.want(ONE)
        await node.live(0.15)
        node.verdicts[ONE] = Keep(ONE, "the node's LBNodeAgent cannot be read", ())
        await node.live(0.02 + 5)
        await node.announcer.work({ONE})
        assert node.kernel.listens_for() == set()
        assert await node.held() == set()
        asked = len(node.kernel.probed)
        node.want(ONE)
        await node.live(0.5)
        assert await node.held() == {ONE}
        assert len(node.kernel.probed) == asked + 3, "what was found before is not believed any more"

    passes(play)


@pytest.mark.spec("C20")
def test_what_should_leave_and_cannot_is_not_defended() -> None:
    async def play(node: Passes) -> None:
        node.want(ONE)
        await node.live(0.5)
        node.kernel.refuse(ONE, KernelRefused(5))
        node.unwant(ONE)
        await node.live(0.05)
        assert await node.held() == {ONE}
        assert node.kernel.listens_for() == set()

    passes(play)


@pytest.mark.spec("C20")
def test_an_address_that_is_announced_is_listened_for_until_it_leaves_or_that_is_switched_off() -> None:
    async def play(node: Passes) -> None:
        node.want(ONE)
        node.want(TWO)
        await node.live(0.5)
        assert node.kernel.listens_for() == {ONE, TWO}
        node.kernel.see(ONE, "eth0", FOREIGN)
        await node.live(2)
        assert node.listener.conflicts == [((ONE, "eth0"), FOREIGN, True)]
        assert node.ledger.state(ONE, "eth0") is AnnouncementState.PRESENT
        node.want(ONE, guarded=False)
        node.kernel.remove_by_hand(TWO, "eth0")
        await node.announcer.look()
        await node.live(0.02)
        assert node.kernel.listens_for() == set()

    passes(play)


# Which stations are ours.


def lease(node: str, *macs: bytes) -> LeaseView:
    annotations = {names.MACS: render_macs(macs)} if macs else {}
    return LeaseView(names.NODE_LEASE_PREFIX + node, "purelb-system", "u", "1", node, 10.0, annotations=annotations)


@pytest.mark.spec("C20")
def test_a_nodes_macs_are_known_from_its_lease_and_for_an_hour_after_that_went() -> None:
    time = [0.0]
    stations = Stations(lambda: time[0])
    stations.own = (FOREIGN,)
    assert stations.is_ours(FOREIGN)
    assert not stations.is_ours(PEER)
    stations.take(None, lease("a", PEER))
    assert stations.is_ours(PEER)
    changed = bytes.fromhex("020000000077")
    stations.take(lease("a", PEER), lease("a", changed))
    assert stations.is_ours(PEER)
    assert stations.is_ours(changed)
    stations.take(lease("a", changed), None)
    time[0] = MEMORY_S - 1
    assert stations.is_ours(PEER)
    assert stations.is_ours(changed)
    time[0] = MEMORY_S + 1
    assert not stations.is_ours(PEER)
    assert not stations.is_ours(changed)


def test_leases_that_change_their_macs_all_the_time_fill_no_memory() -> None:
    stations = Stations(lambda: 0.0)
    old: LeaseView | None = None
    for turn in range(3 * FORMER_MAX):
        new = lease("a", b"\x02\x00" + turn.to_bytes(4))
        stations.take(old, new)
        old = new
    assert len(stations._former) <= FORMER_MAX
    assert stations.is_ours(b"\x02\x00" + (3 * FORMER_MAX - 2).to_bytes(4))


@given(st.lists(st.binary(min_size=6, max_size=6).map(lambda mac: bytes([mac[0] & 0xFE]) + mac[1:]), max_size=MAX_MACS))
def test_macs_are_read_as_they_were_written(macs: list[bytes]) -> None:
    assert parse_macs(render_macs(macs)) == frozenset(macs)


@pytest.mark.parametrize(
    "text", ["", ",", "02:00:00:00:00", "02-00-00-00-00-09", "ff:ff:ff:ff:ff:ff", "x" * 17, "0" * 99]
)
def test_what_is_no_mac_is_passed_over(text: str) -> None:
    assert parse_macs(f"{text},02:00:00:00:00:09") == {PEER}


def test_the_macs_of_pods_and_tunnels_are_not_the_nodes() -> None:
    def link(index: int, name: str, kind: str | None) -> Interface:
        return Interface(index, name, bytes((2, 0, 0, 0, 0, index)), True, True, kind)

    links = [link(1, "eth0", None), link(2, "cali1", "veth"), link(3, "bond0", "bond"), link(4, "enp1s0", "veth")]
    links.append(Interface(5, "lo", bytes(6), True, True))
    links.append(Interface(6, "tun0", None, True, True, "tun"))
    assert [mac[-1] for mac in own_macs(links, ["enp1s0"])] == [4, 1, 3]
