"""Gratuitous ARP and unsolicited neighbour advertisements, after an address has come to this node (C7)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from purelb_sm.agent.ledger import Where
from purelb_sm.domain.agent_config import GarpConfig
from purelb_sm.net import KernelProtocol, NetError

log = structlog.get_logger(__name__)


class Frames:
    """One series of frames per address and interface, each ended as soon as the address is not ours any more."""

    def __init__(self, kernel: KernelProtocol, still_ours: Callable[[Where], bool]) -> None:
        self.sent = 0
        self.config = GarpConfig()
        self._kernel = kernel
        self._still_ours = still_ours
        self._series: dict[Where, asyncio.Task[None]] = {}

    def start(self, where: Where) -> None:
        """Begins a series; one that still runs for the same address is replaced."""
        self.stop(where)
        if self.config.enabled:
            self._series[where] = asyncio.create_task(self._send(where, self.config), name=f"frames {where[0]}")

    def stop(self, where: Where) -> None:
        series = self._series.pop(where, None)
        if series is not None:
            series.cancel()

    async def close(self) -> None:
        series = list(self._series.values())
        for where in list(self._series):
            self.stop(where)
        await asyncio.gather(*series, return_exceptions=True)

    async def _send(self, where: Where, config: GarpConfig) -> None:
        address, interface = where
        try:
            self.sent += await self._kernel.announce(
                address,
                interface,
                config.initial_delay_s,
                config.count,
                config.interval_s,
                still_ours=(lambda: self._still_ours(where)) if config.verify else (lambda: True),
            )
        except NetError as error:
            # The address is there and answers; only caches that still name another node are not corrected.
            log.warning("not_told_to_neighbours", address=str(address), interface=interface, error=str(error))
        finally:
            if self._series.get(where) is asyncio.current_task():
                with contextlib.suppress(KeyError):
                    del self._series[where]
