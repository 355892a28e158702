"""The reflector against a server that misbehaves: bounded requests, no lost change, nobody released by mistake."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from purelb_sm.domain.views import ServiceKey, ServiceView
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.objects import NODE, SERVICE, decode_service
from purelb_sm.kube.reflector import HASTE_S, Change, Reflector, is_older
from tests.support.kube_faults import Exchange, FakeClock, FaultServer, listing, service, status_object, until

Handler = Callable[[Exchange], Awaitable[None]]
Services = Reflector[ServiceKey, ServiceView]


def key(name: str) -> ServiceKey:
    return ServiceKey("default", name)


class Seen:
    """What a consumer was told, in order."""

    def __init__(self, reflector: Services) -> None:
        self.changes: list[tuple[Change, str]] = []
        self.lists: list[tuple[int, int]] = []
        reflector.on_change(self._change)
        reflector.on_listed(lambda before, after: self.lists.append((before, after)))

    def _change(self, change: Change, old: ServiceView | None, new: ServiceView | None) -> None:
        view = new or old
        assert view is not None
        self.changes.append((change, view.key.name))


@asynccontextmanager
async def reflecting(
    handler: Handler, clock: FakeClock | None = None, **options: Any
) -> AsyncIterator[tuple[FaultServer, Services, Seen]]:
    """A server, and a reflector that runs against it. With a FakeClock, back-off passes at once but is counted."""
    clock = clock or FakeClock()
    async with FaultServer(handler) as server, KubeClient.at(server.url, timeout_s=5) as client:
        reflector: Services = Reflector(
            client,
            SERVICE,
            clock=clock,
            sleep=clock.sleep,
            rng=random.Random(1),
            **options,
        )
        seen = Seen(reflector)
        task = asyncio.create_task(reflector.run())
        try:
            yield server, reflector, seen
            assert not task.done(), "the reflector must never end by itself"
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def watch_for_ever(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.hang()


# Lists.


async def test_it_is_synced_when_all_pages_are_there_and_not_before() -> None:
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        if exchange.is_watch:
            await watch_for_ever(exchange)
        elif exchange.query.get("continue") == "next":
            await gate.wait()
            await exchange.reply(listing(10, service("c", 3)))
        else:
            await exchange.reply(listing(10, service("a", 1), service("b", 2), token="next"))

    async with reflecting(handler, page=2) as (server, reflector, seen):
        await until(lambda: server.count() == 2)
        assert not reflector.synced.is_set()
        assert len(reflector) == 0, "half a list is never shown"
        gate.set()
        await reflector.synced.wait()
        assert sorted(k.name for k in reflector.items()) == ["a", "b", "c"]
        assert seen.changes == [(Change.ADDED, "a"), (Change.ADDED, "b"), (Change.ADDED, "c")]
        assert seen.lists == [(0, 3)]
        assert server.requests[0].query == {"limit": "2"}
        await until(lambda: server.count(watch=True) == 1)
        assert server.requests[-1].query["resourceVersion"] == "10"
        assert server.requests[-1].query["allowWatchBookmarks"] == "true"


@pytest.mark.spec("E2")
async def test_a_list_that_expires_while_paging_starts_again_in_one_piece() -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.is_watch:
            await watch_for_ever(exchange)
        elif "continue" in exchange.query:
            await exchange.refuse(410, "Expired")
        elif "limit" in exchange.query:
            await exchange.reply(listing(10, service("a", 1), token="next"))
        else:
            await exchange.reply(listing(11, service("b", 2)))

    async with reflecting(handler) as (server, reflector, seen):
        await reflector.synced.wait()
        assert [k.name for k in reflector.items()] == ["b"], "nothing of the expired list is kept"
        assert seen.changes == [(Change.ADDED, "b")]
        assert server.count(watch=False) == 3


@pytest.mark.spec("E2")
async def test_a_relist_tells_what_vanished_what_changed_and_what_is_new() -> None:
    lists = [
        listing(10, service("stays", 1), service("changes", 2), service("goes", 3), service("again", 4)),
        listing(20, service("stays", 1), service("changes", 12), service("new", 13), service("again", 14, uid="other")),
    ]

    async def handler(exchange: Exchange) -> None:
        if not exchange.is_watch:
            await exchange.reply(lists.pop(0))
        elif lists:
            await exchange.begin()
            await exchange.event("ERROR", status_object(410, "Expired"))
            await exchange.end()
        else:
            await watch_for_ever(exchange)

    async with reflecting(handler) as (_, reflector, seen):
        await until(lambda: len(seen.lists) == 2)
        assert seen.lists == [(0, 4), (4, 4)]
        assert sorted(seen.changes[4:]) == [
            (Change.ADDED, "again"),
            (Change.ADDED, "new"),
            (Change.DELETED, "again"),
            (Change.DELETED, "goes"),
            (Change.MODIFIED, "changes"),
        ]
        again = [change for change, name in seen.changes[4:] if name == "again"]
        assert again == [Change.DELETED, Change.ADDED], "made again under its name: two objects"
        assert reflector.resource_version == "20"


@pytest.mark.spec("E5")
async def test_an_implausible_list_is_known_before_its_first_deletion() -> None:
    lists = [listing(10, *(service(f"s{i}", i) for i in range(20))), listing(20)]
    order: list[object] = []

    async def handler(exchange: Exchange) -> None:
        if not exchange.is_watch:
            await exchange.reply(lists.pop(0))
        elif lists:
            await exchange.refuse(410, "Expired")
        else:
            await watch_for_ever(exchange)

    async with reflecting(handler) as (_, reflector, _seen):
        reflector.on_listed(lambda before, after: order.append((before, after, len(reflector))))
        reflector.on_change(lambda change, old, new: order.append(change))
        await until(lambda: len(order) == 42)
        assert order[21:] == [(20, 0, 0)] + [Change.DELETED] * 20


async def test_what_cannot_be_read_in_a_list_is_not_taken_for_deleted() -> None:
    """A server upgrade that changes a field's type must not release every address."""
    poison = service("a", 12, ports=[{"port": "eighty"}])
    lists = [listing(10, service("a", 1), service("b", 2)), listing(20, poison)]

    async def handler(exchange: Exchange) -> None:
        if not exchange.is_watch:
            await exchange.reply(lists.pop(0))
        elif lists:
            await exchange.refuse(410, "Expired")
        else:
            await watch_for_ever(exchange)

    async with reflecting(handler) as (_, reflector, seen):
        await until(lambda: len(seen.lists) == 2)
        assert [k.name for k in reflector.items()] == ["a"]
        assert seen.changes[2:] == [(Change.DELETED, "b")]
        assert seen.lists[1] == (2, 1)
        assert reflector.undecodable == 1


