"""Tells people which node announces what: annotations (C9) and Events (C8) on the Services.

Never holds up the kernel's work: annotations wait in a queue, each patch is conditional on the version it was computed
from, and a conflict means to compute it again. A Service whose annotations are right costs no request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from purelb_sm.agent.intake import Watches, slim
from purelb_sm.agent.ledger import Ledger, Where
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.announce import Announcements, Desired, Kind
from purelb_sm.domain.announcing import announcing_changes, holders_of
from purelb_sm.domain.book import EventNote
from purelb_sm.domain.states import AnnouncementState
from purelb_sm.domain.views import ServiceKey, ServiceView
from purelb_sm.errors import Conflict, Invalid, KubeError, NotFound
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.events import EventRecorder
from purelb_sm.kube.publish import patch_annotations
from purelb_sm.kube.queue import WorkQueue

log = structlog.get_logger(__name__)

WORKERS: Final = 8
UNDONE_S: Final = 60.0
"""A write of ours that is undone within this time of the last one is made again later each time."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What was last written on a Service, and when, on the loop's clock."""

    changes: dict[str, str | None]
    at: float


class Telling:
    """Implements `announcer.Listener`. Run `run()` as a task, after `open()`: before the first pass it would unsay
    what the kernel holds from before our start."""

    def __init__(
        self,
        node: str,
        client: KubeClient,
        watches: Watches,
        table: Announcements,
        ledger: Ledger,
        recorder: EventRecorder,
        heard: Callable[[Where], bool] = lambda where: True,
    ) -> None:
        self._node = node
        self._client = client
        self._watches = watches
        self._services = watches.services
        self._table = table
        self._ledger = ledger
        self._recorder = recorder
        self._heard = heard
        self._queue = WorkQueue()
        self._busy: set[ServiceKey] = set()
        self._open = False
        self._said: dict[ServiceKey, _Said] = {}
        self._told: dict[Address, tuple[ServiceKey, ...]] = {}
        """Whom an address that we hold was for when that was last said."""

    def open(self) -> None:
        """From now on the ledger says what the kernel holds."""
        self._open = True
        for key in list(self._services.items()):
            self.look_at(key)

    # Listener.

    def announced(self, desired: Desired, *, new: bool) -> None:
        told = () if new else self._told.get(desired.address, ())
        self._told[desired.address] = desired.services
        for key in desired.services:
            # One that shares an address which is here already is told as if it came with it.
            if new or (self._open and key not in told):
                self._record(key, desired)
            self.look_at(key)

    def heard(self, address: Address) -> None:
        for key in self._table.services_of(address):
            self.look_at(key)

    def withdrawn(self, address: Address) -> None:
        if all(record.state is not AnnouncementState.PRESENT for record in self._ledger.of(address)):
            self._told.pop(address, None)
        for key in self._table.services_of(address):
            self._said.pop(key, None)
            self.look_at(key)

    def elsewhere(self, address: Address) -> None:
        # Where there is a winner, that one says so. Else the entry of a node that is dead would stay for ever.
        if self._table.winner(address) is None:
            for key in self._table.services_of(address):
                self.look_at(key)

    def conflict(self, where: Where, mac: bytes, announced: bool) -> None:
        for key in self._table.services_of(where[0]):
            self._record_note(key, conflict_note(where, mac, self._node, announced))

    def was_announced(self, address: Address) -> bool:
        """Whether a node of ours says that it holds this local address, or said so last."""
        for key in self._table.services_of(address):
            view = self._services.get(key)
            if view is not None and address in holders_of(view, self._table.addresses_of(key)):
                return True
        return False

    def bridged(self, interface: str, kind: str) -> None:
        node = self._watches.node.get(self._node)
        if node is not None:
            message = f"This kernel has no dummy links: {interface} is a {kind} without ports"
            self._recorder.node(node, EventNote("Normal", "NoDummyLinks", message))

    def look_at(self, key: ServiceKey) -> None:
        """Something about this Service, or about us, may make its annotations wrong."""
        if not self._open:
            return
        view = self._services.get(key)
        if view is None:
            self._said.pop(key, None)
            return
        changes = self._changes(view)
        if changes and self._is_undone(key, changes):
            self._queue.retry(key)
        elif changes:
            self._queue.add(key)

    def _is_undone(self, key: ServiceKey, changes: dict[str, str | None]) -> bool:
        """Whether somebody has just undone this very write of ours. For a while two nodes may both take themselves for
        the holder, as they hear each other no more: that must not become a race of writes."""
        said = self._said.get(key)
        return said is not None and said.changes == changes and _now() - said.at < UNDONE_S

    def _record(self, key: ServiceKey, desired: Desired) -> None:
        self._record_note(key, note_of(desired, self._node))

    def _record_note(self, key: ServiceKey, note: EventNote) -> None:
        view = self._services.get(key)
        if view is not None:
            self._recorder.service(key, view.uid, view.resource_version, note)

    # Annotations.

    async def run(self) -> None:
        """Patches what is queued, until cancelled."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(WORKERS):
                workers.create_task(self._work())

    async def _work(self) -> None:
        while True:
            (key,) = await self._queue.get_batch(1)
            if key in self._busy:
                self._queue.add_after(key, 0.05)
                continue
            self._busy.add(key)
            try:
                await self._patch(key)
            finally:
                self._busy.discard(key)

    async def _patch(self, key: ServiceKey) -> None:
        view = self._services.get(key)
        changes = self._changes(view) if view is not None else {}
        if view is None or not changes:
            self._queue.forget(key)
            return
        try:
            written = await patch_annotations(self._client, key, view.uid, view.resource_version, changes)
            self._services.absorb(slim(written))
            again = self._is_undone(key, changes)
            self._said[key] = _Said(changes, _now())
        except (NotFound, Invalid) as error:
            log.debug("annotations_not_written", service=str(key), error=str(error))
            self._queue.forget(key)
        except Conflict:
            # Somebody else wrote first; the watch brings what. If it is long in coming, this tries again by itself.
            self._queue.retry(key)
        except KubeError as error:
            delay_s = self._queue.retry(key)
            log.warning("annotations_not_written", service=str(key), error=str(error), again_in_s=round(delay_s, 1))
        else:
            if not again:
                self._queue.forget(key)

    def _changes(self, view: ServiceView) -> dict[str, str | None]:
        addresses = self._table.addresses_of(view.key)
        if not addresses:
            # Not ours (any more): the allocator takes our annotations away with its own.
            return {}
        mine: dict[Address, str] = {}
        given_up: list[Address] = []
        remote: list[Address] = []
        for address in addresses:
            verdict = self._table.decide(address)
            if isinstance(verdict, Desired) and verdict.kind is Kind.REMOTE:
                remote.append(address)
            elif isinstance(verdict, Desired):
                state = self._ledger.state(address, verdict.interface)
                if state is AnnouncementState.PRESENT:
                    # Whoever held it until now withdraws when it reads this: not before the neighbours know of us.
                    if self._heard((address, verdict.interface)):
                        mine[address] = verdict.interface
                elif state is AnnouncementState.FAILED:
                    given_up.append(address)
            elif verdict is None and self._table.winner(address) in (None, self._node):
                # Not wanted here, and no other node is going to say that it has it.
                given_up.append(address)
        return announcing_changes(view, addresses, self._node, mine, given_up, remote, self._is_dead)

    def _is_dead(self, node: str) -> bool:
        """Whether the node lives no more, and this one is to say so: one does it, the first by name."""
        live = self._table.place.electorate.nodes
        return node not in live and min(live, default="") == self._node


def note_of(desired: Desired, node: str) -> EventNote:
    """The Event that tells of a new announcement; spec C8."""
    if desired.kind is Kind.LOCAL:
        message = f"Node {node} announcing {desired.address} on interface {desired.interface}"
        return EventNote("Normal", "AnnouncingLocal", message)
    message = f"Announcing {desired.address} from node {node} interface {desired.interface}"
    return EventNote("Normal", "AnnouncingNonLocal", message)


def conflict_note(where: Where, mac: bytes, node: str, announced: bool) -> EventNote:
    """The Event that tells of a foreign host; spec C20."""
    address, interface = where
    left = "announced all the same" if announced else "not announced"
    message = f"{address} is used by {mac.hex(':')}, seen by node {node} on interface {interface}: {left}"
    return EventNote("Warning", "AddressConflict", message)


def _now() -> float:
    return asyncio.get_running_loop().time()
