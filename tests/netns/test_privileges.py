"""Somebody who is not root gets a cluster too, and what was opened on the host is reachable from the host."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from purelb_sm.sandbox.cluster import NoPrivileges, ensure_privileges

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, socket, sys
from pathlib import Path
from purelb_sm.sandbox.cluster import Cluster, ensure_privileges, inherited_descriptors

handed_over = inherited_descriptors()
if handed_over is None:
    listening = socket.create_server(("127.0.0.1", 0))
    ensure_privileges([sys.executable, "-c", sys.argv[1], sys.argv[1]], [listening.fileno()])
    sys.exit("still here as root")
assert ensure_privileges(sys.argv) == "user-namespace"
listening = socket.socket(fileno=handed_over[0])

async def hello(reader, writer):
    async with Cluster(1, state_directory=Path("/run/clusters")) as cluster:
        process = await cluster.start_process("node1", ["cat", "/proc/net/dev"], log_path=Path("/run/log"))
        await process.wait()
        await cluster.set_ports(None, [80])
        answers = [await cluster.fetch(address, 80, 10) for address in cluster.layout.addresses("node1")]
    writer.write(repr((answers, "enp1s0" in process.output())).encode())
    writer.close()

async def main():
    done = asyncio.Event()
    async def once(reader, writer):
        await hello(reader, writer)
        done.set()
    async with await asyncio.start_server(once, sock=listening):
        print("port", listening.getsockname()[1], flush=True)
        await done.wait()

asyncio.run(main())
"""


def start_as_nobody(*words: str) -> list[str]:
    """The command that runs these words as a user without rights (as ourselves if we are one)."""
    # The shell in between gives up the last rights: setpriv itself still may open what root may.
    return [*(NOBODY if os.geteuid() == 0 else []), "sh", "-c", 'exec "$@"', "sh", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}"}


def refusal(*words: str) -> str | None:
    command = start_as_nobody(*words)
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd="/", check=False)
    return None if done.returncode == 0 else done.stderr.strip()[-200:]


def find_python() -> str:
    """A Python that everybody may run and that finds this project; skips the test when there is none."""
    found = [sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"]
    refusals = {python: refusal(python, "-c", "import purelb_sm.sandbox.cluster") for python in found}
    usable = [python for python, why in refusals.items() if why is None]
    if not usable:
        pytest.skip(f"an unprivileged user cannot run this project here: {refusals}")
    return usable[0]


@pytest.mark.spec("D2")
async def test_an_unprivileged_user_gets_a_cluster_and_is_reached_from_the_host() -> None:
    python = find_python()
    why_not = refusal("unshare", "--user", "--map-root-user", "--net", "--mount", "true")
    if why_not is not None:
        pytest.skip(f"this machine does not let users make namespaces: {why_not}")
    command = start_as_nobody(python, "-c", PROGRAM, PROGRAM)
    running = await asyncio.create_subprocess_exec(*command, cwd="/", env=environment(), stdout=asyncio.subprocess.PIPE)
    try:
        assert running.stdout is not None
        async with asyncio.timeout(60):
            while not (line := await running.stdout.readline()).startswith(b"port "):
                assert line, "the program ended early"
            reader, writer = await asyncio.open_connection("127.0.0.1", int(line.split()[1]))
            assert (await reader.read()).decode() == repr((["node1\n", "node1\n"], True))
            writer.close()
            assert await running.wait() == 0
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


@pytest.mark.root
def test_root_stays_as_it_is() -> None:
    assert ensure_privileges(["never started"]) == "root"


def test_a_machine_that_forbids_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "unshare"
    fake.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(NoPrivileges, match="Operation not permitted"):
        ensure_privileges(["never started"])
