"""`purelb allocator`: the composition root of the allocator process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from purelb_sm.cli import logs
from purelb_sm.cli.lean import postpone_init, uncollected
from purelb_sm.cli.stopping import until_told_to_stop
from purelb_sm.domain import names
from purelb_sm.errors import PurelbError
from purelb_sm.kube.trust import trusting_nobody
from purelb_sm.settings import AllocatorSettings


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("allocator")(allocator)


def allocator(
    kubeconfig: Annotated[Path | None, typer.Option(help="kubeconfig file; default: in-cluster")] = None,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the book (or PURELB_DATABASE)")] = None,
    class_: Annotated[str | None, typer.Option("--class", help="the spec.loadBalancerClass we serve")] = None,
    default_class: Annotated[
        Literal["true", "false"] | None, typer.Option(help="serve Services without a class too")
    ] = None,
    install_namespace: Annotated[str | None, typer.Option(help="namespace of Leases, groups and reports")] = None,
    cluster_name: Annotated[str | None, typer.Option(help="name of this cluster in the book")] = None,
    identity: Annotated[str | None, typer.Option(help="name of this allocator in the leader Lease")] = None,
    web_port: Annotated[int | None, typer.Option(help="port of health and metrics; 0: none")] = None,
    log_format: Annotated[str | None, typer.Option(help="json or text")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error")] = None,
) -> None:
    """Decides who holds which address, keeps the book, and publishes to Services."""
    given: dict[str, Any] = {
        "kubeconfig": kubeconfig,
        "database": database,
        "load_balancer_class": class_,
        "default_class": default_class,
        "install_namespace": install_namespace,
        "cluster_name": cluster_name,
        "identity": identity,
        "web_port": web_port,
        "log_format": log_format,
        "log_level": log_level,
    }
    settings = AllocatorSettings(**{name: value for name, value in given.items() if value is not None})
    logs.configure(settings.log_format, settings.log_level)
    try:
        asyncio.run(_serve(settings))
    except PurelbError as error:
        typer.echo(f"purelb allocator: {error}", err=True)
        raise typer.Exit(1) from None


async def _serve(settings: AllocatorSettings) -> None:
    """Puts the process together and runs it until SIGTERM or SIGINT."""
    # A sixth of the time that a start takes would go into what the packages of the client import, and nobody here uses.
    for package in ("kubernetes", "kubernetes.aio"):
        postpone_init(package)
    # Imported here: the other verbs need neither the database nor the cluster.
    with uncollected(), trusting_nobody():
        from purelb_sm.allocator.app import Allocator, identity
        from purelb_sm.kube.client import KubeClient
        from purelb_sm.store import Book
        from purelb_sm.web import server

    me = settings.identity or identity()
    actor = f"{names.ALLOCATOR}/{me}"
    book = Book.open(settings.database.get_secret_value(), cluster=settings.cluster_name, actor=actor)
    try:
        kubeconfig = str(settings.kubeconfig) if settings.kubeconfig else None
        async with await KubeClient.connect(kubeconfig, component=names.ALLOCATOR) as client:
            allocator = Allocator(settings, client, book)
            web = server.serve(settings.web_host, settings.web_port, allocator.checks, allocator.metrics.registry)
            async with web:
                await until_told_to_stop(allocator.run())
    finally:
        book.close()
