"""Durations are what has passed, whatever anybody does to the time of day."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purelb_sm.allocator.steady import HOPELESS, RATE, SteadyClock
from tests.support.domain import NOW


class Machine:
    """A time of day that can be set, and time that passes."""

    def __init__(self) -> None:
        self.wall, self.passed = NOW, 1000.0
        self.clock = SteadyClock(lambda: self.wall, lambda: self.passed)

    def sleep(self, seconds: float) -> datetime:
        self.passed += seconds
        self.wall += timedelta(seconds=seconds)
        return self.clock()


@pytest.mark.spec("E7")
@pytest.mark.parametrize("hours", [1, -1])
def test_an_hour_either_way_is_no_hour_that_passed(hours: int) -> None:
    machine = Machine()
    before = machine.clock()
    machine.wall += timedelta(hours=hours)
    assert abs((machine.sleep(60) - before).total_seconds() - 60) <= 60 * RATE
    assert machine.clock() >= before
    # In the end it says what the machine says.
    for _ in range(25):
        machine.sleep(3600)
    assert machine.clock() == machine.wall


@pytest.mark.spec("E7")
@given(st.lists(st.tuples(st.floats(0, 100), st.integers(-7200, 7200)), max_size=30))
def test_it_never_goes_back_and_a_duration_is_right_within_its_rate(moves: list[tuple[float, int]]) -> None:
    machine = Machine()
    began, slept_s = machine.clock(), 0.0
    for seconds, jump in moves:
        if abs(machine.wall + timedelta(seconds=jump) - machine.clock()) < HOPELESS:
            machine.wall += timedelta(seconds=jump)
        before = machine.clock()
        now = machine.sleep(seconds)
        slept_s += seconds
        assert now >= before
    assert abs((machine.clock() - began).total_seconds() - slept_s) <= slept_s * RATE + 0.001


def test_a_clock_that_was_never_set_is_taken_as_soon_as_it_is() -> None:
    machine = Machine()
    machine.wall += timedelta(days=20_000)
    assert machine.clock() == machine.wall


def test_a_clock_that_runs_a_little_fast_is_followed() -> None:
    machine = Machine()
    for _ in range(100):
        machine.passed += 1.0
        machine.wall += timedelta(seconds=1.0005)
        assert machine.clock() == machine.wall
