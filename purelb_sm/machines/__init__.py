"""The three state machines: one table each, and `fire`, the only way by which a state ever changes."""

from purelb_sm.machines.fire import Fired, Stateful, fire, legal_triggers
from purelb_sm.machines.tables import ALLOCATION, ANNOUNCEMENT, MACHINES, SERVICE, Move, Table

__all__ = [
    "ALLOCATION",
    "ANNOUNCEMENT",
    "MACHINES",
    "SERVICE",
    "Fired",
    "Move",
    "Stateful",
    "Table",
    "fire",
    "legal_triggers",
]
