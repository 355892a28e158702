"""The states and triggers of the three machines. The tables that connect them are in `purelb_sm.machines`."""

from __future__ import annotations

from enum import StrEnum


class ServiceState(StrEnum):
    """What the user of a Service sees of it."""

    PENDING = "pending"
    ALLOCATED = "allocated"
    ANNOUNCING = "announcing"
    WITHDRAWN = "withdrawn"


class ServiceTrigger(StrEnum):
    ALLOCATE = "allocate"
    REFUSE = "refuse"
    ANNOUNCE = "announce"
    FALL_SILENT = "fall_silent"
    REALLOCATE = "reallocate"
    WITHDRAW = "withdraw"
    REVIVE = "revive"


class AllocationState(StrEnum):
    """Where a held address stands on its way back to the pool."""

    HELD = "held"
    RELEASING = "releasing"
    QUARANTINED = "quarantined"
    RELEASED = "released"


class AllocationTrigger(StrEnum):
    BEGIN_RELEASE = "begin_release"
    CONFIRM_RELEASE = "confirm_release"
    RECLAIM = "reclaim"
    EXPIRE = "expire"


class AnnouncementState(StrEnum):
    """One address on one interface of one node."""

    ABSENT = "absent"
    ADDING = "adding"
    PRESENT = "present"
    REMOVING = "removing"
    FAILED = "failed"
    LOST = "lost"


class AnnouncementTrigger(StrEnum):
    """The agent fires all of these but `lose`, which only the allocator may, of a node that has gone silent.

    `found_*` state what the kernel was seen to hold, whatever was believed before: after a restart of the agent, after
    a person's hand on the interface, or where reports were missed.
    """

    ADD = "add"
    ADDED = "added"
    FAIL = "fail"
    REMOVE = "remove"
    REMOVED = "removed"
    FOUND_PRESENT = "found_present"
    FOUND_ABSENT = "found_absent"
    FOUND_FAILED = "found_failed"
    CONTEST = "contest"
    LOSE = "lose"


BIRTH = "observe"
"""The trigger that history gives the first row of a Service (no state before it)."""

HOLD = "hold"
"""The trigger that history gives the first row of an allocation (no state before it)."""

SEEN = "seen"
"""The trigger that history gives the first row of an announcement (no state before it)."""
