"""Engines for both databases, and every database error as one of ours.

Owns how a transaction begins, what a lost connection looks like, and where SQLite must not be. Knows nothing of rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import ClauseElement, Connection, Dialect, Engine, Executable, Result, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    IntegrityError,
    InterfaceError,
    InternalError,
    NoSuchModuleError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.sql.compiler import SQLCompiler

from purelb_sm.errors import Clash, DatabaseUnavailable, StoreError
from purelb_sm.store.carrying import LOG_KEPT, Carrier

LOCK_WAIT_S = 15
"""How long a writer waits for another's transaction before it gives up with DatabaseUnavailable."""

CACHE_KIB = 32 * 1024
"""So much of a SQLite book is kept in memory, as far as it is used."""

_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "glusterfs", "gfs2", "gpfs", "juicefs", "lustre"}
    | {"moosefs", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "rclone", "s3fs", "seaweedfs", "smb3", "smbfs", "sshfs"}
)
"""As /proc/self/mountinfo names them, a leading `fuse.` aside."""


def parse_url(text: str) -> URL:
    """The URL of a database we can keep a book in. Raises StoreError; the text of a password never gets into it."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise StoreError("the database URL cannot be read") from None
    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise StoreError(f"{backend} is not a database for the book: sqlite:///FILE or postgresql://…")
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if not url.database or url.database == ":memory:":
        raise StoreError("the book needs a file: sqlite:///FILE")
    return url


def make_engine(text: str, *, readonly: bool = False, create: bool = False) -> Engine:
    """An engine whose transactions take the write lock at once, or, where `readonly`, cannot write at all.

    `create`: a SQLite file that is not there is made; else its absence is DatabaseUnavailable. Raises StoreError, among
    them for SQLite on a network file system: its write-ahead log needs memory that all processes share
    (sqlite.org/wal.html).
    """
    url = parse_url(text)
    try:
        return _sqlite(url, readonly, create) if url.get_backend_name() == "sqlite" else _postgresql(url, readonly)
    except (ImportError, NoSuchModuleError) as error:
        raise StoreError(f"no driver for this database: {error}") from None


def _sqlite(url: URL, readonly: bool, create: bool) -> Engine:
    path = Path(str(url.database)).absolute()
    kind = network_file_system(path)
    if kind:
        raise StoreError(f"{path} is on {kind}: SQLite keeps its log in shared memory, so it needs a local disk")

    def connect() -> sqlite3.Connection:
        if not create and not path.exists():
            raise sqlite3.OperationalError(f"there is no database at {path}")
        uri = f"{path.as_uri()}?mode={'rwc' if create else 'rw'}"
        # The driver's own BEGIN comes late and is deferred: two writers that have read would both be refused.
        return sqlite3.connect(uri, uri=True, timeout=LOCK_WAIT_S, check_same_thread=False, isolation_level=None)

    engine = create_engine(url, creator=connect, pool_size=2, max_overflow=8)
    pragmas = [f"busy_timeout={int(LOCK_WAIT_S * 1000)}", "foreign_keys=ON"]
    # FULL: in WAL mode, NORMAL may lose the last commits at a power cut, and then an address is given out twice.
    # An allocation in a large book changes pages all over it. They are read once, and are carried from the log into the
    # file beside the work; who writes finishes that itself when the log has 32 MiB, not 4: most of it is done by then.
    pragmas += ["query_only=ON"] if readonly else ["journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=8192"]
    pragmas += [f"cache_size=-{CACHE_KIB}", f"journal_size_limit={LOG_KEPT}"]

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, record: Any) -> None:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
        record.info["file"] = _identity(path)

    @event.listens_for(engine, "checkout")
    def _checked_out(_connection: Any, record: Any, _proxy: object) -> None:
        # A restored backup was moved into place: what we would write to the old file nobody would ever read.
        if record.info["file"] != _identity(path):
            raise DisconnectionError(f"{path} is another file now")

    @event.listens_for(engine, "begin")
    def _began(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")

    if not readonly:
        carrier = Carrier(path)
        event.listen(engine, "checkin", lambda _connection, _record: carrier.look())
        event.listen(engine, "engine_disposed", lambda _engine: carrier.stop())
    return engine


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _postgresql(url: URL, readonly: bool) -> Engine:
    # A leader that hangs in a transaction must not keep its successor waiting for the lock for ever.
    options = [f"-c lock_timeout={LOCK_WAIT_S}s", "-c idle_in_transaction_session_timeout=60s", "-c timezone=UTC"]
    if readonly:
        options = ["-c default_transaction_read_only=on", "-c timezone=UTC"]
    own = url.query.get("options", "")
    arguments = {
        "options": " ".join([*options, own if isinstance(own, str) else " ".join(own)]).strip(),
        "application_name": "purelb",
        "connect_timeout": 10,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }
    return create_engine(
        url,
        pool_size=2,
        max_overflow=8,
        pool_pre_ping=True,
        isolation_level="REPEATABLE READ" if readonly else "READ COMMITTED",
        connect_args=arguments,
    )


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system that `path` is on, or None. `mounts`: text of /proc/self/mountinfo."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
    best, kind = -1, ""
    real = path.resolve()
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        mount = Path(_unescaped(left.split(" ")[4]))
        # Of mounts on one place the last covers the others.
        if real.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), right.split(" ")[0]
    return kind if kind.removeprefix("fuse.") in _NETWORK else None


def _unescaped(text: str) -> str:
    """proc(5): space, tab, newline and backslash are written as octal."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


