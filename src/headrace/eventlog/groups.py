"""How far consumer groups have read: a file of its own, so that commits never wait for appends."""

from __future__ import annotations

import threading
from pathlib import Path

from headrace.core.sqlite import open_shared
from headrace.eventlog.codec import pack, unpack
from headrace.eventlog.contract import Positions
from headrace.eventlog.storage import translated

_TABLE = """CREATE TABLE IF NOT EXISTS commits (
    reader TEXT, stream TEXT, positions BLOB NOT NULL, PRIMARY KEY (reader, stream)
) WITHOUT ROWID"""


class Groups:
    """Committed positions. Calls block. A power cut may lose the latest commits, never more: those rows are read again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with translated(path):
            self._connection = open_shared(path, synchronous="NORMAL")
            self._connection.execute(_TABLE)

    def commit(self, group: str, stream: str, positions: Positions) -> None:
        with self._lock, translated(self._path):
            self._connection.execute(
                "INSERT OR REPLACE INTO commits VALUES (?, ?, ?)", (group, stream, pack(positions))
            )

    def committed(self, group: str, stream: str) -> Positions | None:
        with self._lock, translated(self._path):
            row = self._connection.execute(
                "SELECT positions FROM commits WHERE reader = ? AND stream = ?", (group, stream)
            ).fetchone()
        return unpack(row[0]) if row else None

    def close(self) -> None:
        with self._lock:
            self._connection.close()
