"""Publishing: what is committed is shown, with bounded concurrency, and never twice at once for one Service.

Knows nothing of why. A write that is not taken is not repeated here: its key goes back to the queue, and is planned
anew from what the cluster then says (re-derive, never resume). Namespaces take turns here as in the queue of keys: what
one of them has piled up is not in the way of another's (E8).
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

import structlog

from purelb_sm.allocator.metrics import AllocatorMetrics
from purelb_sm.domain.book import EventNote, Plan, PolicyReset, Publication
from purelb_sm.domain.views import ServiceKey, ServiceView
from purelb_sm.errors import Conflict, KubeError, NotFound

log = structlog.get_logger(__name__)

RETRY_FIRST_S = 0.1
RETRY_LAST_S = 30.0
LONGEST = 20
"""So many writes for each that can be under way at once wait at most: then nothing more is planned."""
ROOM = 4
"""Nothing is planned until there is room for so many of each. Few, so that those who come now are planned soon; and
enough for a transaction to be worth its while."""


class Cluster(Protocol):
    """What publishing needs of the cluster."""

    async def publish(self, publication: Publication) -> ServiceView: ...

    async def reset_policy(self, reset: PolicyReset) -> ServiceView: ...

    def record(self, key: ServiceKey, uid: str, resource_version: str, note: EventNote) -> None: ...

    def absorb(self, view: ServiceView) -> None: ...


class Backlog:
    """Plans to be shown: taken from every namespace in turn, and those of one in their order."""

    def __init__(self) -> None:
        self._by_namespace: OrderedDict[str, deque[tuple[Plan, ServiceView]]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, item: tuple[Plan, ServiceView]) -> None:
        self._by_namespace.setdefault(item[0].key.namespace, deque()).append(item)
        self._count += 1

    def take(self) -> tuple[Plan, ServiceView]:
        """The next one; the caller knows that there is one."""
        namespace, items = next(iter(self._by_namespace.items()))
        item = items.popleft()
        self._count -= 1
        if items:
            self._by_namespace.move_to_end(namespace)
        else:
            del self._by_namespace[namespace]
        return item


class Publisher:
    """Submit plans; `busy(key)` tells whether a write of that key is under way.

    `taken_off` is called when an ingress that was there was replaced or removed: a release may have waited for it.
    """

    def __init__(
        self,
        cluster: Cluster,
        requeue: Callable[[ServiceKey, float], None],
        *,
        concurrency: int,
        metrics: AllocatorMetrics,
        taken_off: Callable[[ServiceKey], None] = lambda _: None,
    ) -> None:
        self._cluster = cluster
        self._requeue = requeue
        self._taken_off = taken_off
        self._concurrency = concurrency
        self._metrics = metrics
        self._backlog = Backlog()
        # Counts what is in the backlog: each write wakes one worker, and not all of them for one to get it.
        self._ready = asyncio.Semaphore(0)
        self._moved = asyncio.Condition()
        self._busy: set[ServiceKey] = set()
        self._again: set[ServiceKey] = set()
        self._failures: dict[ServiceKey, int] = {}

    def busy(self, key: ServiceKey) -> bool:
        """True while a write of `key` waits or runs; the key then comes back to the queue when that is over."""
        if key in self._busy:
            self._again.add(key)
            return True
        return False

    def has(self, key: ServiceKey) -> bool:
        """Whether a write of `key` waits or runs. Asking this has no consequence."""
        return key in self._busy

    @property
    def writing(self) -> int:
        """How many Services have a write under way, or one that waits for its turn."""
        return len(self._busy)

    async def submit(self, plans: list[tuple[Plan, ServiceView]]) -> None:
        """Takes committed plans with the views they were made from; they are busy from now on."""
        for item in plans:
            self._busy.add(item[0].key)
            self._backlog.append(item)
            self._ready.release()

    async def roomy(self, rounds: int) -> None:
        """Waits while the backlog is long: more than that for each write that can be under way at once."""
        async with self._moved:
            await self._moved.wait_for(lambda: len(self._backlog) < self._concurrency * rounds)

    async def room(self) -> int:
        """Waits while the backlog is long; answers how many more it takes."""
        await self.roomy(LONGEST - ROOM)
        return LONGEST * self._concurrency - len(self._backlog)

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._worker())

    async def drained(self) -> None:
        """Returns when nothing waits or runs."""
        async with self._moved:
            await self._moved.wait_for(lambda: not self._busy)

    async def _worker(self) -> None:
        while True:
            await self._ready.acquire()
            made, view = self._backlog.take()
            await self._tell()
            try:
                await self._show(made, view)
            finally:
                self._busy.discard(made.key)
                if made.key in self._again:
                    self._again.discard(made.key)
                    self._requeue(made.key, 0.0)
                await self._tell()

    async def _tell(self) -> None:
        """Wakes those who wait for the backlog to shrink or for the last write to end."""
        async with self._moved:
            self._moved.notify_all()

    async def _show(self, made: Plan, view: ServiceView) -> None:
        publication = made.publication
        if made.policy is not None:
            # It comes first: until it is taken, the address is not shown with a policy that it cannot have.
            written = await self._write(made.key, self._cluster.reset_policy(made.policy))
            if written is None:
                return
            self._cluster.record(written.key, written.uid, written.resource_version, made.policy.note)
            view = written
            if publication is not None:
                publication = replace(publication, resource_version=written.resource_version)
        if publication is not None:
            written = await self._write(made.key, self._cluster.publish(publication))
            if written is None:
                return
            if publication.ingress is not None and view.ingress:
                self._taken_off(made.key)
            view = written
        self._failures.pop(made.key, None)
        for note in made.events:
            self._cluster.record(view.key, view.uid, view.resource_version, note)

    async def _write(self, key: ServiceKey, writing: Awaitable[ServiceView]) -> ServiceView | None:
        """The Service as written; None where it was not, and then it comes back to the queue if it should."""
        started = time.perf_counter()
        try:
            view = await writing
        except NotFound:
            # Deleted meanwhile: the watch says so, and the deletion is planned then.
            self._metrics.publish_failed.labels("NotFound").inc()
            self._failures.pop(key, None)
            return None
        except KubeError as error:
            self._failed(key, error)
            return None
        except Exception as error:
            # None that the cluster answers with: our own mistake, which must cost nobody else.
            log.exception("publish_raised", service=str(key))
            self._failed(key, error)
            return None
        self._metrics.publish.observe(time.perf_counter() - started)
        self._cluster.absorb(view)
        return view

    def _failed(self, key: ServiceKey, error: Exception) -> None:
        kind = type(error).__name__
        self._metrics.publish_failed.labels(kind).inc()
        count = self._failures[key] = self._failures.get(key, 0) + 1
        asked_s = error.retry_after_s if isinstance(error, KubeError) else None
        delay_s = max(asked_s or 0.0, min(RETRY_LAST_S, RETRY_FIRST_S * 2 ** min(count - 1, 12)))
        if not isinstance(error, Conflict):
            log.warning("publish_failed", service=str(key), error=str(error), retry_in_s=round(delay_s, 2))
        self._requeue(key, delay_s)
