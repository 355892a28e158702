"""The steady state is silent: a minute in which nothing changes, with the periods that an installation has."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import create_engine, text

from purelb_sm.settings import AllocatorSettings
from tests.support.product import a_cluster, a_database, a_node, an_allocator, local_group, service_object
from tests.support.waiting import eventually

MINUTE_S = 60.0
AS_INSTALLED = {
    name: AllocatorSettings.model_fields[name].default
    for name in ("settle_s", "leader_lease_s", "leader_renew_s", "leader_retry_s")
}


def booked(database: str) -> int:
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            return int(connection.execute(text("SELECT MAX(seq) FROM history")).scalar_one())
    finally:
        engine.dispose()


async def test_an_allocator_writes_nothing_for_a_minute_in_which_nothing_changes(tmp_path: Path) -> None:
    """Three kinds of Services: one that is announced, one that no node announces and that was told so, and one that
    waits. Only Leases are renewed."""
    async with a_cluster(tmp_path, local_group("172.30.250.53-172.30.250.54", quarantine="5m")) as cluster:
        database = a_database(tmp_path)
        async with (
            an_allocator(cluster, database, unannounced_s=1.0, **AS_INSTALLED) as allocator,
            a_node(cluster) as node,
        ):
            for name in ("announced", "silent"):
                cluster.create(service_object(name))
                await cluster.given(name)
            await node.holds("172.30.250.53")
            cluster.create(service_object("waits"))
            await eventually(lambda: cluster.condition("waits"))
            await eventually(lambda: cluster.events("NotAnnounced"))
            await eventually(lambda: allocator.leading is not None and allocator.leading.at_rest)
            # Events, the group's numbers and the head of the history are written within a second or two.
            head = -1
            while head != (head := booked(database)) or cluster.writes():
                cluster.requests.clear()
                await asyncio.sleep(3.0)
            cluster.requests.clear()
            await asyncio.sleep(MINUTE_S)
            assert cluster.writes() == []
            assert booked(database) == head
            assert any("/leases/" in path for _, path in cluster.requests), "it lives"
