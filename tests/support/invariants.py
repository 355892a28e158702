"""What must be so of every address all the time, judged from what kernels and the wire showed. Pure.

A record is filled by `watcher.Watcher` while a test runs. Judging gives the benefit of the doubt: of a notice that was
read late nobody knows when exactly it happened, so each end of a span lies between two times, and what is too long is
too long by the shorter reading. A busy machine therefore accuses nobody.

Times are seconds of the wall clock, as the kernel stamps frames.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from math import inf

from purelb_sm.domain.addresses import Address

Region = tuple[float, float]
"""From, until."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long what must not be may last, in seconds.

    two_s   more than one node that counts holds a local address, or answers for it
    none_s  no node holds an address that is expected, or none answers for it
    left_s  a node that counts holds an address that nobody should
    """

    two_s: float
    none_s: float
    left_s: float


@dataclass(slots=True)
class Span:
    """A node held an address on an interface. Each end is (earliest, latest); `until` is infinite while it lasts."""

    node: str
    interface: str
    since: Region
    until: Region = (inf, inf)

    @property
    def surely(self) -> Region:
        return self.since[1], self.until[0]

    @property
    def possibly(self) -> Region:
        return self.since[0], self.until[1]


@dataclass(frozen=True, slots=True)
class Wish:
    """From `at` on the address should be on one node, on every node that counts (`everywhere`), or on none."""

    at: float
    wanted: bool
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be, for whom, and from when to when."""

    what: str
    about: str
    region: Region
    bound_s: float = 0.0

    @property
    def lasted_s(self) -> float:
        return self.region[1] - self.region[0]


@dataclass(frozen=True, slots=True)
class Told:
    """A frame that says where the address is. `asked`: an answer to our question; else nobody had asked."""

    at: float
    node: str
    asked: bool


@dataclass
class Record:
    """Everything that was seen, and what was expected, in order of time.

    asks      when the wire was asked who has the address
    excused   when a node did not count, by node: (from, until)
    remarks   what the test did, for the reader of the report
    touched   foreign addresses that were changed, with what happened to them
    """

    nodes: Sequence[str]
    begun: float
    bounds: list[tuple[float, Bounds]]
    spans: dict[Address, list[Span]] = field(default_factory=lambda: defaultdict(list))
    told: dict[Address, list[Told]] = field(default_factory=lambda: defaultdict(list))
    asks: dict[Address, list[float]] = field(default_factory=lambda: defaultdict(list))
    wishes: dict[Address, list[Wish]] = field(default_factory=lambda: defaultdict(list))
    excused: dict[str, list[Region]] = field(default_factory=lambda: defaultdict(list))
    remarks: list[tuple[float, str]] = field(default_factory=list)
    touched: list[Violation] = field(default_factory=list)

    def addresses(self) -> set[Address]:
        return {*self.spans, *self.wishes, *self.told}

    def bound(self, at: float) -> Bounds:
        """The bounds that were agreed at that time: a violation is judged by those under which it began."""
        index = bisect_right(self.bounds, at, key=lambda one: one[0])
        return self.bounds[max(0, index - 1)][1]


STRAY_S = 1.0
"""So long after an address left a node a frame of that node may still be on its way."""


def judge(record: Record, now: float, is_local: dict[Address, bool]) -> list[Violation]:
    """All violations up to now, in order of time. `is_local`: of which addresses one node is the holder."""
    found = list(record.touched)
    for address in record.addresses():
        if is_local.get(address, False):
            found += _two(record, address, now)
            found += _strays(record, address)
        found += _none(record, address, now)
        found += _left(record, address, now)
    return sorted(found, key=lambda one: one.region)


def _two(record: Record, address: Address, now: float) -> Iterator[Violation]:
    surely: list[Region] = []
    for node in _nodes(record, address):
        held = union(span.surely for span in record.spans[address] if span.node == node)
        surely += subtract(held, record.excused[node])
    yield from _too_long(record, "two holders", address, at_least_two(surely), now, "two_s")
    yield from _too_long(record, "two nodes answer", address, contested(record, address), now, "two_s")


def _none(record: Record, address: Address, now: float) -> Iterator[Violation]:
    for since, until, wish in _wished(record, address):
        if not wish.wanted:
            continue
        for node in record.nodes if wish.everywhere else (None,):
            held = [s.possibly for s in record.spans[address] if node is None or s.node == node]
            missing = subtract([(since, min(until, now))], held + (record.excused[node] if node else []))
            who = f"{address} on {node}" if node else str(address)
            yield from _too_long(record, "no holder", who, missing, now, "none_s")
        if not wish.everywhere:
            silent = [(max(since, a), min(until, b)) for a, b in silences(record, address)]
            yield from _too_long(record, "nobody answers", address, silent, now, "none_s")


def _left(record: Record, address: Address, now: float) -> Iterator[Violation]:
    for since, until, wish in _wished(record, address):
        if wish.wanted:
            continue
        for node in _nodes(record, address):
            held = [span.surely for span in record.spans[address] if span.node == node]
            there = [(max(a, since), min(b, until)) for a, b in subtract(held, record.excused[node])]
            yield from _too_long(record, "left behind", f"{address} on {node}", there, now, "left_s")


def _strays(record: Record, address: Address) -> Iterator[Violation]:
    """Announcements of nodes that do not hold the address."""
    for told in record.told[address]:
        spans = [span.possibly for span in record.spans[address] if span.node == told.node]
        if not told.asked and not any(a - STRAY_S <= told.at <= b + STRAY_S for a, b in spans):
            yield Violation("announced without being held", f"{address} on {told.node}", (told.at, told.at))


