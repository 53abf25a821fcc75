"""Opening SQLite files that several processes share.

Switching a fresh file to WAL does not go through SQLite's busy handler, so two processes that start together can meet
`database is locked` there; only that step is tried again here.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from headrace.core.errors import Unavailable

BUSY_TIMEOUT_S = 30.0
_WAL_TRIES = 200
_WAL_PAUSE_S = 0.01


def open_shared(path: Path, *, synchronous: Literal["NORMAL", "FULL"]) -> sqlite3.Connection:
    """A connection in WAL mode, autocommit (begin transactions yourself), usable from any one thread at a time.

    FULL makes a commit durable when it returns; NORMAL may lose the last commits in a power cut, never consistency.
    Makes missing folders. Raises Unavailable when the file cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        _switch_to_wal(connection)
        connection.execute(f"PRAGMA synchronous={synchronous}")
    except (OSError, sqlite3.Error) as exc:
        raise unavailable(path, exc) from exc
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Take the write lock at once; commit at the end, roll back on any error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def unavailable(path: Path, exc: Exception) -> Unavailable:
    """Our error for a driver's: the file is locked, unreadable, damaged or the disk is full."""
    return Unavailable(f"{path}: {exc}", hint="check free disk space and the folder's owner", code="sqlite.unavailable")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    pause = threading.Event()
    for _ in range(_WAL_TRIES):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc):
                raise
            pause.wait(_WAL_PAUSE_S)
    connection.execute("PRAGMA journal_mode=WAL")
