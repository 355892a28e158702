"""A node that people drain: which of its remote addresses other nodes announce, so that it may withdraw them, and what
people are told of how far it is.

What other nodes announce is read from their reports, while the node is being drained and only then. One report after
the other is read until all addresses are accounted for: mostly the first has them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Final

import structlog

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.announce import Announcements
from purelb_sm.domain.book import EventNote
from purelb_sm.domain.draining import Draining
from purelb_sm.domain.views import NodeView
from purelb_sm.errors import KubeError
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.events import EventRecorder
from purelb_sm.kube.reading import read_announced

log = structlog.get_logger(__name__)

ASK_EVERY_S: Final = 1.0
NAMED_MAX: Final = 3
"""So many addresses are named in an Event; of more than that, how many there are."""

_BECAUSE: Final = {
    Draining.DRAINED: f"its Node has the annotation {names.DRAIN}",
    Draining.EXCLUDED: f"its Node has the label {names.EXCLUDE_LABEL}",
}


class Drain:
    """Implements `domain.announce.Elsewhere`. Run `run()` as a task.

    `others` are the nodes that count and are not drained; `held` answers with all that this node's kernel holds;
    `changed` is told of addresses whose verdict may be another, and `wake` has the loop look around in any case.
    """

    def __init__(
        self,
        node: str,
        namespace: str,
        client: KubeClient,
        table: Announcements,
        recorder: EventRecorder,
        own_node: Callable[[], NodeView | None],
        others: Callable[[], Collection[str]],
        held: Callable[[], Collection[Address]],
        changed: Callable[[Iterable[Address]], None],
        wake: Callable[[], None],
    ) -> None:
        self.why: Draining | None = None
        self._node = node
        self._namespace = namespace
        self._client = client
        self._table = table
        self._recorder = recorder
        self._own_node = own_node
        self._others = others
        self._held = held
        self._changed = changed
        self._wake = wake
        self._begun = asyncio.Event()
        self._asked = False
        self._reported: dict[str, frozenset[Address]] = {}
        self._told: tuple[Draining, frozenset[Address]] | None = None

    def set(self, why: Draining | None) -> bool:
        """From now on the node is drained for this reason, or not any more. Answers whether that is news."""
        if why is self.why:
            return False
        before, self.why = self.why, why
        log.info("draining" if why else "not_draining", why=why.value if why else None)
        if why is None:
            self._begun.clear()
            self._asked, self._reported, self._told = False, {}, None
            self._changed(self._table.remote_addresses())
            self._tell(EventNote("Normal", "Undrained", f"Node {self._node} takes part in announcing again"))
        elif why in _BECAUSE:
            self._begun.set()
            if before is None:
                message = f"Node {self._node} gives its addresses up: {_BECAUSE[why]}"
                self._tell(EventNote("Normal", "Draining", message))
        return True

    def announced(self, address: Address) -> bool:
        """Whether another node reports that it announces the address."""
        return any(address in self._reported.get(node, ()) for node in self._others())

    def settled(self) -> None:
        """All that was to be done is done: what is here now stays, until something else happens."""
        if self.why not in _BECAUSE or not self._asked:
            return
        kept = frozenset(self._held())
        if self._told == (self.why, kept):
            return
        self._told = (self.why, kept)
        log.info("drained", kept=len(kept))
        self._tell(note_of(self._node, kept))

    def _tell(self, note: EventNote) -> None:
        view = self._own_node()
        if view is not None:
            self._recorder.node(view, note)

    # What other nodes announce.

    async def run(self) -> None:
        """Asks for as long as the node is drained, until cancelled."""
        while True:
            await self._begun.wait()
            try:
                await self._ask()
            except KubeError as error:
                log.warning("reports_not_read", error=str(error))
            await asyncio.sleep(ASK_EVERY_S)

    async def _ask(self) -> None:
        remote = frozenset(self._table.remote_addresses())
        found: dict[str, frozenset[Address]] = {}
        missing = set(remote)
        for node in sorted(self._others(), key=lambda node: (node not in self._reported, node)):
            if not missing:
                break
            found[node] = await read_announced(self._client, self._namespace, node) & remote
            missing -= found[node]
        before, self._reported, self._asked = self._reported, found, True
        if found != before:
            self._changed(remote)
        self._wake()


def note_of(node: str, kept: Collection[Address]) -> EventNote:
    """The Event that tells how a drain ended."""
    if not kept:
        return EventNote("Normal", "Drained", f"Node {node} announces nothing any more")
    shown = ", ".join(str(address) for address in sorted(kept, key=lambda a: (a.version, int(a)))[:NAMED_MAX])
    more = f" and {len(kept) - NAMED_MAX} more" if len(kept) > NAMED_MAX else ""
    return EventNote("Warning", "DrainIncomplete", f"Node {node} keeps what no other node announces: {shown}{more}")
