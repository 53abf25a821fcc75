"""The files of a log: their names, how they are made and opened, and what their failures mean.

A stream's file is made complete under another name and then linked into place, so that of several processes that meet a
new stream at once exactly one wins, and none sees a half-made file.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from headrace.core.errors import HeadraceError, Unavailable, UserError
from headrace.core.sqlite import open_shared
from headrace.eventlog.codec import FORMAT, pack
from headrace.eventlog.contract import LogFull

PAGE_BYTES = 4096
BUSY_TIMEOUT_MS = 10_000
BUSY_STEP_MS = 1
SUFFIX = ".sqlite"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}")
_SCHEMA = Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")


class LogDamaged(HeadraceError):
    """A stream's file is not a stream of ours, or no longer one. Someone must look; retrying does not help."""

    code = "eventlog.damaged"


def stream_path(folder: Path, stream: str) -> Path:
    """Where a stream lives. Raises UserError for a name that cannot be a file's."""
    if not _NAME.fullmatch(stream):
        raise UserError(
            f"{stream!r} cannot name a stream",
            hint="use letters, digits, _ - and . (at most 120)",
            code="eventlog.name",
        )
    return folder / f"{stream}{SUFFIX}"


def open_stream(path: Path, partitions: int = 0) -> sqlite3.Connection:
    """A connection to a stream's file; given `partitions`, it is made where it is not there. Raises Unavailable, LogDamaged."""
    with translated(path):
        if partitions and not path.exists():
            _make(path, partitions)
        try:
            connection = open_shared(path, synchronous="FULL")
        except Unavailable as exc:
            raise exc.__cause__ or exc from exc
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA wal_autocheckpoint=0")  # checkpoint.py does it, beside the appends
        connection.execute("PRAGMA secure_delete=OFF")
        connection.execute("PRAGMA cache_size=-4096")
        found = connection.execute("SELECT format FROM head").fetchone()
        if found is None or found[0] != FORMAT:
            raise LogDamaged(f"{path} has format {found and found[0]}, this release reads {FORMAT}")
        return connection


def begin(connection: sqlite3.Connection) -> None:
    """Take the write lock, waiting BUSY_TIMEOUT_MS for it at most.

    SQLite itself sleeps ever longer while it waits, up to 100 ms at a time: beside a process that writes every few
    milliseconds it comes too late again and again. So we look every BUSY_STEP_MS. Raises sqlite3.OperationalError.
    """
    connection.execute("PRAGMA busy_timeout=0")
    try:
        for _ in range(BUSY_TIMEOUT_MS // BUSY_STEP_MS):
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
            threading.Event().wait(BUSY_STEP_MS / 1000)
        connection.execute("BEGIN IMMEDIATE")
    finally:
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")


def _make(path: Path, partitions: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    zeros = pack((0,) * partitions)
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
            connection.execute(
                "INSERT INTO head VALUES (1, ?, ?, 0, 0, ?, ?, ?)", (FORMAT, partitions, zeros, zeros, zeros)
            )
        with suppress(FileExistsError):
            os.link(draft, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn the driver's errors into ours: a full disk, a lock held too long, a damaged file, each with the file's name."""
    try:
        yield
    except sqlite3.Error as exc:
        raise _failure(path, exc) from exc
    except OSError as exc:
        raise Unavailable(
            f"{path}: {exc.strerror or exc}", hint="check the disk and who owns the folder", code="eventlog.io"
        ) from exc


def _failure(path: Path, exc: sqlite3.Error) -> HeadraceError:
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return LogFull(f"no room left for {path}: {exc}", hint="free disk space, or lower retention_h")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable(
            f"{path} was locked by another process for {BUSY_TIMEOUT_MS // 1000} s",
            hint="see which process holds it (fuser), then retry",
            code="eventlog.busy",
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such table" in str(exc):
        return LogDamaged(f"{path} is damaged: {exc}", hint="restore it from a copy, or move it away to start it anew")
    return Unavailable(f"{path}: {exc}", hint="check the disk and who owns the folder", code="eventlog.io")
