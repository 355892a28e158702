"""Questions to the book about any time, on a connection that cannot write. Answers come as streams.

Intervals are half open: who held an address from 10:00 to 11:00 did not hold it at 11:00.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from sqlalchemy import ColumnElement, Engine, and_, or_, select
from sqlalchemy.exc import SQLAlchemyError

from purelb_sm.domain.addresses import Address
from purelb_sm.domain.states import AllocationState
from purelb_sm.domain.views import ServiceKey
from purelb_sm.models import Allocation, Announcement, History, Membership, Service, table
from purelb_sm.store import history, schema
from purelb_sm.store.engine import Db, make_engine, our_errors
from purelb_sm.store.explaining import Explanation, explain
from purelb_sm.store.history import Head, Verified
from purelb_sm.store.loading import chunks, named
from purelb_sm.store.pooling import GroupState, group_states

_A, _H, _M, _N, _S = table(Allocation), table(History), table(Membership), table(Announcement), table(Service)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows of the history: those that match all that is given. `until` is not included."""

    service: ServiceKey | None = None
    address: Address | None = None
    node: str | None = None
    namespace: str | None = None
    group: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One transition. What does not apply is empty; `from_state` is None at a birth."""

    seq: int
    at: datetime
    term: int
    actor: str
    kind: str
    namespace: str
    name: str
    uid: str
    group: str
    address: str
    node: str
    trigger: str
    from_state: str | None
    to_state: str | None
    reason: str
    details: dict[str, object]
    hash: str


@dataclass(frozen=True, slots=True)
class Announcer:
    """A node's interface in `state` from then until then (None: still)."""

    node: str
    interface: str
    prefix_length: int
    state: str
    since: datetime
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Holding:
    """An address at the time asked for. `service` None: nobody had it, it was on its way back to the pool.

    `since`, `until`: of this Service's having it, or, without one, of the allocation as a whole.
    """

    address: Address
    group: str
    claim: str
    state: AllocationState
    service: ServiceKey | None
    uid: str
    since: datetime
    until: datetime | None
    announcers: tuple[Announcer, ...] = field(default=())


