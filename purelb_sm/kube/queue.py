"""The keys that wait for work: each once, taken in turn from every namespace, none of them polled for.

One namespace that makes 5,000 Services at once gets every second place of a batch while another namespace has anything
waiting, not all of them (E8).
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from purelb_sm.domain.views import ServiceKey

FIRST_RETRY_S: Final = 0.1
LAST_RETRY_S: Final = 60.0


class Timer(Protocol):
    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Timer]


class WorkQueue:
    """Used from one event loop. `add` while a key waits changes nothing; while it is being worked on, queues it again.

    `clock` and `call_later` are the loop's own unless given.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] | None = None,
        call_later: CallLater | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._call_later = call_later
        self._rng = rng or random.Random()  # noqa: S311  # jitter, not a secret
        self._waiting: OrderedDict[str, dict[ServiceKey, None]] = OrderedDict()
        self._count = 0
        self._due: dict[ServiceKey, float] = {}
        self._heap: list[tuple[float, ServiceKey]] = []
        self._timer: Timer | None = None
        self._timer_at = float("inf")
        self._failures: dict[ServiceKey, int] = {}
        self._ready = asyncio.Event()

    def __len__(self) -> int:
        """How many keys are ready now; those that are delayed do not count."""
        return self._count

    @property
    def delayed(self) -> int:
        return len(self._due)

    def add(self, key: ServiceKey) -> None:
        """Queues the key, unless it waits already."""
        keys = self._waiting.setdefault(key.namespace, {})
        if key not in keys:
            keys[key] = None
            self._count += 1
            self._ready.set()

    def add_after(self, key: ServiceKey, delay_s: float) -> None:
        """Queues the key in `delay_s` seconds. Of several delays of one key the shortest counts."""
        if delay_s <= 0:
            self.add(key)
            return
        due = self._now() + delay_s
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, key))
            self._arm()

    def retry(self, key: ServiceKey) -> float:
        """Queues a key whose work failed, later at each failure in a row, with jitter; answers with the delay."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures - 1, 30)) * self._rng.uniform(0.8, 1.2)
        self.add_after(key, delay_s)
        return delay_s

    def forget(self, key: ServiceKey) -> None:
        """The key's work succeeded: its next failure is its first."""
        self._failures.pop(key, None)

    def clear(self) -> None:
        """Drops everything: ready, delayed, and the memory of failures."""
        self._waiting.clear()
        self._due.clear()
        self._heap.clear()
        self._failures.clear()
        self._count = 0
        self._ready.clear()
        self._disarm()

    async def get_batch(self, limit: int) -> list[ServiceKey]:
        """Waits until there is a key, then takes up to `limit` of those that have queued up, namespaces in turn."""
        while not self._count:
            self._ready.clear()
            await self._ready.wait()
        return [self._take() for _ in range(min(limit, self._count))]

    def _take(self) -> ServiceKey:
        namespace, keys = next(iter(self._waiting.items()))
        key = next(iter(keys))
        del keys[key]
        self._count -= 1
        if keys:
            self._waiting.move_to_end(namespace)
        else:
            del self._waiting[namespace]
        return key

    # Delays.

    def _now(self) -> float:
        return self._clock() if self._clock is not None else asyncio.get_running_loop().time()

    def _arm(self) -> None:
        """One timer, for the earliest of all delays."""
        self._drop_outdated()
        if not self._heap or self._heap[0][0] == self._timer_at:
            return
        self._disarm()
        self._timer_at = self._heap[0][0]
        call_later = self._call_later or asyncio.get_running_loop().call_later
        self._timer = call_later(max(0.0, self._timer_at - self._now()), self._fire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, float("inf")

    def _drop_outdated(self) -> None:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)

    def _fire(self) -> None:
        due_until = max(self._now(), self._timer_at)
        self._timer, self._timer_at = None, float("inf")
        while self._heap and self._heap[0][0] <= due_until:
            due, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
        self._arm()
