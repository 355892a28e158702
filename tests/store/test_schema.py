"""The schema: what migrations build is what the models say, on both engines; strangers are refused."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from purelb_sm.domain.book import Allocate, Hold, Observe, Plan
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import DatabaseUnavailable, SchemaMismatch, StoreError
from purelb_sm.models import VIEWS, Base, pack
from purelb_sm.store import Book, schema
from purelb_sm.store.audit import Audit
from purelb_sm.store.engine import make_engine, network_file_system, parse_url
from tests.support.databases import PostgresqlCluster


def shape(connection: Connection) -> dict[str, Any]:
    """All that makes up a schema, as the database itself tells it."""
    if connection.dialect.name == "sqlite":
        query = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE '%alembic%' AND sql IS NOT NULL"
        return {f"{t} {n}": _sorted_body(sql) for t, n, sql in connection.execute(text(query))}
    queries = {
        "constraint": """SELECT conrelid::regclass || ' ' || conname, pg_get_constraintdef(oid) FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace""",
        "index": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "trigger": "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
        "function": "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
        "view": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'",
        "column": """SELECT table_name || '.' || column_name, data_type || ' ' || is_nullable || ' ' ||
            coalesce(column_default, '') || ' ' || coalesce(character_maximum_length::text, '')
            FROM information_schema.columns WHERE table_schema = 'public'""",
    }
    return {
        f"{kind} {name}": definition
        for kind, query in queries.items()
        for name, definition in connection.execute(text(query))
        if "alembic" not in name
    }


def _sorted_body(sql: str) -> list[str]:
    """A CREATE TABLE's parts in no particular order: migrations bring constraints in another one."""
    if not sql.startswith("CREATE TABLE"):
        return [sql]
    head, _, body = sql.rpartition(")")[0].partition("(")
    parts, depth = [""], 0
    for character in body:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [head.strip(), *sorted(" ".join(part.split()) for part in parts)]


def test_the_migrations_build_what_the_models_say(empty_url: str) -> None:
    """`alembic check` does not see CHECKs, partial conditions, triggers and views; this does."""
    schema.upgrade(empty_url)
    engine = make_engine(empty_url)
    with engine.begin() as connection:
        migrated = shape(connection)
        _wipe(connection)
        Base.metadata.create_all(connection)
        assert shape(connection) == migrated
    engine.dispose()
    assert len(migrated) > 30


def _wipe(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
        return
    for kind in ("view", "table"):
        for (name,) in connection.execute(text(f"SELECT name FROM sqlite_master WHERE type = '{kind}'")).all():
            connection.execute(text(f"DROP {kind} IF EXISTS {name}"))


def alembic_config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(schema.migrations()))
    config.attributes["connection"] = connection
    return config


@pytest.mark.spec("B8")
def test_alembic_finds_nothing_to_change(database_url: str) -> None:
    engine = make_engine(database_url)
    with engine.begin() as connection:
        command.check(alembic_config(connection))
    engine.dispose()


def test_the_program_knows_all_revisions_and_they_are_one_line() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.migrations()))
    scripts = ScriptDirectory.from_config(config)
    assert tuple(s.revision for s in reversed(list(scripts.walk_revisions()))) == schema.REVISIONS
    assert scripts.get_heads() == [schema.HEAD]


def test_no_migration_goes_back(database_url: str) -> None:
    engine = make_engine(database_url)
    with pytest.raises(NotImplementedError, match="forward"), engine.begin() as connection:
        command.downgrade(alembic_config(connection), "base")
    engine.dispose()
    assert schema.check(database_url) == schema.HEAD


@pytest.mark.spec("B8")
def test_an_upgrade_makes_the_schema_once(empty_url: str) -> None:
    assert schema.upgrade(empty_url) == ("", schema.HEAD)
    assert schema.upgrade(empty_url) == (schema.HEAD, schema.HEAD)
    assert schema.check(empty_url) == schema.HEAD


@pytest.mark.spec("B8")
@pytest.mark.parametrize("before", schema.REVISIONS[:-1])
def test_a_book_of_every_older_schema_is_upgraded_with_what_is_in_it(
    empty_url: str, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = "2026-11-24 03:12:00+00:00" if empty_url.startswith("postgresql") else "2026-11-24T03:12:00.000000Z"
    engine = make_engine(empty_url, create=True)
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), before)
        connection.execute(
            text(
                "INSERT INTO leadership (id, cluster, term, holder, raised_at) VALUES (1, 'default', 7, 'before', :at)"
            ),
            {"at": at},
        )
    engine.dispose()
    assert schema.upgrade(empty_url) == (before, schema.HEAD)
    book = Book.open(empty_url, actor="after")
    assert book.raise_term(datetime.now(UTC)) == 8
    book.close()


