"""Carries what SQLite has logged over into the file of the book, beside the work (a checkpoint, sqlite.org/wal.html).

SQLite does it in the commit that makes the log long, and of a large book that takes a second, in which nobody gets an
address. A checkpoint that waits for nobody may run while others read and write, and a crash in it loses nothing.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

LOG_KEPT = 2**22
"""To so many bytes the log is cut back when it begins anew: else its size would not tell what is in it."""
CARRY = 2**23
"""So many bytes of log more than before, and they are carried over: a page that changed twice meanwhile only once."""


class Carrier:
    """`look()` costs a question to the file system. Its thread is there from the first time that there is something to
    do until `stop()`; after that, another `look()` may start a new one."""

    def __init__(self, book: Path) -> None:
        self._book, self._log = book, book.with_name(book.name + "-wal")
        self._seen = 0
        self._lock = threading.Lock()
        self._due: threading.Event | None = None

    def look(self) -> None:
        """After a transaction: has the log grown by enough?"""
        try:
            size = self._log.stat().st_size
        except OSError:
            size = 0
        if size < self._seen:
            # It has begun anew.
            self._seen = 0
        if size >= self._seen + CARRY:
            self._seen = size
            self._wake()

    def stop(self) -> None:
        """A checkpoint that runs ends by itself."""
        with self._lock:
            if self._due is not None:
                self._due.set()
                self._due = None

    def _wake(self) -> None:
        with self._lock:
            if self._due is None:
                self._due = threading.Event()
                threading.Thread(target=self._work, args=[self._due], name=f"carrier {self._book}", daemon=True).start()
            self._due.set()

    def _work(self, due: threading.Event) -> None:
        while True:
            due.wait()
            due.clear()
            if due is not self._due:
                return
            # What cannot be done now is done by who writes, and if that cannot be, it is told there.
            with suppress(sqlite3.Error):
                self._carry()

    def _carry(self) -> None:
        # Opened anew each time: a restored backup may have been moved into the place of the file.
        uri = f"{self._book.as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
