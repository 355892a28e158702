"""Events: telling people what happened to their object, without ever holding up the work.

Recording only puts the Event into a bounded queue. What the server does not take in a few tries is dropped and counted.
The same Event again raises the count of the first (`92m (x2 over 92m)`), and an object that causes a flood is cut off
for a while: both as client-go does, so that `kubectl describe` shows what people know.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Final, NamedTuple

import structlog

from purelb_sm.domain.book import EventNote
from purelb_sm.domain.views import NodeView, ObjectView, ServiceKey
from purelb_sm.errors import AlreadyExists, KubeError, NotFound, Throttled, Unavailable
from purelb_sm.kube.client import MERGE_PATCH
from purelb_sm.kube.resources import EVENTS, NODES, SERVICES
from purelb_sm.kube.wire import Requests, plain_time, utc_now

log = structlog.get_logger(__name__)

QUEUE_MAX: Final = 10_000
"""As many as a large cluster has Services, of about 1 KiB each: one that comes up whole should see all its Events."""
WORKERS: Final = 4
KNOWN_MAX: Final = 2048
BURST: Final = 25
"""So many Events an object may cause at once …"""
REFILL_S: Final = 300.0
"""… and then one more each so many seconds (both from client-go)."""
TRIES: Final = 4
MESSAGE_MAX: Final = 1024
"""The API server refuses a longer message."""
FLUSH_S: Final = 2.0


class Reference(NamedTuple):
    """The object that an Event is about. `namespace` is empty for a cluster-wide one."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    resource_version: str = ""

    @property
    def identity(self) -> tuple[str, str, str, str]:
        return (self.kind, self.namespace, self.name, self.uid)


class _Key(NamedTuple):
    """What makes two Events the same."""

    identity: tuple[str, str, str, str]
    type: str
    reason: str
    message: str


@dataclass(slots=True)
class _Pending:
    """Not yet written: how often, and when first and last."""

    name: str
    reference: Reference
    first: datetime
    last: datetime
    count: int = 1


@dataclass(slots=True)
class _Known:
    """An Event that the server has."""

    path: str
    count: int


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


