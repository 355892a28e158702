"""What the book says of a node that is drained or stopped: a real allocator and real agents, kernels in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from purelb_sm.domain import names
from tests.e2e.test_allocator import rows, verified
from tests.support.agents import a_lab
from tests.support.product import a_cluster, a_database, an_allocator, local_group, service_object
from tests.support.waiting import eventually

IP = "172.30.250.53"


@pytest.mark.spec("C15", "C17", "B1")
@pytest.mark.parametrize("how", ["drained", "stopped"])
async def test_the_book_has_the_new_announcer_before_the_old_one_is_gone_and_the_service_never_falls_silent(
    tmp_path: Path, how: str
) -> None:
    async with a_cluster(tmp_path, local_group(f"{IP}-{IP}")) as cluster, a_lab(cluster) as lab:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            # Reports as often as in an installation: what is shown is that the new node's goes out first.
            await lab.start("node1", "node2", report_s=1.0)
            cluster.create(service_object())

            def booked(trigger: str) -> list[str]:
                sql = f"SELECT node FROM history WHERE kind = 'announcement' AND trigger = '{trigger}' ORDER BY seq"
                return [str(node) for (node,) in rows(database, sql)]

            await eventually(lambda: booked("added"))
            old = await lab.one_holder(IP)
            new = "node2" if old == "node1" else "node1"
            if how == "drained":
                await lab.mark(old, {"annotations": {names.DRAIN: ""}})
            else:
                await lab.agents[old].terminate()
            await eventually(lambda: booked("removed"))
            assert await lab.one_holder(IP) == new
            await eventually(lambda: booked("added") == [old, new])
            assert booked("removed") == [old]
            assert booked("lose") == []
            sql = "SELECT trigger FROM history WHERE kind = 'service' ORDER BY seq"
            assert [trigger for (trigger,) in rows(database, sql)] == ["observe", "allocate", "announce"]
        verified(database)
