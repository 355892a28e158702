"""Heartbeats between the agents of a subnet: sends, receives, and tells the agent whom to leave out of the election.

`domain.peers` decides and `net.datagrams` carries; here is when, to whom, and with which key. The socket is read before
anybody is judged, and what comes in is bounded: a flood costs so much an interval, and while it lasts nobody is
suspected for want of a heartbeat that may have been lost in it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog

from purelb_sm.agent.survey import OwnHomes
from purelb_sm.domain import heartbeat as wire
from purelb_sm.domain.addresses import Address, Network
from purelb_sm.domain.heartbeat import Beacon
from purelb_sm.domain.peers import MAX_PEERS, Contact, Peers
from purelb_sm.net import DatagramProtocol

log = structlog.get_logger(__name__)

LISTEN_EVERY_S: Final = 1.0
"""An address that could not be listened on is tried again so often: an IPv6 address is tentative at first."""
TELL_EVERY_S: Final = 1.0
"""That others may have taken over is told to the agent no more often than this."""
FAREWELLS: Final = 3
REJECTED: Final = ("malformed", "unknown", "forged", "replayed")


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another node as its Lease has it: where it is heard, the subnets it is in, and whether it counts."""

    beacon: Beacon
    subnets: frozenset[Network]
    counted: bool


class _Route(NamedTuple):
    """From which of our addresses a neighbour is spoken to, and where."""

    source: Address
    to: Address
    port: int


class Listener:
    """Who is told, as it happens. The defaults tell nobody."""

    def __init__(
        self,
        moved: Callable[[], None] = lambda: None,
        counted_again: Callable[[], None] = lambda: None,
        cut_off: Callable[[], None] = lambda: None,
    ) -> None:
        self.moved = moved
        self.counted_again = counted_again
        self.cut_off = cut_off


