"""How Alembic reaches the database: by the connection that `purelb_sm.store.schema.upgrade` hands over, or, when the
`alembic` command is used while developing, by `-x url=…` or PURELB_DATABASE."""

from __future__ import annotations

import os
from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection

from purelb_sm.models import Base, IPKey, UtcTime
from purelb_sm.store.engine import make_engine


def _render_item(kind: str, item: Any, autogenerate: Any) -> str | Literal[False]:
    if kind == "type" and isinstance(item, IPKey | UtcTime):
        name = type(item).__name__
        autogenerate.imports.add(f"from purelb_sm.models import {name}")
        return f"{name}()"
    return False


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        compare_server_default=True,
        render_item=_render_item,
        # Both engines can do DDL in a transaction, and all revisions are one: an upgrade is kept whole or not at all.
        transactional_ddl=True,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()


def _url() -> str:
    given: str | None = context.get_x_argument(as_dictionary=True).get("url") or os.environ.get("PURELB_DATABASE")
    if not given:
        raise SystemExit("say which database: -x url=… or PURELB_DATABASE")
    return given


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    _run(handed_over)
elif context.is_offline_mode():
    raise SystemExit("migrations read the database they change: offline mode is not supported")
else:
    engine = make_engine(_url())
    with engine.begin() as own:
        _run(own)
    engine.dispose()
