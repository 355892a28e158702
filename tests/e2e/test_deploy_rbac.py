"""The roles of deploy/base against what the processes really ask of an API server, request by request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest
import yaml
from aiohttp import web
from aiohttp.typedefs import Handler

from purelb_sm.domain.names import INSTALL_NAMESPACE
from purelb_sm.kube.resources import NODE_ANNOUNCEMENTS, SERVICES
from purelb_sm.sandbox.apiserver import ApiServer, serve, write_kubeconfig
from purelb_sm.sandbox.launcher import Options, Sandbox

BASE = Path(__file__).parents[2] / "deploy" / "base"
ROLE_OF = {"purelb-allocator": "purelb-allocator", "purelb-lbnodeagent": "purelb-agent"}
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Access(NamedTuple):
    """What the authorizer of a real API server decides by."""

    verb: str
    group: str
    resource: str
    namespace: str


def access_of(method: str, path: str, watch: bool) -> Access | None:
    """None for what is not about a resource. Paths: /api/v1/… and /apis/GROUP/VERSION/…, then namespaces/NS/…."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if parts[0] not in ("api", "apis") or len(parts) < 3:
        return None
    group = "" if parts[0] == "api" else parts[1]
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource = "/".join([rest[0], *rest[2:]])
    read = "watch" if watch else ("get" if len(rest) > 1 else "list")
    return Access(VERBS.get(method, read), group, resource, namespace)


class Recorder(ApiServer):
    """An emulated API server that keeps who asked for what."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, set[Access]] = {}

    def app(self) -> web.Application:
        application = super().app()
        application.middlewares.append(self._note)
        return application

    @web.middleware
    async def _note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        who = request.headers.get("User-Agent", "").split("/")[0]
        access = access_of(request.method, request.path, "watch" in request.query)
        if access is not None:
            self.asked.setdefault(who, set()).add(access)
        return await handler(request)


def rules(name: str) -> Iterator[tuple[bool, dict[str, Any]]]:
    """The rules of a ClusterRole and Role of this name, and whether each holds in every namespace."""
    for file in BASE.glob("*-rbac.yaml"):
        for document in yaml.safe_load_all(file.read_text()):
            if document["kind"] in ("ClusterRole", "Role") and document["metadata"]["name"] == name:
                for rule in document["rules"]:
                    yield document["kind"] == "ClusterRole", rule


def allowed(name: str, access: Access) -> bool:
    return any(
        (everywhere or access.namespace == INSTALL_NAMESPACE)
        and access.group in rule["apiGroups"]
        and access.resource in rule["resources"]
        and access.verb in rule["verbs"]
        for everywhere, rule in rules(name)
    )


@asynccontextmanager
async def recorded(tmp_path: Path) -> AsyncIterator[tuple[Recorder, Sandbox]]:
    """The product on a recording API server, which it takes for a real one."""
    server = Recorder()
    async with serve(server, port=0) as url:
        write_kubeconfig(tmp_path / "kubeconfig", url)
        options = Options(
            nodes=2, kubeconfig=tmp_path / "kubeconfig", directory=tmp_path / "sandbox", handle_sigterm=False
        )
        async with Sandbox(options) as sandbox:
            yield server, sandbox
    server.close()


def service(name: str, group: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "annotations": {"purelb.io/service-group": group}},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "protocol": "TCP"}]},
    }


async def a_day_in_the_life(sandbox: Sandbox) -> None:
    """Everything that makes the processes ask for something: groups, addresses, a refusal, a node lost, an end."""
    for name, group in (("local", "default"), ("routed", "virtualsub"), ("refused", "nosuch")):
        await sandbox.apply(service(name, group))

    async def announced() -> bool:
        reports = await sandbox.items(NODE_ANNOUNCEMENTS, INSTALL_NAMESPACE)
        held = {a["address"] for r in reports for a in r["spec"].get("addresses") or () if a["state"] == "present"}
        return {str(a) for n in ("local", "routed") for a in await sandbox.ingress("default", n)} <= held and len(
            held
        ) > 1

    await sandbox.until("both addresses to be announced", announced)
    (address,) = await sandbox.ingress("default", "local")
    (holder,) = await sandbox.holders(address)
    await sandbox.power_off(holder)

    async def moved() -> bool:
        return bool(set(await sandbox.holders(address)) - {holder})

    await sandbox.until("the address to move", moved)
    await sandbox.delete(SERVICES, "local", "default")

    async def gone() -> bool:
        return not await sandbox.holders(address)

    await sandbox.until("the address to be gone", gone)


@pytest.mark.root
@pytest.mark.spec("D3", "D4")
async def test_the_roles_allow_all_that_the_processes_ask_for(tmp_path: Path) -> None:
    async with recorded(tmp_path) as (server, sandbox):
        await a_day_in_the_life(sandbox)
    assert set(ROLE_OF) <= set(server.asked), f"nobody has asked as {set(ROLE_OF) - set(server.asked)}"
    refused = {(who, a) for who, role in ROLE_OF.items() for a in server.asked[who] if not allowed(role, a)}
    assert not refused


@pytest.mark.root
async def test_a_real_api_server_is_left_without_our_nodes_and_groups(tmp_path: Path) -> None:
    async with recorded(tmp_path) as (server, sandbox):
        assert len(sandbox.nodes) == 2
        assert server.get("v1", "Node", "node1") is not None
    assert server.get("v1", "Node", "node1") is None
    assert server.get("purelb.io/v2", "ServiceGroup", "default", INSTALL_NAMESPACE) is None
