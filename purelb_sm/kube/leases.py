"""Leases: who leads, and which nodes are alive.

Clocks of different machines are never compared. Whether another's Lease has run out is judged by our own monotonic
clock, from the moment when we saw it change (KEP-589 does the same for nodes); whether ours still holds is counted from
before the request that renewed it. So ours ends, for us, before it can end for anybody else. The times written into a
Lease are for people to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final

import structlog

from purelb_sm.domain.names import INSTALL_NAMESPACE, LEADER_LEASE, NODE_LEASE_PREFIX
from purelb_sm.errors import AlreadyExists, Conflict, KubeError, NotFound, TermLost
from purelb_sm.kube.client import MERGE_PATCH
from purelb_sm.kube.liveness import Liveness
from purelb_sm.kube.resources import LEASES
from purelb_sm.kube.wire import Requests, micro_time, plain_object, utc_now, version_of

__all__ = ["HeldLease", "LeaderElection", "Liveness"]

log = structlog.get_logger(__name__)

Lead = Callable[[], Awaitable[object]]
_API_VERSION: Final = LEASES.api_version


class LeaderElection:
    """One candidate for the lead. `run(lead)` contends for ever, and runs `lead()` while it leads.

    `identity` must be of one process at a time: a Lease found under it is taken for ours, without waiting.
    `renew_deadline_s` < `duration_s`: after so long without a renewal we step down, whatever hangs; the difference is
    what `lead()` has to end in after its cancellation. Defaults as in client-go.
    """

    def __init__(
        self,
        client: Requests,
        identity: str,
        *,
        namespace: str = INSTALL_NAMESPACE,
        name: str = LEADER_LEASE,
        duration_s: float = 15.0,
        renew_deadline_s: float = 10.0,
        retry_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
        rng: random.Random | None = None,
    ) -> None:
        if not identity:
            raise ValueError("a candidate needs an identity")
        if not 0 < retry_s < renew_deadline_s < duration_s:
            raise ValueError("must be retry_s < renew_deadline_s < duration_s")
        self.identity = identity
        self.holder = ""
        self._client = client
        self._collection = LEASES.collection(namespace)
        self._path = LEASES.path(name, namespace)
        self._name = name
        self._duration_s = duration_s
        self._deadline_s = renew_deadline_s
        self._retry_s = retry_s
        self._clock = clock
        self._now = now
        self._rng = rng or random.Random()  # noqa: S311  # jitter, not a secret
        self._annotations: dict[str, str] = {}
        self._ours: dict[str, Any] | None = None
        self._seen: tuple[str, float] = ("", 0.0)
        self._good_until = float("-inf")
        self._task: asyncio.Task[object] | None = None
        self._log = log.bind(lease=name, identity=identity)

    @property
    def leading(self) -> bool:
        """Whether we lead at this moment: asks the clock, so a process that was stopped for a while knows at once."""
        return self._task is not None and not self._task.done() and self._clock() < self._good_until

    def set_annotation(self, name: str, value: str) -> None:
        """Written with the next renewal, and kept by all after it."""
        self._annotations[name] = value

    async def run(self, lead: Lead) -> None:
        """Contends until cancelled, then gives the Lease back.

        `lead()` is started when we come to lead, and cancelled when we no longer do. If it returns, or raises
        TermLost, the Lease is given back and we are a candidate again, after the others had their chance; whatever
        else it raises ends `run`.
        """
        try:
            while True:
                await self._round(lead)
        finally:
            await self._stop()
            await asyncio.shield(self._release())

    async def _round(self, lead: Lead) -> None:
        renewed = await self._attempt()
        if renewed and self._task is None:
            self._log.info("leading")
            self._task = asyncio.ensure_future(lead())
        pause_s = self._retry_s * self._rng.uniform(0.8, 1.2)
        if self._task is None:
            await asyncio.sleep(pause_s)
            return
        left_s = self._good_until - self._clock()
        if left_s > 0:
            await asyncio.wait({self._task}, timeout=min(pause_s, left_s))
        if self._task.done():
            await self._ended(self._task)
        elif self._clock() >= self._good_until:
            self._log.warning("lead_lost", why="not renewed in time")
            await self._stop()

    async def _ended(self, task: asyncio.Task[object]) -> None:
        """`lead()` came to its end by itself."""
        self._task = None
        try:
            if not task.cancelled():
                task.result()
        except TermLost as error:
            self._log.warning("lead_lost", why=str(error))
        await self._release()
        await asyncio.sleep(self._retry_s * 2)

    async def _stop(self) -> None:
        """Cancels `lead()` and waits for its end: nobody else can lead before the duration is over."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        _, pending = await asyncio.wait({task}, timeout=self._duration_s - self._deadline_s)
        if pending:
            self._log.error("lead_does_not_end")
        elif not task.cancelled() and task.exception() is not None:
            self._log.error("lead_failed_while_stopping", error=str(task.exception()))

    async def _attempt(self) -> bool:
        """One try to take or renew the Lease. Whatever fails: not renewed."""
        patience_s = self._retry_s * 2
        if self._task is not None:
            patience_s = min(patience_s, self._good_until - self._clock())
        if patience_s <= 0:
            return False
        started = self._clock()
        try:
            async with asyncio.timeout(patience_s):
                taken = await self._take(started)
        except (KubeError, TimeoutError) as error:
            self._ours = None
            if not isinstance(error, Conflict | AlreadyExists):
                self._log.warning("lease_not_reached", error=str(error) or type(error).__name__)
            return False
        if taken:
            self._good_until = started + self._deadline_s
        # An answer that took longer than the deadline (a process that was stopped meanwhile) is worth nothing.
        return taken and self._clock() < self._good_until

    async def _take(self, started: float) -> bool:
        lease = self._ours
        if lease is None:
            try:
                data = await self._client.request("GET", self._path, timeout_s=self._retry_s)
            except NotFound:
                return await self._create()
            lease = plain_object(data, "lease")
        spec = lease.get("spec") or {}
        self.holder = str(spec.get("holderIdentity") or "")
        if self.holder not in ("", self.identity) and not self._has_run_out(lease, started):
            return False
        mine = self.holder == self.identity
        spec = {**spec, **self._spec()}
        if not mine:
            spec |= {
                "acquireTime": spec["renewTime"],
                "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1,
            }
        metadata = lease["metadata"]
        metadata["annotations"] = {**(metadata.get("annotations") or {}), **self._annotations}
        lease["spec"] = spec
        # With the resourceVersion in it this is compare-and-swap: of two that try, one gets a Conflict.
        data = await self._client.request("PUT", self._path, body=lease, timeout_s=self._retry_s)
        self._holds(data)
        return True

    async def _create(self) -> bool:
        spec = self._spec()
        spec |= {"acquireTime": spec["renewTime"], "leaseTransitions": 0}
        metadata = {"name": self._name, "annotations": dict(self._annotations)}
        body = {"apiVersion": _API_VERSION, "kind": LEASES.kind, "metadata": metadata, "spec": spec}
        self._holds(await self._client.request("POST", self._collection, body=body, timeout_s=self._retry_s))
        return True

    def _holds(self, data: bytes) -> None:
        self._ours = plain_object(data, "lease")
        self._ours["metadata"].pop("managedFields", None)
        self.holder = self.identity

    def _spec(self) -> dict[str, Any]:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._duration_s)),
            "renewTime": micro_time(self._now()),
        }

    def _has_run_out(self, lease: dict[str, Any], at: float) -> bool:
        version = version_of(lease)
        if version != self._seen[0]:
            # Asked for at `at`, so seen no earlier: waiting from the answer on is the safe side.
            self._seen = (version, self._clock())
            return False
        duration_s = float((lease.get("spec") or {}).get("leaseDurationSeconds") or self._duration_s)
        return at >= self._seen[1] + duration_s

    async def _release(self) -> None:
        """Gives the Lease back, so that the next one need not wait. Best effort: else it runs out."""
        lease, self._ours, self._good_until = self._ours, None, float("-inf")
        if lease is None or self.holder != self.identity:
            return
        self.holder = ""
        lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": micro_time(self._now())}
        lease["metadata"]["annotations"] = {**(lease["metadata"].get("annotations") or {}), **self._annotations}
        with contextlib.suppress(KubeError):
            await self._client.request("PUT", self._path, body=lease, timeout_s=self._retry_s)
            self._log.info("lead_given_back")


