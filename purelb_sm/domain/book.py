"""What the book says, and what a plan asks it to do. Frozen values; the store turns rows into these and back.

The rule behind the actions: a plan never says what a state becomes, only what happened. The store fires the machine
for each, writes the rows, and appends one history row per transition, all in one transaction.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import datetime

from purelb_sm.domain.addresses import Address, Family
from purelb_sm.domain.states import AllocationState, AnnouncementState, ServiceState
from purelb_sm.domain.views import Condition, Port, PortKey, ServiceKey
from purelb_sm.errors import Reason


@dataclass(frozen=True, slots=True)
class BookedService:
    """A row of `service`. `reason` and `message` say why it is in its state (a refusal's, while pending)."""

    uid: str
    key: ServiceKey
    state: ServiceState
    reason: str
    message: str
    group: str
    since: datetime


@dataclass(frozen=True, slots=True)
class BookedAllocation:
    """A row of `allocation` that is not released. `claim` is who may have it back: namespace/name.

    sharing_key  what it is shared under, by one member or more; None: it has one member
    ports        those that the Service which was asked for has on it; None where none was asked for
    """

    id: int
    address: Address
    group: str
    claim: str
    state: AllocationState
    held_at: datetime
    quarantined_until: datetime | None = None
    sharing_key: str | None = None
    ports: frozenset[PortKey] | None = None

    @property
    def family(self) -> Family:
        return Family.IPV4 if self.address.version == 4 else Family.IPV6


@dataclass(frozen=True, slots=True)
class Booked:
    """All that the book says of one key.

    service      its live row, whatever uid that has (at most one)
    former       the withdrawn row of the uid that asks now, if that asked before
    held         addresses of which `service` is a member now
    reclaimable  releasing or quarantined addresses whose claim is this key
    """

    service: BookedService | None = None
    former: BookedService | None = None
    held: tuple[BookedAllocation, ...] = ()
    reclaimable: tuple[BookedAllocation, ...] = ()


NOTHING_BOOKED = Booked()


@dataclass(frozen=True, slots=True)
class Observe:
    """A Service asks for the first time under this uid: a row in state pending."""

    key: ServiceKey
    uid: str


@dataclass(frozen=True, slots=True)
class Revive:
    """A withdrawn Service asks again under its old uid."""

    key: ServiceKey
    uid: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """A Service asks no more. Its memberships end by `Leave` actions before this one."""

    key: ServiceKey
    uid: str
    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """A free address is held for `key`, and the Service with `uid` becomes its member with these ports.

    `sharing_key`: others may join it under this key.
    """

    key: ServiceKey
    uid: str
    address: Address
    group: str
    ports: tuple[Port, ...]
    reason: str = ""
    sharing_key: str | None = None


@dataclass(frozen=True, slots=True)
class Reclaim:
    """A releasing or quarantined address goes back to its claim, with the Service `uid` as member.

    `group` is the one that has the address now; empty: as before. It is shared under `sharing_key` from now on.
    """

    key: ServiceKey
    uid: str
    allocation_id: int
    address: Address
    ports: tuple[Port, ...]
    group: str = ""
    sharing_key: str | None = None


@dataclass(frozen=True, slots=True)
class Join:
    """The Service becomes a member of the address that is shared under this key, beside the members it has.

    One that has no members any more, and is not free yet, goes back to those who share it: the claim is the Service's.
    """

    key: ServiceKey
    uid: str
    address: Address
    group: str
    sharing_key: str
    ports: tuple[Port, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SetPorts:
    """A member has the address on these ports from now on, and on no others."""

    key: ServiceKey
    uid: str
    allocation_id: int
    address: Address
    ports: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class SetKey:
    """The only member shares its address under this key from now on, or (None) with nobody. The claim is the member's.

    `group` and `ports` are those that it has it in and on.
    """

    key: ServiceKey
    uid: str
    allocation_id: int
    address: Address
    group: str
    ports: tuple[Port, ...]
    sharing_key: str | None


@dataclass(frozen=True, slots=True)
class Leave:
    """The Service `uid` is a member of this allocation no more; the last member's leaving begins the release."""

    key: ServiceKey
    uid: str
    allocation_id: int
    address: Address
    reason: str


@dataclass(frozen=True, slots=True)
class Allocate:
    """Every family asked for has an address: pending → allocated, or reallocated where it was more than pending."""

    key: ServiceKey
    uid: str
    group: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing could be held: pending → pending, with why. Only asked for when `reason` or `message` is new."""

    key: ServiceKey
    uid: str
    reason: Reason
    message: str
    group: str = ""


Action = Observe | Revive | Withdraw | Hold | Reclaim | Join | SetPorts | SetKey | Leave | Allocate | Refuse


@dataclass(frozen=True, slots=True)
class EventNote:
    """An Event to record on a Service: `type` is Normal or Warning."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Publication:
    """One conditional write of a Service's `/status`. Annotations with value None are removed."""

    key: ServiceKey
    uid: str
    resource_version: str
    ingress: tuple[Address, ...] | None
    annotations: dict[str, str | None]
    conditions: tuple[Condition, ...] | None


@dataclass(frozen=True, slots=True)
class PolicyReset:
    """One conditional write of a Service's `spec.externalTrafficPolicy`: Cluster. `note` tells its owner."""

    key: ServiceKey
    uid: str
    resource_version: str
    note: EventNote


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done about one key. All empty: the book and the cluster agree.

    waiting    it was refused something: to be planned again when addresses come free or groups change
    again      this was a first step: to be planned again once it is committed, and written
    obstacles  what it waits for, where that is known (`domain.sharing.Obstacle`)
    cleared    obstacles that are gone once this is committed: who waits for one is to be planned again
    policy     to be written before the publication, which shows the address
    """

    key: ServiceKey
    actions: tuple[Action, ...] = ()
    publication: Publication | None = None
    events: tuple[EventNote, ...] = ()
    waiting: bool = False
    again: bool = False
    obstacles: tuple[Hashable, ...] = ()
    cleared: tuple[Hashable, ...] = ()
    policy: PolicyReset | None = None

    @property
    def silent(self) -> bool:
        return not self.actions and not self.told

    @property
    def told(self) -> bool:
        """Whether the cluster is to hear of it."""
        return self.publication is not None or bool(self.events) or self.policy is not None


@dataclass(frozen=True, slots=True)
class BookedAnnouncement:
    """A row of `announcement` that is not over.

    `valid_s` is the lifetime that the kernel was given, as last reported: after so long without its agent the node has
    dropped the address by itself. None: permanent, it stays until somebody removes it.
    """

    id: int
    allocation_id: int
    address: Address
    node: str
    interface: str
    prefix_length: int
    state: AnnouncementState
    since: datetime
    valid_s: int | None = None


@dataclass(frozen=True, slots=True)
class Releasing:
    """An allocation on its way out, with all that can hold it up.

    `members` are the Services that were members last; their status may still show the address.
    """

    allocation: BookedAllocation
    since: datetime
    members: tuple[ServiceKey, ...] = ()
    announcements: tuple[BookedAnnouncement, ...] = field(default=())
