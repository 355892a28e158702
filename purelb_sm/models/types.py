"""Column types that mean the same on SQLite and PostgreSQL: addresses in 16 bytes, exact UTC times, enums as text."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from sqlalchemy import TIMESTAMP, BigInteger, Dialect, Enum, Integer, LargeBinary, String, TypeDecorator
from sqlalchemy.types import TypeEngine

from purelb_sm.domain.addresses import Address

_MAPPED = b"\0" * 10 + b"\xff\xff"

BIG_ID = BigInteger().with_variant(Integer, "sqlite")
"""A 64-bit key. SQLite calls only `INTEGER PRIMARY KEY` its row number, which is 64 bits wide too."""


class IPKey(TypeDecorator[Address]):
    """An address in 16 bytes, big-endian, IPv4 in its mapped form (RFC 4291 section 2.5.5.2).

    One sortable space for both families on both engines. No mapped address ever comes in as IPv6: `parse_ip` refuses
    them, so the form is unambiguous.
    """

    impl = LargeBinary(16)
    cache_ok = True

    def process_bind_param(self, value: Address | None, dialect: Dialect) -> bytes | None:
        return None if value is None else pack(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Address | None:
        return None if value is None else unpack(bytes(value))


def pack(address: Address) -> bytes:
    """The 16 bytes of an address. ValueError for a mapped IPv6 address, which would read back as IPv4."""
    if isinstance(address, IPv4Address):
        return _MAPPED + address.packed
    if address.ipv4_mapped is not None:
        raise ValueError(f"{address} is an IPv4 address in IPv6 clothes")
    return address.packed


def unpack(key: bytes) -> Address:
    """The address with these 16 bytes."""
    return IPv4Address(key[12:]) if key.startswith(_MAPPED) else IPv6Address(key)


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC time, exact to the microsecond: `timestamptz` on PostgreSQL, sortable ISO 8601 text on SQLite.

    SQLite's own DateTime forgets the zone; text of one width sorts as the times do, and its date functions read it.
    """

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(TIMESTAMP(timezone=True))
        return dialect.type_descriptor(String())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | str | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone has no place in the book")
        return value if dialect.name == "postgresql" else iso(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        at = datetime.fromisoformat(value) if isinstance(value, str) else value
        return at.astimezone(UTC)


@lru_cache(maxsize=256)
def iso(at: datetime) -> str:
    """`2026-11-24T03:12:00.000000Z`: always 27 characters, always UTC. What the history's hashes cover."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def state_of(enum: type[StrEnum], name: str) -> Enum:
    """Text with a CHECK: a new state needs no `ALTER TYPE`, and the database refuses what is no state."""
    return Enum(
        enum,
        name=name,
        native_enum=False,
        create_constraint=True,
        validate_strings=True,
        length=32,
        values_callable=lambda members: [member.value for member in members],
    )
