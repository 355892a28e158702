"""The tables. A row is (trigger, sources, destination, why). Nothing else in the package may assign a `state`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from purelb_sm.domain.states import (
    AllocationState,
    AllocationTrigger,
    AnnouncementState,
    AnnouncementTrigger,
    ServiceState,
    ServiceTrigger,
)


@dataclass(frozen=True, slots=True)
class Move:
    """From each of `sources` the trigger leads to `dest`. `guard` names a condition on the facts given to fire()."""

    trigger: StrEnum
    sources: tuple[StrEnum, ...]
    dest: StrEnum
    when: str
    guard: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """One machine: its name, its states, the state a new row is born in, and its moves."""

    name: str
    states: type[StrEnum]
    triggers: type[StrEnum]
    initial: StrEnum
    moves: tuple[Move, ...]

    def dest(self, state: StrEnum, trigger: StrEnum) -> StrEnum | None:
        """Where `trigger` leads from `state`, guards aside; None where the table has no such move."""
        for move in self.moves:
            if move.trigger == trigger and state in move.sources:
                return move.dest
        return None


_S, _ST = ServiceState, ServiceTrigger
SERVICE: Final = Table(
    "service",
    _S,
    _ST,
    _S.PENDING,
    (
        Move(
            _ST.ALLOCATE, (_S.PENDING,), _S.ALLOCATED, "every family asked for has an address held for it", "complete"
        ),
        Move(_ST.REFUSE, (_S.PENDING,), _S.PENDING, "no: the reason is kept, and told in Event and condition"),
        Move(
            _ST.ANNOUNCE, (_S.ALLOCATED, _S.ANNOUNCING), _S.ANNOUNCING, "an agent reports the kernel holds an address"
        ),
        Move(_ST.FALL_SILENT, (_S.ANNOUNCING,), _S.ALLOCATED, "the last announcer is gone"),
        Move(
            _ST.REALLOCATE,
            (_S.ALLOCATED, _S.ANNOUNCING),
            _S.ALLOCATED,
            "group, families or request changed",
            "complete",
        ),
        Move(_ST.WITHDRAW, (_S.PENDING, _S.ALLOCATED, _S.ANNOUNCING), _S.WITHDRAWN, "deleted, type or class changed"),
        Move(_ST.REVIVE, (_S.WITHDRAWN,), _S.PENDING, "it asks again"),
    ),
)

_A, _AT = AllocationState, AllocationTrigger
ALLOCATION: Final = Table(
    "allocation",
    _A,
    _AT,
    _A.HELD,
    (
        Move(_AT.BEGIN_RELEASE, (_A.HELD,), _A.RELEASING, "its last member left", "no_members"),
        Move(
            _AT.CONFIRM_RELEASE,
            (_A.RELEASING,),
            _A.QUARANTINED,
            "no Service status shows it and no node announces it",
            "unseen",
        ),
        Move(_AT.RECLAIM, (_A.QUARANTINED, _A.RELEASING), _A.HELD, "the same claim asks again", "same_claim"),
        Move(
            _AT.EXPIRE, (_A.QUARANTINED,), _A.RELEASED, "quarantine over: another claim may take it", "quarantine_over"
        ),
    ),
)

_N, _NT = AnnouncementState, AnnouncementTrigger
_ALL = tuple(_N)
ANNOUNCEMENT: Final = Table(
    "announcement",
    _N,
    _NT,
    _N.ABSENT,
    (
        Move(
            _NT.ADD, (_N.ABSENT, _N.FAILED, _N.REMOVING, _N.LOST), _N.ADDING, "this node should hold it, and does not"
        ),
        Move(_NT.ADDED, (_N.ADDING,), _N.PRESENT, "the kernel took it"),
        Move(_NT.FAIL, (_N.ADDING, _N.REMOVING), _N.FAILED, "the kernel refused"),
        Move(_NT.REMOVE, (_N.ADDING, _N.PRESENT, _N.FAILED, _N.LOST), _N.REMOVING, "this node should not hold it"),
        Move(_NT.REMOVED, (_N.REMOVING,), _N.ABSENT, "the kernel let it go"),
        Move(
            _NT.FOUND_PRESENT,
            tuple(s for s in _ALL if s is not _N.PRESENT),
            _N.PRESENT,
            "the kernel was seen to hold it",
        ),
        Move(
            _NT.FOUND_ABSENT, tuple(s for s in _ALL if s is not _N.ABSENT), _N.ABSENT, "the kernel was seen without it"
        ),
        Move(_NT.FOUND_FAILED, tuple(s for s in _ALL if s is not _N.FAILED), _N.FAILED, "the agent reports it failed"),
        Move(_NT.CONTEST, (_N.PRESENT,), _N.PRESENT, "a foreign host was heard to use it, too: it stays"),
        Move(_NT.LOSE, (_N.ADDING, _N.PRESENT, _N.REMOVING), _N.LOST, "the node's Lease lapsed: nobody can say"),
    ),
)

MACHINES: Final = {table.name: table for table in (SERVICE, ALLOCATION, ANNOUNCEMENT)}
