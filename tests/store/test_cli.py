"""The verbs that ask the book, as a person types them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from purelb_sm.cli.main import command
from purelb_sm.cli.times import parse_when, show
from purelb_sm.domain.book import Observe, Refuse
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import Reason
from purelb_sm.store import schema
from purelb_sm.store.engine import make_engine
from tests.support.book import DNS, WEB, Agent, Desk


def purelb(url: str, *words: str) -> Result:
    return CliRunner().invoke(command(), words, env={"PURELB_DATABASE": url})


@pytest.fixture
def told(desk: Desk) -> Desk:
    desk.allocate(WEB, "10.0.0.7")
    desk.report(Agent("node3").add("10.0.0.7", "enp1s0").report())
    desk.allocate(DNS, "10.0.0.8")
    return desk


@pytest.mark.spec("B2")
def test_who_had_an_address(told: Desk) -> None:
    at = told.now.isoformat()
    told.withdraw(WEB)
    done = purelb(told.url, "who-had", "10.0.0.7", "--at", at)
    assert done.exit_code == 0
    header, line = done.stdout.splitlines()
    assert header.split() == ["ADDRESS", "SERVICE", "GROUP", "STATE", "SINCE", "UNTIL", "ON"]
    assert line.split()[:4] == ["10.0.0.7", "shop/web", "default", "held"]
    assert "node3 enp1s0 (present since 2026-11-24 03:12:02Z" in line


@pytest.mark.spec("B2")
def test_who_had_an_address_for_programs(told: Desk) -> None:
    record = json.loads(purelb(told.url, "who-had", "10.0.0.7", "--at", told.now.isoformat(), "-o", "json").stdout)
    assert (record["namespace"], record["name"], record["until"]) == ("shop", "web", None)
    assert [(n["node"], n["interface"], n["prefixLength"]) for n in record["nodes"]] == [("node3", "enp1s0", 24)]


@pytest.mark.spec("B2")
def test_nobody_had_it(told: Desk) -> None:
    done = purelb(told.url, "who-had", "10.0.0.99", "--at", "2026-11-24")
    assert (done.exit_code, done.stdout) == (0, "nobody had 10.0.0.99 at 2026-11-24 00:00:00Z\n")
    assert purelb(told.url, "who-had", "10.0.0.99", "-o", "json").stdout == ""


def test_who_has_it_now_when_nobody_does_any_more(told: Desk) -> None:
    told.withdraw(WEB)
    line = purelb(told.url, "who-had", "10.0.0.7", "--at", told.now.isoformat()).stdout.splitlines()[1]
    assert "nobody (kept for shop/web)" in line
    assert "releasing" in line


@pytest.mark.spec("B2")
def test_history_as_a_table(told: Desk) -> None:
    lines = purelb(told.url, "history", "--service", "shop/web").stdout.splitlines()
    assert lines[0].split()[:4] == ["SEQ", "TIME", "KIND", "SERVICE"]
    moves = [next(word for word in line.split() if word in MOVES) for line in lines[1:]]
    assert moves == ["observe", "hold", "allocate", "seen", "add", "added", "announce"]
    assert "agent/node3" in lines[6]


MOVES = {"observe", "hold", "allocate", "seen", "add", "added", "announce"}


@pytest.mark.spec("B2")
def test_history_as_json_and_csv(told: Desk) -> None:
    lines = purelb(told.url, "history", "-o", "json").stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    table = list(csv.DictReader(purelb(told.url, "history", "-o", "csv").stdout.splitlines()))
    assert [r["seq"] for r in rows] == [int(r["seq"]) for r in table] == list(range(1, len(rows) + 1))
    hold = next(r for r in rows if r["trigger"] == "hold")
    assert (hold["namespace"], hold["address"], hold["from"], hold["to"]) == ("shop", "10.0.0.7", None, "held")
    assert json.loads(table[3]["details"]) == {"addresses": ["10.0.0.7"]}


@pytest.mark.spec("B2")
@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (["--address", "10.0.0.8"], {"allocation"}),
        (["--node", "node3"], {"announcement", "service"}),
        (["--namespace", "infra"], {"service", "allocation"}),
        (["--group", "nothing"], set()),
        (["--since", "2026-11-24T03:12:03Z"], {"service", "allocation"}),
        (["--until", "2026-11-24 03:12:01"], {"leadership"}),
    ],
)
def test_history_is_narrowed(told: Desk, words: list[str], kinds: set[str]) -> None:
    done = purelb(told.url, "history", "-o", "json", *words)
    assert {json.loads(line)["kind"] for line in done.stdout.splitlines()} == kinds


@pytest.mark.spec("B2")
def test_state_at_a_time(told: Desk) -> None:
    lines = purelb(told.url, "state", "--at", told.now.isoformat()).stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["10.0.0.7", "shop/web"], ["10.0.0.8", "infra/dns"]]
    assert purelb(told.url, "state", "--at", "2020-01-01").stdout == "nothing was held at 2020-01-01 00:00:00Z\n"


@pytest.mark.spec("B4")
def test_verify_says_where_the_chain_breaks(told: Desk) -> None:
    seq, digest = told.book.head()
    done = purelb(told.url, "verify", "--head", f"{seq}:{digest}")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{seq} rows, the chain holds. Head {seq}:{digest}. It contains {seq}:{digest}, ")
    alone = purelb(told.url, "verify")
    assert (alone.exit_code, alone.stdout) == (0, f"{seq} rows, the chain holds. Head {seq}:{digest}.\n")
    cut = purelb(told.url, "verify", "--head", f"{seq + 1}:{digest}")
    assert cut.exit_code == 1
    assert f"history row {seq + 1}: is missing" in cut.stderr
    engine = make_engine(told.url)
    with engine.begin() as connection:
        drop = "ALTER TABLE history DISABLE TRIGGER ALL"
        connection.execute(text(drop if "postgresql" in told.url else "DROP TRIGGER history_no_update"))
        connection.execute(text("UPDATE history SET reason = 'no reason' WHERE seq = 4"))
    engine.dispose()
    broken = purelb(told.url, "verify")
    assert broken.exit_code == 1
    assert "history row 4: was changed" in broken.stderr


@pytest.mark.spec("B8")
def test_db_upgrade_and_check(empty_url: str) -> None:
    engine = make_engine(empty_url, create=True)
    engine.connect().close()
    engine.dispose()
    missing = purelb(empty_url, "db", "check")
    assert missing.exit_code == 1
    assert "run `purelb db upgrade`" in missing.stderr
    assert purelb(empty_url, "db", "upgrade").stdout == f"{schema.HEAD}, before: no schema\n"
    assert purelb(empty_url, "db", "upgrade").stdout == f"{schema.HEAD}, as before\n"
    assert purelb(empty_url, "db", "check").stdout == f"{schema.HEAD}, as this program needs it\n"


@pytest.mark.parametrize(
    "words",
    [
        ["who-had", "10.0.0.007"],
        ["who-had", "::ffff:10.0.0.7"],
        ["who-had", "10.0.0.7", "--at", "yesterday"],
        ["who-had", "10.0.0.7", "--at", "999999999999h ago"],
        ["history", "--service", "web"],
        ["history", "--service", "a/b/c"],
        ["history", "--address", "10.0.0"],
        ["history", "--since", "2026-13-01"],
        ["verify", "--head", "12"],
        ["verify", "--head", "12:zz"],
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(desk: Desk, words: list[str]) -> None:
    done = purelb(desk.url, *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("purelb: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["history"], ["who-had", "10.0.0.1"], ["state"], ["verify"], ["db", "check"]])
def test_a_database_that_is_not_there_is_said_in_one_line(tmp_path: Path, words: list[str]) -> None:
    done = purelb(f"sqlite:///{tmp_path}/none.db", *words)
    assert done.exit_code == 3
    assert "there is no database at" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_text_from_users_cannot_play_with_the_terminal(desk: Desk) -> None:
    key = ServiceKey("n", "evil")
    evil = "\x1b]0;owned\x07 [red]x[/red] \x9b2J"
    desk.do(key, Observe(key, "u"), Refuse(key, "u", Reason.INVALID_REQUEST, evil))
    shown = purelb(desk.url, "history").stdout
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "\\x1b]0;owned\\x07 [red]x[/red] \\x9b2J" in shown


def test_a_long_history_is_printed_in_pages_with_one_header(desk: Desk) -> None:
    for _ in range(3):
        desk.book.raise_term(desk.now)
    from purelb_sm.cli import printing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(printing, "_PAGE", 2)
        lines = purelb(desk.url, "history").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["SEQ", "1", "2", "3", "4"]


NOW = datetime(2026, 11, 24, 3, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text_", "at"),
    [
        ("now", NOW),
        ("2h ago", NOW - timedelta(hours=2)),
        ("1h30m ago", NOW - timedelta(minutes=90)),
        ("7d ago", NOW - timedelta(days=7)),
        ("2026-11-24T03:12:00Z", NOW),
        ("2026-11-24T05:12:00+02:00", NOW),
        ("2026-11-24 03:12", NOW),
        ("2026-11-24", NOW.replace(hour=0, minute=0)),
    ],
)
def test_times_as_people_type_them(text_: str, at: datetime) -> None:
    assert parse_when(text_, NOW) == at


def test_times_are_shown_exactly() -> None:
    assert show(NOW) == "2026-11-24 03:12:00Z"
    assert show(NOW.replace(microsecond=1)) == "2026-11-24 03:12:00.000001Z"
    assert show(None) == ""
    assert parse_when(show(NOW.replace(microsecond=1)), NOW) == NOW.replace(microsecond=1)


def test_the_command_loads_no_database_until_it_is_asked() -> None:
    program = "import sys, purelb_sm.cli.main; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
