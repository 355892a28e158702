"""Which nodes are alive, judged by their Leases and our own monotonic clock.

A node is dead when its Lease was not renewed for its duration **and we would have seen a renewal**. Silence alone
proves nothing: if the API server or our watch of it is away, nobody's renewals arrive, and taking all others for dead
would make every node announce every address. So only time in which renewals did come counts: ours, the leader's,
anybody's in the same namespace. After a longer gap every Lease has its full duration again, as at the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from purelb_sm.domain.names import NODE_LEASE_PREFIX
from purelb_sm.domain.views import LeaseView
from purelb_sm.kube.objects import ObjectKey
from purelb_sm.kube.reflector import Change

log = structlog.get_logger(__name__)

DEFAULT_DURATION_S: Final = 10.0
LONGEST_DURATION_S: Final = 300.0
"""A node cannot claim to be alive for longer than this after its last word."""
FRESH_S: Final = 3.0
"""Somebody must have renewed within this time for a verdict: agents renew every 2 s."""
GAP_S: Final = 5.0
"""After so long without anybody's renewal all start anew: a live node that renews every 2 s and retries may by then be
close to the end of its 10 s without fault."""

OnChange = Callable[[frozenset[str], frozenset[str]], None]


@dataclass(slots=True)
class _Pulse:
    at: float
    duration_s: float


class LeaseSource(Protocol):
    """What of a `Reflector[ObjectKey, LeaseView]` is needed here."""

    def items(self) -> Mapping[ObjectKey, LeaseView]: ...

    def on_change(self, callback: Callable[[Change, LeaseView | None, LeaseView | None], None]) -> None: ...


class Liveness:
    """The live nodes, kept from a reflector of the Leases of the install namespace. Run `run()` as a task.

    `fresh_s` and `gap_s`: see FRESH_S and GAP_S; they must be smaller where Leases are shorter than 10 s.
    """

    def __init__(
        self,
        leases: LeaseSource,
        *,
        fresh_s: float = FRESH_S,
        gap_s: float = GAP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fresh_s = fresh_s
        self._gap_s = gap_s
        self._clock = clock
        self._pulses: dict[str, _Pulse] = {}
        self._news_at = float("-inf")
        self._floor = float("-inf")
        self._live: frozenset[str] = frozenset()
        self._callbacks: list[OnChange] = []
        self._wake = asyncio.Event()
        for view in leases.items().values():
            self._lease_changed(Change.ADDED, None, view)
        leases.on_change(self._lease_changed)

    def live(self) -> frozenset[str]:
        """Names of the nodes that are alive now."""
        self.check()
        return self._live

    def on_change(self, callback: OnChange) -> None:
        """`callback(joined, left)` whenever the live set changes. It must not raise, wait or take long."""
        self._callbacks.append(callback)

    def next_expiry(self) -> float | None:
        """When, by our monotonic clock, the next node dies if nothing comes from it. None: no node is alive."""
        return min((self._expiry(self._pulses[node]) for node in self._live), default=None)

    @property
    def judging(self) -> bool:
        """Whether renewals come in, so that a missing one means something."""
        return self._clock() - self._news_at <= self._fresh_s

    def check(self) -> None:
        """Judges all Leases by the clock now, and tells what changed."""
        now = self._clock()
        judging = self.judging
        live = frozenset(
            node
            for node, pulse in self._pulses.items()
            if now < self._expiry(pulse) or (node in self._live and not judging)
        )
        self._become(live)

    async def run(self) -> None:
        """Waits for the next expiry or change, until cancelled."""
        while True:
            self._wake.clear()
            self.check()
            due = self.next_expiry()
            # What is overdue already could not be judged: then only news can bring it on.
            wait_s = due - self._clock() if due is not None and due > self._clock() else None
            # Not wait_for: in Python 3.11 it can swallow a cancellation that comes together with the wake-up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    def _expiry(self, pulse: _Pulse) -> float:
        return max(pulse.at, self._floor) + pulse.duration_s

    def _lease_changed(self, change: Change, old: LeaseView | None, new: LeaseView | None) -> None:
        now = self._clock()
        view = new or old
        if view is None:
            return
        if new is not None:
            self._news(now)
        if view.name.startswith(NODE_LEASE_PREFIX):
            self._take(view.name.removeprefix(NODE_LEASE_PREFIX), new, now)
        self._wake.set()

    def _news(self, now: float) -> None:
        if now - self._news_at > self._gap_s and self._pulses:
            log.info("renewals_seen_again", gap_s=round(now - self._news_at, 1))
            self._floor = now
        self._news_at = now

    def _take(self, node: str, new: LeaseView | None, now: float) -> None:
        if new is None or not new.holder:
            # Deleted or given back: it says itself that it is gone.
            self._pulses.pop(node, None)
        else:
            duration_s = min(new.duration_s, LONGEST_DURATION_S) if new.duration_s > 0 else DEFAULT_DURATION_S
            self._pulses[node] = _Pulse(now, duration_s)
        self.check()

    def _become(self, live: frozenset[str]) -> None:
        joined, left = live - self._live, self._live - live
        if not joined and not left:
            return
        self._live = live
        log.info("live_nodes_changed", joined=sorted(joined), left=sorted(left))
        for callback in self._callbacks:
            callback(joined, left)
