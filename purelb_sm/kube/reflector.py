"""A copy of one kind, kept equal to the API server by list and watch.

Owns the watch's position and the pace of asking. Knows nothing of what the objects mean. Whatever the server does
(refuse, hang, abort, forget the past, go back in time, send what we cannot read) the reflector goes on with bounded
requests, and the cache is either what the server last said or, from the next list on, corrected by comparing.

Order of calls, all synchronous in the loop: the cache holds the new state, then `on_listed` (after a list only), then
`on_change` for each difference. So whoever is told of a change reads a cache that has it, and whoever must not act on
an implausible list knows of it before the first of its changes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Set
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec
import structlog

from purelb_sm.errors import Gone, KubeError, Unavailable
from purelb_sm.kube.answers import watch_error
from purelb_sm.kube.cache import Cache, Change, OnChange, OnListed, Snapshot, is_older
from purelb_sm.kube.client import KubeClient, Silent
from purelb_sm.kube.objects import Kind, Undecodable, Versioned, decode_identity

__all__ = ["Change", "Reflector", "ReflectorStats", "is_older"]

log = structlog.get_logger(__name__)

K = TypeVar("K")
V = TypeVar("V", bound=Versioned)

PAGE: Final = 500
IDLE_S: Final = 80.0
"""Without a byte for so long a watch is opened anew. Servers send a bookmark about every minute."""
WATCH_S: Final = (240.0, 300.0)
"""For how long a watch is asked for: spread, so that a cluster's agents do not come back all at once."""
SETTLED_S: Final = 5.0
"""A watch that stood for so long was a good one: the next starts without delay."""
FIRST_DELAY_S: Final = 0.2
LAST_DELAY_S: Final = 30.0
PROGRESS_DELAY_S: Final = 1.0
HASTE_S: Final = 1.0
"""Within this time a reflector that was told that the server answers again tries it, not all in the same moment."""
STUCK_AFTER: Final = 3
"""After so many lines in a row that were no events, without a step forward, list again."""


@dataclass(slots=True)
class ReflectorStats:
    """Counters since start, for metrics and tests."""

    lists: int = 0
    watches: int = 0
    events: int = 0
    bookmarks: int = 0
    expired: int = 0
    silent: int = 0
    errors: int = 0


class _Garbled(Unavailable):
    """A line of a watch that is no event: it may be there again at every new try."""


