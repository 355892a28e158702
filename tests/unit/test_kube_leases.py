"""Who leads and who lives, in virtual time: hours pass in milliseconds, and every run is the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from purelb_sm.domain.views import LeaseView
from purelb_sm.errors import Forbidden, TermLost, Throttled, Unavailable
from purelb_sm.kube.leases import HeldLease, LeaderElection
from purelb_sm.kube.liveness import Liveness
from purelb_sm.kube.objects import ObjectKey
from purelb_sm.kube.reflector import Change
from tests.support.kube_memory import Connection, Memory
from tests.support.virtual_time import run_virtual, virtual_clock

LEASE = "/apis/coordination.k8s.io/v1/namespaces/purelb-system/leases/purelb-allocator"
NODE_LEASE = "/apis/coordination.k8s.io/v1/namespaces/purelb-system/leases/purelb-node-n1"


class Candidate:
    """A candidate with its own connection, and a record of when it led."""

    def __init__(self, name: str, memory: Memory, seed: int = 0, **options: Any) -> None:
        self.name = name
        self.connection = Connection(memory, random.Random(f"{seed}{name}"))
        self.election = LeaderElection(
            self.connection, name, clock=virtual_clock, rng=random.Random(f"{seed}{name}"), **options
        )
        self.spans: list[tuple[float, float]] = []
        self.working = False
        self.task: asyncio.Task[None] | None = None

    async def lead(self) -> None:
        started = virtual_clock()
        self.working = True
        try:
            await asyncio.sleep(1e6)
        finally:
            self.working = False
            self.spans.append((started, virtual_clock()))

    def start(self, lead: Callable[[], Any] | None = None) -> None:
        self.task = asyncio.create_task(self.election.run(lead or self.lead))

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


def leaders(candidates: list[Candidate]) -> list[str]:
    return [c.name for c in candidates if c.election.leading]


@pytest.mark.spec("D8")
@pytest.mark.parametrize("seed", range(12))
def test_two_candidates_never_lead_at_once(seed: int) -> None:
    """Answers that take seconds or never come, connections that go and come: at no moment do two lead."""

    async def scenario() -> None:
        rng = random.Random(seed)
        memory = Memory()
        candidates = [Candidate(name, memory, seed) for name in "abc"]
        for candidate in candidates:
            candidate.connection.latency = lambda: rng.choice([0.01, 0.1, 1.0, 1.9, 3.0])
            candidate.start()
        changes = 0
        last: list[str] = []
        for _ in range(4000):
            await asyncio.sleep(rng.uniform(0.05, 0.5))
            if rng.random() < 0.02:
                victim = rng.choice(candidates).connection
                victim.away = not victim.away
            working = [c.name for c in candidates if c.working]
            assert len(working) <= 1, f"{working} work at once at {virtual_clock()}"
            assert len(leaders(candidates)) <= 1
            changes += working != last
            last = working
        for candidate in candidates:
            await candidate.stop()
        assert changes > 4, "the lead must have moved, else nothing was shown"
        spans = sorted(span for c in candidates for span in c.spans)
        assert all(one[1] <= other[0] for one, other in pairwise(spans))

    run_virtual(scenario())


@pytest.mark.spec("D8")
@pytest.mark.parametrize("away", ["no answer", "refused", "answers lost"])
def test_a_leader_without_api_steps_down_before_another_can_lead(away: str) -> None:
    async def scenario() -> None:
        memory = Memory()
        first, second = Candidate("first", memory), Candidate("second", memory)
        first.start()
        await asyncio.sleep(5)
        second.start()
        await asyncio.sleep(5)
        assert leaders([first, second]) == ["first"]
        cut_at = virtual_clock()
        if away == "no answer":
            first.connection.away = True
        elif away == "refused":
            first.connection.errors = [Unavailable("refused")] * 1000
        else:
            first.connection.lose_answers = True
        while first.working:
            await asyncio.sleep(0.1)
        assert virtual_clock() - cut_at <= 10.2, "the renew deadline counts from before the last renewal"
        assert not second.working
        while not second.working:
            await asyncio.sleep(0.1)
            if away == "answers lost" and virtual_clock() > cut_at + 60:
                break  # Its renewals arrive, though it does not know: nobody else may lead.
        if away != "answers lost":
            assert 10 < virtual_clock() - cut_at <= 15 + 2 * 2.4 + 0.2
        assert not first.working
        for candidate in (first, second):
            await candidate.stop()

    run_virtual(scenario())


@pytest.mark.spec("E6")
def test_a_process_that_was_stopped_past_its_lease_knows_at_once() -> None:
    """Nothing runs while a process is stopped; the first thing it asks when it goes on is whether it still leads."""
    skipped = [0.0]

    async def scenario() -> None:
        memory = Memory()
        election = LeaderElection(Connection(memory), "me", clock=lambda: virtual_clock() + skipped[0])
        ended: list[float] = []

        async def lead() -> None:
            try:
                await asyncio.sleep(1e6)
            finally:
                ended.append(virtual_clock())

        task = asyncio.create_task(election.run(lead))
        await asyncio.sleep(7)
        seen = [election.leading]
        skipped[0] = 60.0
        seen.append(election.leading)
        assert seen == [True, False]
        await asyncio.sleep(3)
        assert ended, "and its work is cancelled at its next turn"
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    run_virtual(scenario())


@pytest.mark.spec("E7", "D8")
def test_a_clock_that_jumps_moves_nothing() -> None:
    async def scenario() -> None:
        memory = Memory()
        jump = [timedelta(0)]
        candidates = [
            Candidate(name, memory, now=lambda: datetime(2026, 11, 23, tzinfo=UTC) + jump[0]) for name in "ab"
        ]
        for candidate in candidates:
            candidate.start()
        await asyncio.sleep(10)
        leader = leaders(candidates)
        for hours in (1, -1, 30, -300):
            jump[0] = timedelta(hours=hours)
            await asyncio.sleep(60)
            assert leaders(candidates) == leader
        assert sum(len(c.spans) for c in candidates) == 0
        for candidate in candidates:
            await candidate.stop()

    run_virtual(scenario())


@pytest.mark.spec("D9")
def test_a_leader_that_is_stopped_gives_the_lease_back() -> None:
    async def scenario() -> None:
        memory = Memory()
        first, second = Candidate("first", memory), Candidate("second", memory)
        first.start()
        await asyncio.sleep(3)
        second.start()
        await asyncio.sleep(3)
        await first.stop()
        stopped = virtual_clock()
        assert memory.objects[LEASE]["spec"]["holderIdentity"] == ""
        while not second.working:
            await asyncio.sleep(0.05)
        assert virtual_clock() - stopped < 2.5
        assert memory.objects[LEASE]["spec"]["leaseTransitions"] == 1
        await second.stop()

    run_virtual(scenario())


def test_what_is_written_is_what_the_server_takes() -> None:
    """MicroTime must have its fraction, also when the microseconds are 0; times are UTC whatever the machine says."""

    async def scenario() -> None:
        memory = Memory()
        at = datetime(2026, 11, 23, 7, 0, 0, tzinfo=UTC).astimezone()
        candidate = Candidate("me", memory, now=lambda: at, namespace="purelb-system")
        candidate.election.set_annotation("purelb.io/history-head", "1:aa")
        candidate.start()
        await asyncio.sleep(1)
        lease = memory.objects[LEASE]
        assert lease["spec"] == {
            "holderIdentity": "me",
            "leaseDurationSeconds": 15,
            "acquireTime": "2026-11-23T07:00:00.000000Z",
            "renewTime": "2026-11-23T07:00:00.000000Z",
            "leaseTransitions": 0,
        }
        assert lease["metadata"]["annotations"] == {"purelb.io/history-head": "1:aa"}
        lease["spec"]["strategy"] = "a field of a newer server"
        memory._store(LEASE, lease)
        candidate.election.set_annotation("purelb.io/history-head", "2:bb")
        await asyncio.sleep(6)
        assert lease["metadata"]["annotations"] != memory.objects[LEASE]["metadata"]["annotations"]
        assert memory.objects[LEASE]["metadata"]["annotations"] == {"purelb.io/history-head": "2:bb"}
        assert memory.objects[LEASE]["spec"]["strategy"] == "a field of a newer server"
        await candidate.stop()
        assert memory.objects[LEASE]["metadata"]["annotations"] == {"purelb.io/history-head": "2:bb"}

    run_virtual(scenario())


def test_a_renewal_is_one_request() -> None:
    async def scenario() -> None:
        memory = Memory()
        candidate = Candidate("me", memory)
        candidate.start()
        await asyncio.sleep(1)
        memory.log.clear()
        await asyncio.sleep(100)
        assert {method for method, _, _ in memory.log} == {"PUT"}
        assert 40 <= len(memory.log) <= 65
        await candidate.stop()

    run_virtual(scenario())


def test_a_lease_found_for_the_first_time_has_its_whole_duration() -> None:
    """However old it says it is: clocks of others mean nothing."""

    async def scenario() -> None:
        memory = Memory()
        spec = {"holderIdentity": "dead", "leaseDurationSeconds": 15, "renewTime": "2001-01-01T00:00:00.000000Z"}
        memory._store(LEASE, {"metadata": {"name": "purelb-allocator"}, "spec": spec})
        candidate = Candidate("me", memory)
        candidate.start()
        while not candidate.working:
            await asyncio.sleep(0.1)
        assert 15 <= virtual_clock() <= 15 + 2.6
        await candidate.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("spec", [None, {}, {"holderIdentity": None, "leaseDurationSeconds": None}])
def test_a_lease_with_nothing_in_it_is_free(spec: dict[str, Any] | None) -> None:
    async def scenario() -> None:
        memory = Memory()
        memory._store(LEASE, {"metadata": {"name": "purelb-allocator", "annotations": None}, "spec": spec})
        candidate = Candidate("me", memory)
        candidate.start()
        await asyncio.sleep(1)
        assert candidate.working
        await candidate.stop()

    run_virtual(scenario())


@pytest.mark.spec("E2")
def test_no_refusal_ends_the_election() -> None:
    async def scenario() -> None:
        memory = Memory()
        candidate = Candidate("me", memory)
        candidate.connection.errors = [
            Forbidden("no", status=403),
            Throttled("later", status=429),
            Unavailable("gone"),
        ]
        candidate.start()
        await asyncio.sleep(10)
        assert candidate.working
        await candidate.stop()

    run_virtual(scenario())


def test_a_leader_that_lost_its_term_stands_back_and_may_come_again() -> None:
    async def scenario() -> None:
        memory = Memory()
        calls: list[float] = []

        async def lead() -> None:
            calls.append(virtual_clock())
            if len(calls) == 1:
                raise TermLost("another one raised the term")
            await asyncio.sleep(1e6)

        first, second = Candidate("first", memory), Candidate("second", memory)
        first.start(lead)
        await asyncio.sleep(0.1)
        second.start()
        await asyncio.sleep(3.9)
        assert leaders([first, second]) == ["second"], "the other has its chance first"
        await second.stop()
        await asyncio.sleep(10)
        assert len(calls) == 2
        await first.stop()

    run_virtual(scenario())


def test_a_failure_of_the_work_ends_the_election_and_frees_the_lease() -> None:
    async def scenario() -> None:
        memory = Memory()

        async def lead() -> None:
            raise ZeroDivisionError

        candidate = Candidate("me", memory)
        candidate.start(lead)
        assert candidate.task is not None
        with pytest.raises(ZeroDivisionError):
            await candidate.task
        assert memory.objects[LEASE]["spec"]["holderIdentity"] == ""

    run_virtual(scenario())


# A node's own Lease.


def held(memory: Memory, **options: Any) -> tuple[Connection, HeldLease]:
    connection = Connection(memory)
    lease = HeldLease(connection, "n1", clock=virtual_clock, rng=random.Random(1), **options)
    return connection, lease


@pytest.mark.spec("C5")
def test_a_node_renews_its_lease_every_two_seconds_for_ten() -> None:
    async def scenario() -> None:
        memory = Memory()
        _, lease = held(memory, annotations={"purelb.io/subnets": "192.0.2.0/24"})
        task = asyncio.create_task(lease.run())
        valid = [lease.valid]
        await asyncio.sleep(0.1)
        assert [*valid, lease.valid] == [False, True]
        stored = memory.objects[NODE_LEASE]
        assert stored["spec"]["holderIdentity"] == "n1"
        assert stored["spec"]["leaseDurationSeconds"] == 10
        assert stored["metadata"]["annotations"] == {"purelb.io/subnets": "192.0.2.0/24"}
        memory.log.clear()
        await asyncio.sleep(60)
        assert 29 <= len(memory.log) <= 34
        assert {method for method, _, _ in memory.log} == {"PATCH"}
        task.cancel()

    run_virtual(scenario())


@pytest.mark.spec("C5")
def test_changed_subnets_are_written_at_once() -> None:
    async def scenario() -> None:
        memory = Memory()
        _, lease = held(memory, annotations={"purelb.io/subnets": "192.0.2.0/24", "purelb.io/x": "1"})
        task = asyncio.create_task(lease.run())
        await asyncio.sleep(0.1)
        lease.set_annotations({"purelb.io/subnets": "192.0.2.0/24,2001:db8::/64"})
        await asyncio.sleep(0.01)
        assert memory.objects[NODE_LEASE]["metadata"]["annotations"] == {
            "purelb.io/subnets": "192.0.2.0/24,2001:db8::/64"
        }
        task.cancel()

    run_virtual(scenario())


def test_validity_ends_by_our_clock_when_renewals_fail() -> None:
    async def scenario() -> None:
        memory = Memory()
        connection, lease = held(memory)
        task = asyncio.create_task(lease.run())
        await asyncio.sleep(4.5)
        connection.away = True
        await asyncio.sleep(5.4)
        valid = [lease.valid]
        await asyncio.sleep(5)
        valid.append(lease.valid)
        connection.away = False
        await asyncio.sleep(4)
        assert [*valid, lease.valid] == [True, False, True]
        task.cancel()

    run_virtual(scenario())


@pytest.mark.spec("C5")
def test_one_lost_renewal_does_not_cost_the_lease() -> None:
    async def scenario() -> None:
        memory = Memory()
        connection, lease = held(memory)
        task = asyncio.create_task(lease.run())
        await asyncio.sleep(1)
        for _ in range(30):
            connection.errors = [Unavailable("x"), Unavailable("x")]
            await asyncio.sleep(7)
            assert lease.valid
        task.cancel()

    run_virtual(scenario())


@pytest.mark.spec("C5")
def test_answers_that_take_seconds_do_not_cost_the_lease() -> None:
    async def scenario() -> None:
        memory = Memory()
        connection, lease = held(memory)
        task = asyncio.create_task(lease.run())
        await asyncio.sleep(1)
        connection.latency = lambda: 1.5
        for _ in range(60):
            await asyncio.sleep(1)
            assert lease.valid
        task.cancel()

    run_virtual(scenario())


@pytest.mark.spec("C6")
def test_closing_deletes_the_lease_but_not_that_of_a_successor() -> None:
    async def scenario() -> None:
        memory = Memory()
        _, old = held(memory)
        _, new = held(memory)
        await old.renew()
        await new.renew()
        await old.close()
        assert NODE_LEASE in memory.objects, "the new agent of this node has renewed it"
        await new.close()
        assert NODE_LEASE not in memory.objects
        assert not new.valid
        await new.close()

    run_virtual(scenario())


@pytest.mark.spec("C6")
def test_closing_deletes_the_lease_although_a_renewal_was_under_way() -> None:
    async def scenario() -> None:
        memory = Memory()
        connection, lease = held(memory)
        await lease.renew()
        connection.lose_answers = True
        renewing = asyncio.create_task(lease.renew())
        await asyncio.sleep(0.1)
        renewing.cancel()
        connection.lose_answers = False
        await lease.close()
        assert NODE_LEASE not in memory.objects

    run_virtual(scenario())


def test_a_deleted_lease_comes_back_with_the_next_renewal() -> None:
    async def scenario() -> None:
        memory = Memory()
        _, lease = held(memory, annotations={"purelb.io/subnets": "a"})
        lease.set_annotations({"purelb.io/subnets": "b"})
        task = asyncio.create_task(lease.run())
        await asyncio.sleep(0.1)
        memory.objects.clear()
        await asyncio.sleep(2.1)
        assert memory.objects[NODE_LEASE]["metadata"]["annotations"] == {"purelb.io/subnets": "b"}
        task.cancel()

    run_virtual(scenario())


# Liveness.


class Leases:
    """What Liveness reads of a reflector."""

    def __init__(self) -> None:
        self.views: dict[ObjectKey, LeaseView] = {}
        self.callback: Callable[[Change, LeaseView | None, LeaseView | None], None] = lambda *_: None
        self.version = 0

    def items(self) -> dict[ObjectKey, LeaseView]:
        return self.views

    def on_change(self, callback: Callable[[Change, LeaseView | None, LeaseView | None], None]) -> None:
        self.callback = callback

    def renew(self, name: str, *, holder: str = "x", duration_s: float = 10) -> None:
        self.version += 1
        key = ("purelb-system", name)
        old = self.views.get(key)
        new = LeaseView(name, "purelb-system", name, str(self.version), holder, duration_s, "1999-01-01T00:00:00Z")
        self.views[key] = new
        self.callback(Change.MODIFIED if old else Change.ADDED, old, new)

    def delete(self, name: str) -> None:
        old = self.views.pop(("purelb-system", name))
        self.callback(Change.DELETED, old, None)


class Watcher:
    """A Liveness by a hand-moved clock, and what it told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.leases = Leases()
        self.liveness = Liveness(self.leases, clock=lambda: self.now)
        self.told: list[tuple[float, list[str], list[str]]] = []
        self.liveness.on_change(lambda joined, left: self.told.append((self.now, sorted(joined), sorted(left))))

    def pass_time(self, seconds: float, *renewing: str) -> None:
        """Time passes in tenths; those named renew every 2 s."""
        for step in range(1, round(seconds * 10) + 1):
            self.now += 0.1
            if step % 20 == 0:
                for name in renewing:
                    self.leases.renew(name)
            self.liveness.check()


