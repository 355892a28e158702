"""Telling Services which nodes announce them, and that an address has been silent for too long (C16).

Beside the work of the leader, and after it: no allocation waits for these writes. What a status should say is made
anew from the book at every look; a Service is looked at until a look finds nothing to say, so that a write that was
not taken is simply found to be missing.

One look a second at each Service at most: a failover that is over within that time is one write, and the moves of many
nodes are one, too. One queue holds what moved and what may become overdue; nothing runs over all Services.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

import structlog

from purelb_sm.allocator.contested import Contested
from purelb_sm.allocator.metrics import AllocatorMetrics
from purelb_sm.allocator.publisher import Publisher
from purelb_sm.domain.announced import Announcers, silence, tell_announced
from purelb_sm.domain.book import Join, Leave, Plan, Reclaim
from purelb_sm.domain.views import Condition, ServiceKey, ServiceView
from purelb_sm.kube.queue import WorkQueue

log = structlog.get_logger(__name__)

PERIOD_S: Final = 1.0
AT_ONCE: Final = 200
"""Services looked at in one transaction: planning waits for no more than that."""


class Notices:
    """Run `run()` as a task once everything has been planned.

    announcers  asks the book, of many Services at once
    views       the Service as last seen
    deciding    held while writes are decided and submitted: two of one Service must not be under way
    after_s     how long an address may be silent
    listen_s    after so long a new leader has heard the nodes: before, the book may be of the past
    """

    def __init__(
        self,
        announcers: Callable[[Sequence[ServiceKey]], Awaitable[Mapping[ServiceKey, Announcers]]],
        views: Callable[[ServiceKey], ServiceView | None],
        publisher: Publisher,
        deciding: asyncio.Lock,
        metrics: AllocatorMetrics,
        clock: Callable[[], datetime],
        *,
        after_s: float,
        listen_s: float,
        period_s: float = PERIOD_S,
    ) -> None:
        self._announcers = announcers
        self._view = views
        self._publisher = publisher
        self._deciding = deciding
        self._metrics = metrics
        self._clock = clock
        self._after_s = after_s
        self._listen_s = listen_s
        self._period_s = period_s
        self._queue = WorkQueue()
        # Virtual in tests, like all that waits here.
        self._contested = Contested(lambda: asyncio.get_running_loop().time())
        self._looking = 0
        self._overdue: set[ServiceKey] = set()
        self._submitted: dict[ServiceKey, Condition] = {}

    def moved(self, keys: Iterable[ServiceKey]) -> None:
        """Announcements of these have changed in the book."""
        for key in keys:
            self._contested.settled(key)
            self._queue.add(key)

    def reworded(self, keys: Iterable[ServiceKey]) -> None:
        """Somebody has changed the condition of these."""
        for key in keys:
            self._queue.add(key)

    def planned(self, made: Plan) -> None:
        """The book has moved for this Service: what it has got is waited for, what it has lost is not."""
        if made.key in self._overdue or any(isinstance(action, Join | Reclaim | Leave) for action in made.actions):
            # It may share an address that is announced already, and of which no node has anything to report.
            self._queue.add(made.key)
        elif made.actions:
            self._queue.add_after(made.key, self._after_s)

    @property
    def untold(self) -> int:
        """How many Services wait to be looked at, for all but the time."""
        return len(self._queue) + self._looking

    async def run(self, everything: Callable[[], Awaitable[Iterable[ServiceKey]]]) -> None:
        """Looks at `everything` once, then at what moves, until cancelled."""
        try:
            await asyncio.sleep(self._listen_s)
            self.moved(await everything())
            while True:
                keys = await self._queue.get_batch(1)
                await self._look_soon(keys)
        finally:
            self._queue.clear()
            self._metrics.unannounced.set(0)

    async def _look_soon(self, keys: list[ServiceKey]) -> None:
        self._looking = len(keys)
        await asyncio.sleep(self._period_s)
        if len(self._queue):
            keys += await self._queue.get_batch(len(self._queue))
        keys = list(dict.fromkeys(keys))
        for start in range(0, len(keys), AT_ONCE):
            self._looking = len(keys) - start
            # Allocations come first: these wait until hardly anything else does.
            await self._publisher.roomy(1)
            async with self._deciding:
                await self._look(keys[start : start + AT_ONCE])
        self._looking = 0

    async def _look(self, keys: Sequence[ServiceKey]) -> None:
        found = await self._announcers(keys)
        said = [told for key in keys if (told := self._told(key, found.get(key))) is not None]
        self._metrics.unannounced.set(len(self._overdue))
        await self._publisher.submit(said)

    def _told(self, key: ServiceKey, found: Announcers | None) -> tuple[Plan, ServiceView] | None:
        """What there is to write of this Service, with the view that it was made from."""
        view = self._view(key)
        if found is None or view is None:
            self._forget(key)
            return None
        now = self._clock()
        silent = silence(found, self._after_s, now)
        (self._overdue.add if silent.overdue else self._overdue.discard)(key)
        if silent.next_in_s is not None:
            self._queue.add_after(key, silent.next_in_s)
        if self._publisher.has(key):
            self._queue.add(key)
            return None
        made = tell_announced(view, found, silent.overdue, now)
        if made is None:
            self._queue.forget(key)
            self._submitted.pop(key, None)
            return None
        if pause_s := self._contested.pause_s(key):
            self._queue.add_after(key, pause_s)
            return None
        self._again(key, made.condition)
        return Plan(key, publication=made.publication, events=made.events), view

    def _again(self, key: ServiceKey, wanted: Condition) -> None:
        """It is looked at again, to see whether the write was taken; later each time that the same one was not."""
        before = self._submitted.get(key)
        self._submitted[key] = wanted
        if before is None or (before.reason, before.message) != (wanted.reason, wanted.message):
            self._queue.add(key)
        else:
            self._queue.retry(key)

    def _forget(self, key: ServiceKey) -> None:
        self._overdue.discard(key)
        self._contested.settled(key)
        self._submitted.pop(key, None)
        self._queue.forget(key)
