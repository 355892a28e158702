"""Lists and watches: many objects at once, now or as they change.

Owns the meaning of `limit`, `continue`, `resourceVersion`, `resourceVersionMatch`, `sendInitialEvents` and bookmarks.
Source: the API concepts page of the Kubernetes documentation, KEP-3157 (watch list).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import msgspec

from purelb_sm.sandbox.apiserver import tables
from purelb_sm.sandbox.apiserver.builtin import empty
from purelb_sm.sandbox.apiserver.cluster import Cluster
from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.registry import Resource
from purelb_sm.sandbox.apiserver.selectors import Predicate, named_by, selector
from purelb_sm.sandbox.apiserver.status import StatusError, bad_request, expired, forbidden, invalid, too_large
from purelb_sm.sandbox.apiserver.storage import ADDED, Bucket, Entry, encode
from purelb_sm.sandbox.apiserver.watching import Watcher, line, sorted_entries

_TRUE = ("true", "1")
# A watch that does not say how long it wants to be; a real server picks between 30 and 60 minutes.
_LONGEST_S = 1800.0
_INITIAL_END = {"k8s.io/initial-events-end": "true"}


@dataclass(frozen=True)
class Query:
    """What a list or watch asks for, parsed."""

    resource: Resource
    namespace: str | None
    matches: Predicate | None
    name: str | None
    limit: int
    token: str
    rv: int | None
    match: str
    initial: bool
    bookmarks: bool
    timeout_s: float | None
    table: bool
    include: str


def parse(
    cluster: Cluster, resource: Resource, namespace: str | None, name: str, params: Mapping[str, str], *, table: bool
) -> Query:
    """Raises StatusError 400, or 500 for a resourceVersion that is no number, as a real server does."""
    fields = params.get("fieldSelector", "")
    if name:
        fields = f"metadata.name={name}"
    supported = cluster.strategy(resource).fields
    return Query(
        resource,
        namespace,
        selector(params.get("labelSelector", ""), fields, supported),
        named_by(fields) if fields else None,
        _number(params, "limit"),
        params.get("continue", ""),
        _version(params.get("resourceVersion", "")),
        params.get("resourceVersionMatch", ""),
        params.get("sendInitialEvents") in _TRUE,
        params.get("allowWatchBookmarks") in _TRUE,
        _number(params, "timeoutSeconds") or None,
        table,
        params.get("includeObject", "Metadata"),
    )


def _number(params: Mapping[str, str], key: str) -> int:
    text = params.get(key, "0") or "0"
    if not text.isdigit():
        raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def _version(text: str) -> int | None:
    if text == "":
        return None
    if not text.isdigit():
        why = f'strconv.ParseUint: parsing "{text}": invalid syntax'
        raise StatusError(500, "", f'resourceVersion: Invalid value: "{text}": {why}')
    return int(text)


# --- lists -----------------------------------------------------------------------------------------------------


def list_objects(cluster: Cluster, query: Query) -> bytes:
    """The encoded list; raises 410 for a version or token that is no longer kept, 504 for one from the future."""
    rv, start = _where(cluster, query)
    entries = selected(cluster, query, rv)
    if start:
        entries = [e for e in entries if _path(e) > start]
    rest = len(entries) - query.limit if query.limit else 0
    meta: JSON = {"resourceVersion": str(rv)}
    if rest > 0:
        entries = entries[: query.limit]
        meta["continue"] = _token(rv, _path(entries[-1]))
        # With a selector a real server does not count what it has not looked at.
        if query.matches is None:
            meta["remainingItemCount"] = rest
    if query.table:
        return encode(tables.table(cluster, query.resource, entries, meta, query.include))
    return _encoded(cluster, query.resource, entries, meta)


def selected(cluster: Cluster, query: Query, rv: int | None = None) -> list[Entry]:
    """What the query selects, in order, now or at version `rv`."""
    bucket = cluster.store.bucket(query.resource.bucket)
    now = cluster.store.rv
    entries = _candidates(bucket, query, now if rv is None else rv, now)
    if query.matches is not None:
        entries = [e for e in entries if query.matches(cluster.view(query.resource, e))]
    return sorted_entries(entries)


def _path(entry: Entry) -> str:
    return f"{entry.key[0]}/{entry.key[1]}"


def _where(cluster: Cluster, query: Query) -> tuple[int, str]:
    """(the version to list at, the key after which to begin)."""
    current = cluster.store.rv
    if query.token:
        return _read_token(query.token)
    if query.rv is None or query.match not in ("", "Exact", "NotOlderThan"):
        return current, ""
    if query.rv > current:
        raise too_large(query.rv, current)
    exact = query.match == "Exact" or (query.match == "" and query.limit and query.rv)
    return (query.rv if exact else current), ""


def _candidates(bucket: Bucket, query: Query, rv: int, now: int) -> list[Entry]:
    if rv == now:
        if query.name is not None and query.namespace is not None:
            entry = bucket.get((query.namespace, query.name))
            return [] if entry is None else [entry]
        return list(bucket.entries(query.namespace))
    try:
        return list(bucket.at(rv, query.namespace))
    except StatusError as error:
        if not query.token:
            raise
        text = (
            "The provided continue parameter is too old to display a consistent list result. You can start a new list "
            "without the continue parameter."
        )
        raise expired(text) from error


def _token(rv: int, start: str) -> str:
    raw = encode({"v": "meta.k8s.io/v1", "rv": rv, "start": start})
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _read_token(token: str) -> tuple[int, str]:
    try:
        read = msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return int(read["rv"]), str(read["start"])
    except (binascii.Error, msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise bad_request("continue key is not valid: unable to decode") from error


def _encoded(cluster: Cluster, resource: Resource, entries: list[Entry], meta: JSON) -> bytes:
    """A list put together from the stored bytes of its objects."""
    if resource.custom:
        meta.setdefault("continue", "")
        items = b",".join(cluster.shown(resource, e) for e in entries)
        form = b'{"apiVersion":"%s","items":[%s],"kind":"%s","metadata":%s}'
        return form % (resource.api_version.encode(), items, resource.list_kind.encode(), encode(meta))
    items = b",".join(e.raw for e in entries)
    form = b'{"kind":"%s","apiVersion":"%s","metadata":%s,"items":[%s]}'
    return form % (resource.list_kind.encode(), resource.api_version.encode(), encode(meta), items)


# --- watches ---------------------------------------------------------------------------------------------------


class Watch:
    """One watch request: `start` it, send its `batches`, and `stop` it whatever happens."""

    def __init__(self, cluster: Cluster, query: Query, bookmark_s: float) -> None:
        self._cluster = cluster
        self._query = query
        self._bookmark_s = bookmark_s
        self._bucket = cluster.store.bucket(query.resource.bucket)
        self._watcher = Watcher(self._bucket, query.namespace, query.matches, query.name)
        self._columns_sent = False

    def start(self) -> bytes:
        """Listen from now on; returns the first lines. Raises StatusError where there can be no watch.

        A version that is no longer kept is no such case: the answer is a watch, whose one event is the error. Nor is
        one from the future, which a client can only hold that knew another server under this address: a real server
        would leave it waiting without a word, here it is told.
        """
        query, store = self._query, self._cluster.store
        if query.initial and query.match != "NotOlderThan":
            why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            raise invalid("ListOptions", "meta.k8s.io", "", [forbidden("resourceVersionMatch", why)])
        from_now = query.initial or not query.rv
        try:
            if query.rv is not None and query.rv > store.rv:
                raise too_large(query.rv, store.rv)
            self._watcher.start(None if from_now else query.rv)
        except StatusError as error:
            self._watcher.overrun = True
            return line("ERROR", encode(error.body))
        if not from_now:
            return b""
        first = b"".join(self._line(ADDED, e) for e in selected(self._cluster, query))
        if query.initial and query.bookmarks:
            first += self._bookmark(_INITIAL_END, store.rv)
        return first

    def stop(self) -> None:
        self._watcher.stop()

    async def batches(self, ending: asyncio.Event) -> AsyncIterator[bytes]:
        """The changes, in batches of whole lines, until the time is up or the server ends."""
        loop = asyncio.get_running_loop()
        end = loop.time() + (self._query.timeout_s or _LONGEST_S)
        next_bookmark = loop.time() + self._bookmark_s
        while (left := end - loop.time()) > 0 and not ending.is_set() and not self._watcher.overrun:
            seen = await self._watcher.next(min(left, max(0.0, next_bookmark - loop.time())))
            # What happens while these are written is not in them.
            version = self._cluster.store.rv
            if seen:
                yield b"".join(self._line(type_, entry) for type_, entry in seen)
            if loop.time() >= next_bookmark:
                next_bookmark = loop.time() + self._bookmark_s
                if self._query.bookmarks:
                    yield self._bookmark({}, version)

    def _line(self, type_: str, entry: Entry) -> bytes:
        if not self._query.table:
            return line(type_, self._cluster.shown(self._query.resource, entry))
        meta: JSON = {"resourceVersion": str(entry.rv)}
        shown = tables.table(self._cluster, self._query.resource, [entry], meta, self._query.include)
        if self._columns_sent:
            # The columns are told once; a reader keeps them.
            del shown["columnDefinitions"]
        self._columns_sent = True
        return line(type_, encode(shown))

    def _bookmark(self, annotations: dict[str, str], version: int) -> bytes:
        resource = self._query.resource
        meta: JSON = {"resourceVersion": str(version)}
        if annotations:
            meta["annotations"] = annotations
        obj: JSON = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": meta}
        if not resource.custom:
            obj = {**empty(resource.schema), **obj}
        return line("BOOKMARK", encode(obj))
