"""The allocator and the API server as processes of their own, to be killed as they deserve."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purelb_sm.kube.client import KubeClient
from purelb_sm.sandbox.apiserver import write_kubeconfig
from tests.support.product import ROOT

JSON = dict[str, Any]


@dataclass
class Process:
    """One process with its log. `stop()` is an orderly end, `kill()` is -9."""

    process: asyncio.subprocess.Process
    log: Path

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    async def gone(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 20)

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.gone()


async def start(arguments: list[str], log: Path, env: Mapping[str, str] | None = None) -> Process:
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=out,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
    return Process(process, log)


@dataclass
class ApiProcess:
    """The emulated API server with its data directory; it comes back on the same port after a kill."""

    folder: Path
    port: int = 0
    process: Process | None = None

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    async def start(self) -> None:
        data = str(self.folder / "api")
        arguments = ["purelb_sm.sandbox.apiserver", "--data", data, "--port", str(self.port)]
        self.process = await start(arguments, self.folder / "api.log")
        assert self.process.process.stdout is not None
        line = await asyncio.wait_for(self.process.process.stdout.readline(), 30)
        url = json.loads(line)["url"]
        self.port = int(url.rpartition(":")[2])
        write_kubeconfig(self.kubeconfig, url)

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.gone()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[KubeClient]:
        async with await KubeClient.connect(str(self.kubeconfig)) as client:
            yield client


@asynccontextmanager
async def api_process(folder: Path) -> AsyncIterator[ApiProcess]:
    api = ApiProcess(folder)
    await api.start()
    try:
        yield api
    finally:
        if api.process is not None:
            await api.process.stop()


async def allocator_process(api: ApiProcess, database: str, **env: str) -> Process:
    """`purelb allocator`, with short leases and no waiting for nodes."""
    arguments = [
        "purelb_sm",
        "allocator",
        "--kubeconfig",
        str(api.kubeconfig),
        "--database",
        database,
        "--web-port",
        "0",
    ]
    quick = {
        "PURELB_SETTLE_S": "0",
        "PURELB_LEADER_LEASE_S": "2",
        "PURELB_LEADER_RENEW_S": "1.5",
        "PURELB_LEADER_RETRY_S": "0.2",
    }
    return await start(arguments, api.folder / "allocator.log", {**quick, **env})
