"""The rows of the book proper: who asks, what is held, by whom, on which ports, and which node answers.

The constraints here are the last word against double allocation: they hold whatever the program believes.

An index by name, uid or claim is in an order that has nothing to do with time: each new row writes a page of its own
of it. In a large book that is most of what an allocation costs: such indexes hold only what is looked for by them.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from purelb_sm.domain.addresses import Address, Family
from purelb_sm.domain.states import AllocationState, AnnouncementState, ServiceState
from purelb_sm.models.base import Base, partial
from purelb_sm.models.types import BIG_ID, IPKey, state_of


class Service(Base):
    """A Service that asked for an address, by uid. At most one that is not withdrawn has a given name."""

    __tablename__ = "service"
    uid: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BIG_ID, server_default="0")
    """Counted from 1 in the order in which they were observed: what is found by it is in that order, too."""
    cluster: Mapped[str]
    namespace: Mapped[str]
    name: Mapped[str]
    state: Mapped[ServiceState] = mapped_column(state_of(ServiceState, "state"))
    reason: Mapped[str]
    message: Mapped[str] = mapped_column(Text)
    group_name: Mapped[str]
    since: Mapped[datetime]
    """When it came into its state; a repeated refusal does not change it, so that waiting is counted from the start."""
    observed_at: Mapped[datetime]

    __table_args__ = (
        Index("uq_service_number", "number", unique=True),
        # The cluster comes last, as all rows have the same: a database that thinks it tells rows apart reads them all.
        partial("state <> 'withdrawn'", "uq_service_live_name", "namespace", "name", "cluster", unique=True),
        partial("state = 'withdrawn'", "ix_service_withdrawn_name", "namespace", "name"),
        partial("state = 'pending'", "ix_service_waiting", "cluster", "since"),
    )


class Allocation(Base):
    """One address, held for a claim (namespace/name) and on its way back since. Never two that are not released."""

    __tablename__ = "allocation"
    id: Mapped[int] = mapped_column(BIG_ID, primary_key=True, autoincrement=False)
    address: Mapped[Address] = mapped_column(IPKey)
    address_text: Mapped[str]
    """The canonical text, for the views: SQL on both engines cannot make it of the 16 bytes."""
    family: Mapped[Family] = mapped_column(state_of(Family, "family"))
    group_name: Mapped[str]
    claim: Mapped[str]
    state: Mapped[AllocationState] = mapped_column(state_of(AllocationState, "state"))
    since: Mapped[datetime]
    held_at: Mapped[datetime]
    quarantined_until: Mapped[datetime | None]
    released_at: Mapped[datetime | None]
    sharing_key: Mapped[str | None]
    """The key under which its members share it; none: it has one member. Keys mean something within a namespace only,
    that of the claim, unless the group shares cluster-wide."""

    __table_args__ = (
        CheckConstraint("length(address) = 16", "address_in_16_bytes"),
        CheckConstraint("(state = 'released') = (released_at IS NOT NULL)", "released_has_time"),
        CheckConstraint("(state = 'quarantined') = (quarantined_until IS NOT NULL)", "quarantined_has_end"),
        partial("released_at IS NULL", "uq_allocation_live_address", "address", unique=True),
        partial("released_at IS NULL AND state <> 'held'", "ix_allocation_claim", "claim"),
        partial("released_at IS NULL AND sharing_key IS NOT NULL", "ix_allocation_sharing_key", "sharing_key"),
        partial("state = 'releasing'", "ix_allocation_releasing", "id"),
        partial("state = 'quarantined'", "ix_allocation_quarantined_until", "quarantined_until"),
        Index("ix_allocation_address_held_at", "address", "held_at"),
    )


class Membership(Base):
    """A Service has this address, from then until then. A shared address has several members at once."""

    __tablename__ = "membership"
    id: Mapped[int] = mapped_column(BIG_ID, primary_key=True, autoincrement=True)
    allocation_id: Mapped[int] = mapped_column(ForeignKey("allocation.id"))
    service_uid: Mapped[str] = mapped_column(ForeignKey("service.uid"))
    service_number: Mapped[int] = mapped_column(BIG_ID, server_default="0")
    """That of the Service: by it, and not by the uid, the memberships of a Service are found."""
    from_at: Mapped[datetime]
    until_at: Mapped[datetime | None]

    __table_args__ = (
        partial("until_at IS NULL", "uq_membership_live", "allocation_id", "service_uid", unique=True),
        Index("ix_membership_allocation_id", "allocation_id"),
        Index("ix_membership_service_number", "service_number"),
    )


class PortClaim(Base):
    """A member's port on an address: the database itself refuses two Services on one port of a shared address."""

    __tablename__ = "port_claim"
    id: Mapped[int] = mapped_column(BIG_ID, primary_key=True, autoincrement=True)
    allocation_id: Mapped[int] = mapped_column(ForeignKey("allocation.id"))
    service_uid: Mapped[str] = mapped_column(ForeignKey("service.uid"))
    protocol: Mapped[str]
    port: Mapped[int]
    from_at: Mapped[datetime]
    until_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("protocol IN ('TCP', 'UDP', 'SCTP')", "protocol"),
        CheckConstraint("port BETWEEN 1 AND 65535", "port"),
        partial("until_at IS NULL", "uq_port_claim_live", "allocation_id", "protocol", "port", unique=True),
    )


class Announcement(Base):
    """One address on one interface of one node was in `state` from then until then; a row for every state it was in.

    No row: absent. `valid_s` is the lifetime that the kernel was given, as last reported (None: permanent).
    """

    __tablename__ = "announcement"
    id: Mapped[int] = mapped_column(BIG_ID, primary_key=True, autoincrement=False)
    allocation_id: Mapped[int] = mapped_column(ForeignKey("allocation.id"))
    node: Mapped[str]
    interface: Mapped[str]
    prefix_length: Mapped[int]
    state: Mapped[AnnouncementState] = mapped_column(state_of(AnnouncementState, "state"))
    valid_s: Mapped[int | None] = mapped_column(BIG_ID)
    from_at: Mapped[datetime]
    until_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("prefix_length BETWEEN 0 AND 128", "prefix_length"),
        CheckConstraint("state <> 'absent'", "absent_has_no_row"),
        partial("until_at IS NULL", "uq_announcement_live", "allocation_id", "node", "interface", unique=True),
        partial("until_at IS NULL", "ix_announcement_live_node", "node"),
        Index("ix_announcement_allocation_id", "allocation_id", "from_at"),
    )
