"""The database's own word: what it refuses whatever the program believes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from sqlalchemy import Connection, Enum, String, insert, text, type_coerce, update

from purelb_sm.errors import Clash
from purelb_sm.models import (
    AddressRange,
    Allocation,
    Announcement,
    Base,
    Leadership,
    Membership,
    NodeReported,
    PortClaim,
    Reservation,
    Service,
    ServiceGroup,
    table,
)
from purelb_sm.store.engine import make_engine, our_errors
from tests.support.book import NOW, Desk

LATER = NOW + timedelta(hours=1)
NUMBERS = itertools.count(1)


def service(uid: str = "u1", name: str = "web", state: str = "allocated", **more: Any) -> dict[str, Any]:
    row = {"uid": uid, "cluster": "default", "namespace": "shop", "name": name, "state": state, "reason": ""}
    return row | {"number": next(NUMBERS), "message": "", "group_name": "", "since": NOW, "observed_at": NOW} | more


def allocation(number: int = 1, address: str = "10.0.0.1", state: str = "held", **more: Any) -> dict[str, Any]:
    ip = ip_address(address)
    row: dict[str, Any] = {
        "id": number,
        "address": ip,
        "address_text": address,
        "family": f"IPv{ip.version}",
        "group_name": "g",
    }
    row |= {"claim": "shop/web", "state": state, "since": NOW, "held_at": NOW}
    return row | {"released_at": LATER if state == "released" else None, "quarantined_until": None} | more


def announcement(number: int = 1, **more: Any) -> dict[str, Any]:
    row = {"id": number, "allocation_id": 1, "node": "n1", "interface": "eth0", "prefix_length": 24}
    return row | {"state": "present", "valid_s": None, "from_at": NOW, "until_at": None} | more


def member(**more: Any) -> dict[str, Any]:
    return {"allocation_id": 1, "service_uid": "u1", "from_at": NOW, "until_at": None} | more


def port(**more: Any) -> dict[str, Any]:
    return member() | {"protocol": "TCP", "port": 80} | more


def group(number: int = 1, **more: Any) -> dict[str, Any]:
    row = {"id": number, "name": "default", "uid": "g", "generation": 1, "accepted": True, "refusal": ""}
    row |= {"pool_type": "local", "agent_decides": False, "avoid_first_last": False, "quarantine_s": 300.0}
    return row | {"from_at": NOW, "until_at": None} | more


def pool(**more: Any) -> dict[str, Any]:
    row = {"group_id": 1, "position": 0, "family": "IPv4", "first": ip_address("10.0.0.0"), "prefix_length": 24}
    return row | {"last": ip_address("10.0.0.9"), "range_text": "x", "subnet": "10.0.0.0/24"} | more


def reservation(**more: Any) -> dict[str, Any]:
    row = {"first": ip_address("10.0.0.0"), "last": ip_address("10.0.0.9"), "claim": None, "reason": "printer"}
    return row | {"created_by": "ann", "from_at": NOW, "expires_at": None, "until_at": None} | more


def leadership(**more: Any) -> dict[str, Any]:
    return {"id": 1, "cluster": "default", "term": 0, "holder": "", "raised_at": None} | more


def node_report(**more: Any) -> dict[str, Any]:
    row = {"node": "n1", "incarnation": "a", "started_at": NOW, "sequence": 1, "resync": False, "taken_at": NOW}
    return row | more


Rows = list[tuple[type[Base], dict[str, Any]]]

BASE: Rows = [(Service, service(number=1)), (Allocation, allocation()), (ServiceGroup, group())]

REFUSED: dict[str, Rows] = {
    "second live row of an address": [(Allocation, allocation(2))],
    "second live row in quarantine": [(Allocation, allocation(2, state="quarantined", quarantined_until=LATER))],
    "second live Service of a name": [(Service, service("u2"))],
    "second Service of a number": [(Service, service("u2", "other", number=1))],
    "second Service of a uid": [(Service, service(name="other"))],
    "unknown state of a Service": [(Service, service("u2", "other", "on_fire"))],
    "unknown state of an allocation": [(Allocation, allocation(2, "10.0.0.2", "free"))],
    "unknown family": [(Allocation, allocation(2, "10.0.0.2", family="IPX"))],
    "released without time": [(Allocation, allocation(2, "10.0.0.2", "released", released_at=None))],
    "held with time of release": [(Allocation, allocation(2, "10.0.0.2", released_at=LATER))],
    "quarantined without end": [(Allocation, allocation(2, "10.0.0.2", "quarantined"))],
    "held with end of quarantine": [(Allocation, allocation(2, "10.0.0.2", quarantined_until=LATER))],
    "allocation without claim": [(Allocation, allocation(2, "10.0.0.2", claim=None))],
    "member twice": [(Membership, member()), (Membership, member())],
    "member of nothing": [(Membership, member(allocation_id=9))],
    "nobody as member": [(Membership, member(service_uid="nobody"))],
    "port twice on an address": [
        (Service, service("u2", "other")),
        (PortClaim, port()),
        (PortClaim, port(service_uid="u2")),
    ],
    "port 0": [(PortClaim, port(port=0))],
    "port 65536": [(PortClaim, port(port=65536))],
    "unknown protocol": [(PortClaim, port(protocol="ICMP"))],
    "port of nothing": [(PortClaim, port(allocation_id=9))],
    "port of nobody": [(PortClaim, port(service_uid="nobody"))],
    "second live row of a place": [(Announcement, announcement()), (Announcement, announcement(2))],
    "announcement of nothing": [(Announcement, announcement(allocation_id=9))],
    "absent has no row": [(Announcement, announcement(state="absent"))],
    "unknown state of an announcement": [(Announcement, announcement(state="shouting"))],
    "prefix of 129": [(Announcement, announcement(prefix_length=129))],
    "prefix below zero": [(Announcement, announcement(prefix_length=-1))],
    "second live group of a name": [(ServiceGroup, group(2))],
    "refused without why": [(ServiceGroup, group(2, name="other", accepted=False))],
    "accepted with a refusal": [(ServiceGroup, group(2, name="other", refusal="overlaps"))],
    "range backwards": [(AddressRange, pool(first=ip_address("10.0.0.10")))],
    "range of nothing": [(AddressRange, pool(group_id=9))],
    "range with prefix 129": [(AddressRange, pool(prefix_length=129))],
    "two ranges in one place": [(AddressRange, pool()), (AddressRange, pool())],
    "reservation backwards": [(Reservation, reservation(first=ip_address("10.0.0.10")))],
    "second term": [(Leadership, leadership()), (Leadership, leadership(id=2))],
    "negative term": [(Leadership, leadership(term=-1))],
    "negative sequence": [(NodeReported, node_report(sequence=-1))],
    "two reports of a node": [(NodeReported, node_report()), (NodeReported, node_report())],
}

TAKEN: dict[str, Rows] = {
    "a released row beside a live one": [(Allocation, allocation(2, state="released"))],
    "a withdrawn namesake": [(Service, service("u2", state="withdrawn"))],
    "an ended membership beside a live one": [(Membership, member()), (Membership, member(until_at=LATER))],
    "an ended port beside a live one": [(PortClaim, port()), (PortClaim, port(until_at=LATER))],
    "one port with two protocols": [(PortClaim, port()), (PortClaim, port(protocol="UDP"))],
    "an ended announcement beside a live one": [
        (Announcement, announcement()),
        (Announcement, announcement(2, until_at=LATER)),
    ],
    "two interfaces of a node": [(Announcement, announcement()), (Announcement, announcement(2, interface="eth1"))],
    "an ended version of a group": [(ServiceGroup, group(2, until_at=LATER))],
    "an IPv6 range": [(AddressRange, pool(first=ip_address("fd00::"), last=ip_address("fd00::ffff")))],
    "a reservation": [(Reservation, reservation())],
}


@pytest.fixture
def connection(shared_url: str) -> Iterator[Connection]:
    """A transaction that is rolled back."""
    engine = make_engine(shared_url)
    with engine.connect() as made:
        yield made
    engine.dispose()


def write(connection: Connection, rows: Rows) -> None:
    for model, row in rows:
        columns = table(model).c
        # As plain text, an unknown state gets past the column type: it is the database that is asked here.
        raw = {n: type_coerce(v, String) if isinstance(columns[n].type, Enum) else v for n, v in row.items()}
        connection.execute(insert(table(model)).values(**raw))


@pytest.mark.parametrize("case", REFUSED)
def test_the_database_itself_refuses(connection: Connection, case: str) -> None:
    write(connection, BASE + REFUSED[case][:-1])
    with pytest.raises(Clash), our_errors():
        write(connection, REFUSED[case][-1:])


@pytest.mark.parametrize("case", TAKEN)
def test_the_database_takes(connection: Connection, case: str) -> None:
    write(connection, BASE + TAKEN[case])


@pytest.mark.spec("A17")
def test_a_released_row_cannot_be_resurrected_over_another(connection: Connection) -> None:
    write(connection, [(Allocation, allocation(1, state="released")), (Allocation, allocation(2))])
    back = update(table(Allocation)).where(table(Allocation).c.id == 1).values(state="held", released_at=None)
    with pytest.raises(Clash), our_errors():
        connection.execute(back)


@pytest.mark.parametrize("bad", [b"\x0a\0\0\x01", b"\0" * 17])
def test_an_address_of_another_length_is_refused(connection: Connection, bad: bytes) -> None:
    write(connection, [(Allocation, allocation())])
    with pytest.raises(Clash), our_errors():
        connection.execute(text("UPDATE allocation SET address = :bad").bindparams(bad=bad))


@pytest.mark.spec("B1")
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE history SET actor = 'nobody' WHERE seq = 1",
        "UPDATE history SET actor = actor",
        "DELETE FROM history WHERE seq = 1",
        "DELETE FROM history",
        "TRUNCATE history",
    ],
)
def test_the_history_can_neither_be_edited_nor_shortened(desk: Desk, statement: str) -> None:
    desk.allocate()
    before = desk.book.head()
    if statement.startswith("TRUNCATE") and desk.url.startswith("sqlite"):
        pytest.skip("SQLite has no TRUNCATE")
    engine = make_engine(desk.url)
    with pytest.raises(Clash, match="append-only"), our_errors(), engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
    assert desk.book.head() == before


def test_the_words_of_a_refusal_hold_no_values_of_the_statement(connection: Connection) -> None:
    """Error texts go to logs: what users wrote into their objects does not."""
    write(connection, BASE)
    with pytest.raises(Clash) as caught, our_errors():
        write(connection, [(Service, service("u2", message="a secret"))])
    assert "secret" not in str(caught.value)


def test_sixteen_byte_keys_sort_as_the_addresses_do(connection: Connection) -> None:
    addresses = ["10.0.0.2", "10.0.0.10", "255.255.255.254", "2001:db8::1", "::1:0:0", "fd00::", "0.0.0.1", "9.255.0.1"]
    write(connection, [(Allocation, allocation(n, a)) for n, a in enumerate(addresses)])
    found = connection.execute(text("SELECT address_text FROM allocation ORDER BY address")).scalars().all()
    by_key = sorted(addresses, key=lambda a: int(ip_address(a)) if ":" in a else 0xFFFF << 32 | int(ip_address(a)))
    assert found == by_key
