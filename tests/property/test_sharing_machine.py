"""The search over interleavings, with Services that share: keys and ports are edited like everything else.

What must always be so: whoever shows an address is booked as a member of it, or nobody is and it was; the index that
the leader keeps is what the book says. In the end: who shows one address has one key and no port twice, unless its new
key cannot be served: then it keeps what it has, and is told. A port conflict is told only where there is one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.book import Plan
from purelb_sm.domain.publication import current_condition, shown_addresses
from purelb_sm.domain.sharing import Shared, port_keys
from purelb_sm.domain.views import Port, PortKey, ServiceKey, ServiceView
from tests.property import test_engine_machine as base
from tests.property.test_engine_machine import FAMILIES, KEYS, SPECS, EngineMachine, edited
from tests.support.office import ports
from tests.support.search import SEARCH_TIMES

SHARING = [None, "K", "K", "K", "L"]
PORTS = [("80",), ("443",), ("53/UDP",), ("80/UDP",), ("80", "443")]
WISHES = ["", "", "", "10.0.0.1", "10.0.0.2"]
MOVES = [*base.MOVES, "key", "key", "key", "ports", "ports", "ports"]


@dataclass(frozen=True)
class Edit:
    """What a user does to one Service; which of the rest counts depends on the move."""

    key: ServiceKey
    move: str
    families: Any
    wish: str
    sharing: str | None
    on: tuple[str, ...]


EDITS = st.lists(
    st.builds(
        Edit,
        st.sampled_from(KEYS),
        st.sampled_from(MOVES),
        st.sampled_from(FAMILIES),
        st.sampled_from(WISHES),
        st.sampled_from(SHARING),
        st.sampled_from(PORTS),
    ),
    min_size=1,
    max_size=3,
)


class SharingMachine(EngineMachine):
    @initialize(
        spec=st.sampled_from(SPECS[1:4]),
        keys=st.tuples(*[st.sampled_from(SHARING)] * 3),
        on=st.tuples(*[st.sampled_from(PORTS)] * 3),
    )
    def begin(self, spec: Any, keys: tuple[str | None, ...], on: tuple[tuple[str, ...], ...]) -> None:
        self.change_group("default", spec)
        self.look_at_groups(self.leader)
        for key, sharing, which in zip(KEYS, keys, on, strict=True):
            self.create(key, FAMILIES[0], "")
            self.put(key, shares(self.cluster[key], sharing, which))
        self.work()

    @rule(edits=EDITS, then=st.sampled_from(["unseen", "planned", "done"]))
    def a_user_does(self, edits: list[Edit], then: str) -> None:
        """Some edits, and how far the allocator comes with them before anything else happens."""
        for edit in edits:
            self.edit(edit)
        if then == "planned":
            self.catch_up(KEYS)
            self.plan(self.leader, KEYS)
        elif then == "done":
            self.work()

    @rule(edits=EDITS)
    def users_do(self, edits: list[Edit]) -> None:
        self.a_user_does(edits, "done")

    @rule(key=st.sampled_from(KEYS), sharing=st.sampled_from(SHARING), on=st.sampled_from(PORTS))
    def a_sharer_is_edited(self, key: ServiceKey, sharing: str | None, on: tuple[str, ...]) -> None:
        if key in self.cluster:
            self.put(key, shares(self.cluster[key], sharing, on))
            self.catch_up([key])
            self.plan(self.leader, [key])

    def edit(self, edit: Edit) -> None:
        key, view = edit.key, self.cluster.get(edit.key)
        if view is None or edit.move == "again":
            self.cluster.pop(key, None)
            self.create(key, edit.families, edit.wish)
            self.put(key, shares(self.cluster[key], edit.sharing, edit.on))
        elif edit.move == "go":
            del self.cluster[key]
        elif edit.move == "key":
            self.put(key, shares(view, edit.sharing, tuple(f"{p.port}/{p.protocol}" for p in view.ports)))
        elif edit.move == "ports":
            self.put(key, shares(view, view.annotation(names.ALLOW_SHARED_IP), edit.on))
        elif not view.deleting:
            self.put(key, edited(view, edit.move, edit.families, edit.wish))

    # -- what must always be so ---------------------------------------------------------------------------------

    def members(self) -> dict[Address, dict[str, set[PortKey]]]:
        """By address, the Services that are members of it now, each with its ports in the book."""
        rows = self.reader.execute(
            """SELECT a.address_text, s.namespace || '/' || s.name, p.protocol, p.port FROM membership m
            JOIN allocation a ON a.id = m.allocation_id JOIN service s ON s.uid = m.service_uid
            LEFT JOIN port_claim p ON p.allocation_id = a.id AND p.service_uid = s.uid AND p.until_at IS NULL
            WHERE m.until_at IS NULL"""
        )
        found: dict[Address, dict[str, set[PortKey]]] = {}
        for address, name, protocol, port in rows:
            found.setdefault(ip_address(address), {}).setdefault(name, set()).add((protocol, port))
        return found

    def were_members(self) -> set[tuple[Address, str]]:
        """Of addresses that are not free: everybody who ever was a member of it since it was last free."""
        rows = self.reader.execute(
            """SELECT a.address_text, s.namespace || '/' || s.name FROM membership m
            JOIN allocation a ON a.id = m.allocation_id JOIN service s ON s.uid = m.service_uid
            WHERE a.released_at IS NULL"""
        )
        return {(ip_address(address), name) for address, name in rows}

    @invariant()
    def no_address_is_shown_by_two(self) -> None:
        """But under one key, which `what_is_shown_is_booked_for_it` sees to."""

    @invariant()
    def what_is_shown_is_booked_for_it(self) -> None:
        members, before = self.members(), self.were_members()
        for key, view in self.cluster.items():
            for address in shown_addresses(view):
                mine = str(key) in members.get(address, {})
                gone = not members.get(address) and (address, str(key)) in before
                assert mine or gone, f"{key} shows {address}, which {members.get(address)} have"

    @invariant()
    def no_port_is_booked_for_two(self) -> None:
        for address, by_name in self.members().items():
            count = Counter(port for ports_ in by_name.values() for port in ports_)
            assert not [port for port, times in count.items() if times > 1], f"{address}: {by_name}"

    @invariant()
    def the_index_is_what_the_book_says(self) -> None:
        world = self.leader.engine._world
        if world is not None:
            with self.leader.book.transaction(self.leader.engine.term, self.now) as unit:
                assert world.shared == Shared(unit.shared())

    # -- the end ------------------------------------------------------------------------------------------------

    def book_and_cluster_agree(self, made: list[Plan]) -> None:
        waiting = {each.key for each in made if each.waiting}
        members = self.members()
        for key, view in self.cluster.items():
            if view.type != "LoadBalancer" or view.load_balancer_class is not None or view.deleting:
                assert not view.ingress
                assert not [a for a, by_name in members.items() if str(key) in by_name]
                continue
            condition = current_condition(view)
            assert condition is not None
            assert (condition.status == "False") == (key in waiting)
            self.shows_what_it_has(view, members, condition.reason == "PortConflict")
            if condition.reason == "PortConflict":
                self.there_is_a_conflict(view, members)
            elif condition.status == "False" and not view.annotation(names.ALLOW_SHARED_IP):
                self.could_not_be_served(view, dict(self.leader.engine._groups))
        self.who_shares_may(members, {str(key) for key in waiting})

    def shows_what_it_has(
        self, view: ServiceView, members: dict[Address, dict[str, set[PortKey]]], conflict: bool
    ) -> None:
        has = {a for a, by_name in members.items() if str(view.key) in by_name}
        shown = set(shown_addresses(view))
        assert shown == has or (conflict and shown < has)
        for address in shown:
            assert members[address][str(view.key)] == port_keys(view.ports), "the book follows the ports"

    def there_is_a_conflict(self, view: ServiceView, members: dict[Address, dict[str, set[PortKey]]]) -> None:
        wanted = port_keys(view.ports)
        others = [p for by_name in members.values() for name, p in by_name.items() if name != str(view.key)]
        assert any(wanted & taken for taken in others), f"{view.key} was told of a conflict that is none"

    def who_shares_may(self, members: dict[Address, dict[str, set[PortKey]]], waiting: set[str]) -> None:
        by_name = {str(key): view for key, view in self.cluster.items()}
        for address, names_ in members.items():
            if len(names_) > 1:
                served = [name for name in names_ if self.shows(name, address) and name not in waiting]
                keys = {by_name[name].annotation(names.ALLOW_SHARED_IP) for name in served}
                assert len(keys) <= 1, f"{address} is shown under {keys}"
                assert None not in keys

    def shows(self, name: str, address: Address) -> bool:
        return any(str(key) == name and address in shown_addresses(view) for key, view in self.cluster.items())


def shares(view: ServiceView, sharing: str | None, on: tuple[str, ...]) -> ServiceView:
    annotations = {k: v for k, v in view.annotations.items() if k != names.ALLOW_SHARED_IP}
    if sharing is not None:
        annotations[names.ALLOW_SHARED_IP] = sharing
    found: tuple[Port, ...] = ports(*on)
    return replace(view, annotations=annotations, ports=found)


@pytest.mark.spec("A15")
def test_who_changes_its_key_and_cannot_be_served_under_it_keeps_what_it_has_and_is_told() -> None:
    """Found by the search: with one address in all, the new key has nowhere to go."""
    state = SharingMachine()
    first, second, _ = KEYS
    state.begin(spec=SPECS[1], keys=(None, None, None), on=(("80",), ("80",), ("80",)))
    state.a_sharer_is_edited(key=first, on=("80/UDP",), sharing="K")
    state.work()
    state.a_sharer_is_edited(key=second, on=("443",), sharing="K")
    state.users_do([Edit(second, "key", FAMILIES[0], "", "L", ())])
    state.what_is_shown_is_booked_for_it()
    assert state.shows(str(second), ip_address("10.0.0.1"))
    condition = current_condition(state.cluster[second])
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "PoolExhausted")
    # When the others have left, the address is its own, under the new key.
    state.users_do([Edit(first, "go", FAMILIES[0], "", None, ())])
    state.teardown()


@pytest.mark.spec("A15", "A16", "A17", "A20", "A21", "B1", "E4", "E6")
def test_no_interleaving_breaks_what_is_shared() -> None:
    run_state_machine_as_test(
        SharingMachine,
        settings=settings(
            max_examples=40 * SEARCH_TIMES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
