"""The whole first schema: the book, the groups, the history with its triggers, the views.

Revision 0001, after None.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A migration says itself what its columns are: it must stay the same when the models move on.
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.String().with_variant(TIMESTAMP(timezone=True), "postgresql")
KEY = sa.LargeBinary(16)

SQLITE_TRIGGERS = (
    """CREATE TRIGGER history_no_update BEFORE UPDATE ON history
BEGIN SELECT RAISE(ABORT, 'history is append-only'); END""",
    """CREATE TRIGGER history_no_delete BEFORE DELETE ON history
BEGIN SELECT RAISE(ABORT, 'history is append-only'); END""",
)

POSTGRESQL_TRIGGERS = (
    """CREATE FUNCTION history_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'history is append-only' USING ERRCODE = 'integrity_constraint_violation'; END $$""",
    """CREATE TRIGGER history_no_update BEFORE UPDATE ON history
FOR EACH ROW EXECUTE FUNCTION history_is_append_only()""",
    """CREATE TRIGGER history_no_delete BEFORE DELETE ON history
FOR EACH ROW EXECUTE FUNCTION history_is_append_only()""",
    """CREATE TRIGGER history_no_truncate BEFORE TRUNCATE ON history
FOR EACH STATEMENT EXECUTE FUNCTION history_is_append_only()""",
)

VIEWS = (
    """CREATE VIEW v_history AS
SELECT seq, at, term, actor, kind, namespace, name, uid, group_name, address, node,
       "trigger", from_state, to_state, reason, details, prev_hash, hash
FROM history""",
    """CREATE VIEW v_services AS
SELECT cluster, namespace, name, uid, state, since, reason, message, group_name, observed_at
FROM service""",
    """CREATE VIEW v_allocations AS
SELECT id AS allocation_id, address_text AS address, family, group_name, claim, state, since,
       held_at, quarantined_until, released_at
FROM allocation""",
    """CREATE VIEW v_holdings AS
SELECT a.address_text AS address, a.family, a.group_name, s.cluster, s.namespace, s.name, s.uid,
       m.from_at, m.until_at, a.id AS allocation_id, a.claim, a.state AS allocation_state
FROM membership m
JOIN allocation a ON a.id = m.allocation_id
JOIN service s ON s.uid = m.service_uid""",
    """CREATE VIEW v_announcements AS
SELECT a.address_text AS address, n.node, n.interface, n.prefix_length, n.state, n.from_at, n.until_at,
       a.id AS allocation_id, a.group_name
FROM announcement n
JOIN allocation a ON a.id = n.allocation_id""",
    """CREATE VIEW v_ranges AS
SELECT g.name AS group_name, r.position, r.range_text AS "range", r.family, r.subnet, r.prefix_length,
       g.generation, g.pool_type, g.from_at, g.until_at
