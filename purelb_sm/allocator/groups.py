"""What ServiceGroups are told about themselves: the condition `Ready`, and Events `Parsed` and `ParseFailed` (A8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from purelb_sm.domain.book import EventNote
from purelb_sm.domain.groups import Group
from purelb_sm.domain.views import ObjectView
from purelb_sm.errors import InvalidGroup

READY = "Ready"


@dataclass(frozen=True, slots=True)
class GroupNotice:
    """What one group is told: the new list of conditions for its status, and the Events that go with it."""

    view: ObjectView
    conditions: list[dict[str, Any]]
    events: tuple[EventNote, ...]


def group_notice(
    view: ObjectView, accepted: Group | None, refused: InvalidGroup | None, now: datetime
) -> GroupNotice | None:
    """None where the group's status says it already: the status itself is the memory of what was told.

    `accepted` or `refused` may be of an older version of the object only if that says the same.
    """
    if refused is not None:
        status, reason, message = "False", "ParseFailed", str(refused)
    elif accepted is not None:
        status, reason, message = "True", "Parsed", _summary(accepted)
    else:
        return None
    conditions = _conditions(view)
    current = next((c for c in conditions if c.get("type") == READY), None)
    if current and (current.get("status"), current.get("reason"), current.get("message")) == (status, reason, message):
        return None
    same = current is not None and current.get("status") == status
    fresh = {
        "type": READY,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": current["lastTransitionTime"] if same and current else _rfc3339(now),
        "observedGeneration": view.generation,
    }
    others = [c for c in conditions if c.get("type") != READY]
    events = [EventNote("Warning" if refused else "Normal", reason, message)]
    events += [EventNote("Warning", "ConfigurationWarning", text) for text in (accepted.warnings if accepted else ())]
    return GroupNotice(view, [*others, fresh], tuple(events))


def _summary(group: Group) -> str:
    shown = ", ".join(str(pool.range) for pool in group.pools[:4])
    more = f" and {len(group.pools) - 4} more" if len(group.pools) > 4 else ""
    return f"{group.pool_type.value} addresses from {shown}{more}"


def _conditions(view: ObjectView) -> list[dict[str, Any]]:
    status = view.status
    found = status.get("conditions") if isinstance(status, Mapping) else None
    return [dict(c) for c in found if isinstance(c, Mapping)] if isinstance(found, list) else []


def _rfc3339(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
