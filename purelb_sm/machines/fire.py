"""fire(): the one call site of every transition.

The `transitions` machines are shared, one per table, and never register their models: an object needs a `state`
attribute that holds the enum member, and nothing else. Guards are pure and read only the facts passed in; there is no
callback with an effect, since effects follow the commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from transitions import EventData, Machine, MachineError

from purelb_sm.errors import IllegalTransition
from purelb_sm.machines.tables import MACHINES, Table


class Stateful(Protocol):
    """Anything with a state: a row, or the agent's own record of an address."""

    state: Any


@dataclass(frozen=True, slots=True)
class Fired:
    """What a transition did: for the history row that goes with it."""

    machine: str
    trigger: StrEnum
    source: StrEnum
    dest: StrEnum


def fire(table: Table, obj: Stateful, trigger: StrEnum, **facts: bool) -> Fired:
    """Moves `obj` by `trigger`. Guards named in the table must be given as keyword facts, and be true.

    Raises IllegalTransition, and then `obj` is as it was.
    """
    source = obj.state
    if not isinstance(source, table.states):
        raise IllegalTransition(table.name, repr(source), trigger, "not a state of this machine")
    event = _ENGINES[table.name].events.get(str(trigger))
    if event is None:
        raise IllegalTransition(table.name, source, trigger, "not a trigger of this machine")
    try:
        moved = event.trigger(obj, **facts)
    except MachineError:
        raise IllegalTransition(table.name, source, trigger) from None
    if not moved:
        raise IllegalTransition(table.name, source, trigger, "its guard says no")
    return Fired(table.name, trigger, source, obj.state)


def legal_triggers(table: Table, state: StrEnum) -> list[StrEnum]:
    """The triggers that the table has from `state`, in the order of the table."""
    return [move.trigger for move in table.moves if state in move.sources]


def _guard(name: str) -> Any:
    def check(event: EventData) -> bool:
        return bool(event.kwargs.get(name, False))

    check.__name__ = name
    return check


def _engine(table: Table) -> Machine:
    return Machine(
        model=None,
        states=table.states,
        initial=None,
        auto_transitions=False,
        queued=False,
        send_event=True,
        transitions=[
            {
                "trigger": str(move.trigger),
                "source": list(move.sources),
                "dest": move.dest,
                "conditions": [_guard(move.guard)] if move.guard else [],
            }
            for move in table.moves
        ],
    )


_ENGINES = {name: _engine(table) for name, table in MACHINES.items()}
