"""The words in which the net layer and its callers talk: plain values, no behaviour, no socket."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from types import TracebackType

    from purelb_sm.net.errors import NetError

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
Family = Literal[4, 6]


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface as the kernel shows it now. `kind` is the kernel's (`dummy`, `bridge`, `veth`); None for
    a physical one. `mac` is None where the link has no Ethernet address. `master` is the index of the bridge or bond
    that it is a port of. `noarp`: no neighbours are looked for there."""

    index: int
    name: str
    mac: bytes | None
    up: bool
    carrier: bool
    kind: str | None = None
    master: int | None = None
    noarp: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """An address that the kernel has. `mine`: it carries our mark. `valid_s`: seconds until the kernel drops it by
    itself, None when it is permanent. `tentative`: IPv6 duplicate address detection still runs; `duplicate`: it ran
    and somebody else has the address, so the kernel does not use it."""

    address: IPAddress
    prefix_length: int
    interface: str
    mine: bool
    valid_s: int | None
    noprefixroute: bool = False
    tentative: bool = False
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Home:
    """A subnet that an interface is in, and the node's own address there; None if it has none in it, as at one end of
    a point-to-point link."""

    subnet: IPNetwork
    address: IPAddress | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """An address that we want the kernel to have. `lifetime_s` None: permanent. After `preferred_s`, if given, the
    kernel no longer takes it as the source of connections of its own. `nodad` has a meaning for IPv6 only."""

    address: IPAddress
    prefix_length: int
    interface: str
    lifetime_s: int | None = None
    noprefixroute: bool = False
    nodad: bool = False
    preferred_s: int | None = None


ChangeKind = Literal["link", "address", "default_route", "resync"]


@dataclass(frozen=True, slots=True)
class Change:
    """Something changed on the interface with this index; look for yourself what. `resync` has index None: the
    kernel dropped notifications (or has just begun to send them), so anything may have changed."""

    kind: ChangeKind
    index: int | None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A frame says that the station with this MAC uses the address on the interface's link; `asks`: that it is about
    to, and asks whether anybody else does (RFC 5227: an ARP probe; RFC 4862: a solicitation for duplicates)."""

    address: IPAddress
    interface: str
    mac: bytes
    asks: bool = False


class KernelProtocol(Protocol):
    """What the agent sees of the kernel: `kernel.Kernel` is the real one, `fake.FakeKernel` lives in memory.

    Methods raise `NetError` when the question as a whole cannot be answered; `apply` answers per address.
    """

    async def __aenter__(self) -> KernelProtocol: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def interfaces(self) -> list[Interface]:
        """All interfaces, in index order."""
        ...

    async def default_interface(self, family: Family) -> str | None:
        """The interface of the default route with the lowest metric in the main table, None without one."""
        ...

    async def homes(self, interfaces: Collection[str]) -> dict[str, tuple[Home, ...]]:
        """The subnets each of these interfaces is in, from the addresses that are not ours; see `net.facts`. Every
        name asked for is a key; an interface that does not exist has no subnets."""
        ...

    async def held(self) -> list[Held]:
        """The addresses that are ours, on all interfaces."""
        ...

    async def addresses(self) -> list[Held]:
        """All addresses, ours and foreign."""
        ...

    async def apply(self, add: Sequence[Wanted], remove: Sequence[Held]) -> dict[IPAddress, NetError | None]:
        """Adds (or renews) and removes; one answer for each address named, None when all went well.

        To add what we hold already renews its lifetime, without a gap. An address that is on the interface and is
        not ours is left as it is (`ForeignAddress`), in both lists. To remove what is gone already succeeds.
        """
        ...

    async def ensure_dummy(self, name: str) -> str:
        """Makes the interface for remote addresses, sets it up, and returns its kind: `dummy`, or `bridge` when
        the kernel has no dummy links. Raises `InterfaceUnsuitable` when a link of another kind has the name."""
        ...

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
        """Gratuitous ARP or unsolicited NA, `count` times; returns how many went out. `still_ours` is asked before
        each; the first no ends it. Cancel the task to stop it."""
        ...

    def changes(self) -> AsyncGenerator[Change, None]:
        """What changes from now on. The first is always `resync`, so that nothing falls between a look and the
        watch. Equal changes that wait are merged. What `apply` did itself need not be told: its answer said it. Close
        it (`contextlib.aclosing`) when done."""
        ...

    def on_sighting(self, callback: Callable[[Sighting], None]) -> None:
        """`callback(sighting)` for each frame about an address that is listened for, on the running loop. There is one
        callback; it must not raise, wait or take long. What this node sends itself may be among them."""
        ...

    def listen(self, addresses: Collection[IPAddress], interface: str) -> None:
        """From now on sightings of these on this interface are told. Nothing is opened before the first, and the
        frames of other addresses are kept away by the kernel, as far as it can tell them apart.

        To listen again, be it for no address, makes sure of it when the interface may have come anew. Raises
        `InterfaceMissing`, `InterfaceUnsuitable` for a link that is no Ethernet, or `KernelRefused`.
        """
        ...

    def stop_listening(self, addresses: Collection[IPAddress], interface: str) -> None:
        """Sightings of these are told no more; with the last of an interface all is closed."""
        ...

    def probe(self, address: IPAddress, interface: str) -> bool:
        """Asks the link once who uses the address, without saying that we do: an ARP probe, or a solicitation for
        duplicates. Who does is told as a sighting, if it is listened for. False: the link is down.

        Raises as `listen` does.
        """
        ...
