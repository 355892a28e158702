"""Rows for people (a table) and for programs (JSON lines, CSV), as they come: a long answer is never held whole."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

T = TypeVar("T")

_PAGE = 500
"""Rows that one table is laid out for."""


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def print_rows(
    output: Output,
    rows: Iterable[T],
    columns: Sequence[str],
    cells: Callable[[T], Sequence[str]],
    record: Callable[[T], Mapping[str, Any]],
) -> int:
    """Prints `rows`, and says how many. `cells` are for the table; `record` for JSON lines and CSV."""
    if output is Output.TABLE:
        return _print_tables(rows, columns, cells)
    return _print_json(map(record, rows)) if output is Output.JSON else _print_csv(map(record, rows))


def visible(text: str) -> str:
    """Text that came from users and nodes, without what would move a terminal's cursor or change its title."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def console() -> Console:
    """Standard output. Into a file or pipe lines are as long as they are."""
    return Console() if sys.stdout.isatty() else Console(width=100_000)


def _print_tables(rows: Iterable[T], columns: Sequence[str], cells: Callable[[T], Sequence[str]]) -> int:
    out, iterator, count = console(), iter(rows), 0
    while page := list(itertools.islice(iterator, _PAGE)):
        table = Table(box=None, show_header=count == 0, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in page:
            # As Text: what looks like markup in a reason is not.
            table.add_row(*(Text("\n".join(map(visible, cell.split("\n")))) for cell in cells(row)))
        out.print(table)
        count += len(page)
    return count


def _print_json(records: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    for record in records:
        sys.stdout.write(json.dumps(record, separators=(",", ":")) + "\n")
        count += 1
    return count


def _print_csv(records: Iterable[Mapping[str, Any]]) -> int:
    count, writer = 0, csv.writer(sys.stdout)
    for record in records:
        if count == 0:
            writer.writerow(record)
        writer.writerow(_csv_cell(value) for value in record.values())
        count += 1
    return count


def _csv_cell(value: object) -> object:
    return json.dumps(value, separators=(",", ":")) if isinstance(value, dict | list) else value
