"""Reports: the latest state, at most once a second, whole or not at all."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest

from purelb_sm.domain.reports import (
    NodeReport,
    ReportedAddress,
    ReportedTransition,
    join_slices,
    parse_report,
    parse_slice,
    render_report,
    render_slices,
    slice_name,
)
from purelb_sm.domain.states import AnnouncementState, AnnouncementTrigger
from purelb_sm.domain.views import ObjectView
from purelb_sm.errors import InvalidInput, NotFound, Throttled, Unavailable
from purelb_sm.kube.objects import NODE_ANNOUNCEMENT
from purelb_sm.kube.reports import NODE_LABEL, ReportWriter
from tests.support.kube_memory import Connection, Memory
from tests.support.virtual_time import run_virtual, virtual_clock

AT = datetime(2026, 11, 23, 7, 0, 0, 123456, tzinfo=UTC)
PATH = "/apis/purelb.io/v2/namespaces/purelb-system/nodeannouncements"


def report(count: int = 1, *, node: str = "n1", sequence: int = 1, incarnation: str = "i1") -> NodeReport:
    addresses = tuple(
        ReportedAddress(ip_address(0x0A000000 + i), "eth0", 24, AnnouncementState.PRESENT, AT, 300)
        for i in range(count)
    )
    moves = (
        ReportedTransition(
            1,
            AT,
            ip_address("10.0.0.0"),
            "eth0",
            24,
            AnnouncementTrigger.ADDED,
            AnnouncementState.ADDING,
            AnnouncementState.PRESENT,
        ),
    )
    return NodeReport(node, incarnation, AT, sequence, addresses, moves)


def view(name: str, spec: object, namespace: str = "purelb-system") -> ObjectView:
    return ObjectView("NodeAnnouncement", "purelb.io/v2", namespace, name, "u", "1", 1, None, spec)


def views_of(what: NodeReport, size: int) -> list[ObjectView]:
    specs = [json.loads(json.dumps(spec)) for spec in render_slices(what, size)]
    return [view(slice_name(what.node, index), spec) for index, spec in enumerate(specs)]


# Slices.


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 20, 35])
def test_what_is_cut_into_slices_comes_together_again(count: int) -> None:
    whole = report(count)
    views = views_of(whole, 10)
    assert len(views) == max(1, -(-count // 10))
    random.Random(1).shuffle(views)
    assert join_slices(views) == whole
    assert join_slices(views, "n1") == whole


def test_a_report_with_a_slice_missing_or_of_another_moment_is_none() -> None:
    views = views_of(report(35), 10)
    assert len(views) == 4
    for missing in range(4):
        assert join_slices([v for i, v in enumerate(views) if i != missing], "n1") is None
    for other in (report(35, sequence=2), report(35, incarnation="i2"), report(25)):
        assert join_slices([*views[:2], views_of(other, 10)[2], views[3]], "n1") is None


def test_left_over_slices_do_no_harm() -> None:
    old = views_of(report(35, sequence=1), 10)
    new = views_of(report(15, sequence=2), 10)
    assert join_slices([*new, *old[2:]], "n1") == report(15, sequence=2)


def test_nobody_speaks_for_another_node() -> None:
    """Where a policy lets each agent write only its own objects, their names must decide."""
    spec = json.loads(json.dumps(render_report(report(node="victim"))))
    with pytest.raises(InvalidInput):
        parse_report(view("attacker", spec))
    assert join_slices([view("attacker", spec)], "victim") is None
    second = json.loads(json.dumps(render_slices(report(15, node="victim"), 10)[1]))
    for name in ("attacker", "victim", "victim.2", "victim.01", "attacker.1"):
        with pytest.raises(InvalidInput):
            parse_slice(view(name, second))
    # A foreign object with the victim's label must not silence the victim.
    whole = report(node="victim")
    assert join_slices([view("attacker", spec), *views_of(whole, 10)], "victim") == whole


@pytest.mark.parametrize(
    "change",
    [
        {"slice": 1},
        {"slices": 0},
        {"slice": 2, "slices": 2},
        {"slices": 10**6},
        {"slice": -1, "slices": 2},
        {"slice": "0", "slices": 2},
        {"slice": True, "slices": 2},
    ],
)
def test_impossible_slices_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        parse_slice(view("n1", render_report(report()) | change))


def test_one_slice_of_several_is_no_report() -> None:
    with pytest.raises(InvalidInput):
        parse_report(views_of(report(15), 10)[0])
    assert parse_report(views_of(report(5), 10)[0]) == report(5)


# Writing.


class Source:
    def __init__(self, what: NodeReport | None = None) -> None:
        self.what = what or report()
        self.asked = 0

    def __call__(self) -> NodeReport:
        self.asked += 1
        self.what = replace(self.what, sequence=self.what.sequence + 1)
        return self.what


def writer(connection: Connection, source: Source, **options: Any) -> ReportWriter:
    return ReportWriter(connection, source, "n1", clock=virtual_clock, rng=random.Random(1), **options)


def read_back(memory: Memory) -> NodeReport | None:
    """What a reader of all objects takes from them."""
    return join_slices([NODE_ANNOUNCEMENT.decode(json.dumps(item).encode()) for item in memory.objects.values()], "n1")


@pytest.mark.spec("C15")
def test_a_hundred_moves_within_a_second_are_two_writes() -> None:
    async def scenario() -> None:
        memory, source = Memory(), Source()
        writing = writer(Connection(memory), source)
        task = asyncio.create_task(writing.run())
        for _ in range(100):
            writing.mark()
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        assert writing.written == 2, "the first at once, the others together a second later"
        assert source.asked == 2
        assert read_back(memory) == source.what
        await asyncio.sleep(1000)
        assert writing.written == 2, "quiet when nothing changes"
        task.cancel()

    run_virtual(scenario())


@pytest.mark.spec("C15")
def test_at_most_one_write_a_second_under_constant_change() -> None:
    async def scenario() -> None:
        memory = Memory()
        writing = writer(Connection(memory), Source())
        task = asyncio.create_task(writing.run())
        for _ in range(600):
            writing.mark()
            await asyncio.sleep(0.1)
        assert 58 <= writing.written <= 61
        changes = [method for method, _, _ in memory.log if method != "GET"]
        assert changes.count("POST") == 1
        assert len(changes) == writing.written, "one request a report"
        task.cancel()

    run_virtual(scenario())


def test_a_large_report_grows_and_shrinks_and_can_be_read_at_every_moment() -> None:
    async def scenario() -> None:
        memory, source = Memory(), Source(report(35))
        connection = Connection(memory)
        connection.latency = lambda: 0.005
        writing = writer(connection, source, slice_addresses=10)
        task = asyncio.create_task(writing.run())
        for count in (35, 12, 3, 25):
            source.what = report(count, sequence=source.what.sequence)
            writing.mark()
            for _ in range(150):
                await asyncio.sleep(0.01)
                seen = read_back(memory)
                assert seen is None or len(seen.addresses) in (35, 12, 3, 25)
            assert read_back(memory) == source.what
            assert len(memory.objects) == max(1, -(-count // 10))
        assert all(item["metadata"]["labels"] == {NODE_LABEL: "n1"} for item in memory.objects.values())
        task.cancel()

    run_virtual(scenario())


@pytest.mark.spec("C13")
def test_a_new_incarnation_takes_over_and_the_old_one_yields() -> None:
    """Also if the new one's clock is behind: who writes first after the other wins, whatever the times say."""

    async def scenario() -> None:
        memory = Memory()
        old_source, new_source = (
            Source(report(25)),
            Source(replace(report(5), incarnation="i2", started_at=AT.replace(year=2001))),
        )
        old, new = (writer(Connection(memory), source, slice_addresses=10) for source in (old_source, new_source))
        old.mark()
        assert await old.flush()
        assert len(memory.objects) == 3
        new.mark()
        assert await new.flush()
        assert len(memory.objects) == 1
        old.mark()
        running = asyncio.create_task(old.run())
        await running
        assert old.superseded
        assert read_back(memory) == new_source.what
        new.mark()
        assert await new.flush()

    run_virtual(scenario())


