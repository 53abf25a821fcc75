"""Moving a stream's write-ahead log into its file, beside the appends.

A checkpoint that runs while others append never catches up by itself, and only a log that has been moved whole is started
again from its beginning. So the bulk is moved on another thread, and once what is left is small the writer itself moves
that between two transactions: its stall stays at a few milliseconds, and the log at some tens of megabytes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from headrace.eventlog.reader import bytes_on_disk
from headrace.eventlog.storage import open_stream, translated

START_BYTES = 8 << 20
"""Appended bytes after which the bulk is moved."""

_DELETE_BATCHES = 200
_VACUUM_PAGES = 1024


def move(path: Path) -> bool:
    """Move what is in the log now. True when nothing was left behind."""
    with translated(path), closing(open_stream(path)) as connection:
        return passive(connection)


def passive(connection: sqlite3.Connection) -> bool:
    """Move what can be moved without waiting for anyone. True when nothing was left behind."""
    busy, frames, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return not busy and bool(frames == moved)


def trim(path: Path, before: int) -> int:
    """Drop whole batches enqueued before `before` and shrink the file. Returns the bytes by which it shrank.

    Works in short transactions, so appends go on meanwhile. A reader in the middle of a transaction may keep the last of
    the space until the next call.
    """
    with translated(path), closing(open_stream(path)) as connection:
        size = bytes_on_disk(path)
        for _ in _deletions(connection, before):
            passive(connection)
        for _ in _vacuums(connection):
            passive(connection)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return size - bytes_on_disk(path)


def _deletions(connection: sqlite3.Connection, before: int) -> Iterator[int]:
    while deleted := connection.execute(
        "DELETE FROM batches WHERE seq IN (SELECT seq FROM (SELECT seq, enqueued FROM batches ORDER BY seq LIMIT ?)"
        " WHERE enqueued < ?)",
        (_DELETE_BATCHES, before),
    ).rowcount:
        yield deleted


def _vacuums(connection: sqlite3.Connection) -> Iterator[int]:
    while free := connection.execute("PRAGMA freelist_count").fetchone()[0]:
        connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        yield free
