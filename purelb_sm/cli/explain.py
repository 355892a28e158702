"""`purelb explain`: why a Service is as it is, since when, and what would change that (spec B3).

From the book; with `--kubeconfig` also from the cluster, and then it says where the two differ. Exit code 4: neither
knows the Service.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from purelb_sm.cli.answering import Database, InstallNamespace, explained, service_key, utc_now
from purelb_sm.cli.explaining import Seen, Story, differences, story, unknown_story
from purelb_sm.cli.pools import family_text, group_record
from purelb_sm.cli.printing import visible
from purelb_sm.cli.times import show
from purelb_sm.domain import names
from purelb_sm.domain.addresses import Family
from purelb_sm.domain.draining import why_leaving
from purelb_sm.domain.views import ServiceKey
from purelb_sm.settings import DEFAULT_DATABASE

if TYPE_CHECKING:
    from purelb_sm.domain.book import BookedAnnouncement
    from purelb_sm.kube.client import KubeClient
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
    install_namespace: InstallNamespace = names.INSTALL_NAMESPACE,
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
        seen = asyncio.run(_look(key, kubeconfig, install_namespace)) if kubeconfig else None
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


async def _look(key: ServiceKey, kubeconfig: Path, install_namespace: str) -> Seen:
    """The Service and the Nodes as they are. Raises KubeError where the cluster cannot be asked."""
    from purelb_sm.errors import NotFound
    from purelb_sm.kube.client import KubeClient
    from purelb_sm.kube.objects import NODE, decode_service
    from purelb_sm.kube.reading import list_once
    from purelb_sm.kube.resources import SERVICES

    async with await KubeClient.connect(str(kubeconfig)) as client:
        nodes = {node.name: node for node in await list_once(client, NODE, None)}
        said = await _said_in_leases(client, install_namespace)
        try:
            view = await client.get(SERVICES.path(key.name, key.namespace), decode_service)
        except NotFound:
            view = None
    leaving = {name: why_leaving(node, said.get(name, {})) for name, node in nodes.items()}
    return Seen(view, frozenset(nodes), {name: why for name, why in leaving.items() if why})


async def _said_in_leases(client: KubeClient, namespace: str) -> dict[str, Mapping[str, str]]:
    """What agents say in their Leases, by node; nothing to one who may not read those. Raises KubeError."""
    from purelb_sm.errors import Forbidden
    from purelb_sm.kube.reading import read_leases

    try:
        leases = await read_leases(client, namespace)
    except Forbidden:
        return {}
    return {lease.name.removeprefix(names.NODE_LEASE_PREFIX): lease.annotations for lease in leases}


def _tell(told: Story, differ: list[str], now: datetime) -> None:
    since = f" since {show(told.since)} ({_ago(told.since, now)})" if told.since else ""
    typer.echo(f"{told.key} is {told.state}{since}")
    _line("why", told.why)
    _line("changes", told.changes)
    if told.ahead:
        _line("waiting", f"{told.ahead} {'Service has' if told.ahead == 1 else 'Services have'} waited longer")
    for held, waits in told.addresses:
        _line("address", _held_text(held, waits, told.leaving))
    for group in told.groups:
        if group.refusal:
            _line("group", f"{group.name} cannot be used: {group.refusal}")
            continue
        for family in Family:
            if group.families[family].size:
                _line("group", family_text(group, family))
    for held, waits in told.stuck:
        _line("stuck", _held_text(held, waits, told.leaving))
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


def _held_text(held: HeldAddress, waits: str, leaving: Mapping[str, str]) -> str:
    parts = [f"{held.address} of {held.group}, {held.state.value} since {show(held.since)}"]
    if len(held.members) > 1:
        parts.append(f"shared by {', '.join(map(str, held.members))}")
    parts += [_announced_text(one, leaving.get(one.node, "")) for one in held.announcements]
    parts += [f"failed on {f.node} since {show(f.since)}: {f.reason}" for f in held.failures]
    if held.quarantined_until:
        parts.append(f"kept for it until {show(held.quarantined_until)}")
    if waits:
        parts.append(f"its release waits for {waits}")
    return "; ".join(parts)


def _announced_text(one: BookedAnnouncement, leaving: str) -> str:
    """The book does not know that a node is giving its addresses up: that is how things stand, and no move."""
    text = f"{one.state.value} on {one.node} {one.interface}"
    return f"{text}, which gives its addresses up: {leaving}" if leaving else text


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
        "addresses": [_held_record(held, waits, told.leaving) for held, waits in told.addresses],
        "groups": [group_record(group) for group in told.groups],
        "stuckReleases": [_held_record(held, waits, told.leaving) for held, waits in told.stuck],
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


def _held_record(held: HeldAddress, waits: str, leaving: Mapping[str, str]) -> dict[str, Any]:
    return {
        "address": str(held.address),
        "group": held.group,
        "state": held.state.value,
        "since": held.since.isoformat(),
        "quarantinedUntil": held.quarantined_until.isoformat() if held.quarantined_until else None,
        "members": [str(member) for member in held.members],
        "nodes": [_announced_record(one, leaving.get(one.node, "")) for one in held.announcements],
        "failures": [{"node": f.node, "since": f.since.isoformat(), "reason": f.reason} for f in held.failures],
        "waitsFor": waits,
    }


def _announced_record(one: BookedAnnouncement, leaving: str) -> dict[str, str]:
    record = {"node": one.node, "interface": one.interface, "state": one.state.value}
    return record | {"leaving": leaving} if leaving else record
