"""The door to pyroute2, and the monitor behind it: dumps that are interrupted, notices that are lost."""

from __future__ import annotations

import errno
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pyroute2 import NetlinkDumpInterrupted
from pyroute2.netlink import nlmsg

from purelb_sm.net import Change, DumpInterrupted, KernelRefused, monitor, notices, pyroute
from purelb_sm.net.rtnetlink import NLM_F_DUMP_INTR, OpenSocket

LOST = KernelRefused(errno.ENOBUFS)


def message(name: str, flags: int = 0) -> Any:
    made = nlmsg()
    made["header"]["flags"] = flags
    made["name"] = name
    return made


Answer = list[Any] | Exception


def dumps(*answers: Answer) -> Callable[[], Any]:
    """A question that gets these answers, one after the other."""
    left = list(answers)

    async def ask() -> AsyncIterator[Any]:
        answer = left.pop(0)

        async def said() -> AsyncIterator[Any]:
            if isinstance(answer, Exception):
                raise answer
            for one in answer:
                yield one

        return said()

    return ask


async def names(ask: Callable[[], Any]) -> list[str]:
    return await pyroute.complete(ask, lambda found: str(found["name"]))


@pytest.mark.parametrize(
    "interrupted",
    [
        [message("old", NLM_F_DUMP_INTR)],
        [message("old"), message("odd", NLM_F_DUMP_INTR), message("old")],
        NetlinkDumpInterrupted(),
    ],
)
async def test_a_dump_that_a_change_interrupted_is_made_again(interrupted: Answer) -> None:
    assert await names(dumps(interrupted, [message("new")], [message("later")])) == ["new"]


async def test_a_dump_that_is_always_interrupted_is_a_named_error() -> None:
    with pytest.raises(DumpInterrupted):
        await names(dumps(*([[message("old", NLM_F_DUMP_INTR)]] * 100)))


class ScriptedKernel:
    """Subscriptions to notices, each given by what it says before it breaks, and with what it breaks. After the last
    no other can be had."""

    def __init__(self, *subscriptions: tuple[list[Any], Exception]) -> None:
        self.left = list(subscriptions)
        self.open = 0

    def subscribe(self, open_socket: OpenSocket, receive_buffer: int) -> ScriptedNotices:
        if not self.left:
            raise OSError(errno.EMFILE, "too many open files")
        self.open += 1
        return ScriptedNotices(self, *self.left.pop(0))


class ScriptedNotices:
    def __init__(self, kernel: ScriptedKernel, batches: list[Any], broken: Exception) -> None:
        self.kernel = kernel
        self.batches = batches
        self.broken = broken

    async def next(self) -> list[notices.Notice]:
        if not self.batches:
            raise self.broken
        return [self.batches.pop(0)]

    def close(self) -> None:
        self.kernel.open -= 1


def link(index: int) -> notices.Notice:
    return notices.RTM_NEWLINK, struct.pack("=BxHiII", 0, 1, index, 0, 0)


async def told(kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Change], BaseException]:
    """What a subscriber is told until there is no more, and the error that it then gets."""
    monkeypatch.setattr(notices, "Notices", kernel.subscribe)
    changes: list[Change] = []
    async with monitor.Monitor() as watch:
        while True:
            try:
                changes.append(await watch.next_change())
            except Exception as broken:
                return changes, broken


@pytest.mark.spec("C12")
async def test_lost_notices_mean_a_new_subscription_and_then_a_look_at_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = ScriptedKernel(([link(3)], LOST), ([link(4)], LOST))
    changes, broken = await told(kernel, monkeypatch)
    assert changes == [monitor.RESYNC, Change("link", 3), monitor.RESYNC, Change("link", 4)]
    assert isinstance(broken, OSError)
    assert kernel.open == 0


async def test_what_breaks_the_way_to_the_kernel_is_told_to_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = KernelRefused(errno.EBADMSG)
    kernel = ScriptedKernel(([link(3)], refused), ([link(4)], LOST))
    changes, broken = await told(kernel, monkeypatch)
    assert changes == [monitor.RESYNC, Change("link", 3)]
    assert broken is refused
    assert kernel.open == 0
