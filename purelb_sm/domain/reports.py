"""What a node's agent reports: the NodeAnnouncement object, read strictly, since a node is not trusted with the book.

A report is a full state (`addresses`) and the last moves (`transitions`), numbered. The allocator books each number
once; numbers it missed are made up for from the full state.

A large report is cut into slices, one object each: NODE, NODE.1, NODE.2 and so on. Only all slices of one incarnation
and sequence together are a report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from purelb_sm.domain.addresses import Address, parse_ip
from purelb_sm.domain.states import AnnouncementState, AnnouncementTrigger
from purelb_sm.domain.views import ObjectView
from purelb_sm.errors import InvalidInput

MAX_TRANSITIONS = 512
"""How many past moves a report carries at most; enough for a second of the busiest node."""
SLICE_ADDRESSES = 500
"""How many addresses one object carries: some 100 kB, far below what an object may have."""
MAX_SLICES = 200


@dataclass(frozen=True, slots=True)
class ReportedAddress:
    """One address on one interface, in the state the agent has it in. `valid_s`: kernel lifetime, None = permanent."""

    address: Address
    interface: str
    prefix_length: int
    state: AnnouncementState
    since: datetime
    valid_s: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ReportedTransition:
    """One move. `seq` counts from 1 within an incarnation of the agent, over all addresses."""

    seq: int
    at: datetime
    address: Address
    interface: str
    prefix_length: int
    trigger: AnnouncementTrigger
    source: AnnouncementState | None
    dest: AnnouncementState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """All slices of a node's NodeAnnouncement put together. `incarnation` is new at every start of the agent;
    `started_at` orders incarnations, so that a late report of an earlier one is known as such. `sequence` is the number
    of the last move made: `addresses` is how things stand after it, and `transitions` end with it."""

    node: str
    incarnation: str
    started_at: datetime
    sequence: int
    addresses: tuple[ReportedAddress, ...]
    transitions: tuple[ReportedTransition, ...]


@dataclass(frozen=True, slots=True)
class ReportSlice:
    """Slice `index` of `count` (from 0) of a report. `part` has the report's head and this slice's own lists."""

    index: int
    count: int
    part: NodeReport


def slice_name(node: str, index: int) -> str:
    """The name of the object that carries slice `index` of the node's report."""
    return node if index == 0 else f"{node}.{index}"


def render_report(report: NodeReport) -> dict[str, object]:
    """The `spec` of the NodeAnnouncement object that carries the whole report."""
    return _render(report, report.addresses, report.transitions)


def render_slices(report: NodeReport, size: int = SLICE_ADDRESSES) -> list[dict[str, object]]:
    """The `spec`s of the objects that carry the report, in order: one, unless it has more than `size` addresses.

    The transitions are in the first. Every slice says how many there are, so that none can be missing unnoticed.
    """
    return [render_slice(report, index, size) for index in range(slice_count(report, size))]


def slice_count(report: NodeReport, size: int = SLICE_ADDRESSES) -> int:
    """How many objects carry the report."""
    return max(1, len(range(0, len(report.addresses), size)))


def render_slice(report: NodeReport, index: int, size: int = SLICE_ADDRESSES) -> dict[str, object]:
    """The `spec` of one of the objects: see `render_slices`. A large report is best rendered one by one."""
    count = slice_count(report, size)
    if count == 1:
        return render_report(report)
    start = index * size
    part = _render(report, report.addresses[start : start + size], report.transitions if index == 0 else ())
    return part | {"slice": index, "slices": count}


def _render(
    report: NodeReport, addresses: tuple[ReportedAddress, ...], transitions: tuple[ReportedTransition, ...]
) -> dict[str, object]:
    return {
        "node": report.node,
        "incarnation": report.incarnation,
        "startedAt": render_time(report.started_at),
        "sequence": report.sequence,
        "addresses": [_render_address(a) for a in addresses],
        "transitions": [_render_transition(t) for t in transitions],
    }


def parse_report(view: ObjectView) -> NodeReport:
    """Reads a NodeAnnouncement that carries a whole report. Raises InvalidInput, also for one slice of several."""
    found = parse_slice(view)
    if found.count != 1:
        raise InvalidInput(f"NodeAnnouncement {view.name} is slice {found.index} of {found.count}")
    return found.part


def parse_slice(view: ObjectView) -> ReportSlice:
    """Reads a NodeAnnouncement. Raises InvalidInput: on a wrong shape nothing of it is taken.

    The object's own name is the node's, with the number of the slice: what `spec.node` and `spec.slice` say must agree,
    so that one agent cannot speak for another where the API server lets each write only its own objects.
    """
    spec = _mapping(view.spec, "spec")
    node = _text(spec, "node")
    index = _number(spec, "slice") if spec.get("slice") is not None else 0
    count = _number(spec, "slices") if spec.get("slices") is not None else 1
    if view.name != slice_name(node, index):
        raise InvalidInput(f"NodeAnnouncement {view.name} speaks for slice {index} of node {node!r}")
    if not index < count <= MAX_SLICES:
        raise InvalidInput(f"NodeAnnouncement {view.name} is slice {index} of {count}")
    part = NodeReport(
        node=node,
        incarnation=_text(spec, "incarnation"),
        started_at=parse_time(_text(spec, "startedAt")),
        sequence=_number(spec, "sequence"),
        addresses=tuple(_parse_address(_mapping(a, "address")) for a in _sequence(spec, "addresses")),
        transitions=tuple(_parse_transition(_mapping(t, "transition")) for t in _sequence(spec, "transitions")),
    )
    return ReportSlice(index, count, part)


