"""The schema: brought to this program's version by `upgrade`, compared with it by `check`. Forward only.

A process that only works with the book calls `check`, which asks the database one question and does not load Alembic.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, event, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from purelb_sm.errors import DatabaseUnavailable, SchemaMismatch, StoreError
from purelb_sm.store.engine import LOCK_WAIT_S, make_engine, our_errors, parse_url

REVISIONS = ("0001", "0002", "0003")
"""All revisions that this program knows, oldest first. A test compares them with migrations/."""

HEAD = REVISIONS[-1]

_ADVISORY_LOCK = 0x70757265_6C62  # "purelb"


def check(url: str) -> str:
    """The revision of the database, which is ours. Raises SchemaMismatch with what to do, or DatabaseUnavailable."""
    engine = make_engine(url, readonly=True)
    try:
        with our_errors(), engine.connect() as connection:
            found = _revision(connection)
    finally:
        engine.dispose()
    _compare(found)
    return found


def upgrade(url: str) -> tuple[str, str]:
    """Brings the database to HEAD in one transaction, alone. Returns (revision before, revision now).

    Makes a SQLite file and its folder. Raises SchemaMismatch for a database newer than this program.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        path = Path(str(parsed.database)).absolute()
        _make_folder(path.parent)
        with _file_lock(path.with_name(path.name + ".upgrade-lock")):
            return _upgrade(url)
    return _upgrade(url)


def migrations() -> Path:
    """The folder with env.py: in an installed package, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def _upgrade(url: str) -> tuple[str, str]:
    engine = make_engine(url, create=True)
    if engine.dialect.name == "sqlite":
        _without_foreign_keys(engine)
    try:
        with our_errors(), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            before = _revision(connection)
            if before != HEAD:
                if before:
                    _refuse_unknown(before)
                _run_alembic(connection)
                _check_foreign_keys(connection)
            return before, _revision(connection)
    finally:
        engine.dispose()


def _run_alembic(connection: Connection) -> None:
    # Loaded only here: a process that works with the book never pays for it.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreError(f"the migrations cannot be run: {error}") from error


def _without_foreign_keys(engine: Engine) -> None:
    """With foreign keys on, a migration that rebuilds a table in SQLite empties those that refer to it."""

    @event.listens_for(engine, "connect")
    def _connected(connection: object, _record: object) -> None:
        connection.execute("PRAGMA foreign_keys=OFF")  # type: ignore[attr-defined]


def _check_foreign_keys(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if broken:
            raise StoreError(
                f"the migration would leave {len(broken)} rows without what they refer to; nothing was kept"
            )


def _revision(connection: Connection) -> str:
    """The revision in the database; empty where there is none yet."""
    try:
        if not inspect(connection).has_table("alembic_version"):
            return ""
        return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")
    except SQLAlchemyError as error:
        if "not a database" in str(error):
            raise StoreError("the file is not a database") from error
        raise


def _compare(found: str) -> None:
    if not found:
        raise SchemaMismatch("the database has no schema yet: run `purelb db upgrade`")
    if found != HEAD:
        _refuse_unknown(found)
        raise SchemaMismatch(f"the schema is {found}, this program needs {HEAD}: run `purelb db upgrade`")


def _refuse_unknown(found: str) -> None:
    if found not in REVISIONS:
        raise SchemaMismatch(
            f"the schema is {found}, which this program (up to {HEAD}) does not know: use the newer program"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseUnavailable(f"the folder {folder} cannot be made: {error.strerror}") from error


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """One upgrade of a SQLite file at a time, all its processes on this machine."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DatabaseUnavailable(f"{path} cannot be opened: {error.strerror}") from error
    try:
        _wait_for_lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise DatabaseUnavailable(f"another upgrade holds {path}") from None
            time.sleep(0.05)
        else:
            return
