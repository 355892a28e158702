"""The datagrams of heartbeats and what a Lease says of them: strict, small, and worth nothing without the key."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purelb_sm.domain.heartbeat import (
    MAX_NAMES,
    MAX_SIZE,
    Beacon,
    Heartbeat,
    pack,
    parse_beacon,
    render_beacon,
    sender_of,
    unpack,
)

KEY, OTHER_KEY = b"k" * 16, b"x" * 16
SELF = b"incarnat"

names = st.frozensets(st.binary(min_size=4, max_size=4), max_size=20)
heartbeats = st.builds(
    Heartbeat,
    incarnation=st.binary(min_size=8, max_size=8),
    sequence=st.integers(0, 2**64 - 1),
    interval_s=st.integers(1, 65535).map(lambda ms: ms / 1000),
    resting=st.booleans(),
    hears=names,
    receives=names,
    dismisses=names,
)


@given(heartbeats)
def test_what_is_packed_is_what_is_read(heartbeat: Heartbeat) -> None:
    datagram = pack(heartbeat, KEY)
    assert sender_of(datagram) == heartbeat.incarnation
    assert unpack(datagram, KEY) == heartbeat


@given(heartbeats, st.data())
def test_a_datagram_that_was_changed_anywhere_is_none(heartbeat: Heartbeat, data: st.DataObject) -> None:
    datagram = bytearray(pack(heartbeat, KEY))
    at = data.draw(st.integers(0, len(datagram) - 1))
    datagram[at] ^= data.draw(st.integers(1, 255))
    assert sender_of(bytes(datagram)) is None or unpack(bytes(datagram), KEY) is None


@given(heartbeats)
def test_another_key_cannot_speak_for_it(heartbeat: Heartbeat) -> None:
    assert unpack(pack(heartbeat, OTHER_KEY), KEY) is None


@given(st.binary(max_size=MAX_SIZE + 40))
def test_junk_has_no_sender(junk: bytes) -> None:
    assert sender_of(junk) is None
    assert sender_of(b"PLB1" + junk) is None or len(junk) >= 42


@given(heartbeats, st.integers(1, 50))
def test_what_is_cut_short_or_has_something_behind_it_is_none(heartbeat: Heartbeat, count: int) -> None:
    datagram = pack(heartbeat, KEY)
    assert sender_of(datagram[:-count]) is None
    assert sender_of(datagram + b"\0" * count) is None


def test_however_many_there_are_a_datagram_fits_on_every_link() -> None:
    many = frozenset(number.to_bytes(4) for number in range(2 * MAX_NAMES))
    datagram = pack(Heartbeat(SELF, 1, 0.2, hears=many, receives=many, dismisses=many), KEY)
    assert len(datagram) == MAX_SIZE <= 1280 - 40 - 8
    said = unpack(datagram, KEY)
    assert said is not None
    assert len(said.hears) == MAX_NAMES
    assert said.receives == frozenset()


BEACON = Beacon(SELF, KEY, 7473, (ip_address("172.30.250.11"), ip_address("fd30:250::11")))
WRITTEN = f"1 {SELF.hex()} {KEY.hex()} 7473 172.30.250.11,fd30:250::11"


def test_a_lease_says_where_its_agent_is_heard() -> None:
    assert render_beacon(BEACON) == WRITTEN
    assert parse_beacon(WRITTEN) == BEACON


def test_the_key_is_not_shown_with_the_rest() -> None:
    assert "key" not in repr(BEACON)
    assert str(KEY) not in repr(BEACON)


@pytest.mark.parametrize(
    "text",
    [
        "",
        WRITTEN.replace("1 ", "2 ", 1),
        WRITTEN.replace(SELF.hex(), SELF.hex()[2:]),
        WRITTEN.replace(KEY.hex(), KEY.hex() + "00"),
        WRITTEN.replace(KEY.hex(), "z" * 32),
        WRITTEN.replace("7473", "0"),
        WRITTEN.replace("7473", "65536"),
        WRITTEN.replace("7473", "-1"),
        WRITTEN.replace("172.30.250.11", "172.30.250.011"),
        WRITTEN.replace(",", ",,"),
        WRITTEN + " more",
        WRITTEN + ",10.0.0.1" * 20,
        WRITTEN * 1000,
    ],
)
def test_what_a_lease_says_in_another_way_is_not_guessed(text: str) -> None:
    assert parse_beacon(text) is None


@given(st.text())
def test_no_annotation_breaks_the_reader(text: str) -> None:
    assert parse_beacon(text) is None
