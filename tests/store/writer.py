"""A leader in a process of its own, to be killed: commits allocations for ever, and says so after each."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from ipaddress import ip_address

from purelb_sm.domain.book import Allocate, Hold, Leave, Observe, Plan, Withdraw
from purelb_sm.domain.views import Port, ServiceKey
from purelb_sm.store import Book

PORTS = (Port("TCP", 80), Port("UDP", 53))


def main(url: str, start: int) -> None:
    book = Book.open(url, actor=f"writer-{start}")
    term = book.raise_term(datetime.now(UTC))
    number = start
    while True:
        number += 1
        key, uid = ServiceKey("kill", f"s{number}"), f"u{number}"
        with book.transaction(term, datetime.now(UTC)) as unit:
            unit.load({key: uid})
            hold = Hold(key, uid, ip_address("10.0.0.0") + number, "default", PORTS)
            unit.apply(Plan(key, (Observe(key, uid), hold, Allocate(key, uid, "default"))))
            unit.commit()
        # Every third one goes at once, so that kills hit releases as well.
        if number % 3 == 0:
            with book.transaction(term, datetime.now(UTC)) as unit:
                (held,) = unit.load({key: uid})[key].held
                leave = Leave(key, uid, held.id, held.address, "deleted")
                unit.apply(Plan(key, (leave, Withdraw(key, uid, "deleted"))))
                unit.commit()
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
