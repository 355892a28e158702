"""What the agent relies on, shown on the kernel in memory and on the real one."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest

from purelb_sm.net import (
    Change,
    ForeignAddress,
    Held,
    Home,
    InterfaceMissing,
    InterfaceUnsuitable,
    IPAddress,
    Kernel,
    KernelProtocol,
    Sighting,
    Wanted,
    addresses,
)
from purelb_sm.net.fake import FakeKernel
from purelb_sm.sandbox.cluster import namespace
from tests.netns.support import ip

NIC = "enp1s0"
_signs = itertools.count(1)
V4, V6 = ip_address("172.30.250.53"), ip_address("fd30:250::53")


class FakeWorld:
    """A node with one NIC that has a foreign address of each family."""

    def __init__(self) -> None:
        self.kernel: KernelProtocol = FakeKernel(dummy_kind="bridge")

    @property
    def fake(self) -> FakeKernel:
        assert isinstance(self.kernel, FakeKernel)
        return self.kernel

    def add_nic(self, name: str, *addresses: str) -> None:
        self.fake.add_interface(name, *addresses)

    def add_foreign(self, address: str, interface: str) -> None:
        self.fake.add_foreign(address, interface)

    def remove_by_hand(self, address: IPAddress, length: int, interface: str) -> None:
        self.fake.remove_by_hand(address, interface)

    def default_route(self, family: int, interface: str, metric: int) -> None:
        self.fake.set_default_route(4 if family == 4 else 6, interface, metric)

    def set_link(self, name: str, state: str) -> None:
        self.fake.set_link(name, up=state == "up")

    def add_station(self, address: IPAddress) -> bytes:
        """A host on the NIC's link that has the address; its MAC."""
        mac = bytes((2, 0, 0, 0, 9, address.version))
        self.fake.add_station(address, NIC, mac)
        return mac

    def remove_station(self, address: IPAddress) -> None:
        self.fake.remove_station(address, NIC)

    def make_anew(self, name: str, *addresses: str) -> None:
        """The interface goes and one of the same name comes."""
        self.fake.remove_interface(name)
        self.add_nic(name, *addresses)


