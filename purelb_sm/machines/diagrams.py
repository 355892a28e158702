"""The tables as Mermaid diagrams and Markdown, for docs/reference/state-machines.md. A test compares the two."""

from __future__ import annotations

from purelb_sm.machines.tables import MACHINES, Table

_HEAD = """# State machines

Generated from `purelb_sm/machines/tables.py` by `python -m purelb_sm.machines.diagrams`; a test fails when it is not.
A guard in brackets must be stated as a fact by whoever fires the trigger, in the same transaction that keeps the row.
"""


def mermaid(table: Table) -> str:
    """A `stateDiagram-v2` of one table."""
    lines = ["stateDiagram-v2", f"  [*] --> {table.initial}"]
    for move in table.moves:
        label = f"{move.trigger} [{move.guard}]" if move.guard else str(move.trigger)
        lines += [f"  {source} --> {move.dest}: {label}" for source in move.sources]
    return "\n".join(lines)


def markdown() -> str:
    """The whole page."""
    parts = [_HEAD]
    for table in MACHINES.values():
        parts.append(f"## {table.name}\n\n```mermaid\n{mermaid(table)}\n```\n")
        parts.append("| trigger | from | to | guard | when |\n|---|---|---|---|---|")
        parts += [f"| {m.trigger} | {', '.join(m.sources)} | {m.dest} | {m.guard} | {m.when} |" for m in table.moves]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201
