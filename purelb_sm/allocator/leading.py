"""One term of leadership: the loops that take up marks, and what each does about them.

Every loop survives a database or an API server that is away: what it could not do stays marked, and is done when they
are back. Only the loss of the term ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TypeVar

import structlog

from purelb_sm.allocator.blocked import Blocked
from purelb_sm.allocator.cluster import KubeCluster
from purelb_sm.allocator.contested import Contested
from purelb_sm.allocator.engine import Engine
from purelb_sm.allocator.intake import Intake
from purelb_sm.allocator.metrics import AllocatorMetrics
from purelb_sm.allocator.notices import Notices
from purelb_sm.allocator.publisher import Publisher
from purelb_sm.allocator.scope import OutOfScope
from purelb_sm.allocator.teller import GroupTeller
from purelb_sm.allocator.thread import BookThread
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.announced import Announcers
from purelb_sm.domain.book import Hold, Join, Leave, Plan, Reclaim, Refuse
from purelb_sm.domain.ranges import Nodes
from purelb_sm.domain.usage import GroupUsage
from purelb_sm.domain.views import ServiceKey, ServiceView
from purelb_sm.errors import DatabaseUnavailable, StoreError, TermLost

log = structlog.get_logger(__name__)

T = TypeVar("T")

DATABASE_RETRY_S = 1.0
RETRY_LAST_S = 10.0
UNREAD_RETRY_S = 10.0
HEAD_PERIOD_S = 1.0
WAITING_MAX = 10_000
SETTLED = 100
"""So many of those who have what they show are looked at, before whoever comes now has a turn."""
PREFERRED = 500
"""So many of those who wait are planned before anybody else; a release must not hold up all others for long."""


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
        reservations_poll_s: float,
        unannounced_s: float,
        listen_s: float,
        clock: Callable[[], datetime],
        show_head: Callable[[tuple[int, str]], None],
    ) -> None:
        self._engine = engine
        self._thread = thread
        self._intake = intake
        self._metrics = metrics
        self._batch_max = batch_max
        self._reservations_poll_s = reservations_poll_s
        self._clock = clock
        self._show_head = show_head
        self._head_moved = asyncio.Event()
        self._waiting: dict[ServiceKey, None] = {}
        self._blocked = Blocked()
        self._contested = Contested()
        self.database_well = True
        self._all_seen = False
        self._publisher = Publisher(
            cluster,
            self._requeue,
            concurrency=publish_concurrency,
            metrics=metrics,
            taken_off=lambda _: intake.releases_wanted.set(),
        )
        self._teller = GroupTeller(cluster, self._usage, metrics, clock)
        self._out_of_scope = OutOfScope(cluster, intake.namespace)
        self._planning = asyncio.Lock()
        self._notices = Notices(
            self._announcers,
            intake.services.get,
            self._publisher,
            self._planning,
            metrics,
            clock,
            after_s=unannounced_s,
            listen_s=listen_s,
        )

    async def run(self) -> None:
        """Looks at everything once, then at what changes."""
        self._intake.lead()
        await self._insist(self._set_groups)
        await self._insist(self._set_reach)
        showing, asking = self._intake.relevant()
        booked = await self._insist(lambda: self._thread.call(self._engine.holdings))
        known = set(showing) | set(asking)
        gone = [key for key in booked if key not in known]
        just = {key: key in booked and self._intake.shows_just(key, *booked[key]) for key in showing}
        waited = await self._insist(lambda: self._thread.call(self._engine.waiting_keys, WAITING_MAX))
        waiting, theirs = set(waited), set(asking)
        waited = [key for key in waited if key in theirs]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publisher.run())
            group.create_task(self._teller.run())
            # Those that show what the book has not first (adopted before anything is given), then gone (their claims
            # may be asked for), then those who are known to wait. The rest come in turn with whoever comes now: they
            # may be one namespace's flood (E8). Those that show what they hold are looked at beside that.
            for keys in ([key for key in showing if not just[key]], gone, waited):
                await self._look_at(keys, self._batch_max)
            for key in asking:
                if key not in waiting:
                    self._intake.queue.add(key)
            group.create_task(self._services())
            group.create_task(self._groups())
            group.create_task(self._nodes())
            group.create_task(self._subnets())
            group.create_task(self._releases())
            group.create_task(self._heads())
            group.create_task(self._reservations())
            group.create_task(self._notices.run(self._live_keys))
            await self._look_at([key for key in showing if just[key]], min(self._batch_max, SETTLED))
            log.info("leading", term=self._engine.term, services=len(known), gone=len(gone))
            self._all_seen = True

    async def _look_at(self, keys: Sequence[ServiceKey], size: int) -> None:
        """Plans them in this order, so many at once, no faster than what comes of it is written."""
        for start in range(0, len(keys), size):
            async with self._planning:
                await self._plan_all(keys[start : start + size])
            await self._publisher.room()

    async def _live_keys(self) -> list[ServiceKey]:
        return await self._insist(lambda: self._thread.call(self._engine.live_keys))

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does `work`, again and again while the database is away or the work fails otherwise."""
        failures = 0
        while True:
            try:
                result = await work()
            except TermLost:
                raise
            except StoreError as error:
                failures += 1
                self._metrics.database_errors.inc()
                if self.database_well:
                    log.error("database_unavailable", error=str(error))
                self.database_well = False
            except Exception:
                # A mistake of ours: what else there is to do goes on, and this is tried again.
                failures += 1
                log.exception("work_failed", tries=failures)
            else:
                if failures:
                    self._over_it()
                return result
            await asyncio.sleep(min(RETRY_LAST_S, DATABASE_RETRY_S * 1.5 ** (failures - 1)))

    def _over_it(self) -> None:
        """What failed may have been kept all the same, and then nobody was told what it did: look at all of it."""
        if not self.database_well:
            log.info("database_back")
        self.database_well = True
        self._head_moved.set()
        self._intake.releases_wanted.set()
        self._intake.nodes_changed.set()
        for key in self._waiting:
            self._intake.queue.add(key)

    @property
    def at_rest(self) -> bool:
        """Whether nothing that came in waits to be planned, written or told, now or at a later try."""
        queue = self._intake.queue
        untold = self._publisher.writing + self._teller.untold + self._notices.untold
        return self.database_well and self._all_seen and not (len(queue) + queue.delayed + untold)

    # Services.

    def _requeue(self, key: ServiceKey, delay_s: float) -> None:
        if delay_s:
            self._intake.queue.add_after(key, delay_s)
        else:
            self._intake.queue.add(key)

    async def _services(self) -> None:
        queue = self._intake.queue
        while True:
            keys = await queue.get_batch(min(self._batch_max, await self._publisher.room()))
            self._metrics.queue.set(len(queue))
            async with self._planning:
                await self._plan_all(keys)

    async def _plan_all(self, keys: Sequence[ServiceKey]) -> None:
        """Plans these in this order. Those with a write under way come back to the queue when that is over."""
        for start in range(0, len(keys), self._batch_max):
            ready = [key for key in keys[start : start + self._batch_max] if not self._publisher.busy(key)]
            if ready:
                await self._insist(partial(self._plan, ready))

    async def _plan(self, keys: Sequence[ServiceKey]) -> None:
        views = self._intake.views(keys)
        self._notices.reworded(self._intake.take_reworded(keys))
        for key in keys:
            if key not in views:
                # Nobody tells us when it goes, as nobody could read what went.
                self._intake.queue.add_after(key, UNREAD_RETRY_S)
        if not views:
            return
        with self._metrics.commit.time():
            plans = await self._thread.call(self._engine.plan_batch, views)
        self._metrics.batch.observe(len(keys))
        if self._engine.unsettled:
            self._intake.releases_wanted.set()
        shown: list[tuple[Plan, ServiceView]] = []
        for key in set(views).difference(made.key for made in plans):
            self._metrics.plans_failed.inc()
            self._intake.queue.retry(key)
        for made in plans:
            self._count(made)
            self._notices.planned(made)
            self._intake.queue.forget(made.key)
            view = views[made.key]
            if made.again:
                self._intake.queue.add(made.key)
            if made.actions or view is None:
                self._contested.settled(made.key)
            if view is None or not made.told:
                continue
            if not made.actions and (pause_s := self._contested.pause_s(made.key)):
                self._intake.queue.add_after(made.key, pause_s)
            else:
                shown.append((made, view))
        for key in self._blocked.waiting_for(obstacle for made in plans for obstacle in made.cleared):
            self._intake.queue.add(key)
        if any(made.actions for made in plans):
            self._head_moved.set()
            self._teller.count()
        await self._publisher.submit(shown)

    def _count(self, made: Plan) -> None:
        if made.waiting:
            self._waiting[made.key] = None
        else:
            self._waiting.pop(made.key, None)
        self._blocked.note(made.key, made.obstacles)
        self._metrics.waiting.set(len(self._waiting))
        for action in made.actions:
            if isinstance(action, Hold | Reclaim | Join):
                self._metrics.allocated.inc()
            elif isinstance(action, Refuse):
                self._metrics.rejected.labels(action.reason.value).inc()
            elif isinstance(action, Leave):
                self._intake.releases_wanted.set()

    async def _serve_waiting(self, freed: Sequence[Address]) -> None:
        """What came free is offered to those who wait, the longest waiting first, then to those who want more (A29).

        Called under the lock, so that nobody who comes at this moment is planned before them.
        """
        if not self._waiting:
            return
        keys = await self._insist(lambda: self._thread.call(self._engine.waiting_keys, WAITING_MAX))
        keys = list(dict.fromkeys([*keys, *self._waiting]))
        # Thousands may wait for what these are not: they must not stand before the one who waits for one of them.
        cleared = await self._thread.call(self._engine.cleared_by, freed)
        if cleared is not None:
            keys = self._blocked.concerned(keys, cleared)
        size = max(16, 2 * len(freed))
        for start in range(0, PREFERRED, size):
            if not keys[start:] or not await self._thread.call(self._engine.any_free, freed):
                return
            await self._plan_all(keys[start : min(start + size, PREFERRED)])
        for key in keys[PREFERRED:]:
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
            if await self._insist(self._set_groups):
                await self._look_at_all()

    async def _set_groups(self) -> bool:
        """Takes the groups as they are now; True where plans may come out differently."""
        self._intake.groups_changed.clear()
        views, strangers = self._intake.group_views()
        self._metrics.out_of_scope.set(self._out_of_scope.tell(strangers))
        verdicts = await self._thread.call(self._engine.set_groups, views)
        self._teller.tell(views, verdicts)
        return verdicts.changed

    async def _usage(self) -> Mapping[str, GroupUsage]:
        return await self._insist(lambda: self._thread.call(self._engine.take_usage))

    async def _look_at_all(self) -> None:
        """Groups have changed: those who wait may be served now, and what holders show of their group may differ."""
        waiting = await self._insist(lambda: self._thread.call(self._engine.waiting_keys, WAITING_MAX))
        showing, asking = self._intake.relevant()
        for key in (*waiting, *self._waiting, *showing, *asking):
            self._intake.queue.add(key)

    # Nodes.

    async def _subnets(self) -> None:
        while True:
            await self._intake.subnets_changed.wait()
            if await self._insist(self._set_reach):
                for key in self._blocked.waiting_for([Nodes.ELSEWHERE]):
                    self._intake.queue.add(key)

    async def _set_reach(self) -> bool:
        """Takes the subnets of the live nodes as they are now; True where those who wait may be served by it."""
        self._intake.subnets_changed.clear()
        return await self._thread.call(self._engine.set_reach, self._intake.live_subnets())

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
        for outcome in outcomes:
            self._notices.moved(outcome.changed)
        booked = sum(outcome.booked + outcome.made_up for outcome in outcomes)
        self._metrics.reports.inc(booked)
        if booked:
            self._intake.releases_wanted.set()
            self._head_moved.set()

    async def _lose_the_dead(self) -> None:
        announcing = await self._thread.call(self._engine.announcing_nodes)
        dead = announcing - self._intake.liveness.live() - self._intake.leaving()
        if dead:
            log.warning("nodes_lost", nodes=sorted(dead))
            for outcome in await self._thread.call(self._engine.lose_nodes, dead, "its Lease lapsed"):
                self._notices.moved(outcome.changed)
            self._intake.releases_wanted.set()
            self._head_moved.set()

    async def _announcers(self, keys: Sequence[ServiceKey]) -> Mapping[ServiceKey, Announcers]:
        return await self._insist(lambda: self._thread.call(self._engine.announcers, keys))

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
        async with self._planning:
            done = await self._thread.call(self._engine.release_pass, self._intake.shows, self._intake.node_names())
            if done.freed:
                await self._serve_waiting(done.freed)
        for key in self._waiting if done.unlocked else done.claims:
            self._intake.queue.add(key)
        self._metrics.releasing.set(len(done.waits_for))
        if done.confirmed or done.freed or done.ended or done.unlocked:
            self._head_moved.set()
            self._teller.count()
            # What is confirmed may be free at once (no quarantine), and more may be due than one pass takes.
            self._intake.releases_wanted.set()
        return done.again_at

    async def _reservations(self) -> None:
        """Nobody tells us when a person reserves an address or lifts that. Any transaction sees it; while there are
        none, one number is read now and then."""
        while True:
            await asyncio.sleep(self._reservations_poll_s)
            if await self._insist(lambda: self._thread.call(self._engine.reservations_changed)):
                self._intake.releases_wanted.set()
