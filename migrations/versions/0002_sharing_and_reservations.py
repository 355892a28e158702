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


def downgrade() -> None:
    raise NotImplementedError("migrations go forward only: restore a backup")