class RealWorld(FakeWorld):
    """The same in a network namespace."""

    def __init__(self, make_namespace: Callable[[], str], *, use_journal: bool, journal_directory: object) -> None:
        self.name = name = make_namespace()
        self._make_namespace = make_namespace
        self._far: str | None = None
        self.kernel = Kernel(
            open_socket=namespace.socket_opener(name),
            use_journal=use_journal,
            journal_directory=journal_directory,  # type: ignore[arg-type]
        )

    def add_nic(self, name: str, *addresses: str) -> None:
        ip(self.name, "link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
        ip(self.name, "link", "set", f"{name}-far", "up")
        ip(self.name, "link", "set", name, "up")
        for address in addresses:
            self.add_foreign(address, name)

    def add_foreign(self, address: str, interface: str) -> None:
        ip(self.name, "address", "add", address, "dev", interface, *(["nodad"] if ":" in address else []))

    def remove_by_hand(self, address: IPAddress, length: int, interface: str) -> None:
        ip(self.name, "address", "del", f"{address}/{length}", "dev", interface)

    def default_route(self, family: int, interface: str, metric: int) -> None:
        ip(self.name, f"-{family}", "route", "add", "default", "dev", interface, "metric", str(metric))

    def set_link(self, name: str, state: str) -> None:
        ip(self.name, "link", "set", name, state)

    def add_station(self, address: IPAddress) -> bytes:
        """On the far end of the cable, in a namespace of its own: on this one the kernel would not ask the link."""
        if self._far is None:
            self._far = self._make_namespace()
        if f"{NIC}-far" in ip(self.name, "-o", "link"):
            ip(self.name, "link", "set", f"{NIC}-far", "netns", self._far)
        ip(self._far, "link", "set", f"{NIC}-far", "up")
        nodad = ["nodad"] if address.version == 6 else []
        ip(self._far, "address", "add", f"{address}/{address.max_prefixlen}", "dev", f"{NIC}-far", *nodad)
        shown = json.loads(ip(self._far, "-j", "link", "show", f"{NIC}-far"))
        return bytes.fromhex(shown[0]["address"].replace(":", ""))

    def remove_station(self, address: IPAddress) -> None:
        assert self._far is not None
        ip(self._far, "address", "del", f"{address}/{address.max_prefixlen}", "dev", f"{NIC}-far")

    def make_anew(self, name: str, *addresses: str) -> None:
        ip(self.name, "link", "del", name)
        self.add_nic(name, *addresses)


@pytest.fixture(
    params=["fake", pytest.param("real", marks=pytest.mark.root), pytest.param("journal", marks=pytest.mark.root)]
)
async def world(
    request: pytest.FixtureRequest, make_namespace: Callable[[], str], tmp_path: object
) -> AsyncIterator[FakeWorld]:
    made = (
        FakeWorld()
        if request.param == "fake"
        else RealWorld(make_namespace, use_journal=request.param == "journal", journal_directory=tmp_path)
    )
    made.add_nic(NIC, "172.30.250.11/24", "fd30:250::11/64")
    async with made.kernel:
        yield made


def local(address: IPAddress, lifetime_s: int | None = 300) -> Wanted:
    return Wanted(
        address, 24 if address.version == 4 else 64, NIC, lifetime_s=lifetime_s, noprefixroute=True, nodad=True
    )


async def by_address(kernel: KernelProtocol) -> dict[IPAddress, Held]:
    return {held.address: held for held in await kernel.held()}


@pytest.mark.parametrize("address", [V4, V6])
async def test_what_is_added_is_held_and_what_is_removed_is_gone(world: FakeWorld, address: IPAddress) -> None:
    assert await world.kernel.apply([local(address)], []) == {address: None}
    held = (await by_address(world.kernel))[address]
    assert (held.prefix_length, held.interface, held.mine, held.noprefixroute) == (
        local(address).prefix_length,
        NIC,
        True,
        True,
    )
    assert held.valid_s is not None
    assert 295 <= held.valid_s <= 300
    assert await world.kernel.apply([], [held]) == {address: None}
    assert await world.kernel.held() == []


async def test_foreign_addresses_are_not_held(world: FakeWorld) -> None:
    assert await world.kernel.held() == []
    everything = {held.address: held.mine for held in await world.kernel.addresses() if held.interface == NIC}
    assert everything.items() >= {ip_address("172.30.250.11"): False, ip_address("fd30:250::11"): False}.items()


@pytest.mark.parametrize("foreign", ["172.30.250.53/24", "172.30.250.53/32", "fd30:250::53/64", "fd30:250::53/128"])
@pytest.mark.spec("C4")
async def test_a_foreign_address_is_neither_taken_over_nor_removed(world: FakeWorld, foreign: str) -> None:
    world.add_foreign(foreign, NIC)
    text, length = foreign.split("/")
    address = ip_address(text)
    added = await world.kernel.apply([local(address)], [])
    assert isinstance(added[address], ForeignAddress)
    removed = await world.kernel.apply([], [Held(address, int(length), NIC, mine=True, valid_s=None)])
    assert isinstance(removed[address], ForeignAddress)
    assert await world.kernel.held() == []
    assert (address, int(length)) in {(one.address, one.prefix_length) for one in await world.kernel.addresses()}


@pytest.mark.spec("C4")
async def test_among_many_a_foreign_address_is_left_alone_too(world: FakeWorld) -> None:
    """Many are looked for in another way than few."""
    many = [IPv4Address("172.30.250.60") + k for k in range(40)] + [ip_address("fd30:250::60") + k for k in range(40)]
    foreign = {many[3], many[50]}
    for address in foreign:
        world.add_foreign(f"{address}/{24 if address.version == 4 else 64}", NIC)
    for _ in range(2):
        answers = await world.kernel.apply([local(address) for address in many], [])
        assert {address for address, error in answers.items() if isinstance(error, ForeignAddress)} == foreign
        assert {address for address, error in answers.items() if error is None} == set(many) - foreign
    everything = [Held(a, 24 if a.version == 4 else 64, NIC, mine=True, valid_s=300) for a in many]
    answers = await world.kernel.apply([], everything)
    assert {address for address, error in answers.items() if isinstance(error, ForeignAddress)} == foreign
    assert await world.kernel.held() == []
    assert foreign <= {one.address for one in await world.kernel.addresses()}


@pytest.mark.parametrize("address", [V4, V6])
async def test_adding_again_renews_the_lifetime(world: FakeWorld, address: IPAddress) -> None:
    await world.kernel.apply([local(address, 30)], [])
    await world.kernel.apply([local(address, 900)], [])
    held = await world.kernel.held()
    assert len(held) == 1
    assert held[0].valid_s is not None
    assert held[0].valid_s > 800
    await world.kernel.apply([local(address, None)], [])
    assert (await world.kernel.held())[0].valid_s is None


@pytest.mark.parametrize("address", [V4, V6])
async def test_another_prefix_length_replaces_the_first(world: FakeWorld, address: IPAddress) -> None:
    await world.kernel.apply([local(address)], [])
    narrow = Wanted(address, address.max_prefixlen, NIC, lifetime_s=300, nodad=True)
    old = await world.kernel.held()
    assert await world.kernel.apply([narrow], old) == {address: None}
    held = await world.kernel.held()
    assert [(one.prefix_length, one.noprefixroute) for one in held] == [(address.max_prefixlen, False)]


@pytest.mark.parametrize("address", [V4, V6])
async def test_an_address_moves_to_another_interface(world: FakeWorld, address: IPAddress) -> None:
    await world.kernel.apply([local(address)], [])
    await world.kernel.ensure_dummy("kube-lb0")
    old = await world.kernel.held()
    wanted = Wanted(address, address.max_prefixlen, "kube-lb0", nodad=True)
    assert await world.kernel.apply([wanted], old) == {address: None}
    assert [one.interface for one in await world.kernel.held()] == ["kube-lb0"]


async def test_one_refusal_does_not_hold_up_the_others(world: FakeWorld) -> None:
    elsewhere = ip_address("172.31.1.1")
    foreign = ip_address("172.30.250.11")
    answers = await world.kernel.apply(
        [local(V4), Wanted(elsewhere, 32, "nowhere0"), local(foreign), local(V6)],
        [],
    )
    assert answers[V4] is None
    assert answers[V6] is None
    assert isinstance(answers[elsewhere], InterfaceMissing)
    assert isinstance(answers[foreign], ForeignAddress)
    assert set(await by_address(world.kernel)) == {V4, V6}


async def test_removing_what_is_gone_succeeds(world: FakeWorld) -> None:
    await world.kernel.apply([local(V4), local(V6)], [])
    held = await world.kernel.held()
    world.remove_by_hand(V4, 24, NIC)
    assert await world.kernel.apply([], held) == {V4: None, V6: None}
    assert await world.kernel.apply([], held) == {V4: None, V6: None}


async def test_the_first_of_a_subnet_leaves_and_the_others_stay(world: FakeWorld) -> None:
    await world.kernel.ensure_dummy("kube-lb0")
    block = [IPv4Address("172.31.1.0") + k for k in range(4)]
    await world.kernel.apply([Wanted(one, 24, "kube-lb0") for one in block], [])
    first = (await by_address(world.kernel))[block[0]]
    await world.kernel.apply([], [first])
    assert set(await by_address(world.kernel)) == set(block[1:])


async def test_ours_first_of_its_subnet_leaves_and_the_foreign_one_stays(world: FakeWorld) -> None:
    world.add_nic("enp2s0")
    await world.kernel.apply([Wanted(IPv4Address("10.9.0.5"), 24, "enp2s0", lifetime_s=300, noprefixroute=True)], [])
    world.add_foreign("10.9.0.11/24", "enp2s0")
    await world.kernel.apply([], await world.kernel.held())
    assert IPv4Address("10.9.0.11") in {one.address for one in await world.kernel.addresses()}


@pytest.mark.spec("C2")
async def test_a_bridge_in_place_of_a_dummy_looks_for_no_neighbours_as_a_dummy_does_not(world: FakeWorld) -> None:
    if await world.kernel.ensure_dummy("kube-lb0") != "bridge" or not isinstance(world, RealWorld):
        return
    assert "NOARP" in ip(world.name, "link", "show", "kube-lb0")
    # Also one from before.
    ip(world.name, "link", "set", "kube-lb0", "arp", "on")
    await world.kernel.ensure_dummy("kube-lb0")
    assert "NOARP" in ip(world.name, "link", "show", "kube-lb0")


@pytest.mark.spec("C2")
async def test_the_interface_for_remote_addresses_is_made_once(world: FakeWorld) -> None:
    kind = await world.kernel.ensure_dummy("kube-lb0")
    assert kind in ("dummy", "bridge")
    assert await world.kernel.ensure_dummy("kube-lb0") == kind
    made = [link for link in await world.kernel.interfaces() if link.name == "kube-lb0"]
    assert [(link.up, link.kind) for link in made] == [(True, kind)]


async def test_an_interface_of_another_kind_is_not_used_for_remote_addresses(world: FakeWorld) -> None:
    with pytest.raises(InterfaceUnsuitable):
        await world.kernel.ensure_dummy(NIC)


async def test_subnets_come_from_foreign_addresses_only(world: FakeWorld) -> None:
    await world.kernel.apply([Wanted(ip_address("10.1.2.3"), 24, NIC, noprefixroute=True), local(V4), local(V6)], [])
    world.add_foreign("192.0.2.7/32", NIC)
    world.add_foreign("2001:db8::7/128", NIC)
    world.add_foreign("10.8.0.1/16", NIC)
    world.add_foreign("10.8.0.9/16", NIC)
    assert await world.kernel.homes([NIC, "nowhere0"]) == {
        NIC: tuple(
            Home(ip_network(subnet), ip_address(address))
            for subnet, address in (
                ("10.8.0.0/16", "10.8.0.1"),
                ("172.30.250.0/24", "172.30.250.11"),
                ("fd30:250::/64", "fd30:250::11"),
            )
        ),
        "nowhere0": (),
    }


async def test_the_default_interface_is_that_of_the_lowest_metric(world: FakeWorld) -> None:
    world.add_nic("enp2s0", "10.8.0.1/16", "2001:db8::1/64")
    assert await world.kernel.default_interface(4) is None
    assert await world.kernel.default_interface(6) is None
    for family in (4, 6):
        world.default_route(family, NIC, 200)
        world.default_route(family, "enp2s0", 100)
    assert await world.kernel.default_interface(4) == "enp2s0"
    assert await world.kernel.default_interface(6) == "enp2s0"


@pytest.mark.spec("C13")
async def test_another_process_finds_what_the_first_left(world: FakeWorld) -> None:
    await world.kernel.apply([local(V4), local(V6)], [])
    await world.kernel.__aexit__(None, None, None)
    async with world.kernel:
        held = await world.kernel.held()
        assert {one.address for one in held} == {V4, V6}
        assert await world.kernel.apply([], held) == {V4: None, V6: None}
        assert await world.kernel.held() == []
    await world.kernel.__aenter__()


@pytest.mark.spec("C12")
async def test_what_changes_is_told(world: FakeWorld) -> None:
    await world.kernel.apply([local(V4)], [])
    index = next(link.index for link in await world.kernel.interfaces() if link.name == NIC)
    async with asyncio.timeout(10), aclosing(world.kernel.changes()) as changes:
        assert (await anext(changes)).kind == "resync"
        world.remove_by_hand(V4, 24, NIC)
        async for change in changes:
            if (change.kind, change.index) == ("address", index):
                break
        world.set_link(NIC, "down")
        async for change in changes:
            if (change.kind, change.index) == ("link", index):
                break
        world.set_link(NIC, "up")
        world.default_route(4, NIC, 50)
        async for change in changes:
            if change.kind == "default_route":
                break


@asynccontextmanager
async def looked_at(kernel: KernelProtocol) -> AsyncIterator[asyncio.Event]:
    """Its notices are taken, and its addresses have been looked at. The event is set at each notice of an address."""
    told, first = asyncio.Event(), asyncio.Event()

    async def listen() -> None:
        async with aclosing(kernel.changes()) as changes:
            async for change in changes:
                first.set()
                if change.kind == "address":
                    told.set()

    task = asyncio.create_task(listen())
    try:
        await asyncio.wait_for(first.wait(), 10)
        await kernel.held()
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("address", [V4, V6])
async def test_a_new_address_is_added_without_a_look_at_all_others(
    world: FakeWorld, address: IPAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(world, RealWorld):
        return
    looks: list[object] = []
    dump = addresses._dump

    def counted(*arguments: Any) -> list[bytes]:
        looks.append(arguments)
        return dump(*arguments)

    async with looked_at(world.kernel):
        monkeypatch.setattr(addresses, "_dump", counted)
        assert await world.kernel.apply([local(address)], []) == {address: None}
        assert not looks
        assert await world.kernel.apply([local(address, 60)], []) == {address: None}
        assert looks, "what is there already has to be known to be ours"
        assert [(one.address, one.mine) for one in await world.kernel.held()] == [(address, True)]
        assert await world.kernel.apply([], await world.kernel.held()) == {address: None}
        # The bytes that were seen are of the past now; what has gone comes again all the same.
        assert await world.kernel.apply([local(address)], []) == {address: None}
    looks.clear()
    assert await world.kernel.apply([local(address + 1)], []) == {address + 1: None}
    assert looks, "nobody would have told us of a foreign one"


@pytest.mark.parametrize("foreign", ["172.30.250.53/24", "172.30.250.53/32", "fd30:250::53/64", "fd30:250::53/128"])
@pytest.mark.spec("C4")
async def test_a_foreign_address_that_came_since_the_last_look_is_left_alone(world: FakeWorld, foreign: str) -> None:
    text, length = foreign.split("/")
    address = ip_address(text)
    async with looked_at(world.kernel) as told:
        told.clear()
        world.add_foreign(foreign, NIC)
        await asyncio.wait_for(told.wait(), 10)
        answers = await world.kernel.apply([local(address)], [])
        assert isinstance(answers[address], ForeignAddress)
        found = [one for one in await world.kernel.addresses() if one.address == address]
        assert [(one.prefix_length, one.mine) for one in found] == [(int(length), False)]


@pytest.mark.parametrize("foreign", ["172.30.250.53/24", "fd30:250::53/64", "fd30:250::53/128"])
@pytest.mark.spec("C4")
async def test_a_foreign_address_that_came_unheard_is_left_alone(
    world: FakeWorld, foreign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, length = foreign.split("/")
    address, other = ip_address(text), ip_address(text) + 1
    async with looked_at(world.kernel):
        monkeypatch.setattr(addresses.AddressTable, "doubt", lambda table: None)
        world.add_foreign(foreign, NIC)
        answers = await world.kernel.apply([local(address), local(other)], [])
        assert isinstance(answers[address], ForeignAddress)
        assert answers[other] is None
        found = [one for one in await world.kernel.addresses() if one.address == address]
        assert [(one.prefix_length, one.mine) for one in found] == [(int(length), False)]


@pytest.mark.spec("C12")
@pytest.mark.parametrize("address", [V4, V6])
async def test_what_we_did_is_not_told_and_what_others_do_to_it_is(world: FakeWorld, address: IPAddress) -> None:
    """Else each address that we add or renew would have the whole table looked at."""
    if not isinstance(world, RealWorld) or not isinstance(world.kernel, Kernel) or world.kernel.mark != "kernel":
        return
    there = (await world.kernel.held(), [link.index for link in await world.kernel.interfaces() if link.name == NIC])
    length, index = (24 if address.version == 4 else 64), there[1][0]
    told: list[Change] = []

    async def listen() -> None:
        async with aclosing(world.kernel.changes()) as changes:
            async for change in changes:
                told.append(change)  # noqa: PERF401

    async def heard_of(what: Callable[[], object]) -> list[Change]:
        """What is told of it until a change of somebody else's, made after it, is told."""
        told.clear()
        if asyncio.iscoroutinefunction(what):
            await what()
        else:
            what()
        world.add_nic(f"sign{next(_signs)}")
        async with asyncio.timeout(10):
            while not any(change.kind == "link" for change in told):
                await asyncio.sleep(0.01)
        return [change for change in told if (change.kind, change.index) == ("address", index)]

    async def ours() -> None:
        for lifetime_s in (300, 300, 60, 900):
            await world.kernel.apply([local(address, lifetime_s)], [])
        await world.kernel.held()
        await world.kernel.apply([local(address, 300)], [])

    async def gone() -> None:
        await world.kernel.apply([], await world.kernel.held())
        await world.kernel.held()

    task = asyncio.create_task(listen())
    try:
        async with asyncio.timeout(10):
            while not told:
                await asyncio.sleep(0.01)
        assert await heard_of(ours) == []
        assert await heard_of(gone) == []
        assert await heard_of(ours) == []
        assert await heard_of(lambda: world.remove_by_hand(address, length, NIC))
        await world.kernel.apply([local(address)], [])

        async def theirs() -> None:
            async with Kernel(open_socket=namespace.socket_opener(world.name)) as other:
                await other.apply([local(address, None)], [])

        assert await heard_of(theirs), "permanent is not what we made it"
        await world.kernel.held()
        change = ("address", "change", f"{address}/{length}", "dev", NIC, "valid_lft", "900", "preferred_lft", "900")
        assert await heard_of(lambda: ip(world.name, *change, "noprefixroute")), "the mark is gone"
        assert await heard_of(lambda: world.add_foreign("192.0.2.1/32", NIC))
    finally:
        task.cancel()


async def test_a_link_that_goes_down_loses_its_ipv6_addresses(world: FakeWorld) -> None:
    await world.kernel.apply([local(V4), local(V6)], [])
    world.set_link(NIC, "down")
    assert set(await by_address(world.kernel)) == {V4}


# Who else uses an address.


class Ear:
    """Probes again and again, and collects what is told."""

    def __init__(self, kernel: KernelProtocol) -> None:
        self.told: list[Sighting] = []
        self._kernel = kernel
        kernel.on_sighting(self.told.append)

    async def probe_until(self, address: IPAddress, enough: Callable[[], bool], tries: int = 200) -> None:
        for _ in range(tries):
            self._kernel.probe(address, NIC)
            await asyncio.sleep(0.02)
            if enough():
                return
        raise AssertionError(f"not told of in {tries} probes: {self.told}")


@pytest.mark.spec("C20")
@pytest.mark.parametrize("address", [V4, V6])
async def test_who_has_the_address_that_is_probed_is_told_with_its_mac(world: FakeWorld, address: IPAddress) -> None:
    mac, ear = world.add_station(address), Ear(world.kernel)
    neighbour = address + 1
    world.kernel.listen([address, neighbour], NIC)
    await ear.probe_until(address, lambda: bool(ear.told))
    assert set(ear.told) == {Sighting(address, NIC, mac)}
    # Nobody has this one, and no answer about another is taken for one about it.
    world.kernel.probe(neighbour, NIC)
    await ear.probe_until(address, lambda: len(ear.told) > 3)
    assert set(ear.told) == {Sighting(address, NIC, mac)}
    world.remove_station(address)
    # What is on its way yet says so still.
    await asyncio.sleep(0.1)
    ear.told.clear()
    for _ in range(3):
        assert world.kernel.probe(address, NIC)
        await asyncio.sleep(0.03)
    assert ear.told == []


@pytest.mark.spec("C20")
@pytest.mark.parametrize("address", [V4, V6])
async def test_nothing_is_told_of_what_is_not_listened_for(world: FakeWorld, address: IPAddress) -> None:
    other = address + 1
    world.add_station(address)
    world.add_station(other)
    ear = Ear(world.kernel)
    world.kernel.probe(address, NIC)
    world.kernel.listen([other], NIC)
    world.kernel.listen([address], NIC)
    world.kernel.stop_listening([address], NIC)
    world.kernel.probe(address, NIC)
    await ear.probe_until(other, lambda: bool(ear.told))
    assert {one.address for one in ear.told} == {other}
    world.kernel.stop_listening([other, address], NIC)
    ear.told.clear()
    world.kernel.probe(other, NIC)
    await asyncio.sleep(0.05)
    assert ear.told == []
    world.kernel.listen([other], NIC)
    await ear.probe_until(other, lambda: bool(ear.told))


@pytest.mark.spec("C20")
@pytest.mark.parametrize("address", [V4, V6])
async def test_a_link_that_was_down_and_one_that_came_anew_are_heard_again(
    world: FakeWorld, address: IPAddress
) -> None:
    ear = Ear(world.kernel)
    world.kernel.listen([address], NIC)
    world.set_link(NIC, "down")
    assert not world.kernel.probe(address, NIC)
    world.set_link(NIC, "up")
    world.add_station(address)
    await ear.probe_until(address, lambda: bool(ear.told))
    world.remove_station(address)
    world.make_anew(NIC, "172.30.250.11/24")
    mac = world.add_station(address)
    world.kernel.listen([], NIC)
    ear.told.clear()
    await ear.probe_until(address, lambda: bool(ear.told))
    assert ear.told[0] == Sighting(address, NIC, mac)


async def test_an_interface_that_is_not_there_is_neither_probed_nor_listened_on(world: FakeWorld) -> None:
    with pytest.raises(InterfaceMissing):
        world.kernel.listen([V4], "nowhere0")
    with pytest.raises(InterfaceMissing):
        world.kernel.probe(V4, "nowhere0")
    world.kernel.stop_listening([V4], "nowhere0")
