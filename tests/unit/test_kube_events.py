"""Events: told once and counted, never in the way of the work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from purelb_sm.domain.book import EventNote
from purelb_sm.domain.views import NodeView, ObjectView, ServiceKey
from purelb_sm.errors import Forbidden, NotFound, Throttled, Unavailable
from purelb_sm.kube import events
from purelb_sm.kube.events import EventRecorder
from tests.support.kube_memory import Connection, Memory
from tests.support.virtual_time import run_virtual, virtual_clock

START = datetime(2026, 11, 23, 7, 0, 0, tzinfo=UTC)
ASSIGNED = EventNote("Normal", "IPAllocated", "Assigned IP 172.30.250.53 from pool default")
KEY = ServiceKey("web", "echo")


def now() -> datetime:
    return START + timedelta(seconds=virtual_clock())


def recording(scenario: Callable[[EventRecorder, Connection], Awaitable[None]]) -> Memory:
    """Runs a scenario with a recorder, in virtual time; answers with what the server then has."""
    memory = Memory()

    async def main() -> None:
        connection = Connection(memory)
        async with EventRecorder(
            connection, "purelb-allocator", "pod-1", clock=virtual_clock, now=now, rng=random.Random(1)
        ) as recorder:
            await scenario(recorder, connection)

    run_virtual(main())
    return memory


def stored(memory: Memory) -> list[dict[str, Any]]:
    return list(memory.objects.values())


def test_an_event_says_all_that_describe_shows() -> None:
    async def scenario(recorder: EventRecorder, _: Connection) -> None:
        recorder.service(KEY, "u1", "42", ASSIGNED)

    [event] = stored(recording(scenario))
    metadata = event.pop("metadata")
    assert metadata["namespace"] == "web"
    assert metadata["name"].startswith("echo.")
    assert event == {
        "apiVersion": "v1",
        "kind": "Event",
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Service",
            "namespace": "web",
            "name": "echo",
            "uid": "u1",
            "resourceVersion": "42",
        },
        "type": "Normal",
        "reason": "IPAllocated",
        "message": "Assigned IP 172.30.250.53 from pool default",
        "source": {"component": "purelb-allocator"},
        "reportingComponent": "purelb-allocator",
        "reportingInstance": "pod-1",
        "firstTimestamp": "2026-11-23T07:00:00Z",
        "lastTimestamp": "2026-11-23T07:00:00Z",
        "count": 1,
    }


def test_the_same_event_again_raises_the_count_of_the_first() -> None:
    """`92m (x2 over 92m)` is what the user sees of it."""

    async def scenario(recorder: EventRecorder, _: Connection) -> None:
        recorder.service(KEY, "u1", "42", ASSIGNED)
        await asyncio.sleep(60)
        recorder.service(KEY, "u1", "43", ASSIGNED)
        await asyncio.sleep(60)
        recorder.service(KEY, "u1", "44", EventNote("Warning", "AllocationFailed", "other"))
        recorder.service(KEY, "u2", "45", ASSIGNED)

    memory = recording(scenario)
    assert sorted((e["involvedObject"]["uid"], e["reason"], e["count"]) for e in stored(memory)) == [
        ("u1", "AllocationFailed", 1),
        ("u1", "IPAllocated", 2),
        ("u2", "IPAllocated", 1),
    ]
    twice = next(e for e in stored(memory) if e["count"] == 2)
    assert (twice["firstTimestamp"], twice["lastTimestamp"]) == ("2026-11-23T07:00:00Z", "2026-11-23T07:01:00Z")


def test_what_repeats_before_it_is_written_is_one_request() -> None:
    async def scenario(recorder: EventRecorder, _: Connection) -> None:
        for _i in range(5):
            recorder.service(KEY, "u1", "42", ASSIGNED)

    memory = recording(scenario)
    assert [(method, body["count"]) for method, _, body in memory.log] == [("POST", 5)]


def test_an_event_the_server_forgot_is_made_again() -> None:
    async def scenario(recorder: EventRecorder, connection: Connection) -> None:
        recorder.service(KEY, "u1", "42", ASSIGNED)
        await asyncio.sleep(3600)
        connection.memory.objects.clear()
        recorder.service(KEY, "u1", "42", ASSIGNED)

    [event] = stored(recording(scenario))
    assert event["count"] == 1
    assert event["firstTimestamp"] == "2026-11-23T08:00:00Z"


def test_objects_of_the_cluster_have_their_events_in_default() -> None:
    """The server refuses an Event whose namespace is not its object's, but for those that have none."""
    group = ObjectView("ServiceGroup", "purelb.io/v2", "purelb-system", "default", "u3", "9", 1, None, {})

    async def scenario(recorder: EventRecorder, _: Connection) -> None:
        recorder.node(NodeView("n1", "u2", "7"), EventNote("Warning", "NoLinks", "m"))
        recorder.object(group, EventNote("Normal", "Parsed", "m"))

    found = {e["involvedObject"]["kind"]: e for e in stored(recording(scenario))}
    assert found["Node"]["metadata"]["namespace"] == "default"
    assert found["Node"]["involvedObject"]["namespace"] == ""
    assert found["ServiceGroup"]["metadata"]["namespace"] == "purelb-system"
    assert found["ServiceGroup"]["involvedObject"]["apiVersion"] == "purelb.io/v2"