async def test_a_list_that_is_truncated_changes_nothing() -> None:
    answers: list[bytes] = [b'{"metadata":{"resourceVersion":"9"},"items":[']

    async def handler(exchange: Exchange) -> None:
        if exchange.is_watch:
            await watch_for_ever(exchange)
        elif answers:
            await exchange.reply(answers.pop())
        else:
            await exchange.reply(listing(10, service("a", 1)))

    async with reflecting(handler) as (server, reflector, seen):
        await reflector.synced.wait()
        assert seen.changes == [(Change.ADDED, "a")]
        assert server.count(watch=False) == 2


@pytest.mark.parametrize(
    "answer", [{}, {"metadata": {}}, {"metadata": {"resourceVersion": ""}}, status_object(200, "x")]
)
async def test_an_answer_that_is_no_list_deletes_nothing(answer: dict[str, object]) -> None:
    lists = [answer, listing(10, service("a", 1)), answer, answer, listing(20, service("a", 1))]

    async def handler(exchange: Exchange) -> None:
        if not exchange.is_watch:
            await exchange.reply(lists.pop(0))
        elif lists:
            await exchange.refuse(410, "Expired")
        else:
            await watch_for_ever(exchange)

    async with reflecting(handler) as (_, reflector, seen):
        await until(lambda: reflector.resource_version == "20")
        assert seen.changes == [(Change.ADDED, "a")]


