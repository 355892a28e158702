"""Every (state, trigger) pair of every machine: legal as the table says, or IllegalTransition and nothing changed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from purelb_sm.domain.states import AllocationState, AllocationTrigger, ServiceState, ServiceTrigger
from purelb_sm.errors import IllegalTransition
from purelb_sm.machines import ALLOCATION, MACHINES, SERVICE, Table, fire, legal_triggers
from purelb_sm.machines.diagrams import markdown

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "state-machines.md"

# Written down apart from the tables, so that a slip there is seen: machine -> state -> trigger -> destination.
EXPECTED: dict[str, dict[str, dict[str, str]]] = {
    "service": {
        "pending": {"allocate": "allocated", "refuse": "pending", "withdraw": "withdrawn"},
        "allocated": {"announce": "announcing", "reallocate": "allocated", "withdraw": "withdrawn"},
        "announcing": {
            "announce": "announcing",
            "fall_silent": "allocated",
            "reallocate": "allocated",
            "withdraw": "withdrawn",
        },
        "withdrawn": {"revive": "pending"},
    },
    "allocation": {
        "held": {"begin_release": "releasing"},
        "releasing": {"confirm_release": "quarantined", "reclaim": "held"},
        "quarantined": {"reclaim": "held", "expire": "released"},
        "released": {},
    },
    "announcement": {
        "absent": {"add": "adding", "found_present": "present", "found_failed": "failed"},
        "adding": {
            "added": "present",
            "fail": "failed",
            "remove": "removing",
            "found_present": "present",
            "found_absent": "absent",
            "found_failed": "failed",
            "lose": "lost",
        },
        "present": {
            "remove": "removing",
            "found_absent": "absent",
            "found_failed": "failed",
            "contest": "present",
            "lose": "lost",
        },
        "removing": {
            "add": "adding",
            "fail": "failed",
            "removed": "absent",
            "found_present": "present",
            "found_absent": "absent",
            "found_failed": "failed",
            "lose": "lost",
        },
        "failed": {"add": "adding", "remove": "removing", "found_present": "present", "found_absent": "absent"},
        "lost": {
            "add": "adding",
            "remove": "removing",
            "found_present": "present",
            "found_absent": "absent",
            "found_failed": "failed",
        },
    },
}


@dataclass
class Thing:
    state: Any


def facts(table: Table) -> dict[str, bool]:
    return {move.guard: True for move in table.moves if move.guard}


PAIRS = [
    pytest.param(table, state, trigger, id=f"{table.name}-{state}-{trigger}")
    for table in MACHINES.values()
    for state in table.states
    for trigger in table.triggers
]


@pytest.mark.parametrize(("table", "state", "trigger"), PAIRS)
def test_every_pair_is_a_move_or_illegal(table: Table, state: StrEnum, trigger: StrEnum) -> None:
    thing = Thing(state)
    dest = EXPECTED[table.name][state].get(trigger)
    assert (trigger in legal_triggers(table, state)) is (dest is not None)
    if dest is None:
        with pytest.raises(IllegalTransition):
            fire(table, thing, trigger, **facts(table))
        assert thing.state is state
    else:
        fired = fire(table, thing, trigger, **facts(table))
        assert (fired.source, fired.dest, thing.state) == (state, dest, table.states(dest))
        assert table.dest(state, trigger) == dest


GUARDED = [
    pytest.param(table, source, move.trigger, id=f"{table.name}-{source}-{move.trigger}")
    for table in MACHINES.values()
    for move in table.moves
    for source in move.sources
    if move.guard
]


@pytest.mark.parametrize(("table", "state", "trigger"), GUARDED)
def test_a_guard_that_is_not_stated_or_false_stops_the_move(table: Table, state: StrEnum, trigger: StrEnum) -> None:
    for said in ({}, dict.fromkeys(facts(table), False)):
        thing = Thing(state)
        with pytest.raises(IllegalTransition, match="guard"):
            fire(table, thing, trigger, **said)
        assert thing.state is state


def test_a_state_or_trigger_of_another_machine_is_illegal() -> None:
    for thing in (Thing("pending"), Thing(AllocationState.HELD), Thing(None)):
        before = thing.state
        with pytest.raises(IllegalTransition):
            fire(SERVICE, thing, ServiceTrigger.WITHDRAW)
        assert thing.state is before
    with pytest.raises(IllegalTransition):
        fire(SERVICE, Thing(ServiceState.PENDING), AllocationTrigger.EXPIRE)
    with pytest.raises(IllegalTransition):
        fire(ALLOCATION, Thing(AllocationState.HELD), StrEnum("T", {"X": "nonsense"}).X)  # type: ignore[attr-defined]


def test_the_page_of_diagrams_is_the_generated_one() -> None:
    assert PAGE.read_text() == markdown(), (
        "run: python -m purelb_sm.machines.diagrams > docs/reference/state-machines.md"
    )