@pytest.mark.spec("E2")
def test_what_was_refused_is_written_later_with_the_state_of_then() -> None:
    async def scenario() -> None:
        memory, source = Memory(), Source()
        connection = Connection(memory)
        connection.errors = [
            Unavailable("x"),
            Throttled("x", status=429, retry_after_s=20),
            NotFound("the kind is not installed", status=404),
        ]
        writing = writer(connection, source)
        task = asyncio.create_task(writing.run())
        writing.mark()
        await asyncio.sleep(15)
        source.what = report(7)
        await asyncio.sleep(30)
        seen = read_back(memory)
        assert seen is not None
        assert len(seen.addresses) == 7
        assert writing.written == 1
        task.cancel()

    run_virtual(scenario())


def test_a_lost_answer_is_made_up_for() -> None:
    async def scenario() -> None:
        memory, source = Memory(), Source()
        connection = Connection(memory)
        writing = writer(connection, source)
        task = asyncio.create_task(writing.run())
        writing.mark()
        await asyncio.sleep(3)
        connection.lose_answers = True
        writing.mark()
        await asyncio.sleep(5)
        connection.lose_answers = False
        await asyncio.sleep(60)
        assert not writing.superseded
        assert read_back(memory) == source.what
        memory.objects.clear()
        writing.mark()
        await asyncio.sleep(5)
        assert read_back(memory) == source.what
        task.cancel()

    run_virtual(scenario())


def test_objects_in_the_way() -> None:
    """One that lost its label is ours; one of a node whose name looks like our second slice is not touched."""

    async def scenario() -> None:
        memory, source = Memory(), Source(report(15))
        writing = writer(Connection(memory), source, slice_addresses=10)
        unlabelled = {"metadata": {"name": "n1"}, "spec": render_report(report())}
        memory._store(f"{PATH}/n1", json.loads(json.dumps(unlabelled)))
        other = {"metadata": {"name": "n1.1"}, "spec": render_report(report(node="n1.1"))}
        memory._store(f"{PATH}/n1.1", json.loads(json.dumps(other)))
        writing.mark()
        assert not await writing.flush()
        assert memory.objects[f"{PATH}/n1.1"]["spec"]["node"] == "n1.1"
        source.what = report(3)
        assert await writing.flush()
        assert memory.objects[f"{PATH}/n1"]["metadata"]["labels"] == {NODE_LABEL: "n1"}
        assert f"{PATH}/n1.1" in memory.objects

    run_virtual(scenario())


def test_flush_at_the_end_is_immediate() -> None:
    async def scenario() -> None:
        memory, source = Memory(), Source()
        writing = writer(Connection(memory), source)
        task = asyncio.create_task(writing.run())
        writing.mark()
        await asyncio.sleep(0.1)
        source.what = report(0, sequence=source.what.sequence)
        writing.mark()
        before = virtual_clock()
        assert await writing.flush()
        assert virtual_clock() == before
        assert read_back(memory) == source.what
        task.cancel()

    run_virtual(scenario())
