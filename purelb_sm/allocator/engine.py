"""All work on the book, for the book's own thread: one Engine serves one term of leadership.

Invariant: the free space says of every address in every accepted group whether the book has it, and what is shared
has the members and ports that the book has. Whatever may break that (a failed transaction, a new set of groups)
rebuilds both from the book before the next plan.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from purelb_sm.allocator.keeping import Keeping
from purelb_sm.domain.addresses import Address, Network, family_of
from purelb_sm.domain.announced import Announcers
from purelb_sm.domain.book import Plan, Releasing
from purelb_sm.domain.choose import World
from purelb_sm.domain.freespace import FreeSpace
from purelb_sm.domain.groups import DEFAULT_QUARANTINE_S, Group, accept_groups, parse_group
from purelb_sm.domain.outlook import NoneFree, Outlook
from purelb_sm.domain.plan import plan
from purelb_sm.domain.quota import Quota
from purelb_sm.domain.ranges import NOWHERE, Reach
from purelb_sm.domain.release import may_confirm
from purelb_sm.domain.reports import NodeReport
from purelb_sm.domain.sharing import Obstacle, Shared
from purelb_sm.domain.usage import GroupUsage, Usage
from purelb_sm.domain.views import ObjectView, ServiceKey, ServiceView
from purelb_sm.errors import DatabaseUnavailable, InvalidGroup, PurelbError, TermLost
from purelb_sm.store import Book, ReportOutcome, Unit

log = structlog.get_logger(__name__)

RELEASES_AT_ONCE = 500
OPENED_AT_ONCE = 500
"""Of the addresses that come free when a reservation ends, so many are offered first to those who wait."""
PAST_STARTS = 16
"""So many former starts of a node's agent are remembered."""


@dataclass(frozen=True, slots=True)
class GroupVerdicts:
    """What became of each ServiceGroup. `changed`: plans may come out differently now."""

    accepted: Mapping[str, Group]
    refused: Mapping[str, InvalidGroup]
    changed: bool


@dataclass(slots=True)
class ReleasePass:
    """What one look at the releases and reservations did. `again_at`: when time alone may free one more.

    claims    for whom addresses that came free are reserved
    unlocked  reservations changed: those who wait may be served now
    ended     some reservation was over
    """

    confirmed: int = 0
    freed: list[Address] = field(default_factory=list)
    claims: list[ServiceKey] = field(default_factory=list)
    unlocked: bool = False
    ended: bool = False
    waits_for: dict[Address, str] = field(default_factory=dict)
    again_at: datetime | None = None

    def not_before(self, at: datetime | None) -> None:
        if at is not None:
            self.again_at = at if self.again_at is None else min(self.again_at, at)


class Incarnations:
    """Which starts of its agent are over for a node.

    The cache shows a node's reports in the order in which they were written, so what was not seen before is newer,
    whatever the node's clock says: one that has no battery starts in the past. Only an agent that still writes after
    another one has taken its place is of the past.
    """

    def __init__(self) -> None:
        self._current: dict[str, str] = {}
        self._past: dict[str, deque[str]] = {}

    def is_past(self, report: NodeReport) -> bool:
        return report.incarnation in self._past.get(report.node, ())

    def taken(self, reports: Sequence[NodeReport]) -> None:
        for report in reports:
            before = self._current.get(report.node)
            if before not in (None, report.incarnation):
                self._past.setdefault(report.node, deque(maxlen=PAST_STARTS)).append(before)
            self._current[report.node] = report.incarnation


