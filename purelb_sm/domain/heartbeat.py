"""What agents of one subnet say to each other directly: where each is heard, and the datagrams themselves.

A heartbeat is authenticated with a key that its sender made for this incarnation and published in its own Lease. It
proves that the agent ran when the sequence number was drawn, and nothing else: who is dead is for `peers` and the
Leases to judge. Nothing here knows a socket.

Wire form, big-endian: "PLB1", flags, interval in ms, incarnation, sequence, three counts, then so many four-byte names
each, then 16 bytes of HMAC-SHA-256 over everything before. A datagram of any other length or content is none.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from purelb_sm.domain.addresses import Address, parse_ip
from purelb_sm.errors import InvalidAddress

VERSION: Final = "1"
INCARNATION_SIZE: Final = 8
KEY_SIZE: Final = 16
MAX_ADDRESSES: Final = 16
"""More addresses than this of one node are not published, and a Lease that has more is not read."""

NAME_SIZE: Final = 4
MAX_NAMES: Final = 280
"""A datagram stays below the least MTU of IPv6 (RFC 8200, 1280 bytes), headers included."""
_HEAD: Final = struct.Struct(f">4sBxH{INCARNATION_SIZE}sQHHH")
_MAGIC: Final = b"PLB1"
_MAC_SIZE: Final = 16
_RESTING: Final = 1
MAX_SIZE: Final = _HEAD.size + MAX_NAMES * NAME_SIZE + _MAC_SIZE

Name = bytes
"""An incarnation as heartbeats name it: its first four bytes. Two alike only make a failover as slow as a Lease."""


@dataclass(frozen=True, slots=True)
class Beacon:
    """Where a node's agent is heard, and how its heartbeats are known for its own; it stands in the node's Lease."""

    incarnation: bytes
    key: bytes = field(repr=False)
    port: int
    addresses: tuple[Address, ...]


def render_beacon(beacon: Beacon) -> str:
    """The Lease annotation `purelb.io/heartbeat`: version, incarnation, key, port, addresses."""
    addresses = ",".join(str(address) for address in beacon.addresses[:MAX_ADDRESSES])
    return f"{VERSION} {beacon.incarnation.hex()} {beacon.key.hex()} {beacon.port} {addresses}"


def parse_beacon(text: str) -> Beacon | None:
    """What a Lease's annotation says; None for one that we do not understand: its node is judged by its Lease only."""
    parts = text.split(" ") if len(text) < 1024 else []
    if len(parts) != 5 or parts[0] != VERSION:
        return None
    written = parts[4].split(",")
    try:
        incarnation, key, port = bytes.fromhex(parts[1]), bytes.fromhex(parts[2]), int(parts[3])
        addresses = tuple(parse_ip(address) for address in written)
    except (ValueError, InvalidAddress):
        return None
    sizes = (len(incarnation), len(key)) == (INCARNATION_SIZE, KEY_SIZE)
    if not sizes or not 0 < port < 1 << 16 or len(addresses) > MAX_ADDRESSES:
        return None
    return Beacon(incarnation, key, port, addresses)


def name_of(incarnation: bytes) -> Name:
    return incarnation[:NAME_SIZE]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One datagram.

    interval_s   how often its sender sends
    resting      the sender ends in order and its addresses stay: its silence from now on says nothing
    hears        whom it hears, and who has heard it in this incarnation of both
    receives     whom it hears as well, without knowing whether it is heard there
    dismisses    whom of these it no longer counts on, since their Lease ran out, and its own did not
    """

    incarnation: bytes
    sequence: int
    interval_s: float
    resting: bool = False
    hears: frozenset[Name] = frozenset()
    receives: frozenset[Name] = frozenset()
    dismisses: frozenset[Name] = frozenset()


def pack(heartbeat: Heartbeat, key: bytes) -> bytes:
    """The datagram. Names for which there is no room are left out, which at worst makes somebody wait for a Lease."""
    room = MAX_NAMES
    lists: list[list[Name]] = []
    for names in (heartbeat.hears, heartbeat.dismisses, heartbeat.receives):
        lists.append(sorted(names)[:room])
        room -= len(lists[-1])
    interval_ms = min(max(round(heartbeat.interval_s * 1000), 1), 0xFFFF)
    counts = (len(names) for names in lists)
    head = _HEAD.pack(
        _MAGIC, _RESTING * heartbeat.resting, interval_ms, heartbeat.incarnation, heartbeat.sequence, *counts
    )
    body = head + b"".join(name for names in lists for name in names)
    return body + _mac(body, key)


def sender_of(datagram: bytes) -> bytes | None:
    """The incarnation that a datagram says it comes from; None for one that is no heartbeat by its shape."""
    if not _HEAD.size + _MAC_SIZE <= len(datagram) <= MAX_SIZE or not datagram.startswith(_MAGIC):
        return None
    *_, incarnation, _sequence, first, second, third = _HEAD.unpack_from(datagram)
    if len(datagram) != _HEAD.size + (first + second + third) * NAME_SIZE + _MAC_SIZE:
        return None
    return bytes(incarnation)


def unpack(datagram: bytes, key: bytes) -> Heartbeat | None:
    """What a datagram of the right shape (`sender_of`) says; None if it was not made with this key."""
    body, mac = datagram[:-_MAC_SIZE], datagram[-_MAC_SIZE:]
    if not hmac.compare_digest(mac, _mac(body, key)):
        return None
    _, flags, interval_ms, incarnation, sequence, *counts = _HEAD.unpack_from(body)
    hears, dismisses, receives = _cut(body[_HEAD.size :], *counts)
    return Heartbeat(
        incarnation,
        sequence,
        max(interval_ms, 1) / 1000,
        bool(flags & _RESTING),
        hears,
        receives,
        dismisses,
    )


# What a node says of the others is the same for as long as nothing happens.
@lru_cache(MAX_NAMES)
def _cut(names: bytes, *counts: int) -> tuple[frozenset[Name], ...]:
    each = [names[at : at + NAME_SIZE] for at in range(0, len(names), NAME_SIZE)]
    ends = [sum(counts[: place + 1]) for place in range(len(counts))]
    return tuple(frozenset(each[end - count : end]) for count, end in zip(counts, ends, strict=True))


def _mac(body: bytes, key: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")[:_MAC_SIZE]
