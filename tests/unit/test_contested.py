"""Who undoes our writes is answered, but less and less often."""

from __future__ import annotations

from purelb_sm.allocator.contested import FORGET_S, FREE, LAST_PAUSE_S, Contested
from purelb_sm.domain.views import ServiceKey

ECHO, OTHER = ServiceKey("test", "echo"), ServiceKey("test", "other")


class Clock:
    at = 100.0

    def __call__(self) -> float:
        return self.at


def test_the_first_writes_are_made_at_once_and_the_next_ever_later() -> None:
    clock = Clock()
    contested = Contested(clock)
    assert [contested.pause_s(ECHO) for _ in range(FREE)] == [0.0] * FREE
    pauses = []
    for _ in range(12):
        pauses.append(contested.pause_s(ECHO))
        # Asked in between it says what is left, and nobody else has to wait.
        clock.at += pauses[-1] / 2
        assert contested.pause_s(ECHO) <= pauses[-1] / 2 + 1e-9
        assert contested.pause_s(OTHER) == 0.0
        contested.settled(OTHER)
        clock.at += pauses[-1] / 2 + 1e-6
        assert contested.pause_s(ECHO) == 0.0
    assert pauses == sorted(pauses)
    assert pauses[-1] == LAST_PAUSE_S


def test_it_is_over_when_the_book_moves_or_nothing_happens_for_long() -> None:
    clock = Clock()
    contested = Contested(clock)
    for key in (ECHO, OTHER):
        for _ in range(FREE):
            contested.pause_s(key)
    contested.settled(ECHO)
    assert contested.pause_s(ECHO) == 0.0
    assert contested.pause_s(OTHER) > 0.0
    clock.at += FORGET_S
    assert contested.pause_s(OTHER) == 0.0
    assert len(contested._writes) == 1
