"""The verbs that take a node out of announcing and back, through the API: `drain`, `undrain`.

They write an annotation on the Node. Its agent reads that, tells the others in its Lease, and hands its addresses over;
how far it is, `drain` reads from its Lease and its report.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Final

import typer

from purelb_sm.cli.answering import InstallNamespace, explained, utc_now
from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.draining import Staying, asked_of, says_draining, what_stays
from purelb_sm.domain.election import Electorate, parse_subnets
from purelb_sm.domain.states import AnnouncementState
from purelb_sm.errors import Forbidden, InvalidInput, KubeError, NotFound

if TYPE_CHECKING:
    from purelb_sm.domain.reports import NodeReport
    from purelb_sm.domain.views import LeaseView, NodeView
    from purelb_sm.kube.client import KubeClient

STAYS = 1
LOOK_EVERY_S: Final = 0.5
SURE_AFTER_S: Final = 3.0
"""What stays for so long, and can be held by nobody else, is going to stay: reports come once a second."""
SHOWN_MAX: Final = 10
REASON_MAX: Final = 200

Node = Annotated[str, typer.Argument(metavar="NODE", help="the name of a Node")]
Kubeconfig = Annotated[Path | None, typer.Option(help="else $KUBECONFIG, the cluster we run in, ~/.kube/config")]


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.command("drain")(drain)
    app.command("undrain")(undrain)


def drain(
    node: Node,
    reason: Annotated[str, typer.Option(help="why, for those who find it later")] = "",
    timeout: Annotated[float, typer.Option(min=0, help="wait no longer than so many seconds")] = 60.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait until the node announces nothing")] = True,
    install_namespace: InstallNamespace = names.INSTALL_NAMESPACE,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Has a node hand its addresses over to others, without a gap, and take none until `undrain`."""
    with explained():
        if not reason.isprintable() or len(reason) > REASON_MAX:
            raise InvalidInput(f"a reason is one line of {REASON_MAX} characters at most")
        drained = asyncio.run(_drain(node, reason.strip(), timeout if wait else None, install_namespace, kubeconfig))
    if not drained:
        raise typer.Exit(STAYS)


def undrain(node: Node, kubeconfig: Kubeconfig = None) -> None:
    """Lets a drained node announce again; what is its own comes back to it, without a gap."""
    with explained():
        asyncio.run(_undrain(node, kubeconfig))


async def _drain(node: str, reason: str, timeout_s: float | None, namespace: str, kubeconfig: Path | None) -> bool:
    """Whether all that the node announced has gone, as far as that was waited for. Raises KubeError, InvalidInput."""
    from purelb_sm.kube.client import KubeClient

    async with await KubeClient.connect(str(kubeconfig) if kubeconfig else None) as client:
        view = await _node(client, node)
        if names.DRAIN in view.annotations:
            since = view.annotations[names.DRAIN]
            typer.echo(f"{node} is drained already{f' ({since})' if since else ''}")
        else:
            mark = f"{utc_now():%Y-%m-%dT%H:%M:%SZ} {reason}".strip()
            await _annotate(client, view, mark)
            typer.echo(f"{node} hands its addresses over")
        return True if timeout_s is None else await _Progress(client, node, namespace).wait(timeout_s)


async def _undrain(node: str, kubeconfig: Path | None) -> None:
    from purelb_sm.kube.client import KubeClient

    async with await KubeClient.connect(str(kubeconfig) if kubeconfig else None) as client:
        view = await _node(client, node)
        if names.DRAIN in view.annotations:
            await _annotate(client, view, None)
            del view.annotations[names.DRAIN]
            typer.echo(f"{node} is drained no more")
        else:
            typer.echo(f"{node} was not drained")
        if asked_of(view) is not None:
            label = f"it has the label {names.EXCLUDE_LABEL}"
            typer.echo(f"it announces only what nobody else can all the same: {label}")


async def _node(client: KubeClient, node: str) -> NodeView:
    from purelb_sm.kube.objects import decode_node
    from purelb_sm.kube.resources import NODES

    try:
        return await client.get(NODES.path(node), decode_node)
    except NotFound:
        raise InvalidInput(f"there is no Node {node}") from None
    except Forbidden as error:
        raise _may_not("get", "nodes", error) from error


