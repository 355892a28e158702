"""The judge of the watcher: each thing that must not be is found, each doubt is in favour of the accused."""

from __future__ import annotations

from ipaddress import ip_address
from math import inf

import pytest

from tests.support.invariants import (
    Bounds,
    Record,
    Region,
    Span,
    Told,
    Violation,
    Wish,
    at_least_two,
    contested,
    judge,
    report,
    silences,
    subtract,
    union,
)

IP = ip_address("172.30.250.53")
BOUNDS = Bounds(two_s=1.0, none_s=2.0, left_s=3.0)
LATER = 1000.0


def a_record(*spans: Span, wanted: bool | None = None) -> Record:
    record = Record(["a", "b"], 0.0, [(0.0, BOUNDS)])
    record.spans[IP] = list(spans)
    if wanted is not None:
        record.wishes[IP] = [Wish(0.0, wanted)]
    return record


def held(node: str, since: float, until: float = inf) -> Span:
    return Span(node, "eth0#2", (since, since), (until, until))


def found(record: Record, now: float = LATER, *, local: bool = True) -> list[tuple[str, str, Region]]:
    return [(one.what, one.about, one.region) for one in judge(record, now, {IP: local})]


def test_two_holders_for_longer_than_the_bound_are_found_and_for_less_are_not() -> None:
    assert found(a_record(held("a", 0, 10), held("b", 9, 20))) == []
    assert found(a_record(held("a", 0, 10), held("b", 8, 20))) == [("two holders", str(IP), (8, 10))]
    assert found(a_record(held("a", 0, 10), held("b", 8, 20)), local=False) == []
    assert found(a_record(held("a", 0), held("b", 8)), now=20) == [("two holders", str(IP), (8, 20))]


def test_one_node_with_the_address_on_two_interfaces_is_one_holder() -> None:
    assert found(a_record(held("a", 0, 10), Span("a", "lo#1", (2, 2), (9, 9)))) == []


def test_of_a_notice_that_was_read_late_the_reading_in_favour_counts() -> None:
    """B came at some time between 5 and 9.5, and A left between 10 and 14."""
    record = a_record(Span("a", "eth0#2", (0, 0), (10, 14)), Span("b", "eth0#2", (5, 9.5), (inf, inf)))
    assert found(record) == []
    gap = a_record(Span("a", "eth0#2", (0, 0), (1, 4)), Span("b", "eth0#2", (5, 9), (inf, inf)), wanted=True)
    assert found(gap) == []


def test_a_gap_longer_than_the_bound_is_found_only_where_the_address_is_expected() -> None:
    spans = held("a", 0, 10), held("b", 13, 20)
    assert found(a_record(*spans)) == []
    assert found(a_record(*spans, wanted=True), now=20.5) == [("no holder", str(IP), (10, 13))]
    gone = a_record(*spans, wanted=True)
    gone.wishes[IP].append(Wish(9.5, wanted=False))
    assert found(gone, now=14) == []


def test_an_address_that_is_never_there_is_missed_from_the_time_it_is_expected() -> None:
    record = a_record()
    record.wishes[IP] = [Wish(5.0, wanted=True)]
    assert found(record, now=6.9) == []
    assert found(record, now=9.0) == [("no holder", str(IP), (5, 9))]


def test_an_address_for_every_node_is_missed_on_each_that_counts() -> None:
    record = a_record(held("a", 0))
    record.wishes[IP] = [Wish(0.0, wanted=True, everywhere=True)]
    assert found(record, now=9.0, local=False) == [("no holder", f"{IP} on b", (0, 9))]
    record.excused["b"] = [(0.0, inf)]
    assert found(record, now=9.0, local=False) == []


def test_what_is_left_behind_is_found_on_the_node_that_has_it() -> None:
    record = a_record(held("a", 0, 6), held("b", 0, 20), wanted=True)
    record.wishes[IP].append(Wish(5.0, wanted=False))
    assert found(record, local=False) == [("left behind", f"{IP} on b", (5, 20))]
    record.excused["b"] = [(4.0, 18.0)]
    assert found(record, local=False) == []


def test_a_node_that_does_not_count_is_no_second_holder_meanwhile() -> None:
    record = a_record(held("a", 0, 20), held("b", 5, 20))
    record.excused["a"] = [(4.0, 12.0)]
    assert found(record) == [("two holders", str(IP), (12, 20))]


def test_a_violation_is_judged_by_the_bounds_under_which_it_began() -> None:
    record = a_record(held("a", 0, 10), held("b", 8, 20))
    record.bounds.append((7.0, Bounds(two_s=5.0, none_s=2.0, left_s=3.0)))
    assert found(record) == []
    record.bounds[-1] = (8.5, record.bounds[-1][1])
    assert len(found(record)) == 1


def on_the_wire(asks: list[float], *answers: tuple[float, str]) -> Record:
    record = a_record(held("a", 0), wanted=True)
    record.asks[IP] = asks
    record.told[IP] = [Told(at, node, asked=True) for at, node in answers]
    return record