def test_the_order_of_one_objects_events_is_kept() -> None:
    async def scenario(recorder: EventRecorder, connection: Connection) -> None:
        rng = random.Random(3)
        connection.latency = lambda: rng.uniform(0, 0.02)
        for i in range(15):
            for name in "abcd":
                recorder.service(ServiceKey("web", name), name, "1", EventNote("Normal", "R", f"{i}"))

    memory = recording(scenario)
    for name in "abcd":
        told = [body["message"] for _, _, body in memory.log if body["involvedObject"]["name"] == name]
        assert told == [str(i) for i in range(15)]


@pytest.mark.spec("E2")
def test_a_busy_server_is_asked_again_later_and_nothing_is_told_twice() -> None:
    async def scenario(recorder: EventRecorder, connection: Connection) -> None:
        connection.errors = [Unavailable("x"), Throttled("x", status=429, retry_after_s=20)]
        recorder.service(KEY, "u1", "42", ASSIGNED)
        await asyncio.sleep(20.9)
        assert connection.memory.objects == {}
        await asyncio.sleep(30)
        connection.lose_answers = True
        recorder.service(ServiceKey("web", "lost"), "u2", "1", ASSIGNED)
        await asyncio.sleep(5)
        connection.lose_answers = False
        await asyncio.sleep(60)
        assert recorder.stats.written == 2

    memory = recording(scenario)
    assert [e["count"] for e in stored(memory)] == [1, 1]


def test_a_server_that_refuses_or_is_away_never_shows_to_the_caller() -> None:
    async def scenario(recorder: EventRecorder, connection: Connection) -> None:
        connection.errors = [Forbidden("no", status=403), NotFound("namespace is gone", status=404)]
        recorder.service(KEY, "u1", "1", ASSIGNED)
        await asyncio.sleep(1)
        recorder.service(KEY, "u2", "1", ASSIGNED)
        await asyncio.sleep(1)
        assert recorder.stats.failed == 2
        connection.away = True
        for i in range(3 * events.QUEUE_MAX):
            recorder.service(ServiceKey("web", f"s{i}"), f"u{i}", "1", ASSIGNED)
        assert recorder.stats.overflow >= 2 * events.QUEUE_MAX - 10

    memory = recording(scenario)
    assert memory.objects == {}


def test_closing_is_over_in_time_even_if_the_server_is_away() -> None:
    async def main() -> None:
        connection = Connection(Memory())
        connection.away = True
        recorder = EventRecorder(connection, "c", "i", clock=virtual_clock, now=now)
        async with recorder:
            recorder.service(KEY, "u1", "1", ASSIGNED)
            closing = virtual_clock()
        assert virtual_clock() - closing <= events.FLUSH_S + 0.01

    run_virtual(main())


def test_who_does_not_wait_for_the_end_of_closing_leaves_nothing_that_goes_on() -> None:
    async def main() -> None:
        connection = Connection(Memory())
        connection.away = True
        recorder = await EventRecorder(connection, "c", "i", clock=virtual_clock, now=now).__aenter__()
        recorder.service(KEY, "u1", "1", ASSIGNED)
        closing = asyncio.create_task(recorder.close())
        await asyncio.sleep(events.FLUSH_S / 4)
        closing.cancel()
        await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())


def test_an_object_that_causes_a_flood_is_cut_off_and_others_are_not() -> None:
    async def scenario(recorder: EventRecorder, _: Connection) -> None:
        for i in range(100):
            recorder.service(KEY, "u1", "1", EventNote("Warning", "R", f"{i}"))
        recorder.service(ServiceKey("web", "other"), "u2", "1", ASSIGNED)
        await asyncio.sleep(1)
        assert recorder.stats.spam == 75
        await asyncio.sleep(310)
        recorder.service(KEY, "u1", "1", EventNote("Warning", "R", "later"))
        recorder.service(KEY, "u1", "1", EventNote("Warning", "R", "too soon"))

    memory = recording(scenario)
    messages = [e["message"] for e in stored(memory)]
    assert len(messages) == 27
    assert "later" in messages
    assert "too soon" not in messages
    assert ASSIGNED.message in messages


def test_a_message_too_long_for_the_server_is_cut() -> None:
    async def scenario(recorder: EventRecorder, _: Connection) -> None:
        recorder.service(KEY, "u1", "1", EventNote("Warning", "R", "x" * 5000))

    [event] = stored(recording(scenario))
    assert len(event["message"]) == 1024
