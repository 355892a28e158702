"""Telling ServiceGroups what became of them, beside the work of the leader: nothing waits for these writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

import structlog

from purelb_sm.allocator.engine import GroupVerdicts
from purelb_sm.allocator.groups import GroupNotice, group_notice
from purelb_sm.domain.views import ObjectView
from purelb_sm.errors import Conflict, KubeError, NotFound

log = structlog.get_logger(__name__)

RETRY_FIRST_S = 0.5
RETRY_LAST_S = 30.0


class Cluster(Protocol):
    """What telling needs of the cluster."""

    async def tell_group(self, notice: GroupNotice) -> None: ...


class GroupTeller:
    """The last verdicts are told until they are written or newer ones take their place."""

    def __init__(self, cluster: Cluster, clock: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._clock = clock
        self._untold: dict[str, GroupNotice] = {}
        self._wake = asyncio.Event()

    def tell(self, views: Sequence[ObjectView], verdicts: GroupVerdicts) -> None:
        """`views` are those that the verdicts were made from: a newer version of a group is told of its own verdict."""
        now = self._clock()
        self._untold = {}
        for view in views:
            notice = group_notice(view, verdicts.accepted.get(view.name), verdicts.refused.get(view.name), now)
            if notice is not None:
                self._untold[view.name] = notice
        self._wake.set()

    @property
    def untold(self) -> int:
        """How many groups are still to be told."""
        return len(self._untold)

    async def run(self) -> None:
        """Writes until cancelled."""
        delay_s = RETRY_FIRST_S
        while True:
            await self._wake.wait()
            self._wake.clear()
            if all([await self._write(name) for name in list(self._untold)]):
                delay_s = RETRY_FIRST_S
                continue
            await asyncio.sleep(delay_s)
            delay_s = min(RETRY_LAST_S, delay_s * 2)
            self._wake.set()

    async def _write(self, name: str) -> bool:
        """False where it is worth trying again."""
        notice = self._untold.get(name)
        if notice is None:
            return True
        try:
            await self._cluster.tell_group(notice)
        except (Conflict, NotFound):
            # There is a newer version, or none any more: the watch says so, and then there is a newer verdict.
            pass
        except KubeError as error:
            log.warning("group_status_not_written", group=name, error=str(error))
            return False
        if self._untold.get(name) is notice:
            del self._untold[name]
        return True
