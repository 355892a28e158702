"""`purelb explain`: why a Service is as it is, since when, and what would change that (spec B3).

From the book; with `--kubeconfig` also from the cluster, and then it says where the two differ. Exit code 4: neither
knows the Service.
"""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from purelb_sm.cli.answering import Database, explained, service_key, utc_now
from purelb_sm.cli.explaining import Seen, Story, differences, story, unknown_story
from purelb_sm.cli.pools import family_text, group_record
from purelb_sm.cli.printing import visible
from purelb_sm.cli.times import show
from purelb_sm.domain.addresses import Family
from purelb_sm.domain.views import ServiceKey
from purelb_sm.settings import DEFAULT_DATABASE

if TYPE_CHECKING:
    from purelb_sm.store.explaining import HeldAddress

UNKNOWN = 4
_INDENT = 12


class ExplainOutput(StrEnum):
    TEXT = "text"
    JSON = "json"


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("explain")(explain)


def explain(
    service: Annotated[str, typer.Argument(metavar="NAMESPACE/NAME", help="a Service")],
    kubeconfig: Annotated[
        Path | None, typer.Option(help="look into this cluster too, and say where it differs from the book")
    ] = None,
    output: Annotated[ExplainOutput, typer.Option("--output", "-o", help="text or json")] = ExplainOutput.TEXT,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Why a Service has the addresses it has, or none: its state, since when, what refused it, what would change it."""
    from purelb_sm.store.audit import Audit

    with explained():
        key, now = service_key(service), utc_now()
        audit = Audit.open(database)
        try:
            found = audit.explain(key, now)
        finally:
            audit.close()
        seen = asyncio.run(_look(key, kubeconfig)) if kubeconfig else None
        if found is None and (seen is None or seen.view is None):
            where = "the book nor the cluster knows" if seen else "the book does not know"
            typer.echo(f"purelb: {'neither ' if seen else ''}{where} a Service {key}", err=True)
            raise typer.Exit(UNKNOWN)
        told = story(found, seen, now) if found else unknown_story(key, seen)
        differ = differences(found, seen)
        if output is ExplainOutput.JSON:
            typer.echo(json.dumps(_record(told, differ), separators=(",", ":")))
        else:
            _tell(told, differ, now)


async def _look(key: ServiceKey, kubeconfig: Path) -> Seen:
    """The Service and the Nodes as they are. Raises KubeError where the cluster cannot be asked."""
    from purelb_sm.errors import NotFound
    from purelb_sm.kube.client import KubeClient
    from purelb_sm.kube.objects import decode_service
    from purelb_sm.kube.resources import NODES, SERVICES

    async with await KubeClient.connect(str(kubeconfig)) as client:
        nodes = await client.get(NODES.collection(), json.loads)
        names = frozenset(item["metadata"]["name"] for item in nodes.get("items") or ())
        try:
            view = await client.get(SERVICES.path(key.name, key.namespace), decode_service)
        except NotFound:
            view = None
    return Seen(view, names)


def _tell(told: Story, differ: list[str], now: datetime) -> None:
    since = f" since {show(told.since)} ({_ago(told.since, now)})" if told.since else ""
    typer.echo(f"{told.key} is {told.state}{since}")
    _line("why", told.why)
    _line("changes", told.changes)
    if told.ahead:
        _line("waiting", f"{told.ahead} {'Service has' if told.ahead == 1 else 'Services have'} waited longer")
    for held, waits in told.addresses:
        _line("address", _held_text(held, waits))
    for group in told.groups:
        if group.refusal:
            _line("group", f"{group.name} cannot be used: {group.refusal}")
            continue
        for family in Family:
            if group.families[family].size:
                _line("group", family_text(group, family))
    for held, waits in told.stuck:
        _line("stuck", _held_text(held, waits))
    for move in told.moves:
        to = f" to {move.to_state}" if move.to_state else ""
        why = f": {move.reason}" if move.reason else ""
        _line("move", f"{show(move.at)} {move.kind} {move.address} {move.trigger}{to}{why}")
    for each in differ:
        _line("differs", each)


def _line(label: str, text: str) -> None:
    if text:
        typer.echo(f"  {label:<{_INDENT - 2}}{' '.join(visible(text).split())}")


def _ago(since: datetime, now: datetime) -> str:
    seconds = max(0, int((now - since).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit} ago"
    return f"{seconds}s ago"


def _held_text(held: HeldAddress, waits: str) -> str:
    parts = [f"{held.address} of {held.group}, {held.state.value} since {show(held.since)}"]
    if len(held.members) > 1:
        parts.append(f"shared by {', '.join(map(str, held.members))}")
    parts += [f"{a.state.value} on {a.node} {a.interface}" for a in held.announcements]
    parts += [f"failed on {f.node} since {show(f.since)}: {f.reason}" for f in held.failures]
    if held.quarantined_until:
        parts.append(f"kept for it until {show(held.quarantined_until)}")
    if waits:
        parts.append(f"its release waits for {waits}")
    return "; ".join(parts)


def _record(told: Story, differ: list[str]) -> dict[str, Any]:
    return {
        "namespace": told.key.namespace,
        "name": told.key.name,
        "uid": told.uid,
        "state": told.state,
        "since": told.since.isoformat() if told.since else None,
        "reason": told.reason,
        "why": told.why,
        "changes": told.changes,
        "group": told.group,
        "waitedLonger": told.ahead,
        "addresses": [_held_record(held, waits) for held, waits in told.addresses],
        "groups": [group_record(group) for group in told.groups],
        "stuckReleases": [_held_record(held, waits) for held, waits in told.stuck],
        "lastMoves": [
            {
                "seq": move.seq,
                "at": move.at.isoformat(),
                "kind": move.kind,
                "trigger": move.trigger,
                "to": move.to_state,
                "address": move.address,
                "reason": move.reason,
            }
            for move in told.moves
        ],
        "differences": differ,
    }


def _held_record(held: HeldAddress, waits: str) -> dict[str, Any]:
    return {
        "address": str(held.address),
        "group": held.group,
        "state": held.state.value,
        "since": held.since.isoformat(),
        "quarantinedUntil": held.quarantined_until.isoformat() if held.quarantined_until else None,
        "members": [str(member) for member in held.members],
        "nodes": [{"node": a.node, "interface": a.interface, "state": a.state.value} for a in held.announcements],
        "failures": [{"node": f.node, "since": f.since.isoformat(), "reason": f.reason} for f in held.failures],
        "waitsFor": waits,
    }
