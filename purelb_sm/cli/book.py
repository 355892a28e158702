"""The verbs that ask the book: `db`, `history`, `who-had`, `state`, `verify`. They read the database itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from purelb_sm.cli.answering import Database, Form, explained, service_key, utc_now
from purelb_sm.cli.printing import Output, print_rows
from purelb_sm.cli.times import parse_when, show
from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address, parse_ip
from purelb_sm.errors import InvalidInput
from purelb_sm.settings import DEFAULT_DATABASE

if TYPE_CHECKING:
    from purelb_sm.store.audit import Announcer, Audit, HistoryRow, Holding

db = typer.Typer(help="The database's schema.", no_args_is_help=True)

At = Annotated[str, typer.Option("--at", help="2026-11-24T03:12:00Z, 2026-11-24, 2h ago")]


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.add_typer(db, name="db")
    app.command("history")(history)
    app.command("who-had")(who_had)
    app.command("state")(state)
    app.command("verify")(verify)


@db.command("upgrade")
def upgrade(database: Database = DEFAULT_DATABASE) -> None:
    """Makes the schema, or brings it to this program's version. Safe to run again, and by several at once."""
    from purelb_sm.store import schema

    with explained():
        before, now = schema.upgrade(database)
        typer.echo(f"{now}, as before" if before == now else f"{now}, before: {before or 'no schema'}")


@db.command("check")
def check(database: Database = DEFAULT_DATABASE) -> None:
    """Says whether the schema is the one this program needs. Changes nothing."""
    from purelb_sm.store import schema

    with explained():
        typer.echo(f"{schema.check(database)}, as this program needs it")


