"""The watcher finds each violation that is made on purpose, and a clean run clean."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from purelb_sm.domain.addresses import Address
from purelb_sm.net import Kernel, Wanted
from purelb_sm.net.addresses import add_request
from purelb_sm.net.ownership import KernelMark
from purelb_sm.net.rtnetlink import RtnlSocket
from purelb_sm.sandbox.cluster import Cluster
from purelb_sm.sandbox.cluster.layout import NODE_INTERFACE
from tests.netns.support import ip, until
from tests.support.invariants import Bounds
from tests.support.watcher import Watcher

pytestmark = pytest.mark.root

IP, IP6 = ip_address("172.30.250.53"), ip_address("fd30:250::53")
ROUTED = ip_address("172.31.1.225")
TIGHT = Bounds(two_s=0.3, none_s=0.3, left_s=0.3)
WIDE = Bounds(two_s=30.0, none_s=30.0, left_s=30.0)


class Nodes:
    """Two nodes, and what an agent would do there."""

    def __init__(self, cluster: Cluster, kernels: dict[str, Kernel]) -> None:
        self.cluster = cluster
        self.kernels = kernels

    async def add(self, node: str, *addresses: Address) -> None:
        wanted = [Wanted(a, 24 if a.version == 4 else 64, NODE_INTERFACE, 300, True, nodad=True) for a in addresses]
        assert not any((await self.kernels[node].apply(wanted, ())).values())

    async def remove(self, node: str, *addresses: Address) -> None:
        held = [one for one in await self.kernels[node].held() if one.address in addresses]
        assert not any((await self.kernels[node].apply((), held)).values())

    async def announce(self, node: str, address: Address) -> None:
        assert await self.kernels[node].announce(address, NODE_INTERFACE, 0.0, 1, still_ours=lambda: True) == 1

    def take_over(self, node: str, address: str, interface: str) -> None:
        """What our own kernel layer refuses to do: a replace, that moves our mark over without a word."""
        with closing(RtnlSocket(self.cluster.open_socket(node))) as sock:
            index = int(self.ip(node, "-o", "link", "show", "dev", interface).partition(":")[0])
            wanted = Wanted(ip_address(address), 24, interface, lifetime_s=300)
            (answer,) = sock.transact([add_request(wanted, index, KernelMark().attributes(), renew=True)])
            assert answer.errno == 0

    def ip(self, node: str, *words: str) -> str:
        return ip(self.cluster.namespace_of(node), *words)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster(2, state_directory=tmp_path))
        kernels = {
            n: await stack.enter_async_context(Kernel(open_socket=cluster.open_socket(n))) for n in cluster.nodes
        }
        yield Nodes(cluster, kernels)


def accused(watcher: Watcher) -> set[tuple[str, str]]:
    return {(one.what, one.about) for one in watcher.violations()}


async def becomes(watcher: Watcher, *expected: tuple[str, str]) -> None:
    await until(lambda: accused(watcher) >= set(expected))


@asynccontextmanager
async def unchecked(nodes: Nodes, bounds: Bounds) -> AsyncIterator[Watcher]:
    """A watcher whose verdict is the test's to take: the block ends by an error that is expected."""
    try:
        with Watcher(nodes.cluster, bounds) as watcher:
            yield watcher
            raise _TakenError
    except _TakenError as taken:
        assert "now" in taken.__notes__[0], "an error of the test is told with what happened"


class _TakenError(Exception):
    pass


async def test_a_clean_move_from_node_to_node_is_clean_in_both_families(nodes: Nodes) -> None:
    with Watcher(nodes.cluster, WIDE) as watcher:
        watcher.guard()
        watcher.expect(IP, IP6)
        await nodes.add("node1", IP, IP6)
        await nodes.announce("node1", IP)
        for address in (IP, IP6):
            await until(lambda address=address: "node1 answers" in _of(watcher, address))  # type: ignore[misc]
        await nodes.remove("node1", IP, IP6)
        await nodes.add("node2", IP, IP6)
        for address in (IP, IP6):
            await nodes.announce("node2", address)
            await until(lambda address=address: "node2 answers" in _of(watcher, address))  # type: ignore[misc]
            assert watcher.holders(address) == ["node2"]
            assert len(watcher.announcements(address, "node2")) >= 1
            assert watcher.changes(address, "node1") == 2
        watcher.expect_gone(IP, IP6)
        await nodes.remove("node2", IP, IP6)
        watcher.check()
    assert not nodes.ip("node1", "address", "show", "to", str(IP))


def _of(watcher: Watcher, address: Address) -> str:
    """The address's part of the report."""
    return watcher.report().partition(f"\n{address}\n")[2].partition("\n172.")[0].partition("\nfd30:")[0]


async def test_two_holders_are_found_in_the_kernels_and_on_the_wire(nodes: Nodes) -> None:
    async with unchecked(nodes, TIGHT) as watcher:
        watcher.expect(IP)
        await nodes.add("node1", IP)
        await nodes.add("node2", IP)
        await becomes(watcher, ("two holders", str(IP)), ("two nodes answer", str(IP)))
        with pytest.raises(AssertionError, match=r"VIOLATED: 172\.30\.250\.53: two holders for [\d.]+ s \(bound 0\.3"):
            watcher.check()


async def test_two_nodes_may_hold_a_routed_address(nodes: Nodes) -> None:
    with Watcher(nodes.cluster, Bounds(two_s=0.0, none_s=30.0, left_s=30.0)) as watcher:
        watcher.expect(ROUTED, everywhere=True)
        await nodes.add("node1", ROUTED)
        await nodes.add("node2", ROUTED)


