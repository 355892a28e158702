"""The API server of a sandbox: our emulation as a process of its own, or a real one that is already there."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path
from typing import Protocol

from purelb_sm.errors import KubeError
from purelb_sm.kube.client import KubeClient
from purelb_sm.sandbox.cluster import NodeProcess, kubeconfig, process
from purelb_sm.sandbox.launcher.waiting import wait_until

_START_TIMEOUT_S = 30.0
_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters:
  - name: sandbox
    cluster: {{server: {url}}}
users:
  - name: sandbox
    user: {{}}
contexts:
  - name: sandbox
    context: {{cluster: sandbox, user: sandbox}}
current-context: sandbox
"""


class ApiServer(Protocol):
    """What the launcher needs of an API server. `kubeconfig` is a file for users on this machine."""

    kubeconfig: Path

    @property
    def upstream(self) -> tuple[str, int]: ...

    def node_kubeconfig(self, path: Path) -> None:
        """Writes a kubeconfig for the processes on the nodes, who find the server at their own loopback."""

    async def stop(self) -> None: ...


class EmulatedApi:
    """`python -m purelb_sm.sandbox.apiserver`: it can be killed and started again with what it held."""

    def __init__(self, directory: Path, log_path: Path, port: int | None = None) -> None:
        self.kubeconfig = directory / "kubeconfig"
        self.process: NodeProcess | None = None
        self._port = port or free_port()
        self._data = directory / "api"
        self._log_path = log_path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def upstream(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    def node_kubeconfig(self, path: Path) -> None:
        kubeconfig.for_emulated_api(path)

    async def launch(self) -> None:
        """Starts the process, without waiting for it to answer."""
        self.kubeconfig.write_text(_KUBECONFIG.format(url=self.url))
        argv = [sys.executable, "-m", "purelb_sm.sandbox.apiserver"]
        flags = ["--port", str(self._port), "--data", str(self._data)]
        self.process = await process.start([*argv, *flags], inside=None, env=None, log_path=self._log_path)

    async def ready(self) -> None:
        """Returns when the server answers. Raises `NotInTime`, and RuntimeError when it has ended instead."""
        async with KubeClient.at(self.url) as client:

            async def answers() -> bool:
                if self.process is None or not self.process.running:
                    raise RuntimeError(f"the API server has ended, see {self._log_path}")
                try:
                    await client.request("GET", "/readyz", timeout_s=2.0)
                except KubeError:
                    return False
                return True

            await wait_until(answers, _START_TIMEOUT_S, "the API server to answer", every_s=0.05)

    async def start(self) -> None:
        await self.launch()
        await self.ready()

    async def kill(self) -> None:
        """SIGKILL: what it had answered is on its disk, the rest is lost."""
        if self.process is not None:
            self.process.kill()
            await self.process.wait()

    async def stop(self) -> None:
        if self.process is not None:
            await self.process.stop()


class RealApi:
    """The server of a kubeconfig file. It is used, and never started or stopped."""

    def __init__(self, file: Path) -> None:
        self.kubeconfig = file.resolve()

    @property
    def upstream(self) -> tuple[str, int]:
        return kubeconfig.upstream_of(self.kubeconfig)

    def node_kubeconfig(self, path: Path) -> None:
        kubeconfig.for_real_api(path, self.kubeconfig)

    async def stop(self) -> None:
        return


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def kubectl() -> str | None:
    """A kubectl: the one on the PATH, or the one that the installation put into .cache/bin of the checkout."""
    checkout = Path(__file__).parents[3] / ".cache" / "bin" / "kubectl"
    return shutil.which("kubectl") or (str(checkout) if checkout.exists() else None)