@pytest.mark.spec("C5", "C6")
def test_a_node_that_stops_renewing_is_dead_after_its_duration() -> None:
    watcher = Watcher()
    for name in ("purelb-node-a", "purelb-node-b", "purelb-allocator"):
        watcher.leases.renew(name)
    watcher.pass_time(20, "purelb-node-a", "purelb-node-b")
    assert watcher.liveness.live() == {"a", "b"}
    watcher.told.clear()
    died = watcher.now
    watcher.pass_time(9.8, "purelb-node-a")
    assert watcher.liveness.live() == {"a", "b"}
    watcher.pass_time(0.4, "purelb-node-a")
    assert watcher.liveness.live() == {"a"}
    [(at, joined, left)] = watcher.told
    assert (joined, left) == ([], ["b"])
    assert at == pytest.approx(died + 10, abs=0.15)


@pytest.mark.spec("C6")
def test_a_deleted_lease_is_a_death_at_once_and_so_is_one_given_back() -> None:
    watcher = Watcher()
    watcher.leases.renew("purelb-node-a")
    watcher.leases.renew("purelb-node-b")
    watcher.leases.delete("purelb-node-a")
    assert watcher.liveness.live() == {"b"}
    watcher.leases.renew("purelb-node-b", holder="")
    assert watcher.liveness.live() == frozenset()
    assert [left for _, _, left in watcher.told] == [[], [], ["a"], ["b"]]


