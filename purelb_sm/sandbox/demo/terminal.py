"""What a person watching the demo sees: headings, commands with their real output, claims with whether they hold."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TextIO

_COLOURS = {"heading": "1", "command": "36", "good": "32", "bad": "31;1", "faint": "2"}


class Terminal:
    """Writes to a stream; in colour, and with a running clock while it waits, where that is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def line(self, text: str = "", style: str = "") -> None:
        painted = f"\033[{_COLOURS[style]}m{text}\033[0m" if style and self._live and text else text
        self._stream.write(f"{painted}\n")
        self._stream.flush()

    def heading(self, text: str) -> None:
        self.line()
        self.line(text, "heading")

    def note(self, text: str) -> None:
        self.line(f"   {text}", "faint")

    def progress(self, text: str) -> None:
        self.line(f"{self.elapsed_s:6.1f} s  {text}", "faint")

    def command(self, argv: Sequence[str]) -> None:
        self.line()
        self.line(f"$ {shlex.join(argv)}", "command")

    def output(self, text: str) -> None:
        for one in text.rstrip().splitlines():
            self.line(one)

    def good(self, claim: str) -> None:
        self.line(f"   ✔ {claim}", "good")

    def bad(self, claim: str, why: str) -> None:
        self.line(f"   ✘ {claim}", "bad")
        self.output(why)

    @asynccontextmanager
    async def waiting(self, what: str) -> AsyncIterator[None]:
        """Shows that time passes, and for what; says how long it took."""
        began = time.monotonic()
        ticking = asyncio.create_task(self._tick(what, began))
        try:
            yield
        finally:
            ticking.cancel()
            if self._live:
                self._stream.write("\r\033[K")
        self.note(f"waited {time.monotonic() - began:.1f} s for {what}")

    async def _tick(self, what: str, began: float) -> None:
        if not self._live:
            self.note(f"waiting for {what} …")
        while True:
            if self._live:
                self._stream.write(f"\r   … {time.monotonic() - began:.1f} s for {what}")
                self._stream.flush()
            await asyncio.sleep(0.1)
