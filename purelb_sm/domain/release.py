"""When an address that is being released may be confirmed as gone: phase two of the release (spec B5).

Freeing it in the commit that withdraws its Service lets two Services show one address, even with a unique index and a
single leader. So it stays `releasing` until neither a Service's status nor a node shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from purelb_sm.domain.addresses import Address
from purelb_sm.domain.book import BookedAnnouncement, Releasing
from purelb_sm.domain.states import AnnouncementState
from purelb_sm.domain.views import ServiceKey

_OVER = (AnnouncementState.ABSENT, AnnouncementState.FAILED)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Either confirmed, or what it waits for (a sentence) and when asking again may help (None: on an event)."""

    confirmed: bool
    waits_for: str = ""
    again_at: datetime | None = None


def may_confirm(
    releasing: Releasing,
    shows: Callable[[ServiceKey, Address], bool],
    nodes: Collection[str] | None,
    settle_s: float,
    now: datetime,
) -> Verdict:
    """`shows` asks the cluster as last seen; `nodes` are the Nodes there are (None: not known, so none is gone).

    `settle_s`: an agent that added the address a moment before the release has reported it within this time.
    """
    address = releasing.allocation.address
    for member in releasing.members:
        if shows(member, address):
            return Verdict(False, f"Service {member} to stop showing {address}")
    settled_at = releasing.since + timedelta(seconds=settle_s)
    if now < settled_at:
        return Verdict(False, "the nodes to report", settled_at)
    waits = [w for a in releasing.announcements if (w := may_hold(a, nodes, now)) is not None]
    return waits[0] if waits else Verdict(True)


def may_hold(announcement: BookedAnnouncement, nodes: Collection[str] | None, now: datetime) -> Verdict | None:
    """Why this node may still hold the address, or None. A node that left the cluster holds nothing we can wait for."""
    if announcement.state in _OVER or (nodes is not None and announcement.node not in nodes):
        return None
    where = f"node {announcement.node} on {announcement.interface}"
    if announcement.state is not AnnouncementState.LOST:
        return Verdict(False, f"{where} to withdraw {announcement.address}")
    if announcement.valid_s is None:
        return Verdict(False, f"{where}, which is silent, to report or leave the cluster")
    gone_at = announcement.since + timedelta(seconds=announcement.valid_s)
    if now < gone_at:
        return Verdict(False, f"{where}, which is silent: its kernel drops the address by then", gone_at)
    return None
