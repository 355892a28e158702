"""Who of the nodes that we hear directly has fallen silent, and whether that says something about them or about us.

Owns the suspicion, from heartbeats and a clock that is handed in. Decides nothing about Leases, and knows no socket:
a suspected node is left out of the election by those who ask here.

Invariants:
* Nobody is suspected who was not heard, both ways, in this incarnation of both; nor whose heartbeats arrive.
* Where somebody else could have heard the node, it is suspected only if we hear such a one, and none of those that we
  hear still hears it. So one broken link moves nothing, and a node that is cut off suspects nobody.
* Time in which we did not listen (`forgive`) is no silence.
* The API server has the last word: a renewal of the node's Lease ends the suspicion, and after that the node must be
  heard again, for a while, before it can be suspected again.

Of two nodes neither can tell which of them is cut off: each suspects the other, and the Lease puts that right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from purelb_sm.domain.addresses import Network
from purelb_sm.domain.heartbeat import Heartbeat, Name, name_of

SILENT_AFTER: Final = 3.5
"""So many of the sender's intervals without a heartbeat are a silence: three are lost, and half of one is for delay."""
HEARD_FOR: Final = 2.5
"""For so many intervals after a heartbeat we say that we hear its sender. Fewer than those of a silence, so that when a
node dies, what the others say about it is not a reason to wait longer."""
UNSURE_RENEWALS: Final = 2
"""After one who may have taken over from us it is by our second renewal, at the latest, that it has given back."""
TRIAL_S: Final = 10.0
"""A node that was suspected and lives must be heard for so long before it can be suspected again: a bad link must not
move addresses every few seconds."""
FULL_RATE_PEERS: Final = 64
"""With more peers than this each hears from us less often, so that a node never sends more than 64 an interval."""
MAX_PEERS: Final = 256
"""With more peers than this in its subnets a node probes none: their names would not fit into a datagram."""
LONGEST_INTERVAL_S: Final = 2.0
"""A peer that claims to send less often than this is held to it."""
NEVER: Final = float("-inf")
_NOBODY_ELSE: Final = ", and there is nobody else to ask"


class Contact(NamedTuple):
    """A node that may be heard: the incarnation that its Lease names, the subnets that we share with it, and whether
    it counts, by its Lease."""

    incarnation: bytes
    subnets: frozenset[Network]
    counted: bool


class Change(NamedTuple):
    """A suspicion begins, or ends, and why."""

    node: str
    suspected: bool
    why: str


@dataclass(slots=True)
class _Peer:
    """One incarnation of another node's agent.

    met           it was heard and heard us, at some time
    on_probation_until  it may not be suspected before that
    lives_unheard its Lease was renewed since it fell silent
    unsure        it may have taken over from us: it lives, and we may be silent to it
    """

    node: str
    contact: Contact
    sequence: int = 0
    interval_s: float = LONGEST_INTERVAL_S
    heard_at: float = NEVER
    heard_us_at: float = NEVER
    said: Heartbeat | None = None
    met: bool = False
    suspectable: bool = False
    on_probation_until: float = NEVER
    erred: bool = False
    suspected: bool = False
    lives_unheard: bool = False
    unsure: bool = False

    @property
    def name(self) -> Name:
        return name_of(self.contact.incarnation)

    @property
    def silent_from(self) -> float:
        return self.heard_at + SILENT_AFTER * self.interval_s

    def silent(self, now: float) -> bool:
        return now >= self.silent_from

    def heard(self, now: float) -> bool:
        """Whether we say so to others."""
        return now - self.heard_at <= HEARD_FOR * self.interval_s

    def hears(self, name: Name) -> bool:
        return self.said is not None and name in self.said.hears


@dataclass(slots=True)
class _News:
    """What has happened since it was last asked for."""

    changes: list[Change] = field(default_factory=list)
    counted_again: bool = False


