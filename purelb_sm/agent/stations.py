"""Which stations of a link are nodes of ours: a frame of theirs is no foreign host's.

Each agent says in its Lease by which MACs its node is known. What a Lease said stays true for a while after it changed
or went: the kernel of a node whose agent is gone may still answer for an address, for as long as its lifetime.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from purelb_sm.domain import names
from purelb_sm.domain.macs import parse_macs
from purelb_sm.domain.views import LeaseView

MEMORY_S: Final = 3600.0
FORMER_MAX: Final = 4096


class Stations:
    """The MACs of all nodes, this one's included, from their Leases as they change."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.own: Collection[bytes] = ()
        self._clock = clock
        self._said: dict[str, frozenset[bytes]] = {}
        self._now: frozenset[bytes] = frozenset()
        self._former: dict[bytes, float] = {}

    def take(self, old: LeaseView | None, new: LeaseView | None) -> None:
        """A Lease changed, came (`old` None) or went (`new` None)."""
        text = new.annotations.get(names.MACS, "") if new else ""
        if text == (old.annotations.get(names.MACS, "") if old else ""):
            return
        view = new or old
        assert view is not None, "a change has an object"
        self._said[view.name] = parse_macs(text)
        if not self._said[view.name]:
            del self._said[view.name]
        before, self._now = self._now, frozenset().union(*self._said.values())
        self._remember(before - self._now)

    def is_ours(self, mac: bytes) -> bool:
        """Whether a node of ours has this MAC, or had it a while ago."""
        return mac in self._now or mac in self.own or self._former.get(mac, float("-inf")) > self._clock()

    def _remember(self, gone: Collection[bytes]) -> None:
        now = self._clock()
        self._former |= dict.fromkeys(gone, now + MEMORY_S)
        if len(self._former) > FORMER_MAX:
            latest = sorted(self._former.items(), key=lambda one: one[1])[-FORMER_MAX // 2 :]
            self._former = dict(latest)
