"""Shared addresses are found by their key, and a change of reservations is seen by whoever leads.

Revision 0002, after 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


RESERVATIONS = """CREATE VIEW v_reservations AS
SELECT range_text AS "range", claim, reason, created_by, from_at, expires_at, until_at
FROM reservation"""


def upgrade() -> None:
    op.add_column("allocation", sa.Column("sharing_key", sa.String(), nullable=True))
    where = sa.text("released_at IS NULL AND sharing_key IS NOT NULL")
    op.create_index(
        "ix_allocation_sharing_key",
        "allocation",
        ["sharing_key"],
        sqlite_where=where,
        postgresql_where=where,
    )
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("leadership", sa.Column("reservations", big, nullable=False, server_default="0"))
    op.add_column("reservation", sa.Column("range_text", sa.String(), nullable=True))
    op.execute(sa.text(RESERVATIONS))


def downgrade() -> None:
    raise NotImplementedError("migrations go forward only: restore a backup")