async def test_a_list_that_never_ends_is_left() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.reply(listing(10, service("a", 1), token="again"))

    clock = FakeClock()
    start = clock.now
    async with reflecting(handler, clock) as (server, reflector, _):
        await until(lambda: clock.now > start + 300)
        assert len(server.requests) < 2 * (8 + 300 / 24)
        assert not reflector.synced.is_set()


async def test_an_older_server_is_asked_without_the_field_selector() -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.is_watch:
            await watch_for_ever(exchange)
        elif "fieldSelector" in exchange.query:
            await exchange.refuse(400, "BadRequest", "field label not supported: spec.type")
        else:
            await exchange.reply(listing(10, service("a", 1), service("b", 2, type="ClusterIP")))

    async with reflecting(
        handler, field_selector="spec.type=LoadBalancer", keep=lambda view: view.type == "LoadBalancer"
    ) as (server, reflector, _):
        await reflector.synced.wait()
        assert [k.name for k in reflector.items()] == ["a"]
        await until(lambda: server.count(watch=True) == 1)
        assert "fieldSelector" not in server.requests[-1].query


# Watches.


async def test_changes_are_told_once_and_the_cache_has_them_already() -> None:
    async def handler(exchange: Exchange) -> None:
        if not exchange.is_watch:
            await exchange.reply(listing(10, service("a", 1)))
            return
        await exchange.begin()
        await exchange.event("ADDED", service("b", 11))
        await exchange.event("MODIFIED", service("a", 12))
        await exchange.event("MODIFIED", service("a", 12))
        await exchange.event("DELETED", service("a", 13))
        await exchange.event("BOOKMARK", {"metadata": {"resourceVersion": "40"}})
        await exchange.hang()

    async with reflecting(handler) as (_, reflector, seen):
        states: list[list[str]] = []
        reflector.on_change(lambda *_: states.append(sorted(k.name for k in reflector.items())))
        await until(lambda: reflector.stats.bookmarks == 1)
        assert seen.changes[1:] == [(Change.ADDED, "b"), (Change.MODIFIED, "a"), (Change.DELETED, "a")]
        assert states == [["a"], ["a", "b"], ["a", "b"], ["b"]]
        assert reflector.resource_version == "40"


@pytest.mark.spec("E1", "E2")
async def test_an_object_that_cannot_be_read_is_passed_by() -> None:
    """The package's informer asks for it again and again, for ever."""

    async def handler(exchange: Exchange) -> None:
        if not exchange.is_watch:
            await exchange.reply(listing(10, service("a", 1)))
        elif exchange.query["resourceVersion"] == "10":
            await exchange.begin()
            await exchange.event("MODIFIED", service("a", 11, ports=[{"port": "eighty"}]))
            await exchange.event("ADDED", service("b", 12))
            await exchange.event("DELETED", service("a", 13, ports=[{"port": "eighty"}]))
            await exchange.end()
        else:
            await watch_for_ever(exchange)

    async with reflecting(handler) as (server, reflector, seen):
        await until(lambda: server.count(watch=True) == 2)
        assert seen.changes == [(Change.ADDED, "a"), (Change.ADDED, "b"), (Change.DELETED, "a")]
        assert server.requests[-1].query["resourceVersion"] == "13"
        assert reflector.undecodable == 1, "a deletion needs no more than the name"