class Engine:
    """Synchronous, and used from one thread only. Raises TermLost from any method once another allocator leads."""

    def __init__(
        self,
        book: Book,
        term: int,
        *,
        clock: Callable[[], datetime],
        load_balancer_class: str,
        default_class: bool,
        settle_s: float,
    ) -> None:
        self.term = term
        self._book = book
        self._clock = clock
        self._class = load_balancer_class
        self._default_class = default_class
        self._settle_s = settle_s
        self._groups: dict[str, Group] = {}
        self._refused: dict[str, InvalidGroup] = {}
        self._world: World | None = None
        self._reach = NOWHERE
        self._usage = Usage({}, {})
        self._touched: set[str] = set()
        self._keeping = Keeping()
        self._incarnations = Incarnations()

    # Groups.

    def set_groups(self, views: Sequence[ObjectView]) -> GroupVerdicts:
        """Reads all ServiceGroups anew; books what is accepted when that has changed."""
        parsed: list[Group] = []
        refused: dict[str, InvalidGroup] = {}
        for view in views:
            try:
                parsed.append(parse_group(view))
            except InvalidGroup as error:
                refused[view.name] = error
            except Exception:
                # A mistake of ours must not cost the other groups.
                log.exception("group_not_understood", group=view.name)
                refused[view.name] = InvalidGroup("spec", "", "cannot be read")
        now = self._clock()
        with self._book.transaction(self.term, now) as unit:
            before = {name: group.pools for name, group in self._groups.items()} or unit.accepted_pools()
            accepted, overlapping = accept_groups(parsed, before)
            refused |= overlapping
            changed = self._world is None or accepted != self._groups or _texts(refused) != _texts(self._refused)
            if changed:
                unit.record_groups(accepted, refused)
                unit.commit()
        self._groups, self._refused = accepted, refused
        if changed:
            self._world = None
        return GroupVerdicts(accepted, refused, changed)

    def set_reach(self, subnets: frozenset[Network]) -> bool:
        """Where the live nodes are (A24). True where that is news."""
        if subnets == self._reach.subnets:
            return False
        self._reach = Reach(subnets)
        if self._world is not None:
            self._world = replace(self._world, reach=self._reach)
        return True

    def _ready_world(self, unit: Unit) -> World:
        """The world to plan in, its free space rebuilt from the book where it may be wrong."""
        keeping, world = self._keeping, self._world
        moved = keeping.read(unit)
        if world is None:
            free = FreeSpace(self._groups)
            free.take_ranges(unit.held_ranges(free.ranges()))
            world = World(
                self._groups,
                free,
                _texts(self._refused),
                self._class,
                self._default_class,
                shared=Shared(unit.shared()),
                outlook=Outlook(unit.quarantined()),
                quota=Quota.of(self._groups),
                reach=self._reach,
            )
            self._touched |= self._usage.groups() | set(self._groups) | set(self._refused)
            self._usage = Usage(unit.live_counts(), unit.orphans(free.ranges()))
            self._touched |= self._usage.groups()
        elif not moved:
            return world
        world.free.reserve(keeping.closed)
        self._touched |= set(self._groups)
        self._world = replace(world, reservations=keeping.reservations)
        return self._world

    def take_usage(self) -> dict[str, GroupUsage]:
        """The numbers of every group that may have changed since this was last asked (A28)."""
        world = self._world
        if world is None:
            with self._book.transaction(self.term, self._clock()) as unit:
                world = self._ready_world(unit)
        found = {name: self._usage.of(name, world.free) for name in self._touched}
        self._touched.clear()
        return found

    def _doubt(self) -> None:
        """A commit without an answer may have been kept: what is free and what is reserved is asked anew."""
        self._world = None
        self._keeping.forget()

    # Services.

    def plan_batch(self, views: Mapping[ServiceKey, ServiceView | None]) -> list[Plan]:
        """Plans and commits all keys in one transaction; in halves where that fails, down to the one that is to blame.

        Returns only plans that are committed. A key that cannot be planned or booked, for whatever reason, is logged
        and left out: it blocks nobody else. Raises DatabaseUnavailable: some of it may have been kept.
        """
        try:
            return self._plan_together(views)
        except (TermLost, DatabaseUnavailable):
            raise
        except Exception as error:
            if len(views) == 1:
                log.error("plan_not_booked", service=str(next(iter(views))), error=str(error), exc_info=_odd(error))
                return []
            log.warning("batch_halved", services=len(views), error=str(error))
        items = list(views.items())
        half = len(items) // 2
        return [*self.plan_batch(dict(items[:half])), *self.plan_batch(dict(items[half:]))]

    def _plan_together(self, views: Mapping[ServiceKey, ServiceView | None]) -> list[Plan]:
        now = self._clock()
        try:
            with self._book.transaction(self.term, now) as unit:
                world = self._ready_world(unit)
                if unknown := world.quota.unknown(key.namespace for key in views):
                    world.quota.learn(unknown, unit.held_in(unknown, world.quota.limits))
                booked = unit.load({key: view.uid if view else None for key, view in views.items()})
                plans = [plan(key, view, booked[key], world, now) for key, view in views.items()]
                acting = [made for made in plans if made.actions]
                unit.expect(acting)
                for made in acting:
                    unit.apply(made)
                if acting:
                    unit.commit()
        except BaseException:
            self._doubt()
            raise
        self._touched |= self._usage.move(unit.tally)
        unit.follow(world.outlook)
        return plans

    def live_keys(self) -> list[ServiceKey]:
        """Every Service that the book has as asking: those gone from the cluster meanwhile are found by it."""
        with self._book.transaction(self.term, self._clock()) as unit:
            return [service.key for service in unit.live_services()]

    def holdings(self) -> dict[ServiceKey, tuple[str, frozenset[str]]]:
        """The uid and the addresses of every Service that the book has as asking: `live_keys`, and what they hold."""
        with self._book.transaction(self.term, self._clock()) as unit:
            return unit.holdings()

    def any_free(self, addresses: Collection[Address]) -> bool:
        """Whether one of these may be had; True where that is not known without asking the book."""
        return self._world is None or any(self._world.free.is_free(address) for address in addresses)

    def cleared_by(self, addresses: Collection[Address]) -> frozenset[Hashable] | None:
        """What those wait for who may be given one of these; None where that is not known without asking the book."""
        if self._world is None:
            return None
        groups = {(self._world.free.group_of(address), family_of(address)) for address in addresses}
        none_free = {NoneFree(group, family) for group, family in groups if group is not None}
        return frozenset(Obstacle(address) for address in addresses) | none_free

    @property
    def unsettled(self) -> bool:
        """Whether reservations are known to have changed, and `release_pass` has not looked at that yet."""
        return self._keeping.unsettled

    def reservations_changed(self) -> bool:
        """Asks the book whether reservations have changed, from outside, since they were last read (A26)."""
        return self.unsettled or self._keeping.is_old(self._book.reservations_count())

    def waiting_keys(self, limit: int) -> list[ServiceKey]:
        """Pending Services, the longest waiting first (A29)."""
        with self._book.transaction(self.term, self._clock()) as unit:
            return [service.key for service in unit.waiting(limit)]

    # Nodes.

    def take_reports(self, reports: Sequence[NodeReport]) -> list[ReportOutcome]:
        """Books what nodes report, all in one transaction; one node's impossible report spoils no other's."""
        reports = [report for report in reports if not self._incarnations.is_past(report)]
        if not reports:
            return []
        try:
            with self._book.transaction(self.term, self._clock()) as unit:
                outcomes = [unit.take_report(report, newest=True) for report in reports]
                unit.commit()
            self._incarnations.taken(reports)
            return outcomes
        except (TermLost, DatabaseUnavailable):
            raise
        except Exception as error:
            if len(reports) == 1:
                log.error("report_not_booked", node=reports[0].node, error=str(error), exc_info=_odd(error))
                return []
        return [outcome for report in reports for outcome in self.take_reports([report])]

    def announcers(self, keys: Collection[ServiceKey]) -> dict[ServiceKey, Announcers]:
        """Which nodes announce each of these, as booked, and what of it is silent (C16)."""
        with self._book.transaction(self.term, self._clock()) as unit:
            return unit.announcers(keys)

    def announcing_nodes(self) -> set[str]:
        """Nodes that the book has as holding something: those without a live Lease are to be judged lost."""
        with self._book.transaction(self.term, self._clock()) as unit:
            return unit.announcing_nodes()

    def lose_nodes(self, nodes: Collection[str], reason: str) -> list[ReportOutcome]:
        with self._book.transaction(self.term, self._clock()) as unit:
            outcomes = [unit.lose_node(node, reason) for node in sorted(nodes)]
            unit.commit()
            return outcomes

    # Releases.

    def release_pass(self, shows: Callable[[ServiceKey, Address], bool], nodes: Collection[str] | None) -> ReleasePass:
        """Confirms what nothing shows any more, and frees what has been in quarantine long enough (B5, A21), or was
        reserved until now (A26)."""
        now = self._clock()
        done = ReleasePass()
        try:
            with self._book.transaction(self.term, now) as unit:
                if self._keeping.is_old(unit.reservations_count):
                    self._ready_world(unit)
                done.ended = self._keeping.end_due(unit, now)
                last = 0
                while page := unit.releasing(RELEASES_AT_ONCE, last):
                    for releasing in page:
                        self._judge(unit, releasing, shows, nodes, now, done)
                    last = page[-1].allocation.id
                done.freed = [allocation.address for allocation in unit.expire(RELEASES_AT_ONCE, nodes)]
                done.not_before(unit.next_expiry(nodes))
                if done.confirmed or done.freed or done.ended:
                    unit.commit()
        except BaseException:
            self._doubt()
            raise
        self._touched |= self._usage.move(unit.tally)
        self._usage.release(done.freed)
        # Only what is committed is free.
        if self._world is not None:
            unit.follow(self._world.outlook)
            for address in done.freed:
                self._world.free.give_back(address)
                self._world.shared.forget(address)
        self._settle(done)
        return done

    def _settle(self, done: ReleasePass) -> None:
        """Opens what is reserved no more, and says for whom of those who wait something is reserved."""
        keeping = self._keeping
        if keeping.unsettled:
            keeping.settled()
            done.unlocked = True
            if self._world is not None:
                opened = self._world.free.lift_except(keeping.reservations.ranges, OPENED_AT_ONCE)
                self._world = replace(self._world, reservations=keeping.reservations)
                self._touched |= set(self._groups)
                done.freed += [address for address in opened if address not in done.freed]
        for address in done.freed:
            reserved = keeping.reservations.at(address)
            if reserved is not None and reserved.claim is not None:
                done.claims.append(ServiceKey(*reserved.claim.split("/", 1)))
        done.not_before(keeping.reservations.next_end())

    def _judge(
        self,
        unit: Unit,
        releasing: Releasing,
        shows: Callable[[ServiceKey, Address], bool],
        nodes: Collection[str] | None,
        now: datetime,
        done: ReleasePass,
    ) -> None:
        allocation = releasing.allocation
        verdict = may_confirm(releasing, shows, nodes, self._settle_s, now)
        if not verdict.confirmed:
            done.waits_for[allocation.address] = verdict.waits_for
            done.not_before(verdict.again_at)
            return
        group = self._groups.get(allocation.group)
        quarantine_s = group.quarantine_s if group else DEFAULT_QUARANTINE_S
        # The verdict is about every announcement there is: those without a report are judged to be over by it.
        judged = [announcement.id for announcement in releasing.announcements]
        unit.confirm_release(allocation.id, now + timedelta(seconds=quarantine_s), gone=judged)
        done.confirmed += 1

    def head(self) -> tuple[int, str]:
        """(seq, hash) of the history, to be shown outside the database (B4)."""
        return self._book.head()


def _odd(error: Exception) -> bool:
    """Whether it is none of ours: then it is our mistake, and where it was made is worth a log line."""
    return not isinstance(error, PurelbError)


def _texts(refused: Mapping[str, PurelbError]) -> dict[str, str]:
    return {name: str(error) for name, error in refused.items()}
