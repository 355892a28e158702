"""One look at a few objects, where a watch would be too much: decoded as a reflector does it, and then forgotten."""

from __future__ import annotations

from typing import TypeVar

import msgspec
import structlog

from purelb_sm.domain.addresses import Address
from purelb_sm.domain.reports import NodeReport, join_slices
from purelb_sm.domain.states import AnnouncementState
from purelb_sm.domain.views import LeaseView, ObjectView
from purelb_sm.errors import InvalidInput
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.objects import LEASE, NODE_ANNOUNCEMENT, Kind, Undecodable, Versioned
from purelb_sm.kube.reports import NODE_LABEL

log = structlog.get_logger(__name__)

K = TypeVar("K")
V = TypeVar("V", bound=Versioned)


class _List(msgspec.Struct):
    items: list[msgspec.Raw] | None = None


_decode_list = msgspec.json.Decoder(_List).decode


async def list_once(
    client: KubeClient, kind: Kind[K, V], namespace: str | None, *, label_selector: str = ""
) -> list[V]:
    """All objects of a kind in a namespace, or of a kind that is in none. What cannot be decoded is passed over. Raises
    KubeError."""
    query = {"labelSelector": label_selector} if label_selector else None
    found = await client.get(kind.resource.collection(namespace), _decode_list, query=query)
    views = []
    for raw in found.items or ():
        try:
            views.append(kind.decode(raw))
        except Undecodable as error:
            log.debug("not_understood", kind=kind.resource.kind, error=str(error))
    return views


async def read_leases(client: KubeClient, namespace: str) -> list[LeaseView]:
    """The Leases of a namespace. Raises KubeError."""
    return await list_once(client, LEASE, namespace)


async def read_report(client: KubeClient, namespace: str, node: str) -> NodeReport | None:
    """What the node's agent reports; None where there is none, or none that can be read. Raises KubeError."""
    selector = f"{NODE_LABEL}={node}"
    return _joined(await list_once(client, NODE_ANNOUNCEMENT, namespace, label_selector=selector), node)


async def read_announced(client: KubeClient, namespace: str, node: str) -> frozenset[Address]:
    """The addresses that the node's agent reports to be in its kernel. Raises KubeError."""
    report = await read_report(client, namespace, node)
    addresses = report.addresses if report else ()
    return frozenset(one.address for one in addresses if one.state is AnnouncementState.PRESENT)


async def read_reports(client: KubeClient, namespace: str) -> dict[str, NodeReport]:
    """What each node's agent reports, as far as it can be read. Raises KubeError."""
    views = await list_once(client, NODE_ANNOUNCEMENT, namespace)
    by_node: dict[str, list[ObjectView]] = {}
    for view in views:
        by_node.setdefault(view.labels.get(NODE_LABEL, view.name), []).append(view)
    reports = {node: _joined(views, node) for node, views in by_node.items()}
    return {node: report for node, report in reports.items() if report is not None}


def _joined(views: list[ObjectView], node: str) -> NodeReport | None:
    try:
        return join_slices(views, node)
    except InvalidInput as error:
        log.debug("report_not_understood", node=node, error=str(error))
        return None
