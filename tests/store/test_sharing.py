"""Shared addresses in the book, on both engines: who is a member since when, on which ports, and what is refused."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest

from purelb_sm.domain.book import Action, Allocate, Booked, Hold, Join, Leave, Observe, Plan, SetKey, SetPorts, Withdraw
from purelb_sm.domain.sharing import Member, SharedAddress
from purelb_sm.domain.states import AllocationState, ServiceState
from purelb_sm.domain.views import Port, ServiceKey
from purelb_sm.errors import Clash, StoreError
from purelb_sm.store.audit import Audit, Filter
from tests.support.book import Agent, Desk

ONE = ip_address("10.0.0.1")
A, B, C = (ServiceKey("shop", name) for name in "abc")
TCP80, TCP443, UDP80 = Port("TCP", 80), Port("TCP", 443), Port("UDP", 80)


def come(desk: Desk, key: ServiceKey, *ports: Port, sharing_key: str = "K", first: bool = False) -> None:
    give: Action = Join(key, f"uid-{key.name}", ONE, "default", sharing_key, ports)
    if first:
        give = Hold(key, f"uid-{key.name}", ONE, "default", ports, sharing_key=sharing_key)
    act(desk, key, Observe(key, f"uid-{key.name}"), give, Allocate(key, f"uid-{key.name}", "default"))


def act(desk: Desk, key: ServiceKey, *actions: Action) -> None:
    with desk.unit() as unit:
        unit.load({key: f"uid-{key.name}"})
        made = Plan(key, actions)
        unit.expect([made])
        unit.apply(made)
        unit.commit()


def go(desk: Desk, key: ServiceKey) -> None:
    uid, booked = f"uid-{key.name}", desk.booked(key)
    leaves = [Leave(key, uid, a.id, a.address, "deleted") for a in booked.held]
    act(desk, key, *leaves, Withdraw(key, uid, "deleted"))


def shared(desk: Desk) -> list[SharedAddress]:
    with desk.unit(desk.now) as unit:
        return unit.shared()


def told(desk: Desk, **wanted: Any) -> list[tuple[str, str, str]]:
    audit = Audit.open(desk.url)
    try:
        audit.verify()
        return [(r.kind, r.trigger, r.name) for r in audit.history(Filter(**wanted))]
    finally:
        audit.close()


def number_of(booked: Booked) -> int:
    return booked.held[0].id


@pytest.mark.spec("A15", "B1")
def test_members_join_and_are_booked_with_their_ports(desk: Desk) -> None:
    come(desk, A, TCP80, first=True)
    come(desk, B, TCP443, UDP80)
    (a,), (b,) = desk.booked(A).held, desk.booked(B).held
    assert a.id == b.id
    assert (a.ports, b.ports) == (frozenset({("TCP", 80)}), frozenset({("TCP", 443), ("UDP", 80)}))
    assert (a.sharing_key, a.claim, a.state) == ("K", "shop/a", AllocationState.HELD)
    members = (Member("uid-a", A, frozenset(a.ports or ())), Member("uid-b", B, frozenset(b.ports or ())))
    assert shared(desk) == [SharedAddress(ONE, "default", "K", A, members)]
    assert told(desk, address=ONE) == [("allocation", "hold", "a"), ("membership", "join", "b")]


@pytest.mark.spec("A15", "B6")
def test_the_database_itself_refuses_two_services_on_one_port(desk: Desk) -> None:
    come(desk, A, TCP80, first=True)
    with pytest.raises(Clash):
        come(desk, B, TCP443, TCP80)
    assert desk.booked(B).service is None, "nothing of it is kept"
    come(desk, B, UDP80)
    with pytest.raises(Clash):
        act(desk, B, SetPorts(B, "uid-b", number_of(desk.booked(B)), ONE, (TCP80, UDP80)))
    assert desk.booked(B).held[0].ports == frozenset({("UDP", 80)})


@pytest.mark.spec("A15")
def test_a_port_that_one_gives_up_is_anothers_in_the_same_transaction(desk: Desk) -> None:
    come(desk, A, TCP80, first=True)
    number = number_of(desk.booked(A))
    with desk.unit() as unit:
        unit.load({A: "uid-a", B: "uid-b"})
        plans = [
            Plan(A, (SetPorts(A, "uid-a", number, ONE, (TCP443,)),)),
            Plan(B, (Observe(B, "uid-b"), Join(B, "uid-b", ONE, "default", "K", (TCP80,)))),
        ]
        unit.expect(plans)
        for made in plans:
            unit.apply(made)
        unit.commit()
    assert desk.booked(A).held[0].ports == frozenset({("TCP", 443)})
    assert desk.booked(B).held[0].ports == frozenset({("TCP", 80)})


@pytest.mark.spec("A15", "E1")
@pytest.mark.parametrize("key", ["L", "k", "K ", ""])
def test_another_key_does_not_join_whatever_was_planned(desk: Desk, key: str) -> None:
    come(desk, A, TCP80, first=True)
    with pytest.raises(StoreError, match="not shared under the key"):
        come(desk, B, TCP443, sharing_key=key)


def test_what_was_not_loaded_is_not_joined(desk: Desk) -> None:
    with pytest.raises(StoreError, match="was not loaded"):
        come(desk, B, TCP443)


@pytest.mark.spec("A15")
def test_the_key_of_several_is_not_one_members_to_change(desk: Desk) -> None:
    come(desk, A, TCP80, first=True)
    come(desk, B, TCP443)
    number = number_of(desk.booked(A))
    with pytest.raises(StoreError, match="not one's to change"):
        act(desk, A, SetKey(A, "uid-a", number, ONE, "default", (TCP80,), "L"))
    go(desk, A)
    act(desk, B, SetKey(B, "uid-b", number, ONE, "default", (TCP443,), "L"))
    assert [(one.sharing_key, one.claim) for one in shared(desk)] == [("L", B)]
    act(desk, B, SetKey(B, "uid-b", number, ONE, "default", (TCP443,), None))
    assert shared(desk) == []
    assert told(desk, address=ONE)[-2:] == [("membership", "set_key", "b"), ("membership", "set_key", "b")]


@pytest.mark.spec("A16", "B2")
def test_the_last_to_leave_begins_the_release_and_the_claim_is_its(desk: Desk) -> None:
    come(desk, A, TCP80, first=True)
    come(desk, B, TCP443)
    together = desk.now
    go(desk, A)
    alone = desk.now
    assert desk.booked(A).reclaimable == ()
    go(desk, B)
    assert [(a.address, a.claim, a.state) for a in desk.booked(B).reclaimable] == [
        (ONE, "shop/b", AllocationState.RELEASING)
    ]
    assert told(desk, address=ONE) == [
        ("allocation", "hold", "a"),
        ("membership", "join", "b"),
        ("membership", "leave", "a"),
        ("allocation", "begin_release", "b"),
    ]
    audit = Audit.open(desk.url)
    try:
        who = {at: [h.service and h.service.name for h in audit.who_had(ONE, at)] for at in (together, alone, desk.now)}
    finally:
        audit.close()
    assert who == {together: ["a", "b"], alone: ["b"], desk.now: [None]}


@pytest.mark.spec("A16", "B5")
def test_a_release_waits_for_every_service_that_was_ever_a_member(desk: Desk) -> None:
    come(desk, A, TCP80, first=True)
    come(desk, B, TCP443)
    come(desk, C, UDP80)
    for key in (A, B, C):
        go(desk, key)
    with desk.unit(desk.now) as unit:
        (releasing,) = unit.releasing(10)
    assert releasing.members == (A, B, C)


@pytest.mark.spec("A16", "A21")
@pytest.mark.parametrize("quarantined", [False, True])
def test_one_who_shares_it_may_have_it_back_and_is_the_claim_then(desk: Desk, quarantined: bool) -> None:
    come(desk, A, TCP80, first=True)
    number = number_of(desk.booked(A))
    go(desk, A)
    if quarantined:
        desk.confirm(number)
    assert [one.members for one in shared(desk)] == [()]
    come(desk, B, TCP443)
    (held,) = desk.booked(B).held
    assert (held.id, held.claim, held.state, held.quarantined_until) == (number, "shop/b", AllocationState.HELD, None)
    assert told(desk, address=ONE)[-1] == ("allocation", "reclaim", "b")
    go(desk, B)
    desk.confirm(number)
    desk.expire()
    assert shared(desk) == []


@pytest.mark.spec("A15", "C15")
def test_who_joins_an_address_that_is_announced_is_announced(desk: Desk) -> None:
    come(desk, A, TCP80, first=True)
    desk.report(Agent().add("10.0.0.1").report())
    come(desk, B, TCP443)
    service = desk.booked(B).service
    assert service is not None
    assert service.state is ServiceState.ANNOUNCING
    go(desk, A)
    desk.report(Agent(incarnation="b", started_at=desk.now + timedelta(hours=1)).report())
    service = desk.booked(B).service
    assert service is not None
    assert service.state is ServiceState.ALLOCATED


@pytest.mark.spec("E1", "B6")
@pytest.mark.parametrize("key", ["鍵🔑", "x" * 253, "'; --", "%", "a b", "\\"])
def test_a_key_comes_back_as_it_was(desk: Desk, key: str) -> None:
    come(desk, A, TCP80, sharing_key=key, first=True)
    come(desk, B, TCP443, sharing_key=key)
    assert [one.sharing_key for one in shared(desk)] == [key]
    assert desk.booked(A).held[0].sharing_key == key