class _ListMeta(msgspec.Struct):
    resource_version: str | None = msgspec.field(default=None, name="resourceVersion")
    next_page: str | None = msgspec.field(default=None, name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    """Two steps of decoding: an object that we cannot read must not hide that there was an event."""

    type: str
    object: msgspec.Raw


_decode_list = msgspec.json.Decoder(_List).decode
_decode_event = msgspec.json.Decoder(_Event).decode


class Reflector(Generic[K, V]):
    """The cache of one kind. Run `run()` as a task; wait for `synced` before deciding anything by the cache.

    `namespace` None is all namespaces. `field_selector` and `label_selector` go to the server; one that refuses the
    fields (400) is asked without, so `keep` must say the same wherever it matters. `idle_s`: see IDLE_S; a kind that
    is known to change often can have it shorter.
    """

    def __init__(
        self,
        client: KubeClient,
        kind: Kind[K, V],
        *,
        namespace: str | None = None,
        field_selector: str = "",
        label_selector: str = "",
        keep: Callable[[V], bool] | None = None,
        page: int = PAGE,
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.kind = kind
        self.synced = asyncio.Event()
        self.stats = ReflectorStats()
        self._client = client
        self._path = kind.resource.collection(namespace)
        self._selectors = {"fieldSelector": field_selector, "labelSelector": label_selector}
        self._page = page
        self._idle_s = idle_s
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or random.Random()  # noqa: S311  # jitter, not a secret
        self._version = ""
        self._highest = ""
        self._whole = False
        self._contact = float("-inf")
        self._delay_s = 0.0
        self._stuck = 0
        self._failing = False
        self._hastened = asyncio.Event()
        self._log = log.bind(kind=kind.resource.kind)
        self._cache = Cache(kind, keep, self._log)

    # What callers read.

    def get(self, key: K) -> V | None:
        return self._cache.get(key)

    def items(self) -> Mapping[K, V]:
        """The live cache: read it without waiting in between, and do not change it."""
        return self._cache.items()

    def __len__(self) -> int:
        return len(self._cache.items())

    @property
    def undecodable(self) -> int:
        """How often an object could not be read and was passed by."""
        return self._cache.undecodable

    @property
    def unread(self) -> Set[K]:
        """Objects that are there, in a form that cannot be read: absent from the cache, or there as they once were."""
        return self._cache.unread

    @property
    def callback_errors(self) -> int:
        return self._cache.callback_errors

    @property
    def resource_version(self) -> str:
        """How far the cache is: everything up to this version is in it. Empty before the first list."""
        return self._version

    @property
    def staleness_s(self) -> float:
        """Seconds since the server last said anything here; infinite before it first did."""
        return self._clock() - self._contact

    def on_change(self, callback: OnChange[V]) -> None:
        """`callback(change, old, new)` for every change from now on. It must not raise, wait or take long."""
        self._cache.on_change(callback)

    def on_listed(self, callback: OnListed) -> None:
        """`callback(count_before, count_after)` after every list, before the changes that it brought."""
        self._cache.on_listed(callback)

    def absorb(self, view: V) -> None:
        """Takes what a conditional write of ours answered, so that the next decision does not act on the past.

        Nobody is called: the writer knows. The watch's own event of that write is then no change. Only for answers to
        writes that were conditional on the cached version, else another's change could pass unseen.
        """
        self._cache.absorb(view)

    def hasten(self) -> None:
        """The server answers again, somebody else has seen it: a long pause after failures is over. Not one that the
        server asked for."""
        self._hastened.set()

    # The loop.

    async def run(self) -> None:
        """Lists and watches until cancelled."""
        while True:
            wait_s, stood_s, before = 0.0, 0.0, self.stats.events + self.stats.bookmarks
            try:
                if not self._version:
                    await self._list()
                started = self._clock()
                try:
                    await self._watch()
                finally:
                    stood_s = self._clock() - started
            except Gone as error:
                self.stats.expired += 1
                self._version = ""
                wait_s = error.retry_after_s or 0.0
                self._log.info("watch_expired", error=str(error))
            except KubeError as error:
                wait_s = self._broken(error)
            await self._pause(stood_s, wait_s, self.stats.events + self.stats.bookmarks > before)

    def _broken(self, error: KubeError) -> float:
        """Counts a failure; answers with how long the server asked us to stay away."""
        if isinstance(error, Silent):
            # The likeliest cause is a connection that died unnoticed; the server has done nothing wrong.
            self.stats.silent += 1
            return 0.0
        self.stats.errors += 1
        if isinstance(error, _Garbled):
            self._stuck += 1
            if self._stuck >= STUCK_AFTER:
                self._version, self._stuck = "", 0
        if error.status == 400 and self._selectors["fieldSelector"]:
            # Which fields can be selected by depends on the server's version (Services by spec.type: not in old ones).
            self._selectors["fieldSelector"] = ""
            self._version = ""
        # Said once, not at every try: an API server that is away is away for all kinds, and for a while.
        if not self._failing:
            self._log.warning("list_or_watch_failed", error=str(error))
        self._failing = True
        return error.retry_after_s or 0.0

    async def _pause(self, stood_s: float, wait_s: float, progressed: bool) -> None:
        """Back-off: doubles while watches are short-lived, whatever ended them; none after one that stood.

        One that at least brought something is tried again within a second or so: cut short as it is, it is all the
        news that we get.
        """
        if stood_s >= SETTLED_S and wait_s == 0.0:
            self._delay_s = 0.0
            return
        limit_s = PROGRESS_DELAY_S if progressed else LAST_DELAY_S
        self._delay_s = min(limit_s, max(FIRST_DELAY_S, self._delay_s * 2))
        if wait_s > 0.0:
            await self._sleep(max(wait_s * self._rng.uniform(1.0, 1.2), self._delay_s * self._rng.uniform(0.8, 1.2)))
        else:
            await self._rest(self._delay_s * self._rng.uniform(0.8, 1.2))

    async def _rest(self, pause_s: float) -> None:
        """A pause that `hasten` ends."""
        self._hastened.clear()
        hastened = asyncio.ensure_future(self._hastened.wait())
        resting = asyncio.ensure_future(self._sleep(pause_s))
        try:
            await asyncio.wait({hastened, resting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hastened.cancel()
            resting.cancel()
        if hastened.done() and pause_s > HASTE_S:
            self._delay_s = 0.0
            await self._sleep(self._rng.uniform(0.0, HASTE_S))

    # Listing.

    async def _list(self) -> None:
        self.stats.lists += 1
        snapshot: Snapshot[K, V] = Snapshot()
        token = ""
        while True:
            page = await self._page_after(token)
            self._contact = self._clock()
            for raw in page.items or ():
                self._cache.read(raw, snapshot)
            last, token = token, page.metadata.next_page or ""
            if not token:
                break
            if token == last:
                raise Unavailable(f"list {self._path}: the same page for ever")
            await asyncio.sleep(0)
        version = page.metadata.resource_version
        if not version:
            # Some other answer than a list. Taken for an empty one it would delete everything.
            raise Unavailable(f"list {self._path}: an answer without a version")
        went_back, self._whole = is_older(version, self._highest), False
        self._version = self._highest = version
        self._cache.replace(snapshot, version, went_back=went_back)
        self.synced.set()

    async def _page_after(self, token: str) -> _List:
        try:
            return await self._client.get(self._path, _decode_list, query=self._list_query(token))
        except Gone:
            # The snapshot that we paged through is too old by now. The next list comes in one piece.
            self._whole = bool(token)
            raise

    def _list_query(self, token: str) -> dict[str, str]:
        query = {name: value for name, value in self._selectors.items() if value}
        if not self._whole:
            query["limit"] = str(self._page)
        if token:
            query["continue"] = token
        return query

    # Watching.

    async def _watch(self) -> None:
        self.stats.watches += 1
        query = {name: value for name, value in self._selectors.items() if value}
        query |= {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(round(self._rng.uniform(*WATCH_S))),
        }
        async with aclosing(self._client.stream(self._path, query, idle_s=self._idle_s)) as lines:
            async for line in lines:
                self._contact = self._clock()
                if self._failing:
                    self._failing = False
                    self._log.info("watching_again")
                if line:
                    self._take(line)

    def _take(self, line: bytes) -> None:
        """One event. Raises Gone if the position is lost, _Garbled if the line is no event."""
        try:
            event = _decode_event(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _Garbled(f"watch {self._path}: not an event: {error}") from error
        if event.type == "ERROR":
            raise self._watch_error(event.object)
        try:
            identity = decode_identity(event.object)
        except Undecodable as error:
            raise _Garbled(f"watch {self._path}: not an object: {error}") from error
        if is_older(identity.resource_version, self._version):
            # Within a watch versions only grow. The server has gone back in time: ask it for everything.
            raise Gone(f"watch {self._path}: version went from {self._version} back to {identity.resource_version}")
        self._stuck = 0
        if event.type == "BOOKMARK":
            self.stats.bookmarks += 1
        else:
            self.stats.events += 1
            self._cache.apply(event.type, event.object, identity)
        # Even past an object that we cannot read: else the server would send it for ever.
        self._version = self._highest = identity.resource_version or self._version

    def _watch_error(self, status: msgspec.Raw) -> KubeError:
        error = watch_error(status, f"watch {self._path}")
        # A server that was restored from a backup may not know our version yet: it will never come.
        if "Too large resource version" in str(error):
            return Gone(str(error), status=error.status, kind_reason=error.kind_reason)
        return error
