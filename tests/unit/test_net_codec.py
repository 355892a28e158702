"""The netlink codec: what it makes of answers that are interrupted, late, cut short or nonsense."""

from __future__ import annotations

import errno
import re
import socket
import struct
from collections import deque
from ipaddress import ip_address, ip_network
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purelb_sm.net import (
    Change,
    DumpInterrupted,
    Interface,
    KernelRefused,
    NotPermitted,
    facts,
    links,
    monitor,
    notices,
    rows,
)
from purelb_sm.net import rtnetlink as nl
from purelb_sm.sandbox.cluster import client

DONE = struct.pack("=i", 0)


def message(kind: int, sequence: int, body: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body + bytes(-len(body) % 4)


class ScriptedSocket:
    """A netlink socket that answers from a list. Requests are numbered from 1."""

    def __init__(self, *answers: bytes | OSError) -> None:
        self.answers = deque(answers)
        self.sent: list[bytes] = []

    def bind(self, address: object) -> None:
        pass

    def settimeout(self, timeout_s: float) -> None:
        pass

    def setsockopt(self, *option: object) -> None:
        pass

    def send(self, data: bytes) -> int:
        self.sent.append(data)
        return len(data)

    def recv(self, size: int) -> bytes:
        answer = self.answers.popleft()
        if isinstance(answer, OSError):
            raise answer
        return answer


def scripted(*answers: bytes | OSError) -> tuple[nl.RtnlSocket, ScriptedSocket]:
    script = ScriptedSocket(*answers)
    return nl.RtnlSocket(lambda family, kind, protocol: cast(socket.socket, script)), script


def test_an_interrupted_dump_is_made_again() -> None:
    sock, script = scripted(
        message(nl.RTM_NEWADDR, 1, b"old.", nl.NLM_F_DUMP_INTR) + message(nl.NLMSG_DONE, 1, DONE),
        message(nl.RTM_NEWADDR, 2, b"new.") + message(nl.NLMSG_DONE, 2, DONE),
    )
    assert [body for _kind, _flags, body in sock.dump(nl.RTM_GETADDR, b"")] == [b"new."]
    assert len(script.sent) == 2


def test_a_dump_that_is_always_interrupted_is_a_named_error() -> None:
    sock, _ = scripted(*(message(nl.NLMSG_DONE, k, DONE, nl.NLM_F_DUMP_INTR) for k in range(1, 100)))
    with pytest.raises(DumpInterrupted):
        sock.dump(nl.RTM_GETADDR, b"")


def test_answers_to_an_earlier_request_are_not_taken_for_ours() -> None:
    late = message(nl.NLMSG_ERROR, 1, struct.pack("=i", -errno.EEXIST) + bytes(16))
    sock, _ = scripted(
        OSError(errno.ENOBUFS, "lost"),
        late + message(nl.NLMSG_ERROR, 2, struct.pack("=i", 0) + bytes(16)),
        late + message(nl.RTM_NEWADDR, 2, b"old.") + message(nl.NLMSG_DONE, 3, DONE),
    )
    one = nl.request(nl.RTM_NEWADDR, 0, b"")
    with pytest.raises(KernelRefused):
        sock.transact([one])
    assert sock.transact([one]) == [nl.Answer(0)]
    assert sock.dump(nl.RTM_GETADDR, b"") == []


def test_a_dump_that_is_refused_is_a_named_error() -> None:
    sock, _ = scripted(message(nl.NLMSG_ERROR, 1, struct.pack("=i", -errno.EPERM) + bytes(16)))
    with pytest.raises(NotPermitted):
        sock.dump(nl.RTM_GETADDR, b"")


def test_requests_go_out_in_batches_whose_answers_fit_the_smallest_buffer() -> None:
    count = 150

    def answers(first: int, last: int) -> bytes:
        ok = struct.pack("=i", 0) + bytes(16)
        return b"".join(message(nl.NLMSG_ERROR, k, ok) for k in range(first, last + 1))

    sock, script = scripted(answers(1, 64), answers(65, 128), answers(129, 150))
    assert sock.transact([nl.request(nl.RTM_NEWADDR, 0, b"")] * count) == [nl.Answer(0)] * count
    assert len(script.sent) == 3


@given(st.binary(max_size=200))
def test_no_bytes_make_the_codec_hang_or_fail(data: bytes) -> None:
    for _kind, _flags, _sequence, body in nl.split(data):
        list(nl.attributes(body, 0))
    list(nl.attributes(data, 0))
    client.parse(data, 0.0)


@pytest.mark.parametrize(
    ("notice", "change"),
    [
        ((notices.RTM_NEWLINK, struct.pack("=BxHiII", 0, 1, 7, 0, 0)), Change("link", 7)),
        ((notices.RTM_DELLINK, struct.pack("=BxHiII", 0, 1, 7, 0, 0)), Change("link", 7)),
        ((nl.RTM_NEWADDR, struct.pack("=BBBBI", 2, 32, 0, 0, 9)), Change("address", 9)),
        ((nl.RTM_DELADDR, struct.pack("=BBBBI", 2, 32, 0, 0, 9)), Change("address", 9)),
        ((notices.RTM_NEWROUTE, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 1, 0)), Change("default_route", None)),
        ((notices.RTM_DELROUTE, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 1, 0)), Change("default_route", None)),
        ((notices.RTM_NEWROUTE, struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 0, 0, 1, 0)), None),
        ((28, struct.pack("=BxxxiHBB", 2, 7, 0, 0, 0)), None),
        ((notices.RTM_NEWLINK, b"\0\0"), None),
    ],
)
def test_only_what_may_matter_to_an_announcer_is_told(notice: notices.Notice, change: Change | None) -> None:
    assert notices.change_of(notice) == change