class HeldLease:
    """A node's own Lease, which says that its agent lives. Nobody contends for it: whoever runs on the node has it.

    Run `run()` as a task. `close()` deletes the Lease, and with that tells all others to take over at once.
    """

    def __init__(
        self,
        client: Requests,
        node: str,
        *,
        namespace: str = INSTALL_NAMESPACE,
        duration_s: float = 10.0,
        renew_s: float = 2.0,
        annotations: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
        rng: random.Random | None = None,
    ) -> None:
        if not 0 < renew_s < duration_s:
            raise ValueError("must be renew_s < duration_s")
        self._client = client
        self._name = NODE_LEASE_PREFIX + node
        self._node = node
        self._collection = LEASES.collection(namespace)
        self._path = LEASES.path(self._name, namespace)
        self._duration_s = duration_s
        self._renew_s = renew_s
        # An API server that takes seconds for an answer must not look like one that is away.
        self._patience_s = max(renew_s, duration_s / 3)
        self._annotations: dict[str, str | None] = dict(annotations or {})
        self._clock = clock
        self._now = now
        self._rng = rng or random.Random()  # noqa: S311  # jitter, not a secret
        self._acquired = ""
        self._version = ""
        self._failing = False
        self._on_return: Callable[[], None] = lambda: None
        self._wake = asyncio.Event()
        self.valid_until = float("-inf")
        self.taken = asyncio.Event()
        """Set when it has been renewed for the first time: from then on it is ours, and no earlier incarnation's."""
        self._log = log.bind(lease=self._name)

    @property
    def valid(self) -> bool:
        """Whether the others still count on us, as far as we can know: by the monotonic clock, at this moment."""
        return self._clock() < self.valid_until

    def on_return(self, callback: Callable[[], None]) -> None:
        """`callback()` when a renewal is taken after others were not: the API server answers again."""
        self._on_return = callback

    def set_annotations(self, annotations: Mapping[str, str | None]) -> None:
        """What the Lease is to carry from now on, and with None what it is not to, be it an earlier incarnation's. A
        change is written at once, not only at the next renewal."""
        gone = dict.fromkeys(name for name in self._annotations if name not in annotations)
        wanted: dict[str, str | None] = {**gone, **annotations}
        if wanted != self._annotations:
            self._annotations = wanted
            self._wake.set()

    async def run(self) -> None:
        """Renews until cancelled. Does not delete the Lease at its end: that is `close()`, or `--keep-on-exit`."""
        while True:
            self._wake.clear()
            renewed = await self.renew()
            # After a failure sooner, so that there are several tries before the others give us up.
            pause_s = (self._renew_s if renewed else self._renew_s / 2) * self._rng.uniform(0.9, 1.0)
            # Not wait_for: in Python 3.11 it can swallow a cancellation that comes together with the wake-up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def renew(self) -> bool:
        """One renewal; answers whether it was taken."""
        started = self._clock()
        try:
            written = plain_object(await self._write(), "lease")
        except KubeError as error:
            if not self._failing:
                self._log.warning("lease_not_renewed", error=str(error))
            self._failing = True
            return False
        returned, self._failing = self._failing, False
        self._version = version_of(written)
        self.valid_until = started + self._duration_s
        self.taken.set()
        if returned:
            self._log.info("lease_renewed_again")
            self._on_return()
        return True

    async def _write(self) -> bytes:
        body = self._body()
        try:
            return await self._client.request(
                "PATCH", self._path, body=body, content_type=MERGE_PATCH, timeout_s=self._patience_s
            )
        except NotFound:
            body |= {"apiVersion": _API_VERSION, "kind": LEASES.kind}
            metadata = {
                "name": self._name,
                "annotations": {k: v for k, v in self._annotations.items() if v is not None},
            }
            body["metadata"] = metadata
            return await self._client.request("POST", self._collection, body=body, timeout_s=self._patience_s)

    def _body(self) -> dict[str, Any]:
        renewed = micro_time(self._now())
        self._acquired = self._acquired or renewed
        spec = {
            "holderIdentity": self._node,
            "leaseDurationSeconds": max(1, round(self._duration_s)),
            "acquireTime": self._acquired,
            "renewTime": renewed,
        }
        return {"metadata": {"annotations": dict(self._annotations)}, "spec": spec}

    async def close(self) -> None:
        """Deletes the Lease, unless another agent of this node has renewed it since (a rolling update). Best effort."""
        self.valid_until = float("-inf")
        if not self._version:
            return
        try:
            if not await self._delete(self._version):
                # A renewal of ours may have been under way when we were told to end: then it is in nobody's use.
                lease = plain_object(await self._client.request("GET", self._path, timeout_s=self._renew_s), "lease")
                if (lease.get("spec") or {}).get("acquireTime") == self._acquired:
                    await self._delete(version_of(lease))
        except NotFound:
            pass
        except KubeError as error:
            self._log.warning("lease_not_deleted", error=str(error))

    async def _delete(self, version: str) -> bool:
        """False: it has another version by now. Raises KubeError."""
        body = {"preconditions": {"resourceVersion": version}}
        try:
            await self._client.request("DELETE", self._path, body=body, timeout_s=self._renew_s)
        except Conflict:
            return False
        return True
