"""The engine under any interleaving of users, a lagging watch, late and unanswered writes, nodes, crashes, failover.

Rules play one move each of the cluster, the nodes or the allocator; after every move no address may be shown by, or
booked for, two Services. In the end everything is given time and a working cluster, and then book and cluster must
agree, nothing may be waiting that could be served, and a new leader must find nothing to do.
"""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from purelb_sm.allocator.engine import Engine
from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address, AddressRange, Family, family_of
from purelb_sm.domain.book import Plan, Publication
from purelb_sm.domain.freespace import FreeSpace
from purelb_sm.domain.groups import DEFAULT_QUARANTINE_S, Group
from purelb_sm.domain.publication import branded, current_condition, shown_addresses
from purelb_sm.domain.reports import NodeReport, ReportedAddress
from purelb_sm.domain.reservations import Reservations, parse_reserved
from purelb_sm.domain.states import AllocationState, AnnouncementState
from purelb_sm.domain.views import Ingress, ObjectView, ServiceKey, ServiceView
from purelb_sm.errors import DatabaseUnavailable, InvalidInput, TermLost
from purelb_sm.store import Book, Unit, schema
from purelb_sm.store.audit import Audit, Filter, HistoryRow
from purelb_sm.store.engine import make_engine
from purelb_sm.store.reserving import Registrar
from tests.support.domain import NOW, group_view, pools, service
from tests.support.replay import history_gives_the_states
from tests.support.search import SEARCH_TIMES

KEYS = [ServiceKey("test", "a"), ServiceKey("test", "b"), ServiceKey("tenant", "c")]
NODES = ("node1", "node2")
FAMILIES = [
    (("IPv4",), "SingleStack"),
    (("IPv4", "IPv6"), "RequireDualStack"),
    (("IPv4", "IPv6"), "PreferDualStack"),
    (("IPv6", "IPv4"), "PreferDualStack"),
]
SPECS: list[Any] = [
    None,
    pools("10.0.0.1-10.0.0.1", "fd30::1-fd30::1", quarantine="0s"),
    pools("10.0.0.1-10.0.0.3", "fd30::1-fd30::2", quarantine="10s"),
    pools("10.0.0.2-10.0.0.4", quarantine="10s"),
    pools("10.0.0.1-10.0.0.2", "fd30::1-fd30::1", quarantine="10s", kind="remote"),
    {"local": {"v4pools": "junk"}},
    pools("10.0.0.1-10.0.0.4", "fd30::1-fd30::3", quarantine="10s") | {"maxPerNamespace": 1},
    pools("10.0.0.1-10.0.0.2", "10.0.0.3-10.0.0.4", "fd30::1-fd30::1", quarantine="10s", kind="remote", multiPool=True),
    pools("10.0.0.3-10.0.0.4", quarantine="10s") | {"namespaces": ["tenant"], "enforceNamespaces": True},
    pools("10.0.0.1-10.0.0.2", "10.0.1.1-10.0.1.2", quarantine="30s", multiPool=True),
    pools("10.0.1.1-10.0.1.2", "10.0.0.2-10.0.0.3", quarantine="10s", balancePools=True),
]
SUBNETS = [
    frozenset(ip_network(text) for text in some) for some in ([], ["10.0.0.0/24"], ["10.0.0.0/24", "10.0.1.0/24"])
]
WISHES = ["", "", "10.0.0.1", "10.0.0.2", "10.0.0.3,fd30::1", "junk"]
GROUPS = ("default", "other")
MOVES = ["come", "go", "come", "go", "again", "ClusterIP", "LoadBalancer", "turn", "other", "deleting", "unbrand"]
MOVES += ["touch", "families", "wish", "group", "group", "anew", "anew"]
RESERVED = [parse_reserved(text) for text in ("10.0.0.1", "10.0.0.2", "10.0.0.1-10.0.0.3", "10.0.0.3", "fd30::/64")]
SETTLE_S = 3.0


