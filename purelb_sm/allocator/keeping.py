"""The reservations as the leader knows them, between the book, where they change from outside, and the free space.

What is newly reserved is closed in the transaction that first sees it: nothing of it is given out after that. What is
lifted or over is opened by a pass of its own, which then serves those who wait: whoever happens to come at that moment
must not be planned before them (A29).
"""

from __future__ import annotations

from datetime import datetime

from purelb_sm.domain.addresses import AddressRange
from purelb_sm.domain.reservations import NOTHING_RESERVED, Reservation
from purelb_sm.domain.reservations import Reservations as Table
from purelb_sm.store import Unit


class Keeping:
    """For one term of leadership.

    reservations  those in force
    closed        what the free space must not give: those in force, and those that no pass has opened yet
    unsettled     they have changed, and a pass has to look at who waits
    """

    def __init__(self) -> None:
        self.reservations = NOTHING_RESERVED
        self.closed: frozenset[AddressRange] = frozenset()
        self.unsettled = False
        self._count: int | None = None
        self._known: frozenset[int] | None = None

    def forget(self) -> None:
        """What was read last may not have been kept: it is read again."""
        self._count = None

    def is_old(self, count: int) -> bool:
        """Whether the book has changed since: `count` is what it says of that now."""
        return count != self._count

    def read(self, unit: Unit) -> bool:
        """Reads them where that may be news, at no cost where it is not. True where they were read."""
        if not self.is_old(unit.reservations_count):
            return False
        self._take(unit.reservations())
        self._count = unit.reservations_count
        return True

    def end_due(self, unit: Unit, now: datetime) -> bool:
        """Ends those whose time is over. True where there were any: then the transaction has something to keep."""
        next_end = self.reservations.next_end()
        if next_end is None or next_end > now:
            return False
        unit.end_reservations()
        self._take(unit.reservations())
        return True

    def settled(self) -> None:
        """The free space has opened what is reserved no more, and those who wait are looked at."""
        self.unsettled = False
        self.closed = frozenset(self.reservations.ranges)
        self._known = self.reservations.ids

    def _take(self, found: list[Reservation]) -> None:
        self.reservations = Table(found)
        if self._known is None:
            # A new leader looks at everybody anyway, the longest waiting first.
            self.settled()
        else:
            self.closed |= frozenset(self.reservations.ranges)
            self.unsettled = self.unsettled or self.reservations.ids != self._known
