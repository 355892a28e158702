"""Tables as Markdown: on the terminal, and between markers of docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"


@dataclass
class Table:
    """One benchmark's results. `goals` say what was aimed at, and whether it was reached."""

    name: str
    command: str
    machine: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    goals: list[str] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        self.rows.append([cell if isinstance(cell, str) else _number(cell) for cell in cells])

    def goal(self, text: str, *, reached: bool, found: str) -> None:
        """A goal of the specification with what was found."""
        self.goals.append(f"{'reached' if reached else '**not reached**'}: {text} ({found})")

    def markdown(self) -> str:
        lines = [f"`{self.command}` on {self.machine}", ""]
        lines += [_line(self.columns), _line(["---", *["---:"] * (len(self.columns) - 1)])]
        lines += [_line(row) for row in self.rows]
        if self.goals:
            lines += ["", *[f"- {goal}" for goal in self.goals]]
        return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: object) -> str:
    """Three digits that matter; thousands with a comma."""
    if isinstance(value, float):
        if value >= 100:
            return f"{value:,.0f}"
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; `share` in 0…1. Raises IndexError for no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def write(table: Table, document: Path = DOCUMENT) -> None:
    """Puts the table between the markers of its name. Raises ValueError where the document has none."""
    text = document.read_text()
    begin, end = f"<!-- begin {table.name} -->\n", f"<!-- end {table.name} -->"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{document} has no markers for {table.name}")
    document.write_text(f"{before}{begin}\n{table.markdown()}\n{end}{after}")
