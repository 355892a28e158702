"""A foreign host on the link uses an address: real frames, agents as processes, and what the book keeps of it (C20)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.kube.resources import EVENTS, SERVICE_GROUPS
from purelb_sm.net.neighbours import ARP_REQUEST, gratuitous_arp
from purelb_sm.sandbox.cluster.layout import CLIENT, CLIENT_INTERFACE
from purelb_sm.sandbox.launcher import Options, Sandbox
from tests.e2e.conftest import Start
from tests.support.stage import LEASE_S, LOADED_S, LOCAL, LOCAL6, NAMESPACE, QUICK, Stage, watched_stage

pytestmark = pytest.mark.root

PROBING = {
    "apiVersion": "purelb.io/v2",
    "kind": "LBNodeAgent",
    "metadata": {"name": "default", "namespace": names.INSTALL_NAMESPACE},
    "spec": {"local": {"conflictProbe": {"enabled": True}}},
}


class ForeignHost:
    """The client, which is no node: on its interface an address is a foreign host's."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._cluster = sandbox.cluster
        self._namespace = sandbox.cluster.namespace_of(CLIENT)
        self.mac = str(json.loads(self._ip("-j", "link", "show", CLIENT_INTERFACE))[0]["address"])

    def take(self, *addresses: Address) -> None:
        for address in addresses:
            nodad = ["nodad"] if address.version == 6 else []
            self._ip("address", "add", f"{address}/{address.max_prefixlen}", "dev", CLIENT_INTERFACE, *nodad)

    def leave(self, *addresses: Address) -> None:
        for address in addresses:
            self._ip("address", "del", f"{address}/{address.max_prefixlen}", "dev", CLIENT_INTERFACE)

    @contextlib.contextmanager
    def talking(self) -> Iterator[socket.socket]:
        """For frames of its own making."""
        opened = self._cluster.open_socket(CLIENT)(socket.AF_PACKET, socket.SOCK_RAW, 0)
        with contextlib.closing(opened):
            opened.bind((CLIENT_INTERFACE, 0))
            yield opened

    def _ip(self, *words: str) -> str:
        return run_ip(self._namespace, *words)


def run_ip(namespace: str, *words: str) -> str:
    """`ip …` in that network namespace."""
    command = ["ip", "-n", namespace, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


async def conflict_told(sandbox: Sandbox, of: str) -> dict[str, Any]:
    """The Event that has this in its message, as soon as it is there."""

    async def told() -> dict[str, Any]:
        for event in await sandbox.items(EVENTS, NAMESPACE):
            if event["reason"] == "AddressConflict" and of in event["message"]:
                return dict(event)
        return {}

    return await sandbox.until(f"an Event of the conflict with {of}", told)


async def history(sandbox: Sandbox, address: Address) -> list[dict[str, Any]]:
    done = await sandbox.purelb("history", "--address", str(address), "-o", "json")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.spec("C20", "C15", "B1")
async def test_what_a_foreign_host_answers_for_is_announced_by_nobody_until_it_is_gone(start_sandbox: Start) -> None:
    sandbox = await start_sandbox(Options(nodes=2, agent_flags=QUICK))
    foreign = ForeignHost(sandbox)
    foreign.take(LOCAL, LOCAL6)
    await sandbox.apply(PROBING)
    async with sandbox.cluster.sniff() as wire:
        await sandbox.apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {
                    "name": "echo",
                    "namespace": NAMESPACE,
                    "annotations": {names.ADDRESSES: f"{LOCAL},{LOCAL6}"},
                },
                "spec": {
                    "type": "LoadBalancer",
                    "ipFamilyPolicy": "RequireDualStack",
                    "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}],
                },
            }
        )
        for address in (LOCAL, LOCAL6):
            event = await conflict_told(sandbox, f"{address} is used by {foreign.mac}")
            assert event["type"] == "Warning"
            assert event["message"].endswith("not announced")

            async def booked(address: Address = address) -> list[dict[str, Any]]:
                return [row for row in await history(sandbox, address) if row["to"] == "failed"]

            rows = await sandbox.until(f"the book to know that {address} failed", booked)
            assert {row["kind"] for row in rows} == {"announcement"}
            assert all(foreign.mac in row["reason"] and "AddressConflict" in row["reason"] for row in rows)
            assert await sandbox.holders(address) == {}
        macs = [await sandbox.cluster.mac(node) for node in sandbox.nodes]
        said = [s for s in wire.seen if s.address in (LOCAL, LOCAL6) and s.mac in macs]
        assert {s.kind for s in said} == {"neighbor-solicitation"}, "they have asked, and claimed nothing"
        assert foreign.mac in (await sandbox.purelb("explain", f"{NAMESPACE}/echo")).stdout
    foreign.leave(LOCAL, LOCAL6)
    for node in sandbox.nodes:
        # It would be tried again by itself, within 30 s; at once after something happened to an interface.
        run_ip(sandbox.cluster.namespace_of(node), "address", "add", "192.0.2.77/32", "dev", "lo")
    for address in (LOCAL, LOCAL6):

        async def held(address: Address = address) -> bool:
            return len(await sandbox.holders(address)) == 1

        await sandbox.until(f"{address} to be announced", held, 40.0)

        async def booked_again(address: Address = address) -> bool:
            moves = [row["to"] for row in await history(sandbox, address) if row["kind"] == "announcement"]
            return bool(moves[-1] == "present")

        await sandbox.until(f"the book to know that {address} is announced", booked_again)


