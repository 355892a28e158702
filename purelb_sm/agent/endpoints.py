"""Which Services have an endpoint on this node that takes traffic (C10).

Asked only for remote Services with `externalTrafficPolicy: Local`, so EndpointSlices are not watched before there is
one: in many clusters they are the busiest kind of all. Kept of each is what concerns this node: yes or no.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from purelb_sm.domain.views import EndpointSliceView, EndpointView, ServiceKey
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.objects import ENDPOINT_SLICE, Data, decode_endpoint_slice
from purelb_sm.kube.reflector import Change, Reflector

log = structlog.get_logger(__name__)

_HERE = EndpointView(node="", ready=True, serving=True, terminating=False)


class LocalEndpoints:
    """Implements `domain.announce.Endpoints`. Run `run()` as a task.

    `changed` is told of each Service for which the answer is another now, and, with None, that the first answers are
    there.
    """

    def __init__(
        self,
        client: KubeClient,
        node: str,
        clock: Callable[[], float],
        changed: Callable[[ServiceKey | None], None],
    ) -> None:
        self._node = node
        self._changed = changed
        self._needed = asyncio.Event()
        self._counts: dict[ServiceKey, int] = {}
        self._slices = Reflector(client, replace(ENDPOINT_SLICE, decode=self._decode), clock=clock)
        self._slices.on_change(self._slice_changed)

    def need(self) -> None:
        """There is a Service that asks."""
        self._needed.set()

    def here(self, service: ServiceKey) -> bool | None:
        """See `domain.announce.Endpoints`."""
        return self._counts.get(service, 0) > 0 if self._slices.synced.is_set() else None

    async def run(self) -> None:
        """Watches EndpointSlices from when they are needed, until cancelled."""
        await self._needed.wait()
        log.info("watching_endpoints", why="a remote Service with externalTrafficPolicy Local")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._slices.run())
            await self._slices.synced.wait()
            self._changed(None)

    def _decode(self, data: Data) -> EndpointSliceView:
        view = decode_endpoint_slice(data)
        return replace(view, endpoints=(_HERE,) if any(map(self._takes_traffic, view.endpoints)) else ())

    def _takes_traffic(self, endpoint: EndpointView) -> bool:
        """Ready, or at least still serving while it terminates (KEP-1669)."""
        return endpoint.node == self._node and (endpoint.ready or (endpoint.serving and endpoint.terminating))

    def _slice_changed(self, change: Change, old: EndpointSliceView | None, new: EndpointSliceView | None) -> None:
        before = old.service if old is not None and old.endpoints else None
        after = new.service if new is not None and new.endpoints else None
        if before == after:
            return
        for service, step in ((before, -1), (after, 1)):
            if service is not None:
                self._count(service, step)

    def _count(self, service: ServiceKey, step: int) -> None:
        count = self._counts.get(service, 0) + step
        if count > 0:
            self._counts[service] = count
        else:
            self._counts.pop(service, None)
        if (count > 0) != (count - step > 0) and self._slices.synced.is_set():
            self._changed(service)