@pytest.mark.spec("E2")
@pytest.mark.parametrize("place", ["http", "event"])
async def test_an_expired_watch_lists_again_and_loses_nothing(place: str) -> None:
    async def handler(exchange: Exchange) -> None:
        if not exchange.is_watch:
            done = server.count(watch=True) > 0
            await exchange.reply(listing(50, service("b", 40)) if done else listing(10, service("a", 1)))
        elif exchange.query["resourceVersion"] == "50":
            await watch_for_ever(exchange)
        elif place == "http":
            await exchange.refuse(410, "Expired")
        else:
            await exchange.begin()
            await exchange.event("ERROR", status_object(410, "Expired", "too old resource version"))
            await exchange.end()

    async with reflecting(handler) as (server, reflector, seen):
        await until(lambda: server.count(watch=True) == 2)
        assert seen.changes == [(Change.ADDED, "a"), (Change.DELETED, "a"), (Change.ADDED, "b")]
        assert reflector.stats.expired == 1


@pytest.mark.spec("E2")
async def test_a_server_restored_from_a_backup_is_believed() -> None:
    """Its versions start lower. What we hold is newer by number, and wrong."""
    lists = [listing(5000, service("a", 4000), service("b", 4500)), listing(3000, service("a", 2900))]

    async def handler(exchange: Exchange) -> None:
        if not exchange.is_watch:
            await exchange.reply(lists.pop(0))
        elif exchange.query["resourceVersion"] == "5000":
            await exchange.begin()
            await exchange.event("BOOKMARK", {"metadata": {"resourceVersion": "3000"}})
            await exchange.hang()
        else:
            await exchange.begin()
            await exchange.event("MODIFIED", service("a", 3001))
            await exchange.hang()

    async with reflecting(handler) as (_, reflector, seen):
        await until(lambda: reflector.resource_version == "3001")
        assert seen.changes[2:] == [(Change.DELETED, "b"), (Change.MODIFIED, "a"), (Change.MODIFIED, "a")]
        view = reflector.get(key("a"))
        assert view is not None
        assert view.resource_version == "3001"


@pytest.mark.spec("E2")
async def test_a_version_that_the_server_does_not_know_yet_lists_again() -> None:
    async def handler(exchange: Exchange) -> None:
        if not exchange.is_watch:
            await exchange.reply(listing(10 if server.count(watch=True) == 0 else 5, service("a", 1)))
        elif exchange.query["resourceVersion"] == "10":
            await exchange.begin()
            message = "Timeout: Too large resource version: 10, current: 5"
            await exchange.event("ERROR", status_object(504, "Timeout", message))
            await exchange.end()
        else:
            await watch_for_ever(exchange)

    async with reflecting(handler) as (server, reflector, _):
        await until(lambda: server.count(watch=True) == 2)
        assert reflector.resource_version == "5"


@pytest.mark.spec("E2")
async def test_a_hung_watch_is_left_and_resumed_from_where_it_was() -> None:
    async def handler(exchange: Exchange) -> None:
        if not exchange.is_watch:
            await exchange.reply(listing(10))
        elif exchange.query["resourceVersion"] == "10":
            await exchange.begin()
            await exchange.event("ADDED", service("a", 11))
            await exchange.hang()
        else:
            await exchange.begin()
            await exchange.event("ADDED", service("b", 12))
            await exchange.hang()

    async with reflecting(handler, idle_s=0.3) as (server, reflector, seen):
        await until(lambda: len(seen.changes) == 2)
        assert seen.changes == [(Change.ADDED, "a"), (Change.ADDED, "b")]
        assert reflector.stats.silent >= 1
        assert server.count(watch=False) == 1


async def test_lines_that_are_no_events_end_in_a_new_list() -> None:
    async def handler(exchange: Exchange) -> None:
        if not exchange.is_watch:
            await exchange.reply(listing(10 + 10 * server.count(watch=False)))
        elif exchange.query["resourceVersion"] == "20":
            await exchange.begin()
            await exchange.chunk(b'{"type":"ADDED","object":{"metadata":5}}\n')
            await exchange.hang()
        else:
            await watch_for_ever(exchange)

    async with reflecting(handler) as (server, reflector, _):
        await until(lambda: server.count(watch=False) == 2)
        await until(lambda: reflector.resource_version == "30")
        assert server.count(watch=True) <= 4


