"""What proves the rest: the append-only history, the term of the leader, and what was taken from each node."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from purelb_sm.models.base import Base, partial
from purelb_sm.models.types import BIG_ID


class History(Base):
    """One transition. `hash` covers all other columns but `hash` itself, so a changed row shows (spec B4).

    `address` is the canonical text: this table is read by people and by programs that we do not know.
    """

    __tablename__ = "history"
    seq: Mapped[int] = mapped_column(BIG_ID, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    term: Mapped[int] = mapped_column(BIG_ID)
    actor: Mapped[str]
    kind: Mapped[str]
    namespace: Mapped[str | None]
    name: Mapped[str | None]
    uid: Mapped[str | None]
    group_name: Mapped[str | None]
    address: Mapped[str | None]
    node: Mapped[str | None]
    trigger: Mapped[str]
    from_state: Mapped[str | None]
    to_state: Mapped[str | None]
    reason: Mapped[str] = mapped_column(Text)
    details: Mapped[str] = mapped_column(Text)
    """JSON text. Text and not a JSON type: the hash covers these very characters."""
    prev_hash: Mapped[str]
    hash: Mapped[str]

    __table_args__ = (
        CheckConstraint("seq >= 1", "seq_from_one"),
        CheckConstraint("length(hash) = 64 AND length(prev_hash) = 64", "hashes_are_sha256"),
        partial("namespace IS NOT NULL", "ix_history_namespace_name", "namespace", "name", "seq"),
        partial("address IS NOT NULL", "ix_history_address", "address", "seq"),
        partial("node IS NOT NULL", "ix_history_node", "node", "seq"),
        partial("group_name IS NOT NULL", "ix_history_group_name", "group_name", "seq"),
        Index("ix_history_at", "at"),
    )


class Leadership(Base):
    """One row: the term. A new leader raises it before it reads; every transaction checks it.

    `reservations` counts the changes of reservations, which come from outside: it moves, and they are read again.
    """

    __tablename__ = "leadership"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    cluster: Mapped[str]
    term: Mapped[int] = mapped_column(BIG_ID)
    holder: Mapped[str]
    raised_at: Mapped[datetime | None]
    reservations: Mapped[int] = mapped_column(BIG_ID, server_default="0")

    __table_args__ = (
        CheckConstraint("id = 1", "one_row"),
        CheckConstraint("term >= 0", "term_not_negative"),
    )


class NodeReported(Base):
    """The last report taken from a node. `resync`: the next one is taken as a full state, whatever its number."""

    __tablename__ = "node_report"
    node: Mapped[str] = mapped_column(primary_key=True)
    incarnation: Mapped[str]
    started_at: Mapped[datetime]
    sequence: Mapped[int] = mapped_column(BIG_ID)
    resync: Mapped[bool]
    taken_at: Mapped[datetime]

    __table_args__ = (CheckConstraint("sequence >= 0", "sequence_not_negative"),)
