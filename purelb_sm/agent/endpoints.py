"""On which nodes Services have endpoints that take traffic (C10, C18).

Asked only for Services whose addresses follow their endpoints, so EndpointSlices are not watched before there is one:
in many clusters they are the busiest kind of all. Kept of each slice is which nodes it names, once each, in values that
all slices share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Final

import structlog

from purelb_sm.domain.views import EndpointSliceView, EndpointView, ServiceKey
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.objects import ENDPOINT_SLICE, Data, ObjectKey, decode_endpoint_slice
from purelb_sm.kube.reflector import Change, Reflector

log = structlog.get_logger(__name__)

UNREADABLE_AFTER_S: Final = 30.0
"""An agent that cannot read EndpointSlices for so long elects as if nobody had asked for nodes with endpoints. It is
long, since one that is alone in this may take an address that another node holds by its endpoints."""
SHARED_MAX: Final = 4096


class ServiceEndpoints:
    """Implements `domain.announce.Endpoints`. Run `run()` as a task.

    `changed` is told of each Service whose endpoints are elsewhere now, and, with None, that the first answers are
    there, or that there will be none for now.
    """

    def __init__(
        self,
        client: KubeClient,
        node: str,
        clock: Callable[[], float],
        changed: Callable[[ServiceKey | None], None],
        unreadable_after_s: float = UNREADABLE_AFTER_S,
    ) -> None:
        self._node = node
        self._changed = changed
        self._unreadable_after_s = unreadable_after_s
        self._needed = asyncio.Event()
        self._unreadable = False
        self._slices_of: dict[ServiceKey, tuple[ObjectKey, ...]] = {}
        self._shared: dict[tuple[str, bool], EndpointView] = {}
        self._slices = Reflector(client, replace(ENDPOINT_SLICE, decode=self._decode), clock=clock)
        self._slices.on_change(self._slice_changed)

    def need(self) -> None:
        """There is a Service that asks."""
        self._needed.set()

    def here(self, service: ServiceKey) -> bool | None:
        """See `domain.announce.Endpoints`."""
        if not self._slices.synced.is_set():
            return None
        return any(endpoint.node == self._node for endpoint in self._of(service))

    def nodes(self, service: ServiceKey) -> Collection[str] | None:
        """See `domain.announce.Endpoints`."""
        if not self._slices.synced.is_set():
            return frozenset() if self._unreadable else None
        ready = frozenset(endpoint.node for endpoint in self._of(service) if endpoint.ready)
        # As kube-proxy does (KEP-1669): what terminates gets traffic where there is nothing else.
        return ready or frozenset(endpoint.node for endpoint in self._of(service))

    async def run(self) -> None:
        """Watches EndpointSlices from when they are needed, until cancelled."""
        await self._needed.wait()
        log.info("watching_endpoints", why="a Service whose addresses follow its endpoints")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._slices.run())
            group.create_task(self._wait_no_longer())
            await self._slices.synced.wait()
            self._changed(None)

    async def _wait_no_longer(self) -> None:
        await asyncio.sleep(self._unreadable_after_s)
        if not self._slices.synced.is_set():
            log.error("endpoints_not_read", since_s=self._unreadable_after_s)
            self._unreadable = True
            self._changed(None)

    def _of(self, service: ServiceKey) -> Iterator[EndpointView]:
        """The endpoints that take traffic, a node perhaps more than once."""
        for key in self._slices_of.get(service, ()):
            view = self._slices.get(key)
            yield from view.endpoints if view is not None else ()

    # Slices.

    def _decode(self, data: Data) -> EndpointSliceView:
        view = decode_endpoint_slice(data)
        return replace(view, endpoints=self._kept(view.endpoints))

    def _kept(self, endpoints: Iterable[EndpointView]) -> tuple[EndpointView, ...]:
        """Nodes with an endpoint that is ready, or at least still serves while it terminates; in one order only."""
        ready: dict[str, bool] = {}
        for endpoint in endpoints:
            if endpoint.node and (endpoint.ready or (endpoint.serving and endpoint.terminating)):
                ready[endpoint.node] = ready.get(endpoint.node, False) or endpoint.ready
        return tuple(self._share(node, ready[node]) for node in sorted(ready))

    def _share(self, node: str, ready: bool) -> EndpointView:
        if len(self._shared) >= SHARED_MAX:
            self._shared.clear()
        return self._shared.setdefault((node, ready), EndpointView(node, ready, serving=True, terminating=not ready))

    def _slice_changed(self, change: Change, old: EndpointSliceView | None, new: EndpointSliceView | None) -> None:
        before, after = _meaning(old), _meaning(new)
        if before == after:
            return
        for service, view in ((before[0], old), (after[0], new)):
            if service is not None and view is not None:
                self._index(service, (view.namespace, view.name), present=view is new)
        if self._slices.synced.is_set():
            for service in dict.fromkeys((before[0], after[0])):
                if service is not None:
                    self._changed(service)

    def _index(self, service: ServiceKey, key: ObjectKey, *, present: bool) -> None:
        others = tuple(one for one in self._slices_of.get(service, ()) if one != key)
        found = (*others, key) if present else others
        if found:
            self._slices_of[service] = found
        else:
            self._slices_of.pop(service, None)


def _meaning(view: EndpointSliceView | None) -> tuple[ServiceKey | None, tuple[EndpointView, ...]]:
    """The Service that a slice tells something of, and what it tells; a slice without endpoints tells nothing."""
    return (view.service, view.endpoints) if view is not None and view.endpoints else (None, ())
