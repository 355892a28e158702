"""What the tables alone cannot say: triggers that keep the history append-only, and the views for auditors.

`create_all` runs these by events; migrations carry their own copy, since a migration must not change with the models.
A test compares the two.
"""

from __future__ import annotations

from sqlalchemy import Connection, event

from purelb_sm.models.base import Base

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

VIEWS = {
    "v_history": """CREATE VIEW v_history AS
SELECT seq, at, term, actor, kind, namespace, name, uid, group_name, address, node,
       "trigger", from_state, to_state, reason, details, prev_hash, hash
FROM history""",
    "v_services": """CREATE VIEW v_services AS
SELECT cluster, namespace, name, uid, state, since, reason, message, group_name, observed_at
FROM service""",
    "v_allocations": """CREATE VIEW v_allocations AS
SELECT id AS allocation_id, address_text AS address, family, group_name, claim, state, since,
       held_at, quarantined_until, released_at
FROM allocation""",
    "v_holdings": """CREATE VIEW v_holdings AS
SELECT a.address_text AS address, a.family, a.group_name, s.cluster, s.namespace, s.name, s.uid,
       m.from_at, m.until_at, a.id AS allocation_id, a.claim, a.state AS allocation_state
FROM membership m
JOIN allocation a ON a.id = m.allocation_id
JOIN service s ON s.uid = m.service_uid""",
    "v_announcements": """CREATE VIEW v_announcements AS
SELECT a.address_text AS address, n.node, n.interface, n.prefix_length, n.state, n.from_at, n.until_at,
       a.id AS allocation_id, a.group_name
FROM announcement n
JOIN allocation a ON a.id = n.allocation_id""",
    "v_ranges": """CREATE VIEW v_ranges AS
SELECT g.name AS group_name, r.position, r.range_text AS "range", r.family, r.subnet, r.prefix_length,
       g.generation, g.pool_type, g.from_at, g.until_at
FROM address_range r
JOIN service_group g ON g.id = r.group_id""",
    "v_reservations": """CREATE VIEW v_reservations AS
SELECT range_text AS "range", claim, reason, created_by, from_at, expires_at, until_at
FROM reservation""",
}
"""By name. Columns are stable: one may be added, none removed or given another meaning (docs/reference/database.md)."""


@event.listens_for(Base.metadata, "after_create")
def _create_the_rest(_target: object, connection: Connection, **_kw: object) -> None:
    triggers = SQLITE_TRIGGERS if connection.dialect.name == "sqlite" else POSTGRESQL_TRIGGERS
    for statement in (*triggers, *VIEWS.values()):
        connection.exec_driver_sql(statement)
