"""The history: one row per transition, each chained to the one before by a hash, and the check of that chain (spec B4).

The hash of a row is SHA-256 over the hash before it and the row's own columns, as a JSON array of ASCII characters
without spaces; docs/reference/database.md says it exactly, so that anybody can check without this program.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select

from purelb_sm.errors import HistoryBroken
from purelb_sm.models import History, iso, table
from purelb_sm.store.engine import Db

GENESIS = "0" * 64
"""What stands before the first row."""

MAX_TEXT = 2048
"""Reasons are for people; what a user put into an annotation must not fill the book."""

_COLUMNS = (
    "seq", "at", "term", "actor", "kind", "namespace", "name", "uid", "group_name", "address", "node",
    "trigger", "from_state", "to_state", "reason", "details",
)  # fmt: skip

Head = tuple[int, str]
"""(seq, hash) of the last row; (0, GENESIS) where there is none."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What happened, before it has a place in the chain. Empty text in a subject field: it does not apply."""

    kind: str
    trigger: str
    from_state: str | None
    to_state: str | None
    namespace: str = ""
    name: str = ""
    uid: str = ""
    group: str = ""
    address: str = ""
    node: str = ""
    actor: str = ""
    reason: str = ""
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verified:
    """The chain holds: so many rows, up to this head."""

    rows: int
    head: Head


class Ledger:
    """The rows that a transaction adds. Their places are given under the lock that all writers take."""

    def __init__(self, term: int, now: datetime, actor: str) -> None:
        self._term, self._at, self._actor = term, now, actor
        self._entries: list[Entry] = []
        self._head: Head | None = None

    def append(self, entry: Entry) -> None:
        self._entries.append(entry)

    def flush(self, db: Db) -> None:
        """Writes what was appended since the last flush, in that order."""
        if not self._entries:
            return
        seq, last = self._head or read_head(db)
        rows = []
        for entry in self._entries:
            seq += 1
            row = self._row(seq, entry)
            row["prev_hash"] = last
            row["hash"] = last = digest(last, row)
            rows.append(row)
        db.many(_INSERT, rows)
        self._entries, self._head = [], (seq, last)

    def _row(self, seq: int, entry: Entry) -> dict[str, Any]:
        return {
            "seq": seq,
            "at": self._at,
            "term": self._term,
            "actor": entry.actor or self._actor,
            "kind": entry.kind,
            "namespace": entry.namespace or None,
            "name": entry.name or None,
            "uid": entry.uid or None,
            "group_name": entry.group or None,
            "address": entry.address or None,
            "node": entry.node or None,
            "trigger": entry.trigger,
            "from_state": entry.from_state,
            "to_state": entry.to_state,
            "reason": plain(entry.reason),
            "details": _json(entry.details) if entry.details else "{}",
        }


def read_head(db: Db) -> Head:
    row = db.row(_HEAD)
    return (int(row.seq), str(row.hash)) if row is not None else (0, GENESIS)


def digest(prev_hash: str, row: Mapping[str, Any]) -> str:
    """The hash of a row, in hexadecimal: SHA-256(prev_hash, line feed, the columns as JSON)."""
    columns = [iso(row["at"]) if name == "at" else row[name] for name in _COLUMNS]
    return hashlib.sha256(f"{prev_hash}\n{_json(columns)}".encode("ascii")).hexdigest()


def verify(db: Db, known: Head | None = None, chunk: int = 2000) -> Verified:
    """Walks the whole chain, `chunk` rows in memory at a time.

    `known` is a head kept outside the database: a chain that ends before it, or that has another row there, was cut
    or rewritten. Raises HistoryBroken, naming the first row that shows it.
    """
    seq, last, count = 0, GENESIS, 0
    for row in db.stream(_ALL, chunk):
        columns = row._mapping
        _check_row(columns, seq, last)
        seq, last, count = int(columns["seq"]), str(columns["hash"]), count + 1
        if known is not None and seq == known[0] and last != known[1]:
            raise HistoryBroken(seq, "has another hash than the head known from outside: the chain was rewritten")
    if known is not None and known[0] > seq:
        raise HistoryBroken(seq + 1, f"is missing: the chain ends at {seq}, and its head was once {known[0]}")
    return Verified(count, (seq, last))


def _check_row(row: Mapping[str, Any], seq: int, last: str) -> None:
    found = int(row["seq"])
    if found != seq + 1:
        raise HistoryBroken(seq + 1, f"is missing: row {found} comes after {seq}")
    if digest(row["prev_hash"], row) != row["hash"]:
        raise HistoryBroken(found, "was changed or inserted: its hash is not that of its columns")
    if row["prev_hash"] != last:
        raise HistoryBroken(
            found, f"was inserted or moved, or row {seq} was changed with its hash: the chain breaks here"
        )


def plain(text: str, limit: int = MAX_TEXT) -> str:
    """Text that both databases take: no NUL, no lone surrogate, not endless."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if "\0" in text or not text.isascii():
        text = text.replace("\0", "�").encode("utf-8", "replace").decode("utf-8")
    return text


def _json(value: object) -> str:
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(ensure_ascii=True, sort_keys=True, separators=(",", ":"), default=str)
_INSERT = insert(table(History))
_HEAD = select(History.seq, History.hash).order_by(History.seq.desc()).limit(1)
_ALL = select(table(History)).order_by(History.seq)