# How often it asks.

BAD_DAYS: dict[str, Handler] = {}


def bad_day(handler: Handler) -> Handler:
    BAD_DAYS[handler.__name__] = handler
    return handler


@bad_day
async def every_list_500(exchange: Exchange) -> None:
    await exchange.refuse(500, "InternalError")


@bad_day
async def every_list_expired(exchange: Exchange) -> None:
    await exchange.refuse(410, "Expired")


@bad_day
async def every_list_truncated(exchange: Exchange) -> None:
    await exchange.reply(b'{"metadata":')


@bad_day
async def every_list_aborted(exchange: Exchange) -> None:
    exchange.abort()


@bad_day
async def not_allowed(exchange: Exchange) -> None:
    await exchange.refuse(403, "Forbidden")


@bad_day
async def kind_not_installed(exchange: Exchange) -> None:
    await exchange.raw(404, b"404 page not found\n", 19)


async def listed(exchange: Exchange) -> bool:
    if not exchange.is_watch:
        await exchange.reply(listing(10, service("a", 1)))
        return True
    return False


@bad_day
async def watch_500(exchange: Exchange) -> None:
    if not await listed(exchange):
        await exchange.refuse(500, "InternalError")


@bad_day
async def watch_410(exchange: Exchange) -> None:
    if not await listed(exchange):
        await exchange.refuse(410, "Expired")


@bad_day
async def watch_error_410(exchange: Exchange) -> None:
    if not await listed(exchange):
        await exchange.begin()
        await exchange.event("ERROR", status_object(410, "Expired"))
        await exchange.end()


@bad_day
async def watch_closed_at_once(exchange: Exchange) -> None:
    if not await listed(exchange):
        await exchange.begin()
        await exchange.end()


@bad_day
async def watch_aborted_at_once(exchange: Exchange) -> None:
    if not await listed(exchange):
        await exchange.begin()
        exchange.abort()


@bad_day
async def watch_of_garbage(exchange: Exchange) -> None:
    if not await listed(exchange):
        await exchange.begin()
        await exchange.chunk(b"<html>\n")
        await exchange.end()


@pytest.mark.spec("E2")
@pytest.mark.parametrize("name", sorted(BAD_DAYS))
async def test_a_bad_day_costs_the_server_few_requests(name: str) -> None:
    """The package's informer makes 600 to 1,100 requests a second. Counted in the reflector's own time: 600 s of it."""
    clock = FakeClock()
    start = clock.now
    async with reflecting(BAD_DAYS[name], clock) as (server, _, _seen):
        await until(lambda: clock.now > start + 600)
        # Doubling from 0.2 s to 30 s: 8 rounds until there, then one every 24 to 36 s; a round is at most list + watch.
        assert len(server.requests) <= 2 * (8 + 600 / 24)
    assert max(clock.slept) <= 36.0
    assert len({round(s, 6) for s in clock.slept}) > len(clock.slept) / 2, "with jitter"


@pytest.mark.spec("E2")
async def test_a_server_that_is_away_is_asked_seldom_and_found_again() -> None:
    async def handler(exchange: Exchange) -> None:
        if not await listed(exchange):
            await exchange.begin()
            await exchange.event("ADDED", service("b", 11))
            await exchange.hang()

    clock = FakeClock()
    async with reflecting(handler, clock) as (server, reflector, seen):
        await until(lambda: len(seen.changes) == 2)
        await server.stop()
        start = clock.now
        await until(lambda: clock.now > start + 600)
        assert reflector.stats.watches + reflector.stats.lists <= 2 + 8 + 600 / 24
        assert len(reflector) == 2, "what was known stays known"
        assert reflector.staleness_s > 500
        await server.start()
        await until(lambda: reflector.staleness_s < 100)


