"""`purelb sandbox`: a cluster on one machine, to try things on or to watch the demo."""

from __future__ import annotations

import asyncio
import shlex
import signal
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from purelb_sm.cli import logs

if TYPE_CHECKING:
    from purelb_sm.sandbox.launcher import Options, Sandbox

verbs = typer.Typer(help="A cluster on this machine: API server, nodes, agents, allocator.", no_args_is_help=True)

Nodes = Annotated[int, typer.Option(min=0, max=200, help="how many nodes; 0: none, which needs no namespaces")]
Kubeconfig = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="use this API server instead of the emulation")
]
Directory = Annotated[Path | None, typer.Option("--dir", help="keep state and logs here; default: temporary")]


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.add_typer(verbs, name="sandbox")


@verbs.command("up")
def up(nodes: Nodes = 5, kubeconfig: Kubeconfig = None, directory: Directory = None) -> None:
    """Starts a cluster and keeps it running until Ctrl-C."""
    raise typer.Exit(_run(_up(_options(nodes, kubeconfig, directory))))


@verbs.command("demo")
def demo(nodes: Nodes = 5, kubeconfig: Kubeconfig = None, directory: Directory = None) -> None:
    """Shows the product at work, checks every claim, and cleans up."""
    options = _options(nodes, kubeconfig, directory)
    from purelb_sm.sandbox import demo as shown

    raise typer.Exit(_run(shown.demo(options, sys.stdout)))


def _options(nodes: int, kubeconfig: Path | None, directory: Path | None) -> Options:
    """Gets the right to make namespaces first: for that the program may be started again, in a user namespace."""
    from purelb_sm.sandbox.cluster import NoPrivileges, ensure_privileges, inherited_descriptors
    from purelb_sm.sandbox.launcher import Options

    logs.configure("text", "warning")
    door = _door(inherited_descriptors())
    in_user_namespace = False
    if nodes:
        try:
            again = [sys.executable, "-m", "purelb_sm", *sys.argv[1:]]
            in_user_namespace = ensure_privileges(again, [door.fileno()]) == "user-namespace"
        except NoPrivileges as refused:
            typer.echo(f"Without nodes, and so without announcements and traffic: {refused}", err=True)
            nodes = 0
    if in_user_namespace and kubeconfig is not None:
        typer.echo("A real API server is out of reach of a user namespace: this needs root, or --nodes 0.", err=True)
        raise typer.Exit(2)
    port = door.getsockname()[1]
    if not in_user_namespace:
        door.close()
    return Options(
        nodes=nodes,
        directory=directory,
        kubeconfig=kubeconfig,
        api_port=port,
        door=door if in_user_namespace else None,
        handle_sigterm=False,
    )


def _door(handed_over: list[int] | None) -> socket.socket:
    """A socket on the loopback of the host, where users find the API server; opened before we leave for a namespace."""
    if handed_over:
        return socket.socket(fileno=handed_over[0])
    door = socket.socket()
    door.bind(("127.0.0.1", 0))
    return door


def _run(work: Coroutine[Any, Any, bool]) -> int:
    """The exit status. SIGTERM and SIGHUP end the work like Ctrl-C does, with everything cleaned up."""

    async def main() -> bool:
        task = asyncio.create_task(work)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await task

    try:
        return 0 if asyncio.run(main()) else 1
    except asyncio.CancelledError:
        return 130


async def _up(options: Options) -> bool:
    from purelb_sm.sandbox.launcher import CommandFailed, NotInTime, Sandbox

    try:
        async with Sandbox(options, report=lambda text: typer.echo(f"… {text}", err=True)) as sandbox:
            _tell(sandbox)
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        typer.echo("stopped", err=True)
    except (CommandFailed, NotInTime, OSError) as failed:
        typer.echo(f"The sandbox did not come up: {failed}", err=True)
        return False
    return True


def _tell(sandbox: Sandbox) -> None:
    for one in sandbox.processes():
        typer.echo(f"  pid {one.pid:>7}  {one.name:<16}  {one.log_path}")
    typer.echo("\nReady. In another terminal:\n")
    for name, value in sandbox.environment().items():
        typer.echo(f"  export {name}={shlex.quote(value)}")
    typer.echo("  kubectl create deployment echoserver --image=echoserver:1")
    typer.echo("  kubectl expose deployment echoserver --port=80 --target-port=8080 --type=LoadBalancer")
    typer.echo("  kubectl describe service echoserver")
    if sandbox.nodes and sandbox.options.door is None:
        client = sandbox.cluster.namespace_of("client")
        typer.echo(f"  nsenter --net=/run/netns/{client} curl http://ADDRESS/     # as a client on another machine")
    typer.echo("  purelb history\n\nCtrl-C ends it.")
