"""Which Services wait for what another has: a port of a shared address, or the address itself.

They are planned again when that is given up, and not before: a refusal is no loop (spec A).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from purelb_sm.domain.views import ServiceKey


class Blocked:
    """By obstacle and by Service. An obstacle that nobody waits for takes no room."""

    def __init__(self) -> None:
        self._waiters: dict[Hashable, dict[ServiceKey, None]] = {}
        self._obstacles: dict[ServiceKey, tuple[Hashable, ...]] = {}

    def __len__(self) -> int:
        return len(self._obstacles)

    def note(self, key: ServiceKey, obstacles: tuple[Hashable, ...]) -> None:
        """What this Service waits for now; empty where it waits for nothing of the kind."""
        for obstacle in self._obstacles.pop(key, ()):
            waiters = self._waiters[obstacle]
            waiters.pop(key, None)
            if not waiters:
                del self._waiters[obstacle]
        if obstacles:
            self._obstacles[key] = tuple(dict.fromkeys(obstacles))
            for obstacle in self._obstacles[key]:
                self._waiters.setdefault(obstacle, {})[key] = None

    def waiting_for(self, cleared: Iterable[Hashable]) -> list[ServiceKey]:
        """Who waits for one of these, the longest waiting first."""
        return list(dict.fromkeys(key for obstacle in cleared for key in self._waiters.get(obstacle, ())))
