"""The story of a Service: what the book says of it and the cluster shows, in sentences. Reads nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.announced import named
from purelb_sm.domain.publication import branded, current_condition, shown_addresses
from purelb_sm.domain.release import may_confirm
from purelb_sm.domain.remedies import NOT_ANNOUNCED, remedy
from purelb_sm.domain.states import AllocationState, AnnouncementState, ServiceState
from purelb_sm.domain.views import ServiceKey, ServiceView

if TYPE_CHECKING:
    from purelb_sm.store.explaining import Explanation, HeldAddress, LastMove
    from purelb_sm.store.pooling import GroupState

STUCK_AFTER_S = 30.0
"""A release that takes no longer than this is on its way, and none that anybody has to look at."""

Told = tuple["HeldAddress", str]
"""An address, and what its release waits for; empty where it is on no way back."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the cluster shows: the Service (None: there is none), the names of the Nodes, and of those that are giving
    their addresses up, why."""

    view: ServiceView | None
    nodes: frozenset[str]
    leaving: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Story:
    """All that is told of a Service."""

    key: ServiceKey
    uid: str
    state: str
    since: datetime | None
    reason: str
    why: str
    changes: str
    group: str
    addresses: tuple[Told, ...] = ()
    groups: tuple[GroupState, ...] = ()
    stuck: tuple[Told, ...] = ()
    moves: tuple[LastMove, ...] = ()
    ahead: int = 0
    leaving: Mapping[str, str] = field(default_factory=dict)


def story(found: Explanation, seen: Seen | None, now: datetime) -> Story:
    """What the book says, with what the cluster tells of releases and refusals where it was asked."""
    service = found.service
    why, changes = _why(found, seen)
    addresses = tuple((held, waits_for(held, seen, now)) for held in found.addresses)
    late = [each for each in found.stuck if (now - each.since).total_seconds() > STUCK_AFTER_S]
    return Story(
        found.key,
        service.uid,
        service.state.value,
        service.since,
        service.reason,
        why,
        changes,
        service.group,
        addresses,
        _groups(found),
        tuple((held, waits_for(held, seen, now)) for held in late),
        found.moves,
        found.ahead,
        seen.leaving if seen else {},
    )


def unknown_story(key: ServiceKey, seen: Seen | None) -> Story:
    """A Service of the cluster that the book does not know."""
    view = seen.view if seen else None
    assert view is not None
    if view.type != "LoadBalancer":
        why, changes = f"it is of type {view.type}, and asks for no address", "type LoadBalancer"
    elif view.load_balancer_class not in (None, names.LOAD_BALANCER_CLASS):
        why = f"its loadBalancerClass {view.load_balancer_class} names another controller"
        changes = f"loadBalancerClass {names.LOAD_BALANCER_CLASS}, which only a new Service can have"
    else:
        why = "the allocator has not booked it: it is down, away from its database, or was told --default-class=false"
        changes = "a look at the allocator's log and its /readyz"
    return Story(key, view.uid, "not in the book", None, "", why, changes, "")


def _groups(found: Explanation) -> tuple[GroupState, ...]:
    """Those that were tried: the one that the refusal names, else all."""
    words = set(found.service.message.replace(",", " ").replace(":", " ").split())
    named = tuple(group for group in found.groups if group.name in words)
    return named or found.groups


def _why(found: Explanation, seen: Seen | None) -> tuple[str, str]:
    service = found.service
    if service.state is ServiceState.PENDING:
        if service.reason:
            return f"{service.reason}: {service.message}", remedy(service.reason)
        return "it was seen, and nothing is decided yet", "the allocator's next look"
    if service.state is ServiceState.WITHDRAWN:
        return service.reason, "a Service of this name that asks again gets back what is still kept for it"
    condition = current_condition(seen.view) if seen and seen.view else None
    if condition is not None and condition.status == "False":
        text = f"it keeps what it has; what it asks for now was refused: {condition.reason}: {condition.message}"
        return text, remedy(condition.reason)
    if service.state is ServiceState.ALLOCATED:
        return (
            "it has every address that it asks for, and no node announces one of them",
            NOT_ANNOUNCED,
        )
    if silent := _silent(found):
        return f"it has every address that it asks for, and no node announces {named(silent)}", NOT_ANNOUNCED
    return "it has every address that it asks for, and nodes announce them", ""


def _silent(found: Explanation) -> list[Address]:
    """What it has, and no node announces."""
    return [
        held.address
        for held in found.addresses
        if found.key in held.members and all(a.state is not AnnouncementState.PRESENT for a in held.announcements)
    ]


def waits_for(held: HeldAddress, seen: Seen | None, now: datetime) -> str:
    """What the release of this address waits for (B5); empty where it is on no way back."""
    if held.releasing is None:
        return ""
    view = seen.view if seen else None

    def shows(key: ServiceKey, address: Address) -> bool:
        return view is not None and view.key == key and address in shown_addresses(view)

    verdict = may_confirm(held.releasing, shows, seen.nodes if seen else None, 0.0, now)
    if not verdict.confirmed:
        return verdict.waits_for
    members = ", ".join(map(str, held.releasing.members)) or "no Service"
    return f"the allocator, which looks whether a status still shows it: that of {members}"


def differences(found: Explanation | None, seen: Seen | None) -> list[str]:
    """Where the cluster says otherwise than the book, a sentence each. Empty without a look at the cluster."""
    if seen is None or found is None:
        return []
    view, service = seen.view, found.service
    if view is None:
        if service.state is ServiceState.WITHDRAWN:
            return []
        return [f"the cluster has no such Service; the book has it as {service.state.value}"]
    if service.state is ServiceState.WITHDRAWN and view.type != "LoadBalancer":
        return []
    if view.uid != service.uid:
        return [f"the cluster's Service has the uid {view.uid}, the book's {service.uid}: it was made again"]
    return [*_addresses_differ(found, view), *_brand_differs(found, view)]


def _addresses_differ(found: Explanation, view: ServiceView) -> list[str]:
    shown = shown_addresses(view)
    held = [a.address for a in found.addresses if a.state is AllocationState.HELD and found.key in a.members]
    return [
        *_say(held, shown, "is booked for it, and its status does not show it"),
        *_say(shown, held, "stands in its status, and is not booked for it"),
    ]


def _say(some: Sequence[Address], others: Sequence[Address], text: str) -> list[str]:
    return [f"{address} {text}" for address in some if address not in others]


def _brand_differs(found: Explanation, view: ServiceView) -> list[str]:
    if view.ingress and not branded(view):
        return [f"its status has an ingress without our brand ({names.ALLOCATED_BY}): another controller wrote it"]
    group = view.annotation(names.ALLOCATED_FROM)
    if group is not None and group != found.service.group and found.service.state is not ServiceState.PENDING:
        return [f"its annotation names the group {group}, the book {found.service.group}"]
    return []