@pytest.mark.spec("C14")
def test_silence_of_the_api_server_kills_nobody() -> None:
    """Ten minutes without any renewal: all are as alive as before. Then each has its full duration to speak up."""
    watcher = Watcher()
    nodes = [f"purelb-node-{name}" for name in "abc"]
    for name in nodes:
        watcher.leases.renew(name)
    watcher.pass_time(10, *nodes)
    watcher.pass_time(600)
    assert watcher.liveness.live() == {"a", "b", "c"}
    assert not watcher.liveness.judging
    watcher.leases.renew("purelb-node-a")
    assert watcher.liveness.live() == {"a", "b", "c"}, "the others' renewals are on their way"
    watcher.pass_time(9, "purelb-node-a", "purelb-node-b")
    assert watcher.liveness.live() == {"a", "b", "c"}
    watcher.pass_time(2, "purelb-node-a", "purelb-node-b")
    assert watcher.liveness.live() == {"a", "b"}, "and who stays silent is dead"
    assert [left for _, _, left in watcher.told if left] == [["c"]]


@pytest.mark.parametrize("gap_s", [0.5, 2, 3, 4, 5, 6, 9, 12, 30])
def test_a_hiccup_of_any_length_kills_no_live_node(gap_s: float) -> None:
    """Every node renews every 2 s, and after the gap within 2 s of it, at its own time."""
    for seed in range(20):
        rng = random.Random(seed)
        watcher = Watcher()
        nodes = [f"purelb-node-{i}" for i in range(4)]
        phases = {name: rng.uniform(0, 2) for name in nodes}
        for name in nodes:
            watcher.leases.renew(name)
        start = watcher.now
        due = {name: start + phases[name] for name in nodes}
        while watcher.now < start + 60:
            watcher.now += 0.1
            silent = start + 20 <= watcher.now < start + 20 + gap_s
            for name in nodes:
                if watcher.now >= due[name]:
                    due[name] = watcher.now + (1.0 if silent else 2.0)
                    if not silent:
                        watcher.leases.renew(name)
            watcher.liveness.check()
        assert [left for _, _, left in watcher.told if left] == []


