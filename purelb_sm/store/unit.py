"""Unit: one transaction of the book, as the allocator uses it. Rolled back unless `commit` is called."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import ParamSpec, TypeVar

from sqlalchemy import bindparam, select

from purelb_sm.domain.addresses import Address, AddressRange, Family
from purelb_sm.domain.announced import Announcers
from purelb_sm.domain.book import Booked, BookedAllocation, BookedService, Plan, Releasing
from purelb_sm.domain.groups import Group, Pool
from purelb_sm.domain.outlook import Outlook, Quarantined
from purelb_sm.domain.quota import HeldIn
from purelb_sm.domain.reports import NodeReport
from purelb_sm.domain.reservations import Reservation
from purelb_sm.domain.sharing import SharedAddress
from purelb_sm.domain.states import AllocationState, ServiceState
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import InvalidGroup, StoreError
from purelb_sm.models import Allocation, Membership, Service, table
from purelb_sm.store import (
    announcers,
    applying,
    counting,
    grouping,
    loading,
    releasing,
    reporting,
    reserving,
    sharing,
    tenants,
)
from purelb_sm.store.reporting import ReportOutcome
from purelb_sm.store.workspace import Workspace

_S, _A, _M = table(Service), table(Allocation), table(Membership)

_HOLDINGS = (
    select(_S.c.namespace, _S.c.name, _S.c.uid, _A.c.address_text)
    .select_from(_S)
    .outerjoin(_M, (_M.c.service_number == _S.c.number) & loading.MEMBER)
    .outerjoin(_A, _A.c.id == _M.c.allocation_id)
    .where(_S.c.cluster == bindparam("cluster"), loading.LIVE)
    .order_by(_S.c.namespace, _S.c.name)
)

P = ParamSpec("P")
R = TypeVar("R")


class Unit:
    """All methods raise Clash, DatabaseUnavailable or StoreError; after any error the unit can only be left.

    Services and allocations that a plan names must have been loaded in the same unit.
    """

    def __init__(self, workspace: Workspace, reservations: int) -> None:
        self._ws = workspace
        self.reservations_count = reservations
        """How often reservations were changed from outside, as of this transaction."""
        self._over = ""

    def load(self, wanted: Mapping[ServiceKey, str | None]) -> dict[ServiceKey, Booked]:
        """What the book says of each key; with the uid that asks now, or None. Five statements for a batch."""
        return self._do(loading.load, self._ws, wanted)

    def expect(self, plans: Iterable[Plan]) -> None:
        """Loads what these plans are about to join. To be called once before they are applied."""
        self._do(sharing.expect, self._ws, plans)

    def shared(self) -> list[SharedAddress]:
        """Every shared address that is not free, with its members and their ports, by address."""
        return self._do(sharing.shared, self._ws)

    def held_in(self, namespaces: Collection[str], groups: Iterable[str]) -> list[HeldIn]:
        """Every address of these groups that a Service of these namespaces has, once a namespace."""
        return self._do(tenants.held_in, self._ws, namespaces, groups)

    def apply(self, plan: Plan) -> None:
        """Fires the machines for each action. Written by table, many rows a statement, at the next query or commit.

        Raises IllegalTransition where the plan does not fit the book.
        """
        self._do(applying.apply, self._ws, plan)

    def commit(self) -> None:
        """Writes what is pending and keeps it. Clash: nothing was kept. DatabaseUnavailable: all or nothing was."""
        self._do(self._commit)
        self._over = "was committed"

    def held_ranges(self, ranges: Sequence[AddressRange]) -> Iterator[AddressRange]:
        """Every address in these ranges that is not released, neighbours together, as a stream: what is not free."""
        self._do(self._ws.flush)
        return counting.held_ranges(self._ws.db, ranges)

    def quarantined(self) -> list[Quarantined]:
        """All that is in quarantine."""
        self._do(self._ws.flush)
        return self._do(counting.quarantined, self._ws.db)

    def follow(self, outlook: Outlook) -> None:
        """Tells what this transaction, once committed, changes of what is in quarantine."""
        entered = [
            Quarantined(entry.group, entry.address, entry.quarantined_until)
            for entry in self._ws.entered_quarantine
            if entry.state is AllocationState.QUARANTINED and entry.quarantined_until is not None
        ]
        outlook.follow(self._ws.left_quarantine, entered)

    def live_counts(self) -> dict[tuple[str, Family, AllocationState], int]:
        """How many allocations are not released, by group, family and state. Reads all of them."""
        self._do(self._ws.flush)
        return self._do(counting.live_counts, self._ws.db)

    def orphans(self, ranges: Sequence[AddressRange]) -> dict[Address, str]:
        """Addresses that are not released and in none of these ranges, with the group that they were given from."""
        self._do(self._ws.flush)
        return self._do(counting.orphans, self._ws.db, ranges)

    @property
    def tally(self) -> Mapping[tuple[str, Family, AllocationState], int]:
        """By how much this transaction, once committed, changes `live_counts`."""
        return self._ws.tally

    def reservations(self) -> list[Reservation]:
        """Those that nobody has ended; the time of some may be over."""
        return self._do(reserving.not_ended, self._ws)

    def end_reservations(self) -> list[Reservation]:
        """Ends those whose time is over at the time of this transaction."""
        return self._do(reserving.end_due, self._ws)

    def live_services(self) -> Iterator[BookedService]:
        """Every Service that is not withdrawn: at start, those no longer in the cluster were deleted meanwhile."""
        self._do(self._ws.flush)
        statement = select(_S).where(_S.c.cluster == self._ws.cluster, loading.LIVE)
        for row in self._ws.db.stream(statement.order_by(_S.c.namespace, _S.c.name)):
            yield _booked_service(row)

    def holdings(self) -> dict[ServiceKey, tuple[str, frozenset[str]]]:
        """The uid of every Service that is not withdrawn, and its addresses as text: none if it waits."""
        self._do(self._ws.flush)
        found: dict[ServiceKey, tuple[str, frozenset[str]]] = {}
        for row in self._do(self._ws.db.rows, _HOLDINGS, {"cluster": self._ws.cluster}):
            key = ServiceKey(row.namespace, row.name)
            addresses = found[key][1] if key in found else frozenset()
            found[key] = row.uid, addresses | {row.address_text} if row.address_text else addresses
        return found

    def waiting(self, limit: int) -> list[BookedService]:
        """Pending Services, the one that has waited longest first."""
        self._do(self._ws.flush)
        pending = _S.c.state == loading.literal(ServiceState.PENDING.value)
        statement = select(_S).where(_S.c.cluster == self._ws.cluster, pending).order_by(_S.c.since, _S.c.uid)
        return [_booked_service(row) for row in self._do(self._ws.db.rows, statement.limit(limit))]

    def record_groups(self, accepted: Mapping[str, Group], refused: Mapping[str, InvalidGroup]) -> None:
        """Takes all groups of the cluster into the book; writes only what changed. A group in neither was removed."""
        self._do(grouping.record_groups, self._ws, accepted, refused)

    def accepted_pools(self) -> dict[str, tuple[Pool, ...]]:
        """What was accepted before, for `domain.groups.accept_groups`."""
        return self._do(grouping.accepted_pools, self._ws)

    def take_report(self, report: NodeReport, *, newest: bool = False) -> ReportOutcome:
        """Books what a node reports, each numbered move once. See ReportOutcome.

        `newest`: this incarnation of the agent is known to have come after the one taken last. Without it the node's
        own clock decides, and an agent that started with its clock set back would not be believed.
        """
        return self._do(reporting.take_report, self._ws, report, newest)

    def lose_node(self, node: str, reason: str) -> ReportOutcome:
        """The node is silent: what it was adding, held or was removing is lost to sight."""
        return self._do(reporting.lose_node, self._ws, node, reason)

    def announcing_nodes(self) -> set[str]:
        """Nodes of which a kernel may hold something, as booked: one of them without a Lease is to be judged lost."""
        return self._do(reporting.announcing_nodes, self._ws)

    def announcers(self, keys: Iterable[ServiceKey]) -> dict[ServiceKey, Announcers]:
        """Which nodes announce each of these Services, and what of it is silent; nothing for one without an address."""
        return self._do(announcers.announcers, self._ws, keys)

    def releasing(self, limit: int, after: int = 0) -> list[Releasing]:
        """Allocations on their way out with all that can hold them up, by id, from the one after `after`."""
        return self._do(releasing.releasing, self._ws, limit, after)

    def confirm_release(
        self, allocation_id: int, quarantined_until: datetime, reason: str = "", *, gone: Collection[int] = ()
    ) -> None:
        """Phase two of a release. The caller vouches that no Service status shows the address.

        The store itself refuses (IllegalTransition) while a node is booked as adding, present, removing or lost,
        unless the id of that announcement is in `gone`: judged to be over without a report. All of them end.
        """
        self._do(releasing.confirm_release, self._ws, allocation_id, quarantined_until, reason, gone)

    def expire(self, limit: int, nodes: Collection[str] | None = None) -> list[BookedAllocation]:
        """Ends quarantines that are over: these addresses are free for any claim once this is committed.

        An address that a node was found to hold again waits on. `nodes` are the Nodes there are (None: not known, so
        none is gone); one that left the cluster is not waited for.
        """
        return self._do(releasing.expire, self._ws, limit, nodes)

    def next_expiry(self, nodes: Collection[str] | None = None) -> datetime | None:
        """When asking `expire` again may free something: the end of a quarantine, or of a silent node's lifetime."""
        return self._do(releasing.next_expiry, self._ws, nodes)

    def _commit(self) -> None:
        self._ws.flush()
        self._ws.db.commit()

    def _do(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self._over:
            raise StoreError(f"this transaction {self._over}")
        try:
            return function(*args, **kwargs)
        except BaseException:
            # Memory and database may differ from here on: nothing more is taken, and nothing can be committed.
            self._over = "failed"
            raise


def _booked_service(row: object) -> BookedService:
    service: Service = row  # type: ignore[assignment]
    key = ServiceKey(service.namespace, service.name)
    return BookedService(
        service.uid, key, service.state, service.reason, service.message, service.group_name, service.since
    )
