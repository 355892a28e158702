"""Publishing: one write per Service at a time, nothing repeated blindly, Events only after the write was taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from purelb_sm.allocator.metrics import AllocatorMetrics
from purelb_sm.allocator.publisher import LONGEST, ROOM, Publisher
from purelb_sm.domain.book import EventNote, Plan, PolicyReset, Publication
from purelb_sm.domain.views import Ingress, ServiceKey, ServiceView
from purelb_sm.errors import Conflict, Forbidden, KubeError, NotFound, Throttled, Unavailable
from tests.support.domain import service

NOTE = EventNote("Normal", "IPAllocated", "Assigned IP 10.0.0.1 from pool default")


@dataclass
class FakeCluster:
    """Takes writes, or answers with the errors given, in order; holds them while `gate` is closed."""

    errors: list[Exception] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    writes: list[ServiceKey] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    events: list[tuple[ServiceKey, str]] = field(default_factory=list)
    absorbed: list[ServiceView] = field(default_factory=list)
    running: int = 0
    most: int = 0

    async def publish(self, publication: Publication) -> ServiceView:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gate.wait()
            self.writes.append(publication.key)
            self.versions.append(publication.resource_version)
            if self.errors:
                raise self.errors.pop(0)
            return replace(service(key=publication.key), resource_version="11")
        finally:
            self.running -= 1

    async def reset_policy(self, reset: PolicyReset) -> ServiceView:
        self.writes.append(reset.key)
        if self.errors:
            raise self.errors.pop(0)
        return replace(service(key=reset.key), resource_version="10.5")

    def record(self, key: ServiceKey, uid: str, resource_version: str, note: EventNote) -> None:
        self.events.append((key, resource_version))

    def absorb(self, view: ServiceView) -> None:
        self.absorbed.append(view)


def item(name: str, namespace: str = "test") -> tuple[Plan, ServiceView]:
    key = ServiceKey(namespace, name)
    view = service(key=key)
    publication = Publication(key, view.uid, view.resource_version, (), {"a": "b"}, None)
    return Plan(key, publication=publication, events=(NOTE,)), view


def with_reset(name: str) -> tuple[Plan, ServiceView]:
    made, view = item(name)
    note = EventNote("Warning", "LocalOverride", "set to Cluster")
    return replace(made, policy=PolicyReset(view.key, view.uid, view.resource_version, note)), view


@asynccontextmanager
async def publishing(
    cluster: FakeCluster, concurrency: int = 3
) -> AsyncIterator[tuple[Publisher, list[tuple[str, float]]]]:
    requeued: list[tuple[str, float]] = []
    publisher = Publisher(
        cluster,
        lambda key, delay: requeued.append((key.name, delay)),
        concurrency=concurrency,
        metrics=AllocatorMetrics(),
    )
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher, requeued
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.spec("A3")
async def test_the_event_follows_the_write_and_names_the_version_written() -> None:
    cluster = FakeCluster()
    async with publishing(cluster) as (publisher, requeued):
        await publisher.submit([item("a")])
        assert not cluster.events
        cluster.gate.set()
        await publisher.drained()
    assert cluster.events == [(ServiceKey("test", "a"), "11")]
    assert [v.resource_version for v in cluster.absorbed] == ["11"]
    assert requeued == []


async def test_writes_run_side_by_side_up_to_the_bound() -> None:
    cluster = FakeCluster()
    async with publishing(cluster, concurrency=3) as (publisher, _):
        await publisher.submit([item(f"s{n}") for n in range(9)])
        while cluster.running < 3:
            await asyncio.sleep(0)
        cluster.gate.set()
        await publisher.drained()
    assert cluster.most == 3
    assert len(cluster.writes) == 9


@pytest.mark.spec("E8")
async def test_what_one_namespace_has_piled_up_is_not_in_the_way_of_another() -> None:
    cluster = FakeCluster()
    async with publishing(cluster, concurrency=1) as (publisher, _):
        await publisher.submit([item(f"s{n}", "flood") for n in range(50)])
        while not cluster.running:
            await asyncio.sleep(0)
        await publisher.submit([item("a", "quiet"), item("b", "quiet")])
        cluster.gate.set()
        await publisher.drained()
    places = [place for place, key in enumerate(cluster.writes) if key.namespace == "quiet"]
    # One write was under way already; then it is one of each in turn.
    assert places == [2, 4]
    flood = [key.name for key in cluster.writes if key.namespace == "flood"]
    assert flood == [f"s{n}" for n in range(50)]


async def test_no_more_is_planned_than_there_is_room_for() -> None:
    cluster = FakeCluster()
    async with publishing(cluster, concurrency=2) as (publisher, _):
        assert await publisher.room() == 2 * LONGEST
        await publisher.submit([item(f"s{n}") for n in range(2 * LONGEST + 2)])
        while cluster.running < 2:
            await asyncio.sleep(0)
        waiting = asyncio.create_task(publisher.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        cluster.gate.set()
        assert await waiting >= 2 * ROOM


async def test_a_key_whose_write_is_under_way_comes_back_when_it_is_over() -> None:
    cluster = FakeCluster()
    async with publishing(cluster) as (publisher, requeued):
        await publisher.submit([item("a")])
        assert publisher.busy(ServiceKey("test", "a"))
        assert not publisher.busy(ServiceKey("test", "b"))
        assert requeued == []
        cluster.gate.set()
        await publisher.drained()
        assert requeued == [("a", 0.0)]
        assert not publisher.busy(ServiceKey("test", "a"))


@pytest.mark.parametrize("error", [Conflict("409"), Unavailable("gone away"), Throttled("429", retry_after_s=7.0)])
async def test_a_write_not_taken_is_planned_anew_and_tells_nothing(error: KubeError) -> None:
    cluster = FakeCluster(errors=[error])
    cluster.gate.set()
    async with publishing(cluster) as (publisher, requeued):
        await publisher.submit([item("a")])
        await publisher.drained()
    assert len(cluster.writes) == 1
    assert cluster.events == []
    ((name, delay_s),) = requeued
    assert name == "a"
    assert delay_s >= (error.retry_after_s or 0.05)


async def test_retries_of_one_key_come_less_and_less_often_and_a_success_forgets() -> None:
    cluster = FakeCluster(errors=[Unavailable("x") for _ in range(12)])
    cluster.gate.set()
    async with publishing(cluster) as (publisher, requeued):
        for _ in range(12):
            await publisher.submit([item("a")])
            await publisher.drained()
        delays = [delay for _, delay in requeued]
        assert delays == sorted(delays)
        assert delays[-1] == 30.0
        await publisher.submit([item("a")])
        await publisher.drained()
        cluster.errors.append(Unavailable("x"))
        await publisher.submit([item("a")])
        await publisher.drained()
        assert requeued[-1][1] == delays[0]


async def test_a_mistake_of_ours_in_one_write_costs_nobody_else() -> None:
    cluster = FakeCluster(errors=[RuntimeError("nobody thought of this")])
    cluster.gate.set()
    async with publishing(cluster, concurrency=1) as (publisher, requeued):
        await publisher.submit([item("a"), item("b")])
        await publisher.drained()
    assert [key.name for key, _ in cluster.events] == ["b"]
    assert [name for name, _ in requeued] == ["a"]


@pytest.mark.parametrize(("shown", "told"), [((), []), ((Ingress("10.0.0.9"),), ["a"])])
async def test_only_a_write_that_takes_an_address_off_is_told_to_releases(
    shown: tuple[Ingress, ...], told: list[str]
) -> None:
    cluster = FakeCluster()
    cluster.gate.set()
    seen: list[str] = []
    publisher = Publisher(
        cluster,
        lambda key, delay: None,
        concurrency=1,
        metrics=AllocatorMetrics(),
        taken_off=lambda key: seen.append(key.name),
    )
    task = asyncio.create_task(publisher.run())
    made, view = item("a")
    await publisher.submit([(made, replace(view, ingress=shown))])
    await publisher.drained()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert seen == told


async def test_a_service_deleted_meanwhile_is_left_to_the_watch() -> None:
    cluster = FakeCluster(errors=[NotFound("404")])
    cluster.gate.set()
    async with publishing(cluster) as (publisher, requeued):
        await publisher.submit([item("a")])
        await publisher.drained()
    assert requeued == []
    assert cluster.events == []


@pytest.mark.spec("A16", "C10")
async def test_the_policy_is_set_back_before_the_address_is_shown() -> None:
    cluster = FakeCluster()
    cluster.gate.set()
    async with publishing(cluster) as (publisher, requeued):
        await publisher.submit([with_reset("a")])
        await publisher.drained()
    key = ServiceKey("test", "a")
    assert cluster.writes == [key, key]
    assert cluster.versions == ["10.5"], "the status is written on top of what we wrote ourselves, and of nothing else"
    assert cluster.events == [(key, "10.5"), (key, "11")]
    assert requeued == []


@pytest.mark.spec("A16")
@pytest.mark.parametrize("error", [Conflict("409"), Unavailable("gone away"), Forbidden("403"), RuntimeError("ours")])
async def test_nothing_is_shown_while_the_policy_cannot_be_set_back(error: Exception) -> None:
    cluster = FakeCluster(errors=[error, error])
    cluster.gate.set()
    async with publishing(cluster) as (publisher, requeued):
        for _ in range(2):
            await publisher.submit([with_reset("a")])
            await publisher.drained()
    assert cluster.versions == []
    assert cluster.events == []
    assert [name for name, _ in requeued] == ["a", "a"]
    assert 0 < requeued[0][1] < requeued[1][1], "and it is no loop"


async def test_a_service_that_went_meanwhile_is_not_written() -> None:
    cluster = FakeCluster(errors=[NotFound("404")])
    cluster.gate.set()
    async with publishing(cluster) as (publisher, requeued):
        await publisher.submit([with_reset("a")])
        await publisher.drained()
    assert (cluster.versions, cluster.events, requeued) == ([], [], [])