@pytest.mark.spec("E2")
async def test_retry_after_is_kept() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.refuse(429, "TooManyRequests", Retry_After="90")

    clock = FakeClock()
    async with reflecting(handler, clock) as (server, _, _seen):
        await until(lambda: len(server.requests) >= 4)
    assert all(90 <= slept <= 108 for slept in clock.slept)


@pytest.mark.spec("C14", "E2")
@pytest.mark.parametrize("asked_to_wait", [False, True])
async def test_told_that_the_server_answers_again_it_waits_no_longer_unless_the_server_asked_it_to(
    asked_to_wait: bool,
) -> None:
    away = True
    long_pauses = 0

    async def handler(exchange: Exchange) -> None:
        if not away and not await listed(exchange):
            await watch_for_ever(exchange)
        elif away and asked_to_wait:
            await exchange.refuse(503, "ServiceUnavailable", Retry_After="60")
        elif away:
            exchange.abort()

    async def sleep(pause_s: float) -> None:
        nonlocal long_pauses
        if pause_s > HASTE_S:
            long_pauses += 1
            await asyncio.Event().wait()

    async with FaultServer(handler) as server, KubeClient.at(server.url, timeout_s=5) as client:
        reflector: Services = Reflector(client, SERVICE, sleep=sleep)
        task = asyncio.create_task(reflector.run())
        await until(lambda: long_pauses)
        away = False
        before = len(server.requests)
        reflector.hasten()
        if asked_to_wait:
            await asyncio.sleep(0.1)
            assert len(server.requests) == before
        else:
            await until(reflector.synced.is_set)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_watch_that_is_cut_young_but_brings_news_is_soon_opened_again() -> None:
    async def handler(exchange: Exchange) -> None:
        if not await listed(exchange):
            version = int(exchange.query["resourceVersion"]) + 1
            await exchange.begin()
            await exchange.event("MODIFIED", service("a", version))
            exchange.abort()

    clock = FakeClock()
    async with reflecting(handler, clock) as (_, reflector, _seen):
        await until(lambda: reflector.stats.watches > 20)
    assert max(clock.slept) <= 1.2
    assert min(clock.slept) >= 0.16


async def test_a_watch_that_stood_is_opened_again_at_once() -> None:
    clock = FakeClock()

    async def handler(exchange: Exchange) -> None:
        if not await listed(exchange):
            await exchange.begin()
            clock.now += 240
            await exchange.end()

    async with reflecting(handler, clock) as (_, reflector, _seen):
        await until(lambda: reflector.stats.watches >= 3)
    assert clock.slept == []


async def test_watches_are_asked_for_with_different_ends() -> None:
    clock = FakeClock()

    async def handler(exchange: Exchange) -> None:
        if not await listed(exchange):
            await exchange.begin()
            clock.now += 240
            await exchange.end()

    async with reflecting(handler, clock) as (server, reflector, _seen):
        await until(lambda: reflector.stats.watches >= 5)
        asked = {int(r.query["timeoutSeconds"]) for r in server.requests if r.is_watch}
    assert len(asked) > 1
    assert min(asked) >= 240


# Consumers.


async def test_a_consumer_that_raises_costs_nobody_else() -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    async def handler(exchange: Exchange) -> None:
        if not await listed(exchange):
            await exchange.begin()
            await exchange.event("ADDED", service("b", 11))
            await exchange.hang()

    async with reflecting(handler) as (_, reflector, seen):
        reflector.on_change(fail)
        reflector.on_listed(fail)
        told: list[Change] = []
        reflector.on_change(lambda change, *_: told.append(change))
        await until(lambda: len(seen.changes) == 2)
        assert len(told) == 2
        assert reflector.callback_errors == 3


