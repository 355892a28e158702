"""The declarative base: one metadata, with names for every constraint, since a migration must be able to name them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from sqlalchemy import Index, MetaData, Table, text
from sqlalchemy.orm import DeclarativeBase

from purelb_sm.models.types import UtcTime

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Base of every row. Rows carry `from_at`/`until_at`, so that any past time can be asked for."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {datetime: UtcTime()}  # noqa: RUF012  # read by SQLAlchemy as a class attribute


def table(model: type[Base]) -> Table:
    """The Core table of a row class, for statements that carry many rows at once."""
    return cast(Table, cast(Any, model).__table__)


def partial(condition: str, name: str, *columns: str, unique: bool = False) -> Index:
    """An index over those rows only for which `condition` holds: small, and unique among them where asked."""
    where = text(condition)
    return Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)
