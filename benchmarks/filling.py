"""A book with many addresses in use, made at once: the rows that the engine itself would have written, in bulk.

Every constraint, index, trigger and foreign key is on, and the history is chained as it is by the product; only how the
rows come in is different. A test compares a book filled here with one that an engine has filled.
"""

from __future__ import annotations

import random
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from itertools import islice
from typing import Any

import psycopg
from psycopg import sql

from purelb_sm.domain.addresses import Address, Family, address_at, family_of
from purelb_sm.domain.views import ServiceKey
from purelb_sm.models import iso, pack
from purelb_sm.store.engine import parse_url
from purelb_sm.store.history import Head, digest

NAMESPACES = 500
"""Services are spread over so many: as in a cluster that is shared, names in the book come in no order."""
CHUNK = 20_000
ACTOR = "filling"

_SERVICE = [
    "uid",
    "number",
    "cluster",
    "namespace",
    "name",
    "state",
    "reason",
    "message",
    "group_name",
    "since",
    "observed_at",
]
_ALLOCATION = ["id", "address", "address_text", "family", "group_name", "claim", "state", "since", "held_at"]
_MEMBERSHIP = ["allocation_id", "service_uid", "service_number", "from_at"]
_PORT = ["allocation_id", "service_uid", "protocol", "port", "from_at"]
_HISTORY = [
    "seq", "at", "term", "actor", "kind", "namespace", "name", "uid", "group_name", "address", "node",
    "trigger", "from_state", "to_state", "reason", "details", "prev_hash", "hash",
]  # fmt: skip

Tables = dict[str, tuple[Sequence[str], list[Sequence[Any]]]]
"""By table: its columns, and rows of them."""


def network_of(family: Family) -> IPv4Network | IPv6Network:
    """The spaces that the benchmark gives from: a /8, and a /64."""
    return IPv4Network("10.0.0.0/8") if family is Family.IPV4 else IPv6Network("fd00:0:0:1::/64")


def dense(family: Family, count: int) -> Iterator[Address]:
    """The lowest ones, as they are given when none ever came back."""
    first = int(network_of(family).network_address)
    return (address_at(family, first + n) for n in range(count))


def scattered(family: Family, count: int, seed: int = 1) -> Iterator[Address]:
    """Half of the first 2·count, by chance: what years of Services that come and go leave behind."""
    first = int(network_of(family).network_address)
    chosen = random.Random(seed).sample(range(2 * count), count)
    return (address_at(family, first + n) for n in sorted(chosen))


def key_of(number: int) -> ServiceKey:
    """Names come in no order, as those of a real cluster."""
    mixed = number * 2_654_435_761 % 2**32
    return ServiceKey(f"team-{mixed % NAMESPACES}", f"svc-{mixed:08x}")


@dataclass
class Filling:
    """Where the tables stand; `add` goes on from there. `server`: PostgreSQL and not SQLite."""

    server: bool
    term: int
    seq: int
    last: str
    services: int = 0
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _random: random.Random = field(default_factory=lambda: random.Random(1))

    def rows(self, addresses: Sequence[Address]) -> Tables:
        """For each of these a Service on port 80 that has it, by table: (columns, rows)."""
        found: Tables = {
            "service": (_SERVICE, []),
            "allocation": (_ALLOCATION, []),
            "membership": (_MEMBERSHIP, []),
            "port_claim": (_PORT, []),
            "history": (_HISTORY, []),
        }
        for address in addresses:
            for name, row in self._one(address):
                found[name][1].append(row)
        return found

    def _one(self, address: Address) -> Iterator[tuple[str, Sequence[Any]]]:
        self.services += 1
        number, key, at = self.services, key_of(self.services), self._time()
        uid = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        family = str(family_of(address))
        yield "service", (uid, number, "default", *key, "allocated", "", "", "default", at, at)
        yield "allocation", (number, pack(address), str(address), family, "default", str(key), "held", at, at)
        yield "membership", (number, uid, number, at)
        yield "port_claim", (number, uid, "TCP", 80, at)
        text = str(address)
        yield "history", self._history("service", key, uid, None, None, "observe", None, "pending", "{}")
        yield "history", self._history("allocation", key, uid, "default", text, "hold", None, "held", "{}")
        details = f'{{"addresses":["{text}"]}}'
        yield (
            "history",
            self._history("service", key, uid, "default", None, "allocate", "pending", "allocated", details),
        )

    def _history(
        self,
        kind: str,
        key: ServiceKey,
        uid: str,
        group: str | None,
        address: str | None,
        trigger: str,
        source: str | None,
        dest: str,
        details: str,
    ) -> Sequence[Any]:
        self.seq += 1
        values = (
            self.seq, self.at, self.term, ACTOR, kind, *key, uid, group, address, None,
            trigger, source, dest, "", details,
        )  # fmt: skip
        before, self.last = self.last, digest(self.last, dict(zip(_HISTORY, values, strict=False)))
        return (self.seq, self._time(), *values[2:], before, self.last)

    def _time(self) -> Any:
        return self.at if self.server else iso(self.at)


def fill(url: str, term: int, head: Head, addresses: Iterable[Address]) -> None:
    """Gives each of these addresses to a Service of its own, in this term, from this head of the history on.

    The book has no Services yet, and nobody else has it open.
    """
    parsed = parse_url(url)
    server = parsed.get_backend_name() == "postgresql"
    filling = Filling(server, term, head[0], head[1])
    if server:
        with psycopg.connect(url) as connection:
            for some in _chunks(addresses):
                _copy(connection, filling.rows(some))
        with psycopg.connect(url, autocommit=True) as connection:
            # As the server does by itself after a while; what it plans by must not be of the empty tables.
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
        return
    with closing(sqlite3.connect(str(parsed.database), isolation_level=None)) as file:
        # Nobody else has the file, and one that is cut off here is thrown away.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-1000000", "foreign_keys=ON"):
            file.execute(f"PRAGMA {pragma}")
        file.execute("BEGIN EXCLUSIVE")
        # The indexes stay: made anew of sorted rows, all their pages would be full, and every new row would split one.
        for some in _chunks(addresses):
            _insert(file, filling.rows(some))
        file.execute("COMMIT")
        file.execute("PRAGMA journal_mode=WAL")


def _chunks(addresses: Iterable[Address]) -> Iterator[list[Address]]:
    rest = iter(addresses)
    while some := list(islice(rest, CHUNK)):
        yield some


def _insert(file: sqlite3.Connection, tables: Tables) -> None:
    for name, (columns, rows) in tables.items():
        quoted = ", ".join(f'"{column}"' for column in columns)
        file.executemany(f"INSERT INTO {name} ({quoted}) VALUES ({', '.join('?' * len(columns))})", rows)


def _copy(connection: psycopg.Connection[Any], tables: Tables) -> None:
    with connection.cursor() as cursor:
        for name, (columns, rows) in tables.items():
            into = sql.SQL("COPY {} ({}) FROM STDIN").format(
                sql.Identifier(name), sql.SQL(", ").join(map(sql.Identifier, columns))
            )
            with cursor.copy(into) as copy:
                for row in rows:
                    copy.write_row(row)
    connection.commit()