def test_silence_is_measured_between_questions_that_stayed_without_an_answer() -> None:
    asks = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert silences(on_the_wire(asks, (1.1, "a"), (4.1, "a"), (5.1, "a")), IP) == [(2.0, 3.0)]
    assert silences(on_the_wire(asks, (1.1, "a"), (2.1, "a")), IP) == [(3.0, 4.0)]
    # The questioner slept from 2 to 8: of what was meanwhile it knows nothing.
    assert silences(on_the_wire([1.0, 2.0, 8.0, 9.0], (1.1, "a"), (2.1, "a"), (8.1, "a"), (9.1, "a")), IP) == []


def test_an_address_that_a_kernel_holds_and_nobody_answers_for_is_missed() -> None:
    record = on_the_wire([float(second) for second in range(1, 9)], (1.1, "a"))
    assert found(record, now=9.0) == [("nobody answers", str(IP), (2, 7))]


def test_two_nodes_that_answer_one_question_contest_the_address() -> None:
    record = on_the_wire([1.0, 2.0, 3.0, 4.0], *((t + 0.1, n) for t in (1.0, 2.0, 3.0) for n in "ab"), (4.1, "b"))
    assert contested(record, IP) == [(1.0, 3.0)]
    assert ("two nodes answer", str(IP), (1.0, 3.0)) in found(record)
    record.excused["a"] = [(0.0, inf)]
    assert contested(record, IP) == []


def test_an_announcement_of_a_node_that_does_not_hold_the_address_is_found() -> None:
    record = a_record(held("a", 0, 10))
    record.told[IP] = [Told(10.5, "a", asked=False), Told(12.0, "a", asked=False), Told(5.0, "b", asked=False)]
    assert found(record) == [
        ("announced without being held", f"{IP} on b", (5.0, 5.0)),
        ("announced without being held", f"{IP} on a", (12.0, 12.0)),
    ]


def test_what_was_touched_is_a_violation_whatever_the_bounds() -> None:
    record = a_record()
    record.touched.append(Violation("foreign address removed", "10.0.0.1 on a", (3.0, 3.0)))
    assert found(record) == [("foreign address removed", "10.0.0.1 on a", (3.0, 3.0))]


def test_the_report_tells_the_story_of_each_address_with_what_must_not_be_first() -> None:
    record = a_record(held("a", 1, 10), held("b", 8), wanted=True)
    record.asks[IP] = [7.0, 8.25, 9.0]
    answers = [(7.1, "a"), (8.3, "a"), (8.4, "b"), (9.1, "b"), (9.2, "a")]
    record.told[IP] = [Told(8.2, "b", asked=False), *(Told(at, node, asked=True) for at, node in answers)]
    record.remarks.append((7.5, "-- the test does something"))
    lines = [line.strip() for line in report(record, judge(record, 20.0, {IP: True}), 20.0).splitlines()]
    assert lines == [
        f"VIOLATED: {IP}: two holders for 2.00 s (bound 1 s), +8.000 to +10.000",
        str(IP),
        "+  0.000  expected on one node",
        "+  1.000  a holds it on eth0#2",
        "+  7.100  a answers",
        "+  7.500  -- the test does something",
        "+  8.000  b holds it on eth0#2",
        "+  8.200  b announces it",
        "+  8.400  a and b answer",
        "+ 10.000  a holds it no more on eth0#2",
        "+ 20.000  now",
    ]
    assert report(a_record(), [], 1.0).splitlines()[0] == "nothing that must not be"


@pytest.mark.parametrize(
    ("regions", "merged"),
    [
        ([(3, 4), (1, 2)], [(1, 2), (3, 4)]),
        ([(1, 3), (2, 4), (4, 5)], [(1, 5)]),
        ([(1, 1)], []),
        ([(0, inf)], [(0, inf)]),
    ],
)
def test_times_are_united(regions: list[Region], merged: list[Region]) -> None:
    assert union(regions) == merged


@pytest.mark.parametrize(
    ("regions", "others", "rest"),
    [
        ([(0, 10)], [(2, 3), (5, 6)], [(0, 2), (3, 5), (6, 10)]),
        ([(0, 10)], [(-5, 1), (9, 20)], [(1, 9)]),
        ([(0, 10)], [(0, 10)], []),
        ([(0, 2), (4, 6)], [(1, 5)], [(0, 1), (5, 6)]),
        ([(0, inf)], [(3, inf)], [(0, 3)]),
    ],
)
def test_times_are_subtracted(regions: list[Region], others: list[Region], rest: list[Region]) -> None:
    assert subtract(regions, others) == rest


def test_times_that_two_share_are_found() -> None:
    assert at_least_two([(0, 10), (8, 12), (11, 13)]) == [(8, 10), (11, 12)]
    assert at_least_two([(0, 10), (2, 9), (3, 4)]) == [(2, 9)]
    assert at_least_two([(0, 10), (10, 12)]) == []
