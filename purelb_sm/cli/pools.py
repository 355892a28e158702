"""`purelb pools`: each group with its ranges, and what of them is in use, kept back, and free. Read from the book."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from purelb_sm.cli.answering import Database, explained, utc_now
from purelb_sm.cli.printing import Output, print_rows
from purelb_sm.cli.times import show
from purelb_sm.domain.addresses import Family
from purelb_sm.settings import DEFAULT_DATABASE

if TYPE_CHECKING:
    from purelb_sm.store.pooling import FamilyState, GroupState, RangeState

Row = tuple["GroupState", Family, "FamilyState"]


class PoolsOutput(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("pools")(pools)


def pools(
    group: Annotated[str | None, typer.Option(help="this ServiceGroup only")] = None,
    output: Annotated[
        PoolsOutput, typer.Option("--output", "-o", help="table, wide (with ranges) or json (an object a group)")
    ] = PoolsOutput.TABLE,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """How full each ServiceGroup is: held, on the way back, in quarantine and until when, reserved, free, orphaned."""
    from purelb_sm.store.audit import Audit

    with explained():
        audit = Audit.open(database)
        try:
            found = [each for each in audit.groups(utc_now()) if group is None or each.name == group]
        finally:
            audit.close()
        if output is PoolsOutput.JSON:
            for each in found:
                typer.echo(json.dumps(group_record(each), separators=(",", ":")))
            return
        columns = (*_COLUMNS, *_WIDE) if output is PoolsOutput.WIDE else _COLUMNS
        wide = output is PoolsOutput.WIDE
        print_rows(Output.TABLE, _rows(found), columns, lambda row: _cells(row, wide=wide), lambda _: {})
        for each in found:
            if each.refusal:
                typer.echo(f"{each.name} cannot be used: {each.refusal}")
            if each.gone:
                typer.echo(f"{each.name} is gone from the cluster; what is held of it stays until it is released")
        if not found:
            typer.echo("no ServiceGroup" if group is None else f"the book knows no ServiceGroup {group}")


_COLUMNS = ("GROUP", "TYPE", "FAMILY", "SIZE", "HELD", "RELEASING", "QUARANTINED", "RESERVED", "FREE", "ORPHANED")
_WIDE = ("NEXT-FREE", "QUARANTINE", "RANGES")


def _rows(groups: Iterable[GroupState]) -> list[Row]:
    """A line for each family that a group has anything of; one at least."""
    rows: list[Row] = []
    for group in groups:
        mine = [(group, f, state) for f, state in group.families.items() if state.size or _in_use(state)]
        rows += mine or [(group, Family.IPV4, group.families[Family.IPV4])]
    return rows


def _in_use(state: FamilyState) -> int:
    return state.held + state.releasing + state.quarantined


def _cells(row: Row, *, wide: bool) -> tuple[str, ...]:
    group, family, state = row
    numbers = (state.size, state.held, state.releasing, state.quarantined, state.reserved, state.free, state.orphaned)
    cells = (group.name, _kind(group), family.value, *map(str, numbers))
    if not wide:
        return cells
    return (*cells, show(state.next_free_at), f"{group.quarantine_s:g}s", "\n".join(map(_range_text, state.ranges)))


def _kind(group: GroupState) -> str:
    if group.gone:
        return "gone"
    if group.refusal:
        return "refused"
    return "auto" if group.agent_decides else group.pool_type


def _range_text(state: RangeState) -> str:
    return f"{state.range} ({state.free} of {state.size} free)"


def group_record(group: GroupState) -> dict[str, Any]:
    """A group for programs. Numbers are exact, whatever their size."""
    return {
        "name": group.name,
        "type": _kind(group),
        "refusal": group.refusal,
        "quarantineSeconds": group.quarantine_s,
        "families": {family.value: _family_record(state) for family, state in group.families.items()},
    }


def _family_record(state: FamilyState) -> dict[str, Any]:
    return {
        "size": state.size,
        "held": state.held,
        "releasing": state.releasing,
        "quarantined": state.quarantined,
        "reserved": state.reserved,
        "free": state.free,
        "orphaned": state.orphaned,
        "nextFreeAt": _iso(state.next_free_at),
        "ranges": [
            {
                "range": str(each.range),
                "subnet": each.subnet,
                "size": each.size,
                "used": each.used,
                "reserved": each.reserved,
                "free": each.free,
            }
            for each in state.ranges
        ],
    }


def family_text(group: GroupState, family: Family) -> str:
    """One family of a group in a line."""
    state = group.families[family]
    parts = [
        f"{state.size} addresses",
        f"{state.held} held",
        *([f"{state.releasing} on the way back"] if state.releasing else []),
        *([f"{state.quarantined} in quarantine"] if state.quarantined else []),
        *([f"{state.reserved} reserved"] if state.reserved else []),
        f"{state.free} free",
    ]
    until = f"; the next leaves quarantine {show(state.next_free_at)}" if state.next_free_at else ""
    return f"{group.name} {family}: {', '.join(parts)}{until}"


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None
