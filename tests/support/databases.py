"""Databases for tests: a SQLite file, and a private PostgreSQL cluster made of the system's own packages.

Import `database_url` (and `postgresql_cluster`, which it needs) into a conftest to have a test run on both engines.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from purelb_sm.models import Base
from purelb_sm.store import schema

ENGINES = ("sqlite", "postgresql")

_TEMPLATE = "template_purelb"


def postgresql_programs() -> Path | None:
    """The folder with initdb and postgres: the newest that the system has."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


@dataclass
class PostgresqlCluster:
    """A running server that listens on a Unix socket only.

    durable: what it has committed survives a power cut. No test cuts the power, and each new database would take half
    a second more; what such a commit costs is for benchmarks.
    """

    programs: Path
    folder: Path
    durable: bool = False
    process: subprocess.Popen[bytes] | None = None
    spare: list[str] = field(default_factory=list)

    @property
    def sockets(self) -> Path:
        return self.folder / "s"

    def url(self, database: str) -> str:
        return f"postgresql://purelb@/{database}?host={self.sockets}"

    def sql(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(host=str(self.sockets), user="purelb", dbname=database, autocommit=True) as connection:
            connection.execute(statement)

    def new_database(self, template: str = _TEMPLATE) -> str:
        """The URL of a new database, by default one with the schema."""
        name = f"t_{secrets.token_hex(6)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def borrow(self) -> str:
        """The URL of a database with the schema and no rows: one that was given back, or a new one."""
        return self.spare.pop() if self.spare else self.new_database()

    def give_back(self, url: str) -> None:
        """Empties it for the next test: making a database takes ten times as long."""
        name = url.partition("?")[0].rpartition("/")[2]
        tables = ", ".join(sorted(Base.metadata.tables))
        statements = ["SET lock_timeout = '2s'", "SET session_replication_role = replica"]
        statements += [f"TRUNCATE {tables} RESTART IDENTITY", "ALTER TABLE history ENABLE TRIGGER ALL"]
        try:
            self.sql("; ".join(statements), name)
        except psycopg.Error:
            # The test left it locked, changed or without a server: nobody else gets it.
            return
        self.spare.append(url)

    def prepare(self) -> None:
        """Makes the server's files, owned by the user that will run it."""
        self._own(self.folder)
        arguments = ["-A", "trust", "-U", "purelb", "-E", "UTF8", "--locale", "C.UTF-8", "--no-sync"]
        self._run([str(self.programs / "initdb"), "-D", str(self.folder / "d"), *arguments])
        self.sockets.mkdir()
        self._own(self.sockets)

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        settings = {"listen_addresses": "", "unix_socket_directories": str(self.sockets), "max_connections": "60"}
        settings |= {"shared_buffers": "32MB", "logging_collector": "off"}
        if self.durable:
            settings |= {"shared_buffers": "512MB", "max_wal_size": "4GB"}
        else:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            # A test run that is killed takes its server with it.
            [*_as_postgres("--pdeathsig", "INT"), self.programs / "postgres", "-D", self.folder / "d", *options],
            stdout=log,
            stderr=log,
            cwd=self.folder,
        )
        log.close()
        ready = [str(self.programs / "pg_isready"), "-q", "-h", str(self.sockets), "-U", "purelb", "-t", "1"]
        for _ in range(600):
            if subprocess.run(ready, check=False).returncode == 0:
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def stop(self, *, at_once: bool = False) -> None:
        """A fast shutdown, or as if the power were cut."""
        if self.process is None:
            return
        pid_file = self.folder / "d" / "postmaster.pid"
        mode = "immediate" if at_once else "fast"
        if pid_file.exists():
            self._run([str(self.programs / "pg_ctl"), "stop", "-s", "-m", mode, "-D", str(self.folder / "d")])
        self.process.wait(timeout=30)
        self.process = None

    def _own(self, path: Path) -> None:
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(path, user.pw_uid, user.pw_gid)

    def _run(self, command: list[str]) -> None:
        done = subprocess.run([*_as_postgres(), *command], capture_output=True, text=True, cwd=self.folder, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]}: {done.stderr or done.stdout}")


def _as_postgres(*more: str) -> list[str]:
    """PostgreSQL refuses to run as root, so root runs it as the user that the package made for it."""
    user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    return ["setpriv", *user, *more, "--"] if user or more else []


@pytest.fixture(scope="session")
def postgresql_cluster() -> Iterator[PostgresqlCluster]:
    """One server for the whole run, with a template database that has the schema."""
    programs = postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL IS NOT INSTALLED: half of the store is not tested. Install the package postgresql.")
    # Not under pytest's own folder: its path may be too long for a socket, and is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="plb-pg-"))
    cluster = PostgresqlCluster(programs, folder)
    try:
        cluster.prepare()
        cluster.start()
        cluster.sql(f"CREATE DATABASE {_TEMPLATE}")
        schema.upgrade(cluster.url(_TEMPLATE))
        yield cluster
    finally:
        cluster.stop(at_once=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema, to be copied."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    schema.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(params=ENGINES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> Iterator[str]:
    """A database of the test's own, with the schema; the test runs once on each engine."""
    if request.param == "sqlite":
        yield new_sqlite(tmp_path, sqlite_template)
        return
    cluster: PostgresqlCluster = request.getfixturevalue("postgresql_cluster")
    url = cluster.borrow()
    yield url
    cluster.give_back(url)


@pytest.fixture(scope="session", params=ENGINES)
def shared_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> str:
    """A database with the schema for all tests that roll back what they do."""
    if request.param == "sqlite":
        return new_sqlite(tmp_path_factory.mktemp("shared"), sqlite_template)
    cluster: PostgresqlCluster = request.getfixturevalue("postgresql_cluster")
    return cluster.new_database()


@pytest.fixture(params=ENGINES)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a database without a schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    cluster: PostgresqlCluster = request.getfixturevalue("postgresql_cluster")
    return cluster.new_database("template1")


def new_sqlite(folder: Path, template: Path) -> str:
    """The URL of a copy of the template."""
    path = folder / f"{secrets.token_hex(4)}.db"
    shutil.copyfile(template, path)
    return f"sqlite:///{path}"
