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


NUMBER_SERVICES = """UPDATE service SET number = counted.number
FROM (SELECT uid, row_number() OVER (ORDER BY observed_at, uid) AS number FROM service) AS counted
WHERE counted.uid = service.uid"""
NUMBER_MEMBERSHIPS = """UPDATE membership SET service_number = service.number
FROM service WHERE service.uid = membership.service_uid"""


def upgrade() -> None:
    op.drop_index("uq_service_live_name", "service")
    op.drop_index("ix_service_namespace_name", "service")
    _partial("uq_service_live_name", "service", ["namespace", "name", "cluster"], "state <> 'withdrawn'", unique=True)
    _partial("ix_service_withdrawn_name", "service", ["namespace", "name"], "state = 'withdrawn'")
    op.drop_index("ix_allocation_claim", "allocation")
    _partial("ix_allocation_claim", "allocation", ["claim"], "released_at IS NULL AND state <> 'held'")
    op.drop_index("uq_membership_live", "membership")
    _partial("uq_membership_live", "membership", ["allocation_id", "service_uid"], "until_at IS NULL", unique=True)
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("service", sa.Column("number", big, nullable=False, server_default="0"))
    op.add_column("membership", sa.Column("service_number", big, nullable=False, server_default="0"))
    op.execute(sa.text(NUMBER_SERVICES))
    op.execute(sa.text(NUMBER_MEMBERSHIPS))
    op.create_index("uq_service_number", "service", ["number"], unique=True)
    op.drop_index("ix_membership_service_uid", "membership")
    op.create_index("ix_membership_service_number", "membership", ["service_number"])


def downgrade() -> None:
    raise NotImplementedError("migrations go forward only: restore a backup")


def _partial(name: str, table: str, columns: list[str], condition: str, *, unique: bool = False) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, unique=unique, sqlite_where=where, postgresql_where=where)