def test_a_lease_seen_first_is_live_for_its_duration_then_judged() -> None:
    watcher = Watcher()
    watcher.leases.renew("purelb-node-old")
    watcher.leases.renew("purelb-node-me")
    assert watcher.liveness.live() == {"old", "me"}
    watcher.pass_time(9.5, "purelb-node-me")
    assert watcher.liveness.live() == {"old", "me"}
    watcher.pass_time(1, "purelb-node-me")
    assert watcher.liveness.live() == {"me"}


@pytest.mark.parametrize(("claimed", "expected"), [(0, 10.0), (5, 5.0), (10**9, 300.0)])
def test_the_duration_a_node_claims_is_bounded(claimed: float, expected: float) -> None:
    watcher = Watcher()
    watcher.leases.renew("purelb-node-a", duration_s=claimed)
    assert watcher.liveness.next_expiry() == watcher.now + expected


def test_leases_of_others_are_no_nodes() -> None:
    watcher = Watcher()
    watcher.leases.renew("purelb-allocator")
    watcher.leases.renew("kube-scheduler")
    assert watcher.liveness.live() == frozenset()
    assert watcher.liveness.next_expiry() is None


def test_it_wakes_by_itself_when_a_node_expires() -> None:
    async def scenario() -> None:
        leases = Leases()
        liveness = Liveness(leases, clock=virtual_clock)
        told: list[tuple[float, frozenset[str]]] = []
        liveness.on_change(lambda joined, left: told.append((virtual_clock(), left)))
        task = asyncio.create_task(liveness.run())
        leases.renew("purelb-node-b")
        for _ in range(20):
            leases.renew("purelb-node-a")
            await asyncio.sleep(1)
        [(at, left)] = [entry for entry in told if entry[1]]
        assert (round(at, 2), left) == (10.0, frozenset("b"))
        # Nothing renews any more: it must neither judge nor spin.
        await asyncio.sleep(1000)
        assert liveness.live() == {"a"}
        task.cancel()

    run_virtual(scenario())
