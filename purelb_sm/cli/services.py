"""The verbs that ask something of a Service's planning, through the API: `re-evaluate`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from purelb_sm.cli.answering import explained, service_key
from purelb_sm.domain import names
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import InvalidInput


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("re-evaluate")(re_evaluate)


def re_evaluate(
    service: Annotated[str, typer.Argument(metavar="NAMESPACE/NAME", help="a Service of type LoadBalancer")],
    kubeconfig: Annotated[
        Path | None, typer.Option(help="else $KUBECONFIG, the cluster we run in, ~/.kube/config")
    ] = None,
) -> None:
    """Has a Service planned anew: it moves to the group that it names now, and gets what it lacks."""
    with explained():
        key = service_key(service)
        asyncio.run(_ask(key, kubeconfig))
        typer.echo(f"{key} is planned anew; the annotation {names.RE_EVALUATE} goes when that is done")


async def _ask(key: ServiceKey, kubeconfig: Path | None) -> None:
    """Sets the annotation. Raises KubeError, InvalidInput for a Service that has no addresses to plan."""
    from purelb_sm.kube.client import MERGE_PATCH, KubeClient
    from purelb_sm.kube.objects import decode_service
    from purelb_sm.kube.resources import SERVICES

    path = SERVICES.path(key.name, key.namespace)
    async with await KubeClient.connect(str(kubeconfig) if kubeconfig else None) as client:
        found = await client.get(path, decode_service)
        if found.type != "LoadBalancer":
            raise InvalidInput(f"Service {key} is of type {found.type}, not LoadBalancer")
        body = {"metadata": {"uid": found.uid, "annotations": {names.RE_EVALUATE: "true"}}}
        await client.request("PATCH", path, body=body, content_type=MERGE_PATCH)
