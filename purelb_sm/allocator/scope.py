"""ServiceGroups outside the install namespace: they are ignored, and each is told so once (spec A25).

As in PureLB v0.17. Read from everywhere, they would let whoever may write one in a namespace of his own give out
addresses for the whole cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import structlog

from purelb_sm.domain.book import EventNote
from purelb_sm.domain.views import ObjectView

log = structlog.get_logger(__name__)


class Cluster(Protocol):
    """What telling needs of the cluster."""

    def tell_object(self, view: ObjectView, note: EventNote) -> None: ...


class OutOfScope:
    """Remembers who was told. What is ignored gets no status of ours, so a new leader says it once more."""

    def __init__(self, cluster: Cluster, install_namespace: str) -> None:
        self._cluster = cluster
        self._namespace = install_namespace
        self._told: set[str] = set()

    def tell(self, strangers: Iterable[ObjectView]) -> int:
        """`strangers` are all ServiceGroups outside; answers how many they are."""
        found = {view.uid: view for view in strangers}
        self._told &= found.keys()
        for uid, view in found.items():
            if uid not in self._told:
                log.warning("service_group_out_of_scope", namespace=view.namespace, group=view.name)
                text = f"ignored: ServiceGroups are read from namespace {self._namespace} only, not {view.namespace}"
                self._cluster.tell_object(view, EventNote("Warning", "ServiceGroupOutOfScope", text))
                self._told.add(uid)
        return len(found)
