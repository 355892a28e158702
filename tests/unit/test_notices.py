"""Telling who announces: when, how often, and what happens to what could not be written. Time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from ipaddress import ip_address
from itertools import pairwise

import pytest

from purelb_sm.allocator.metrics import AllocatorMetrics
from purelb_sm.allocator.notices import Notices
from purelb_sm.allocator.publisher import Publisher
from purelb_sm.domain import names
from purelb_sm.domain.announced import Announcers, HeldAddress
from purelb_sm.domain.book import Allocate, EventNote, Hold, Join, Leave, Plan, PolicyReset, Publication
from purelb_sm.domain.publication import current_condition
from purelb_sm.domain.views import ServiceKey, ServiceView
from purelb_sm.errors import Conflict, Unavailable
from tests.support.domain import NOW, service, showing
from tests.support.office import taken
from tests.support.virtual_time import run_virtual, virtual_clock

IP = "172.30.250.53"


@dataclass
class Desk:
    """A book and a cluster that are dicts. `refuse`: so many writes are not taken."""

    book: dict[ServiceKey, Announcers] = field(default_factory=dict)
    services: dict[ServiceKey, ServiceView] = field(default_factory=dict)
    refuse: int = 0
    error: Exception = field(default_factory=lambda: Unavailable("away"))
    writes: list[tuple[float, str, str]] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    asked: list[tuple[float, int]] = field(default_factory=list)

    def add(self, name: str = "echo", *nodes: str, since_s: float = 0.0) -> ServiceKey:
        key = ServiceKey("test", name)
        self.services[key] = showing(service(key=key), IP)
        self.moved(key, *nodes, since_s=since_s)
        return key

    def moved(self, key: ServiceKey, *nodes: str, since_s: float | None = None) -> None:
        since = now() if since_s is None else NOW + timedelta(seconds=since_s)
        held = HeldAddress(ip_address(IP), None if nodes else since)
        self.book[key] = Announcers(key, "uid-1", (held,), len(nodes), *((nodes[0], "eth0") if nodes else ("", "")))

    def says(self, key: ServiceKey) -> str:
        condition = current_condition(self.services[key], names.CONDITION_ANNOUNCED)
        return condition.message if condition else ""

    # The cluster.

    async def publish(self, publication: Publication) -> ServiceView:
        await asyncio.sleep(0.01)
        key = publication.key
        if self.refuse:
            self.refuse -= 1
            raise self.error
        assert self.services[key].resource_version == publication.resource_version
        self.services[key] = taken(self.services[key], publication, f"{len(self.writes) + 100}")
        self.writes.append((virtual_clock(), key.name, self.says(key)))
        return self.services[key]

    async def reset_policy(self, reset: PolicyReset) -> ServiceView:
        raise AssertionError("no policy is touched")

    def record(self, key: ServiceKey, uid: str, resource_version: str, note: EventNote) -> None:
        self.events.append((virtual_clock(), note.reason))

    def absorb(self, view: ServiceView) -> None:
        self.services[view.key] = view

    # The book.

    async def announcers(self, keys: Sequence[ServiceKey]) -> Mapping[ServiceKey, Announcers]:
        self.asked.append((virtual_clock(), len(keys)))
        await asyncio.sleep(0.001)
        return {key: self.book[key] for key in keys if key in self.book}


def now() -> datetime:
    return NOW + timedelta(seconds=virtual_clock())


@dataclass
class Stand:
    desk: Desk
    notices: Notices
    publisher: Publisher
    metrics: AllocatorMetrics
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    def of(cls, desk: Desk) -> Stand:
        metrics = AllocatorMetrics()
        publisher = Publisher(desk, lambda key, delay: None, concurrency=4, metrics=metrics)
        notices = Notices(
            desk.announcers, desk.services.get, publisher, asyncio.Lock(), metrics, now, after_s=30.0, listen_s=6.0
        )
        return cls(desk, notices, publisher, metrics)

    def start(self) -> None:
        async def everything() -> list[ServiceKey]:
            return list(self.desk.book)

        self.tasks = [asyncio.create_task(self.publisher.run()), asyncio.create_task(self.notices.run(everything))]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @property
    def unannounced(self) -> float:
        return self.metrics.registry.get_sample_value("purelb_services_unannounced") or 0.0


def played(scene: Callable[[Stand], Awaitable[None]], desk: Desk) -> None:
    async def whole() -> None:
        stand = Stand.of(desk)
        stand.start()
        try:
            await scene(stand)
        finally:
            await stand.stop()

    run_virtual(whole())


def in_a_loop(make: Callable[[Desk], None]) -> Desk:
    desk = Desk()
    make(desk)
    return desk


@pytest.mark.spec("C16")
def test_a_new_leader_tells_what_is_missing_and_writes_nothing_where_all_is_right() -> None:
    desk = in_a_loop(lambda d: (d.add("a", "node1"), d.add("b", "node1", "node2"), None)[-1])

    async def first(stand: Stand) -> None:
        await asyncio.sleep(20)
        assert sorted((name, text) for _, name, text in desk.writes) == [("a", "by node1 (eth0)"), ("b", "by 2 nodes")]

    async def second(stand: Stand) -> None:
        await asyncio.sleep(3600)
        assert len(desk.writes) == 2
        assert len(desk.asked) == asked + 1, "nobody is looked at without a reason"

    played(first, desk)
    asked = len(desk.asked)
    played(second, desk)


@pytest.mark.spec("C16")
def test_a_new_leader_listens_to_the_nodes_before_it_calls_anything_silent() -> None:
    desk = in_a_loop(lambda d: (d.add("a", since_s=-7200), None)[-1])

    async def scene(stand: Stand) -> None:
        # The book is of before the allocator was away; the node's report is booked now.
        await asyncio.sleep(2)
        desk.moved(ServiceKey("test", "a"), "node1")
        stand.notices.moved([ServiceKey("test", "a")])
        await asyncio.sleep(60)
        assert [text for _, _, text in desk.writes] == ["by node1 (eth0)"]
        assert desk.events == []

    played(scene, desk)


@pytest.mark.spec("C16")
def test_one_service_is_written_once_a_second_at_most_and_the_last_word_counts() -> None:
    desk = in_a_loop(lambda d: (d.add("a", "node1"), None)[-1])
    key = ServiceKey("test", "a")

    async def scene(stand: Stand) -> None:
        await asyncio.sleep(10)
        for n in range(200):
            desk.moved(key, *(["node1", "node2", "node3"][: 1 + n % 3]))
            stand.notices.moved([key])
            await asyncio.sleep(0.05)
        desk.moved(key, "node9")
        stand.notices.moved([key])
        await asyncio.sleep(5)
        times = [at for at, _, _ in desk.writes]
        assert all(later - earlier >= 0.98 for earlier, later in pairwise(times))
        assert desk.says(key) == "by node9 (eth0)"

    played(scene, desk)


@pytest.mark.spec("C16")
def test_a_failover_within_a_second_is_one_write() -> None:
    desk = in_a_loop(lambda d: (d.add("a", "node1"), None)[-1])
    key = ServiceKey("test", "a")

    async def scene(stand: Stand) -> None:
        await asyncio.sleep(10)
        desk.moved(key)
        stand.notices.moved([key])
        await asyncio.sleep(0.4)
        desk.moved(key, "node2")
        stand.notices.moved([key])
        await asyncio.sleep(100)
        assert [text for _, _, text in desk.writes] == ["by node1 (eth0)", "by node2 (eth0)"]
        assert desk.events == []

    played(scene, desk)


@pytest.mark.spec("C16")
def test_silence_is_told_once_after_its_time_counted_and_over_when_a_node_announces() -> None:
    desk = in_a_loop(lambda d: (d.add("a", "node1"), None)[-1])
    key = ServiceKey("test", "a")

    async def scene(stand: Stand) -> None:
        await asyncio.sleep(10)
        desk.moved(key)
        stand.notices.moved([key])
        await asyncio.sleep(29)
        assert (desk.says(key), desk.events, stand.unannounced) == ("no node announces it", [], 0)
        await asyncio.sleep(1000)
        ((at, reason),) = desk.events
        assert reason == "NotAnnounced"
        assert 40 <= at <= 42
        assert stand.unannounced == 1
        desk.moved(key, "node2")
        stand.notices.moved([key])
        await asyncio.sleep(3)
        assert (desk.says(key), stand.unannounced) == ("by node2 (eth0)", 0)
        assert len(desk.writes) == 4

    played(scene, desk)


@pytest.mark.spec("C16")
def test_a_restart_repeats_no_event_and_counts_the_silent_again() -> None:
    desk = in_a_loop(lambda d: (d.add("a", since_s=-60), None)[-1])

    async def scene(stand: Stand) -> None:
        await asyncio.sleep(300)
        assert len(desk.events) == 1
        assert len(desk.writes) == 1
        assert stand.unannounced == 1

    for _ in range(3):
        played(scene, desk)


@pytest.mark.spec("C16")
def test_an_allocation_that_no_node_takes_up_is_told_after_its_time() -> None:
    desk = Desk()

    async def scene(stand: Stand) -> None:
        await asyncio.sleep(10)
        key = desk.add("a", since_s=virtual_clock())
        hold = Hold(key, "uid-1", ip_address(IP), "default", ())
        asked = len(desk.asked)
        stand.notices.planned(Plan(key, (hold, Allocate(key, "uid-1", "default"))))
        await asyncio.sleep(28)
        assert len(desk.asked) == asked, "an allocation alone asks the book nothing"
        await asyncio.sleep(10)
        assert len(desk.events) == len(desk.writes) == 1
        assert 40 <= desk.events[0][0] <= 42

    played(scene, desk)


@pytest.mark.spec("C16")
def test_one_that_joins_an_announced_address_is_told_who_announces_it() -> None:
    desk = Desk()

    async def scene(stand: Stand) -> None:
        await asyncio.sleep(10)
        key = desk.add("a", "node1")
        stand.notices.planned(Plan(key, (Join(key, "uid-1", ip_address(IP), "default", "k", ()),)))
        await asyncio.sleep(3)
        assert desk.says(key) == "by node1 (eth0)"

    played(scene, desk)


@pytest.mark.spec("C16")
def test_a_service_that_goes_is_counted_no_more() -> None:
    desk = in_a_loop(lambda d: (d.add("a", since_s=-60), None)[-1])
    key = ServiceKey("test", "a")

    async def scene(stand: Stand) -> None:
        await asyncio.sleep(20)
        assert stand.unannounced == 1
        del desk.book[key], desk.services[key]
        stand.notices.planned(Plan(key, (Leave(key, "uid-1", 1, ip_address(IP), "deleted"),)))
        await asyncio.sleep(3)
        assert stand.unannounced == 0
        assert stand.notices.untold == 0

    played(scene, desk)


@pytest.mark.spec("C16", "E2")
@pytest.mark.parametrize("error", [Unavailable("away"), Conflict("another version")])
def test_what_is_not_taken_is_written_again_later_and_later(error: Exception) -> None:
    desk = in_a_loop(lambda d: (d.add("a", since_s=-60), None)[-1])
    desk.refuse, desk.error = 10_000, error

    async def scene(stand: Stand) -> None:
        await asyncio.sleep(300)
        assert 10_000 - desk.refuse < 20, "not every second"
        desk.refuse = 0
        await asyncio.sleep(100)
        assert len(desk.writes) == len(desk.events) == 1

    played(scene, desk)


@pytest.mark.spec("C16")
def test_a_service_whose_write_is_under_way_is_looked_at_again() -> None:
    desk = in_a_loop(lambda d: (d.add("a", "node1"), None)[-1])
    key = ServiceKey("test", "a")

    async def scene(stand: Stand) -> None:
        gate = asyncio.Event()
        publish = desk.publish

        running: list[Publication] = []

        async def slow(publication: Publication) -> ServiceView:
            running.append(publication)
            assert len(running) == 1, "two writes of one Service at once"
            await gate.wait()
            running.clear()
            return await publish(publication)

        desk.publish = slow  # type: ignore[method-assign]
        view = desk.services[key]
        other = Publication(key, "uid-1", view.resource_version, None, {"purelb.io/x": "y"}, None)
        await stand.publisher.submit([(Plan(key, publication=other), view)])
        await asyncio.sleep(20)
        assert desk.writes == []
        gate.set()
        await asyncio.sleep(5)
        assert desk.says(key) == "by node1 (eth0)"
        assert desk.services[key].annotation("purelb.io/x") == "y"

    played(scene, desk)


@pytest.mark.spec("C16")
def test_many_are_looked_at_in_shares_and_planning_gets_its_turn_between_them() -> None:
    desk = Desk()
    for n in range(1000):
        desk.add(f"s{n}", "node1")

    async def scene(stand: Stand) -> None:
        await asyncio.sleep(60)
        assert len(desk.writes) == 1000
        assert max(count for _, count in desk.asked) == 200
        assert stand.publisher.writing == 0

    played(scene, desk)


@pytest.mark.spec("C16")
def test_who_undoes_the_condition_again_and_again_is_answered_ever_more_slowly() -> None:
    desk = in_a_loop(lambda d: (d.add("a", "node1"), None)[-1])
    key = ServiceKey("test", "a")

    async def scene(stand: Stand) -> None:
        for _ in range(300):
            await asyncio.sleep(1)
            if desk.says(key):
                desk.services[key] = replace(desk.services[key], conditions=(), resource_version=f"x{virtual_clock()}")
                stand.notices.reworded([key])
        assert len(desk.writes) < 20
        count = len(desk.writes)
        desk.moved(key, "node2")
        stand.notices.moved([key])
        await asyncio.sleep(3)
        assert desk.says(key) == "by node2 (eth0)"
        assert len(desk.writes) == count + 1

    played(scene, desk)
