"""The rows of the database and the constraints on them. No queries here, and no state ever changes here."""

from purelb_sm.models.base import Base, table
from purelb_sm.models.book import Allocation, Announcement, Membership, PortClaim, Service
from purelb_sm.models.ddl import POSTGRESQL_TRIGGERS, SQLITE_TRIGGERS, VIEWS
from purelb_sm.models.groups import AddressRange, Reservation, ServiceGroup
from purelb_sm.models.ledger import History, Leadership, NodeReported
from purelb_sm.models.types import IPKey, UtcTime, iso, pack, unpack

__all__ = [
    "POSTGRESQL_TRIGGERS",
    "SQLITE_TRIGGERS",
    "VIEWS",
    "AddressRange",
    "Allocation",
    "Announcement",
    "Base",
    "History",
    "IPKey",
    "Leadership",
    "Membership",
    "NodeReported",
    "PortClaim",
    "Reservation",
    "Service",
    "ServiceGroup",
    "UtcTime",
    "iso",
    "pack",
    "table",
    "unpack",
]
