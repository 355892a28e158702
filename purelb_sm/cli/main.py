"""The `purelb` command: one typer app, put together from the verbs' own modules."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from purelb_sm.cli.lean import hidden, uncollected

VERBS = ("allocator", "agent", "book", "explain", "pools", "reservations", "nodes", "services", "sandbox")
"""Modules of this package; each imports what its verbs need only when they run: an agent never loads the database."""
PROCESSES = ("allocator", "agent")
"""Verbs that run on and on. Traffic may wait for their start, so they load no other verb."""


def command(modules: Sequence[str] = VERBS) -> typer.Typer:
    """The app with the verbs of these modules."""
    made = typer.Typer(
        name="purelb",
        help="A LoadBalancer for Kubernetes clusters without a cloud, with a book of who held which address.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )

    @made.callback()
    def purelb() -> None:
        """What `purelb` does without a verb: nothing, but say which there are."""

    for module in modules:
        import_module(f"purelb_sm.cli.{module}").register(made)
    return made


def main() -> None:
    """Entry point of the console script."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb not in PROCESSES:
        command()()
        return
    with uncollected(), hidden("rich"):
        # It would import rich, for the colours of a terminal.
        import structlog  # noqa: F401

        app = command([verb])
    app()
