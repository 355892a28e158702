"""What a sandbox's API server holds before anybody uses it: the CRDs, the install namespace, Nodes, sample groups.

Everything is applied (server-side apply), so that a second start on the same state, or on an API server that has some
of it, changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final

import yaml

import purelb_sm
from purelb_sm.domain.names import INSTALL_NAMESPACE
from purelb_sm.errors import Conflict, KubeError, NotFound
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.resources import NAMESPACES, NODES, SERVICE_GROUPS, Resource
from purelb_sm.sandbox.launcher.waiting import wait_until

JSON = dict[str, Any]

CRDS: Final = Resource("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", False)
SAMPLE_GROUPS: Final = ("default.yaml", "localaddr.yaml", "routed.yaml", "virtualsub-v1.yaml")
MANAGER: Final = "purelb-sandbox"

_APPLY_PATCH = "application/apply-patch+yaml"
_ESTABLISH_TIMEOUT_S = 30.0


def deploy_folder(name: str) -> Path:
    """`deploy/NAME` of a checkout, or the copy that the wheel brings along as `_NAME`. Raises FileNotFoundError."""
    package = Path(purelb_sm.__file__).parent
    for folder in (package / f"_{name}", package.parent / "deploy" / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"deploy/{name} is neither in the installed package nor beside it")


def documents(files: Iterable[Path]) -> Iterator[JSON]:
    """The Kubernetes objects of some YAML files; files that are for kustomize are passed over."""
    for file in files:
        for document in yaml.safe_load_all(file.read_text()):
            if document and document.get("kind") != "Kustomization":
                yield document


@cache
def crds() -> Sequence[JSON]:
    """Read once: they are long, and the YAML parser is slow."""
    return tuple(documents(sorted(deploy_folder("crds").glob("*.yaml"))))


def sample_groups() -> list[JSON]:
    return list(documents(deploy_folder("samples") / name for name in SAMPLE_GROUPS))


def node_object(name: str, addresses: Sequence[IPv4Address | IPv6Address]) -> JSON:
    """A Node as a kubelet would register it, ready."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "status": {
            "addresses": [
                *({"type": "InternalIP", "address": str(address)} for address in addresses),
                {"type": "Hostname", "address": name},
            ],
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "KubeletReady",
                    "message": "emulated",
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }
            ],
        },
    }


async def apply(client: KubeClient, path: str, document: Mapping[str, Any]) -> None:
    """Server-side apply, by force: the sandbox owns what it writes. Raises KubeError."""
    await client.request(
        "PATCH",
        path,
        query={"fieldManager": MANAGER, "force": "true"},
        body=document,
        content_type=_APPLY_PATCH,
    )


async def apply_node(client: KubeClient, document: JSON) -> None:
    """A Node and its status, which is a subresource."""
    name = document["metadata"]["name"]
    await apply(client, NODES.path(name), {k: v for k, v in document.items() if k != "status"})
    await apply(client, NODES.path(name, subresource="status"), document)


async def apply_crds(client: KubeClient) -> None:
    """The CRDs, and waits until the API server serves their kinds."""
    await asyncio.gather(*(apply(client, CRDS.path(crd["metadata"]["name"]), crd) for crd in crds()))
    await asyncio.gather(*(_served(client, crd) for crd in crds()))


async def _served(client: KubeClient, crd: JSON) -> None:
    """Established is not enough: the paths are served a moment later."""
    spec = crd["spec"]
    version = next(v["name"] for v in spec["versions"] if v["storage"])
    path = Resource(spec["group"], version, spec["names"]["kind"], spec["names"]["plural"]).collection()

    async def answers() -> bool:
        try:
            await client.request("GET", path, query={"limit": "1"})
        except NotFound:
            return False
        return True

    await wait_until(answers, _ESTABLISH_TIMEOUT_S, f"{spec['names']['plural']} to be served", every_s=0.05)


async def apply_namespace(client: KubeClient, name: str = INSTALL_NAMESPACE) -> None:
    await apply(client, NAMESPACES.path(name), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


async def apply_groups(client: KubeClient, groups: Iterable[JSON]) -> None:
    """ServiceGroups into the install namespace, each as the version it is written in."""
    for group in groups:
        version = group["apiVersion"].rpartition("/")[2]
        resource = Resource(SERVICE_GROUPS.group, version, SERVICE_GROUPS.kind, SERVICE_GROUPS.plural)
        await apply(client, resource.path(group["metadata"]["name"], INSTALL_NAMESPACE), group)


async def remove(client: KubeClient, paths: Iterable[str]) -> None:
    """Deletes what a sandbox has put into an API server that outlives it. What is gone already is no matter."""
    for path in paths:
        try:
            await client.request("DELETE", path)
        except (NotFound, Conflict):
            continue
        except KubeError:
            return  # The server is gone or refuses us: nothing more can be done for it.
