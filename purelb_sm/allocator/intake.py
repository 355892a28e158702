"""What comes in from the cluster: caches that are kept by leaders and standbys alike, and marks of what has changed.

Only marks: which keys to plan again, which nodes reported, that groups changed. Whoever leads takes them up; on a
standby they are dropped, since a new leader looks at everything once anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from itertools import count
from typing import Any, Final

import structlog

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address, Network
from purelb_sm.domain.election import parse_subnets
from purelb_sm.domain.publication import branded, current_condition
from purelb_sm.domain.reports import NodeReport, join_slices, slice_name
from purelb_sm.domain.views import Condition, LeaseView, NodeView, ObjectView, ServiceKey, ServiceView
from purelb_sm.errors import InvalidInput
from purelb_sm.kube import objects
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.leases import Liveness
from purelb_sm.kube.queue import WorkQueue
from purelb_sm.kube.reflector import Change, Reflector

log = structlog.get_logger(__name__)

NODE_LABEL = names.PREFIX + "node"
LAST_WORDS_S: Final = 1.0
"""An agent that is told to stop reports, and then deletes its Lease; but the two come to us on different watches."""


class Intake:
    """The reflectors, and what they say has changed since it was last asked."""

    def __init__(self, client: KubeClient, install_namespace: str) -> None:
        self.namespace = install_namespace
        self.queue = WorkQueue()
        self.services = Reflector(client, objects.SERVICE)
        # Those of all namespaces: one that is in the wrong place is ignored, and not in silence.
        self.groups = Reflector(client, objects.SERVICE_GROUP)
        self.announcements = Reflector(client, objects.NODE_ANNOUNCEMENT, namespace=install_namespace)
        self.leases = Reflector(client, objects.LEASE, namespace=install_namespace)
        self.nodes = Reflector(client, objects.NODE)
        self.liveness = Liveness(self.leases)
        self.groups_changed = asyncio.Event()
        self.nodes_changed = asyncio.Event()
        self.subnets_changed = asyncio.Event()
        self.releases_wanted = asyncio.Event()
        self.reporting: set[str] = set()
        self.reworded: set[ServiceKey] = set()
        self._heard: set[str] = set()
        self._gone: set[str] = set()
        self._parting: set[str] = set()
        self._leaving: dict[str, float] = {}
        self._leading = False
        self.services.on_change(self._service_changed)
        self.groups.on_change(lambda *_: self.groups_changed.set())
        self.announcements.on_change(self._announcement_changed)
        self.leases.on_change(self._lease_changed)
        self.nodes.on_change(self._node_changed)
        self.liveness.on_change(self._live_changed)

    @property
    def reflectors(self) -> tuple[Reflector[Any, Any], ...]:
        return (self.services, self.groups, self.announcements, self.leases, self.nodes)

    async def run(self) -> None:
        """Keeps the caches until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self.reflectors:
                group.create_task(reflector.run())
            group.create_task(self.liveness.run())

    async def synced(self) -> None:
        for reflector in self.reflectors:
            await reflector.synced.wait()

    @property
    def well(self) -> bool:
        """Whether the caches are full and fresh enough to decide by."""
        return all(r.synced.is_set() and r.staleness_s < 120 for r in self.reflectors)

    def lead(self) -> None:
        """From now on marks are kept. Everything is marked, since all of it is new to a new leader."""
        self._leading = True
        self.groups_changed.set()
        self.nodes_changed.set()
        self.subnets_changed.set()
        self.releases_wanted.set()
        self.reporting = set(self._heard)

    def stop_leading(self) -> None:
        self._leading = False
        self.queue.clear()
        self.reporting.clear()
        self.reworded.clear()
        self._parting.clear()

    # What the leader reads.

    def relevant(self) -> tuple[list[ServiceKey], list[ServiceKey]]:
        """Keys of the Services that may concern us: those that show an address under our brand, and the others.

        The first go first: what they show must be adopted before anything new is given (a lost book is rebuilt).
        """
        showing: list[ServiceKey] = []
        asking: list[ServiceKey] = []
        for key, view in self.services.items().items():
            if _concerns_us(view):
                (showing if view.ingress and branded(view) else asking).append(key)
        return showing, asking

    def shows_just(self, key: ServiceKey, uid: str, addresses: Collection[str]) -> bool:
        """Whether it is the Service with this uid, and its status has these addresses and no others."""
        view = self.services.get(key)
        return view is not None and view.uid == uid and {entry.ip for entry in view.ingress} == addresses

    def group_views(self) -> tuple[list[ObjectView], list[ObjectView]]:
        """The ServiceGroups of the install namespace, and those elsewhere."""
        ours: list[ObjectView] = []
        strangers: list[ObjectView] = []
        for view in self.groups.items().values():
            (ours if view.namespace == self.namespace else strangers).append(view)
        return ours, strangers

    def live_subnets(self) -> frozenset[Network]:
        """The subnets that the Leases of the live nodes name."""
        found: set[Network] = set()
        for node in self.liveness.live():
            lease = self.leases.get((self.namespace, names.NODE_LEASE_PREFIX + node))
            found |= _subnets(lease.annotations.get(names.SUBNETS, "")) if lease else frozenset()
        return frozenset(found)

    def shows(self, key: ServiceKey, address: Address) -> bool:
        """Whether the Service's status, as last seen, has this address; one that cannot be read may have any."""
        view = self.services.get(key)
        if view is None:
            return key in self.services.unread
        return str(address) in {entry.ip for entry in view.ingress}

    def views(self, keys: Iterable[ServiceKey]) -> dict[ServiceKey, ServiceView | None]:
        """What is to be planned for these: None for those that are gone; nothing for those that cannot be read."""
        found = {key: self.services.get(key) for key in keys}
        return {key: view for key, view in found.items() if view is not None or key not in self.services.unread}

    def node_names(self) -> frozenset[str] | None:
        """The Nodes of the cluster; None while there are none known, which is no reason to take them for gone."""
        return frozenset(self.nodes.items()) or None

    def take_reporting(self) -> list[NodeReport]:
        """Reports not yet booked, of nodes that we heard renew their Lease: a dead node's last words must not raise it.

        That a Lease was there when we started says nothing; its node stays marked until it is heard. An agent that ends
        says so and gives its Lease back: what it wrote last is taken once, whichever of the two we see first.
        """
        speaking = (self.reporting & self._heard & self.liveness.live()) | self._parting
        self.reporting -= speaking
        self._parting.clear()
        return [report for node in sorted(speaking) if (report := self._report(node)) is not None]

    def _report(self, node: str) -> NodeReport | None:
        try:
            return join_slices(self._slices(node), node)
        except InvalidInput as error:
            log.warning("report_refused", node=node, error=str(error))
            return None

    def _slices(self, node: str) -> Iterator[ObjectView]:
        """The node's object and its further slices, by name: no look at the objects of all other nodes."""
        for index in count():
            name = node if index == 0 else slice_name(node, index)
            view = self.announcements.get((self.namespace, name))
            if view is None:
                return
            yield view

    def take_reworded(self, keys: Iterable[ServiceKey]) -> list[ServiceKey]:
        """Those of these whose condition `Announced` somebody has changed: not we, or we do not know of it yet."""
        found = [key for key in keys if key in self.reworded]
        self.reworded.difference_update(found)
        return found

    def leaving(self) -> set[str]:
        """Nodes that live no more, and whose last report may still be on its way."""
        now = asyncio.get_running_loop().time()
        self._leaving = {node: until for node, until in self._leaving.items() if until > now}
        return set(self._leaving)

    def remark(self, nodes: Iterable[str]) -> None:
        """Reports that could not be booked are looked at again."""
        self.reporting.update(nodes)
        self._parting |= self.reporting & self._gone
        self.nodes_changed.set()

    # Marks.

    def _service_changed(self, change: Change, old: ServiceView | None, new: ServiceView | None) -> None:
        view = new or old
        if view is None or not self._leading:
            return
        if (old and _concerns_us(old)) or (new and _concerns_us(new)):
            self.queue.add(view.key)
            if old is not None and _announced(old) != _announced(view):
                self.reworded.add(view.key)
        if old is not None and old.ingress and (new is None or new.ingress != old.ingress):
            self.releases_wanted.set()

    def _announcement_changed(self, change: Change, old: ObjectView | None, new: ObjectView | None) -> None:
        if new is None or not self._leading:
            return
        node = _node_of(new)
        self.reporting.add(node)
        if node in self._gone:
            self._parting.add(node)
        self.nodes_changed.set()

    def _lease_changed(self, change: Change, old: LeaseView | None, new: LeaseView | None) -> None:
        """A node is heard when its Lease moves under our eyes: not by being found in the first list."""
        if new is None or not new.name.startswith(names.NODE_LEASE_PREFIX):
            return
        if old is not None and old.annotations.get(names.SUBNETS) != new.annotations.get(names.SUBNETS):
            self.subnets_changed.set()
        node = new.name.removeprefix(names.NODE_LEASE_PREFIX)
        if node not in self._heard and (change is Change.MODIFIED or self.leases.synced.is_set()):
            self._heard.add(node)
            self.remark([node])

    def _node_changed(self, change: Change, old: NodeView | None, new: NodeView | None) -> None:
        if change is Change.DELETED and old is not None:
            self._gone.discard(old.name)
            self.releases_wanted.set()

    def _live_changed(self, joined: frozenset[str], left: frozenset[str]) -> None:
        # Heard again, a node that was gone may have nothing new to report, and yet be booked as lost.
        self._parting |= self._heard & left & self.reporting
        self._gone |= self._heard & left
        self._gone -= joined
        self._heard -= left
        loop = asyncio.get_running_loop()
        self._leaving |= dict.fromkeys(left, loop.time() + LAST_WORDS_S)
        for node in joined:
            self._leaving.pop(node, None)
        loop.call_later(LAST_WORDS_S + 0.01, self.nodes_changed.set)
        self.nodes_changed.set()
        self.subnets_changed.set()


@lru_cache(maxsize=4096)
def _subnets(text: str) -> frozenset[Network]:
    return parse_subnets(text)


def _node_of(view: ObjectView) -> str:
    return view.labels.get(NODE_LABEL) or view.name


def _announced(view: ServiceView) -> Condition | None:
    return current_condition(view, names.CONDITION_ANNOUNCED)


def _concerns_us(view: ServiceView) -> bool:
    return view.type == "LoadBalancer" or branded(view) or current_condition(view) is not None
