"""A kernel in memory, for tests of what stands on `KernelProtocol`; the same contract test runs on it and on the real.

Besides the protocol it has what happens to a node from outside: interfaces and routes come and go, someone adds or
removes an address by hand, links go down, a request is refused. It outlives the `async with` of one agent, as the
kernel outlives an agent process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_interface, ip_network
from types import TracebackType
from typing import Self

from purelb_sm.net import neighbours
from purelb_sm.net.errors import ForeignAddress, InterfaceMissing, InterfaceUnsuitable, NetError
from purelb_sm.net.facts import in_order
from purelb_sm.net.links import DUMMY_KINDS
from purelb_sm.net.model import Change, Family, Held, Home, Interface, IPAddress, Sighting, Wanted
from purelb_sm.net.monitor import RESYNC, PendingChanges

Key = tuple[str, IPAddress, int]


@dataclass(frozen=True, slots=True)
class Announcement:
    """One announcement or probe that went out, at `at` on the fake's clock."""

    address: IPAddress
    interface: str
    at: float


class FakeKernel:
    """Implements `KernelProtocol` in memory. `clock` counts seconds and decides when lifetimes are over."""

    def __init__(self, *, dummy_kind: str = "dummy", clock: Callable[[], float] = time.monotonic) -> None:
        self.announced: list[Announcement] = []
        self.applied: list[tuple[tuple[Wanted, ...], tuple[Held, ...]]] = []
        self._dummy_kind = dummy_kind
        self._clock = clock
        self._links: dict[str, Interface] = {}
        self._addresses: dict[Key, Held] = {}
        self._expires: dict[Key, float] = {}
        self._default_routes: dict[Family, dict[str, int]] = {4: {}, 6: {}}
        self._refused: dict[IPAddress, NetError] = {}
        self._subscribers: list[PendingChanges] = []
        self._watchers: list[Callable[[], None]] = []
        self._next_index = 1
        self.probed: list[Announcement] = []
        self._stations: dict[tuple[str, IPAddress], bytes] = {}
        self._listened: set[tuple[str, IPAddress]] = set()
        self._on_sighting: Callable[[Sighting], None] = lambda sighting: None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The addresses stay, as in a real kernel."""

    # What happens to a node from outside.

    def add_interface(self, name: str, *addresses: str, kind: str | None = None, up: bool = True) -> None:
        """A new interface with these foreign addresses, each as `address/prefix length`."""
        index, self._next_index = self._next_index, self._next_index + 1
        self._links[name] = Interface(index, name, bytes((2, 0, 0, 0, 0, index)), up, up, kind)
        self._tell("link", name)
        for address in addresses:
            self.add_foreign(address, name)

    def remove_interface(self, name: str) -> None:
        link = self._links.pop(name)
        for key in [key for key in self._addresses if key[0] == name]:
            self._drop(key)
        for routes in self._default_routes.values():
            routes.pop(name, None)
        self._tell_all(Change("link", link.index))

    def set_default_route(self, family: Family, interface: str, metric: int = 0) -> None:
        self._default_routes[family][interface] = metric
        self._tell_all(Change("default_route", None))

    def add_foreign(self, address: str, interface: str) -> None:
        """An address, as `address/prefix length`, that is not ours."""
        parsed = ip_interface(address)
        length = parsed.network.prefixlen
        self._addresses[interface, parsed.ip, length] = Held(parsed.ip, length, interface, False, None)
        self._tell("address", interface)

    def remove_by_hand(self, address: IPAddress, interface: str) -> None:
        """What `ip address del` does, to ours and to others' addresses."""
        for key in [key for key in self._addresses if key[:2] == (interface, address)]:
            self._drop(key)
            self._tell("address", interface)

    def set_link(self, name: str, *, up: bool) -> None:
        """A link that goes down loses its IPv6 addresses, ours and others', and keeps the IPv4 ones."""
        self._links[name] = replace(self._links[name], up=up, carrier=up)
        if not up:
            for key in [key for key in self._addresses if key[0] == name and key[1].version == 6]:
                self._drop(key)
        self._tell("link", name)

    def refuse(self, address: IPAddress, error: NetError | None) -> None:
        """From now on every request about this address is answered with this error; None ends that."""
        self._refused.pop(address, None)
        if error is not None:
            self._refused[address] = error

    def on_change(self, callback: Callable[[], None]) -> None:
        """`callback()` after each change, before anybody else can do anything."""
        self._watchers.append(callback)

    def lose_notices(self) -> None:
        """The subscribers are told to look at everything again."""
        self._tell_all(RESYNC)

    def add_station(self, address: IPAddress, interface: str, mac: bytes) -> None:
        """Another host on the link has this address from now on, and answers for it."""
        self._stations[interface, address] = mac

    def remove_station(self, address: IPAddress, interface: str) -> None:
        del self._stations[interface, address]

    def see(self, address: IPAddress, interface: str, mac: bytes, *, asks: bool = False) -> None:
        """A frame comes in, of somebody who uses the address or asks for it. Told in the next turn of the loop."""
        link = self._links.get(interface)
        if link is not None and link.up and (interface, address) in self._listened:
            sighting = Sighting(address, interface, mac, asks)
            asyncio.get_running_loop().call_soon(lambda: self._on_sighting(sighting))

    def listens_for(self) -> set[IPAddress]:
        """What is listened for, on whatever interface."""
        return {address for _, address in self._listened}

    # KernelProtocol.

    async def interfaces(self) -> list[Interface]:
        return sorted(self._links.values(), key=lambda link: link.index)

    async def default_interface(self, family: Family) -> str | None:
        routes = self._default_routes[family]
        return min(routes, key=lambda name: routes[name], default=None)

    async def homes(self, interfaces: Collection[str]) -> dict[str, tuple[Home, ...]]:
        found: dict[str, list[Home]] = {name: [] for name in interfaces}
        for held in self._alive():
            host_only = held.prefix_length == held.address.max_prefixlen
            hidden = held.address.is_loopback or (held.address.version == 6 and held.address.is_link_local)
            if held.interface in found and not (held.mine or host_only or hidden):
                subnet = ip_network((held.address, held.prefix_length), strict=False)
                found[held.interface].append(Home(subnet, held.address))
        return {name: in_order(homes) for name, homes in found.items()}

    async def held(self) -> list[Held]:
        return [held for held in self._alive() if held.mine]

    async def addresses(self) -> list[Held]:
        return self._alive()

    def holds(self, address: IPAddress) -> bool:
        """Whether it is there and ours, by the last look: no lifetime ends by asking."""
        return any(key[1] == address and held.mine for key, held in self._addresses.items())

    async def apply(self, add: Sequence[Wanted], remove: Sequence[Held]) -> dict[IPAddress, NetError | None]:
        self.applied.append((tuple(add), tuple(remove)))
        self._alive()
        named: list[Wanted | Held] = [*add, *remove]
        answers: dict[IPAddress, NetError | None] = {one.address: None for one in named}
        for wanted in add:
            answers[wanted.address] = self._refused.get(wanted.address) or self._add(wanted)
        kept = {(wanted.interface, wanted.address, wanted.prefix_length) for wanted in add}
        for held in remove:
            key = (held.interface, held.address, held.prefix_length)
            if key not in kept:
                failed = self._refused.get(held.address) or self._remove(key)
                answers[held.address] = answers[held.address] or failed
        return answers

    async def ensure_dummy(self, name: str) -> str:
        if name not in self._links:
            self.add_interface(name, kind=self._dummy_kind)
        kind = self._links[name].kind
        if kind not in DUMMY_KINDS:
            raise InterfaceUnsuitable(name, f"is of kind {kind or 'device'}, not {' or '.join(DUMMY_KINDS)}")
        return kind

    async def announce(
        self,
        address: IPAddress,
        ifname: str,
        initial_delay_s: float = 0.1,
        count: int = 3,
        interval_s: float = 0.5,
        *,
        still_ours: Callable[[], bool],
    ) -> int:
        return await neighbours.announce(
            self._send,
            address,
            ifname,
            initial_delay_s=initial_delay_s,
            count=count,
            interval_s=interval_s,
            still_ours=still_ours,
        )

    async def changes(self) -> AsyncGenerator[Change, None]:
        pending = PendingChanges()
        self._subscribers.append(pending)
        try:
            while True:
                yield await pending.take()
        finally:
            self._subscribers.remove(pending)

    def on_sighting(self, callback: Callable[[Sighting], None]) -> None:
        self._on_sighting = callback

    def listen(self, addresses: Collection[IPAddress], interface: str) -> None:
        if interface not in self._links:
            raise InterfaceMissing(interface)
        self._listened.update((interface, address) for address in addresses)

    def stop_listening(self, addresses: Collection[IPAddress], interface: str) -> None:
        self._listened.difference_update((interface, address) for address in addresses)

    def probe(self, address: IPAddress, interface: str) -> bool:
        link = self._links.get(interface)
        if link is None:
            raise InterfaceMissing(interface)
        if link.up:
            self.probed.append(Announcement(address, interface, self._clock()))
            mac = self._stations.get((interface, address))
            if mac is not None:
                self.see(address, interface, mac)
        return link.up

    def _send(self, address: IPAddress, ifname: str) -> bool:
        link = self._links.get(ifname)
        if link is None:
            raise InterfaceMissing(ifname)
        if link.up:
            self.announced.append(Announcement(address, ifname, self._clock()))
        return link.up

    def _add(self, wanted: Wanted) -> NetError | None:
        if wanted.interface not in self._links:
            return InterfaceMissing(wanted.interface)
        present = [key for key in self._addresses if key[:2] == (wanted.interface, wanted.address)]
        if any(not self._addresses[key].mine for key in present):
            return ForeignAddress(wanted.address, wanted.interface)
        for old in present:
            self._drop(old)
        key = (wanted.interface, wanted.address, wanted.prefix_length)
        self._addresses[key] = Held(
            wanted.address,
            wanted.prefix_length,
            wanted.interface,
            mine=True,
            valid_s=wanted.lifetime_s,
            noprefixroute=wanted.noprefixroute,
        )
        if wanted.lifetime_s is not None:
            self._expires[key] = self._clock() + wanted.lifetime_s
        self._tell("address", wanted.interface)
        return None

    def _remove(self, key: Key) -> NetError | None:
        held = self._addresses.get(key)
        if held is None:
            return None
        if not held.mine:
            return ForeignAddress(held.address, held.interface)
        self._drop(key)
        self._tell("address", held.interface)
        return None

    def _drop(self, key: Key) -> None:
        del self._addresses[key]
        self._expires.pop(key, None)

    def _alive(self) -> list[Held]:
        """All addresses, after those whose lifetime is over have left."""
        now = self._clock()
        for key in [key for key, at in self._expires.items() if at <= now]:
            self._drop(key)
            self._tell("address", key[0])
        return [
            replace(held, valid_s=int(self._expires[key] - now)) if key in self._expires else held
            for key, held in self._addresses.items()
        ]

    def _tell(self, kind: str, interface: str) -> None:
        index = self._links[interface].index
        self._tell_all(Change("link", index) if kind == "link" else Change("address", index))

    def _tell_all(self, change: Change) -> None:
        for pending in self._subscribers:
            pending.tell(change)
        for watcher in self._watchers:
            watcher()