@dataclass(slots=True)
class RecorderStats:
    """Counters since start, for metrics and tests."""

    recorded: int = 0
    written: int = 0
    spam: int = 0
    overflow: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Shard:
    """The Events of a part of all objects, written one after the other: so one object's stay in order."""

    pending: OrderedDict[_Key, _Pending] = field(default_factory=OrderedDict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class EventRecorder:
    """Records core/v1 Events. `async with EventRecorder(client, component, instance) as recorder:`.

    `component` is what `kubectl describe` shows in From; `instance` tells the pod or node. `record` and its short forms
    never wait and never raise. Leaving the context writes what is queued, for at most FLUSH_S.
    """

    def __init__(
        self,
        client: Requests,
        component: str,
        instance: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.stats = RecorderStats()
        self._client = client
        self._component = component
        self._instance = instance
        self._clock = clock
        self._now = now
        self._sleep = sleep
        self._rng = rng or random.Random()  # noqa: S311  # jitter, not a secret
        self._shards = [_Shard() for _ in range(WORKERS)]
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._buckets: OrderedDict[tuple[str, str, str, str], _Bucket] = OrderedDict()
        self._tasks: list[asyncio.Task[None]] = []
        self._complained = False

    async def __aenter__(self) -> EventRecorder:
        self._tasks = [asyncio.create_task(self._work(shard)) for shard in self._shards]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Writes what is queued, for at most FLUSH_S, and ends."""
        try:
            if self._tasks:
                await self.flush(FLUSH_S)
        finally:
            # Also for one who does not wait that long: the client is about to be closed.
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def flush(self, timeout_s: float) -> bool:
        """Waits until all is written or given up; answers whether that was so in time."""
        try:
            async with asyncio.timeout(timeout_s):
                for shard in self._shards:
                    await shard.idle.wait()
        except TimeoutError:
            return False
        return True

    # Recording.

    def service(self, key: ServiceKey, uid: str, resource_version: str, note: EventNote) -> None:
        self.record(
            Reference(SERVICES.api_version, SERVICES.kind, key.namespace, key.name, uid, resource_version), note
        )

    def object(self, view: ObjectView, note: EventNote) -> None:
        self.record(
            Reference(view.api_version, view.kind, view.namespace, view.name, view.uid, view.resource_version), note
        )

    def node(self, view: NodeView, note: EventNote) -> None:
        self.record(Reference(NODES.api_version, NODES.kind, "", view.name, view.uid, view.resource_version), note)

    def record(self, reference: Reference, note: EventNote) -> None:
        """Queues an Event. Never waits, never raises; what is too much is dropped and counted."""
        self.stats.recorded += 1
        if not self._may_speak(reference.identity):
            self.stats.spam += 1
            return
        message = note.message if len(note.message) <= MESSAGE_MAX else note.message[: MESSAGE_MAX - 1] + "…"
        key = _Key(reference.identity, note.type, note.reason, message)
        shard = self._shards[hash(reference.identity) % len(self._shards)]
        at = self._now()
        if key in shard.pending:
            pending = shard.pending[key]
            pending.count, pending.last, pending.reference = pending.count + 1, at, reference
        elif sum(len(s.pending) for s in self._shards) >= QUEUE_MAX:
            self.stats.overflow += 1
        else:
            shard.pending[key] = _Pending(self._name(reference.name, at), reference, at, at)
            shard.idle.clear()
            shard.wake.set()

    def _name(self, name: str, at: datetime) -> str:
        """A name for the Event object that nobody else takes, the same for all tries to write it."""
        stamp = int(at.timestamp() * 1_000_000)
        return f"{name[:220]}.{stamp:x}{self._rng.getrandbits(24):06x}"

    def _may_speak(self, identity: tuple[str, str, str, str]) -> bool:
        """Token bucket per object."""
        at = self._clock()
        bucket = self._buckets.get(identity)
        if bucket is None:
            bucket = self._buckets[identity] = _Bucket(BURST, at)
            if len(self._buckets) > KNOWN_MAX:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(identity)
        bucket.tokens = min(float(BURST), bucket.tokens + (at - bucket.at) / REFILL_S)
        bucket.at = at
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    # Writing.

    async def _work(self, shard: _Shard) -> None:
        while True:
            while not shard.pending:
                shard.idle.set()
                shard.wake.clear()
                await shard.wake.wait()
            key, pending = shard.pending.popitem(last=False)
            await self._insist(key, pending)

    async def _insist(self, key: _Key, pending: _Pending) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                await self._write(key, pending)
            except (Throttled, Unavailable) as error:
                if attempt < TRIES:
                    pause_s = max(error.retry_after_s or 0.0, 0.5 * 2.0**attempt)
                    await self._sleep(pause_s * self._rng.uniform(1.0, 1.2))
                    continue
                self._give_up(error)
            except KubeError as error:
                # A namespace that is being deleted, say: trying again would not help.
                self._give_up(error)
            else:
                self.stats.written += 1
                self._complained = False
            return

    def _give_up(self, error: KubeError) -> None:
        self.stats.failed += 1
        if not self._complained:
            log.warning("event_not_written", error=str(error))
        self._complained = True

    async def _write(self, key: _Key, pending: _Pending) -> None:
        known = self._known.get(key)
        if known is not None:
            try:
                await self._count_up(known, pending)
            except NotFound:
                # The server forgets Events after an hour or so.
                del self._known[key]
            else:
                self._known.move_to_end(key)
                return
        await self._create(key, pending)

    async def _count_up(self, known: _Known, pending: _Pending) -> None:
        count = known.count + pending.count
        body = {"count": count, "lastTimestamp": plain_time(pending.last)}
        await self._client.request("PATCH", known.path, body=body, content_type=MERGE_PATCH)
        known.count = count

    async def _create(self, key: _Key, pending: _Pending) -> None:
        # An Event is kept in the namespace of its object, or in default for an object that has none.
        namespace = pending.reference.namespace or "default"
        body = self._body(key, pending, namespace)
        # "Already there" is also the answer to a try whose first answer was lost.
        with contextlib.suppress(AlreadyExists):
            await self._client.request("POST", EVENTS.collection(namespace), body=body)
        self._known[key] = _Known(EVENTS.path(pending.name, namespace), pending.count)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def _body(self, key: _Key, pending: _Pending, namespace: str) -> dict[str, Any]:
        reference = pending.reference
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": pending.name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": reference.api_version,
                "kind": reference.kind,
                "namespace": reference.namespace,
                "name": reference.name,
                "uid": reference.uid,
                "resourceVersion": reference.resource_version,
            },
            "reason": key.reason,
            "message": key.message,
            "type": key.type,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
            "firstTimestamp": plain_time(pending.first),
            "lastTimestamp": plain_time(pending.last),
            "count": pending.count,
        }