@contextmanager
def our_errors() -> Iterator[None]:
    """Turns what SQLAlchemy raises into Clash, DatabaseUnavailable or StoreError."""
    try:
        yield
    except IntegrityError as error:
        raise Clash(_first_line(error)) from error
    except DBAPIError as error:
        if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError | InternalError):
            raise DatabaseUnavailable(_first_line(error)) from error
        raise StoreError(_first_line(error)) from error
    except StatementError as error:
        raise StoreError(_first_line(error)) from error
    except (DisconnectionError, PendingRollbackError, PoolTimeout) as error:
        raise DatabaseUnavailable(str(error).splitlines()[0]) from error


def _first_line(error: StatementError) -> str:
    """The driver's own words, without the statement and its values."""
    text = str(error.orig).strip()
    return text.splitlines()[0] if text else type(error.orig).__name__


@contextmanager
def begun(engine: Engine) -> Iterator[Db]:
    """A connection in a transaction that is rolled back at the end unless it was committed."""
    with our_errors():
        connection = engine.connect()
    try:
        with our_errors():
            connection.begin()
        yield Db(connection)
    finally:
        # Rolls back what is open. That a broken connection cannot must not hide why we are here.
        with suppress(SQLAlchemyError):
            connection.close()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A statement as the driver takes it, and what makes the driver's values of ours, in the order of its places.

    SQLAlchemy finds both out for every set of values anew, which takes as long as SQLite needs to write the row.
    """

    text: str
    columns: Sequence[tuple[str, Callable[[Any], Any] | None]]
    by_name: bool

    def bind(self, parameters: Sequence[Mapping[str, Any]]) -> Any:
        if self.by_name:
            return [{n: row[n] if c is None else c(row[n]) for n, c in self.columns} for row in parameters]
        return [tuple([row[n] if c is None else c(row[n]) for n, c in self.columns]) for row in parameters]


@lru_cache(maxsize=128)
def _prepared(statement: ClauseElement, dialect: Dialect, keys: tuple[str, ...]) -> _Prepared:
    compiled = statement.compile(dialect=dialect, column_keys=list(keys), for_executemany=True)
    assert isinstance(compiled, SQLCompiler)
    names = list(compiled.binds) if compiled.positiontup is None else compiled.positiontup
    columns = [(name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect)) for name in names]
    return _Prepared(str(compiled), columns, compiled.positiontup is None)


class Db:
    """One connection inside a transaction. Every statement of the store goes through here, so errors are ours."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rows(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """All rows at once."""
        with our_errors():
            return self._connection.execute(statement, parameters).all()

    def row(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Any | None:
        """The first row, or None."""
        with our_errors():
            return self._connection.execute(statement, parameters).first()

    def rows_changed(self, statement: Executable) -> None:
        """A statement that changes rows and gives none."""
        with our_errors():
            self._connection.execute(statement)

    def many(self, statement: ClauseElement, parameters: Sequence[Mapping[str, Any]]) -> None:
        """One statement with many sets of values; none: nothing is sent."""
        if not parameters:
            return
        with our_errors():
            prepared = _prepared(statement, self._connection.dialect, tuple(parameters[0]))
            try:
                values = prepared.bind(parameters)
            except (LookupError, TypeError, ValueError) as error:
                raise StoreError(f"no value for the book: {error}") from error
            self._connection.exec_driver_sql(prepared.text, values)

    def stream(
        self, statement: Executable, chunk: int = 1000, parameters: Mapping[str, Any] | None = None
    ) -> Iterator[Any]:
        """Rows as they come, `chunk` of them in memory at a time."""
        options = {"yield_per": chunk}
        with our_errors():
            result: Result[Any] = self._connection.execute(statement, parameters, execution_options=options)
        try:
            while True:
                with our_errors():
                    rows = result.fetchmany(chunk)
                if not rows:
                    return
                yield from rows
        finally:
            result.close()

    def commit(self) -> None:
        """Kept, or one of our errors. A connection cut in the middle leaves open which: both are whole."""
        with our_errors():
            self._connection.commit()
