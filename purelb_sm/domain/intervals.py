"""A set of integers as sorted disjoint intervals: what is free, however much lies between, costs what it is in pieces.

The intervals are kept in blocks of bounded length, so that one that appears or goes moves a few hundred of the others
and not all of them: a pool of which years of use have made a million pieces costs no more than a new one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import chain
from typing import ClassVar

Interval = tuple[int, int]
"""Lowest and highest member, both included."""


class IntervalSet:
    """`_firsts[b]` is the lowest member of block b, `_lows[b]` and `_highs[b]` its intervals. No block is empty.

    BLOCK: so many intervals are in a block that is made; one that has grown to more than twice as many is split.
    """

    BLOCK: ClassVar[int] = 512

    __slots__ = ("_firsts", "_highs", "_lows", "size")

    def __init__(self, low: int = 0, high: int = -1) -> None:
        """All from `low` to `high`; without them nothing."""
        self._firsts: list[int] = []
        self._lows: list[list[int]] = []
        self._highs: list[list[int]] = []
        self.size = 0
        if low <= high:
            self._put(0, 0, [(low, high)])
            self.size = high - low + 1

    def __iter__(self) -> Iterator[Interval]:
        return zip(chain.from_iterable(self._lows), chain.from_iterable(self._highs), strict=True)

    def __contains__(self, value: int) -> bool:
        block = bisect_right(self._firsts, value) - 1
        return block >= 0 and value <= self._highs[block][bisect_right(self._lows[block], value) - 1]

    def remove(self, value: int) -> bool:
        """Takes `value` out; False if it was not in."""
        block = bisect_right(self._firsts, value) - 1
        if block < 0:
            return False
        lows, highs = self._lows[block], self._highs[block]
        index = bisect_right(lows, value) - 1
        low, high = lows[index], highs[index]
        if value > high:
            return False
        if low == high:
            self._delete(block, index)
        elif value == low:
            self._lower(block, index, value + 1)
        elif value == high:
            highs[index] = value - 1
        else:
            highs[index] = value - 1
            self._insert(block, index + 1, value + 1, high)
        self.size -= 1
        return True

    def add(self, value: int) -> bool:
        """Puts `value` in, joining neighbours; False if it was in."""
        block = max(0, bisect_right(self._firsts, value) - 1)
        index = bisect_right(self._lows[block], value) - 1 if self._lows else -1
        if index >= 0 and value <= self._highs[block][index]:
            return False
        left = index >= 0 and self._highs[block][index] == value - 1
        after, place = self._next(block, index)
        right = after < len(self._lows) and self._lows[after][place] == value + 1
        if left and right:
            self._highs[block][index] = self._highs[after][place]
            self._delete(after, place)
        elif left:
            self._highs[block][index] = value
        elif right:
            self._lower(after, place, value)
        else:
            self._insert(block, index + 1, value, value)
        self.size += 1
        return True

    def cut(self, low: int, high: int) -> list[Interval]:
        """Takes out all from `low` to `high`, and answers what of it was in."""
        start, end = self._blocks(low, high)
        found: list[Interval] = []
        # From behind, as a block that has nothing left goes.
        for block in reversed(range(start, end)):
            found = self._cut(block, low, high) + found
        self.size -= sum(b - a + 1 for a, b in found)
        return found

    def _cut(self, block: int, low: int, high: int) -> list[Interval]:
        lows, highs = self._lows[block], self._highs[block]
        i, j = bisect_left(highs, low), bisect_right(lows, high)
        if i >= j:
            return []
        found = list(zip(lows[i:j], highs[i:j], strict=True))
        rest = [(a, b) for a, b in ((found[0][0], low - 1), (high + 1, found[-1][1])) if a <= b]
        found[0] = (max(low, found[0][0]), found[0][1])
        found[-1] = (found[-1][0], min(high, found[-1][1]))
        lows[i:j], highs[i:j] = [a for a, _ in rest], [b for _, b in rest]
        self._mend(block)
        return found

    def join(self, intervals: Iterable[Interval]) -> None:
        """Puts in all of these, which are sorted and disjoint, whatever of them was in: in one pass over what lies
        between the first and the last of them."""
        these = list(intervals)
        if not these:
            return
        start, end = self._blocks(these[0][0] - 1, these[-1][1] + 1)
        mine = list(self._inside(start, end))
        together: list[Interval] = []
        for low, high in merge(mine, these):
            if together and low <= together[-1][1] + 1:
                together[-1] = (together[-1][0], max(together[-1][1], high))
            else:
                together.append((low, high))
        self._put(start, end, together)
        self.size += sum(b - a + 1 for a, b in together) - sum(b - a + 1 for a, b in mine)

    def lowest(self, floor: int, *, skip_edges: bool) -> int | None:
        """The lowest member at or above `floor`; with `skip_edges`, one whose last octet is neither 0 nor 255."""
        block = max(0, bisect_right(self._firsts, floor) - 1)
        index = max(0, bisect_right(self._lows[block], floor) - 1) if self._lows else 0
        while block < len(self._lows):
            value = max(self._lows[block][index], floor)
            if skip_edges:
                value += {255: 2, 0: 1}.get(value & 0xFF, 0)
            if value <= self._highs[block][index]:
                return value
            block, index = self._next(block, index)
        return None

    def _next(self, block: int, index: int) -> tuple[int, int]:
        """The place after this one."""
        if self._lows and index + 1 < len(self._lows[block]):
            return block, index + 1
        return block + 1, 0

    def _blocks(self, low: int, high: int) -> tuple[int, int]:
        """[start, end) of the blocks that may have something from `low` to `high`."""
        return max(0, bisect_right(self._firsts, low) - 1), bisect_right(self._firsts, high)

    def _inside(self, start: int, end: int) -> Iterator[Interval]:
        for block in range(start, end):
            yield from zip(self._lows[block], self._highs[block], strict=True)

    def _put(self, start: int, end: int, intervals: list[Interval]) -> None:
        """These in place of the blocks from `start` to before `end`."""
        parts = [intervals[place : place + self.BLOCK] for place in range(0, len(intervals), self.BLOCK)]
        self._firsts[start:end] = [part[0][0] for part in parts]
        self._lows[start:end] = [[low for low, _ in part] for part in parts]
        self._highs[start:end] = [[high for _, high in part] for part in parts]

    def _lower(self, block: int, index: int, low: int) -> None:
        """This interval starts at `low` now."""
        self._lows[block][index] = low
        if index == 0:
            self._firsts[block] = low

    def _delete(self, block: int, index: int) -> None:
        del self._lows[block][index], self._highs[block][index]
        self._mend(block)

    def _insert(self, block: int, index: int, low: int, high: int) -> None:
        """A new interval before the one that is at this place of the block."""
        if not self._lows:
            self._put(0, 0, [(low, high)])
            return
        self._lows[block].insert(index, low)
        self._highs[block].insert(index, high)
        self._mend(block)

    def _mend(self, block: int) -> None:
        """The block has other intervals than before: it may have none, begin elsewhere, or have too many."""
        lows = self._lows[block]
        if not lows:
            del self._firsts[block], self._lows[block], self._highs[block]
        elif len(lows) > 2 * self.BLOCK:
            self._put(block, block + 1, list(self._inside(block, block + 1)))
        else:
            self._firsts[block] = lows[0]