def join_slices(views: Iterable[ObjectView], node: str | None = None) -> NodeReport | None:
    """The report that `views` carry together, or None while a part of it is missing or of another moment.

    The views are of one node; `node` says which (without it, the one whose own object is among them). Objects that
    belong to no report of that node, left over or not its own, are passed by. Raises InvalidInput if its first object,
    or one that belongs with that, cannot be read.
    """
    by_name = {view.name: view for view in views}
    if node is None:
        heads = [name for name, view in by_name.items() if _claimed_node(view) == name]
        if len(heads) != 1:
            return None
        node = heads[0]
    if node not in by_name:
        return None
    head = parse_slice(by_name[node])
    parts = [head.part]
    for index in range(1, head.count):
        view = by_name.get(slice_name(node, index))
        if view is None:
            return None
        found = parse_slice(view)
        if (found.count, _moment(found.part)) != (head.count, _moment(head.part)):
            return None
        parts.append(found.part)
    return replace(
        head.part,
        addresses=tuple(a for part in parts for a in part.addresses),
        transitions=tuple(t for part in parts for t in part.transitions),
    )


def _claimed_node(view: ObjectView) -> object:
    return view.spec.get("node") if isinstance(view.spec, Mapping) else None


def _moment(report: NodeReport) -> tuple[str, str, datetime, int]:
    return (report.node, report.incarnation, report.started_at, report.sequence)


def render_time(at: datetime) -> str:
    """RFC 3339 with microseconds, in UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """An RFC 3339 time as aware UTC. Raises InvalidInput."""
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is None:
            raise InvalidInput(f"{text[:40]!r} has no time zone")
        return at.astimezone(UTC)
    except (ValueError, OverflowError):
        # In UTC it may be a time before the year 1 or after 9999.
        raise InvalidInput(f"{text[:40]!r} is not a time") from None


def _render_address(a: ReportedAddress) -> dict[str, object]:
    out: dict[str, object] = {
        "address": str(a.address),
        "interface": a.interface,
        "prefixLength": a.prefix_length,
        "state": a.state.value,
        "since": render_time(a.since),
    }
    if a.valid_s is not None:
        out["validSeconds"] = a.valid_s
    if a.reason:
        out["reason"] = a.reason
    return out


def _render_transition(t: ReportedTransition) -> dict[str, object]:
    out: dict[str, object] = {
        "seq": t.seq,
        "at": render_time(t.at),
        "address": str(t.address),
        "interface": t.interface,
        "prefixLength": t.prefix_length,
        "trigger": t.trigger.value,
        "to": t.dest.value,
    }
    if t.source is not None:
        out["from"] = t.source.value
    if t.reason:
        out["reason"] = t.reason
    return out


def _parse_address(item: Mapping[str, object]) -> ReportedAddress:
    return ReportedAddress(
        address=parse_ip(_text(item, "address")),
        interface=_text(item, "interface"),
        prefix_length=_number(item, "prefixLength"),
        state=_state(item, "state"),
        since=parse_time(_text(item, "since")),
        valid_s=_number(item, "validSeconds") if "validSeconds" in item else None,
        reason=_optional_text(item, "reason"),
    )


def _parse_transition(item: Mapping[str, object]) -> ReportedTransition:
    try:
        trigger = AnnouncementTrigger(_text(item, "trigger"))
    except ValueError:
        raise InvalidInput(f"unknown trigger {item['trigger']!r}") from None
    if trigger is AnnouncementTrigger.LOSE:
        raise InvalidInput("only the allocator may judge a node's entries lost")
    return ReportedTransition(
        seq=_number(item, "seq"),
        at=parse_time(_text(item, "at")),
        address=parse_ip(_text(item, "address")),
        interface=_text(item, "interface"),
        prefix_length=_number(item, "prefixLength"),
        trigger=trigger,
        source=_state(item, "from") if "from" in item else None,
        dest=_state(item, "to"),
        reason=_optional_text(item, "reason"),
    )


def _state(item: Mapping[str, object], name: str) -> AnnouncementState:
    try:
        return AnnouncementState(_text(item, name))
    except ValueError:
        raise InvalidInput(f"unknown state {item[name]!r}") from None


def _mapping(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{name} is not an object")
    return value


def _sequence(item: Mapping[str, object], name: str) -> list[object]:
    value = item.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidInput(f"{name} is not a list")
    return value


def _text(item: Mapping[str, object], name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value or len(value) > 512:
        raise InvalidInput(f"{name} is missing or not a short text")
    return value


def _optional_text(item: Mapping[str, object], name: str) -> str:
    value = item.get(name, "")
    if not isinstance(value, str):
        raise InvalidInput(f"{name} is not a text")
    return value[:512]


def _number(item: Mapping[str, object], name: str) -> int:
    value = item.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise InvalidInput(f"{name} is missing or not a number")
    return value
