"""The work queue: each key once, no namespace starves, delays pass without polling."""

from __future__ import annotations

import asyncio
import random

import pytest

from purelb_sm.domain.views import ServiceKey
from purelb_sm.kube.queue import LAST_RETRY_S, WorkQueue
from tests.support.virtual_time import run_virtual, virtual_clock


def key(name: str, namespace: str = "default") -> ServiceKey:
    return ServiceKey(namespace, name)


async def test_a_key_waits_once_however_often_it_is_added() -> None:
    queue = WorkQueue()
    for _ in range(3):
        queue.add(key("a"))
    queue.add(key("b"))
    assert len(queue) == 2
    assert await queue.get_batch(10) == [key("a"), key("b")]
    queue.add(key("a"))
    assert await queue.get_batch(10) == [key("a")], "while it was worked on it may come again"


@pytest.mark.spec("E8")
async def test_a_flood_of_one_namespace_does_not_hold_up_another() -> None:
    queue = WorkQueue()
    for i in range(5000):
        queue.add(key(f"s{i}", "flood"))
    await queue.get_batch(50)
    queue.add(key("only", "quiet"))
    queue.add(key("one", "other"))
    queue.add(key("two", "other"))
    batch = await queue.get_batch(8)
    assert {k for k in batch if k.namespace != "flood"} == {
        key("only", "quiet"),
        key("one", "other"),
        key("two", "other"),
    }
    assert batch.index(key("only", "quiet")) <= 1
    assert [k.name for k in batch if k.namespace == "flood"] == [f"s{i}" for i in range(50, 55)]


async def test_a_batch_is_what_has_queued_up_and_no_more_than_asked_for() -> None:
    queue = WorkQueue()
    waiting = asyncio.create_task(queue.get_batch(3))
    await asyncio.sleep(0)
    assert not waiting.done()
    for i in range(5):
        queue.add(key(f"s{i}"))
    assert [k.name for k in await waiting] == ["s0", "s1", "s2"]
    assert [k.name for k in await queue.get_batch(3)] == ["s3", "s4"]


def test_delays_end_in_their_order_and_the_shortest_of_a_key_counts() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        queue.add_after(key("slow"), 10)
        queue.add_after(key("fast"), 1)
        queue.add_after(key("twice"), 8)
        queue.add_after(key("twice"), 2)
        queue.add_after(key("twice"), 5)
        queue.add_after(key("now"), 0)
        assert len(queue) == 1
        assert queue.delayed == 3
        got = []
        for _ in range(4):
            got += [(k.name, round(virtual_clock(), 3)) for k in await queue.get_batch(10)]
        assert got == [("now", 0), ("fast", 1), ("twice", 2), ("slow", 10)]
        assert queue.delayed == 0
        await asyncio.sleep(100)
        assert len(queue) == 0

    run_virtual(scenario())


def test_failures_come_back_later_and_later_with_jitter_until_forgotten() -> None:
    async def scenario() -> None:
        queue = WorkQueue(rng=random.Random(1))
        delays = []
        for _ in range(20):
            delays.append(queue.retry(key("a")))
            await queue.get_batch(1)
        assert all(0.8 * 0.1 * 2**i <= delay <= 1.2 * 0.1 * 2**i for i, delay in enumerate(delays[:9]))
        assert max(delays) <= LAST_RETRY_S * 1.2
        assert len(set(delays[10:])) == 10
        assert queue.retry(key("b")) <= 0.12, "each key for itself"
        queue.forget(key("a"))
        assert queue.retry(key("a")) <= 0.12

    run_virtual(scenario())


def test_cleared_means_nothing_comes_any_more() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        queue.add(key("a"))
        queue.add_after(key("b"), 1)
        queue.clear()
        assert len(queue) == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get_batch(1), 10)
        queue.add_after(key("b"), 1)
        assert await queue.get_batch(1) == [key("b")]

    run_virtual(scenario())
