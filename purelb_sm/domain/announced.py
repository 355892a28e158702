"""The condition `purelb.io/Announced` of a Service (C16): which nodes announce it, by the book, and what is silent.

The status is the memory of what was told: the Event about an address that stays silent goes with the write that says
so, and what a status says already is neither written nor told again, by whichever allocator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.book import EventNote, Publication
from purelb_sm.domain.publication import branded, condition_announced, current_condition, publish_condition
from purelb_sm.domain.remedies import NOT_ANNOUNCED
from purelb_sm.domain.views import Condition, ServiceKey, ServiceView

ADDRESSES_NAMED: Final = 6
"""A message names so many addresses, and counts the others."""

ANNOUNCED: Final = "Announced"
PARTLY: Final = "PartlyAnnounced"
SILENT: Final = "NotAnnounced"
_NOBODY: Final = "no node announces "


@dataclass(frozen=True, slots=True)
class HeldAddress:
    """An address that the Service has. `silent_since`: since when no node announces it; None while one does."""

    address: Address
    silent_since: datetime | None


@dataclass(frozen=True, slots=True)
class Announcers:
    """Which nodes announce a Service, as booked. `node` and `interface` are those of one of the `nodes`."""

    key: ServiceKey
    uid: str
    addresses: tuple[HeldAddress, ...]
    nodes: int = 0
    node: str = ""
    interface: str = ""


@dataclass(frozen=True, slots=True)
class Silence:
    """`overdue` has been silent for longer than it may; `next_in_s`: when more of it may be (None: no more)."""

    overdue: tuple[Address, ...] = ()
    next_in_s: float | None = None


def silence(found: Announcers, after_s: float, now: datetime) -> Silence:
    """What nobody has announced for `after_s`. A clock that was set back makes nothing wait longer than that."""
    overdue: list[Address] = []
    waits: list[float] = []
    for held in found.addresses:
        if held.silent_since is None:
            continue
        left = timedelta(seconds=after_s) - max(timedelta(0), now - held.silent_since)
        if left > timedelta(0):
            waits.append(left.total_seconds())
        else:
            overdue.append(held.address)
    return Silence(tuple(overdue), min(waits, default=None))


@dataclass(frozen=True, slots=True)
class Told:
    """The write that shows `condition`, and the Events that go with it."""

    condition: Condition
    publication: Publication
    events: tuple[EventNote, ...] = ()


def tell_announced(view: ServiceView, found: Announcers, overdue: Sequence[Address], now: datetime) -> Told | None:
    """The write that makes the condition say what is so, and the Event where an address has been silent for too long.

    None: it says so. A Service that no node has announced yet is told nothing before that is overdue: what has been
    allocated a moment ago is not worth a second write.
    """
    if view.uid != found.uid or not branded(view) or not found.addresses:
        return None
    current = current_condition(view, names.CONDITION_ANNOUNCED)
    if found.nodes == 0 and not overdue and current is None:
        return None
    wanted = condition_announced(view, *_verdict(found, overdue), now)
    publication = publish_condition(view, wanted)
    if publication is None:
        return None
    # A node more or less, or an address that is announced again, changes the sentence; only what was not in it is news.
    told = _told(current.message) if current is not None else frozenset()
    news = any(str(address) not in told for address in overdue[:ADDRESSES_NAMED])
    return Told(wanted, publication, (_event(found, overdue),) if news else ())


def _verdict(found: Announcers, overdue: Sequence[Address]) -> tuple[str, str, str]:
    """Status, reason and message."""
    if found.nodes == 0:
        return "False", SILENT, f"{_NOBODY}{named(overdue)}" if overdue else f"{_NOBODY}it"
    by = f"by {found.node} ({found.interface})" if found.nodes == 1 else f"by {found.nodes} nodes"
    return ("True", PARTLY, f"{by}; {_NOBODY}{named(overdue)}") if overdue else ("True", ANNOUNCED, by)


def _told(message: str) -> frozenset[str]:
    """What the message of a condition says to be silent."""
    return frozenset(message.partition(_NOBODY)[2].partition(" and ")[0].split(", "))


def _event(found: Announcers, overdue: Sequence[Address]) -> EventNote:
    others = "" if found.nodes == 0 else ", though its other addresses are announced"
    return EventNote("Warning", SILENT, f"No node announces {named(overdue)}{others}. What would help: {NOT_ANNOUNCED}")


def named(addresses: Sequence[Address]) -> str:
    """A bounded list of them."""
    shown = ", ".join(str(address) for address in addresses[:ADDRESSES_NAMED])
    more = len(addresses) - ADDRESSES_NAMED
    return f"{shown} and {more} more" if more > 0 else shown
