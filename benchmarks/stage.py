"""The processes that a benchmark plays with: an API server, the allocator, a bare loop; each with its own log.

On a real cluster (`--kubeconfig`) everything happens in two namespaces of our own and under a loadBalancerClass of our
own, so that nothing else in it is touched; both namespaces are deleted at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import Usage, usage
from purelb_sm.errors import AlreadyExists, KubeError, NotFound
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.resources import NAMESPACES, SERVICE_GROUPS
from purelb_sm.sandbox.apiserver import write_kubeconfig
from purelb_sm.store import schema

JSON = dict[str, Any]

ROOT = Path(__file__).parents[1]
NAMESPACE = "purelb-benchmark"
INSTALL_NAMESPACE = "purelb-benchmark-system"
CLASS = "purelb.io/benchmark"
GROUP: JSON = {
    "apiVersion": "purelb.io/v2",
    "kind": "ServiceGroup",
    "metadata": {"name": "default", "namespace": INSTALL_NAMESPACE},
    "spec": {
        "remote": {
            "quarantine": "5m",
            "v4pools": [{"subnet": "10.128.0.0/9", "pool": "10.128.0.0/9", "aggregation": "/32"}],
        }
    },
}
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_READY_S = 30.0


class DidNotStart(RuntimeError):
    """A process ended, or did not get ready in time; the message has the end of its log."""


@dataclass
class Process:
    """A process of ours. `kill()` is -9."""

    process: asyncio.subprocess.Process
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def usage(self) -> Usage:
        return usage(self.pid)

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(20):
                await self.process.wait()
        except TimeoutError:
            await self.kill()

    async def logged(self, text: str) -> None:
        """Waits until the log has this text. Raises DidNotStart."""
        deadline = time.monotonic() + _READY_S
        while text not in (said := self.log.read_text()):
            if self.process.returncode is not None or time.monotonic() > deadline:
                raise DidNotStart(f"{self.log.name} never said {text!r}:\n{said[-2000:]}")
            await asyncio.sleep(0.005)


@dataclass
class Stage:
    """An API server with our definitions, namespaces and group, and an empty book."""

    folder: Path
    kubeconfig: Path
    client: KubeClient
    real: bool
    database: str
    api: Process | None = None
    started: list[Process] = field(default_factory=list)

    async def run(self, name: str, arguments: Iterable[str], env: dict[str, str] | None = None) -> Process:
        """`python -m ARGUMENTS`, with its standard output and errors in one log."""
        log = self.folder / f"{name}-{len(self.started)}.log"
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *arguments,
                stdout=out,
                stderr=out,
                cwd=ROOT,
                env={**_environment(), **(env or {})},
            )
        self.started.append(Process(process, log))
        return self.started[-1]

    async def allocator(self, *, ready: bool = True, **env: str) -> Process:
        """The product, as a Deployment would run it; `ready`: once it leads and has looked at everything."""
        arguments = ["purelb_sm", "allocator", "--kubeconfig", str(self.kubeconfig), "--database", self.database]
        arguments += ["--install-namespace", INSTALL_NAMESPACE, "--class", CLASS, "--default-class=false"]
        # A container that is started again has the same name and process id; so it takes its own Lease up at once.
        arguments += ["--identity", "benchmark", "--web-port", "0"]
        # There are no agents here, and that is not to be told of each Service.
        alone = {"PURELB_SETTLE_S": "0", "PURELB_UNANNOUNCED_S": "86400"}
        process = await self.run("allocator", arguments, {**alone, **env})
        if ready:
            await process.logged('"services"')
        return process

    async def bare(self) -> Process:
        """The same writes without any thought: what the API server takes at most."""
        arguments = ["benchmarks.bare", str(self.kubeconfig), NAMESPACE, CLASS]
        process = await self.run("bare", arguments)
        await process.logged("ready")
        return process

    async def version(self) -> int:
        """The API server's counter of versions: every write that changed something raised it (sandbox only)."""
        found = json.loads(await self.client.request("GET", NAMESPACES.collection(), query={"limit": "1"}))
        return int(found["metadata"]["resourceVersion"])

    async def empty(self) -> None:
        """Takes all Services and Events of the benchmark away, and waits until they are gone."""
        for plural in ("services", "events"):
            path = f"/api/v1/namespaces/{NAMESPACE}/{plural}"
            with contextlib.suppress(NotFound):
                await self.client.request("DELETE", path, timeout_s=120)


@asynccontextmanager
async def stage(kubeconfig: Path | None = None) -> AsyncIterator[Stage]:
    """Sets it up, and takes everything down again. `kubeconfig`: a real cluster instead of the emulation."""
    with tempfile.TemporaryDirectory(prefix="plb-bench-") as name:
        folder = Path(name)
        database = f"sqlite:///{folder / 'purelb.db'}"
        schema.upgrade(database)
        async with contextlib.AsyncExitStack() as stack:
            api = None
            if kubeconfig is None:
                api, kubeconfig = await _api_server(folder), folder / "kubeconfig"
                stack.push_async_callback(api.stop)
            client = await stack.enter_async_context(await KubeClient.connect(str(kubeconfig), timeout_s=60))
            made = Stage(folder, kubeconfig, client, api is None, database, api)
            try:
                await _set_up(client)
                yield made
            finally:
                for process in made.started:
                    await process.stop()
                if made.real:
                    await _tear_down(client)


def _environment() -> dict[str, str]:
    """Ours, but what was imported once is kept compiled, as it is in an image."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


async def _api_server(folder: Path) -> Process:
    log = folder / "api.log"
    arguments = ["purelb_sm.sandbox.apiserver", "--history", "40000"]
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, stdout=asyncio.subprocess.PIPE, stderr=out, cwd=ROOT, env=_environment()
        )
    assert process.stdout is not None
    async with asyncio.timeout(_READY_S):
        line = await process.stdout.readline()
    if not line:
        raise DidNotStart(f"the API server:\n{log.read_text()[-2000:]}")
    write_kubeconfig(folder / "kubeconfig", json.loads(line)["url"])
    return Process(process, log)


async def _set_up(client: KubeClient) -> None:
    for path in sorted((ROOT / "deploy" / "crds").glob("[!k]*.yaml")):
        await _create(client, _DEFINITIONS, yaml.safe_load(path.read_text()))
    for name in (INSTALL_NAMESPACE, NAMESPACE):
        await _create(client, NAMESPACES.collection(), {"metadata": {"name": name}})
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            await _create(client, SERVICE_GROUPS.collection(INSTALL_NAMESPACE), GROUP)
        except NotFound:
            # A definition is served a moment after it was taken.
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            return


async def _create(client: KubeClient, path: str, body: JSON) -> None:
    with contextlib.suppress(AlreadyExists):
        await client.request("POST", path, body=body)


async def _tear_down(client: KubeClient) -> None:
    for name in (NAMESPACE, INSTALL_NAMESPACE):
        with contextlib.suppress(KubeError):
            await client.request("DELETE", NAMESPACES.path(name))
