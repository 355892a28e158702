"""Objects on disk, so that they outlive the process; the history of changes is not kept, as watchers must cope with.

A write is handed to the kernel before it is answered, so it survives kill -9 of this process. It may be lost when the
machine loses power, which a sandbox accepts for speed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from purelb_sm.sandbox.apiserver.storage import Key

# resourceVersions are promised to the disk in blocks, so that a restart goes on above every version ever given out,
# deletions included, without a write per version.
BLOCK = 10_000


class SqliteJournal:
    """One table of objects in a SQLite file under `directory`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(directory / "apiserver.sqlite", isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS object (bucket TEXT, namespace TEXT, name TEXT, rv INTEGER, body BLOB,"
            " PRIMARY KEY (bucket, namespace, name)) WITHOUT ROWID"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS promised (rv INTEGER)")
        row = self._db.execute("SELECT max(rv) FROM promised").fetchone()
        self.promised: int = row[0] or 0

    def rows(self) -> Iterator[tuple[str, Key, int, bytes]]:
        for bucket, namespace, name, rv, body in self._db.execute("SELECT * FROM object"):
            yield bucket, (namespace, name), rv, body

    def put(self, bucket: str, key: Key, rv: int, raw: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO object VALUES (?, ?, ?, ?, ?)", (bucket, *key, rv, raw))

    def delete(self, bucket: str, key: Key) -> None:
        self._db.execute("DELETE FROM object WHERE bucket = ? AND namespace = ? AND name = ?", (bucket, *key))

    def reserve(self, rv: int) -> None:
        if rv <= self.promised:
            return
        self.promised = rv + BLOCK
        self._db.execute("INSERT INTO promised VALUES (?)", (self.promised,))

    def close(self) -> None:
        self._db.close()
