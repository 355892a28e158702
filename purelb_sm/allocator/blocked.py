"""Which Services wait for what others have: an address, one to share, a port of it, room in a quota; or for a node.

They are planned again when that is given up, and not before: a refusal is no loop (spec A).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Set
from itertools import islice

from purelb_sm.domain.quota import Room, may_be_served
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
        wanted = dict.fromkeys(obstacles)
        for obstacle in self._obstacles.pop(key, ()):
            if obstacle in wanted:
                # It keeps its place among those who wait.
                continue
            waiters = self._waiters[obstacle]
            waiters.pop(key, None)
            if not waiters:
                del self._waiters[obstacle]
        if wanted:
            self._obstacles[key] = tuple(wanted)
            for obstacle in wanted:
                self._waiters.setdefault(obstacle, {}).setdefault(key)

    def concerned(self, keys: Iterable[ServiceKey], cleared: Set[Hashable]) -> list[ServiceKey]:
        """Those of `keys`, in their order, that wait for one of these, or for nothing that is known."""
        return [key for key in keys if not (waits := self._obstacles.get(key)) or not cleared.isdisjoint(waits)]

    def waiting_for(self, cleared: Iterable[Hashable]) -> list[ServiceKey]:
        """Who waits for one of these, the longest waiting first."""
        rooms: list[Room] = []
        found: dict[ServiceKey, None] = {}
        for obstacle in cleared:
            if isinstance(obstacle, Room):
                rooms.append(obstacle)
            else:
                found |= self._waiters.get(obstacle, {})
        for room, number in may_be_served(rooms):
            found |= dict.fromkeys(islice(self._waiters.get(room, ()), number))
        return list(found)
