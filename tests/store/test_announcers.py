"""Which nodes announce a Service, by the book: counted once each, and since when an address is silent."""

from __future__ import annotations

from datetime import datetime
from ipaddress import ip_address
from typing import Any

import pytest

from purelb_sm.domain.announced import Announcers, HeldAddress
from purelb_sm.domain.book import Allocate, Hold, Join, Observe
from purelb_sm.domain.views import Port, ServiceKey
from tests.support.book import DNS, HTTP, WEB, Agent, Desk

V4, V6 = "10.0.0.1", "fd00::1"


def of(desk: Desk, *keys: ServiceKey) -> dict[ServiceKey, Announcers]:
    with desk.unit(desk.now) as unit:
        return unit.announcers(keys)


def web(desk: Desk) -> Announcers:
    return of(desk, WEB)[WEB]


def silent(desk: Desk) -> dict[str, datetime | None]:
    return {str(held.address): held.silent_since for held in web(desk).addresses}


def dual(desk: Desk) -> None:
    holds = [Hold(WEB, "uid-web", ip_address(a), "default", HTTP) for a in (V4, V6)]
    desk.do(WEB, Observe(WEB, "uid-web"), *holds, Allocate(WEB, "uid-web", "default"))


@pytest.mark.spec("C16")
def test_a_service_is_silent_from_when_its_address_was_held(desk: Desk) -> None:
    desk.allocate(WEB, V4)
    assert web(desk) == Announcers(WEB, "uid-web", (HeldAddress(ip_address(V4), desk.now),))


@pytest.mark.spec("C16")
def test_one_node_is_named_with_its_interface_and_several_are_counted(desk: Desk) -> None:
    desk.allocate(WEB, V4)
    desk.report(Agent("node1").add(V4, "kube-lb0").report())
    assert web(desk) == Announcers(WEB, "uid-web", (HeldAddress(ip_address(V4), None),), 1, "node1", "kube-lb0")
    for name in ("node2", "node3"):
        desk.report(Agent(name).add(V4, "kube-lb0").report())
    assert web(desk).nodes == 3


@pytest.mark.spec("C16")
def test_a_node_that_announces_several_addresses_is_counted_once(desk: Desk) -> None:
    dual(desk)
    desk.report(Agent("node1").add(V4).add(V6).report())
    assert web(desk).nodes == 1
    desk.report(Agent("node2").add(V6, "eth1").report())
    assert web(desk).nodes == 2


@pytest.mark.spec("C16")
def test_it_is_silent_again_from_when_the_last_node_ceased(desk: Desk) -> None:
    desk.allocate(WEB, V4)
    one, two = Agent("node1").add(V4), Agent("node2").add(V4)
    desk.report(one.report())
    desk.report(two.report())
    desk.report(one.remove(V4).report())
    assert silent(desk) == {V4: None}
    desk.report(two.remove(V4).report())
    assert silent(desk) == {V4: desk.now}
    at = desk.now
    desk.allocate(DNS, "10.0.0.2")
    assert silent(desk) == {V4: at}


@pytest.mark.spec("C16")
def test_it_is_silent_from_when_its_node_was_lost(desk: Desk) -> None:
    dual(desk)
    desk.report(Agent("node1").add(V4).report())
    desk.report(Agent("node2").add(V6).report())
    with desk.unit() as unit:
        unit.lose_node("node2", "its Lease lapsed")
        unit.commit()
    assert silent(desk) == {V4: None, V6: desk.now}
    assert web(desk).nodes == 1


@pytest.mark.spec("C16")
def test_one_that_comes_to_share_a_silent_address_has_waited_only_since_then(desk: Desk) -> None:
    hold = Hold(WEB, "uid-web", ip_address(V4), "default", HTTP, sharing_key="k")
    desk.do(WEB, Observe(WEB, "uid-web"), hold, Allocate(WEB, "uid-web", "default"))
    since = desk.now
    with desk.unit() as unit:
        from purelb_sm.domain.book import Plan

        join = Join(DNS, "uid-dns", ip_address(V4), "default", "k", (Port("UDP", 53),))
        made = Plan(DNS, (Observe(DNS, "uid-dns"), join, Allocate(DNS, "uid-dns", "default")))
        unit.load({DNS: "uid-dns"})
        unit.expect([made])
        unit.apply(made)
        unit.commit()
    found = of(desk, WEB, DNS)
    assert [a.silent_since for a in found[WEB].addresses] == [since]
    assert [a.silent_since for a in found[DNS].addresses] == [desk.now]
    desk.report(Agent("node1").add(V4).report())
    assert {each.nodes for each in of(desk, WEB, DNS).values()} == {1}


@pytest.mark.spec("C16")
def test_nothing_is_said_of_a_service_that_is_withdrawn_or_unknown(desk: Desk) -> None:
    desk.allocate(WEB, V4)
    desk.withdraw(WEB)
    assert of(desk, WEB, DNS) == {}


@pytest.mark.spec("C16")
def test_many_are_asked_of_in_a_few_statements(desk: Desk) -> None:
    keys = [ServiceKey("shop", f"s{n}") for n in range(50)]
    for n, key in enumerate(keys):
        desk.allocate(key, f"10.0.1.{n}")
    with desk.unit(desk.now) as unit:
        asked = []
        rows = unit._ws.db.rows

        def counted(*args: Any) -> Any:
            asked.append(args)
            return rows(*args)

        unit._ws.db.rows = counted  # type: ignore[method-assign,assignment]
        assert len(unit.announcers(keys[:40])) == 40
        assert len(asked) == 4
