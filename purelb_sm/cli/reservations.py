"""The verbs that keep addresses back: `reserve`, `unreserve`, `reservations`. They write the book themselves; the
allocator sees it by itself, at once where it has something to do, within seconds where it has not."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from purelb_sm.cli.answering import Database, Form, explained, service_key, utc_now
from purelb_sm.cli.printing import Output, print_rows
from purelb_sm.cli.times import parse_until, show
from purelb_sm.domain.reservations import parse_reserved, range_text
from purelb_sm.errors import InvalidInput
from purelb_sm.settings import DEFAULT_DATABASE

if TYPE_CHECKING:
    from purelb_sm.store.reserving import Made, Recorded, Registrar

Addresses = Annotated[str, typer.Argument(metavar="ADDRESS|RANGE|CIDR", help="10.0.0.7, 10.0.0.7-10.0.0.9, fd00::/64")]
Actor = Annotated[str | None, typer.Option(help="who the history names; without it the user of this machine")]


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.command("reserve")(reserve)
    app.command("unreserve")(unreserve)
    app.command("reservations")(reservations)


def reserve(
    addresses: Addresses,
    reason: Annotated[str, typer.Option(help="why, for those who find it later")],
    service: Annotated[str | None, typer.Option("--for", help="namespace/name of the Service that may have it")] = None,
    until: Annotated[str | None, typer.Option(help="2026-12-24T08:00:00Z, 2026-12-24, or so long from now: 2h")] = None,
    actor: Actor = None,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Keeps addresses from everybody, or for one Service. Whoever has one now keeps it; nobody else gets it after."""
    now = utc_now()
    with explained():
        range_ = parse_reserved(addresses)
        claim = service_key(service) if service else None
        expires_at = _until(until, now) if until else None
        with _registrar(database, _actor(actor)) as registrar:
            made = registrar.reserve(range_, claim, reason, expires_at, now)
        typer.echo(_made(made))


def unreserve(
    addresses: Addresses,
    reason: Annotated[str, typer.Option(help="why, for those who find it later")] = "",
    actor: Actor = None,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Lifts a reservation, all of it. Whoever has waited longest for an address gets it."""
    with explained():
        range_ = parse_reserved(addresses)
        with _registrar(database, _actor(actor)) as registrar:
            lifted = registrar.unreserve(range_, utc_now(), reason)
        typer.echo(f"{range_text(lifted.range)} is reserved no more")


def reservations(
    ended: Annotated[bool, typer.Option("--all", help="those that are over as well")] = False,
    output: Form = Output.TABLE,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """What is reserved: for whom, why, by whom, and until when."""
    now = utc_now()
    with explained():
        with _registrar(database, "", readonly=True) as registrar:
            found = registrar.recorded(now, ended=ended)
        count = print_rows(output, found, _COLUMNS, _cells, lambda each: _record(each, now))
        if not count and output is Output.TABLE:
            typer.echo("nothing is reserved")


@contextmanager
def _registrar(database: str, actor: str, *, readonly: bool = False) -> Iterator[Registrar]:
    from purelb_sm.store.reserving import Registrar

    registrar = Registrar.open(database, actor=actor, readonly=readonly)
    try:
        yield registrar
    finally:
        registrar.close()


def _actor(given: str | None) -> str:
    """Who the history names. In a container the user may have no name."""
    if given is None:
        try:
            return f"user/{getpass.getuser()}"
        except (KeyError, OSError):
            return f"user/{os.getuid()}"
    if not given.strip() or not given.isprintable():
        raise InvalidInput("the actor needs a name")
    return given.strip()


def _until(text: str, now: datetime) -> datetime:
    try:
        return parse_until(text, now)
    except ValueError as error:
        raise InvalidInput(str(error)) from None


def _made(made: Made) -> str:
    reservation = made.reservation
    whom = f"for {reservation.claim}" if reservation.claim else "from everybody"
    until = f" until {show(reservation.expires_at)}" if reservation.expires_at else ""
    lines = [f"{range_text(reservation.range)} is reserved {whom}{until}{'' if made.news else ', as before'}"]
    if not made.groups:
        lines.append("it lies in no ServiceGroup that the book knows of")
    if made.held:
        named = ", ".join(f"{address} by {claim}" for address, claim in made.holders)
        more = f" and {made.held - len(made.holders)} more" if made.held > len(made.holders) else ""
        lines.append(f"in use, and left to whoever has it: {named}{more}")
    return "\n".join(lines)


_COLUMNS = ("ADDRESSES", "FOR", "REASON", "BY", "SINCE", "UNTIL")


def _cells(each: Recorded) -> tuple[str, ...]:
    made = each.reservation
    return (
        range_text(made.range),
        made.claim or "nobody",
        made.reason,
        made.created_by,
        show(made.from_at),
        show(each.ended_at or made.expires_at),
    )


def _record(each: Recorded, now: datetime) -> dict[str, Any]:
    made = each.reservation
    return {
        "addresses": range_text(made.range),
        "first": str(made.range.first),
        "last": str(made.range.last),
        "for": made.claim,
        "reason": made.reason,
        "by": made.created_by,
        "since": made.from_at.isoformat(),
        "expires": made.expires_at.isoformat() if made.expires_at else None,
        "ended": each.ended_at.isoformat() if each.ended_at else None,
        "inForce": each.in_force(now),
    }
