"""The `purelb` command: one typer app, put together from the verbs' own modules."""

from __future__ import annotations

import typer

from purelb_sm.cli import agent, allocator, book, explain, nodes, pools, reservations, sandbox, services

app = typer.Typer(
    name="purelb",
    help="A LoadBalancer for Kubernetes clusters without a cloud, with a book of who held which address.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def purelb() -> None:
    """What `purelb` does without a verb: nothing, but say which there are."""


# Each module imports what its verb needs only when the verb runs: an agent never loads the database.
allocator.register(app)
agent.register(app)
book.register(app)
explain.register(app)
pools.register(app)
reservations.register(app)
nodes.register(app)
services.register(app)
sandbox.register(app)


def main() -> None:
    """Entry point of the console script."""
    app()
