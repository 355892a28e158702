"""Gratuitous ARP and unsolicited neighbour advertisements, after an address has come to this node (C7).

One task sends for all addresses, by when they are due: when a node takes over thousands, a task for each would weigh
more than all else that the agent remembers of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from purelb_sm.agent.ledger import Where
from purelb_sm.domain.agent_config import GarpConfig
from purelb_sm.net import KernelProtocol, NetError

log = structlog.get_logger(__name__)


@dataclass(slots=True, order=True)
class _Series:
    """What is still to be sent about one address. `due` is on the loop's clock; `pause_s` is to be made after it."""

    due: float
    where: Where = field(compare=False)
    left: int = field(compare=False)
    pause_s: float = field(compare=False)
    config: GarpConfig = field(compare=False)
    begun: bool = field(compare=False, default=False)


class Frames:
    """One series of frames per address and interface, each ended as soon as the address is not ours any more.

    Run `run()` as a task; what is not `async` may be called at any time. `on_first` is told when the first of a series
    has gone out, or could not. `counted` tells whether the others count on this node. While they do not, another may
    answer, and nothing is sent: an agent that was stopped for a while would draw the traffic away before it has heard
    what happened meanwhile. Whoever is counted again tells everything again.
    """

    def __init__(
        self,
        kernel: KernelProtocol,
        still_ours: Callable[[Where], bool],
        on_first: Callable[[Where], None] = lambda where: None,
    ) -> None:
        self.sent = 0
        self.config = GarpConfig()
        self.counted: Callable[[], bool] = lambda: True
        self._kernel = kernel
        self._still_ours = still_ours
        self._on_first = on_first
        self._series: dict[Where, _Series] = {}
        self._due: list[_Series] = []
        self._wake = asyncio.Event()

    def start(self, where: Where, *, at_once: bool = False) -> None:
        """Begins a series; one that still runs for the same address is replaced.

        `at_once`: another node has answered until now. The first goes out without the initial delay, so that traffic
        comes here, and the second after it: by then the other has withdrawn, and this corrects those who asked in
        between and heard the other first.
        """
        self.stop(where)
        if not self.config.enabled:
            return
        config, now = self.config, asyncio.get_running_loop().time()
        due, pause_s = now + config.initial_delay_s, config.interval_s
        if at_once:
            due, pause_s = now, config.initial_delay_s or config.interval_s
        self._queue(_Series(due, where, config.count, pause_s, config))

    def heard(self, where: Where) -> bool:
        """Whether the neighbours have been told of the address, as far as they are to be told at all; not while the
        others do not count on this node."""
        series = self._series.get(where)
        return self.counted() and (series is None or series.begun)

    def stop(self, where: Where) -> None:
        """Ends the series of this address, if there is one."""
        self._series.pop(where, None)

    async def run(self) -> None:
        """Sends what is due, until cancelled."""
        while True:
            self._wake.clear()
            pause_s = self._due[0].due - asyncio.get_running_loop().time() if self._due else None
            if pause_s is None or pause_s > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()
                continue
            series = heapq.heappop(self._due)
            # One that was stopped or replaced is still in the heap, and nothing more than that.
            if self._series.get(series.where) is series:
                await self._send(series)

    async def _send(self, series: _Series) -> None:
        address, interface = series.where
        if not self.counted():
            log.info("not_told_while_not_counted", address=str(address), interface=interface)
            self.stop(series.where)
            return
        verify = series.config.verify
        try:
            self.sent += await self._kernel.announce(
                address, interface, 0.0, 1, still_ours=lambda: not verify or self._still_ours(series.where)
            )
        except NetError as error:
            # The address is there and answers; only caches that still name another node are not corrected.
            log.warning("not_told_to_neighbours", address=str(address), interface=interface, error=str(error))
            self.stop(series.where)
        if not series.begun:
            series.begun = True
            self._on_first(series.where)
        if self._series.get(series.where) is not series:
            return
        series.left -= 1
        if series.left <= 0 or (verify and not self._still_ours(series.where)):
            self.stop(series.where)
        else:
            series.due += series.pause_s
            series.pause_s = series.config.interval_s
            self._queue(series)

    def _queue(self, series: _Series) -> None:
        self._series[series.where] = series
        heapq.heappush(self._due, series)
        self._wake.set()
