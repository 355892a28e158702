"""Keeps the nodes answering TCP on the ports of Services, in place of kube-proxy and pods."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from purelb_sm.domain.views import ServiceView
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.objects import SERVICE
from purelb_sm.kube.reflector import Reflector

SetPorts = Callable[[set[int]], Awaitable[None]]


def tcp_ports(services: Iterable[ServiceView]) -> set[int]:
    """The TCP ports that some Service of type LoadBalancer has."""
    return {
        port.port
        for service in services
        if service.type == "LoadBalancer"
        for port in service.ports
        if port.protocol == "TCP"
    }


async def serve(client: KubeClient, set_ports: SetPorts) -> None:
    """Watches Services until cancelled, and calls `set_ports` whenever the set of ports differs."""
    services = Reflector(client, SERVICE)
    changed = asyncio.Event()
    services.on_change(lambda _change, _old, _new: changed.set())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(services.run())
        served: set[int] = set()
        while True:
            await changed.wait()
            changed.clear()
            wanted = tcp_ports(services.items().values())
            if wanted != served:
                await set_ports(wanted)
                served = wanted