@pytest.fixture
async def stage(start_sandbox: Start) -> AsyncIterator[Stage]:
    with watched_stage(await start_sandbox(Options(nodes=3, allocator=False, agent_flags=QUICK))) as stage:
        yield stage


@pytest.mark.spec("C20", "C6")
@pytest.mark.parametrize("how", ["node dies", "agent dies"])
async def test_a_failover_waits_for_no_probe_and_takes_no_peer_for_a_foreign_host(stage: Stage, how: str) -> None:
    await stage.sandbox.apply(PROBING)
    await stage.allocated("echo", LOCAL, LOCAL6)
    for address in (LOCAL, LOCAL6):
        await stage.one_holder(address)
    holder = await stage.one_holder(LOCAL)

    async def written() -> bool:
        return bool(await stage.annotation("echo"))

    await stage.sandbox.until("the annotation", written)
    async with stage.cluster.sniff() as wire:
        if how == "node dies":
            await stage.power_off(holder)
        else:
            # Its kernel goes on answering, and the heir's is told of that by nobody but the Leases.
            await stage.kill_agent(holder)
        died = time.time()
        heir = await stage.one_holder(LOCAL, other_than=holder)
        mac = await stage.cluster.mac(heir)

        async def told() -> float:
            return next((s.at for s in wire.seen if s.gratuitous and s.address == LOCAL and s.mac == mac), 0.0)

        at = await stage.sandbox.until("gratuitous ARP of the heir", told)
        assert at - died < LEASE_S + 1.0 + LOADED_S
        assert not [s for s in wire.seen if s.kind == "arp-request" and s.asked == LOCAL and int(s.address) == 0]
        if how == "agent dies":
            await stage.start_agent(holder)
            await stage.held_by(LOCAL, holder)
    assert not [e for e in await stage.sandbox.items(EVENTS, NAMESPACE) if e["reason"] == "AddressConflict"]


@pytest.mark.spec("C20")
async def test_a_foreign_host_that_comes_later_is_told_and_answered_no_more_than_once_in_ten_seconds(
    stage: Stage,
) -> None:
    foreign = ForeignHost(stage.sandbox)
    await stage.sandbox.apply(PROBING)
    await stage.allocated("echo", LOCAL)
    holder = await stage.one_holder(LOCAL)
    mac = await stage.cluster.mac(holder)
    async with stage.cluster.sniff() as wire:

        def announcements() -> int:
            return sum(
                s.gratuitous and s.address == LOCAL and s.mac == mac and s.kind == "arp-request" for s in wire.seen
            )

        async def announced() -> bool:
            return announcements() >= 3

        with contextlib.suppress(TimeoutError):
            await wire.wait_for(lambda _: announcements() >= 3, 3.0)
        before = announcements()
        frame = gratuitous_arp(bytes.fromhex(foreign.mac.replace(":", "")), IPv4Address(str(LOCAL)), ARP_REQUEST)
        with foreign.talking() as link:
            end = time.monotonic() + 5.0
            while time.monotonic() < end:
                link.send(frame)
                await asyncio.sleep(0.05)
        event = await conflict_told(stage.sandbox, f"{LOCAL} is used by {foreign.mac}")
        assert event["message"].endswith("announced all the same")
        assert event["count"] == 1
        await wire.wait_for(lambda _: announcements() > before, 10.0)
        assert announcements() == before + 1
    assert await stage.holders(LOCAL) == [holder]


@pytest.mark.spec("C20")
async def test_without_a_probe_an_address_is_announced_at_once_whoever_uses_it(stage: Stage) -> None:
    foreign = ForeignHost(stage.sandbox)
    group = await stage.sandbox.get(SERVICE_GROUPS, "default", names.INSTALL_NAMESPACE)
    assert group is not None
    local = {**group["spec"]["local"], "skipIPv6DAD": True}
    metadata = {"name": "default", "namespace": names.INSTALL_NAMESPACE}
    await stage.sandbox.apply({**group, "metadata": metadata, "spec": {"local": local}})
    foreign.take(LOCAL, LOCAL6)
    try:
        async with stage.cluster.sniff() as wire:
            await stage.allocated("echo", LOCAL, LOCAL6)
            for address in (LOCAL, LOCAL6):
                await stage.one_holder(address)
        probes = [s for s in wire.seen if s.kind == "arp-request" and s.asked == LOCAL and int(s.address) == 0]
        assert probes == []
    finally:
        foreign.leave(LOCAL, LOCAL6)
