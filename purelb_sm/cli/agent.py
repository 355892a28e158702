"""`purelb agent`: the composition root of the agent process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from purelb_sm.cli import logs
from purelb_sm.cli.lean import postpone_init, uncollected
from purelb_sm.cli.stopping import until_told_to_stop
from purelb_sm.domain import names
from purelb_sm.errors import PurelbError
from purelb_sm.kube.trust import trusting_nobody
from purelb_sm.settings import AgentSettings


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("agent")(agent)


def agent(
    node_name: Annotated[str | None, typer.Option(help="the Node this agent runs on (or PURELB_NODE_NAME)")] = None,
    kubeconfig: Annotated[Path | None, typer.Option(help="kubeconfig file; default: in-cluster")] = None,
    install_namespace: Annotated[str | None, typer.Option(help="namespace of Leases, groups and reports")] = None,
    class_: Annotated[str | None, typer.Option("--class", help="the spec.loadBalancerClass we announce")] = None,
    lease_s: Annotated[float | None, typer.Option(help="how long the others count on this node")] = None,
    renew_s: Annotated[float | None, typer.Option(help="pause between two renewals of the node's Lease")] = None,
    when_api_away: Annotated[str | None, typer.Option(help="keep or strict: what to do without the API server")] = None,
    heartbeat_s: Annotated[
        float | None, typer.Option(help="pause between two heartbeats to other agents; 0: none")
    ] = None,
    heartbeat_port: Annotated[int | None, typer.Option(help="UDP port of heartbeats")] = None,
    keep_on_exit: Annotated[
        bool | None, typer.Option("--keep-on-exit/--no-keep-on-exit", help="leave the addresses when stopped")
    ] = None,
    resync_s: Annotated[float | None, typer.Option(help="look at the whole kernel so often")] = None,
    report_s: Annotated[float | None, typer.Option(help="least time between two reports")] = None,
    journal_directory: Annotated[
        Path | None, typer.Option(help="where our addresses are noted if the kernel cannot mark them")
    ] = None,
    web_port: Annotated[int | None, typer.Option(help="port of health and metrics; 0: none")] = None,
    log_format: Annotated[str | None, typer.Option(help="json or text")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error")] = None,
) -> None:
    """Announces addresses on this node: adds them to its interfaces, and reports what the kernel holds."""
    given: dict[str, Any] = {
        "node_name": node_name,
        "kubeconfig": kubeconfig,
        "install_namespace": install_namespace,
        "load_balancer_class": class_,
        "lease_s": lease_s,
        "renew_s": renew_s,
        "when_api_away": when_api_away,
        "heartbeat_s": heartbeat_s,
        "heartbeat_port": heartbeat_port,
        "keep_on_exit": keep_on_exit,
        "resync_s": resync_s,
        "report_s": report_s,
        "journal_directory": journal_directory,
        "web_port": web_port,
        "log_format": log_format,
        "log_level": log_level,
    }
    settings = AgentSettings(**{name: value for name, value in given.items() if value is not None})
    if not settings.node_name:
        raise typer.BadParameter("is needed, or PURELB_NODE_NAME", param_hint="--node-name")
    logs.configure(settings.log_format, settings.log_level)
    try:
        asyncio.run(_serve(settings))
    except PurelbError as error:
        typer.echo(f"purelb agent: {error}", err=True)
        raise typer.Exit(1) from None


async def _serve(settings: AgentSettings) -> None:
    """Puts the process together and runs it until SIGTERM or SIGINT."""
    for package in ("kubernetes", "pyroute2"):
        postpone_init(package)
    # Imported here: the other verbs need neither the kernel nor the cluster.
    with uncollected(), trusting_nobody():
        from purelb_sm.agent.agent import Agent
        from purelb_sm.kube.client import KubeClient
        from purelb_sm.net import Kernel, NetError
        from purelb_sm.web import server

    kubeconfig = str(settings.kubeconfig) if settings.kubeconfig else None
    try:
        async with (
            await KubeClient.connect(kubeconfig, component=names.AGENT) as client,
            Kernel(journal_directory=settings.journal_directory) as kernel,
        ):
            agent = Agent(settings, client, kernel)
            async with server.serve(settings.web_host, settings.web_port, agent.checks, agent.metrics.registry):
                await until_told_to_stop(agent.run())
    except NetError as error:
        raise PurelbError(str(error)) from error
