"""One term of leadership: the loops that take up marks, and what each does about them.

Every loop survives a database or an API server that is away: what it could not do stays marked, and is done when they
are back. Only the loss of the term ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TypeVar

import structlog

from purelb_sm.allocator.cluster import KubeCluster
from purelb_sm.allocator.engine import Engine, GroupVerdicts
from purelb_sm.allocator.groups import group_notice
from purelb_sm.allocator.intake import Intake
from purelb_sm.allocator.metrics import AllocatorMetrics
from purelb_sm.allocator.publisher import Publisher
from purelb_sm.allocator.thread import BookThread
from purelb_sm.domain.book import Hold, Leave, Plan, Reclaim, Refuse
from purelb_sm.domain.views import ServiceKey, ServiceView
from purelb_sm.errors import DatabaseUnavailable, KubeError

log = structlog.get_logger(__name__)

T = TypeVar("T")

DATABASE_RETRY_S = 1.0
HEAD_PERIOD_S = 1.0
WAITING_MAX = 10_000


class Leading:
    """`run()` returns only by TermLost or cancellation. `database_well` feeds readiness."""

    def __init__(
        self,
        engine: Engine,
        thread: BookThread,
        intake: Intake,
        cluster: KubeCluster,
        metrics: AllocatorMetrics,
        *,
        batch_max: int,
        publish_concurrency: int,
        clock: Callable[[], datetime],
        show_head: Callable[[tuple[int, str]], None],
    ) -> None:
        self._engine = engine
        self._thread = thread
        self._intake = intake
        self._cluster = cluster
        self._metrics = metrics
        self._batch_max = batch_max
        self._clock = clock
        self._show_head = show_head
        self._head_moved = asyncio.Event()
        self._waiting: dict[ServiceKey, None] = {}
        self.database_well = True
        self._publisher = Publisher(
            cluster,
            self._requeue,
            concurrency=publish_concurrency,
            metrics=metrics,
            published=lambda _: intake.releases_wanted.set(),
        )

    async def run(self) -> None:
        """Looks at everything once, then at what changes."""
        self._intake.lead()
        await self._insist(self._look_at_groups)
        showing, asking = self._intake.relevant()
        booked = await self._insist(lambda: self._thread.call(self._engine.live_keys))
        known = set(showing) | set(asking)
        gone = [key for key in booked if key not in known]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publisher.run())
            # Shown first (adopted before anything is given), then gone (their claims may be asked for), then the rest.
            for keys in (showing, gone, asking):
                for start in range(0, len(keys), self._batch_max):
                    chunk = keys[start : start + self._batch_max]
                    await self._insist(partial(self._plan, chunk))
            log.info("leading", term=self._engine.term, services=len(known), gone=len(gone))
            group.create_task(self._services())
            group.create_task(self._groups())
            group.create_task(self._nodes())
            group.create_task(self._releases())
            group.create_task(self._heads())

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does `work`, again and again while the database is away."""
        while True:
            try:
                result = await work()
            except DatabaseUnavailable as error:
                self._metrics.database_errors.inc()
                if self.database_well:
                    log.error("database_unavailable", error=str(error))
                self.database_well = False
                await asyncio.sleep(DATABASE_RETRY_S)
                continue
            if not self.database_well:
                log.info("database_back")
            self.database_well = True
            return result

    # Services.

    def _requeue(self, key: ServiceKey, delay_s: float) -> None:
        if delay_s:
            self._intake.queue.add_after(key, delay_s)
        else:
            self._intake.queue.add(key)

    async def _services(self) -> None:
        queue = self._intake.queue
        while True:
            keys = await queue.get_batch(self._batch_max)
            self._metrics.queue.set(len(queue))
            ready = [key for key in keys if not self._publisher.busy(key)]
            if ready:
                await self._insist(partial(self._plan, ready))

    async def _plan(self, keys: Sequence[ServiceKey]) -> None:
        views = {key: self._intake.services.get(key) for key in keys}
        with self._metrics.commit.time():
            plans = await self._thread.call(self._engine.plan_batch, views)
        self._metrics.batch.observe(len(keys))
        shown: list[tuple[Plan, ServiceView]] = []
        for made in plans:
            self._count(made)
            view = views[made.key]
            if made.again:
                self._intake.queue.add(made.key)
            if view is not None and (made.publication is not None or made.events):
                shown.append((made, view))
        if any(made.actions for made in plans):
            self._head_moved.set()
        await self._publisher.submit(shown)

    def _count(self, made: Plan) -> None:
        if made.waiting:
            self._waiting[made.key] = None
        else:
            self._waiting.pop(made.key, None)
        self._metrics.waiting.set(len(self._waiting))
        for action in made.actions:
            if isinstance(action, Hold | Reclaim):
                self._metrics.allocated.inc()
            elif isinstance(action, Refuse):
                self._metrics.rejected.labels(action.reason.value).inc()
            elif isinstance(action, Leave):
                self._intake.releases_wanted.set()

    async def _retry_waiting(self) -> None:
        """What was refused is tried again, the longest waiting first; then those that have an address but want more."""
        if not self._waiting:
            return
        for key in await self._thread.call(self._engine.waiting_keys, WAITING_MAX):
            self._intake.queue.add(key)
        for key in list(self._waiting):
            self._intake.queue.add(key)

    async def _heads(self) -> None:
        """Shows where the history ends, outside the database (B4): at most once a second, and only when it moved."""
        while True:
            await self._head_moved.wait()
            self._head_moved.clear()
            self._show_head(await self._insist(lambda: self._thread.call(self._engine.head)))
            await asyncio.sleep(HEAD_PERIOD_S)

    # Groups.

    async def _groups(self) -> None:
        while True:
            await self._intake.groups_changed.wait()
            await self._insist(self._look_at_groups)

    async def _look_at_groups(self) -> None:
        self._intake.groups_changed.clear()
        views = list(self._intake.groups.items().values())
        try:
            verdicts = await self._thread.call(self._engine.set_groups, views)
        except DatabaseUnavailable:
            self._intake.groups_changed.set()
            raise
        if verdicts.changed:
            await self._retry_waiting()
        await self._tell_groups(verdicts)

    async def _tell_groups(self, verdicts: GroupVerdicts) -> None:
        now = self._clock()
        for view in list(self._intake.groups.items().values()):
            notice = group_notice(view, verdicts.accepted.get(view.name), verdicts.refused.get(view.name), now)
            if notice is None:
                continue
            try:
                await self._cluster.tell_group(notice)
            except KubeError as error:
                # A conflict brings a newer group, which is looked at by itself; anything else is told at the next look.
                log.warning("group_status_not_written", group=view.name, error=str(error))

    # Nodes.

    async def _nodes(self) -> None:
        while True:
            await self._intake.nodes_changed.wait()
            self._intake.nodes_changed.clear()
            await self._insist(self._take_reports)
            await self._insist(self._lose_the_dead)

    async def _take_reports(self) -> None:
        reports = self._intake.take_reporting()
        if not reports:
            return
        try:
            outcomes = await self._thread.call(self._engine.take_reports, reports)
        except DatabaseUnavailable:
            self._intake.remark(report.node for report in reports)
            raise
        booked = sum(outcome.booked + outcome.made_up for outcome in outcomes)
        self._metrics.reports.inc(booked)
        if booked:
            self._intake.releases_wanted.set()
            self._head_moved.set()

    async def _lose_the_dead(self) -> None:
        announcing = await self._thread.call(self._engine.announcing_nodes)
        dead = announcing - self._intake.liveness.live()
        if dead:
            log.warning("nodes_lost", nodes=sorted(dead))
            await self._thread.call(self._engine.lose_nodes, dead, "its Lease lapsed")
            self._intake.releases_wanted.set()
            self._head_moved.set()

    # Releases.

    async def _releases(self) -> None:
        again_at: datetime | None = None
        while True:
            wait_s = None if again_at is None else max(0.0, (again_at - self._clock()).total_seconds())
            # Not wait_for: in Python 3.11 it can swallow a cancellation that comes together with the wake-up.
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._intake.releases_wanted.wait()
            self._intake.releases_wanted.clear()
            again_at = await self._insist(self._release_pass)

    async def _release_pass(self) -> datetime | None:
        done = await self._thread.call(self._engine.release_pass, self._intake.shows, self._intake.node_names())
        self._metrics.releasing.set(len(done.waits_for))
        if done.confirmed or done.freed:
            self._head_moved.set()
            # What is confirmed may be free at once (no quarantine), and more may be due than one pass takes.
            self._intake.releases_wanted.set()
        if done.freed:
            await self._retry_waiting()
        return done.again_at