async def test_the_answer_to_our_own_write_is_known_before_the_watch_brings_it() -> None:
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        if not await listed(exchange):
            await exchange.begin()
            await gate.wait()
            await exchange.event("MODIFIED", service("a", 11, clusterIP="older"))
            await exchange.event("MODIFIED", service("a", 12, clusterIP="ours"))
            await exchange.event("MODIFIED", service("a", 13, clusterIP="newer"))
            await exchange.hang()

    async with reflecting(handler) as (_, reflector, seen):
        await until(lambda: reflector.stats.watches == 1)
        reflector.absorb(view_of(service("a", 12, clusterIP="ours")))
        cached = reflector.get(key("a"))
        assert cached is not None
        assert cached.cluster_ip == "ours"
        reflector.absorb(view_of(service("a", 3)))
        reflector.absorb(view_of(service("unknown", 30)))
        assert [v.resource_version for v in reflector.items().values()] == ["12"]
        gate.set()
        await until(lambda: reflector.resource_version == "13" or reflector.stats.lists > 1)
        assert seen.changes == [(Change.ADDED, "a"), (Change.MODIFIED, "a")]


async def test_what_our_own_write_brought_is_not_read_again_from_the_watch_but_its_end_is() -> None:
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        if exchange.is_watch:
            await exchange.begin()
            await gate.wait()
            # The same version with another content: it would be seen if it were read.
            await exchange.event("MODIFIED", service("a", 12, clusterIP="again"))
            await exchange.event("DELETED", service("b", 13))
            await exchange.event("MODIFIED", service("c", 14))
            await exchange.hang()
        else:
            await exchange.reply(listing(10, service("a", 3), service("b", 13), service("c", 5)))

    async with reflecting(handler) as (_, reflector, seen):
        await until(lambda: reflector.stats.watches == 1)
        reflector.absorb(view_of(service("a", 12, clusterIP="ours")))
        gate.set()
        await until(lambda: reflector.resource_version == "14")
        assert reflector.get(key("a")).cluster_ip == "ours"  # type: ignore[union-attr]
        assert reflector.get(key("b")) is None
        assert (Change.DELETED, "b") in seen.changes


async def test_a_list_from_before_our_own_write_does_not_undo_it() -> None:
    """The answer to our write may overtake a list that was begun before it."""
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        if exchange.is_watch:
            await (exchange.refuse(410, "Expired") if server_lists == 1 else watch_for_ever(exchange))
        else:
            await next_list(exchange)

    server_lists = 0

    async def next_list(exchange: Exchange) -> None:
        nonlocal server_lists
        server_lists += 1
        if server_lists == 2:
            await gate.wait()
        await exchange.reply(listing(10 * server_lists, service("a", 1), service("b", 2)))

    async with reflecting(handler) as (_, reflector, seen):
        await until(lambda: server_lists == 2)
        reflector.absorb(view_of(service("a", 25, clusterIP="ours")))
        gate.set()
        await until(lambda: len(seen.lists) == 2)
        cached = reflector.get(key("a"))
        assert cached is not None
        assert cached.cluster_ip == "ours"
        assert len(seen.changes) == 2


def view_of(item: dict[str, object]) -> ServiceView:
    import json

    return decode_service(json.dumps(item).encode())


async def test_cluster_wide_kinds_are_keyed_by_name() -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.is_watch:
            await watch_for_ever(exchange)
        else:
            node = {"metadata": {"name": "n1", "uid": "u", "resourceVersion": "1"}}
            await exchange.reply(listing(3, node))

    async with FaultServer(handler) as server, KubeClient.at(server.url) as client:
        reflector = Reflector(client, NODE)
        task = asyncio.create_task(reflector.run())
        await reflector.synced.wait()
        assert list(reflector.items()) == ["n1"]
        assert server.requests[0].path == "/api/v1/nodes"
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    ("one", "other", "older"),
    [
        ("9", "10", True),
        ("10", "9", False),
        ("10", "10", False),
        ("", "10", False),
        ("10", "", False),
        ("abc", "abd", False),
        ("99999999999999999999", "100000000000000000000", True),
        ("²", "3", False),
    ],
)
def test_versions_compare_as_integers_and_only_those(one: str, other: str, older: bool) -> None:
    assert is_older(one, other) is older