class Heartbeats:
    """Run `run()` as a task. What is not `async` may be called at any time, on the same loop.

    `interval_s` 0: nothing is sent or heard, nobody suspected. `rests`: our addresses stay when we end in order, so the
    others are told not to mind our silence. The datagrams are closed by us.

    suspected   nodes that are to be left out of the election
    cut_off     whether the others must have taken over all that is local here
    """

    def __init__(
        self,
        datagrams: DatagramProtocol,
        *,
        port: int,
        interval_s: float,
        rests: bool,
        lease_valid: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self.enabled = interval_s > 0
        self.suspected: frozenset[str] = frozenset()
        self.cut_off = False
        self.listener = Listener()
        self.sent = self.received = self.suspicions = 0
        self.rejected: Counter[str] = Counter(dict.fromkeys(REJECTED, 0))
        self._incarnation = secrets.token_bytes(wire.INCARNATION_SIZE)
        self._key = secrets.token_bytes(wire.KEY_SIZE)
        self._datagrams = datagrams
        self._port = port
        self._rests = rests
        self._lease_valid = lease_valid
        self._clock = clock
        self._peers = Peers(self._incarnation, interval_s)
        self._homes: OwnHomes = ()
        self._routes: dict[str, tuple[_Route, ...]] = {}
        self._senders: dict[bytes, tuple[str, bytes]] = {}
        self._due = clock()
        self._listen_again = self._tell_again = float("-inf")
        self._next_silence = float("-inf")
        self._counted_again = False
        self._budget = 0
        self._flooded = False

    # What the rest of the agent tells and asks.

    def beacon(self, homes: OwnHomes) -> str | None:
        """What our Lease is to say of us; None where we are not to be heard."""
        addresses = tuple(home.address for _, home in homes if home.address is not None)
        if not self.enabled or not addresses:
            return None
        return wire.render_beacon(Beacon(self._incarnation, self._key, self._port, addresses))

    def follow(self, homes: OwnHomes, neighbours: Mapping[str, Neighbour]) -> None:
        """Where we are, and who else is there, by the Leases."""
        if not self.enabled:
            return
        if homes != self._homes:
            self._homes, self._listen_again = homes, float("-inf")
        own = frozenset(home.subnet for _, home in homes)
        contacts: dict[str, Contact] = {}
        self._senders, self._routes = {}, {}
        for node in sorted(neighbours):
            beacon, subnets, counted = neighbours[node].beacon, neighbours[node].subnets & own, neighbours[node].counted
            # Two that claim to be one are not told apart, so the second is left to its Lease.
            if subnets and beacon.incarnation not in self._senders:
                contacts[node] = Contact(beacon.incarnation, subnets, counted)
                self._senders[beacon.incarnation] = (node, beacon.key)
                self._routes[node] = _routes(homes, beacon)
        if len(contacts) > MAX_PEERS:
            log.warning("too_many_peers", nodes=len(contacts), most=MAX_PEERS, instead="Leases alone decide")
            self._senders, self._routes = {}, {}
        self._peers.follow(contacts)
        self._pass_on(self._clock())

    def renewed(self, node: str) -> None:
        """The node's Lease was seen renewed just now."""
        now = self._clock()
        self._peers.renewed(node, now)
        self._pass_on(now)

    def own_renewed(self) -> None:
        """Ours was."""
        self._peers.own_renewed()
        self._pass_on(self._clock())

    def vouched(self) -> bool:
        """Whether others say that they hear us, and nobody that we no longer count: the API server is away for all."""
        return not self.cut_off and self._peers.vouched(self._clock())

    def heard(self) -> int:
        """How many others are heard now."""
        return len(self._peers.heard(self._clock()))

    # Running.

    async def run(self) -> None:
        """Sends, hears and judges until cancelled."""
        if not self.enabled:
            return
        self._due = self._clock()
        try:
            while True:
                now = self._clock()
                if now >= self._due:
                    self._beat(now)
                else:
                    self._read()
                # One that is silent already is judged anew when something is heard.
                next_silence = self._next_silence if self._next_silence > now else self._due
                await asyncio.sleep(max(0.0, min(self._due, next_silence) - self._clock()))
        except asyncio.CancelledError:
            if self._rests:
                for _ in range(FAREWELLS):
                    self._send(self._clock(), resting=True)
            raise
        finally:
            self._datagrams.close()

    def _beat(self, now: float) -> None:
        """One interval: counts what of it we missed, hears what has come, judges, and sends."""
        interval_s = self._peers.interval_s
        late_s = now - self._due
        # Stopped, starved or flooded, we may not have heard what was said.
        if late_s > interval_s / 2 or self._flooded:
            self._peers.forgive(late_s + (interval_s if self._flooded else 0.0))
        self._due = now + interval_s if late_s > interval_s / 2 else self._due + interval_s
        if now >= self._listen_again:
            self._listen_again = now + LISTEN_EVERY_S
            self._datagrams.listen([home.address for _, home in self._homes if home.address is not None])
        # Who was met since is not in it yet.
        self._next_silence = now
        self._flooded, self._budget = False, 64 + 16 * len(self._routes)
        self._datagrams.on_readable(self._read)
        self._read()
        self._send(now)

    def _send(self, now: float, *, resting: bool = False) -> None:
        said = self._peers.heartbeat(now, lease_valid=self._lease_valid(), resting=resting)
        datagram = wire.pack(said, self._key)
        for routes in self._routes.values():
            for source, to, port in routes:
                self.sent += self._datagrams.send(datagram, source, to, port)

    def _read(self) -> None:
        now = self._clock()
        while self._budget > 0 and (datagram := self._datagrams.receive(wire.MAX_SIZE + 1)) is not None:
            self._budget -= 1
            self._take(datagram, now)
        if self._budget == 0:
            self._flooded = True
            self._datagrams.on_readable(None)
        # Much later than this we have been away, which the next beat takes into account first.
        in_time = now <= self._due + self._peers.interval_s / 2
        if now >= self._next_silence and in_time:
            self._next_silence = self._peers.judge(now)
        self._pass_on(now)

    def _take(self, datagram: bytes, now: float) -> None:
        incarnation = wire.sender_of(datagram)
        if incarnation is None:
            self.rejected["malformed"] += 1
            return
        node, key = self._senders.get(incarnation, ("", b""))
        if not node:
            self.rejected["unknown"] += 1
            return
        said = wire.unpack(datagram, key)
        if said is None:
            self.rejected["forged"] += 1
        elif not self._peers.hear(node, said, now):
            self.rejected["replayed"] += 1
        else:
            self.received += 1

    def _pass_on(self, now: float) -> None:
        """Tells what has changed."""
        changes, again = self._peers.news()
        for change in changes:
            say = log.warning if change.suspected else log.info
            say("peer_suspected" if change.suspected else "peer_not_suspected", node=change.node, why=change.why)
            self.suspicions += change.suspected
        if changes:
            self.suspected = self._peers.suspected
            self.listener.moved()
        self._counted_again |= again
        if self._counted_again and now >= self._tell_again:
            self._counted_again, self._tell_again = False, now + TELL_EVERY_S
            self.listener.counted_again()
        cut_off = self._peers.cut_off(now, lease_valid=self._lease_valid())
        if cut_off != self.cut_off:
            log.warning("cut_off", cut_off=cut_off)
            self.cut_off = cut_off
            self.listener.cut_off()


def _routes(homes: OwnHomes, beacon: Beacon) -> tuple[_Route, ...]:
    """One way for each interface of ours that has a link with it: a node is lost when it is lost on all."""
    found: dict[str, _Route] = {}
    for interface, home in homes:
        to = next((one for one in beacon.addresses if one.version == home.subnet.version and one in home.subnet), None)
        if to is not None and home.address is not None:
            found.setdefault(interface, _Route(home.address, to, beacon.port))
    return tuple(found.values())
