"""A running installation, as its users and onlookers have it: commands, objects, kernels, answers on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from purelb_sm.domain.addresses import Address, parse_ip
from purelb_sm.errors import NotFound
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.resources import SERVICES, Resource
from purelb_sm.sandbox.cluster import Cluster
from purelb_sm.sandbox.launcher import contents
from purelb_sm.sandbox.launcher.api import kubectl
from purelb_sm.sandbox.launcher.waiting import wait_until

T = TypeVar("T")
JSON = dict[str, Any]


class Done(NamedTuple):
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


class CommandFailed(RuntimeError):
    """A command ended with an error; the message has its words."""


class Installation(ABC):
    """What can be done with an installation, and seen of it. Who makes and removes it is a subclass's matter."""

    @property
    @abstractmethod
    def client(self) -> KubeClient:
        """A client of the API server, with all rights."""

    @property
    @abstractmethod
    def cluster(self) -> Cluster:
        """The nodes' namespaces. There is none in a sandbox without nodes."""

    @property
    @abstractmethod
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes, dead ones included."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """What a shell needs to talk to the installation with `kubectl` and `purelb`."""

    @abstractmethod
    def check_processes(self) -> None:
        """Raises `CommandFailed` when a process has ended that nobody ended."""

    # Commands.

    async def run(self, argv: Sequence[str], *, stdin: str = "", check: bool = True) -> Done:
        """A command with the environment of a user of this sandbox. Raises `CommandFailed`, unless `check` is off."""
        started = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **self.environment()},
        )
        try:
            out, err = await started.communicate(stdin.encode())
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                started.kill()
            await started.wait()
            raise
        done = Done(started.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))
        if check and done.returncode != 0:
            raise CommandFailed(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    async def kubectl(self, *words: str, stdin: str = "", check: bool = True) -> Done:
        """A real kubectl against the API server. Raises FileNotFoundError where there is none."""
        program = kubectl()
        if program is None:
            raise FileNotFoundError("no kubectl on the PATH or in .cache/bin; tools/install.sh fetches one")
        return await self.run([program, *words], stdin=stdin, check=check)

    async def purelb(self, *words: str, check: bool = True) -> Done:
        """Our own command, with the book of this sandbox."""
        return await self.run([sys.executable, "-m", "purelb_sm", *words], check=check)

    async def apply(self, document: Mapping[str, Any]) -> JSON:
        """`kubectl apply -f -` without its start-up time: one object, server-side applied. Returns what is stored."""
        resource = resource_of(document)
        metadata = document["metadata"]
        path = resource.path(metadata["name"], metadata.get("namespace", "default"))
        await contents.apply(self.client, path, document)
        stored = await self.get(resource, metadata["name"], metadata.get("namespace", "default"))
        assert stored is not None, f"{path} is gone right after it was applied"
        return stored

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JSON | None:
        """The object as JSON, None where there is none."""
        try:
            return await self.client.get(resource.path(name, namespace), _decode)
        except NotFound:
            return None

    async def items(self, resource: Resource, namespace: str | None = None) -> list[JSON]:
        found = await self.client.get(resource.collection(namespace), _decode)
        items: list[JSON] = found.get("items") or []
        return items

    async def delete(self, resource: Resource, name: str, namespace: str | None = None) -> None:
        await contents.remove(self.client, [resource.path(name, namespace)])

    # What can be seen.

    async def ingress(self, namespace: str, name: str) -> list[Address]:
        """The addresses that the Service shows, in order."""
        service = await self.get(SERVICES, name, namespace) or {}
        entries = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
        return [parse_ip(entry["ip"]) for entry in entries]

    async def holders(self, address: Address) -> dict[str, str]:
        """Which nodes have the address in their kernel, and on which interface."""
        tables = await asyncio.gather(*(self.cluster.addresses(node) for node in self.nodes))
        return {
            node: held.interface
            for node, table in zip(self.nodes, tables, strict=True)
            for held in table
            if held.address == address
        }

    async def answering(self, address: Address, port: int, timeout_s: float = 1.0) -> str | None:
        """The node that answers the client's TCP connection to the address; None if none does."""
        try:
            return (await self.cluster.fetch(address, port, timeout_s)).strip()
        except (OSError, TimeoutError):
            return None

    async def until(self, what: str, check: Callable[[], Awaitable[T]], timeout_s: float = 20.0) -> T:
        """The first true answer. Raises `NotInTime`, saying what was waited for, and `CommandFailed` when a process
        has ended that nobody ended: waiting on would be in vain."""

        async def alive_and_true() -> T:
            self.check_processes()
            return await check()

        return await wait_until(alive_and_true, timeout_s, what)


_decode = msgspec.json.Decoder().decode


def resource_of(document: Mapping[str, Any]) -> Resource:
    """Where an object like this one lives, for the kinds that tests and the demo make."""
    group, _, version = document["apiVersion"].rpartition("/")
    kind = document["kind"]
    plural = {"EndpointSlice": "endpointslices", "Namespace": "namespaces", "Node": "nodes"}.get(
        kind, kind.lower() + "s"
    )
    return Resource(group, version, kind, plural, namespaced=kind not in ("Namespace", "Node"))
