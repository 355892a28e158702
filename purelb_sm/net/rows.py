"""Rows of the kernel's address table: what a netlink message says of an address, in words of our own.

A table of 10,000 addresses is read whole after every change of it, and then all rows but one are what they were before,
except for how long each still lives. So `Reader` knows a row again by its bytes.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.model import Held, IPAddress

IFADDR: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface index
IFA_ADDRESS, IFA_LOCAL, IFA_CACHEINFO, IFA_FLAGS, IFA_PROTO = 1, 2, 6, 8, 11
INFINITE: Final = 0xFFFFFFFF

IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_DEPRECATED = 0x02, 0x08, 0x20
IFA_F_TENTATIVE, IFA_F_NOPREFIXROUTE = 0x40, 0x200

_CACHEINFO = struct.Struct("=IIII")  # preferred, valid, and when it was made and changed last


@dataclass(slots=True)
class Entry:
    """One row of the kernel's table. `peer` differs from `address` on point-to-point links only. `valid_s` is what it
    was when a `Reader` saw the row last."""

    address: IPAddress
    peer: IPAddress
    prefix_length: int
    index: int
    flags: int
    protocol: int
    valid_s: int | None
    held: Held | None = field(default=None, compare=False, repr=False)
    """What was told of it last, so that it need not be made again."""

    @property
    def noprefixroute(self) -> bool:
        return bool(self.flags & IFA_F_NOPREFIXROUTE)


def entry_of(body: bytes) -> Entry | None:
    """The row that an RTM_NEWADDR or RTM_DELADDR is about; None where it has no IP address."""
    family, prefix_length, flags, _scope, index = IFADDR.unpack_from(body)
    found = dict(nl.attributes(body, IFADDR.size))
    peer = found.get(IFA_ADDRESS, found.get(IFA_LOCAL))
    if family not in (socket.AF_INET, socket.AF_INET6) or peer is None:
        return None
    kind: type[IPv4Address] | type[IPv6Address] = IPv4Address if family == socket.AF_INET else IPv6Address
    if IFA_FLAGS in found:
        flags = struct.unpack("=I", found[IFA_FLAGS])[0]
    valid = struct.unpack_from("=II", found[IFA_CACHEINFO])[1] if IFA_CACHEINFO in found else INFINITE
    address = kind(found.get(IFA_LOCAL, peer))
    return Entry(
        address=address,
        # One object for both, where a table of thousands has it in memory at once.
        peer=address if address.packed == peer else kind(peer),
        prefix_length=prefix_length,
        index=index,
        flags=flags,
        protocol=found.get(IFA_PROTO, b"\0")[0],
        valid_s=None if valid == INFINITE else valid,
    )


class Reader:
    """Reads whole tables, one after the other.

    A row is known again by all its bytes but those of its lifetimes, at the place where rows of its family and length
    had them before. That cannot be mistaken: what comes before that place is the same, so the same attribute is there.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], int] = {}
        self._known: dict[tuple[int, bytes], Entry] = {}

    def read(self, bodies: Iterable[bytes]) -> list[Entry]:
        """The rows of a table. Those that are as they were are the same objects, with the lifetime they have now."""
        fresh: dict[tuple[int, bytes], Entry] = {}
        found: list[Entry] = []
        for body in bodies:
            place = self._places.get((body[0], len(body)), 0)
            key = (place, body[:place] + body[place + _CACHEINFO.size :])
            entry = self._known.get(key) if place else None
            if entry is None:
                entry = entry_of(body)
                if entry is None:
                    continue
                place = self._places[body[0], len(body)] = _place_of_lifetimes(body)
                key = (place, body[:place] + body[place + _CACHEINFO.size :])
            else:
                valid = _CACHEINFO.unpack_from(body, place)[1]
                entry.valid_s = None if valid == INFINITE else valid
            fresh[key] = entry
            found.append(entry)
        self._known = fresh
        return found

    def knows(self, body: bytes) -> bool:
        """Whether the last table had this row, as it is but for its lifetimes."""
        place = self._places.get((body[0], len(body)), 0)
        return bool(place) and (place, body[:place] + body[place + _CACHEINFO.size :]) in self._known


def _place_of_lifetimes(body: bytes) -> int:
    """Where in the message the lifetimes are; 0 where it has none."""
    offset = IFADDR.size
    for kind, value in nl.attributes(body, offset):
        if kind == IFA_CACHEINFO and len(value) == _CACHEINFO.size:
            return offset + 4
        offset += (4 + len(value) + 3) & ~3
    return 0
