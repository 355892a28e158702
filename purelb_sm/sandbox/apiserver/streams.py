"""Watches on the wire: batches of events as they come, or as a fault spoils them."""

from __future__ import annotations

import asyncio

from aiohttp import web

from purelb_sm.sandbox.apiserver import faults
from purelb_sm.sandbox.apiserver.lists import Watch


async def send(
    http: web.Request, watch: Watch, fault: faults.Fault | None, ending: asyncio.Event
) -> web.StreamResponse:
    """Answer a watch until its end; raises StatusError where there can be none."""
    try:
        first = watch.start()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(http)
        if fault is not None and fault.kind in ("hang", "abort", "truncate", "close"):
            await _spoilt(http, response, fault, watch, first, ending)
            return response
        if first:
            await response.write(first)
        async for batch in watch.batches(ending):
            await response.write(batch)
        await response.write_eof()
    finally:
        watch.stop()
    return response


async def _spoilt(
    http: web.Request,
    response: web.StreamResponse,
    fault: faults.Fault,
    watch: Watch,
    first: bytes,
    ending: asyncio.Event,
) -> None:
    """A watch that goes wrong after its first `fault.after` events."""
    left = fault.after
    if left == 0 and await _spoil(http, response, fault, b""):
        return
    lines = first.splitlines(keepends=True)
    batches = watch.batches(ending)
    while True:
        for each in lines:
            if left == 0 and await _spoil(http, response, fault, each):
                return
            await response.write(each)
            left -= 1
        lines = (await anext(batches, b"")).splitlines(keepends=True)
        if not lines:
            await response.write_eof()
            return


async def _spoil(http: web.Request, response: web.StreamResponse, fault: faults.Fault, next_line: bytes) -> bool:
    """Let a watch go wrong now; False where it has to go on for that."""
    match fault.kind:
        case "hang":
            await asyncio.Event().wait()
        case "truncate":
            if not next_line:
                return False
            await response.write(next_line[: len(next_line) // 2])
            await response.write_eof()
        case "abort":
            faults.abort(http)
        case "close":
            await response.write_eof()
    return True
