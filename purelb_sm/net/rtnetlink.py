"""A small rtnetlink codec and socket for addresses and routes, which are many: packed requests, an errno each, dumps.

Links and notices go through pyroute2 (`pyroute`), which takes 0.8 s to add 1,000 addresses and 0.15 s to read
them. Packed here, many to a system call, they take a tenth of either; and the agent may have 10,000 to add, and reads
all that there are after each change.

It knows messages and attributes, not what they are for (kernel documentation: userspace-api/netlink/intro).

Everything here blocks (for microseconds, but thousands of times in a row), so callers run it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from purelb_sm.net.errors import DumpInterrupted, NotPermitted, from_errno

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_DUMP = 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22

DATAGRAM = 1 << 17
"""No answer and no notice of the kernel is longer."""

_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
_NLMSGERR_ATTR_MSG, _NLM_F_ACK_TLVS, _NLM_F_CAPPED = 1, 0x200, 0x100
_SO_RCVBUFFORCE = 33

# Each acknowledgement occupies about 1 KiB of the receive buffer until we read it. 64 of them fit the smallest default
# buffer, so none is lost even where we may not enlarge it.
_BATCH = 64
_DUMP_TRIES = 20
# The kernel answers at once or not at all. This only keeps a lost acknowledgement from hanging us for ever.
_ANSWER_TIMEOUT_S = 10.0

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")

OpenSocket = Callable[[int, int, int], socket.socket]


@dataclass(frozen=True, slots=True)
class Answer:
    """The kernel's answer to one request: 0 or an errno, and its own words when it gives some."""

    errno: int
    detail: str = ""


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute: length, kind, data, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def attributes(data: bytes | memoryview, offset: int) -> Iterator[tuple[int, bytes]]:
    """The attributes from `offset` to the end. A malformed length ends the walk."""
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        # The two highest bits say "nested" and "network byte order"; they are no part of the kind.
        yield kind & 0x3FFF, bytes(data[offset + 4 : offset + length])
        offset += (length + 3) & ~3


def request(kind: int, flags: int, body: bytes) -> tuple[int, int, bytes]:
    """A request that `RtnlSocket.transact` numbers and sends."""
    return kind, flags | NLM_F_REQUEST, body


Request = tuple[int, int, bytes]
Message = tuple[int, int, bytes]  # kind, flags, body


class RtnlSocket:
    """A socket to the kernel's address table. `open_socket` decides in which network namespace."""

    def __init__(self, open_socket: OpenSocket = socket.socket) -> None:
        self.socket = open_socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self.socket.bind((0, 0))
        self.socket.settimeout(_ANSWER_TIMEOUT_S)
        self.socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self.socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        with contextlib.suppress(OSError):
            # Then a dump has only what was asked for; before Linux 4.20 it has everything, and who asks looks again.
            self.socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        enlarge_receive_buffer(self.socket, 1 << 20)
        self._sequence = 0

    def close(self) -> None:
        self.socket.close()

    def transact(self, requests: Sequence[Request]) -> list[Answer]:
        """Sends all, and returns the kernel's answer to each, in order."""
        answers: list[Answer] = []
        for start in range(0, len(requests), _BATCH):
            answers += self._transact_batch(requests[start : start + _BATCH])
        return answers

    def _transact_batch(self, requests: Sequence[Request]) -> list[Answer]:
        first = self._sequence + 1
        packed = [self._pack(kind, flags | NLM_F_ACK, body) for kind, flags, body in requests]
        answers: dict[int, Answer] = {}
        self._send(b"".join(packed))
        while len(answers) < len(requests):
            for kind, flags, sequence, body in self._receive():
                if kind == NLMSG_ERROR and sequence >= first:
                    answers[sequence] = _answer(flags, body)
        return [answers[first + k] for k in range(len(requests))]

    def dump(self, kind: int, body: bytes) -> list[Message]:
        """All messages of a table. Dumps that the kernel marks as interrupted by a change are made again.

        Raises `DumpInterrupted` when every one of many was.
        """
        for _ in range(_DUMP_TRIES):
            messages = self._dump_once(kind, body)
            if messages is not None:
                return messages
        raise DumpInterrupted(f"the kernel's table changed during each of {_DUMP_TRIES} dumps")

    def _dump_once(self, kind: int, body: bytes) -> list[Message] | None:
        self._send(self._pack(kind, NLM_F_REQUEST | NLM_F_DUMP, body))
        mine = self._sequence
        messages: list[Message] = []
        interrupted = False
        while True:
            for answer_kind, flags, sequence, answer in self._receive():
                if sequence != mine:
                    continue
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if answer_kind == NLMSG_DONE:
                    # A dump that the kernel gave up ends as one that is complete, but for the number in it.
                    if len(answer) >= 4 and (number := -struct.unpack_from("=i", answer)[0]) > 0:
                        raise from_errno(number, "", os.strerror(number))
                    return None if interrupted else messages
                if answer_kind == NLMSG_ERROR:
                    failed = _answer(flags, answer)
                    raise from_errno(failed.errno, "", failed.detail)
                messages.append((answer_kind, flags, answer))

    def _pack(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return _HEADER.pack(16 + len(body), kind, flags, self._sequence, 0) + body

    def _send(self, data: bytes) -> None:
        try:
            self.socket.send(data)
        except PermissionError as refused:
            raise NotPermitted(str(refused)) from refused

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            data = self.socket.recv(DATAGRAM)
        except OSError as failed:
            # Answers were lost (ENOBUFS) or never came. What the kernel did is unknown; the caller looks again.
            raise from_errno(failed.errno or errno.ETIMEDOUT, "", f"no answer from the kernel: {failed}") from failed
        yield from split(data)


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The messages in one datagram: kind, flags, sequence, body."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _port = _HEADER.unpack_from(data, offset)
        if length < 16:
            return
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _answer(flags: int, body: bytes) -> Answer:
    code = -struct.unpack_from("=i", body)[0]
    detail = ""
    if flags & _NLM_F_ACK_TLVS:
        # With NLM_F_CAPPED only the header of our request comes back, else the whole of it.
        echoed = 16 if flags & _NLM_F_CAPPED else struct.unpack_from("=I", body, 4)[0]
        for kind, value in attributes(body, 4 + ((echoed + 3) & ~3)):
            if kind == _NLMSGERR_ATTR_MSG:
                detail = value.rstrip(b"\0").decode(errors="replace")
    return Answer(code, f"{os.strerror(code)} ({detail})" if code and detail else "")


def enlarge_receive_buffer(sock: socket.socket, size: int) -> None:
    """Beyond the system's limit where we may; else up to it."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
