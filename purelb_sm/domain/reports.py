"""What a node's agent reports: the NodeAnnouncement object, read strictly, since a node is not trusted with the book.

A report is a full state (`addresses`) and the last moves (`transitions`), numbered. The allocator books each number
once; numbers it missed are made up for from the full state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from purelb_sm.domain.addresses import Address, parse_ip
from purelb_sm.domain.states import AnnouncementState, AnnouncementTrigger
from purelb_sm.domain.views import ObjectView
from purelb_sm.errors import InvalidInput

MAX_TRANSITIONS = 512
"""How many past moves a report carries at most; enough for a second of the busiest node."""


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
    `started_at` orders incarnations, so that a late report of an earlier one is known as such."""

    node: str
    incarnation: str
    started_at: datetime
    sequence: int
    addresses: tuple[ReportedAddress, ...]
    transitions: tuple[ReportedTransition, ...]


def render_report(report: NodeReport) -> dict[str, object]:
    """The `spec` of the NodeAnnouncement object."""
    return {
        "node": report.node,
        "incarnation": report.incarnation,
        "startedAt": render_time(report.started_at),
        "sequence": report.sequence,
        "addresses": [_render_address(a) for a in report.addresses],
        "transitions": [_render_transition(t) for t in report.transitions],
    }


def parse_report(view: ObjectView) -> NodeReport:
    """Reads a NodeAnnouncement. Raises InvalidInput: on a wrong shape nothing of the report is taken.

    The object's own name is the node's: what `spec.node` says must agree, so that one agent cannot speak for another
    where the API server lets each write only its own object.
    """
    spec = _mapping(view.spec, "spec")
    node = _text(spec, "node")
    if view.name != node:
        raise InvalidInput(f"NodeAnnouncement {view.name} speaks for node {node!r}")
    return NodeReport(
        node=node,
        incarnation=_text(spec, "incarnation"),
        started_at=parse_time(_text(spec, "startedAt")),
        sequence=_number(spec, "sequence"),
        addresses=tuple(_parse_address(_mapping(a, "address")) for a in _sequence(spec, "addresses")),
        transitions=tuple(_parse_transition(_mapping(t, "transition")) for t in _sequence(spec, "transitions")),
    )


def render_time(at: datetime) -> str:
    """RFC 3339 with microseconds, in UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """An RFC 3339 time as aware UTC. Raises InvalidInput."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"{text[:40]!r} is not a time") from None
    if at.tzinfo is None:
        raise InvalidInput(f"{text[:40]!r} has no time zone")
    return at.astimezone(UTC)


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
