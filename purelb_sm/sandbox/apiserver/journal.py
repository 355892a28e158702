"""Objects on disk, so that they outlive the process; the history of changes is not kept, as watchers must cope with.

An append-only log, one line for each write, handed to the kernel before the write is answered: it survives kill -9 of
this process. It may lose its end when the machine loses power, which a sandbox accepts for speed. The log is rewritten
with only what is there now when a process starts, and when it has grown far beyond that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from purelb_sm.sandbox.apiserver.storage import Key

# A log of less than this is never worth rewriting.
_SMALL = 16 << 20
_GROWTH = 4

_NULL = b"null"

Row = tuple[str, Key, int, bytes]


class _Line(msgspec.Struct, array_like=True):
    """A write: `body` is null for a deletion. The first line of a log has only the version to go on from."""

    rv: int
    bucket: str = ""
    namespace: str = ""
    name: str = ""
    body: msgspec.Raw = msgspec.Raw(_NULL)


_decoder = msgspec.json.Decoder(_Line)
_encode = msgspec.json.encode


class Journal:
    """The log in `directory`; `last` is the highest version that it knows of."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "objects.log"
        self.last = 0
        self._fd: int | None = None
        self.found = self._read()
        self._live: Callable[[], Iterable[Row]] = lambda: ((b, k, rv, raw) for (b, k), (rv, raw) in self.found.items())
        self._rewrite()

    def follow(self, live: Callable[[], Iterable[Row]]) -> None:
        """From now on `live` tells what is there when the log is rewritten."""
        self._live = live
        self.found = {}

    def put(self, bucket: str, key: Key, rv: int, raw: bytes) -> None:
        self._append(rv, _encode(_Line(rv, bucket, *key, msgspec.Raw(raw))))

    def delete(self, bucket: str, key: Key, rv: int) -> None:
        self._append(rv, _encode(_Line(rv, bucket, *key)))

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _append(self, rv: int, line: bytes) -> None:
        assert self._fd is not None, "the journal is closed"
        self.last = rv
        if self._size > max(_SMALL, _GROWTH * self._compact):
            self._rewrite()
        self._size += os.write(self._fd, line + b"\n")

    def _read(self) -> dict[tuple[str, Key], tuple[int, bytes]]:
        found: dict[tuple[str, Key], tuple[int, bytes]] = {}
        for line in self._lines():
            self.last = max(self.last, line.rv)
            where = line.bucket, (line.namespace, line.name)
            body = bytes(line.body)
            if body != _NULL:
                found[where] = line.rv, body
            else:
                found.pop(where, None)
        return found

    def _lines(self) -> Iterator[_Line]:
        if not self._path.exists():
            return
        with self._path.open("rb") as log:
            for line in log:
                try:
                    yield _decoder.decode(line)
                except msgspec.DecodeError:
                    # A torn line can only be the last one: its write was never answered.
                    return

    def _rewrite(self) -> None:
        """Replace the log by one with a line for each object; at any moment one of the two is whole."""
        new = self._path.with_suffix(".new")
        with new.open("wb") as log:
            log.write(_encode(_Line(self.last)) + b"\n")
            for bucket, key, rv, raw in self._live():
                log.write(_encode(_Line(rv, bucket, *key, msgspec.Raw(raw))) + b"\n")
            self._compact = self._size = log.tell()
        new.replace(self._path)
        if self._fd is not None:
            os.close(self._fd)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
