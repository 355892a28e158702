"""Services on which somebody undoes what we write: another controller, a webhook, a tool that puts back what it knows.

Of two that answer each other at once, each drives the other as fast as the API server lets them. We put it right again
and again, but later each time while it goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from purelb_sm.domain.views import ServiceKey

log = structlog.get_logger(__name__)

FREE = 5
"""So many writes in a row that nothing in the book led to are made at once: people edit, and two writes may cross."""
FIRST_PAUSE_S = 0.2
LAST_PAUSE_S = 60.0
FORGET_S = 120.0
"""After so long without one, the next is the first."""


class Contested:
    """Costs nothing for Services that nobody undoes. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._writes: dict[ServiceKey, tuple[int, float]] = {}
        """How many in a row, and when the last one was made; the one that is longest ago first."""

    def pause_s(self, key: ServiceKey) -> float:
        """How long to wait before a write that the book has no reason for; 0: it is made now, and counts."""
        now = self._clock()
        self._forget(now)
        count, last = self._writes.get(key, (0, now))
        if count >= FREE:
            pause_s = last + min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (count - FREE)) - now
            if pause_s > 0:
                return pause_s
            log.warning("writes_undone", service=str(key), times=count)
        self._writes.pop(key, None)
        self._writes[key] = (count + 1, now)
        return 0.0

    def settled(self, key: ServiceKey) -> None:
        """The book has moved, or the Service is gone: what is written now is new."""
        self._writes.pop(key, None)

    def _forget(self, now: float) -> None:
        while self._writes:
            key, (_, last) = next(iter(self._writes.items()))
            if now - last < FORGET_S:
                return
            del self._writes[key]
