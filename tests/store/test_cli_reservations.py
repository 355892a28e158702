"""The verbs of reservations, as a person types them, on both engines."""

from __future__ import annotations

import csv
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from purelb_sm.cli import reservations
from purelb_sm.domain.views import ServiceKey
from purelb_sm.store.engine import make_engine
from tests.store.test_cli import purelb
from tests.support.book import WEB, Desk


@pytest.mark.spec("A26")
def test_a_reservation_from_beginning_to_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    desk.allocate(WEB, "10.0.0.7")
    made = purelb(desk.url, "reserve", "10.0.0.4/30", "--for", "shop/api", "--reason", "the move", "--until", "2h")
    assert made.exit_code == 0
    lines = made.stdout.splitlines()
    assert re.fullmatch(r"10\.0\.0\.4/30 is reserved for shop/api until 20\d\d-.*Z", lines[0])
    assert lines[1:] == [
        "it lies in no ServiceGroup that the book knows of",
        "in use, and left to whoever has it: 10.0.0.7 by shop/web",
    ]
    (record,) = [json.loads(line) for line in purelb(desk.url, "reservations", "-o", "json").stdout.splitlines()]
    assert (record["addresses"], record["first"], record["last"]) == ("10.0.0.4/30", "10.0.0.4", "10.0.0.7")
    assert (record["for"], record["reason"], record["by"]) == ("shop/api", "the move", "user/alice")
    assert (record["inForce"], record["ended"]) == (True, None)
    ends = datetime.fromisoformat(record["expires"]) - datetime.fromisoformat(record["since"])
    assert ends == timedelta(hours=2)
    same = ("--for", "shop/api", "--reason", "the move")
    again = purelb(desk.url, "reserve", "10.0.0.4-10.0.0.7", *same, "--actor", "bob")
    assert again.stdout.splitlines()[0] == "10.0.0.4/30 is reserved for shop/api"
    once_more = purelb(desk.url, "reserve", "10.0.0.4/30", *same)
    assert once_more.stdout.splitlines()[0] == "10.0.0.4/30 is reserved for shop/api, as before"
    table = purelb(desk.url, "reservations").stdout.splitlines()
    assert [line.split()[:3] for line in table] == [["ADDRESSES", "FOR", "REASON"], ["10.0.0.4/30", "shop/api", "the"]]
    lifted = purelb(desk.url, "unreserve", "10.0.0.4/30", "--reason", "done")
    assert (lifted.exit_code, lifted.stdout) == (0, "10.0.0.4/30 is reserved no more\n")
    assert purelb(desk.url, "reservations").stdout == "nothing is reserved\n"
    assert purelb(desk.url, "reservations", "-o", "json").stdout == ""
    rows = list(csv.DictReader(purelb(desk.url, "reservations", "--all", "-o", "csv").stdout.splitlines()))
    assert [(row["by"], row["inForce"]) for row in rows] == [("user/alice", "False"), ("bob", "False")]
    told = purelb(desk.url, "history", "--service", "shop/api", "-o", "json").stdout.splitlines()
    assert [(r["trigger"], r["actor"]) for r in map(json.loads, told)] == [
        ("reserve", "user/alice"),
        ("renew", "bob"),
        ("unreserve", "user/alice"),
    ]
    assert "10.0.0.4/30" in purelb(desk.url, "history", "--service", "shop/api").stdout
    assert purelb(desk.url, "verify").exit_code == 0


@pytest.mark.spec("A26")
def test_auditors_see_reservations_at_any_time(desk: Desk) -> None:
    purelb(desk.url, "reserve", "fd00::/64", "--reason", "a tunnel")
    purelb(desk.url, "unreserve", "fd00::/64")
    engine = make_engine(desk.url)
    with engine.connect() as connection:
        asked = 'SELECT "range", claim, reason, until_at IS NULL FROM v_reservations'
        ((range_, claim, reason, lives),) = connection.execute(text(asked)).all()
    engine.dispose()
    assert (range_, claim, reason, bool(lives)) == ("fd00::/64", None, "a tunnel", False)


@pytest.mark.spec("A26", "E1")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["reserve", "ten", "--reason", "x"], 2, "'ten': is not an IP address"),
        (["reserve", "10.0.0.5/24", "--reason", "x"], 2, "has host bits set"),
        (["reserve", "10.0.0.5-fd00::1", "--reason", "x"], 2, "mixes IPv4 and IPv6"),
        (["reserve", "10.0.0.5"], 2, "--reason"),
        (["reserve", "10.0.0.5", "--reason", " "], 2, "needs a reason"),
        (["reserve", "10.0.0.5", "--reason", "x", "--for", "web"], 2, "'web' is not namespace/name"),
        (["reserve", "10.0.0.5", "--reason", "x", "--until", "2020-01-01"], 2, "not in the future"),
        (["reserve", "10.0.0.5", "--reason", "x", "--until", "0s"], 2, "not in the future"),
        (["reserve", "10.0.0.5", "--reason", "x", "--until", "soon"], 2, "'soon' is not a time"),
        (["reserve", "10.0.0.5", "--reason", "x", "--actor", ""], 2, "the actor needs a name"),
        (["reserve", "10.0.0.5", "--reason", "x", "--actor", "a\x1b[2Jb"], 2, "the actor needs a name"),
        (["unreserve", "10.0.0.5"], 2, "10.0.0.5 is not reserved"),
        (["unreserve", "10.0.0.5-"], 2, "is not an IP address"),
    ],
)
def test_what_makes_no_sense_is_said_and_nothing_is_written(desk: Desk, words: list[str], code: int, said: str) -> None:
    before = desk.book.head()
    done = purelb(desk.url, *words)
    assert (done.exit_code, said in re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)) == (code, True), done.stderr
    assert desk.book.head() == before


def test_without_a_database_it_says_so() -> None:
    done = purelb("sqlite:////nonexistent/x.db", "reserve", "10.0.0.5", "--reason", "x")
    assert done.exit_code == 3
    assert done.stderr.startswith("purelb: ")


def test_many_holders_are_counted_and_some_named(desk: Desk) -> None:
    for number in range(7):
        desk.allocate(ServiceKey("shop", f"s{number}"), f"10.0.0.{number}")
    said = purelb(desk.url, "reserve", "10.0.0.0/24", "--reason", "x").stdout.splitlines()[-1]
    assert said.endswith("10.0.0.4 by shop/s4 and 2 more")


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 65532")

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.setattr("os.getuid", lambda: 65532)
    assert reservations._actor(None) == "user/65532"


def test_an_end_is_shown_in_utc(desk: Desk) -> None:
    year = datetime.now(UTC).year + 1
    said = purelb(desk.url, "reserve", "10.0.0.5", "--reason", "x", "--until", f"{year}-01-01T00:00:00+02:00").stdout
    assert said.startswith(f"10.0.0.5 is reserved from everybody until {year - 1}-12-31 22:00:00Z\n")