class Peers:
    """What one agent knows of the others by hearing them. All times are on one monotonic clock."""

    def __init__(self, incarnation: bytes, interval_s: float) -> None:
        self._incarnation = incarnation
        self._name = name_of(incarnation)
        self._base_s = interval_s
        self._sequence = 0
        self._peers: dict[str, _Peer] = {}
        self._dismissed = False
        self._unsure_for = 0
        self._news = _News()

    # What is asked.

    @property
    def interval_s(self) -> float:
        """How often to send: as often as was set, while there are few peers."""
        return self._base_s * max(1.0, len(self._peers) / FULL_RATE_PEERS)

    @property
    def suspected(self) -> frozenset[str]:
        return frozenset(peer.node for peer in self._peers.values() if peer.suspected)

    def heard(self, now: float) -> frozenset[str]:
        """The nodes that we hear, and that have heard us."""
        return frozenset(peer.node for peer in self._peers.values() if peer.met and not peer.silent(now))

    def vouched(self, now: float) -> bool:
        """Whether somebody that we hear says that it hears us, and nobody that we no longer count."""
        said = [peer.said for peer in self._peers.values() if peer.said is not None and not peer.silent(now)]
        return any(self._name in one.hears for one in said) and not any(self._name in one.dismisses for one in said)

    def cut_off(self, now: float, *, lease_valid: bool) -> bool:
        """Whether the others must have taken over from us: our Lease has run out, and either one of them said that it
        no longer counts on us, or we hear none of those that we used to hear.

        Of two nodes, one that hears nothing may as well be the last one left, whose API server died with the other. It
        keeps what it has; they speak to each other before anybody can see both.
        """
        if lease_valid:
            self._dismissed = False
            return False
        heard = [peer for peer in self._peers.values() if not peer.silent(now)]
        if any(peer.said is not None and self._name in peer.said.dismisses for peer in heard):
            self._dismissed = True
        met = sum(1 for peer in self._peers.values() if peer.met and peer.contact.counted)
        return self._dismissed or (met > 1 and not any(peer.met for peer in heard))

    def heartbeat(self, now: float, *, lease_valid: bool, resting: bool = False) -> Heartbeat:
        """What to send to all now."""
        self._sequence += 1
        heard = [peer for peer in self._peers.values() if peer.heard(now)]
        return Heartbeat(
            self._incarnation,
            self._sequence,
            self.interval_s,
            resting,
            hears=frozenset(peer.name for peer in heard if peer.met),
            receives=frozenset(peer.name for peer in heard if not peer.met),
            dismisses=frozenset(peer.name for peer in heard if lease_valid and not peer.contact.counted),
        )

    def news(self) -> tuple[list[Change], bool]:
        """The suspicions that began or ended since this was asked last, and whether one who may have taken over from us
        counts on us again: then what we hold must be told to the neighbours again."""
        news, self._news = self._news, _News()
        return news.changes, news.counted_again

    # What happens.

    def follow(self, contacts: Mapping[str, Contact]) -> None:
        """Who there is, by the Leases. A new incarnation of a node is a stranger."""
        if len(contacts) > MAX_PEERS:
            contacts = {}
        for node, peer in list(self._peers.items()):
            contact = contacts.get(node)
            if contact is None or contact.incarnation != peer.contact.incarnation:
                self._end(peer, "its Lease is gone" if contact is None else "it has started anew")
                del self._peers[node]
            elif not contact.counted:
                self._end(peer, "its Lease ran out")
        for node, contact in contacts.items():
            self._peers.setdefault(node, _Peer(node, contact)).contact = contact

    def hear(self, node: str, heartbeat: Heartbeat, now: float) -> bool:
        """An authentic heartbeat has come. False: we have had it, or a later one, already."""
        peer = self._peers.get(node)
        if peer is None or heartbeat.incarnation != peer.contact.incarnation or heartbeat.sequence <= peer.sequence:
            return False
        peer.sequence = heartbeat.sequence
        if heartbeat.resting:
            self._end(peer, "it rests")
            self._peers[node] = _Peer(node, peer.contact, peer.sequence)
            return True
        peer.said, peer.lives_unheard = heartbeat, False
        peer.heard_at = now
        peer.interval_s = min(heartbeat.interval_s, LONGEST_INTERVAL_S)
        if peer.suspected:
            self._end(peer, "it is heard again")
            peer.on_probation_until = now + TRIAL_S
        self._take_what_it_says_of_us(peer, heartbeat, now)
        return True

    def _take_what_it_says_of_us(self, peer: _Peer, heartbeat: Heartbeat, now: float) -> None:
        if self._name not in heartbeat.hears | heartbeat.receives:
            if peer.met and not peer.unsure:
                self._doubt(peer)
            return
        # After a pause in which it may have suspected us it counts on us again: we are heard there now.
        longest_s = max(HEARD_FOR * self.interval_s, 1.5 * peer.interval_s)
        if peer.met and (peer.unsure or now - peer.heard_us_at > longest_s):
            self._news.counted_again = True
        peer.met, peer.unsure, peer.heard_us_at = True, False, now
        if not peer.suspectable:
            peer.suspectable = True
            if peer.erred:
                peer.on_probation_until = now + TRIAL_S

    def renewed(self, node: str, now: float) -> None:
        """The node's Lease was seen renewed just now: it lives, whatever we hear."""
        peer = self._peers.get(node)
        if peer is None:
            return
        if peer.suspected:
            self._end(peer, "its Lease was renewed")
            peer.suspectable = False
        if peer.met and peer.silent(now) and not peer.lives_unheard:
            # We may be silent to it as it is to us. If so, it may have given back already what it took.
            peer.lives_unheard = True
            self._doubt(peer)
            self._news.counted_again = True

    def own_renewed(self) -> None:
        """Our own Lease was seen renewed, so the others see it, too: whoever suspected us gives back."""
        if self._unsure_for and any(peer.unsure for peer in self._peers.values()):
            self._unsure_for -= 1
            self._news.counted_again = True

    def forgive(self, paused_s: float) -> None:
        """For so long we did not listen, or could not."""
        for peer in self._peers.values():
            peer.heard_at += paused_s

    def judge(self, now: float) -> float:
        """Suspects those of whom it is due. To be called after everything that has come was heard.

        Answers when the next falls silent if it is not heard before; with `now` where one is silent already, and what
        the others say of it may change at any moment.
        """
        due = [p for p in self._peers.values() if p.suspectable and not p.suspected and p.silent(now)]
        for peer in due:
            if peer.silent_from < peer.on_probation_until:
                peer.suspectable, peer.erred = False, True
        # All by what was before: of two that fell silent together, none is a reason to suspect the other.
        found = [(peer, why) for peer in due if (why := self._why(peer, now))]
        for peer, why in found:
            peer.suspected = True
            self._news.changes.append(Change(peer.node, True, why))
            if why.endswith(_NOBODY_ELSE):
                self._doubt(peer)
        ends = (peer.silent_from for peer in self._peers.values() if peer.suspectable and not peer.suspected)
        return max(now, min(ends, default=-NEVER))

    def _why(self, peer: _Peer, now: float) -> str:
        """Why the peer, which is silent, is to be suspected; empty if it is not."""
        if not peer.suspectable or not peer.contact.counted:
            return ""
        silent_s = f"not heard for {now - peer.heard_at:.2f} s"
        others = list(self._witnesses(peer, now))
        if not others:
            return f"{silent_s}{_NOBODY_ELSE}"
        heard = [other for other in others if not other.silent(now)]
        if not heard or any(other.hears(peer.name) for other in heard):
            return ""
        return f"{silent_s}, and not by any of {len(heard)} that are heard"

    def _witnesses(self, peer: _Peer, now: float) -> Iterator[_Peer]:
        """Those that would hear the peer if it lived, and that we heard before. The dead are no witnesses."""
        for other in self._peers.values():
            known = other.suspectable and not other.suspected and (other.contact.counted or not other.silent(now))
            if other is not peer and known and other.contact.subnets & peer.contact.subnets:
                yield other

    def _doubt(self, peer: _Peer) -> None:
        peer.unsure, self._unsure_for = True, UNSURE_RENEWALS

    def _end(self, peer: _Peer, why: str) -> None:
        if peer.suspected:
            peer.suspected, peer.erred = False, True
            self._news.changes.append(Change(peer.node, False, why))
