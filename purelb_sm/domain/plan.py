"""plan(): the heart. What a Service asks, what the book says of it, and what is free → what is to be done.

Pure but for one thing, said aloud: it takes addresses from `world.free`, and has `world` follow what it decides,
so that plans of one batch see each other. If the batch's transaction fails, all of it is built anew from the book.
Effects follow the commit: a plan whose transaction was kept and whose publication was lost is simply made again, and
then has no actions and the same publication.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address, Family, family_of, in_family_order
from purelb_sm.domain.book import (
    Action,
    Allocate,
    Booked,
    BookedAllocation,
    BookedService,
    EventNote,
    Hold,
    Join,
    Leave,
    Observe,
    Plan,
    PolicyReset,
    Publication,
    Reclaim,
    Refuse,
    Revive,
    Withdraw,
)
from purelb_sm.domain.choose import Choice, World, adopt, choose, give_back, lacks_ranges
from purelb_sm.domain.groups import PoolType
from purelb_sm.domain.members import apart, clashes, set_keys, set_ports, shown_by_others
from purelb_sm.domain.policy import judge_policy
from purelb_sm.domain.publication import (
    branded,
    condition_allocated,
    condition_refused,
    current_condition,
    publish_allocated,
    publish_refused,
    publish_withdrawn,
    shown_addresses,
)
from purelb_sm.domain.reevaluate import misplaced
from purelb_sm.domain.requests import Request, Whose, parse_request, sharing_key, usable_ports, whose
from purelb_sm.domain.sharing import Member, port_conflict, port_keys, sort_by_key
from purelb_sm.domain.states import AllocationState, ServiceState
from purelb_sm.domain.views import Port, ServiceKey, ServiceView
from purelb_sm.errors import Reason, Refused


def plan(key: ServiceKey, view: ServiceView | None, booked: Booked, world: World, now: datetime) -> Plan:
    """What is to be done about one Service. All empty where the book and the cluster agree.

    view    the Service as last seen; None when it is gone
    booked  what the book says of its key
    """
    if view is None:
        actions = _withdraw(booked, "deleted")
        return Plan(key, actions, cleared=world.follow(actions))
    asks = whose(view, world.load_balancer_class, world.default_class)
    if asks is not Whose.ANOTHER_CLASS and (adopted := _adopt(view, booked, world)) is not None:
        return adopted
    if asks is not Whose.OURS:
        return _not_ours(view, booked, asks, world)
    if _foreign(view, booked):
        return _refuse(_Draft(view, booked, world), _foreign_refusal(view), now, touch=False)
    return _serve(view, booked, world, now)


@dataclass(slots=True)
class _Draft:
    """A plan in the making. `held` is what the Service has now; `reclaimable` what it may have back."""

    view: ServiceView
    booked: Booked
    world: World
    actions: list[Action] = field(default_factory=list)
    events: list[EventNote] = field(default_factory=list)
    held: list[BookedAllocation] = field(default_factory=list)
    reclaimable: list[BookedAllocation] = field(default_factory=list)
    service: BookedService | None = None
    cleared: list[Hashable] = field(default_factory=list)
    followed: int = 0

    def __post_init__(self) -> None:
        """Brings the book to a live row of this uid: a namesake with another uid is withdrawn first (A20)."""
        self.held, self.reclaimable = list(self.booked.held), list(self.booked.reclaimable)
        self.service = self.booked.service
        if self.service is not None and self.service.uid != self.view.uid:
            self.actions += _withdraw(self.booked, "replaced by a Service of the same name")
            self.reclaimable = self.held + self.reclaimable
            self.held, self.service = [], None
        if self.service is None:
            known = self.booked.former is not None
            self.actions.append((Revive if known else Observe)(self.view.key, self.view.uid))
        self.follow()

    def follow(self) -> None:
        """What was decided so far is seen by what is decided from here on, for this Service and for others."""
        self.cleared += self.world.follow(self.actions[self.followed :])
        self.followed = len(self.actions)


def _adopt(view: ServiceView, booked: Booked, world: World) -> Plan | None:
    """Books what a Service shows under our brand and the book has lost, whatever it asks for now.

    It comes before any wish of anybody: what is shown must not be given to another, and if it is to go, it goes by the
    release in two phases. What the Service asks for is looked at when this is committed.
    """
    if not branded(view) or not view.ingress or (booked.held and booked.service and booked.service.uid == view.uid):
        return None
    ports, why = usable_ports(view), "adopted from the cluster"
    try:
        key = sharing_key(view)
    except Refused:
        key = None
    choices = adopt(shown_addresses(view), world, Member(view.uid, view.key, port_keys(ports)), key)
    if not choices:
        return None
    draft = _Draft(view, booked, world)
    draft.actions += [_give(view, choice, ports, key, why) for choice in choices]
    draft.actions.append(Allocate(view.key, view.uid, choices[0].group, why))
    return _finish(draft, None, again=True)


def _serve(view: ServiceView, booked: Booked, world: World, now: datetime) -> Plan:
    try:
        request = parse_request(view)
    except Refused as refusal:
        if refusal.reason is Reason.WAITING_FOR_FAMILIES:
            return Plan(view.key, waiting=True)
        draft = _Draft(view, booked, world)
        return _keep(draft, refusal, world, now) if draft.held else _refuse(draft, refusal, now)
    draft = _Draft(view, booked, world)
    kept, leaving = _sort_held(draft.held, request)
    kept, others = sort_by_key(kept, view.uid, view.key, request.sharing_key, world.groups, world.shared)
    leaving += others
    if clash := clashes(view, kept, world):
        return _keep(draft, port_conflict(clash), world, now)
    unmoved: list[EventNote] = []
    if request.re_evaluate and kept:
        try:
            if moving := misplaced(request, kept, world):
                staying = [a for a in kept if a not in moving]
                return _complete(draft, request, staying, [*leaving, *moving], world, now)
        except Refused as refusal:
            unmoved.append(_unmoved(refusal))
    try:
        try:
            made = _complete(draft, request, kept, leaving, world, now)
        except Refused as refusal:
            if not (request.re_evaluate and kept):
                raise
            # What it has may be all that it needs: only what was to be added to that is refused.
            made = _complete(draft, replace(request, re_evaluate=False), kept, leaving, world, now)
            unmoved = unmoved or [_unmoved(refusal)]
    except Refused as refusal:
        return _keep(draft, refusal, world, now) if draft.held else _refuse(draft, refusal, now)
    return replace(made, events=(*made.events, *unmoved)) if unmoved else made


def _unmoved(refusal: Refused) -> EventNote:
    """Planned anew in vain. Its condition stays as it is: nobody waits for anything."""
    return EventNote("Warning", "AllocationFailed", f"{_refusal_text(refusal)}; it keeps what it has")


def _complete(
    draft: _Draft,
    request: Request,
    kept: Sequence[BookedAllocation],
    leaving: Sequence[BookedAllocation],
    world: World,
    now: datetime,
) -> Plan:
    """Chooses what is missing beside what is kept. Raises Refused, and then nothing has happened."""
    missing = _missing(request, kept, world)
    choices: list[Choice] = []
    if missing:
        beside, has = (kept[0].group if kept else None), [a.address for a in kept]
        choices = choose(request, missing, draft.reclaimable, world, beside, has)
        _within_quota(draft.view, leaving, choices, world)
    return _settle(draft, request, kept, leaving, choices, world, now)


def _within_quota(
    view: ServiceView, leaving: Sequence[BookedAllocation], choices: Sequence[Choice], world: World
) -> None:
    """Raises Refused where the namespace would hold more than it may (A30), and then nothing stays taken."""
    now = [a for a in leaving if not shown_by_others(view, a, world)]
    try:
        world.quota.check(view.key.namespace, now, choices)
    except Refused:
        give_back(choices, world)
        raise


def _missing(request: Request, kept: Sequence[BookedAllocation], world: World) -> list[Family]:
    """The families that lack an address.

    One that has some may lack those of further ranges (A24). They are added only when somebody asks for it (A23): a
    node that comes or a pool that is added must not change what a Service shows.
    """
    missing = [f for f in request.families if f not in {a.family for a in kept}]
    if request.re_evaluate and kept:
        return missing + [f for f in request.families if f not in missing and lacks_ranges(request, f, kept, world)]
    if not request.require_all and kept:
        # PreferDualStack that has one address: another family is added only where the group has a pool for it.
        missing = [f for f in missing if _has_pool(kept[0].group, f, world)]
    return missing


def _has_pool(group_name: str, family: Family, world: World) -> bool:
    return bool(world.free.spaces(group_name, family))


def _sort_held(
    held: Sequence[BookedAllocation], request: Request
) -> tuple[list[BookedAllocation], list[BookedAllocation]]:
    """(kept, leaving): an address leaves when its family is not asked for, or another of its family is by name."""
    asked = {family_of(address): address for address in request.addresses}
    kept: list[BookedAllocation] = []
    leaving: list[BookedAllocation] = []
    for allocation in held:
        wanted = asked.get(allocation.family, allocation.address)
        stays = allocation.family in request.families and wanted == allocation.address
        (kept if stays else leaving).append(allocation)
    return kept, leaving


def _settle(
    draft: _Draft,
    request: Request,
    kept: Sequence[BookedAllocation],
    leaving: Sequence[BookedAllocation],
    choices: Sequence[Choice],
    world: World,
    now: datetime,
) -> Plan:
    """All that is asked for is at hand: hold it, let go what is not wanted, and show it."""
    view = draft.view
    draft.actions += [_give(view, choice, request.ports, request.sharing_key) for choice in choices]
    draft.actions += set_keys(request, kept)
    draft.actions += set_ports(view, kept, world)
    # What others have too is left once it is no longer shown: until then nobody else may have our ports of it.
    later = [a for a in leaving if shown_by_others(view, a, world)]
    leaving = [a for a in leaving if a not in later]
    why = "given up when planned anew" if request.re_evaluate else "not asked for any more"
    draft.actions += [Leave(view.key, view.uid, a.id, a.address, why) for a in leaving]
    addresses, group = _in_order([*kept, *choices], request.families, world)
    fresh = draft.service is None or draft.service.state is ServiceState.PENDING
    if choices or leaving or fresh:
        draft.actions.append(Allocate(view.key, view.uid, group))
    policy = judge_policy(view, addresses, request.sharing_key is not None, world)
    condition = condition_allocated(view, addresses, group, now, policy.remark)
    publication = publish_allocated(
        view, addresses, group, _pool_type(view, group, world), condition, granted=not later
    )
    draft.events += policy.events
    draft.events += _warnings(view, request, addresses, group, world)
    draft.events += apart(request, kept, world)
    draft.events += _allocated_events(view, addresses, group)
    draft.events += [_released_event([a]) for a in _gone(view, leaving, draft.reclaimable) if a not in addresses]
    return _finish(draft, publication, again=bool(later), policy=policy.reset)


def _in_order(
    holds: Sequence[BookedAllocation | Choice], families: Sequence[Family], world: World
) -> tuple[list[Address], str]:
    """The addresses in the order of families and then of ranges, those in no range last; and the group to name: that of
    the first, so that every pass agrees."""
    groups = {each.address: each.group for each in holds}
    addresses = in_family_order(iter(groups), tuple(families))
    if len(addresses) > len(families):
        addresses.sort(key=lambda a: (_place(family_of(a), families), world.free.position(a)))
    return addresses, groups[addresses[0]]


def _place(family: Family, families: Sequence[Family]) -> int:
    return families.index(family) if family in families else len(families)


def _gone(
    view: ServiceView, leaving: Sequence[BookedAllocation], reclaimable: Sequence[BookedAllocation]
) -> list[Address]:
    """What the Service loses: what leaves now, and what left before and is shown still, as the write was not taken."""
    shown = shown_addresses(view)
    late = [a for a in reclaimable if a.state is AllocationState.RELEASING and a.address in shown]
    return [a.address for a in (*leaving, *late)]


def _give(view: ServiceView, choice: Choice, ports: tuple[Port, ...], key: str | None, why: str = "") -> Action:
    if choice.allocation_id is not None:
        return Reclaim(view.key, view.uid, choice.allocation_id, choice.address, ports, choice.group, key)
    why = why or choice.why
    if choice.joins and key is not None:
        return Join(view.key, view.uid, choice.address, choice.group, key, ports, why)
    return Hold(view.key, view.uid, choice.address, choice.group, ports, why, key)


def _keep(draft: _Draft, refusal: Refused, world: World, now: datetime) -> Plan:
    """A Service that has addresses keeps them when its new wish cannot be read or met, and is told (A11).

    A slip in an annotation must never take traffic away. Only where its ports are now those of another on an address
    that both have, it does not show that one: who had the port first must not be disturbed.
    """
    view = draft.view
    families = [f for name in view.ip_families for f in Family if f.value == name]
    addresses, group = _in_order(draft.held, families, world)
    if clash := clashes(view, draft.held, world):
        refusal = port_conflict(clash)
        addresses = [a for a in addresses if a not in {obstacle.address for obstacle in clash}]
    draft.actions += set_ports(view, draft.held, world)
    if (told := current_condition(view)) and (told.status, told.reason) == ("False", refusal.reason):
        refusal = refusal.as_said(told.message)
    condition = condition_refused(view, refusal.reason, refusal.message, now)
    publication = publish_allocated(view, addresses, group, _pool_type(view, group, world), condition)
    draft.events += _refused_events(view, refusal)
    shared = any(allocation.sharing_key is not None for allocation in draft.held)
    return _finish(draft, publication, refusal, policy=judge_policy(view, addresses, shared, world).reset)


def _refuse(draft: _Draft, refusal: Refused, now: datetime, *, touch: bool = True) -> Plan:
    """Nothing can be held. The book keeps why, once; the condition and the Event say it, once."""
    view, service = draft.view, draft.service
    if service is not None and service.reason == refusal.reason:
        refusal = refusal.as_said(service.message)
    known = service is not None and (service.reason, service.message) == (refusal.reason, refusal.message)
    if not known:
        draft.actions.append(Refuse(view.key, view.uid, refusal.reason, refusal.message))
    if not touch:
        draft.events += [] if known else [EventNote("Warning", "AllocationFailed", _refusal_text(refusal))]
        return _finish(draft, None, refusal)
    draft.events += _refused_events(view, refusal)
    publication = publish_refused(view, condition_refused(view, refusal.reason, refusal.message, now))
    return _finish(draft, publication, refusal)


def _not_ours(view: ServiceView, booked: Booked, asks: Whose, world: World) -> Plan:
    """Its addresses are released; what is ours on the object goes, nothing else is touched (A12, A18)."""
    service, actions = booked.service, _withdraw(booked, asks.value)
    mine = service is not None and service.uid == view.uid
    shows_ours = any(a.address in shown_addresses(view) for a in (*booked.held, *booked.reclaimable))
    if asks is Whose.ANOTHER_CLASS:
        # A brand that was copied with the rest of a manifest makes nothing ours.
        concerns_us, ingress_is_ours = mine or booked.former is not None or shows_ours, shows_ours
    else:
        concerns_us = service is not None or branded(view) or current_condition(view) is not None or shows_ours
        ingress_is_ours = shows_ours or branded(view)
    publication = publish_withdrawn(view, ingress_is_ours=ingress_is_ours) if concerns_us else None
    if mine and publication is not None and any(shown_by_others(view, a, world) for a in booked.held):
        # Its ports of a shared address are another's to take only when it does not show them any more.
        return Plan(view.key, (), publication, again=True)
    late = booked.reclaimable if publication is not None and branded(view) else ()
    gone = [*(booked.held if mine else ()), *(a for a in late if a.state is AllocationState.RELEASING)]
    events = (_released_event([a.address for a in gone]),) if gone else ()
    return Plan(view.key, actions, publication, events, cleared=world.follow(actions))


def _withdraw(booked: Booked, why: str) -> tuple[Action, ...]:
    service = booked.service
    if service is None:
        return ()
    leaves = [Leave(service.key, service.uid, a.id, a.address, why) for a in booked.held]
    return (*leaves, Withdraw(service.key, service.uid, why))


def _foreign(view: ServiceView, booked: Booked) -> bool:
    """Another controller wrote this ingress: no brand of ours, and the book knows of no address for it (A31)."""
    if not view.ingress or branded(view):
        return False
    if booked.held and booked.service is not None and booked.service.uid == view.uid:
        return False
    ours = {str(a.address) for a in booked.reclaimable}
    return not all(entry.ip in ours for entry in view.ingress)


def _foreign_refusal(view: ServiceView) -> Refused:
    shown = ", ".join(entry.ip or entry.hostname for entry in view.ingress)[:200]
    return Refused(Reason.FOREIGN_INGRESS, f"status already shows {shown}, which another controller wrote; left alone")


def _pool_type(view: ServiceView, group: str, world: World) -> str:
    known = world.groups.get(group)
    if known is not None:
        return known.pool_type.value
    return view.annotation(names.POOL_TYPE) or PoolType.LOCAL.value


def _allocated_events(view: ServiceView, addresses: Sequence[Address], group: str) -> list[EventNote]:
    """One Event for all addresses, when any of them is new to the Service's status (A3)."""
    if {str(address) for address in addresses} <= {entry.ip for entry in view.ingress}:
        return []
    text = ", ".join(str(address) for address in addresses)
    return [EventNote("Normal", "IPAllocated", f"Assigned IP {text} from pool {group}")]


