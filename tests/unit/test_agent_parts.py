"""The agent's parts one by one: the kernel's work under every interleaving, frames, lifetimes, the burial of Leases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pydantic import ValidationError

from purelb_sm.agent.announcer import Announcer
from purelb_sm.agent.conflicts import Surroundings
from purelb_sm.agent.frames import Frames
from purelb_sm.agent.handover import Handover
from purelb_sm.agent.ledger import Ledger, Where
from purelb_sm.agent.roster import BURY_AFTER_S, Roster
from purelb_sm.agent.upkeep import Bearings, Upkeep
from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.agent_config import DEFAULT_CONFIG, AddressConfig, GarpConfig
from purelb_sm.domain.announce import Announcements, Desired, Groups, Keep, Kind, Place, Verdict
from purelb_sm.domain.election import Electorate
from purelb_sm.domain.groups import parse_group
from purelb_sm.domain.states import AnnouncementState, AnnouncementTrigger
from purelb_sm.domain.views import Ingress, LeaseView, ObjectView, ServiceKey, ServiceView
from purelb_sm.errors import Conflict
from purelb_sm.kube.leases import Liveness
from purelb_sm.net import KernelRefused, NetError
from purelb_sm.net.fake import FakeKernel
from purelb_sm.settings import AgentSettings
from tests.support.virtual_time import run_virtual, virtual_clock

ADDRESSES = [ip_address(a) for a in ("10.0.0.1", "10.0.0.2", "2001:db8::1")]
NICS = ("eth0", "eth1")
KEY = (ServiceKey("test", "s"),)


def now() -> datetime:
    return datetime(2026, 11, 1, tzinfo=UTC)


class Silent:
    """A listener that hears nothing."""

    def announced(self, desired: Desired, *, new: bool) -> None: ...

    def heard(self, address: Address) -> None: ...

    def withdrawn(self, address: Address) -> None: ...

    def conflict(self, where: Where, mac: bytes, announced: bool) -> None: ...

    def bridged(self, interface: str, kind: str) -> None: ...

    def elsewhere(self, address: Address) -> None: ...


ALONE = Surroundings()


def unheard(addresses: Iterable[Address]) -> None:
    """What an announcer tells of the probes that have ended."""


def desired(address: Address, interface: str = "eth0", length: int = 24, lifetime_s: int | None = 300) -> Desired:
    kind = Kind.REMOTE if interface == "kube-lb0" else Kind.LOCAL
    return Desired(address, kind, interface, length, lifetime_s, None, kind is Kind.LOCAL, KEY)


class KernelWork(RuleBasedStateMachine):
    """Whatever is wanted, refused, taken away or put in the way: after a pass the kernel is as it should be as far as
    it can be, the ledger says so, every move led from the state that was, and no foreign address was touched."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.kernel = FakeKernel(clock=lambda: 0.0)
        self.verdicts: dict[Address, Verdict] = {}
        self.refused: set[Address] = set()
        self.foreign: set[tuple[Address, str]] = set()
        self.kept: dict[Address, set[str]] = {}
        self.clean = False

    def teardown(self) -> None:
        self.loop.close()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    @initialize()
    def boot(self) -> None:
        for nic in NICS:
            self.kernel.add_interface(nic)
        self.start_agent()

    @rule(look=st.booleans())
    def start_agent(self, look: bool = False) -> None:
        """Also after a kill: a new incarnation on the same kernel."""
        self.ledger = Ledger("node", "incarnation", now)
        self.announcer = Announcer(self.kernel, self.ledger, self.verdicts.get, Silent(), lambda: 0.0, ALONE, unheard)
        self.changed(look)

    @rule(
        address=st.sampled_from(ADDRESSES),
        interface=st.sampled_from([*NICS, "kube-lb0", "missing0"]),
        length=st.sampled_from([24, 32]),
        lifetime_s=st.sampled_from([300, None]),
        look=st.booleans(),
    )
    def want(self, address: Address, interface: str, length: int, lifetime_s: int | None, look: bool) -> None:
        self.verdicts[address] = desired(address, interface, length, lifetime_s)
        self.changed(look)

    @rule(address=st.sampled_from(ADDRESSES), look=st.booleans())
    def want_no_more(self, address: Address, look: bool) -> None:
        self.verdicts.pop(address, None)
        self.changed(look)

    @rule(address=st.sampled_from(ADDRESSES), look=st.booleans())
    def cannot_decide(self, address: Address, look: bool) -> None:
        self.verdicts[address] = Keep(address, "", KEY)
        self.changed(look)

    @rule(address=st.sampled_from(ADDRESSES), yes=st.booleans(), look=st.booleans())
    def refuse(self, address: Address, yes: bool, look: bool) -> None:
        self.kernel.refuse(address, KernelRefused(12) if yes else None)
        (self.refused.add if yes else self.refused.discard)(address)
        self.changed(look)

    @rule(address=st.sampled_from(ADDRESSES), interface=st.sampled_from(NICS), look=st.booleans())
    def remove_by_hand(self, address: Address, interface: str, look: bool) -> None:
        self.kernel.remove_by_hand(address, interface)
        self.foreign.discard((address, interface))
        self.changed(look)

    @rule(address=st.sampled_from(ADDRESSES), interface=st.sampled_from(NICS), look=st.booleans())
    def foreign_in_the_way(self, address: Address, interface: str, look: bool) -> None:
        self.kernel.remove_by_hand(address, interface)
        self.kernel.add_foreign(f"{address}/{24 if address.version == 4 else 64}", interface)
        self.foreign.add((address, interface))
        self.changed(look)

    def changed(self, look: bool) -> None:
        """Several changes may come together before the agent looks."""
        self.clean = False
        if look:
            self.a_pass()

    @rule()
    def a_pass(self) -> None:
        before = {h.address: h.interface for h in self.do(self.kernel.held())}
        for _ in range(2):
            self.do(self.announcer.look())
            self.do(self.announcer.work([*ADDRESSES]))
        after = {h.address: h.interface for h in self.do(self.kernel.held())}
        for address in ADDRESSES:
            if isinstance(self.verdicts.get(address), Keep):
                assert after.get(address) == before.get(address)
        self.clean = True

    @rule()
    def another_pass_moves_nothing_and_asks_only_for_what_failed(self) -> None:
        if not self.clean:
            return
        moves, asked = len(self.ledger.report().transitions), len(self.kernel.applied)
        failed = {record.address for record in self.ledger if record.state is AnnouncementState.FAILED} | self.refused
        self.do(self.announcer.look())
        self.do(self.announcer.work([a for a in ADDRESSES if a not in failed]))
        assert len(self.kernel.applied) == asked
        self.do(self.announcer.work(ADDRESSES))
        assert len(self.ledger.report().transitions) == moves

    @invariant()
    def foreign_addresses_are_untouched(self) -> None:
        there = {(h.address, h.interface) for h in self.do(self.kernel.addresses()) if not h.mine}
        assert there == self.foreign

    @invariant()
    def every_move_leads_from_the_state_that_was(self) -> None:
        states: dict[tuple[Address, str], AnnouncementState] = {}
        for number, move in enumerate(self.ledger.report().transitions, 1):
            assert move.seq == number
            where = (move.address, move.interface)
            assert move.source == states.get(where, AnnouncementState.ABSENT)
            states[where] = move.dest
        last = {where: state for where, state in states.items() if state is not AnnouncementState.ABSENT}
        assert last == {(r.address, r.interface): r.state for r in self.ledger}

    @invariant()
    def after_a_pass_all_is_as_it_should_be(self) -> None:
        if not self.clean:
            return
        held = self.do(self.kernel.held())
        for address in ADDRESSES:
            self.check(address, self.verdicts.get(address), [h for h in held if h.address == address])
        for record in self.ledger:
            if record.state is AnnouncementState.FAILED:
                verdict = self.verdicts.get(record.address)
                there = any((h.address, h.interface) == (record.address, record.interface) for h in held)
                wanted = isinstance(verdict, Keep) or (
                    isinstance(verdict, Desired) and verdict.interface == record.interface
                )
                assert there or wanted, "what is not wanted and not there has no state"
        tried_again = self.announcer.holdings.due(all_of_them=True)
        assert tried_again <= {r.address for r in self.ledger if r.state is AnnouncementState.FAILED}
        assert not {a for a in tried_again if isinstance(self.verdicts.get(a), Keep)}
        assert (self.announcer.holdings.next_retry() or 1.0) >= 1.0, "what has just failed is not due"
        present = {(r.address, r.interface) for r in self.ledger if r.state is AnnouncementState.PRESENT}
        failed = {r.address for r in self.ledger if r.state is AnnouncementState.FAILED}
        assert present <= {(h.address, h.interface) for h in held}
        assert {(h.address, h.interface) for h in held if h.address not in failed} <= present

    def check(self, address: Address, verdict: Verdict, held: list[Any]) -> None:
        if isinstance(verdict, Keep) or address in self.refused:
            return
        if verdict is None:
            assert held == []
        elif verdict.interface == "missing0" or (address, verdict.interface) in self.foreign:
            assert held == []
            assert self.ledger.state(address, verdict.interface) is AnnouncementState.FAILED
        else:
            (one,) = held
            assert (one.interface, one.prefix_length) == (verdict.interface, verdict.prefix_length)
            assert (one.valid_s is None) == (verdict.lifetime_s is None)