async def _annotate(client: KubeClient, view: NodeView, mark: str | None) -> None:
    from purelb_sm.kube.client import MERGE_PATCH
    from purelb_sm.kube.resources import NODES

    body = {"metadata": {"uid": view.uid, "annotations": {names.DRAIN: mark}}}
    try:
        await client.request("PATCH", NODES.path(view.name), body=body, content_type=MERGE_PATCH)
    except Forbidden as error:
        raise _may_not("patch", "nodes", error) from error


def _may_not(verb: str, what: str, error: KubeError) -> KubeError:
    """The same, with what to ask an administrator for."""
    return Forbidden(f"you may not {verb} {what}: {error}", status=error.status, kind_reason=error.kind_reason)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What Leases and reports say at one moment. `agent`: whether there is one on the node; `knows`: whether it has
    said that it is drained."""

    agent: bool
    knows: bool
    held: frozenset[Address]
    staying: tuple[Staying, ...]

    @property
    def for_good(self) -> bool:
        """Whether nothing of what is left can move by itself."""
        return self.knows and all(one.for_good for one in self.staying)


class _Progress:
    """Looks, tells what has changed, and knows when there is nothing left to wait for."""

    def __init__(self, client: KubeClient, node: str, namespace: str) -> None:
        self._client = client
        self._node = node
        self._namespace = namespace

    async def wait(self, timeout_s: float) -> bool:
        end, left, since = monotonic() + timeout_s, -1, monotonic()
        while True:
            seen = await self._look()
            if not seen.agent:
                self._tell_no_agent(seen)
                return not seen.held
            if seen.knows and not seen.held:
                typer.echo(f"{self._node} is drained: it announces nothing")
                return True
            if len(seen.held) != left:
                left, since = len(seen.held), monotonic()
                typer.echo(f"{left} {'address' if left == 1 else 'addresses'} left")
            if monotonic() >= end or (seen.for_good and monotonic() - since >= SURE_AFTER_S):
                self._tell_what_stays(seen, in_time=monotonic() < end)
                return False
            await asyncio.sleep(min(LOOK_EVERY_S, max(0.0, end - monotonic())))

    async def _look(self) -> _Seen:
        leases, reports = await self._leases(), await self._reports()
        own = reports.get(self._node)
        held = _present(own) if own else frozenset()
        electorate = Electorate(
            {node: parse_subnets(lease.annotations.get(names.SUBNETS, "")) for node, lease in leases.items()},
            [node for node, lease in leases.items() if says_draining(lease.annotations)],
        )
        count = electorate.nodes.keys() - electorate.draining - {self._node}
        elsewhere = frozenset[Address]().union(*(_present(reports[node]) for node in count if node in reports))
        knows = self._node in electorate.draining
        return _Seen(self._node in leases, knows, held, what_stays(self._node, held, electorate, elsewhere))

    async def _leases(self) -> dict[str, LeaseView]:
        from purelb_sm.kube.reading import read_leases

        try:
            leases = await read_leases(self._client, self._namespace)
            return {
                lease.name.removeprefix(names.NODE_LEASE_PREFIX): lease
                for lease in leases
                if lease.name.startswith(names.NODE_LEASE_PREFIX)
            }
        except Forbidden as error:
            raise _may_not("list", f"leases in {self._namespace}", error) from error

    async def _reports(self) -> dict[str, NodeReport]:
        from purelb_sm.kube.reading import read_reports

        try:
            return await read_reports(self._client, self._namespace)
        except Forbidden as error:
            raise _may_not("list", f"nodeannouncements in {self._namespace}", error) from error

    def _tell_no_agent(self, seen: _Seen) -> None:
        typer.echo(f"no agent runs on {self._node}: the next one that does will announce nothing there")
        if seen.held:
            typer.echo(f"{len(seen.held)} addresses may still be in its kernel, until their lifetime is over")

    def _tell_what_stays(self, seen: _Seen, *, in_time: bool) -> None:
        if not in_time:
            typer.echo("not within the time given" if seen.knows else "its agent has not said a word in the time given")
        for one in seen.staying[:SHOWN_MAX]:
            typer.echo(f"{one.address} stays: {one.why}")
        if len(seen.staying) > SHOWN_MAX:
            typer.echo(f"and {len(seen.staying) - SHOWN_MAX} more")


def _present(report: NodeReport) -> frozenset[Address]:
    states: Collection[AnnouncementState] = (AnnouncementState.PRESENT, AnnouncementState.REMOVING)
    return frozenset(one.address for one in report.addresses if one.state in states)
