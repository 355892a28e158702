"""What a Service's status should show, against what it shows: the difference, or None.

One write carries ingress, annotations and condition together, conditional on the resourceVersion that was looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address, parse_ip
from purelb_sm.domain.book import Publication
from purelb_sm.domain.requests import wants_re_evaluation
from purelb_sm.domain.views import Condition, ServiceView
from purelb_sm.errors import InvalidAddress, Reason


def shown_addresses(view: ServiceView) -> tuple[Address, ...]:
    """The addresses in the Service's ingress; entries that are none (host names, junk) are left out."""
    found: list[Address] = []
    for entry in view.ingress:
        try:
            found.append(parse_ip(entry.ip))
        except InvalidAddress:
            continue
    return tuple(found)


def branded(view: ServiceView) -> bool:
    """Whether the Service carries our brand: only then is its status ours to change."""
    return view.annotation(names.ALLOCATED_BY) == names.BRAND


def publish_allocated(
    view: ServiceView,
    addresses: Sequence[Address],
    group: str,
    pool_type: str,
    condition: Condition,
    *,
    granted: bool = True,
) -> Publication | None:
    """Shows these addresses, in this order (A3).

    `granted`: a wish to be planned anew is met by this; else another step has to follow, and the wish stays.
    """
    wanted = {names.ALLOCATED_BY: names.BRAND, names.ALLOCATED_FROM: group, names.POOL_TYPE: pool_type}
    changed: dict[str, str | None] = {k: v for k, v in wanted.items() if view.annotations.get(k) != v}
    changed |= _granted(view) if granted else {}
    # Servers that know no ipMode mean VIP by it.
    shown = [(entry.ip, entry.hostname, entry.ip_mode or "VIP") for entry in view.ingress]
    ingress_differs = [(str(a), "", "VIP") for a in addresses] != shown
    changed |= _announcing_others(view, addresses) if ingress_differs else {}
    return _difference(view, tuple(addresses) if ingress_differs else None, changed, _with(view.conditions, condition))


def _announcing_others(view: ServiceView, addresses: Sequence[Address]) -> dict[str, str | None]:
    """What says who announces goes with the addresses it was about: of one address of a family it names the node only,
    and would pass for the new one's, which no node has announced yet."""
    before = shown_addresses(view)
    return {
        annotation: None
        for annotation, version in ((names.ANNOUNCING_V4, 4), (names.ANNOUNCING_V6, 6))
        if annotation in view.annotations
        and any(a.version == version for a in before)
        and not any(a.version == version and a in addresses for a in before)
    }


def publish_refused(view: ServiceView, condition: Condition) -> Publication | None:
    """Shows why there is no address. An ingress under our brand that the book does not back is taken away."""
    stale = branded(view)
    annotations: dict[str, str | None] = {name: None for name in names.OURS if stale and name in view.annotations}
    annotations |= _granted(view)
    ingress: tuple[Address, ...] | None = () if stale and view.ingress else None
    # Without an address there is nothing of which a node could announce it.
    kept = tuple(c for c in view.conditions if c.type != names.CONDITION_ANNOUNCED)
    return _difference(view, ingress, annotations, _with(kept, condition))


def publish_condition(view: ServiceView, condition: Condition) -> Publication | None:
    """Shows this condition beside the others, and changes nothing else."""
    return _difference(view, None, {}, _with(view.conditions, condition))


def _granted(view: ServiceView) -> dict[str, str | None]:
    """A wish to be planned anew goes with the very write that shows what came of it (A23)."""
    return {names.RE_EVALUATE: None} if wants_re_evaluation(view) else {}


def publish_withdrawn(view: ServiceView, *, ingress_is_ours: bool) -> Publication | None:
    """Takes away all that is ours from a Service that lives on without us (A18); nothing of anybody else's."""
    annotations: dict[str, str | None] = {name: None for name in names.OURS if name in view.annotations}
    kept = tuple(c for c in view.conditions if c.type not in (names.CONDITION_ALLOCATED, names.CONDITION_ANNOUNCED))
    return _difference(view, () if ingress_is_ours and view.ingress else None, annotations, kept)


def condition_allocated(
    view: ServiceView, addresses: Iterable[Address], group: str, now: datetime, remark: str = ""
) -> Condition:
    text = ", ".join(str(address) for address in addresses) + f" from pool {group}"
    message = f"{text}; {remark}" if remark else text
    return _condition(view, names.CONDITION_ALLOCATED, "True", "Allocated", message, now)


def condition_refused(view: ServiceView, reason: Reason, message: str, now: datetime) -> Condition:
    return _condition(view, names.CONDITION_ALLOCATED, "False", reason.value, message, now)


def condition_announced(view: ServiceView, status: str, reason: str, message: str, now: datetime) -> Condition:
    return _condition(view, names.CONDITION_ANNOUNCED, status, reason, message, now)


def current_condition(view: ServiceView, type_: str = names.CONDITION_ALLOCATED) -> Condition | None:
    return next((c for c in view.conditions if c.type == type_), None)


def _condition(view: ServiceView, type_: str, status: str, reason: str, message: str, now: datetime) -> Condition:
    """`lastTransitionTime` moves only when the status does (meta/v1 Condition); an equal condition is kept as it is."""
    current = current_condition(view, type_)
    if current and (current.status, current.reason, current.message) == (status, reason, message):
        return current
    at = current.last_transition_time if current and current.status == status else _rfc3339(now)
    return Condition(type_, status, reason, message, at, view.generation)


def _with(conditions: tuple[Condition, ...], condition: Condition) -> tuple[Condition, ...]:
    """A merge patch replaces the list, so the others are sent back as they were found."""
    if any(c.type == condition.type for c in conditions):
        return tuple(condition if c.type == condition.type else c for c in conditions)
    return (*conditions, condition)


def _difference(
    view: ServiceView,
    ingress: tuple[Address, ...] | None,
    annotations: dict[str, str | None],
    conditions: tuple[Condition, ...],
) -> Publication | None:
    changed = None if conditions == view.conditions else conditions
    if ingress is None and not annotations and changed is None:
        return None
    return Publication(view.key, view.uid, view.resource_version, ingress, annotations, changed)


def _rfc3339(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
