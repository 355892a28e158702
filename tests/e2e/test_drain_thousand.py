"""A node with a thousand local addresses that leaves in good order: every one of them goes over, and none is dropped.

The next node's kernel has them all at once; to say so it writes to a thousand Services, and reports once a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from ipaddress import ip_address
from itertools import chain, islice

import pytest

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.election import first
from purelb_sm.kube.resources import SERVICES
from purelb_sm.sandbox.launcher import Options
from tests.e2e.conftest import Start
from tests.support.stage import LOADED_S, NAMESPACE, Stage, watched_stage
from tests.support.waiting import eventually

pytestmark = pytest.mark.root

MANY = 1000
AT_ONCE = 24
GAP_S = 0.3
"""For the wire, which is asked ten times a second; of kernels' notices every moment is known."""
HANDED_OVER_S = 10.0 + LOADED_S
"""No address is held by two for longer than a Lease lasts, and that is how long it is by default."""
GROUP = {
    "apiVersion": "purelb.io/v2",
    "kind": "ServiceGroup",
    "metadata": {"name": "wide", "namespace": names.INSTALL_NAMESPACE},
    "spec": {
        "local": {
            "v4pools": [{"subnet": "172.30.250.0/24", "pool": "172.30.250.50-172.30.250.250"}],
            "v6pools": [{"subnet": "fd30:250::/64", "pool": "fd30:250::1:0/112"}],
        }
    },
}


def won_by(node: str, nodes: tuple[str, ...]) -> Iterator[Address]:
    """Addresses of the group that this node of all announces, IPv4 first."""
    v4 = (ip_address(f"172.30.250.{last}") for last in range(50, 251))
    v6 = (ip_address(f"fd30:250::1:{last:x}") for last in range(0x10000))
    return (address for address in chain(v4, v6) if first(nodes, address) == node)


@pytest.fixture
async def stage(start_sandbox: Start) -> AsyncIterator[Stage]:
    """With Leases as they are by default."""
    with watched_stage(await start_sandbox(Options(nodes=3, allocator=False, groups=False))) as stage:
        await stage.sandbox.apply(GROUP)
        yield stage


async def announced(stage: Stage, addresses: list[Address]) -> None:
    """A Service for each, which says who announces it."""
    numbers = iter(enumerate(addresses))

    async def worker() -> None:
        for number, address in numbers:
            await stage.allocated(f"echo{number}", address, group="wide")

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def announcers(stage: Stage) -> list[str]:
    """Whom the Services name, in no order."""
    services = await stage.sandbox.items(SERVICES, NAMESPACE)
    found = [service["metadata"].get("annotations", {}) for service in services]
    ours = [one for one in found if names.ALLOCATED_BY in one]
    return [one.get(names.ANNOUNCING_V4, one.get(names.ANNOUNCING_V6, "")).partition(",")[0] for one in ours]


async def all_named(stage: Stage, *nodes: str) -> None:
    async def so() -> bool:
        # A list of a thousand costs the API server as much as many of the writes that are waited for.
        await asyncio.sleep(0.5)
        return set(await announcers(stage)) <= set(nodes)

    await stage.sandbox.until(f"every Service to name {' or '.join(nodes)}", so, 60.0)


async def gone_from(stage: Stage, old: str, addresses: list[Address], since: float) -> None:
    """Nothing is left behind on that node; each is on another, which has told the neighbours."""
    assert not [held for held in await stage.cluster.addresses(old) if held.mine]
    await eventually(lambda: each_on_one_of(stage, addresses, stage.cluster.nodes))
    await eventually(lambda: not stage.watcher.unannounced(since))


def each_on_one_of(stage: Stage, addresses: list[Address], nodes: Sequence[str]) -> bool:
    held = stage.watcher.table()
    return held.keys() == set(addresses) and all(len(found) == 1 and found[0] in nodes for found in held.values())


@pytest.mark.spec("C6", "C17", "D9")
async def test_a_thousand_addresses_are_all_handed_over_when_their_node_is_drained_or_told_to_stop(
    stage: Stage,
) -> None:
    old, *others = stage.cluster.nodes
    addresses = list(islice(won_by(old, stage.cluster.nodes), MANY))
    await announced(stage, addresses)
    await all_named(stage, old)
    stage.watcher.agree(none_s=GAP_S, two_s=HANDED_OVER_S)
    began = drained = time.time()
    told = await stage.sandbox.purelb("drain", old)
    assert told.stdout.splitlines()[-1] == f"{old} is drained: it announces nothing"
    await gone_from(stage, old, addresses, drained)
    await stage.sandbox.purelb("undrain", old)
    await all_named(stage, old)
    await eventually(lambda: each_on_one_of(stage, addresses, [old]))
    stopped = time.time()
    await stage.stop_agent(old)
    assert stage.sandbox.agents[old].returncode == 0, stage.sandbox.agents[old].output()[-2000:]
    await gone_from(stage, old, addresses, stopped)
    await all_named(stage, *others)
    assert stage.watcher.gaps(began) == {}, "somebody held each of them all the time"