def _too_long(
    record: Record, what: str, about: object, regions: Iterable[Region], now: float, which: str
) -> Iterator[Violation]:
    for since, until in regions:
        bound_s: float = getattr(record.bound(since), which)
        if min(until, now) - since > bound_s:
            yield Violation(what, str(about), (since, min(until, now)), bound_s)


def _nodes(record: Record, address: Address) -> list[str]:
    return sorted({span.node for span in record.spans[address]})


def _wished(record: Record, address: Address) -> Iterator[tuple[float, float, Wish]]:
    wishes = record.wishes[address]
    for wish, following in zip_longest(wishes, wishes[1:]):
        yield wish.at, inf if following is None else following.at, wish


# What the answers on the wire say.


def silences(record: Record, address: Address) -> list[Region]:
    """When questions stayed without an answer: from the first to the last of several that were asked in a row. The one
    before an answer is the one that was answered; a questioner that was itself asleep proves nothing."""
    asks = record.asks[address]
    answers = [told.at for told in record.told[address] if told.asked]
    regions: list[Region] = []
    for earlier, later in pairwise([-inf, *answers, inf]):
        unanswered = asks[bisect_right(asks, earlier) : bisect_right(asks, later)][:-1]
        if len(unanswered) > 1:
            regions.append((unanswered[0], unanswered[-1]))
    return regions


def contested(record: Record, address: Address) -> list[Region]:
    """When questions got answers of two nodes that count: from the first to the last of several in a row."""
    asks = record.asks[address]
    answering: dict[int, set[str]] = defaultdict(set)
    for told in record.told[address]:
        if told.asked and not any(a <= told.at < b for a, b in record.excused[told.node]):
            answering[bisect_right(asks, told.at) - 1].add(told.node)
    regions: list[Region] = []
    for index in sorted(index for index, nodes in answering.items() if index >= 0 and len(nodes) > 1):
        if regions and regions[-1][1] == asks[index - 1]:
            regions[-1] = (regions[-1][0], asks[index])
        else:
            regions.append((asks[index], asks[index]))
    return regions


# Regions of time.


def union(regions: Iterable[Region]) -> list[Region]:
    """The same times, in order, without overlaps."""
    merged: list[Region] = []
    for since, until in sorted(one for one in regions if one[0] < one[1]):
        if merged and since <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], until))
        else:
            merged.append((since, until))
    return merged


def subtract(regions: Iterable[Region], others: Iterable[Region]) -> list[Region]:
    """What of the first is in none of the others."""
    rest: list[Region] = []
    taken = union(others)
    for since, until in union(regions):
        for a, b in taken:
            if a < until and b > since:
                rest.append((since, min(a, until)))
                since = max(since, b)
        rest.append((since, until))
    return [one for one in rest if one[0] < one[1]]


def at_least_two(regions: Iterable[Region]) -> list[Region]:
    """The times that are in two of these or more; each must be without an overlap in itself."""
    edges = sorted(edge for a, b in regions if a < b for edge in ((a, 1), (b, -1)))
    found: list[Region] = []
    depth, since = 0, 0.0
    for at, step in edges:
        if depth == 1 and step == 1:
            since = at
        if depth == 2 and step == -1:
            found.append((since, at))
        depth += step
    return union(found)


# For people.


def report(record: Record, violations: Sequence[Violation], now: float) -> str:
    """What happened to each address, as a timeline; what must not have been comes first."""
    lines = [_accusation(one, record.begun) for one in violations] or ["nothing that must not be"]
    for address in sorted(record.addresses(), key=lambda one: (one.version, int(one))):
        story = _story(record, address)
        lines += [f"{address}"] if story else []
        lines += [f"  +{at - record.begun:7.3f}  {text}" for at, text in story]
    lines.append(f"  +{now - record.begun:7.3f}  now")
    return "\n".join(lines)


def _accusation(one: Violation, begun: float) -> str:
    since, until = (at - begun for at in one.region)
    lasted = f" for {one.lasted_s:.2f} s (bound {one.bound_s:g} s)" if one.lasted_s else ""
    return f"VIOLATED: {one.about}: {one.what}{lasted}, +{since:.3f} to +{until:.3f}"


def _story(record: Record, address: Address) -> list[tuple[float, str]]:
    told: list[tuple[float, str]] = []
    for span in record.spans[address]:
        told.append((span.since[1], f"{span.node} holds it on {span.interface}"))
        if span.until[1] != inf:
            told.append((span.until[1], f"{span.node} holds it no more on {span.interface}"))
    for wish in record.wishes[address]:
        where = "every node" if wish.everywhere else "one node"
        told.append((wish.at, f"expected on {where}" if wish.wanted else "expected to go"))
    told += [(one.at, f"{one.node} announces it") for one in record.told[address] if not one.asked]
    told += _answering(record, address)
    told += [(since, f"unanswered until +{until - record.begun:.3f}") for since, until in silences(record, address)]
    return sorted([*told, *record.remarks]) if told else []


def _answering(record: Record, address: Address) -> Iterator[tuple[float, str]]:
    """Where others answer than before."""
    asks, before = record.asks[address], ""
    rounds: dict[int, list[Told]] = defaultdict(list)
    for one in record.told[address]:
        if one.asked:
            rounds[bisect_right(asks, one.at)].append(one)
    for told in rounds.values():
        who = " and ".join(sorted({one.node for one in told}))
        if who != before:
            before = who
            yield told[-1].at, f"{who} answer{'' if ' ' in who else 's'}"
