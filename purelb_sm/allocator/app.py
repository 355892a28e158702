"""The allocator: caches, leadership, the book; and an orderly end.

Two guards keep two allocators from deciding at once: the Lease, by which only one tries (liveness), and the term in
the database, by which only one can commit (safety).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from datetime import datetime

import structlog

from purelb_sm.allocator.cluster import KubeCluster
from purelb_sm.allocator.engine import Engine
from purelb_sm.allocator.intake import Intake
from purelb_sm.allocator.leading import Leading
from purelb_sm.allocator.metrics import AllocatorMetrics
from purelb_sm.allocator.steady import SteadyClock
from purelb_sm.allocator.thread import BookThread
from purelb_sm.domain import names
from purelb_sm.errors import DatabaseUnavailable, StoreError, TermLost
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.events import EventRecorder
from purelb_sm.kube.leases import LeaderElection
from purelb_sm.settings import AllocatorSettings
from purelb_sm.store import Book

log = structlog.get_logger(__name__)

Clock = Callable[[], datetime]

LAST_HEAD_S = 0.5
"""An end waits no longer than this for the last head of the history: somebody may have the database locked."""


def identity() -> str:
    """Unique among allocators, and readable in the Lease: host name and process id."""
    return f"{socket.gethostname()}_{os.getpid()}"


class Allocator:
    """One allocator. `run()` works until cancelled."""

    def __init__(self, settings: AllocatorSettings, client: KubeClient, book: Book, clock: Clock | None = None) -> None:
        self.metrics = AllocatorMetrics()
        self.leading: Leading | None = None
        self._settings = settings
        self._client = client
        self._book = book
        self._clock = clock or SteadyClock()
        self._thread = BookThread()
        self._identity = settings.identity or identity()
        self._recorder = EventRecorder(client, names.ALLOCATOR, self._identity)
        self.intake = Intake(client, settings.install_namespace)
        self._election = LeaderElection(
            client,
            self._identity,
            namespace=settings.install_namespace,
            duration_s=settings.leader_lease_s,
            renew_deadline_s=settings.leader_renew_s,
            retry_s=settings.leader_retry_s,
        )

    async def run(self) -> None:
        """Keeps the caches, and leads whenever elected. On the way out: transactions end, the Lease is let go (D9)."""
        async with AsyncExitStack() as ending:
            async with self._recorder:
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self.intake.run())
                        group.create_task(self._candidate())
                finally:
                    # Beside the last Events, not after them: together they have to end in time.
                    closing = asyncio.create_task(self._thread.close())
                    ending.push_async_callback(lambda: closing)

    def checks(self) -> dict[str, bool]:
        """For /readyz: a standby with fresh caches is ready too."""
        leading = self.leading
        return {"api": self.intake.well, "database": leading is None or leading.database_well}

    async def _candidate(self) -> None:
        await self.intake.synced()
        await self._election.run(self._lead)

    async def _lead(self) -> None:
        """One term. Returns when the term is lost, and then the Lease is let go for another to lead."""
        settings = self._settings
        try:
            term = await self._thread.call(self._book.raise_term, self._clock())
        except DatabaseUnavailable as error:
            log.error("cannot_lead", error=str(error))
            return
        engine = Engine(
            self._book,
            term,
            clock=self._clock,
            load_balancer_class=settings.load_balancer_class,
            default_class=settings.default_class,
            settle_s=settings.settle_s,
        )
        cluster = KubeCluster(
            self._client, self._recorder, self.intake.services, self.intake.groups, settings.install_namespace
        )
        self.metrics.term.set(term)
        self.metrics.leading.set(1)
        self.leading = Leading(
            engine,
            self._thread,
            self.intake,
            cluster,
            self.metrics,
            batch_max=settings.batch_max,
            publish_concurrency=settings.publish_concurrency,
            reservations_poll_s=settings.reservations_poll_s,
            unannounced_s=settings.unannounced_s,
            listen_s=2 * settings.settle_s,
            clock=self._clock,
            show_head=self._show_head,
        )
        try:
            await self.leading.run()
        except* TermLost as lost:
            log.warning("term_lost", term=term, error=str(lost.exceptions[0]))
        finally:
            self.metrics.leading.set(0)
            self.intake.stop_leading()
            self.leading = None
            # The last word goes out with the Lease. Behind whatever transaction still runs in the book's thread.
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(LAST_HEAD_S):
                    self._show_head(await self._thread.call(self._book.head))

    def _show_head(self, head: tuple[int, str]) -> None:
        """The head of the history goes into the Lease with its next renewal, so that a cut-off tail shows (B4)."""
        self._election.set_annotation(names.HISTORY_HEAD, f"{head[0]}:{head[1]}")
