"""The history read from its first row, against what the tables hold: one row for each transition (spec B1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Ask = Callable[[str], Iterable[tuple[Any, ...]]]
"""Answers a query with its rows."""

_ROWS = "SELECT kind, uid, address, node, from_state, to_state FROM history ORDER BY seq"
_ANNOUNCED = """SELECT a.address_text || ' ' || n.node, n.state FROM announcement n
    JOIN allocation a ON a.id = n.allocation_id WHERE n.until_at IS NULL"""


def history_gives_the_states(ask: Ask) -> None:
    """Each row begins where the last one of its subject led, and the last ones are what the tables say: none is
    missing, and none too many. A node has an address on one interface at most."""
    replayed: dict[tuple[str, str], str] = {}
    for kind, uid, address, node, source, dest in ask(_ROWS):
        if kind not in ("service", "allocation", "announcement"):
            continue
        subject = (kind, {"service": uid, "allocation": address, "announcement": f"{address} {node}"}[kind])
        before = replayed.get(subject)
        assert source == before or (source is None and before in ("released", "absent")), (subject, before, source)
        replayed[subject] = dest
    tables = {("service", uid): state for uid, state in ask("SELECT uid, state FROM service")}
    tables |= {("allocation", a): s for a, s in ask("SELECT address_text, state FROM allocation ORDER BY id")}
    tables |= {("announcement", place): state for place, state in ask(_ANNOUNCED)}
    gone = {subject for subject, state in replayed.items() if subject[0] == "announcement" and state == "absent"}
    assert {s: state for s, state in replayed.items() if s not in gone} == tables
