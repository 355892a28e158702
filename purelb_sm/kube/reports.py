"""The agent's report, written into its NodeAnnouncement objects: at most once a second, always the latest.

Only the agent of a node writes them. Where two run at once (a rolling update), the one that came later wins: its first
write takes over whatever is there, every later one is conditional on its own last, and who finds another incarnation in
the place of its own stops writing. No clock is asked who came later.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from purelb_sm.domain.names import INSTALL_NAMESPACE, PREFIX
from purelb_sm.domain.reports import SLICE_ADDRESSES, NodeReport, join_slices, render_slice, slice_count, slice_name
from purelb_sm.errors import AlreadyExists, Conflict, KubeError, NotFound
from purelb_sm.kube.client import MERGE_PATCH
from purelb_sm.kube.resources import NODE_ANNOUNCEMENTS
from purelb_sm.kube.wire import Requests, plain_object, version_of

__all__ = ["NODE_LABEL", "ReportWriter", "join_slices"]

log = structlog.get_logger(__name__)

NODE_LABEL: Final = PREFIX + "node"
FIRST_RETRY_S: Final = 1.0
LAST_RETRY_S: Final = 30.0


class Superseded(KubeError):
    """Another incarnation of this node's agent has taken over the report."""


class ReportWriter:
    """Writes what `source()` says, whenever `mark()` was called since. Run `run()` as a task.

    `source` is asked only when it is about to be written, so a hundred moves within a second are one report.
    """

    def __init__(
        self,
        client: Requests,
        source: Callable[[], NodeReport],
        node: str,
        *,
        namespace: str = INSTALL_NAMESPACE,
        interval_s: float = 1.0,
        slice_addresses: int = SLICE_ADDRESSES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.superseded = False
        self.written = 0
        self._client = client
        self._source = source
        self._node = node
        self._namespace = namespace
        self._interval_s = interval_s
        self._slice_addresses = slice_addresses
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or random.Random()  # noqa: S311  # jitter, not a secret
        self._marked = asyncio.Event()
        self._writing = asyncio.Lock()
        self._versions: dict[str, str] | None = None
        self._last = float("-inf")
        self._failures = 0
        self._log = log.bind(node=node)

    def mark(self) -> None:
        """There is something new to report."""
        self._marked.set()

    async def run(self) -> None:
        """Writes until cancelled, or until another incarnation has taken over."""
        while not self.superseded:
            await self._marked.wait()
            wait_s = self._last + self._interval_s - self._clock()
            if wait_s > 0:
                await self._sleep(wait_s)
            try:
                await self._write()
            except KubeError as error:
                await self._sleep(self._failed(error))

    async def flush(self) -> bool:
        """Writes at once what was marked, for the end; answers whether the server has it all."""
        try:
            await self._write()
        except KubeError as error:
            self._log.warning("report_not_written", error=str(error))
            return False
        return not self._marked.is_set()

    def _failed(self, error: KubeError) -> float:
        """Keeps the mark; answers with how long to wait."""
        self._marked.set()
        self._failures += 1
        if self._failures == 1:
            self._log.warning("report_not_written", error=str(error))
        delay_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 10))
        return max(error.retry_after_s or 0.0, delay_s * self._rng.uniform(0.8, 1.2))

    async def _write(self) -> None:
        async with self._writing:
            if self.superseded or not self._marked.is_set():
                return
            self._marked.clear()
            self._last = self._clock()
            report = self._source()
            try:
                await self._write_slices(report)
            except Superseded as error:
                self.superseded = True
                self._log.warning("report_superseded", error=str(error))
                return
            except BaseException:
                # What others wrote meanwhile is looked at again before the next try.
                self._versions = None
                self._marked.set()
                raise
            if self._failures:
                self._log.info("report_written_again")
            self._failures = 0
            self.written += 1

    async def _write_slices(self, report: NodeReport) -> None:
        if self._versions is None:
            self._versions = await self._look(report)
        count = slice_count(report, self._slice_addresses)
        for index in range(count):
            # One at a time: rendered, ten thousand addresses are many megabytes.
            spec = {"slice": None, "slices": None} | render_slice(report, index, self._slice_addresses)
            await self._put(slice_name(self._node, index), spec, report, self._versions)
        wanted = {slice_name(self._node, index) for index in range(count)}
        for name in [name for name in self._versions if name not in wanted]:
            with contextlib.suppress(NotFound):
                await self._client.request("DELETE", NODE_ANNOUNCEMENTS.path(name, self._namespace))
            del self._versions[name]

    async def _look(self, report: NodeReport) -> dict[str, str]:
        """What objects of this node there are, with their versions. Raises Superseded."""
        query = {"labelSelector": f"{NODE_LABEL}={self._node}"}
        path = NODE_ANNOUNCEMENTS.collection(self._namespace)
        found = plain_object(await self._client.request("GET", path, query=query), "reports")
        versions = {}
        for item in found.get("items") or []:
            if _is_of(item, self._node):
                if self.written and _spec(item).get("incarnation") != report.incarnation:
                    raise Superseded(f"incarnation {_spec(item).get('incarnation')!r} reports now")
                versions[str(item["metadata"]["name"])] = version_of(item)
        return versions

    async def _put(self, name: str, spec: dict[str, object], report: NodeReport, versions: dict[str, str]) -> None:
        metadata: dict[str, object] = {"labels": {NODE_LABEL: self._node}}
        if name in versions:
            metadata["resourceVersion"] = versions[name]
            path = NODE_ANNOUNCEMENTS.path(name, self._namespace)
            body: dict[str, object] = {"metadata": metadata, "spec": spec}
            try:
                data = await self._client.request("PATCH", path, body=body, content_type=MERGE_PATCH)
            except NotFound:
                del versions[name]
            else:
                versions[name] = version_of(plain_object(data, "report"))
                return
        versions[name] = await self._create(name, spec)

    async def _create(self, name: str, spec: dict[str, object]) -> str:
        metadata: dict[str, object] = {"name": name, "labels": {NODE_LABEL: self._node}}
        body = {
            "apiVersion": NODE_ANNOUNCEMENTS.api_version,
            "kind": NODE_ANNOUNCEMENTS.kind,
            "metadata": metadata,
            "spec": {key: value for key, value in spec.items() if value is not None},
        }
        try:
            data = await self._client.request("POST", NODE_ANNOUNCEMENTS.collection(self._namespace), body=body)
        except AlreadyExists:
            metadata["resourceVersion"] = await self._without_label(name)
            data = await self._client.request("PUT", NODE_ANNOUNCEMENTS.path(name, self._namespace), body=body)
        return version_of(plain_object(data, "report"))

    async def _without_label(self, name: str) -> str:
        """The version of an object that has our name but was not found by our label. Raises Conflict if it is not ours:
        slice 1 of the node `a` has the name that a node called `a.1` has."""
        found = plain_object(
            await self._client.request("GET", NODE_ANNOUNCEMENTS.path(name, self._namespace)), "report"
        )
        if _spec(found).get("node") != self._node:
            raise Conflict(f"NodeAnnouncement {name} speaks for node {_spec(found).get('node')!r}", status=409)
        return version_of(found)


def _spec(item: dict[str, Any]) -> dict[str, Any]:
    spec = item.get("spec")
    return spec if isinstance(spec, dict) else {}


def _is_of(item: object, node: str) -> bool:
    return (
        isinstance(item, dict)
        and isinstance(item.get("metadata"), dict)
        and str(item["metadata"].get("name")).startswith(node)
        and _spec(item).get("node") == node
    )
