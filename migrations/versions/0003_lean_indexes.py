"""Indexes by name and claim hold only what is looked for by them: an allocation in a large book writes few pages.

Revision 0003, after 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("uq_service_live_name", "service")
    op.drop_index("ix_service_namespace_name", "service")
    _partial("uq_service_live_name", "service", ["namespace", "name", "cluster"], "state <> 'withdrawn'", unique=True)
    _partial("ix_service_withdrawn_name", "service", ["namespace", "name"], "state = 'withdrawn'")
    op.drop_index("ix_allocation_claim", "allocation")
    _partial("ix_allocation_claim", "allocation", ["claim"], "released_at IS NULL AND state <> 'held'")
    op.drop_index("uq_membership_live", "membership")
    _partial("uq_membership_live", "membership", ["allocation_id", "service_uid"], "until_at IS NULL", unique=True)


def downgrade() -> None:
    raise NotImplementedError("migrations go forward only: restore a backup")


def _partial(name: str, table: str, columns: list[str], condition: str, *, unique: bool = False) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, unique=unique, sqlite_where=where, postgresql_where=where)