class Audit:
    """A reader of the book. One thread at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str) -> Self:
        """Raises SchemaMismatch, DatabaseUnavailable or StoreError."""
        schema.check(url)
        return cls(make_engine(url, readonly=True))

    def close(self) -> None:
        self._engine.dispose()

    def history(self, wanted: Filter) -> Iterator[HistoryRow]:
        """Rows in the order they were written."""
        with self._reading() as db:
            statement = select(_H).where(*_conditions(db, wanted)).order_by(_H.c.seq)
            for row in db.stream(statement):
                yield _history_row(row)

    def who_had(self, address: Address, at: datetime) -> list[Holding]:
        """Who had this address then: one Service, several that shared it, or none."""
        with self._reading() as db:
            return _holdings(db, db.rows(select(_A).where(_A.c.address == address, _alive(at))), at)

    def state_at(self, at: datetime) -> Iterator[Holding]:
        """Every address that was not free then, by address."""
        with self._reading() as db:
            rows = db.stream(select(_A).where(_alive(at)).order_by(_A.c.address))
            for some in chunks(rows):
                yield from _holdings(db, some, at)

    def groups(self, now: datetime) -> list[GroupState]:
        """How full each group is, as booked."""
        with self._reading() as db:
            return group_states(db, now)

    def explain(self, key: ServiceKey, now: datetime) -> Explanation | None:
        """All that the book says of why this Service is as it is; None where it has never asked for an address."""
        with self._reading() as db:
            return explain(db, key, now)

    def head(self) -> Head:
        """(seq, hash) of the last row of the history."""
        with self._reading() as db:
            return history.read_head(db)

    def verify(self, known: Head | None = None) -> Verified:
        """Walks the whole chain. Raises HistoryBroken."""
        with self._reading() as db:
            return history.verify(db, known)

    @contextmanager
    def _reading(self) -> Iterator[Db]:
        """One snapshot of the database, however long the reading takes."""
        with our_errors():
            connection = self._engine.connect()
        try:
            yield Db(connection)
        finally:
            try:
                connection.close()
            except SQLAlchemyError:
                connection.invalidate()


def _alive(at: datetime) -> ColumnElement[bool]:
    return and_(_A.c.held_at <= at, or_(_A.c.released_at.is_(None), _A.c.released_at > at))


def _during(t: Any, at: datetime) -> ColumnElement[bool]:
    return and_(t.c.from_at <= at, or_(t.c.until_at.is_(None), t.c.until_at > at))


def _holdings(db: Db, allocations: Sequence[Any], at: datetime) -> list[Holding]:
    numbers = [row.id for row in allocations]
    members = _by_allocation(db, _members(numbers, at))
    announcers = _by_allocation(db, select(_N).where(_N.c.allocation_id.in_(numbers), _during(_N, at)))
    found = []
    for row in allocations:
        seen = tuple(_announcer(n) for n in announcers.get(row.id, ()))
        holders = members.get(row.id, [])
        found += [
            Holding(
                row.address,
                row.group_name,
                row.claim,
                AllocationState.HELD,
                ServiceKey(m.namespace, m.name),
                m.service_uid,
                m.from_at,
                m.until_at,
                seen,
            )
            for m in holders
        ]
        if not holders:
            found.append(_nobodys(db, row, at, seen))
    return found


def _nobodys(db: Db, row: Any, at: datetime, seen: tuple[Announcer, ...]) -> Holding:
    """On its way back to the pool: which way station it was at, the history says."""
    last = (
        select(_H.c.to_state)
        .where(_H.c.address == row.address_text, _H.c.kind == "allocation", _H.c.at <= at)
        .order_by(_H.c.seq.desc())
        .limit(1)
    )
    state = db.row(last)
    known = AllocationState(state[0]) if state is not None else row.state
    return Holding(row.address, row.group_name, row.claim, known, None, "", row.held_at, row.released_at, seen)


def _members(numbers: Sequence[int], at: datetime) -> Any:
    return (
        select(_M, _S.c.namespace, _S.c.name)
        .join(_S, _S.c.uid == _M.c.service_uid)
        .where(_M.c.allocation_id.in_(numbers), _during(_M, at))
        .order_by(_M.c.from_at, _S.c.namespace, _S.c.name)
    )


def _by_allocation(db: Db, statement: Any) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for row in db.rows(statement):
        found.setdefault(row.allocation_id, []).append(row)
    return found


def _announcer(row: Any) -> Announcer:
    return Announcer(row.node, row.interface, row.prefix_length, row.state.value, row.from_at, row.until_at)


def _conditions(db: Db, wanted: Filter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.service is not None:
        conditions.append(or_(_of_service(wanted.service), *_announcements_of(db, wanted.service)))
    if wanted.address is not None:
        conditions.append(_H.c.address == str(wanted.address))
    for column, value in (
        (_H.c.node, wanted.node),
        (_H.c.namespace, wanted.namespace),
        (_H.c.group_name, wanted.group),
    ):
        if value is not None:
            conditions.append(column == value)
    if wanted.since is not None:
        conditions.append(_H.c.at >= wanted.since)
    if wanted.until is not None:
        conditions.append(_H.c.at < wanted.until)
    return conditions


def _of_service(key: ServiceKey) -> ColumnElement[bool]:
    return and_(_H.c.namespace == key.namespace, _H.c.name == key.name)


def _announcements_of(db: Db, key: ServiceKey) -> list[ColumnElement[bool]]:
    """What nodes did with an address from the time that it was this Service's until it was free again."""
    mine = (
        select(_A.c.address_text, _A.c.held_at, _A.c.released_at)
        .join(_M, _M.c.allocation_id == _A.c.id)
        .join(_S, _S.c.number == _M.c.service_number)
        .where(named(key.namespace, key.name))
        .distinct()
    )
    found = []
    for row in db.rows(mine):
        then = [_H.c.kind == "announcement", _H.c.address == row.address_text, _H.c.at >= row.held_at]
        if row.released_at is not None:
            then.append(_H.c.at <= row.released_at)
        found.append(and_(*then))
    return found


def _history_row(row: Any) -> HistoryRow:
    return HistoryRow(
        row.seq,
        row.at,
        row.term,
        row.actor,
        row.kind,
        row.namespace or "",
        row.name or "",
        row.uid or "",
        row.group_name or "",
        row.address or "",
        row.node or "",
        row.trigger,
        row.from_state,
        row.to_state,
        row.reason,
        _details(row.details),
        row.hash,
    )


def _details(text: str) -> dict[str, object]:
    """A row that somebody has changed is still shown; `verify` is what says so."""
    try:
        found = json.loads(text)
    except ValueError:
        return {"unreadable": text}
    return found if isinstance(found, dict) else {"unreadable": text}
