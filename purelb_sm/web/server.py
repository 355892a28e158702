"""`/livez`, `/readyz`, `/metrics`. Liveness never depends on the API server or the database; readiness does (spec D5).

A process that is restarted because its database is away only makes the outage longer, so `/livez` says no more than
that the event loop turns.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

Checks = Callable[[], Mapping[str, bool]]
"""Names of what readiness depends on, and whether each is well now."""


def application(ready: Checks, registry: CollectorRegistry) -> web.Application:
    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        checks = ready()
        lines = [f"[{'+' if well else '-'}]{name}" for name, well in checks.items()]
        return web.Response(text="\n".join(lines) + "\n", status=200 if all(checks.values()) else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app


@asynccontextmanager
async def serve(host: str, port: int, ready: Checks, registry: CollectorRegistry) -> AsyncIterator[None]:
    """Serves while the block runs; nothing at all where `port` is 0."""
    if port == 0:
        yield
        return
    runner = web.AppRunner(application(ready, registry), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host or None, port).start()
        yield
    finally:
        await runner.cleanup()