@pytest.mark.spec("B8")
@pytest.mark.parametrize("before", schema.REVISIONS[:2])
def test_who_had_an_address_before_an_upgrade_has_it_after(empty_url: str, before: str) -> None:
    """Services got numbers, by which what they hold is found, with 0003."""
    at = "2026-11-24 03:12:00+00:00" if empty_url.startswith("postgresql") else "2026-11-24T03:12:00.000000Z"
    keys = [ServiceKey("shop", name) for name in ("a", "b")]
    engine = make_engine(empty_url, create=True)
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), before)
        for number, (_, name) in enumerate(keys, 1):
            values = {"at": at, "n": number, "name": name, "uid": f"u-{name}", "claim": f"shop/{name}"}
            values |= {"address": pack(ip_address(f"10.0.0.{number}")), "text": f"10.0.0.{number}"}
            for statement in (
                """INSERT INTO service (uid, cluster, namespace, name, state, reason, message, group_name, since,
                observed_at) VALUES (:uid, 'default', 'shop', :name, 'allocated', '', '', 'default', :at, :at)""",
                """INSERT INTO allocation (id, address, address_text, family, group_name, claim, state, since, held_at)
                VALUES (:n, :address, :text, 'IPv4', 'default', :claim, 'held', :at, :at)""",
                "INSERT INTO membership (allocation_id, service_uid, from_at) VALUES (:n, :uid, :at)",
            ):
                connection.execute(text(statement), {k: v for k, v in values.items() if f":{k}" in statement})
    engine.dispose()
    schema.upgrade(empty_url)
    book, now = Book.open(empty_url, actor="after"), datetime.now(UTC)
    term = book.raise_term(now)
    new = ServiceKey("shop", "c")
    with book.transaction(term, now) as unit:
        booked = unit.load({key: f"u-{key.name}" for key in (*keys, new)})
        assert [str(a.address) for key in keys for a in booked[key].held] == ["10.0.0.1", "10.0.0.2"]
        hold = Hold(new, "u-c", ip_address("10.0.0.3"), "default", ())
        unit.apply(Plan(new, (Observe(new, "u-c"), hold, Allocate(new, "u-c", "default"))))
        unit.commit()
    with book.transaction(term, now) as unit:
        assert [str(a.address) for a in unit.load({new: "u-c"})[new].held] == ["10.0.0.3"]
    book.close()


