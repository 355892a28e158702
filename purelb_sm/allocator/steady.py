"""The time of day without its jumps: neither an operator's `date` nor NTP that finds it an hour off ends a quarantine.

What the allocator books are times of day, and how long something has lasted is the difference of two of them. So its
clock runs as fast as time passes, and follows the machine's time of day at a bounded rate (spec E7).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

log = structlog.get_logger(__name__)

RATE = 0.05
"""A duration comes out wrong by this share at most while the clock is on its way to the time of day."""
TOLD_S = 2.0
"""An offset of less is none: NTP steers a clock that runs well without a jump."""
HOPELESS = timedelta(days=1)
"""An offset of more is taken over at once: a machine without a battery starts in 1970, and NTP comes later."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def passed_s() -> float:
    """Seconds of a clock that nobody sets. It counts the time that a machine was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SteadyClock:
    """Call it for the time. Used from several threads. It goes back only to a time of day that is days away."""

    def __init__(self, wall: Callable[[], datetime] = utc_now, passed: Callable[[], float] = passed_s) -> None:
        self._wall, self._passed = wall, passed
        self._lock = threading.Lock()
        self._now, self._at = wall(), passed()
        self._astray = False

    def __call__(self) -> datetime:
        with self._lock:
            at = self._passed()
            step = timedelta(seconds=at - self._at)
            self._at = at
            self._now += step
            offset = self._wall() - self._now
            self._tell(offset)
            if abs(offset) > HOPELESS:
                self._now += offset
            else:
                self._now += max(-RATE * step, min(RATE * step, offset))
            return self._now

    def _tell(self, offset: timedelta) -> None:
        astray = abs(offset.total_seconds()) > TOLD_S
        if astray and not self._astray:
            log.warning("clock_jumped", by_s=round(offset.total_seconds(), 1))
        self._astray = astray
