"""Where the objects are, and what became of them: versions, history, watchers.

Invariants:
- one counter of resourceVersions for everything; it never goes back, not even over a restart;
- an Entry is never changed once stored: a write puts a new one in its place;
- objects are kept without `apiVersion` and `kind` (the bucket knows them), encoded once when they are written;
- the history of a bucket is bounded; what left it is `compacted`, and a watch from there is told 410.

All of it runs in one event loop, without awaiting, so a read-modify-write needs no lock.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import msgspec

from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.status import too_old

Key = tuple[str, str]  # namespace ("" for cluster-scoped kinds), name

ADDED = "ADDED"
MODIFIED = "MODIFIED"
DELETED = "DELETED"

encode = msgspec.json.encode
_decode = msgspec.json.Decoder().decode


class Entry:
    """One version of one object: its bytes, and the same decoded while that is worth the memory."""

    __slots__ = ("_obj", "key", "raw", "rv", "views")

    def __init__(self, key: Key, rv: int, raw: bytes, obj: JSON | None = None) -> None:
        self.key = key
        self.rv = rv
        self.raw = raw
        self._obj = obj
        self.views: dict[str, bytes] | None = None

    @property
    def obj(self) -> JSON:
        """The decoded object, to look at and never to change."""
        if self._obj is None:
            self._obj = _decode(self.raw)
        return self._obj

    def copy(self) -> JSON:
        """The decoded object, to change: decoding again is the fastest deep copy there is."""
        copied: JSON = _decode(self.raw)
        return copied

    def slim(self) -> None:
        """Keep the bytes only: for entries that live on in the history."""
        self._obj = None
        self.views = None


class Change:
    """One step of history: what `entry` was before is `prev` (None when it was created)."""

    __slots__ = ("_left", "entry", "prev", "rv", "type")

    def __init__(self, rv: int, type_: str, entry: Entry, prev: Entry | None) -> None:
        self.rv = rv
        self.type = type_
        self.entry = entry
        self.prev = prev
        self._left: Entry | None = None

    def left(self) -> Entry:
        """What those are shown whose selection the object has left: how it was, at the version of this change."""
        if self._left is None:
            assert self.prev is not None
            obj = self.prev.copy()
            obj["metadata"]["resourceVersion"] = str(self.rv)
            self._left = Entry(self.prev.key, self.rv, encode(obj))
        return self._left


class Watching(Protocol):
    """What a bucket tells of each change; must not block."""

    def offer(self, change: Change) -> None: ...

    def wake(self) -> None: ...


class Journal(Protocol):
    """Where writes go so that they outlive the process."""

    def put(self, bucket: str, key: Key, rv: int, raw: bytes) -> None: ...

    def delete(self, bucket: str, key: Key, rv: int) -> None: ...

    def close(self) -> None: ...


class Bucket:
    """All objects of one kind (all served versions together), their recent history and their watchers."""

    def __init__(self, name: str, kept: int, floor: int) -> None:
        self.name = name
        self.by_namespace: dict[str, dict[str, Entry]] = {}
        self.count = 0
        self.history: list[Change] = []
        self.kept = kept
        self.floor = floor  # changes up to and including this version are forgotten
        self.watchers: set[Watching] = set()

    def get(self, key: Key) -> Entry | None:
        return self.by_namespace.get(key[0], {}).get(key[1])

    def entries(self, namespace: str | None = None) -> Iterator[Entry]:
        """In no particular order."""
        if namespace is not None:
            yield from self.by_namespace.get(namespace, {}).values()
            return
        for entries in self.by_namespace.values():
            yield from entries.values()

    def put(self, entry: Entry) -> None:
        names = self.by_namespace.setdefault(entry.key[0], {})
        self.count += entry.key[1] not in names
        names[entry.key[1]] = entry

    def remove(self, key: Key) -> None:
        names = self.by_namespace[key[0]]
        del names[key[1]]
        self.count -= 1
        if not names:
            del self.by_namespace[key[0]]

    def record(self, change: Change) -> None:
        self.history.append(change)
        # Trimmed rarely and by half, so that the cost per change stays constant.
        if len(self.history) >= 2 * self.kept:
            cut = len(self.history) - self.kept
            self.floor = self.history[cut - 1].rv
            del self.history[:cut]
        for watcher in tuple(self.watchers):
            watcher.offer(change)

    def since(self, rv: int) -> list[Change]:
        """Changes after `rv`, oldest first; raises 410 when some of them are no longer kept."""
        if rv < self.floor:
            raise too_old(rv, self.floor)
        return self.history[bisect.bisect_right(self.history, rv, key=lambda c: c.rv) :]

    def at(self, rv: int, namespace: str | None) -> Iterable[Entry]:
        """What was there at version `rv`: the present with the changes since then taken back."""
        later = self.since(rv)
        if not later:
            return self.entries(namespace)
        then = {entry.key: entry for entry in self.entries(namespace)}
        for change in reversed(later):
            key = change.entry.key
            if namespace is not None and key[0] != namespace:
                continue
            if change.prev is None:
                then.pop(key, None)
            else:
                then[key] = change.prev
        return then.values()


class Store:
    """The buckets and the one counter of versions."""

    def __init__(self, *, kept: int, start: int, journal: Journal | None = None) -> None:
        self.kept = kept
        self.rv = start
        self.floor = start
        self.buckets: dict[str, Bucket] = {}
        self.listeners: list[Callable[[str, Change], None]] = []
        self._journal = journal

    def bucket(self, name: str) -> Bucket:
        bucket = self.buckets.get(name)
        if bucket is None:
            bucket = self.buckets[name] = Bucket(name, self.kept, self.floor)
        return bucket

    def load(self, bucket: str, key: Key, rv: int, raw: bytes) -> None:
        """Put back what a former process stored; no event, no new version."""
        self.bucket(bucket).put(Entry(key, rv, raw))

    def create(self, name: str, key: Key, obj: JSON) -> Entry:
        entry = self._stamp(key, obj)
        self._keep(name, entry)
        self._tell(name, Change(entry.rv, ADDED, entry, None))
        return entry

    def update(self, name: str, prev: Entry, obj: JSON) -> Entry:
        entry = self._stamp(prev.key, obj)
        self._keep(name, entry)
        self._tell(name, Change(entry.rv, MODIFIED, entry, prev))
        return entry

    def delete(self, name: str, prev: Entry) -> Entry:
        """Remove an object; watchers see it as it last was, at the version of its removal."""
        entry = self._stamp(prev.key, prev.copy())
        self.bucket(name).remove(prev.key)
        if self._journal is not None:
            self._journal.delete(name, prev.key, entry.rv)
        self._tell(name, Change(entry.rv, DELETED, entry, prev))
        return entry

    def rows(self) -> Iterator[tuple[str, Key, int, bytes]]:
        """Everything that is stored: (bucket, key, version, bytes)."""
        for name, bucket in self.buckets.items():
            for entry in bucket.entries():
                yield name, entry.key, entry.rv, entry.raw

    def compact(self) -> int:
        """Forget all history, as if it had been long ago; returns the version from which watches are served."""
        self.floor = self.rv
        for bucket in self.buckets.values():
            bucket.history.clear()
            bucket.floor = self.rv
        return self.rv

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def _stamp(self, key: Key, obj: JSON) -> Entry:
        self.rv += 1
        obj["metadata"]["resourceVersion"] = str(self.rv)
        return Entry(key, self.rv, encode(obj), obj)

    def _keep(self, name: str, entry: Entry) -> None:
        self.bucket(name).put(entry)
        if self._journal is not None:
            self._journal.put(name, entry.key, entry.rv, entry.raw)

    def _tell(self, name: str, change: Change) -> None:
        self.bucket(name).record(change)
        for listener in self.listeners:
            listener(name, change)
        if change.prev is not None:
            change.prev.slim()
