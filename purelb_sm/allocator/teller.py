"""Telling ServiceGroups what became of them, beside the work of the leader: nothing waits for these writes.

One look a second at most, at those groups only of which something may have changed: a burst of Services costs each
group one write a second, and what did not change costs none (spec A28).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import structlog

from purelb_sm.allocator.engine import GroupVerdicts
from purelb_sm.allocator.groups import GroupNotice, group_notice
from purelb_sm.allocator.metrics import AllocatorMetrics
from purelb_sm.domain.usage import GroupUsage
from purelb_sm.domain.views import ObjectView
from purelb_sm.errors import Conflict, KubeError, NotFound

log = structlog.get_logger(__name__)

PERIOD_S = 1.0
RETRY_LAST_S = 30.0

UNKNOWN = GroupUsage()


class Cluster(Protocol):
    """What telling needs of the cluster."""

    def group(self, name: str) -> ObjectView | None:
        """The group as last seen."""

    async def tell_group(self, notice: GroupNotice) -> None: ...


class GroupTeller:
    """The last verdicts and numbers are told until they are written or newer ones take their place.

    `usage` answers the numbers of the groups of which they may have changed since it was last asked.
    """

    def __init__(
        self,
        cluster: Cluster,
        usage: Callable[[], Awaitable[Mapping[str, GroupUsage]]],
        metrics: AllocatorMetrics,
        clock: Callable[[], datetime],
        period_s: float = PERIOD_S,
    ) -> None:
        self._cluster = cluster
        self._ask = usage
        self._metrics = metrics
        self._clock = clock
        self._period_s = period_s
        self._verdicts = GroupVerdicts({}, {}, changed=False)
        self._judged: dict[str, ObjectView] = {}
        self._usage: dict[str, GroupUsage] = {}
        self._untold: set[str] = set()
        self._wake = asyncio.Event()
        self._asking = False

    def tell(self, views: Sequence[ObjectView], verdicts: GroupVerdicts) -> None:
        """`views` are those that the verdicts were made from: a newer version of a group is told of its own verdict."""
        self._verdicts = verdicts
        self._judged = {view.name: view for view in views}
        self._untold = set(self._judged)
        self._wake.set()

    def count(self) -> None:
        """The numbers of some group may have changed."""
        self._wake.set()

    @property
    def untold(self) -> int:
        """How many groups are still to be told; one at least where numbers are still to be asked for."""
        return max(len(self._untold), int(self._asking or self._wake.is_set()))

    async def run(self) -> None:
        """Writes until cancelled."""
        delay_s = self._period_s
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._asking = True
            self._take(await self._ask())
            self._asking = False
            if all([await self._write(name) for name in sorted(self._untold)]):
                delay_s = self._period_s
            else:
                delay_s = min(RETRY_LAST_S, delay_s * 2)
                self._wake.set()
            await asyncio.sleep(delay_s)

    def _take(self, changed: Mapping[str, GroupUsage]) -> None:
        for name, usage in changed.items():
            self._usage[name] = usage
            self._metrics.show_pool(name, usage)
            if name in self._judged:
                self._untold.add(name)
        for name in [n for n, usage in self._usage.items() if usage.empty and n not in self._judged]:
            del self._usage[name]
            self._metrics.forget_pool(name)

    async def _write(self, name: str) -> bool:
        """False where it is worth trying again."""
        judged, view = self._judged.get(name), self._cluster.group(name)
        if judged is None or view is None or (judged.uid, judged.generation) != (view.uid, view.generation):
            # There is a newer version, or none any more: the watch says so, and then there is a newer verdict.
            self._untold.discard(name)
            return True
        accepted, refused = self._verdicts.accepted.get(name), self._verdicts.refused.get(name)
        notice = group_notice(view, accepted, refused, self._usage.get(name, UNKNOWN), self._clock())
        try:
            if notice is not None:
                await self._cluster.tell_group(notice)
        except (Conflict, NotFound):
            # Somebody else wrote it: the watch says so, and then it is told again.
            pass
        except KubeError as error:
            log.warning("group_status_not_written", group=name, error=str(error))
            return False
        if self._judged.get(name) is judged:
            self._untold.discard(name)
        return True
