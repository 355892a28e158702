"""While there is no allocator, or no database, nodes fail over all the same; afterwards the book has it all, once."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from purelb_sm.domain.addresses import Address
from purelb_sm.sandbox.launcher import Options, Sandbox
from tests.e2e.conftest import Start
from tests.support.stage import LEASE_S, LOADED_S, NAMESPACE, QUICK, Stage, watched_stage

pytestmark = pytest.mark.root


def service(name: str, port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"type": "LoadBalancer", "ports": [{"port": port, "protocol": "TCP", "targetPort": 8080}]},
    }


async def announced_by(sandbox: Sandbox, address: Address, node: str) -> None:
    """Waits until the book says that this node, and no other, announces the address."""
    asked = "SELECT node FROM v_announcements WHERE address = ? AND state = 'present' AND until_at IS NULL"

    async def so() -> bool:
        with contextlib.closing(sqlite3.connect(sandbox.directory / "book.db")) as connection:
            return connection.execute(asked, (str(address),)).fetchall() == [(node,)]

    await sandbox.until(f"the book to say that {node} announces {address}", so, 40.0)


@contextlib.contextmanager
def database_away(sandbox: Sandbox) -> Iterator[None]:
    """Nobody else can write while the block runs."""
    with contextlib.closing(sqlite3.connect(sandbox.directory / "book.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@pytest.mark.spec("C6", "C15", "E3", "E4")
async def test_nodes_fail_over_without_allocator_and_without_database_and_the_book_has_it_afterwards(
    start_sandbox: Start,
) -> None:
    sandbox = await start_sandbox(Options(nodes=3, agent_flags=QUICK))
    with watched_stage(sandbox) as stage:
        await sandbox.apply(service("echo", 80))

        async def shown(name: str = "echo") -> Address | None:
            found = await sandbox.ingress(NAMESPACE, name)
            return found[0] if found else None

        address = await sandbox.until("an address", shown)
        assert address is not None
        first = await holding(stage, address)
        await announced_by(sandbox, address, first)
        await sandbox.kill_allocator()
        await stage.power_off(first)
        heir = await holding(stage, address, other_than=first)
        await sandbox.apply(service("later", 81))
        await sandbox.start_allocator()
        await announced_by(sandbox, address, heir)
        assert await sandbox.until("the Service that waited to have an address", lambda: shown("later"))
        with database_away(sandbox):
            await stage.power_on(first)
            await holding(stage, address, only=first)

            async def said() -> bool:
                assert sandbox.allocator is not None
                return "database_unavailable" in sandbox.allocator.output()

            await sandbox.until("the allocator to miss its database", said, 40.0)
        await announced_by(sandbox, address, first)
        assert "the chain holds" in (await sandbox.purelb("verify")).stdout
        assert await shown() == address


async def holding(stage: Stage, address: Address, *, other_than: str = "", only: str = "") -> str:
    """Waits until one node holds the address and answers for it."""
    stage.watcher.expect(address)
    stage.watcher.agree(none_s=LEASE_S + 1.0 + LOADED_S)
    if only:
        await stage.held_by(address, only)
    node = await stage.one_holder(address, other_than=other_than)
    await stage.answered_by(address, node)
    return node