def _warnings(
    view: ServiceView, request: Request, addresses: Sequence[Address], group: str, world: World
) -> list[EventNote]:
    """Said when the addresses are given, not again: what was asked in a way that misleads or is on its way out (A10),
    and what was not asked clearly enough (A25)."""
    if {str(a) for a in addresses} <= {entry.ip for entry in view.ingress}:
        return []
    notes = _affinity_warnings(view)
    if not request.addresses:
        why = world.bindings.ambiguity(view.key.namespace) if request.group is None else ""
        return (
            [*notes, EventNote("Warning", "ConfigurationWarning", f"{why}, so pool {group} is used")] if why else notes
        )
    if request.group is not None:
        # PureLB warns of any group beside an address: what decides is the address, also where the two agree by chance.
        unused = f", so pool {request.group} is not used" if request.group != group else ""
        text = f"the requested address decides, not the annotation {names.SERVICE_GROUP}: it is of pool {group}{unused}"
        notes.append(EventNote("Warning", "ConfigurationWarning", text))
    if view.annotation(names.ADDRESSES) is None:
        text = f"spec.loadBalancerIP is deprecated: use the annotation {names.ADDRESSES}"
        notes.append(EventNote("Warning", "DeprecationWarning", text))
    return notes


def _affinity_warnings(view: ServiceView) -> list[EventNote]:
    """A value of the annotation that agents do not know is ignored by them (C18)."""
    value = view.annotation(names.NODE_AFFINITY)
    if value in (None, names.SERVICE_ENDPOINTS):
        return []
    text = f"the annotation {names.NODE_AFFINITY} is ignored: its value is not {names.SERVICE_ENDPOINTS}"
    return [EventNote("Warning", "ConfigurationWarning", text)]


def _released_event(addresses: Sequence[Address]) -> EventNote:
    return EventNote("Normal", "AddressReleased", f"Released IP {', '.join(str(a) for a in addresses)}")


def _refusal_text(refusal: Refused) -> str:
    return f"{refusal.reason.value}: {refusal.message}"


def _refused_events(view: ServiceView, refusal: Refused) -> list[EventNote]:
    """Told once: a Service whose condition says it already hears nothing again."""
    current = current_condition(view)
    if current and (current.status, current.reason, current.message) == ("False", refusal.reason, refusal.message):
        return []
    return [EventNote("Warning", "AllocationFailed", _refusal_text(refusal))]


def _finish(
    draft: _Draft,
    publication: Publication | None,
    refusal: Refused | None = None,
    *,
    again: bool = False,
    policy: PolicyReset | None = None,
) -> Plan:
    draft.follow()
    return Plan(
        draft.view.key,
        tuple(draft.actions),
        publication,
        tuple(draft.events),
        waiting=refusal is not None,
        again=again,
        obstacles=refusal.obstacles if refusal is not None else (),
        cleared=tuple(draft.cleared),
        policy=policy,
    )
