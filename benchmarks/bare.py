"""The ceiling: a loop that makes the allocator's writes without any thought, durability or care.

`python -m benchmarks.bare KUBECONFIG NAMESPACE CLASS` watches Services, and as soon as it sees one without an address
it writes its status (the same merge patch) and an Event, through the same client, with as many requests at once.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from itertools import count
from typing import Any

import msgspec

from purelb_sm.domain.book import Publication
from purelb_sm.domain.publication import condition_allocated, publish_allocated
from purelb_sm.domain.views import ServiceView
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.objects import decode_service
from purelb_sm.kube.publish import publish
from purelb_sm.kube.resources import EVENTS, SERVICES
from purelb_sm.kube.wire import plain_time, utc_now

CONCURRENCY = 24
"""As the allocator's default of `publish_concurrency`."""


class _Event(msgspec.Struct, gc=False):
    type: str
    object: msgspec.Raw


_read = msgspec.json.Decoder(_Event).decode


async def run(kubeconfig: str, namespace: str, service_class: str) -> None:
    """Until cancelled."""
    queue: asyncio.Queue[ServiceView] = asyncio.Queue()
    async with await KubeClient.connect(kubeconfig) as client:
        async with asyncio.TaskGroup() as group:
            addresses = (IPv4Address("10.128.0.0") + n for n in count())
            for _ in range(CONCURRENCY):
                group.create_task(_write(client, queue, addresses))
            group.create_task(_watch(client, namespace, service_class, queue))


async def _watch(client: KubeClient, namespace: str, service_class: str, queue: asyncio.Queue[ServiceView]) -> None:
    path = SERVICES.collection(namespace)
    listed = msgspec.json.decode(await client.request("GET", path))
    query = {"watch": "true", "resourceVersion": listed["metadata"]["resourceVersion"]}
    async for line in client.stream(path, query, idle_s=600):
        if not line:
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            continue
        event = _read(line)
        if event.type == "ADDED":
            view = decode_service(event.object)
            if view.load_balancer_class == service_class:
                queue.put_nowait(view)


async def _write(client: KubeClient, queue: asyncio.Queue[ServiceView], addresses: Iterator[IPv4Address]) -> None:
    while True:
        view = await queue.get()
        address = next(addresses)
        written = await publish(client, _publication(view, address))
        body = _event(written, f"Assigned IP {address} from pool default")
        await client.request("POST", EVENTS.collection(view.key.namespace), body=body)


def _event(view: ServiceView, message: str) -> dict[str, Any]:
    at = plain_time(utc_now())
    reference = {"apiVersion": "v1", "kind": "Service", "namespace": view.key.namespace, "name": view.key.name}
    return {
        "metadata": {"name": f"{view.key.name}.{view.uid}", "namespace": view.key.namespace},
        "involvedObject": {**reference, "uid": view.uid, "resourceVersion": view.resource_version},
        "reason": "IPAllocated",
        "message": message,
        "type": "Normal",
        "source": {"component": "bare"},
        "reportingComponent": "bare",
        "reportingInstance": "bare",
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }


def _publication(view: ServiceView, address: IPv4Address) -> Publication:
    condition = condition_allocated(view, [address], "default", utc_now())
    made = publish_allocated(view, [address], "default", "remote", condition)
    assert made is not None
    return made


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:4]))