KernelWork.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestKernelWork = pytest.mark.spec("C2", "C4", "C12", "C13", "C15")(KernelWork.TestCase)


async def test_a_kernel_that_cannot_be_asked_fails_what_was_asked_and_is_asked_again() -> None:
    kernel = FakeKernel()
    kernel.add_interface("eth0")
    ledger = Ledger("node", "i", now)
    announcer = Announcer(kernel, ledger, lambda a: desired(a), Silent(), lambda: 0.0, ALONE, unheard)
    real = kernel.apply

    async def broken(add: Any, remove: Any) -> Any:
        raise NetError("not now")

    kernel.apply = broken  # type: ignore[method-assign]
    await announcer.work(ADDRESSES)
    assert {r.state for r in ledger} == {AnnouncementState.FAILED}
    assert announcer.holdings.next_retry() == 1.0
    assert announcer.holdings.due() == set()
    assert announcer.holdings.due(all_of_them=True) == set(ADDRESSES)
    kernel.apply = real  # type: ignore[method-assign]
    await announcer.work(announcer.holdings.due(all_of_them=True))
    assert {r.state for r in ledger} == {AnnouncementState.PRESENT}
    assert announcer.holdings.next_retry() is None


class SlowKernel(FakeKernel):
    """Its answers take until `answer` is set; what is asked is done at once, whoever still waits for the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def apply(self, add: Any, remove: Any) -> Any:
        answers = await super().apply(add, remove)
        self.asked.set()
        await self.answer.wait()
        return answers


@pytest.mark.spec("C6", "C15")
@pytest.mark.parametrize("what", ["added", "removed"])
async def test_who_is_told_to_stop_in_the_middle_of_its_work_knows_afterwards_that_it_was_its_own(what: str) -> None:
    kernel = SlowKernel()
    kernel.add_interface("eth0")
    ledger, wanted = Ledger("node", "i", now), set(ADDRESSES)
    decide: Callable[[Address], Verdict] = lambda a: desired(a) if a in wanted else None  # noqa: E731
    announcer = Announcer(kernel, ledger, decide, Silent(), lambda: 0.0, ALONE, unheard)
    if what == "removed":
        kernel.answer.set()
        await announcer.work(ADDRESSES)
        kernel.answer.clear()
        kernel.asked.clear()
        wanted.clear()
    working = asyncio.create_task(announcer.work(ADDRESSES))
    await kernel.asked.wait()
    working.cancel()
    asyncio.get_running_loop().call_later(0.01, kernel.answer.set)
    await asyncio.wait({working})
    assert working.cancelled()
    assert await announcer.look() == set(), "nothing is there, or gone, that it does not know of"
    assert ({str(move.trigger) for move in ledger.report().transitions}) == (
        {"add", "added"} if what == "added" else {"add", "added", "remove", "removed"}
    )
    assert announcer.holdings.counters.vanished == 0


# Frames.


def frames_of(
    kernel: FakeKernel,
    ours: Callable[[], bool] = lambda: True,
    told: Callable[[Where], None] = lambda where: None,
    **config: Any,
) -> Frames:
    frames = Frames(kernel, lambda where: ours(), told)
    frames.config = GarpConfig(**config)
    return frames


def node_kernel() -> FakeKernel:
    kernel = FakeKernel(clock=virtual_clock)
    kernel.add_interface("eth0")
    return kernel


def times(kernel: FakeKernel, address: Address = ADDRESSES[0]) -> list[float]:
    return [round(a.at, 3) for a in kernel.announced if a.address == address]


def run_frames(play: Callable[[FakeKernel, Frames], Coroutine[Any, Any, None]], **config: Any) -> FakeKernel:
    async def main() -> FakeKernel:
        kernel = node_kernel()
        frames = frames_of(kernel, **config)
        task = asyncio.create_task(frames.run())
        await play(kernel, frames)
        task.cancel()
        return kernel

    return run_virtual(main())


@pytest.mark.spec("C7")
def test_three_frames_half_a_second_apart_after_a_tenth_for_each_address() -> None:
    async def play(kernel: FakeKernel, frames: Frames) -> None:
        frames.start((ADDRESSES[0], "eth0"))
        await asyncio.sleep(0.25)
        frames.start((ADDRESSES[2], "eth0"))
        await asyncio.sleep(5)

    kernel = run_frames(play)
    assert times(kernel) == [0.1, 0.6, 1.1]
    assert times(kernel, ADDRESSES[2]) == [0.35, 0.85, 1.35]


@pytest.mark.spec("C7")
def test_a_series_ends_when_it_is_stopped_and_begins_anew_when_it_is_started_again() -> None:
    async def play(kernel: FakeKernel, frames: Frames) -> None:
        where = (ADDRESSES[0], "eth0")
        frames.start(where)
        await asyncio.sleep(0.3)
        frames.stop(where)
        await asyncio.sleep(0.7)
        frames.start(where)
        await asyncio.sleep(0.4)
        frames.start(where)
        await asyncio.sleep(5)

    assert times(run_frames(play)) == [0.1, 1.1, 1.5, 2.0, 2.5]


@pytest.mark.spec("C7", "C17")
def test_on_a_takeover_the_first_frame_goes_at_once_and_the_second_after_the_initial_delay() -> None:
    first: list[Where] = []
    where = (ADDRESSES[0], "eth0")

    async def play(kernel: FakeKernel, frames: Frames) -> None:
        frames.start(where, at_once=True)
        assert not frames.heard(where)
        await asyncio.sleep(0.05)
        assert frames.heard(where)
        await asyncio.sleep(5)

    assert times(run_frames(play, told=first.append)) == [0.0, 0.1, 0.6]
    assert first == [where], "told once, not for each frame"
    assert times(run_frames(play, initial_delay_s=0.0)) == [0.0, 0.5, 1.0]


def test_what_cannot_or_shall_not_be_told_counts_as_told() -> None:
    """Else whoever holds the address waited for it in vain."""
    first: list[Where] = []
    gone = (ADDRESSES[0], "gone0")

    async def play(kernel: FakeKernel, frames: Frames) -> None:
        frames.start(gone)
        await asyncio.sleep(1)
        assert frames.heard(gone)
        assert frames.heard((ADDRESSES[1], "eth0"))

    run_frames(play, told=first.append)
    assert first == [gone]
    run_frames(play, enabled=False)


@pytest.mark.spec("C7")
@pytest.mark.parametrize(("verify", "expected"), [(True, [0.1]), (False, [0.1, 0.6, 1.1])])
def test_ownership_is_checked_before_each_unless_told_not_to(verify: bool, expected: list[float]) -> None:
    mine = [True]

    async def play(kernel: FakeKernel, frames: Frames) -> None:
        frames.start((ADDRESSES[0], "eth0"))
        await asyncio.sleep(0.3)
        mine[0] = False
        await asyncio.sleep(5)

    assert times(run_frames(play, ours=lambda: mine[0], verify=verify)) == expected


@pytest.mark.spec("C7")
def test_while_the_others_do_not_count_on_the_node_it_tells_nobody_anything() -> None:
    """Nor later on its own account: what is left of the series is of a time that is over."""
    counted = [True]

    async def play(kernel: FakeKernel, frames: Frames) -> None:
        frames.counted = lambda: counted[0]
        frames.start((ADDRESSES[0], "eth0"))
        await asyncio.sleep(0.3)
        counted[0] = False
        await asyncio.sleep(0.4)
        counted[0] = True
        await asyncio.sleep(5)
        frames.start((ADDRESSES[0], "eth0"))
        await asyncio.sleep(0.2)

    assert times(run_frames(play, verify=False)) == [0.1, 5.8]


@pytest.mark.spec("C7")
def test_what_garp_config_says_is_done() -> None:
    async def play(kernel: FakeKernel, frames: Frames) -> None:
        frames.start((ADDRESSES[0], "eth0"))
        await asyncio.sleep(9)

    assert times(run_frames(play, initial_delay_s=0.0, count=2, interval_s=3.0)) == [0.0, 3.0]
    assert times(run_frames(play, enabled=False)) == []


def test_an_interface_that_is_gone_ends_the_series_of_its_addresses_and_of_no_other() -> None:
    async def play(kernel: FakeKernel, frames: Frames) -> None:
        frames.start((ADDRESSES[0], "gone0"))
        frames.start((ADDRESSES[2], "eth0"))
        await asyncio.sleep(9)

    kernel = run_frames(play)
    assert len(times(kernel)) == 0
    assert len(times(kernel, ADDRESSES[2])) == 3


# Lifetimes and the Lease.


GROUP = {
    "local": {"v4pools": [{"subnet": "10.0.0.0/24", "pool": "10.0.0.0/24"}]},
}
REMOTE = {"remote": {"v4pools": [{"subnet": "10.9.0.0/24", "pool": "10.9.0.0/24", "aggregation": "/32"}]}}
LAN = ip_network("10.0.0.0/24")
LEASED_S = 100.0


class Node:
    """An Upkeep on a kernel in memory, in virtual time, with a Lease that runs out when the test says so."""

    def __init__(self, *, strict: bool) -> None:
        self.kernel = FakeKernel(clock=virtual_clock)
        self.kernel.add_interface("eth0", "10.0.0.9/24")
        self.kernel.set_default_route(4, "eth0")
        self.lease_until = LEASED_S
        groups = [
            parse_group(ObjectView("ServiceGroup", "purelb.io/v2", "purelb-system", n, "u", "1", 1, None, spec))
            for n, spec in (("l", GROUP), ("r", REMOTE))
        ]
        table = Announcements(Place("a"))
        brand = {names.ALLOCATED_BY: names.BRAND}
        ingress = (Ingress("10.0.0.1"), Ingress("10.9.0.1"))
        table.update(ServiceView(KEY[0], "u", "1", "LoadBalancer", annotations=brand, ingress=ingress))
        self.place = Place("a", Electorate({"a": {LAN}}), (("eth0", LAN),), DEFAULT_CONFIG, Groups(groups))
        bearings = Bearings(lambda: True, lambda: self.place.config, lambda _: self.place, lambda: self.lease_until)
        self.upkeep = Upkeep(
            self.kernel,
            Ledger("a", "i", now),
            table,
            bearings,
            Silent(),
            virtual_clock,
            resync_s=60.0,
            strict=strict,
            around=ALONE,
            handover=Handover("a", table, lambda key: None, virtual_clock, bound_s=10.0),
        )

    async def held(self) -> list[str]:
        return sorted(str(h.address) for h in await self.kernel.held())


def live(play: Callable[[Node], Coroutine[Any, Any, None]], *, strict: bool) -> None:
    async def main() -> None:
        node = Node(strict=strict)
        task = asyncio.create_task(node.upkeep.run())
        try:
            await play(node)
        finally:
            task.cancel()

    run_virtual(main())


@pytest.mark.spec("C3", "C14")
def test_kept_addresses_are_renewed_for_hours_without_a_lease_and_never_flap() -> None:
    async def play(node: Node) -> None:
        await asyncio.sleep(LEASED_S + 4 * 3600)
        assert await node.held() == ["10.0.0.1", "10.9.0.1"]
        lifetimes = [h.valid_s for h in await node.kernel.held() if h.valid_s is not None]
        assert lifetimes == [pytest.approx(250, abs=60)]
        assert not any(removed for _, removed in node.kernel.applied)
        assert node.upkeep.announcer.holdings.counters.vanished == 0

    live(play, strict=False)


@pytest.mark.spec("C14")
def test_strict_addresses_are_there_for_no_more_than_a_lifetime_after_the_lease() -> None:
    async def play(node: Node) -> None:
        await asyncio.sleep(LEASED_S + 30)
        assert await node.held() == ["10.0.0.1", "10.9.0.1"]
        await asyncio.sleep(300)
        assert await node.held() == []
        node.lease_until = float("inf")
        node.upkeep.wake()
        await asyncio.sleep(1)
        assert await node.held() == ["10.0.0.1", "10.9.0.1"]
        await asyncio.sleep(3600)
        assert await node.held() == ["10.0.0.1", "10.9.0.1"]

    live(play, strict=True)


@pytest.mark.spec("C14")
def test_strict_a_lease_that_is_back_in_time_costs_nothing() -> None:
    async def play(node: Node) -> None:
        await asyncio.sleep(LEASED_S + 150)
        node.lease_until = float("inf")
        node.upkeep.wake()
        await asyncio.sleep(3600)
        assert await node.held() == ["10.0.0.1", "10.9.0.1"]
        assert not any(removed for _, removed in node.kernel.applied)
        assert node.upkeep.announcer.holdings.counters.vanished == 0

    live(play, strict=True)


@pytest.mark.spec("C3")
@pytest.mark.parametrize("lifetime_s", [60, 61, 150, 1000, 100_000])
def test_lifetimes_are_renewed_when_a_third_is_over_whatever_they_were_before(lifetime_s: int) -> None:
    """The next renewal was planned for the lifetime that held until the edit: 60 s would have ended before it."""
    least: list[int] = []

    async def play(node: Node) -> None:
        await asyncio.sleep(50)
        how = AddressConfig(lifetime_s, None, noprefixroute=True)
        node.place = replace(node.place, config=replace(DEFAULT_CONFIG, local=how))
        node.upkeep.resurvey()
        await asyncio.sleep(1)
        for _ in range(600):
            least.extend(h.valid_s for h in await node.kernel.held() if h.valid_s is not None)
            await asyncio.sleep(1)
        assert not any(removed for _, removed in node.kernel.applied)
        assert node.upkeep.announcer.holdings.counters.vanished == 0

    live(play, strict=False)
    assert len(least) == 600, "it was never away"
    assert lifetime_s * 2 // 3 - 1 <= min(least) <= max(least) <= lifetime_s


# The burial of Leases.


class Leases:
    """What a reflector of Leases shows, and is told."""

    def __init__(self) -> None:
        self.views: dict[tuple[str, str], LeaseView] = {}
        self.deleted: list[tuple[str, Any]] = []
        self._callbacks: list[Callable[..., None]] = []

    def items(self) -> dict[tuple[str, str], LeaseView]:
        return self.views

    def get(self, key: tuple[str, str]) -> LeaseView | None:
        return self.views.get(key)

    def on_change(self, callback: Callable[..., None]) -> None:
        self._callbacks.append(callback)

    def renew(self, node: str, subnets: str = "10.0.0.0/24") -> None:
        key = ("purelb-system", names.NODE_LEASE_PREFIX + node)
        old = self.views.get(key)
        version = str(int(old.resource_version) + 1 if old else 1)
        self.views[key] = LeaseView(
            key[1], key[0], "uid-" + node, version, node, 10.0, annotations={names.SUBNETS: subnets}
        )
        for callback in self._callbacks:
            callback("MODIFIED", old, self.views[key])

    async def request(self, method: str, path: str, *, body: Any = None, **more: Any) -> bytes:
        self.deleted.append((path.rsplit("/", 1)[1], body["preconditions"]))
        raise Conflict("it was renewed in this moment")


def roster_of(leases: Leases, node: str) -> Roster:
    liveness = Liveness(leases, clock=virtual_clock)
    return Roster(node, "purelb-system", leases, liveness, virtual_clock)  # type: ignore[arg-type]


async def hearts(leases: Leases, *nodes: str, until: float) -> None:
    while virtual_clock() < until:
        for node in nodes:
            leases.renew(node)
        await asyncio.sleep(2)


def test_the_lease_of_a_dead_node_is_deleted_after_a_while_by_one_node_if_it_is_still_as_it_was() -> None:
    async def main() -> None:
        leases = Leases()
        first, second = roster_of(leases, "a"), roster_of(leases, "b")
        leases.renew("dead")
        burying = [asyncio.create_task(one.bury(leases)) for one in (first, second)]  # type: ignore[arg-type]
        await hearts(leases, "a", "b", until=10 + BURY_AFTER_S - 5)
        assert leases.deleted == []
        await hearts(leases, "a", "b", until=10 + BURY_AFTER_S + 25)
        assert leases.deleted
        assert {name for name, _ in leases.deleted} == {"purelb-node-dead"}
        assert leases.deleted[0][1] == {"uid": "uid-dead", "resourceVersion": "1"}
        assert len(leases.deleted) <= 3, "one node does it, every ten seconds"
        for task in burying:
            task.cancel()

    run_virtual(main())


def test_nobody_is_buried_while_no_renewals_come_in() -> None:
    async def main() -> None:
        leases = Leases()
        roster = roster_of(leases, "a")
        burying = asyncio.create_task(roster.bury(leases))  # type: ignore[arg-type]
        await hearts(leases, "a", "b", until=20)
        await asyncio.sleep(600)
        assert leases.deleted == []
        burying.cancel()

    run_virtual(main())


@pytest.mark.spec("C5")
def test_the_electorate_is_the_live_nodes_with_the_subnets_of_their_leases() -> None:
    async def main() -> None:
        leases = Leases()
        roster = roster_of(leases, "a")
        assert not roster.counted
        leases.renew("a", "192.168.0.0/24")
        leases.renew("b", "10.0.0.0/24, rubbish")
        own = frozenset([ip_network("10.7.0.0/16")])
        assert roster.electorate(own) == Electorate({"a": own, "b": [LAN]})
        await hearts(leases, "a", until=15)
        assert roster.electorate(own) == Electorate({"a": own})
        leases.renew("b", "10.1.0.0/24")
        assert roster.electorate(own) == Electorate({"a": own, "b": [ip_network("10.1.0.0/24")]})
        assert roster.counted

    run_virtual(main())


def test_renewals_that_do_not_fit_into_a_lease_are_refused() -> None:
    with pytest.raises(ValidationError, match="quarter"):
        AgentSettings.model_validate({"node_name": "a", "lease_s": 4.0, "renew_s": 2.0})


def test_a_report_is_of_what_was_there_when_it_was_made() -> None:
    ledger = Ledger("node", "i", now)
    ledger.fire(ADDRESSES[0], "eth0", AnnouncementTrigger.FOUND_PRESENT, prefix_length=24)
    before = ledger.report()
    ledger.fire(ADDRESSES[0], "eth0", AnnouncementTrigger.FOUND_ABSENT, prefix_length=24)
    assert [a.state for a in before.addresses] == [AnnouncementState.PRESENT]
    assert (before.sequence, ledger.report().sequence) == (1, 2)
    assert replace(ledger.report(), transitions=()).addresses == ()


def test_an_interface_of_another_kind_under_our_name_fails_remote_addresses_and_no_other() -> None:
    async def main() -> None:
        kernel = node_kernel()
        kernel.add_interface("kube-lb0", kind="veth")
        ledger = Ledger("node", "i", now)
        wanted = {ADDRESSES[0]: desired(ADDRESSES[0]), ADDRESSES[1]: desired(ADDRESSES[1], "kube-lb0", 32, None)}
        announcer = Announcer(kernel, ledger, wanted.get, Silent(), virtual_clock, ALONE, unheard)
        await announcer.work(list(wanted))
        states = {r.address: (r.state, r.reason.split(":")[0]) for r in ledger}
        assert states == {ADDRESSES[0]: ("present", ""), ADDRESSES[1]: ("failed", "InterfaceUnsuitable")}

    run_virtual(main())
