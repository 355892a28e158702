"""`purelb sandbox demo` and `up` as a person starts them: as programs, from a terminal, ended by Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from purelb_sm.sandbox.cluster import namespace
from purelb_sm.sandbox.launcher.api import kubectl
from tests.support.waiting import eventually

pytestmark = pytest.mark.root

PURELB = (sys.executable, "-m", "purelb_sm")
STOP_TIMEOUT_S = 30.0


class Program:
    """A started program, and what it has said so far on stdout and stderr together."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(1 << 16):
            self.said += data.decode(errors="replace")

    async def says(self, text: str, timeout_s: float = 60.0) -> None:
        """Returns when it has. Fails when it has ended without, or does not in time."""
        async with asyncio.timeout(timeout_s):
            while text not in self.said:
                assert not self._reading.done(), f"ended without saying {text!r}:\n{self.said}"
                await asyncio.sleep(0.05)

    async def ends(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Its exit status."""
        async with asyncio.timeout(timeout_s):
            await self._reading
            return await self.process.wait()


@asynccontextmanager
async def started(*argv: str, lead_in: Sequence[str] = ()) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        *(*lead_in, *PURELB, *argv),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    program = Program(process)
    try:
        yield program
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            await program.ends()


def alive(pid: int) -> bool:
    """Whether there is such a process, zombies aside."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def nothing_is_left(said: str) -> None:
    """Of the processes and the namespaces that the program has named."""
    pids = [int(number) for number in re.findall(r"pid +(\d+)", said)]
    assert pids, said
    await eventually(lambda: not any(alive(pid) for pid in pids))
    for prefix in set(re.findall(r"\b(plb[0-9a-f]{4})-", said)):
        assert not list(namespace.NETNS_DIRECTORY.glob(f"{prefix}-*"))


@pytest.mark.spec("D1")
@pytest.mark.timeout(240)
async def test_the_demo_goes_through_with_every_claim_true_and_leaves_nothing() -> None:
    async with started("sandbox", "demo") as demo:
        status = await demo.ends(200)
    assert status == 0, demo.said
    for told in (
        "172.30.250.53 (VIP)",
        "Assigned IP 172.30.250.53 from pool default",
        "announcing 172.30.250.53 on interface enp1s0",
        "purelb.io/allocated-from: localaddr",
        "Announcing 172.31.1.0 from node node5 interface kube-lb0",
        "answers now",
        "$ kill -9",
        "$ purelb history",
        "$ purelb who-had 172.30.250.53",
        "claims hold",
    ):
        assert told in demo.said
    assert "✘" not in demo.said
    await nothing_is_left(demo.said)


@pytest.mark.spec("D1")
async def test_ctrl_c_in_the_middle_of_the_demo_leaves_nothing() -> None:
    async with started("sandbox", "demo", "--nodes", "2") as demo:
        await demo.says("  ready")
        demo.process.send_signal(signal.SIGINT)
        assert await demo.ends() == 130
    assert "Traceback" not in demo.said
    await nothing_is_left(demo.said)


async def test_without_nodes_the_demo_says_what_it_leaves_out_and_shows_the_rest() -> None:
    async with started("sandbox", "demo", "--nodes", "0") as demo:
        status = await demo.ends(120)
    assert status == 0, demo.said
    assert "Left out, for want of network namespaces: nodes, traffic, failover." in demo.said
    assert "the chain holds" in demo.said


async def test_ctrl_c_while_the_sandbox_is_still_coming_up_leaves_nothing(tmp_path: Path) -> None:
    before = set(namespace.NETNS_DIRECTORY.glob("plb*"))
    async with started("sandbox", "up", "--nodes", "3", "--dir", str(tmp_path)) as up:
        await up.says("3 nodes")
        up.process.send_signal(signal.SIGINT)
        await up.ends()
    assert "Traceback" not in up.said
    new = set(namespace.NETNS_DIRECTORY.glob("plb*")) - before
    assert not [one for one in new if one.name.endswith("-node3")], new


COMMANDS = (
    ("create namespace demo", "namespace/demo created"),
    ("create deployment echo --image=echo:1 -n demo", "deployment.apps/echo created"),
    ("expose deployment echo --port=80 --type=LoadBalancer -n demo", "service/echo exposed"),
    ("create service loadbalancer two --tcp=81:8080 -n demo", "service/two created"),
    ("get svc -A", "LoadBalancer"),
    ("annotate svc echo note=yes -n demo", "service/echo annotated"),
    ("label svc echo tier=web -n demo", "service/echo labeled"),
    ("""patch svc echo -n demo -p {"spec":{"sessionAffinity":"ClientIP"}}""", "service/echo patched"),
    ("wait svc/echo -n demo --for=jsonpath={.status.loadBalancer.ingress} --timeout=30s", "condition met"),
    ("describe svc echo -n demo", "LoadBalancer Ingress:     172.30.250.5"),
    ("get events -n demo", "IPAllocated"),
    ("get lease -A", "purelb-node-node1"),
    ("get nodeannouncements -n purelb-system", "node1"),
    ("get servicegroups -A -o wide", "virtualsub"),
    ("version", "Server Version"),
    ("auth can-i create services", "yes"),
    ("delete svc two -n demo", 'service "two" deleted'),
)


@pytest.mark.spec("D2")
async def test_sandbox_up_serves_a_real_kubectl_until_it_is_told_to_stop(tmp_path: Path) -> None:
    async with started("sandbox", "up", "--nodes", "2", "--dir", str(tmp_path)) as up:
        await up.says("Ctrl-C ends it.")
        environment = dict(re.findall(r"export (\w+)=(\S+)", up.said))
        for words, answer in COMMANDS:
            said = await asked(environment, *words.split(" "))
            assert answer in said, f"kubectl {words}\n{said}"
        manifest = tmp_path / "svc.yaml"
        manifest.write_text(
            "apiVersion: v1\nkind: Service\nmetadata: {name: ap, namespace: demo}\n"
            "spec: {type: LoadBalancer, ports: [{port: 82}]}\n"
        )
        assert "service/ap created" in await asked(environment, "apply", "-f", str(manifest))
        assert "service/ap unchanged" in await asked(environment, "apply", "-f", str(manifest))
        assert "serverside-applied" in await asked(
            environment, "apply", "--server-side", "--force-conflicts", "-f", str(manifest)
        )
        up.process.send_signal(signal.SIGTERM)
        assert await up.ends() == 0
    await nothing_is_left(up.said)
    assert (tmp_path / "book.db").exists()
    assert (tmp_path / "logs" / "allocator.log").exists()


async def asked(environment: dict[str, str], *words: str) -> str:
    program = kubectl()
    assert program is not None, "no kubectl: tools/install.sh fetches one"
    process = await asyncio.create_subprocess_exec(
        *(program, *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return out.decode()


def _without_rights() -> list[str]:
    """A lead-in for a program that may make no network namespace as it is: root without the capability for it."""
    return ["setpriv", "--bounding-set", "-sys_admin", "--"]


@pytest.mark.spec("D2")
async def test_without_the_right_to_make_namespaces_it_takes_a_user_namespace(tmp_path: Path) -> None:
    refused = subprocess.run([*_without_rights(), "unshare", "--user", "--map-root-user", "true"], check=False)
    if refused.returncode != 0:
        pytest.skip("this machine has no user namespaces for the unprivileged")
    async with started("sandbox", "up", "--nodes", "1", "--dir", str(tmp_path), lead_in=_without_rights()) as up:
        await up.says("Ctrl-C ends it.")
        environment = dict(re.findall(r"export (\w+)=(\S+)", up.said))
        assert "node1" in await asked(environment, "get", "nodes")
        assert "pid" in up.said
        up.process.send_signal(signal.SIGINT)
        assert await up.ends() == 0
    await nothing_is_left(up.said)


async def test_a_second_sandbox_does_not_disturb_the_first(tmp_path: Path) -> None:
    async with started("sandbox", "up", "--nodes", "1", "--dir", str(tmp_path / "one")) as one:
        await one.says("Ctrl-C ends it.")
        async with started("sandbox", "up", "--nodes", "1", "--dir", str(tmp_path / "two")) as two:
            await two.says("Ctrl-C ends it.")
            assert len({re.findall(r"KUBECONFIG=(\S+)", up.said)[0] for up in (one, two)}) == 2
        environment = dict(re.findall(r"export (\w+)=(\S+)", one.said))
        assert "node1" in await asked(environment, "get", "nodes")


def test_what_the_demo_needs_of_the_machine_is_what_make_demo_installs() -> None:
    """The programs that the sandbox starts, each of which tools/install.sh asks for or Debian always has."""
    install = (Path(__file__).parents[2] / "tools" / "install.sh").read_text()
    for program in ("ip", "unshare"):
        assert f"need {program} " in install
    for program in ("nsenter", "setpriv", "bash"):
        assert shutil.which(program), f"{program}, of a package that every Debian has"
