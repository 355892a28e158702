"""The `purelb` command: one typer app, put together from the verbs' own modules."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="purelb",
    help="A LoadBalancer for Kubernetes clusters without a cloud, with a book of who held which address.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def purelb() -> None:
    """Verbs are registered by the modules imported below."""


def main() -> None:
    """Entry point of the console script."""
    app()
