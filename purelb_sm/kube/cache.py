"""The objects of one kind as last seen, and whoever wants to know of their changes.

Pure bookkeeping: no connection, no clock. The reflector feeds it with lists and events; what was not understood, what
is older than what we know, and what vanished between two lists is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

import msgspec

from purelb_sm.kube.objects import Identity, Kind, Undecodable, Versioned, decode_identity

K = TypeVar("K")
V = TypeVar("V", bound=Versioned)

OnChange = Callable[["Change", V | None, V | None], None]
OnListed = Callable[[int, int], None]


class Change(StrEnum):
    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


def is_older(one: str, other: str) -> bool:
    """Whether resourceVersion `one` is certainly older than `other`. The one place that looks into them.

    They may be compared as integers of any size since 1.35 (KEP-5504), and always could in practice. What is no
    integer is never called older.
    """
    if not (one.isascii() and one.isdigit() and other.isascii() and other.isdigit()):
        return False
    return int(one) < int(other)


@dataclass(slots=True)
class Snapshot(Generic[K, V]):
    """A list as it comes in, page by page. `unread`: objects that are there, but could not be read."""

    found: dict[K, V] = field(default_factory=dict)
    unread: set[K] = field(default_factory=set)


class Cache(Generic[K, V]):
    """Owns the views and the callbacks. `log` is a bound structlog logger."""

    def __init__(self, kind: Kind[K, V], keep: Callable[[V], bool] | None, log: Any) -> None:
        self.undecodable = 0
        self.unread: set[K] = set()
        self.callback_errors = 0
        self._kind = kind
        self._keep = keep
        self._log = log
        self._views: dict[K, V] = {}
        self._on_change: list[OnChange[V]] = []
        self._on_listed: list[OnListed] = []

    def get(self, key: K) -> V | None:
        return self._views.get(key)

    def items(self) -> Mapping[K, V]:
        return self._views

    def on_change(self, callback: OnChange[V]) -> None:
        self._on_change.append(callback)

    def on_listed(self, callback: OnListed) -> None:
        self._on_listed.append(callback)

    def absorb(self, view: V) -> None:
        """See `Reflector.absorb`."""
        key = self._kind.key_of(view)
        cached = self._views.get(key)
        if cached is not None and cached.uid == view.uid and is_older(cached.resource_version, view.resource_version):
            self._views[key] = view

    # Lists.

    def read(self, raw: msgspec.Raw, snapshot: Snapshot[K, V]) -> None:
        """Reads one item of a list."""
        try:
            view = self._kind.decode(raw)
        except Undecodable as error:
            identity = self._unreadable(raw, error)
            if identity is not None:
                snapshot.unread.add(self._kind.key(identity.namespace, identity.name))
            return
        if self._keep is None or self._keep(view):
            snapshot.found[self._kind.key_of(view)] = view

    def replace(self, snapshot: Snapshot[K, V], version: str, *, went_back: bool) -> None:
        """Takes a whole list of `version` at once, and tells the differences.

        An object that is there but cannot be read stays as it was last read: to take it for deleted would release
        what it holds. What a write of ours brought and the list does not know yet (`absorb`) is kept, unless the
        server itself `went_back` in time (a restored backup): then the list is right about everything.
        """
        before, after = self._views, snapshot.found
        self.unread = set(snapshot.unread)
        for key, old in before.items():
            ahead = not went_back and is_older(version, old.resource_version)
            if ahead or (key in snapshot.unread and key not in after):
                after[key] = old
        self._views = after
        for callback in self._on_listed:
            self._call(callback, len(before), len(after))
        for key, old in before.items():
            if key not in after:
                self._tell(Change.DELETED, old, None)
        for key, new in after.items():
            self._tell_difference(before.get(key), new)

    # Events.

    def apply(self, kind: str, raw: msgspec.Raw, identity: Identity) -> None:
        """Takes an event of a watch: ADDED, MODIFIED or DELETED."""
        key = self._kind.key(identity.namespace, identity.name)
        old = self._views.get(key)
        if old is not None and is_older(identity.resource_version, old.resource_version):
            return  # We absorbed a newer state already.
        self.unread.discard(key)
        if kind == Change.DELETED:
            self._drop(key)
            return
        if old is not None and identity.resource_version == old.resource_version != "":
            return  # We absorbed just this: what our own write brought is read once.
        try:
            new = self._kind.decode(raw)
        except Undecodable as error:
            self._unreadable(raw, error)
            self.unread.add(key)
            return
        if self._keep is not None and not self._keep(new):
            self._drop(key)
            return
        self._views[key] = new
        self._tell_difference(old, new)

    def _drop(self, key: K) -> None:
        old = self._views.pop(key, None)
        if old is not None:
            self._tell(Change.DELETED, old, None)

    def _unreadable(self, raw: msgspec.Raw, error: Undecodable) -> Identity | None:
        self.undecodable += 1
        try:
            identity = decode_identity(raw)
        except Undecodable:
            identity = None
        self._log.error(
            "object_not_understood",
            namespace=identity.namespace if identity else None,
            name=identity.name if identity else None,
            error=str(error),
        )
        return identity

    # Telling.

    def _tell_difference(self, old: V | None, new: V) -> None:
        if old is None:
            self._tell(Change.ADDED, None, new)
        elif old.uid != new.uid:
            # Deleted and made again while we looked away: two objects, so two changes.
            self._tell(Change.DELETED, old, None)
            self._tell(Change.ADDED, None, new)
        elif old.resource_version != new.resource_version:
            self._tell(Change.MODIFIED, old, new)

    def _tell(self, change: Change, old: V | None, new: V | None) -> None:
        for callback in self._on_change:
            self._call(callback, change, old, new)

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            # One wrong consumer must not cost the others their cache.
            self.callback_errors += 1
            self._log.exception("callback_failed")