FROM address_range r
JOIN service_group g ON g.id = r.group_id""",
)


def upgrade() -> None:
    _service_group()
    _address_range()
    _service()
    _allocation()
    _membership()
    _port_claim()
    _announcement()
    _reservation()
    _history()
    _leadership()
    _node_report()
    triggers = SQLITE_TRIGGERS if op.get_bind().dialect.name == "sqlite" else POSTGRESQL_TRIGGERS
    for statement in (*triggers, *VIEWS):
        op.execute(sa.text(statement))


def downgrade() -> None:
    raise NotImplementedError("migrations go forward only: restore a backup")


def _col(name: str, type_: Any, *, nullable: bool = False, autoincrement: bool = False) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=nullable, autoincrement=autoincrement)


def _enum(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=32)


def _index(name: str, table: str, columns: list[str], where: str | None = None, unique: bool = False) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(name, table, columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


def _service_group() -> None:
    op.create_table(
        "service_group",
        _col("id", BIG, autoincrement=False),
        _col("name", sa.String),
        _col("uid", sa.String),
        _col("generation", BIG),
        _col("accepted", sa.Boolean),
        _col("refusal", sa.Text),
        _col("pool_type", sa.String),
        _col("agent_decides", sa.Boolean),
        _col("avoid_first_last", sa.Boolean),
        _col("quarantine_s", sa.Double),
        _col("from_at", TIME),
        _col("until_at", TIME, nullable=True),
        sa.CheckConstraint("accepted = (refusal = '')", name=op.f("ck_service_group_refused_says_why")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_service_group")),
    )
    _index("uq_service_group_live_name", "service_group", ["name"], where="until_at IS NULL", unique=True)


def _address_range() -> None:
    op.create_table(
        "address_range",
        _col("group_id", BIG),
        _col("position", sa.Integer, autoincrement=False),
        _col("family", _enum("family", "IPv4", "IPv6")),
        _col("first", KEY),
        _col("last", KEY),
        _col("range_text", sa.String),
        _col("subnet", sa.String),
        _col("prefix_length", sa.Integer),
        sa.CheckConstraint("first <= last", name=op.f("ck_address_range_first_not_after_last")),
        sa.CheckConstraint("length(first) = 16 AND length(last) = 16", name=op.f("ck_address_range_in_16_bytes")),
        sa.CheckConstraint("prefix_length BETWEEN 0 AND 128", name=op.f("ck_address_range_prefix_length")),
        sa.ForeignKeyConstraint(["group_id"], ["service_group.id"], name=op.f("fk_address_range_group_id")),
        sa.PrimaryKeyConstraint("group_id", "position", name=op.f("pk_address_range")),
    )


def _service() -> None:
    op.create_table(
        "service",
        _col("uid", sa.String),
        _col("cluster", sa.String),
        _col("namespace", sa.String),
        _col("name", sa.String),
        _col("state", _enum("state", "pending", "allocated", "announcing", "withdrawn")),
        _col("reason", sa.String),
        _col("message", sa.Text),
        _col("group_name", sa.String),
        _col("since", TIME),
        _col("observed_at", TIME),
        sa.PrimaryKeyConstraint("uid", name=op.f("pk_service")),
    )
    _index("ix_service_namespace_name", "service", ["namespace", "name"])
    _index("ix_service_waiting", "service", ["cluster", "since"], where="state = 'pending'")
    _index(
        "uq_service_live_name", "service", ["cluster", "namespace", "name"], where="state <> 'withdrawn'", unique=True
    )


def _allocation() -> None:
    op.create_table(
        "allocation",
        _col("id", BIG, autoincrement=False),
        _col("address", KEY),
        _col("address_text", sa.String),
        _col("family", _enum("family", "IPv4", "IPv6")),
        _col("group_name", sa.String),
        _col("claim", sa.String),
        _col("state", _enum("state", "held", "releasing", "quarantined", "released")),
        _col("since", TIME),
        _col("held_at", TIME),
        _col("quarantined_until", TIME, nullable=True),
        _col("released_at", TIME, nullable=True),
        sa.CheckConstraint(
            "(state = 'quarantined') = (quarantined_until IS NOT NULL)", name=op.f("ck_allocation_quarantined_has_end")
        ),
        sa.CheckConstraint(
            "(state = 'released') = (released_at IS NOT NULL)", name=op.f("ck_allocation_released_has_time")
        ),
        sa.CheckConstraint("length(address) = 16", name=op.f("ck_allocation_address_in_16_bytes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_allocation")),
    )
    _index("ix_allocation_address_held_at", "allocation", ["address", "held_at"])
    _index("ix_allocation_claim", "allocation", ["claim"], where="released_at IS NULL")
    _index("ix_allocation_quarantined_until", "allocation", ["quarantined_until"], where="state = 'quarantined'")
    _index("ix_allocation_releasing", "allocation", ["id"], where="state = 'releasing'")
    _index("uq_allocation_live_address", "allocation", ["address"], where="released_at IS NULL", unique=True)


def _membership() -> None:
    op.create_table(
        "membership",
        _col("id", BIG, autoincrement=True),
        _col("allocation_id", BIG),
        _col("service_uid", sa.String),
        _col("from_at", TIME),
        _col("until_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["allocation_id"], ["allocation.id"], name=op.f("fk_membership_allocation_id")),
        sa.ForeignKeyConstraint(["service_uid"], ["service.uid"], name=op.f("fk_membership_service_uid")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_membership")),
    )
    _index("ix_membership_allocation_id", "membership", ["allocation_id"])
    _index("ix_membership_service_uid", "membership", ["service_uid"])
    _index("uq_membership_live", "membership", ["service_uid", "allocation_id"], where="until_at IS NULL", unique=True)


def _port_claim() -> None:
    op.create_table(
        "port_claim",
        _col("id", BIG, autoincrement=True),
        _col("allocation_id", BIG),
        _col("service_uid", sa.String),
        _col("protocol", sa.String),
        _col("port", sa.Integer),
        _col("from_at", TIME),
        _col("until_at", TIME, nullable=True),
        sa.CheckConstraint("protocol IN ('TCP', 'UDP', 'SCTP')", name=op.f("ck_port_claim_protocol")),
        sa.CheckConstraint("port BETWEEN 1 AND 65535", name=op.f("ck_port_claim_port")),
        sa.ForeignKeyConstraint(["allocation_id"], ["allocation.id"], name=op.f("fk_port_claim_allocation_id")),
        sa.ForeignKeyConstraint(["service_uid"], ["service.uid"], name=op.f("fk_port_claim_service_uid")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_port_claim")),
    )
    _index(
        "uq_port_claim_live", "port_claim", ["allocation_id", "protocol", "port"], where="until_at IS NULL", unique=True
    )


def _announcement() -> None:
    op.create_table(
        "announcement",
        _col("id", BIG, autoincrement=False),
        _col("allocation_id", BIG),
        _col("node", sa.String),
        _col("interface", sa.String),
        _col("prefix_length", sa.Integer),
        _col("state", _enum("state", "absent", "adding", "present", "removing", "failed", "lost")),
        _col("valid_s", BIG, nullable=True),
        _col("from_at", TIME),
        _col("until_at", TIME, nullable=True),
        sa.CheckConstraint("state <> 'absent'", name=op.f("ck_announcement_absent_has_no_row")),
        sa.CheckConstraint("prefix_length BETWEEN 0 AND 128", name=op.f("ck_announcement_prefix_length")),
        sa.ForeignKeyConstraint(["allocation_id"], ["allocation.id"], name=op.f("fk_announcement_allocation_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_announcement")),
    )
    _index("ix_announcement_allocation_id", "announcement", ["allocation_id", "from_at"])
    _index("ix_announcement_live_node", "announcement", ["node"], where="until_at IS NULL")
    _index(
        "uq_announcement_live",
        "announcement",
        ["allocation_id", "node", "interface"],
        where="until_at IS NULL",
        unique=True,
    )


def _reservation() -> None:
    op.create_table(
        "reservation",
        _col("id", BIG, autoincrement=True),
        _col("first", KEY),
        _col("last", KEY),
        _col("claim", sa.String, nullable=True),
        _col("reason", sa.Text),
        _col("created_by", sa.String),
        _col("from_at", TIME),
        _col("expires_at", TIME, nullable=True),
        _col("until_at", TIME, nullable=True),
        sa.CheckConstraint("first <= last", name=op.f("ck_reservation_first_not_after_last")),
        sa.CheckConstraint("length(first) = 16 AND length(last) = 16", name=op.f("ck_reservation_in_16_bytes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reservation")),
    )
    _index("ix_reservation_live", "reservation", ["first"], where="until_at IS NULL")


def _history() -> None:
    op.create_table(
        "history",
        _col("seq", BIG, autoincrement=False),
        _col("at", TIME),
        _col("term", BIG),
        _col("actor", sa.String),
        _col("kind", sa.String),
        _col("namespace", sa.String, nullable=True),
        _col("name", sa.String, nullable=True),
        _col("uid", sa.String, nullable=True),
        _col("group_name", sa.String, nullable=True),
        _col("address", sa.String, nullable=True),
        _col("node", sa.String, nullable=True),
        _col("trigger", sa.String),
        _col("from_state", sa.String, nullable=True),
        _col("to_state", sa.String, nullable=True),
        _col("reason", sa.Text),
        _col("details", sa.Text),
        _col("prev_hash", sa.String),
        _col("hash", sa.String),
        sa.CheckConstraint("length(hash) = 64 AND length(prev_hash) = 64", name=op.f("ck_history_hashes_are_sha256")),
        sa.CheckConstraint("seq >= 1", name=op.f("ck_history_seq_from_one")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_history")),
    )
    _index("ix_history_address", "history", ["address", "seq"], where="address IS NOT NULL")
    _index("ix_history_at", "history", ["at"])
    _index("ix_history_group_name", "history", ["group_name", "seq"], where="group_name IS NOT NULL")
    _index("ix_history_namespace_name", "history", ["namespace", "name", "seq"], where="namespace IS NOT NULL")
    _index("ix_history_node", "history", ["node", "seq"], where="node IS NOT NULL")


def _leadership() -> None:
    op.create_table(
        "leadership",
        _col("id", sa.Integer, autoincrement=False),
        _col("cluster", sa.String),
        _col("term", BIG),
        _col("holder", sa.String),
        _col("raised_at", TIME, nullable=True),
        sa.CheckConstraint("id = 1", name=op.f("ck_leadership_one_row")),
        sa.CheckConstraint("term >= 0", name=op.f("ck_leadership_term_not_negative")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leadership")),
    )


def _node_report() -> None:
    op.create_table(
        "node_report",
        _col("node", sa.String),
        _col("incarnation", sa.String),
        _col("started_at", TIME),
        _col("sequence", BIG),
        _col("resync", sa.Boolean),
        _col("taken_at", TIME),
        sa.CheckConstraint("sequence >= 0", name=op.f("ck_node_report_sequence_not_negative")),
        sa.PrimaryKeyConstraint("node", name=op.f("pk_node_report")),
    )
