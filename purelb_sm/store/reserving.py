"""Reservations in the book: made and lifted from a terminal, read and ended by whoever leads.

What comes from a terminal is a transaction of its own. It needs no term, but takes the leadership row as every writer
does, so that the history stays one chain; and it raises the count there, by which the leader sees that it has to read
the reservations again before it gives out another address.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from sqlalchemy import Engine, bindparam, func, insert, select, update

from purelb_sm.domain.addresses import Address, AddressRange
from purelb_sm.domain.reservations import Reservation, range_text
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import InvalidInput
from purelb_sm.models import Allocation, Leadership, table
from purelb_sm.models import Reservation as Reserved
from purelb_sm.store import grouping, loading, schema
from purelb_sm.store.engine import Db, begun, make_engine
from purelb_sm.store.history import Entry, plain
from purelb_sm.store.workspace import Workspace

_R, _A, _L = table(Reserved), table(Allocation), table(Leadership)

TOLD = 5
"""So many holders are named to who reserves what they hold."""

_NOT_ENDED = select(_R).where(_R.c.until_at.is_(None)).order_by(_R.c.first)
_ALL = select(_R).order_by(_R.c.from_at, _R.c.id)
_END = update(_R).where(_R.c.id == bindparam("key_")).values(until_at=bindparam("now_"))
_COUNT = select(_L.c.reservations).where(_L.c.id == 1)
_RAISE = update(_L).where(_L.c.id == 1).values(reservations=_L.c.reservations + 1)
_LOCKED = select(_L).where(_L.c.id == 1).with_for_update()
_HELD = (_A.c.address.between(bindparam("first_"), bindparam("last_")), loading.NOT_RELEASED)


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a wish to reserve.

    news     False: it was so already, and nothing was written
    holders  (address, who has or last had it) of addresses that the book has now, TOLD of them at most; `held`: of how
             many
    groups   whose ranges have a part of it
    """

    reservation: Reservation
    news: bool
    holders: tuple[tuple[Address, str], ...]
    held: int
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A reservation at any time of its life. `ended_at`: lifted, or noticed to be over."""

    reservation: Reservation
    ended_at: datetime | None

    def in_force(self, now: datetime) -> bool:
        expires_at = self.reservation.expires_at
        return self.ended_at is None and (expires_at is None or expires_at > now)


def not_ended(ws: Workspace) -> list[Reservation]:
    """All that are in force, and those that are over and not booked so yet."""
    return [_reservation(row) for row in ws.db.rows(_NOT_ENDED)]


def end_due(ws: Workspace) -> list[Reservation]:
    """Ends those whose time is over at the time of this transaction."""
    due = [r for r in not_ended(ws) if r.expires_at is not None and r.expires_at <= ws.now]
    for each in due:
        _note(ws, each, "expire", "reserved", "ended")
    ws.db.many(_END, [{"key_": each.id, "now_": ws.now} for each in due])
    return due


def read_count(db: Db) -> int:
    """How often reservations were changed from outside; -1 where nobody has led yet."""
    row = db.row(_COUNT)
    return -1 if row is None else int(row.reservations)


class Registrar:
    """The book of reservations as a terminal uses it. Every method is one transaction, made as the actor given."""

    def __init__(self, engine: Engine, actor: str) -> None:
        self._engine, self._actor = engine, actor

    @classmethod
    def open(cls, url: str, *, actor: str, readonly: bool = False) -> Self:
        """Raises SchemaMismatch, DatabaseUnavailable, or StoreError."""
        schema.check(url)
        return cls(make_engine(url, readonly=readonly), plain(actor, 253))

    def close(self) -> None:
        self._engine.dispose()

    def reserve(
        self, range_: AddressRange, claim: ServiceKey | None, reason: str, expires_at: datetime | None, now: datetime
    ) -> Made:
        """Keeps a range from everybody, or for one Service, from now on.

        The same range for the same claim again changes reason and expiry. Raises InvalidInput where it overlaps
        another reservation, or would be over at once.
        """
        reason = plain(reason.strip())
        if not reason:
            raise InvalidInput("a reservation needs a reason")
        if expires_at is not None and expires_at <= now:
            raise InvalidInput("it would be over at once: its end is not in the future")
        with self._transaction(now) as ws:
            end_due(ws)
            known = _same(ws, range_, claim)
            new = Reservation(0, range_, str(claim) if claim else None, reason, self._actor, now, expires_at)
            news = known is None or (known.reason, known.expires_at) != (reason, expires_at)
            if news:
                if known is not None:
                    ws.db.many(_END, [{"key_": known.id, "now_": now}])
                ws.db.many(_INSERT, [_row(new)])
                _note(ws, new, "renew" if known else "reserve", "reserved" if known else None, "reserved")
            made = _made(ws, new if known is None or news else known, news)
            if news:
                _commit(ws)
            return made

    def unreserve(self, range_: AddressRange, now: datetime, reason: str = "") -> Reservation:
        """Lifts the reservation of exactly this range. Raises InvalidInput where there is none."""
        with self._transaction(now) as ws:
            end_due(ws)
            overlapping = _overlapping(ws, range_)
            found = next((each for each in overlapping if each.range == range_), None)
            if found is None:
                shown = ", ".join(range_text(each.range) for each in overlapping[:TOLD])
                instead = f"; reserved is {shown}, which is lifted as a whole" if shown else ""
                raise InvalidInput(f"{range_text(range_)} is not reserved{instead}")
            ws.db.many(_END, [{"key_": found.id, "now_": now}])
            _note(ws, found, "unreserve", "reserved", "ended", reason)
            _commit(ws)
            return found

    def recorded(self, now: datetime, *, ended: bool) -> list[Recorded]:
        """Those in force by address, or with `ended` all there ever were, in the order in which they were made."""
        with begun(self._engine) as db:
            found = [Recorded(_reservation(row), row.until_at) for row in db.rows(_ALL if ended else _NOT_ENDED)]
        return [each for each in found if ended or each.in_force(now)]

    @contextmanager
    def _transaction(self, now: datetime) -> Iterator[Workspace]:
        with begun(self._engine) as db:
            row = db.row(_LOCKED)
            cluster, term = ("", 0) if row is None else (row.cluster, int(row.term))
            yield Workspace(db, cluster, term, now, self._actor)


def _commit(ws: Workspace) -> None:
    ws.flush()
    ws.db.rows_changed(_RAISE)
    ws.db.commit()


def _same(ws: Workspace, range_: AddressRange, claim: ServiceKey | None) -> Reservation | None:
    """The reservation that this one would be again; InvalidInput for any other in its way."""
    for each in _overlapping(ws, range_):
        if each.range == range_ and each.claim == (str(claim) if claim else None):
            return each
        whom = f"for {each.claim}" if each.claim else "from everybody"
        raise InvalidInput(
            f"{range_text(each.range)} is reserved {whom} since {each.from_at:%Y-%m-%dT%H:%M:%SZ} "
            f"by {each.created_by}: {each.reason}; lift that first"
        )
    return None


def _overlapping(ws: Workspace, range_: AddressRange) -> list[Reservation]:
    return [each for each in not_ended(ws) if each.range.overlaps(range_)]


def _made(ws: Workspace, reservation: Reservation, news: bool) -> Made:
    range_ = reservation.range
    within = {"first_": range_.first, "last_": range_.last}
    held = ws.db.row(select(func.count()).select_from(_A).where(*_HELD), within)
    rows = ws.db.rows(select(_A.c.address, _A.c.claim).where(*_HELD).order_by(_A.c.address).limit(TOLD), within)
    pools = grouping.accepted_pools(ws)
    groups = tuple(sorted(name for name, each in pools.items() if any(pool.range.overlaps(range_) for pool in each)))
    holders = tuple((row.address, str(row.claim)) for row in rows)
    return Made(reservation, news, holders, int(held[0]) if held else 0, groups)


def _note(
    ws: Workspace, each: Reservation, trigger: str, before: str | None, after: str, reason: str | None = None
) -> None:
    """A range stands in the details; the column of addresses has what is one."""
    namespace, _, name = (each.claim or "").partition("/")
    details: dict[str, object] = {"range": range_text(each.range)}
    if each.expires_at is not None:
        details["expiresAt"] = each.expires_at.isoformat()
    address = str(each.range.first) if each.range.size == 1 else ""
    why = each.reason if reason is None else reason
    ws.note(
        Entry(
            "reservation",
            trigger,
            before,
            after,
            namespace=namespace,
            name=name,
            address=address,
            reason=why,
            details=details,
        )
    )


def _row(each: Reservation) -> dict[str, Any]:
    return {
        "first": each.range.first,
        "last": each.range.last,
        "range_text": range_text(each.range),
        "claim": each.claim,
        "reason": each.reason,
        "created_by": each.created_by,
        "from_at": each.from_at,
        "expires_at": each.expires_at,
    }


def _reservation(row: Any) -> Reservation:
    range_ = AddressRange(row.first, row.last)
    return Reservation(row.id, range_, row.claim, row.reason, row.created_by, row.from_at, row.expires_at)


_INSERT = insert(_R)
