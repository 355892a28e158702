"""Watches: one queue per watcher, filled by the store as it writes.

A change is filtered when it happens and encoded once for all who see it: watchers share the bytes of the object. A
watcher that does not keep up is cut off, as by a real server, and has to list again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from purelb_sm.sandbox.apiserver.selectors import Predicate
from purelb_sm.sandbox.apiserver.storage import ADDED, DELETED, MODIFIED, Bucket, Change, Entry

# Changes that a watcher may be behind before it is cut off.
QUEUE_LIMIT = 100_000

Seen = tuple[str, Entry]


class Watcher:
    """The changes of one bucket as one watcher is to see them."""

    def __init__(self, bucket: Bucket, namespace: str | None, matches: Predicate | None, name: str | None) -> None:
        self._bucket = bucket
        self._namespace = namespace
        self._matches = matches
        self._name = name
        self._queue: deque[Seen] = deque()
        self._wake = asyncio.Event()
        self.overrun = False

    def start(self, since: int | None) -> None:
        """Begin to listen; with `since`, first replay the history after that version. Raises 410 if it is gone."""
        if since is not None:
            for change in self._bucket.since(since):
                self.offer(change)
        self._bucket.watchers.add(self)

    def stop(self) -> None:
        self._bucket.watchers.discard(self)

    def offer(self, change: Change) -> None:
        key = change.entry.key
        if (self._namespace is not None and key[0] != self._namespace) or (self._name and key[1] != self._name):
            return
        seen = (change.type, change.entry) if self._matches is None else self._selected(change, self._matches)
        if seen is None:
            return
        if len(self._queue) >= QUEUE_LIMIT:
            self.overrun = True
        else:
            self._queue.append(seen)
        self._wake.set()

    @staticmethod
    def _selected(change: Change, matches: Predicate) -> Seen | None:
        """An object that enters a selection is ADDED to it, one that leaves it is DELETED as it was in it."""
        before = change.prev is not None and matches(change.prev.obj)
        after = change.type != DELETED and matches(change.entry.obj)
        if after:
            return (MODIFIED if before else ADDED), change.entry
        if not before:
            return None
        return DELETED, change.entry if change.type == DELETED else change.left()

    def wake(self) -> None:
        self._wake.set()

    async def next(self, timeout_s: float) -> list[Seen]:
        """All that has happened since the last call, or nothing when `timeout_s` has passed."""
        if not self._queue and not self.overrun:
            # Something may have happened at the very end of that time.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
        self._wake.clear()
        seen = list(self._queue)
        self._queue.clear()
        return seen


def line(type_: str, shown: bytes) -> bytes:
    """One event as it goes over the wire."""
    return b'{"type":"%s","object":%s}\n' % (type_.encode(), shown)


def sorted_entries(
    entries: list[Entry], key: Callable[[Entry], str] = lambda e: f"{e.key[0]}/{e.key[1]}"
) -> list[Entry]:
    """In the order of a real server's storage: namespace and name as one path."""
    return sorted(entries, key=key)
