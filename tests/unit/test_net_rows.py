"""Rows of the address table are known again by their bytes, and never taken for another."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.rows import (
    IFA_ADDRESS,
    IFA_CACHEINFO,
    IFA_F_NOPREFIXROUTE,
    IFA_FLAGS,
    IFA_LOCAL,
    IFA_PROTO,
    IFADDR,
    INFINITE,
    Entry,
    Reader,
    entry_of,
)

_IFA_LABEL, _IFA_BROADCAST = 3, 4
# The head of an attribute with lifetimes is the address 20.0.6.0: who looks for its bytes finds it anywhere.
TREACHEROUS = ["20.0.6.0", "10.0.0.1", "10.0.0.2", "fd00::14:6", "2001:db8::1400:600"]


def row(
    address: str,
    valid: int = INFINITE,
    *,
    label: str = "eth0",
    broadcast: bool = False,
    protocol: int = 77,
    index: int = 3,
) -> bytes:
    """As the kernel writes it."""
    packed = ip_address(address).packed
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    body = IFADDR.pack(family, 24, 0x80, 0, index) + nl.attribute(IFA_ADDRESS, packed) + nl.attribute(IFA_LOCAL, packed)
    if broadcast:
        body += nl.attribute(_IFA_BROADCAST, packed)
    if family == socket.AF_INET:
        body += nl.attribute(_IFA_LABEL, label.encode() + b"\0")
    flags = nl.attribute(IFA_FLAGS, struct.pack("=I", IFA_F_NOPREFIXROUTE))
    lifetimes = nl.attribute(IFA_CACHEINFO, struct.pack("=IIII", valid, valid, 1, 2))
    mark = nl.attribute(IFA_PROTO, bytes([protocol]))
    return body + (mark + flags + lifetimes if family == socket.AF_INET else lifetimes + flags + mark)


rows = st.builds(
    row,
    st.sampled_from(TREACHEROUS),
    st.sampled_from([INFINITE, 300, 299, 0x06001400, 0x00060014]),
    label=st.sampled_from(["eth0", "kube-lb0", "e", "\x14"]),
    broadcast=st.booleans(),
    protocol=st.sampled_from([0, 77]),
    index=st.sampled_from([3, 4]),
)


@given(st.lists(st.lists(rows, max_size=6), min_size=1, max_size=5))
def test_every_table_is_read_as_if_it_were_the_first(tables: list[list[bytes]]) -> None:
    reader = Reader()
    for table in tables:
        assert [replace(one) for one in reader.read(table)] == [entry_of(body) for body in table]


def test_what_has_not_changed_is_the_same_object_and_lives_on() -> None:
    reader = Reader()
    table = [row("10.0.0.1"), row("10.0.0.2", 300), row("fd00::1", 300)]
    before = reader.read(table)
    after = reader.read([row("10.0.0.1"), row("10.0.0.2", 299), row("fd00::1", 298)])
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert [one.valid_s for one in after] == [None, 299, 298]


def test_another_mark_is_another_row() -> None:
    reader = Reader()
    (ours,) = reader.read([row("10.0.0.1", 300)])
    (theirs,) = reader.read([row("10.0.0.1", 300, protocol=0)])
    assert (ours.protocol, theirs.protocol) == (77, 0)
    assert isinstance(theirs, Entry)