@dataclass
class Kernel:
    """A node: what its kernel holds, and the reports it has written."""

    name: str
    incarnation: int = 0
    sequence: int = 0
    holds: set[Address] = field(default_factory=set)
    alive: bool = True
    reports: list[NodeReport] = field(default_factory=list)

    def write(self, now: Any) -> None:
        self.sequence += 1
        shown = tuple(ReportedAddress(a, "eth0", 24, AnnouncementState.PRESENT, now, 20) for a in sorted_(self.holds))
        started = NOW + timedelta(microseconds=self.incarnation)
        self.reports.append(NodeReport(self.name, str(self.incarnation), started, self.sequence, shown, ()))


def sorted_(addresses: set[Address]) -> list[Address]:
    return sorted(addresses, key=lambda a: (a.version, int(a)))


@dataclass
class Leader:
    """An allocator that leads, or believes to: its engine, its watch's idea of the cluster, its writes under way."""

    engine: Engine
    book: Book
    cache: dict[ServiceKey, ServiceView]
    flying: list[Publication] = field(default_factory=list)
    deposed: bool = False


@dataclass(frozen=True)
class Rest:
    """An address in quarantine: for whom it is kept, and until when at least."""

    claim: str
    until: datetime


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(
            tempfile.mkdtemp(prefix="plb-machine-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        )
        self.url = f"sqlite:///{self.folder / 'book.db'}"
        shutil.copyfile(template(), self.folder / "book.db")
        self.reader = sqlite3.connect(self.folder / "book.db")
        self.registrar = Registrar(make_engine(self.url), "a person")
        self.reserved: list[AddressRange] = []
        self.now = NOW
        self.versions = itertools.count(100)
        self.uids = itertools.count(1)
        self.cluster: dict[ServiceKey, ServiceView] = {}
        self.groups: dict[str, ObjectView] = {}
        self.kernels = {name: Kernel(name) for name in NODES}
        self.subnets = SUBNETS[-1]
        self.rests: dict[Address, Rest] = {}
        self.leader: Leader = self.new_leader()
        self.old: list[Leader] = []
        self.late: list[tuple[Leader, Publication]] = []

    def teardown(self) -> None:
        try:
            self.converge()
        finally:
            for leader in (self.leader, *self.old):
                leader.book.close()
            self.reader.close()
            self.registrar.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- the allocator ------------------------------------------------------------------------------------------

    def new_leader(self) -> Leader:
        book = Book.open(self.url, actor="machine")
        term = book.raise_term(self.now)
        engine = Engine(
            book,
            term,
            clock=lambda: self.now,
            load_balancer_class=names.LOAD_BALANCER_CLASS,
            default_class=True,
            settle_s=SETTLE_S,
        )
        leader = Leader(engine, book, dict(self.cluster))
        self.look_at_groups(leader)
        engine.set_reach(self.subnets)
        return leader

    def look_at_groups(self, leader: Leader) -> None:
        leader.engine.set_groups(list(self.groups.values()))

    def plan(self, leader: Leader, keys: list[ServiceKey]) -> list[Plan]:
        try:
            made = leader.engine.plan_batch({key: leader.cache.get(key) for key in keys})
        except TermLost:
            assert leader is not self.leader
            leader.deposed = True
            return []
        assert [m.key for m in made] == keys, "a key was left out of its batch"
        for each in made:
            if each.publication is not None:
                leader.flying.append(each.publication)
        return made

    def deliver(self, leader: Leader, publication: Publication, *, answered: bool = True) -> bool:
        """What the API server does with a status patch; True where it took it."""
        current = self.cluster.get(publication.key)
        if (
            current is None
            or current.uid != publication.uid
            or current.resource_version != publication.resource_version
        ):
            return False
        written = taken(current, publication, str(next(self.versions)))
        self.cluster[publication.key] = written
        if answered and (cached := leader.cache.get(publication.key)) is not None and cached.uid == written.uid:
            leader.cache[publication.key] = written
        return True

    # -- rules: users -------------------------------------------------------------------------------------------

    @initialize(spec=st.sampled_from(SPECS[1:4]), asking=st.integers(0, 7), agents=st.booleans())
    def begin(self, spec: Any, asking: int, agents: bool) -> None:
        """Most searches begin where something is held. Without agents, a status alone says that it is."""
        for kernel in self.kernels.values():
            kernel.alive = agents
        self.change_group("default", spec)
        self.look_at_groups(self.leader)
        for number, key in enumerate(KEYS):
            if asking >> number & 1:
                self.create(key, FAMILIES[0], "")
        self.work()

    @rule(
        key=st.sampled_from(KEYS),
        move=st.sampled_from(MOVES),
        families=st.sampled_from(FAMILIES),
        wish=st.sampled_from(WISHES),
    )
    def a_user_does(self, key: ServiceKey, move: str, families: Any, wish: str) -> None:
        view = self.cluster.get(key)
        if view is None:
            self.create(key, families, wish)
        elif move in ("go", "again"):
            del self.cluster[key]
            if move == "again":
                self.create(key, families, wish)
        elif not view.deleting:
            self.put(key, edited(view, move, families, wish))

    def create(self, key: ServiceKey, families: Any, wish: str) -> None:
        self.cluster[key] = service(
            key=key,
            uid=f"uid-{next(self.uids)}",
            resource_version=str(next(self.versions)),
            ip_families=families[0],
            ip_family_policy=families[1],
            annotations={names.ADDRESSES: wish} if wish else {},
        )

    def put(self, key: ServiceKey, view: ServiceView) -> None:
        self.cluster[key] = replace(view, resource_version=str(next(self.versions)))

    @rule(name=st.sampled_from(GROUPS), spec=st.sampled_from(SPECS), seen=st.booleans())
    def a_group_changes(self, name: str, spec: Any, seen: bool) -> None:
        self.change_group(name, spec)
        if seen:
            self.look_at_groups(self.leader)

    def change_group(self, name: str, spec: Any) -> None:
        self.groups.pop(name, None)
        if spec is not None:
            self.groups[name] = replace(group_view(name, spec), uid=f"g{next(self.uids)}", created_at=self.now)

    # -- rules: reservations ------------------------------------------------------------------------------------

    @rule(
        range_=st.sampled_from(RESERVED),
        key=st.sampled_from([None, *KEYS]),
        seconds=st.sampled_from([None, None, 5, 30]),
        works=st.booleans(),
    )
    def a_person_reserves(self, range_: AddressRange, key: ServiceKey | None, seconds: int | None, works: bool) -> None:
        until = None if seconds is None else self.now + timedelta(seconds=seconds)
        with suppress(InvalidInput):
            self.registrar.reserve(range_, key, "why not", until, self.now)
            self.reserved.append(range_)
        if works:
            self.work()

    @precondition(lambda self: self.reserved)
    @rule(which=st.integers(0, 5), works=st.booleans())
    def a_person_lifts(self, which: int, works: bool) -> None:
        with suppress(InvalidInput):
            self.registrar.unreserve(self.reserved.pop(which % len(self.reserved)), self.now)
        if works:
            self.work()

    def in_force(self) -> Reservations:
        return Reservations(each.reservation for each in self.registrar.recorded(self.now, ended=False))

    # -- rules: the allocator -----------------------------------------------------------------------------------

    @rule(seen=st.integers(0, 7), backwards=st.booleans())
    def a_batch(self, seen: int, backwards: bool) -> None:
        """The watch has brought some of what is new, and all is planned; the writes are under way."""
        self.catch_up({key for number, key in enumerate(KEYS) if seen >> number & 1})
        self.plan(self.leader, KEYS[::-1] if backwards else KEYS)

    def catch_up(self, keys: Iterable[ServiceKey]) -> None:
        for key in keys:
            if key in self.cluster:
                self.leader.cache[key] = self.cluster[key]
            else:
                self.leader.cache.pop(key, None)

    @rule()
    def work(self) -> None:
        """An undisturbed moment: the watch is up to date, everything is planned, and every new write is taken."""
        under_way, self.leader.flying = self.leader.flying, []
        self.catch_up(KEYS)
        self.plan(self.leader, KEYS)
        self.all_writes()
        self.leader.flying = under_way

    def all_writes(self) -> None:
        while self.leader.flying:
            self.deliver(self.leader, self.leader.flying.pop(0))

    @precondition(lambda self: self.leader.flying)
    @rule(which=st.integers(0, 5), fate=st.sampled_from(["taken", "taken", "unanswered", "lost"]))
    def a_write_arrives(self, which: int, fate: str) -> None:
        publication = self.leader.flying.pop(which % len(self.leader.flying))
        if fate != "lost":
            self.deliver(self.leader, publication, answered=fate == "taken")

    @precondition(lambda self: self.late)
    @rule(which=st.integers(0, 5))
    def a_write_of_a_former_leader_arrives(self, which: int) -> None:
        leader, publication = self.late.pop(which % len(self.late))
        self.deliver(leader, publication, answered=False)

    @precondition(lambda self: self.old)
    @rule()
    def a_former_leader_goes_on(self) -> None:
        """It was only stopped, and knows of nothing."""
        old = self.old[-1]
        self.plan(old, KEYS)
        assert old.deposed
        assert not old.flying

    @rule(crashed=st.booleans())
    def another_leads(self, crashed: bool) -> None:
        """What the former one has under way may still arrive."""
        self.late += [(self.leader, publication) for publication in self.leader.flying]
        self.leader.flying = []
        if crashed:
            self.leader.book.close()
        else:
            self.old.append(self.leader)
        self.leader = self.new_leader()

    def release_pass(self) -> None:
        cache = self.leader.cache

        def shows(key: ServiceKey, address: Address) -> bool:
            view = cache.get(key)
            return view is not None and str(address) in {entry.ip for entry in view.ingress}

        ((head,),) = self.reader.execute("SELECT MAX(seq) FROM history")
        try:
            self.leader.engine.release_pass(shows, frozenset(NODES))
        finally:
            self.a_quarantine_begins(head)

    def a_quarantine_begins(self, head: int) -> None:
        """Of what was given up since that row of history, and was not shared."""
        select = """SELECT a.address_text, a.claim, a.group_name, a.state, a.quarantined_until FROM allocation a
            JOIN history h ON h.address = a.address_text
            WHERE h.trigger = 'confirm_release' AND h.seq > ? AND a.sharing_key IS NULL ORDER BY a.id"""
        # Of an address that was given several times, the last row is the one that was just given up.
        given_up = {row[0]: row[1:] for row in self.reader.execute(select, (head,))}
        for address, (claim, group, state, until) in given_up.items():
            of = self.leader.engine._groups.get(group)
            rests_s = of.quarantine_s if of else DEFAULT_QUARANTINE_S
            rest = Rest(claim, self.now + timedelta(seconds=rests_s))
            self.rests[ip_address(address)] = rest
            assert not rests_s or (state == "quarantined" and datetime.fromisoformat(until) >= rest.until)

    @rule(kept=st.booleans(), releases=st.booleans(), seen=st.booleans())
    def the_database_goes_away(self, kept: bool, releases: bool, seen: bool) -> None:
        """In the middle of COMMIT: the allocator does not know whether it was kept, and asks again."""
        real = Unit.commit

        def cut(unit: Unit) -> None:
            if kept:
                real(unit)
            raise DatabaseUnavailable("cut off in the middle of COMMIT")

        if seen:
            self.catch_up(KEYS)
        with mock.patch.object(Unit, "commit", cut), suppress(DatabaseUnavailable):
            self.release_pass() if releases else self.plan(self.leader, KEYS)

    # -- rules: time and nodes ----------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 4, 11]))
    def time_passes(self, seconds: int) -> None:
        # Agents act on what Services show within the time that a release settles in.
        for kernel in self.kernels.values():
            self.node_acts(kernel)
        self.now += timedelta(seconds=seconds)
        self.release_pass()

    @rule()
    def a_quiet_while(self) -> None:
        """Nothing is planned, but whatever can be released is."""
        for seconds in (4, 400, 1):
            self.time_passes(seconds)

    def node_acts(self, kernel: Kernel) -> None:
        """Every node holds what any branded Service shows: harder on releases than an election would be."""
        wanted = {a for v in self.cluster.values() if branded(v) for a in shown_addresses(v)}
        if kernel.alive and kernel.holds != wanted:
            kernel.holds = wanted
            kernel.write(self.now)
            self.leader.engine.take_reports(kernel.reports[-1:])

    @rule(subnets=st.sampled_from(SUBNETS))
    def nodes_come_and_go(self, subnets: frozenset[Any]) -> None:
        """By their Leases: what a multi-pool Service may have changes, and nobody loses anything."""
        self.subnets = subnets
        self.leader.engine.set_reach(subnets)

    @rule(node=st.sampled_from(NODES), what=st.sampled_from(["acts", "acts", "silent", "restarted", "repeated"]))
    def a_node(self, node: str, what: str) -> None:
        kernel = self.kernels[node]
        if what == "acts":
            self.node_acts(kernel)
        elif what == "silent":
            kernel.alive = False
            self.leader.engine.lose_nodes([node], "its Lease lapsed")
        elif what == "restarted":
            kernel.alive, kernel.sequence = True, 0
            kernel.incarnation += 1
            kernel.write(self.now)
            self.leader.engine.take_reports(kernel.reports[-1:])
        elif len(kernel.reports) > 2:
            self.leader.engine.take_reports(kernel.reports[-2:-1])
            self.leader.engine.take_reports(kernel.reports[-1:])

    # -- what must always be so ---------------------------------------------------------------------------------

    @invariant()
    def no_address_is_shown_by_two(self) -> None:
        shown = Counter(a for view in self.cluster.values() for a in shown_addresses(view))
        twice = [str(a) for a, count in shown.items() if count > 1]
        assert not twice, f"{twice} shown by two Services"

    @invariant()
    def what_is_shown_is_booked_for_it(self) -> None:
        owners = self.owners()
        for key, view in self.cluster.items():
            for address in shown_addresses(view):
                assert owners.get(address) == str(key), f"{key} shows {address}, booked for {owners.get(address)}"

    def owners(self) -> dict[Address, str]:
        """Claims of everything that is not released."""
        rows = self.reader.execute("SELECT address_text, claim FROM allocation WHERE released_at IS NULL")
        return {ip_address(address): claim for address, claim in rows}

    @invariant()
    def what_is_in_quarantine_is_nobody_elses(self) -> None:
        """Until its time is over, whatever happens to its group meanwhile."""
        rows = self.reader.execute("SELECT address_text, state, claim FROM allocation WHERE released_at IS NULL")
        now = {ip_address(address): (state, claim) for address, state, claim in rows}
        for address, rest in list(self.rests.items()):
            state, claim = now.get(address, ("released", ""))
            if self.now < rest.until:
                assert claim == rest.claim, f"{address} is {state} {claim}, and kept for {rest.claim}"
            if state != "quarantined":
                del self.rests[address]

    @invariant()
    def every_transition_is_one_row_of_history(self) -> None:
        history_gives_the_states(self.reader.execute)

    @invariant()
    def free_space_is_what_the_book_says(self) -> None:
        world = self.leader.engine._world
        if world is None:
            return
        fresh = FreeSpace(world.groups)
        fresh.take_all(self.owners())
        fresh.reserve(self.leader.engine._keeping.closed)
        for group in world.groups.values():
            for family in Family:
                assert world.free.counts(group.name, family) == fresh.counts(group.name, family)
                assert world.free.reserved(group.name, family) == fresh.reserved(group.name, family)
                assert world.free.lowest(group.name, family) == fresh.lowest(group.name, family)

    @invariant()
    def counters_are_what_the_book_says(self) -> None:
        engine = self.leader.engine
        world = engine._world
        if world is None:
            return
        columns = "address_text, group_name, state, quarantined_until"
        rows = list(self.reader.execute(f"SELECT {columns} FROM allocation WHERE released_at IS NULL"))
        live = [(ip_address(a), str(g), AllocationState(s)) for a, g, s, _ in rows]
        rests = [(str(g), family_of(ip_address(a)), datetime.fromisoformat(u)) for a, g, _, u in rows if u]
        for group in {g for _, g, _ in live} | set(world.groups):
            usage = engine._usage.of(group, world.free)
            for family in Family:
                mine = [(a, s) for a, g, s in live if g == group and family_of(a) is family]
                held = sum(s is AllocationState.HELD for _, s in mine)
                orphaned = sum(world.free.locate(a) is None for a, _ in mine)
                found = usage.of(family)
                assert (found.held, found.quarantined, found.orphaned) == (held, len(mine) - held, orphaned)
                until = [u for g, f, u in rests if (g, f) == (group, family)]
                assert world.outlook.of(group, family) == (len(until), min(until, default=None))

    @invariant()
    def what_a_namespace_holds_is_what_the_book_says(self) -> None:
        world = self.leader.engine._world
        if world is None or not world.quota.limits:
            return
        select = (
            "SELECT DISTINCT s.namespace, a.group_name, a.id FROM membership m JOIN service s ON s.uid = m.service_uid"
            " JOIN allocation a ON a.id = m.allocation_id WHERE m.until_at IS NULL"
        )
        held = Counter((str(namespace), str(group)) for namespace, group, _ in self.reader.execute(select))
        for namespace in {key.namespace for key in KEYS}.difference(world.quota.unknown(k.namespace for k in KEYS)):
            for group in world.quota.limits:
                assert world.quota.held(namespace, group) == held[(namespace, group)]

    # -- the end ------------------------------------------------------------------------------------------------

    def converge(self) -> None:
        for kernel in self.kernels.values():
            kernel.alive = True
        self.look_at_groups(self.leader)
        self.nodes_come_and_go(SUBNETS[-1])
        made: list[Plan] = []
        for _ in range(12):
            self.catch_up(KEYS)
            made = self.plan(self.leader, KEYS)
            self.all_writes()
            for kernel in self.kernels.values():
                self.node_acts(kernel)
                kernel.write(self.now)
                self.leader.engine.take_reports(kernel.reports[-1:])
            self.release_pass()
            self.now += timedelta(seconds=400)
            self.no_address_is_shown_by_two()
        assert all(each.silent for each in made), f"no end of it: {made}"
        self.book_and_cluster_agree(made)
        self.a_new_leader_finds_nothing_to_do()
        self.the_history_holds()

    def book_and_cluster_agree(self, made: list[Plan]) -> None:
        waiting = {each.key for each in made if each.waiting}
        owners = self.owners()
        shown = {a: str(k) for k, v in self.cluster.items() for a in shown_addresses(v)}
        assert owners == shown, "what is booked is not what is shown"
        groups = dict(self.leader.engine._groups)
        for key, view in self.cluster.items():
            ours = view.type == "LoadBalancer" and view.load_balancer_class is None and not view.deleting
            if not ours:
                assert not view.ingress
                assert not set(view.annotations) & set(names.OURS)
                assert current_condition(view) is None
                continue
            assert names.RE_EVALUATE not in view.annotations
            condition = current_condition(view)
            assert condition is not None
            assert (condition.status == "False") == (key in waiting)
            if condition.status == "True":
                families = {family_of(a).value for a in shown_addresses(view)}
                assert families == set(view.ip_families) or view.ip_family_policy == "PreferDualStack"
            else:
                self.could_not_be_served(view, groups)

    def could_not_be_served(self, view: ServiceView, groups: dict[str, Group]) -> None:
        """A plain request for the default group waits only while there is nothing free for it."""
        if view.annotations.get(names.ADDRESSES) or view.annotations.get(names.SERVICE_GROUP) or view.ingress:
            return
        group, world = groups.get("default"), self.leader.engine._world
        assert world is not None
        bindings, namespace = world.bindings, view.key.namespace
        if group is None or bindings.barrier(namespace, "default") or bindings.default_group(namespace) != "default":
            return
        limit, has = group.rule.max_per_namespace, world.quota.held(namespace, "default")
        if limit is not None and has + len([f for f in view.ip_families if group.pools_of(Family(f))]) > limit:
            return
        taken_, reserved = set(self.owners()), self.in_force()
        wanted = [Family(f) for f in view.ip_families]

        def to_be_had(address: Address) -> bool:
            return address not in taken_ and not reserved.keeps_from(address, view.key)

        free = {f: any(to_be_had(a) for p in group.pools_of(f) for a in each(p.range)) for f in wanted}
        served = [f for f in wanted if group.pools_of(f)]
        if view.ip_family_policy == "PreferDualStack":
            assert not served or not all(free[f] for f in served)
        else:
            assert not all(free[f] for f in wanted)

    def a_new_leader_finds_nothing_to_do(self) -> None:
        before, head = dict(self.cluster), self.leader.engine.head()
        self.another_leads(crashed=True)
        made = self.plan(self.leader, KEYS)
        assert [each for each in made if not each.silent] == []
        self.release_pass()
        assert self.cluster == before
        assert self.leader.engine.head()[0] == head[0] + 1  # the raised term

    def the_history_holds(self) -> None:
        audit = Audit.open(self.url)
        try:
            audit.verify()
            self.reservations_were_kept(audit.history(Filter()))
        finally:
            audit.close()

    def reservations_were_kept(self, history: Iterable[HistoryRow]) -> None:
        """Nobody was given what was reserved at that moment, in the order of history, but what it showed already."""
        reserved: dict[AddressRange, str] = {}
        for row in history:
            if row.kind == "reservation":
                range_ = parse_reserved(str(row.details["range"]))
                if row.to_state == "reserved":
                    reserved[range_] = f"{row.namespace}/{row.name}"
                else:
                    del reserved[range_]
            elif row.trigger in ("hold", "reclaim") and row.reason != "adopted from the cluster":
                whose = {claim for range_, claim in reserved.items() if ip_address(row.address) in range_}
                assert whose <= {f"{row.namespace}/{row.name}"}, f"row {row.seq}: {row.address} is reserved for {whose}"


def each(range_: Any) -> Iterator[Address]:
    for value in range(int(range_.first), int(range_.last) + 1):
        yield ip_address(value)


def edited(view: ServiceView, move: str, families: Any, wish: str) -> ServiceView:
    """What a user made of a Service."""
    annotations = dict(view.annotations)
    match move:
        case "ClusterIP":
            # The API server takes class and ingress away with the type.
            return replace(view, type="ClusterIP", load_balancer_class=None, ingress=())
        case "LoadBalancer":
            return replace(view, type="LoadBalancer")
        case "turn":
            # There and back before anybody has looked.
            return replace(view, type="LoadBalancer", load_balancer_class=None, ingress=())
        case "other" if view.type == "ClusterIP":
            return replace(view, type="LoadBalancer", load_balancer_class="example.com/other")
        case "deleting":
            return replace(view, deleting=True)
        case "unbrand":
            return replace(view, annotations={k: v for k, v in annotations.items() if k not in names.OURS})
        case "families" if families[0][0] == view.ip_families[0]:
            return replace(view, ip_families=families[0], ip_family_policy=families[1])
        case "wish" | "group":
            name, text = (names.ADDRESSES, wish) if move == "wish" else (names.SERVICE_GROUP, wish and "other")
            annotations.pop(name, None)
            return replace(view, annotations=annotations | ({name: text} if text else {}))
        case "anew":
            return replace(view, annotations=annotations | {names.RE_EVALUATE: "true"})
    return view


def taken(view: ServiceView, publication: Publication, version: str) -> ServiceView:
    """The Service after the API server took the publication."""
    kept = {k: v for k, v in view.annotations.items() if k not in publication.annotations}
    ours = {k: v for k, v in publication.annotations.items() if v is not None}
    ingress = view.ingress
    if publication.ingress is not None:
        ingress = tuple(Ingress(str(a), "", "VIP") for a in publication.ingress)
    if view.type != "LoadBalancer":
        ingress = ()
    conditions = view.conditions if publication.conditions is None else publication.conditions
    return replace(view, annotations=kept | ours, ingress=ingress, conditions=conditions, resource_version=version)


_template: list[Path] = []


def template() -> Path:
    """A database with the schema, made once."""
    if not _template:
        path = Path(tempfile.mkdtemp(prefix="plb-template-")) / "template.db"
        schema.upgrade(f"sqlite:///{path}")
        _template.append(path)
    return _template[0]


@pytest.mark.spec("A23", "A26", "A17", "A19", "A20", "A21", "B1", "B4", "B5", "E4", "E6")
def test_no_interleaving_gives_one_address_to_two_or_loses_one() -> None:
    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            max_examples=60 * SEARCH_TIMES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