async def test_an_address_that_nobody_holds_is_missed(nodes: Nodes) -> None:
    async with unchecked(nodes, TIGHT) as watcher:
        watcher.expect(IP)
        watcher.expect(ROUTED, everywhere=True)
        await nodes.add("node1", ROUTED)
        missed = ("no holder", str(IP)), ("nobody answers", str(IP)), ("no holder", f"{ROUTED} on node2")
        await becomes(watcher, *missed)
        assert ("no holder", f"{ROUTED} on node1") not in accused(watcher)


async def test_a_gap_between_two_holders_is_found_afterwards(nodes: Nodes) -> None:
    async with unchecked(nodes, WIDE) as watcher:
        watcher.expect(IP)
        await nodes.add("node1", IP)
        await until(lambda: "node1 answers" in watcher.report())
        watcher.agree(none_s=0.3)
        await nodes.remove("node1", IP)
        await until(lambda: "unanswered" in watcher.report())
        await asyncio.sleep(0.5)  # The gap itself: it is what the test makes.
        await nodes.add("node2", IP)
        await becomes(watcher, ("no holder", str(IP)))


async def test_a_kernel_that_holds_an_address_behind_a_dead_link_is_no_answer(nodes: Nodes) -> None:
    async with unchecked(nodes, WIDE) as watcher:
        watcher.expect(IP)
        await nodes.add("node1", IP)
        await until(lambda: "node1 answers" in watcher.report())
        watcher.agree(none_s=0.3)
        await nodes.cluster.link_down("node1")
        await becomes(watcher, ("nobody answers", str(IP)))
        assert ("no holder", str(IP)) not in accused(watcher)


@pytest.mark.parametrize(
    "how",
    ["removed", "made anew with our mark", "its link goes"],
)
async def test_a_foreign_address_that_is_touched_is_found(nodes: Nodes, how: str) -> None:
    nodes.ip("node1", "link", "add", "br7", "type", "bridge")
    nodes.ip("node1", "address", "add", "172.30.250.98/24", "dev", "br7")
    async with unchecked(nodes, WIDE) as watcher:
        watcher.guard()
        nodes.ip("node1", "address", "add", "172.30.250.99/24", "dev", NODE_INTERFACE)
        nodes.ip("node1", "address", "del", "172.30.250.99/24", "dev", NODE_INTERFACE)
        assert accused(watcher) == set(), "what came later is not guarded"
        match how:
            case "removed":
                nodes.ip("node1", "address", "del", "172.30.250.98/24", "dev", "br7")
            case "its link goes":
                nodes.ip("node1", "link", "del", "br7")
            case _:
                nodes.take_over("node1", "172.30.250.98", "br7")
        assert {about for _, about in accused(watcher)} == {"172.30.250.98 on node1"}
        assert all(what.startswith("foreign address") for what, _ in accused(watcher))


async def test_what_the_test_itself_changes_is_released_before(nodes: Nodes) -> None:
    with Watcher(nodes.cluster, WIDE) as watcher:
        watcher.guard()
        watcher.release("node1")
        await nodes.cluster.link_down("node1", admin=True)


async def test_an_address_that_stays_when_its_service_is_gone_is_found_unless_the_node_is_excused(nodes: Nodes) -> None:
    async with unchecked(nodes, TIGHT) as watcher:
        await nodes.add("node1", IP)
        await nodes.add("node2", ROUTED)
        watcher.excuse("node2", "its agent is dead")
        watcher.expect_gone(IP, ROUTED)
        await becomes(watcher, ("left behind", f"{IP} on node1"))
        watcher.count("node2")
        await becomes(watcher, ("left behind", f"{ROUTED} on node2"))


async def test_an_announcement_without_the_address_is_found(nodes: Nodes) -> None:
    async with unchecked(nodes, WIDE) as watcher:
        await nodes.announce("node2", IP6)
        await nodes.add("node1", IP)
        await nodes.announce("node1", IP)
        await becomes(watcher, ("announced without being held", f"{IP6} on node2"))
        assert len(accused(watcher)) == 1


async def test_a_link_that_is_renamed_and_one_that_is_made_again_are_followed(nodes: Nodes) -> None:
    """The kernel tells of both in its own way: a name without a change of addresses, and addresses that are gone."""
    with Watcher(nodes.cluster, WIDE) as watcher:
        nodes.ip("node1", "link", "add", "br7", "type", "bridge")
        assert await nodes.kernels["node1"].apply([Wanted(ROUTED, 32, "br7")], ()) == {ROUTED: None}
        nodes.ip("node1", "link", "set", "br7", "name", "br8")
        assert watcher.holders(ROUTED) == ["node1"]
        nodes.ip("node1", "link", "del", "br8")
        assert watcher.holders(ROUTED) == []
        assert watcher.changes(ROUTED, "node1") == 2


async def test_lost_notices_are_made_good_by_a_look_at_the_whole_table(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.notices._BUFFER", 4096)
    async with unchecked(nodes, TIGHT) as watcher:
        with watcher.asleep():
            many = [ip_address("172.30.250.100") + k for k in range(100)]
            await nodes.add("node1", *many)
            await nodes.remove("node1", *many[1:])
        await until(lambda: "lost" in watcher.report())
        assert [a for a in many if watcher.holders(a)] == many[:1]


async def test_watching_costs_little(nodes: Nodes) -> None:
    with Watcher(nodes.cluster, WIDE) as watcher:
        watcher.expect(IP)
        await nodes.add("node1", IP)
        started, used = time.monotonic(), time.process_time()
        await asyncio.sleep(1.0)
        share = (time.process_time() - used) / (time.monotonic() - started)
    assert share < 0.2, share
