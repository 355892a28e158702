"""What the cluster last said of its groups, every version of it, and what is kept out of them by reservation."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Text
from sqlalchemy.orm import Mapped, mapped_column

from purelb_sm.domain.addresses import Address, Family
from purelb_sm.models.base import Base, partial
from purelb_sm.models.types import BIG_ID, IPKey, state_of


class ServiceGroup(Base):
    """One version of a ServiceGroup, as accepted or refused. The one without `until_at` is in force."""

    __tablename__ = "service_group"
    id: Mapped[int] = mapped_column(BIG_ID, primary_key=True, autoincrement=False)
    name: Mapped[str]
    uid: Mapped[str]
    generation: Mapped[int] = mapped_column(BIG_ID)
    accepted: Mapped[bool]
    refusal: Mapped[str] = mapped_column(Text)
    pool_type: Mapped[str]
    agent_decides: Mapped[bool]
    avoid_first_last: Mapped[bool]
    quarantine_s: Mapped[float]
    from_at: Mapped[datetime]
    until_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("accepted = (refusal = '')", "refused_says_why"),
        partial("until_at IS NULL", "uq_service_group_live_name", "name", unique=True),
    )


class AddressRange(Base):
    """A pool of one version of a group, in the order written."""

    __tablename__ = "address_range"
    group_id: Mapped[int] = mapped_column(ForeignKey("service_group.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    family: Mapped[Family] = mapped_column(state_of(Family, "family"))
    first: Mapped[Address] = mapped_column(IPKey)
    last: Mapped[Address] = mapped_column(IPKey)
    range_text: Mapped[str]
    subnet: Mapped[str]
    prefix_length: Mapped[int]

    __table_args__ = (
        CheckConstraint("length(first) = 16 AND length(last) = 16", "in_16_bytes"),
        CheckConstraint("first <= last", "first_not_after_last"),
        CheckConstraint("prefix_length BETWEEN 0 AND 128", "prefix_length"),
    )


class Reservation(Base):
    """An address or sub-range kept from everybody, or for one claim (namespace/name), with why and until when."""

    __tablename__ = "reservation"
    id: Mapped[int] = mapped_column(BIG_ID, primary_key=True, autoincrement=True)
    first: Mapped[Address] = mapped_column(IPKey)
    last: Mapped[Address] = mapped_column(IPKey)
    range_text: Mapped[str | None]
    claim: Mapped[str | None]
    reason: Mapped[str] = mapped_column(Text)
    created_by: Mapped[str]
    from_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    until_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("length(first) = 16 AND length(last) = 16", "in_16_bytes"),
        CheckConstraint("first <= last", "first_not_after_last"),
        partial("until_at IS NULL", "ix_reservation_live", "first"),
    )
