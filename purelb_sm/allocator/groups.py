"""What ServiceGroups are told about themselves: their status (spec A28), and Events `Parsed` and `ParseFailed` (A8).

Names and types of the status are PureLB's (v0.17) where it has them. The status itself is the memory of what was told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from purelb_sm.domain.addresses import Family
from purelb_sm.domain.book import EventNote
from purelb_sm.domain.groups import Group
from purelb_sm.domain.usage import GroupUsage
from purelb_sm.domain.views import ObjectView
from purelb_sm.errors import InvalidGroup

READY = "Ready"
EXHAUSTED = "Exhausted"
IPAM = "Cluster"
"""Who manages the addresses: the allocator itself."""

COUNT_MAX = 2**63 - 1
"""Counts are int64, as in PureLB and as every client of the API reads them. An IPv6 /64 has more than that: then it
says this, which nobody will take for a count of free addresses that run out."""

ADDRESSES_SHOWN = 64


@dataclass(frozen=True, slots=True)
class GroupNotice:
    """What one group is told: the fields of its status that change (None: removed), and the Events that go with it."""

    view: ObjectView
    status: dict[str, Any]
    events: tuple[EventNote, ...]


def group_notice(
    view: ObjectView, accepted: Group | None, refused: InvalidGroup | None, usage: GroupUsage, now: datetime
) -> GroupNotice | None:
    """None where the group's status says it already.

    `accepted` or `refused` may be of an older version of the object only if that says the same.
    """
    if refused is not None:
        ready = ("False", "ParseFailed", str(refused))
    elif accepted is not None:
        ready = ("True", "Parsed", _summary(accepted))
    else:
        return None
    current = view.status if isinstance(view.status, Mapping) else {}
    conditions = _conditions(current)
    told = [_condition(view, conditions, READY, *ready, now)]
    if accepted is not None:
        told.append(_condition(view, conditions, EXHAUSTED, *_exhausted(usage), now))
    ours = {READY, EXHAUSTED}
    wanted: dict[str, Any] = {
        "observedGeneration": view.generation,
        **_scope(accepted),
        **_numbers(accepted, usage),
        "conditions": [c for c in conditions if c.get("type") not in ours] + told,
    }
    if not _differ(conditions, wanted["conditions"]):
        wanted["conditions"] = current.get("conditions")
    changed = {name: value for name, value in wanted.items() if current.get(name) != value}
    if not changed:
        return None
    before = _of_type(conditions, READY)
    said = before is not None and (before.get("status"), before.get("reason"), before.get("message")) == ready
    return GroupNotice(view, changed, () if said else _events(accepted, refused, ready))


def _events(accepted: Group | None, refused: InvalidGroup | None, ready: tuple[str, str, str]) -> tuple[EventNote, ...]:
    warnings = (*accepted.warnings, *([accepted.conflict] if accepted.conflict else [])) if accepted else ()
    return (
        EventNote("Warning" if refused else "Normal", ready[1], ready[2]),
        *(EventNote("Warning", "ConfigurationWarning", text) for text in warnings),
    )


def _scope(group: Group | None) -> dict[str, Any]:
    """What addresses these are. Of a group that cannot be used: nothing, as nothing is given from it."""
    if group is None:
        return {"announce": None, "ipam": None, "addresses": None, "boundNamespaces": None}
    shown = [str(pool.range) for pool in group.pools[:ADDRESSES_SHOWN]]
    more = len(group.pools) - len(shown)
    return {
        "announce": "Auto" if group.agent_decides else group.pool_type.value.capitalize(),
        "ipam": IPAM,
        "addresses": [*shown, f"and {more} more"] if more else shown,
        "boundNamespaces": sorted(group.rule.namespaces) or None,
    }


def _numbers(group: Group | None, usage: GroupUsage) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for family in Family:
        of = usage.of(family)
        found[f"allocated{family.value}"] = min(of.held, COUNT_MAX)
        found[f"available{family.value}"] = None if group is None else min(of.available, COUNT_MAX)
        found[f"quarantined{family.value}"] = min(of.quarantined, COUNT_MAX)
        found[f"reserved{family.value}"] = None if group is None else min(of.reserved, COUNT_MAX)
        found[f"orphaned{family.value}"] = min(of.orphaned, COUNT_MAX)
    return found


def _exhausted(usage: GroupUsage) -> tuple[str, str, str]:
    if not usage.exhausted:
        return "False", "AddressesFree", "every family of the group has a free address"
    waits = sum(usage.of(family).quarantined for family in usage.exhausted)
    later = ", some are in quarantine" if waits else ""
    return "True", "PoolExhausted", f"no {' and no '.join(usage.exhausted)} address is free{later}"


def _condition(
    view: ObjectView,
    conditions: list[dict[str, Any]],
    type_: str,
    status: str,
    reason: str,
    message: str,
    now: datetime,
) -> dict[str, Any]:
    """`lastTransitionTime` moves only when the status does (meta/v1 Condition)."""
    current = _of_type(conditions, type_)
    same = current is not None and current.get("status") == status and "lastTransitionTime" in current
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": current["lastTransitionTime"] if same and current else _rfc3339(now),
        "observedGeneration": view.generation,
    }


def _differ(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether they say something else; the order in which they stand says nothing."""
    return {str(c.get("type")): c for c in one} != {str(c.get("type")): c for c in other}


def _of_type(conditions: list[dict[str, Any]], type_: str) -> dict[str, Any] | None:
    return next((c for c in conditions if c.get("type") == type_), None)


def _summary(group: Group) -> str:
    shown = ", ".join(str(pool.range) for pool in group.pools[:4])
    more = f" and {len(group.pools) - 4} more" if len(group.pools) > 4 else ""
    conflict = f"; but {group.conflict}" if group.conflict else ""
    return f"{group.pool_type.value} addresses from {shown}{more}{conflict}"


def _conditions(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = status.get("conditions")
    return [dict(c) for c in found if isinstance(c, Mapping)] if isinstance(found, list) else []


def _rfc3339(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