async def test_equal_changes_that_wait_are_merged_and_the_order_is_kept() -> None:
    pending = monitor.PendingChanges()
    for index in (3, 4, 3, 3):
        pending.tell(Change("link", index))
    assert [await pending.take() for _ in range(3)] == [monitor.RESYNC, Change("link", 3), Change("link", 4)]
    pending.tell(Change("link", 3))
    assert await pending.take() == Change("link", 3)


def entry(text: str, length: int, flags: int = 0, peer: str | None = None) -> rows.Entry:
    return rows.Entry(ip_address(text), ip_address(peer or text), length, 1, flags, 0, None)


@pytest.mark.parametrize(
    ("one", "subnet"),
    [
        (entry("172.30.250.11", 24), "172.30.250.0/24"),
        (entry("fd30:250::11", 64), "fd30:250::/64"),
        (entry("192.0.2.1", 31), "192.0.2.0/31"),
        (entry("192.0.2.1", 30, peer="192.0.2.6"), "192.0.2.4/30"),
        (entry("192.0.2.1", 32), None),
        (entry("2001:db8::1", 128), None),
        (entry("fe80::1", 64), None),
        (entry("127.0.0.1", 8), None),
        (entry("172.30.250.11", 24, rows.IFA_F_DEPRECATED), None),
        (entry("fd30:250::11", 64, rows.IFA_F_DADFAILED), None),
    ],
)
def test_which_addresses_put_an_interface_in_a_subnet(one: rows.Entry, subnet: str | None) -> None:
    assert facts.subnet_of(one) == (None if subnet is None else ip_network(subnet))


def test_interfaces_are_matched_anywhere_in_the_name_and_without_the_loopback() -> None:
    mac = bytes(6)
    all_links = [
        Interface(1, "lo", None, True, True),
        Interface(2, "enp1s0", mac, True, True),
        Interface(3, "wlan0", mac, True, True),
        Interface(4, "xenp1", mac, True, True),
    ]
    assert [one.name for one in links.matching(all_links, re.compile("enp"))] == ["enp1s0", "xenp1"]
    assert [one.name for one in links.matching(all_links, re.compile("^(enp.*|wlan0)$"))] == ["enp1s0", "wlan0"]
    assert links.matching(all_links, re.compile("lo$")) == []