@pytest.mark.spec("B8")
def test_two_upgrades_at_once_are_one(empty_url: str) -> None:
    program = "import sys; from purelb_sm.store import schema; print(schema.upgrade(sys.argv[1]))"
    running = [
        subprocess.Popen([sys.executable, "-c", program, empty_url], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = sorted(process.communicate(timeout=60)[0].strip() for process in running)
    assert said == [f"('', '{schema.HEAD}')", *[f"('{schema.HEAD}', '{schema.HEAD}')"] * 2]


def test_a_migration_that_fails_leaves_nothing(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE half (id INTEGER)"))
        raise StoreError("the power went")

    monkeypatch.setattr(schema, "_run_alembic", fail)
    with pytest.raises(StoreError, match="power"):
        schema.upgrade(empty_url)
    engine = make_engine(empty_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


@pytest.mark.parametrize("open_", [lambda url: Book.open(url, actor="x"), Audit.open, schema.check])
class TestStrangers:
    """Nobody works with a schema he does not know."""

    def test_a_database_without_a_schema(self, empty_url: str, open_: Any) -> None:
        engine = make_engine(empty_url, create=True)
        engine.connect().close()
        engine.dispose()
        with pytest.raises(SchemaMismatch, match="purelb db upgrade"):
            open_(empty_url)

    def test_an_unknown_newer_schema(self, database_url: str, open_: Any) -> None:
        _set_revision(database_url, "9999")
        try:
            with pytest.raises(SchemaMismatch, match="does not know"):
                open_(database_url)
            with pytest.raises(SchemaMismatch, match="does not know"):
                schema.upgrade(database_url)
        finally:
            _set_revision(database_url, schema.HEAD)

    def test_an_older_schema(self, database_url: str, open_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, "7777"))
        monkeypatch.setattr(schema, "HEAD", "7777")
        with pytest.raises(SchemaMismatch, match="needs 7777: run"):
            open_(database_url)


def _set_revision(url: str, revision: str) -> None:
    engine = make_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": revision})
    engine.dispose()


def test_a_file_that_is_not_there_is_not_made_by_asking(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="no database at"):
        schema.check(f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("buy milk " * 1000)
    with pytest.raises(StoreError, match="not a database"):
        schema.upgrade(f"sqlite:///{path}")
    assert path.read_text().startswith("buy milk")


def test_an_upgrade_makes_the_folder(tmp_path: Path) -> None:
    assert schema.upgrade(f"sqlite:///{tmp_path}/a/b/c.db") == ("", schema.HEAD)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseUnavailable, match="cannot be made"):
        schema.upgrade(f"sqlite:///{tmp_path}/file/c.db")


def test_no_server_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        schema.check(f"postgresql://purelb@/x?host={tmp_path}")


@pytest.mark.parametrize("url", ["mysql://h/x", "sqlite://", "sqlite:///:memory:", "nonsense", ""])
def test_no_other_database_is_taken(url: str) -> None:
    with pytest.raises(StoreError):
        parse_url(url)


@pytest.mark.spec("D6")
def test_a_password_is_in_no_error(tmp_path: Path) -> None:
    for url in ("mysql://ann:hunter2@h/x", "postgresql:/ann:hunter2@h/x", f"postgresql://a:hunter2@/x?host={tmp_path}"):
        with pytest.raises(StoreError) as caught:
            schema.check(url)
        assert "hunter2" not in str(caught.value)


MOUNTS = """22 27 0:21 / /proc rw - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:30 / /srv rw - nfs4 server:/srv rw
31 30 0:31 / /srv/local\\040disk rw - xfs /dev/vdb rw
32 27 0:32 / /mnt/ssh rw - fuse.sshfs host: rw
33 27 0:33 / /over rw - ext4 /dev/vdc rw
34 27 0:34 / /over rw - cifs //host/share rw
35 27 0:35 / /pvc rw - virtiofs share rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/purelb/purelb.db", None),
        ("/srv/purelb.db", "nfs4"),
        ("/srvother/purelb.db", None),
        ("/srv/local disk/purelb.db", None),
        ("/mnt/ssh/a/b.db", "fuse.sshfs"),
        ("/over/x.db", "cifs"),
        ("/pvc/x.db", None),
    ],
)
def test_a_network_file_system_is_recognised(path: str, kind: str | None) -> None:
    assert network_file_system(Path(path), MOUNTS) == kind


def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purelb_sm.store.engine.network_file_system", lambda path: "nfs4")
    with pytest.raises(StoreError, match="local disk"):
        schema.upgrade(f"sqlite:///{tmp_path}/x.db")


def test_sqlite_is_set_up_to_lose_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    schema.upgrade(url)
    engine = make_engine(url)
    with engine.connect() as connection:
        asked = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        }
        asked["foreign_keys"] = connection.exec_driver_sql("PRAGMA foreign_keys").scalar()
    engine.dispose()
    assert asked == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_every_view_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "database.md").read_text()
    for name in VIEWS:
        assert f"`{name}`" in page
    for name in Base.metadata.tables:
        assert f"`{name}`" in page


def test_a_process_that_keeps_the_book_does_not_load_alembic() -> None:
    program = "import sys, purelb_sm.store; print('alembic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_upgrade_waits_for_another_process(postgresql_cluster: PostgresqlCluster) -> None:
    """The advisory lock is really taken: while somebody holds it, the upgrade does not begin."""
    url = postgresql_cluster.new_database("template1")
    engine = make_engine(url)
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": schema._ADVISORY_LOCK})
        program = "import sys; from purelb_sm.store import schema; print(schema.upgrade(sys.argv[1]))"
        waiting = subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE, text=True)
        asked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while connection.execute(text(asked)).scalar() == 0:
            assert waiting.poll() is None
        assert inspect(connection).get_table_names() == []
    assert waiting.communicate(timeout=60)[0].strip() == f"('', '{schema.HEAD}')"
    engine.dispose()
