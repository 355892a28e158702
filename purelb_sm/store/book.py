"""Book: the database as the allocator holds it, from one thread. Every transaction proves the term first (spec D8)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Self

from sqlalchemy import Engine, select, text, update

from purelb_sm.errors import StoreError, TermLost
from purelb_sm.models import Leadership, table
from purelb_sm.store import reserving, schema
from purelb_sm.store.engine import Db, begun, make_engine
from purelb_sm.store.history import Entry, Head, Ledger, read_head
from purelb_sm.store.unit import Unit
from purelb_sm.store.workspace import Workspace

_L = table(Leadership)
_FIRST = text(
    f"INSERT INTO {_L.name} (id, cluster, term, holder) VALUES (1, :cluster, 0, '') ON CONFLICT DO NOTHING"  # noqa: S608
)
"""As text: made by the dialect it would need the one of PostgreSQL imported, for SQLite too."""
_LOCKED = select(_L).where(_L.c.id == 1).with_for_update()


class Book:
    """The book of one cluster. Not thread-safe. It survives the database's absence: the next transaction connects
    anew."""

    def __init__(self, engine: Engine, cluster: str, actor: str) -> None:
        self._engine, self._cluster, self._actor = engine, cluster, actor

    @classmethod
    def open(cls, url: str, *, cluster: str = "default", actor: str) -> Self:
        """Raises SchemaMismatch where the schema is not this program's, DatabaseUnavailable, or StoreError.

        `actor` is who the history names for transitions of this process.
        """
        schema.check(url)
        return cls(make_engine(url), cluster, actor)

    def raise_term(self, now: datetime) -> int:
        """A new leader's first act, before it reads anything. From here on no transaction of an older term commits."""
        with begun(self._engine) as db:
            self._ensure_row(db)
            row = self._locked_leadership(db)
            assert row is not None
            term = int(row.term) + 1
            values = {"term": term, "holder": self._actor, "raised_at": now}
            db.rows_changed(update(_L).where(_L.c.id == 1).values(**values))
            ledger = Ledger(term, now, self._actor)
            ledger.append(Entry("leadership", "raise_term", str(row.term), str(term), reason=_succeeds(row.holder)))
            ledger.flush(db)
            db.commit()
            return term

    @contextmanager
    def transaction(self, term: int, now: datetime) -> Iterator[Unit]:
        """A transaction under this term. Kept only by `unit.commit()`. Raises TermLost where another leads now.

        The leadership row stays locked to the end, so writers take turns, and a term raised meanwhile waits for us.
        """
        with begun(self._engine) as db:
            row = self._locked_leadership(db)
            if row is None or row.term != term:
                found = "none" if row is None else f"{row.term}, raised by {row.holder}"
                raise TermLost(f"our term is {term}, the book's is {found}")
            workspace = Workspace(db, self._cluster, term, now, self._actor)
            yield Unit(workspace, reservations=int(row.reservations))

    def head(self) -> Head:
        """(seq, hash) of the last row of the history: to be kept outside the database as well."""
        with begun(self._engine) as db:
            return read_head(db)

    def reservations_count(self) -> int:
        """How often reservations were changed from outside: by it a leader who is idle sees that they were."""
        with begun(self._engine) as db:
            return reserving.read_count(db)

    def close(self) -> None:
        self._engine.dispose()

    def _locked_leadership(self, db: Db) -> Any | None:
        row = db.row(_LOCKED)
        if row is not None and row.cluster != self._cluster:
            raise StoreError(f"this book is of cluster {row.cluster!r}, not {self._cluster!r}")
        return row

    def _ensure_row(self, db: Db) -> None:
        db.rows_changed(_FIRST.bindparams(cluster=self._cluster))


def _succeeds(holder: str) -> str:
    return f"succeeds {holder}" if holder else "the first"