def history(
    service: Annotated[str | None, typer.Option(help="namespace/name, with what nodes did with its addresses")] = None,
    address: Annotated[str | None, typer.Option(help="an IP address")] = None,
    node: Annotated[str | None, typer.Option(help="a node")] = None,
    namespace: Annotated[str | None, typer.Option(help="a namespace")] = None,
    group: Annotated[str | None, typer.Option(help="a ServiceGroup")] = None,
    since: Annotated[str | None, typer.Option(help="not before this time")] = None,
    until: Annotated[str | None, typer.Option(help="before this time")] = None,
    output: Form = Output.TABLE,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Every move of Services, allocations and announcements, as it was booked; those that match all that is given."""
    from purelb_sm.store.audit import Filter

    now = utc_now()
    with explained():
        wanted = Filter(
            service=service_key(service) if service else None,
            address=_address(address) if address else None,
            node=node,
            namespace=namespace,
            group=group,
            since=_when(since, now) if since else None,
            until=_when(until, now) if until else None,
        )
        with _audit(database) as audit:
            print_rows(output, audit.history(wanted), _HISTORY_COLUMNS, _history_cells, _history_record)


def who_had(
    address: Annotated[str, typer.Argument(help="an IP address")],
    at: At = "now",
    output: Form = Output.TABLE,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Who had an address at a time, since and until when, and which nodes held it on which interface then."""
    with explained():
        asked, when = _address(address), _when(at, utc_now())
        with _audit(database) as audit:
            found = audit.who_had(asked, when)
        print_rows(output, found, _HOLDING_COLUMNS, _holding_cells, _holding_record)
        if not found and output is Output.TABLE:
            typer.echo(f"nobody had {asked} at {show(when)}")


def state(at: At = "now", output: Form = Output.TABLE, database: Database = DEFAULT_DATABASE) -> None:
    """Everything that was held at a time, and what was on its way back to the pool."""
    with explained():
        when = _when(at, utc_now())
        with _audit(database) as audit:
            count = print_rows(output, audit.state_at(when), _HOLDING_COLUMNS, _holding_cells, _holding_record)
        if not count and output is Output.TABLE:
            typer.echo(f"nothing was held at {show(when)}")


def verify(
    head: Annotated[
        str | None, typer.Option(metavar="SEQ:HASH", help="a head known from outside, so that a cut-off tail shows")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="take the head from the allocator's Lease in this cluster")
    ] = None,
    install_namespace: Annotated[str, typer.Option(help="namespace of that Lease")] = names.INSTALL_NAMESPACE,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Walks the hash chain of the history, and names the first row that was changed, removed or inserted."""
    with explained():
        shown = head or (asyncio.run(_head_in_lease(kubeconfig, install_namespace)) if kubeconfig else None)
        known = _head(shown) if shown else None
        with _audit(database) as audit:
            found = audit.verify(known)
        beyond = f" It contains {known[0]}:{known[1]}, which was kept outside the database." if known else ""
        typer.echo(f"{found.rows} rows, the chain holds. Head {found.head[0]}:{found.head[1]}.{beyond}")


async def _head_in_lease(kubeconfig: Path, namespace: str) -> str:
    """The head that the allocator last put into its Lease. Raises KubeError, InvalidInput where there is none."""
    from purelb_sm.kube.client import KubeClient
    from purelb_sm.kube.objects import decode_lease
    from purelb_sm.kube.resources import LEASES

    async with await KubeClient.connect(str(kubeconfig)) as client:
        lease = await client.get(LEASES.path(names.LEADER_LEASE, namespace), decode_lease)
    head = lease.annotations.get(names.HISTORY_HEAD)
    if head is None:
        raise InvalidInput(f"the Lease {namespace}/{names.LEADER_LEASE} does not show a head of the history")
    return head


@contextmanager
def _audit(database: str) -> Iterator[Audit]:
    from purelb_sm.store.audit import Audit

    audit = Audit.open(database)
    try:
        yield audit
    finally:
        audit.close()


def _when(text: str, now: datetime) -> datetime:
    try:
        return parse_when(text, now)
    except ValueError as error:
        raise InvalidInput(str(error)) from None


def _address(text: str) -> Address:
    return parse_ip(text.strip())


def _head(text: str) -> tuple[int, str]:
    match = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text.strip().lower())
    if match is None:
        raise InvalidInput(f"{text!r} is not SEQ:HASH, with the hash in 64 hexadecimal digits")
    return int(match[1]), match[2]


_HISTORY_COLUMNS = ("SEQ", "TIME", "KIND", "SERVICE", "ADDRESS", "NODE", "MOVE", "FROM", "TO", "BY", "WHY")


def _history_cells(row: HistoryRow) -> tuple[str, ...]:
    interface = row.details.get("interface")
    message = row.details.get("message")
    return (
        str(row.seq),
        show(row.at),
        row.kind,
        f"{row.namespace}/{row.name}" if row.name else "",
        row.address or str(row.details.get("range", "")),
        f"{row.node} {interface}" if interface else row.node,
        row.trigger,
        row.from_state or "",
        row.to_state or "",
        row.actor,
        f"{row.reason}: {message}" if message else row.reason,
    )


def _history_record(row: HistoryRow) -> dict[str, Any]:
    return {
        "seq": row.seq,
        "at": row.at.isoformat(),
        "term": row.term,
        "actor": row.actor,
        "kind": row.kind,
        "namespace": row.namespace,
        "name": row.name,
        "uid": row.uid,
        "group": row.group,
        "address": row.address,
        "node": row.node,
        "trigger": row.trigger,
        "from": row.from_state,
        "to": row.to_state,
        "reason": row.reason,
        "details": row.details,
        "hash": row.hash,
    }


_HOLDING_COLUMNS = ("ADDRESS", "SERVICE", "GROUP", "STATE", "SINCE", "UNTIL", "ON")


def _holding_cells(holding: Holding) -> tuple[str, ...]:
    return (
        str(holding.address),
        str(holding.service) if holding.service else f"nobody (kept for {holding.claim})",
        holding.group,
        holding.state.value,
        show(holding.since),
        show(holding.until),
        "\n".join(_announcer_text(announcer) for announcer in holding.announcers),
    )


def _announcer_text(announcer: Announcer) -> str:
    until = f" until {show(announcer.until)}" if announcer.until else ""
    place = f"{announcer.node} {announcer.interface}"
    return f"{place} ({announcer.state} since {show(announcer.since)}{until})"


def _holding_record(holding: Holding) -> dict[str, Any]:
    return {
        "address": str(holding.address),
        "namespace": holding.service.namespace if holding.service else None,
        "name": holding.service.name if holding.service else None,
        "uid": holding.uid,
        "group": holding.group,
        "claim": holding.claim,
        "state": holding.state.value,
        "since": holding.since.isoformat(),
        "until": holding.until.isoformat() if holding.until else None,
        "nodes": [
            {
                "node": a.node,
                "interface": a.interface,
                "prefixLength": a.prefix_length,
                "state": a.state,
                "since": a.since.isoformat(),
                "until": a.until.isoformat() if a.until else None,
            }
            for a in holding.announcers
        ],
    }
