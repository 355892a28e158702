"""Processes inside a namespace: started there, and each stopped, paused or killed as exactly the one that was started.

The command replaces the small programs that lead it in, so the process that we hold is the command itself. When the
launcher dies, however it dies, the kernel kills its processes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from purelb_sm.sandbox.cluster import namespace
from purelb_sm.sandbox.cluster.layout import STOP_TIMEOUT_S

_DIE_WITH_LAUNCHER = ("setpriv", "--pdeathsig", "KILL", "--")


class NodeProcess:
    """A started process. Its output goes to `log_path`."""

    def __init__(self, process: asyncio.subprocess.Process, argv: Sequence[str], log_path: Path) -> None:
        self._process = process
        self.argv = tuple(argv)
        self.log_path = log_path

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    @property
    def returncode(self) -> int | None:
        """As `subprocess` has it: negative is the signal that ended it; None while it runs."""
        return self._process.returncode

    def terminate(self) -> None:
        """SIGTERM: please end in an orderly way."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: ends between two instructions."""
        self._signal(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: it stands still, and its timers and sockets with it, until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    async def wait(self) -> int:
        """Its return code, once it has ended."""
        return await self._process.wait()

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Asks it to end, waits, and kills it when it does not."""
        self.resume()
        self.terminate()
        try:
            return await asyncio.wait_for(self.wait(), timeout_s)
        except TimeoutError:
            self.kill()
            return await self.wait()

    def output(self) -> str:
        """What it has written so far."""
        return self.log_path.read_text(errors="replace")

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            self._process.send_signal(number)


async def start(
    argv: Sequence[str],
    *,
    inside: str | None,
    env: Mapping[str, str] | None,
    log_path: Path,
) -> NodeProcess:
    """Starts a command, `inside` a namespace or (None) in our own.

    `env` is added to our environment. Output is appended to `log_path`. Raises OSError when it cannot be started.
    """
    lead_in = _DIE_WITH_LAUNCHER if inside is None else (*_enter(inside), *_DIE_WITH_LAUNCHER)
    with log_path.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *lead_in,
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(env or {})},
            # Ctrl-C in the terminal is for the launcher, which stops its processes in order.
            start_new_session=True,
        )
    return NodeProcess(process, argv, log_path)


def _enter(name: str) -> tuple[str, ...]:
    if _own_sys_works(name):
        return ("ip", "netns", "exec", name)
    return ("nsenter", f"--net={namespace.path_of(name)}", "--")


@cache
def _own_sys_works(name: str) -> bool:
    """Whether a process may have a /sys of its own, that shows the namespace's interfaces. Not so for most users who
    are root only in a user namespace: they see the launcher's."""
    done = subprocess.run(["ip", "netns", "exec", name, "true"], capture_output=True, check=False)
    return done.returncode == 0
