"""The ledger in one SQLite file that every process of a project writes.

The last EPOCHS_KEPT epochs of each (stage, stream, partition) stand one by one and can be replaced, as a stage does that
runs an epoch again after a crash. Older ones are rolled up into one row, so the file stays small over months of running.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from headrace.core.errors import UserError
from headrace.core.flow import LedgerEntry
from headrace.core.sqlite import open_shared, transaction, unavailable
from headrace.ledger.totals import total

T = TypeVar("T")
Key = tuple[str, str, int]

EPOCHS_KEPT = 1000
_KEY = "stage = ? AND stream = ? AND partition = ?"
_COLUMNS = "stage, stream, partition, epoch, offset_from, offset_to, rows_out, set_aside"


class SqliteLedger:
    """A Ledger in the file `path` (made when absent). Every call may raise Unavailable.

    An epoch that was already rolled up is settled: writing it again changes nothing.
    """

    def __init__(self, path: Path, *, epochs_kept: int = EPOCHS_KEPT) -> None:
        self._path = Path(path)
        self._epochs_kept = epochs_kept
        self._loose: dict[Key, int] = {}  # about how many epochs of a key are not rolled up
        self._connection = open_shared(self._path, synchronous="FULL")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        script = files("headrace.ledger").joinpath("schema.sql").read_text(encoding="utf-8")
        try:
            self._connection.executescript(f"BEGIN IMMEDIATE; {script} COMMIT;")
        except sqlite3.Error as exc:
            raise unavailable(self._path, exc) from exc

    async def write(self, entries: Iterable[LedgerEntry]) -> None:
        """Insert or replace in one transaction, durable when it returns. Raises UserError for negative counts."""
        given = list(entries)
        for entry in given:
            if entry.rows_in < 0 or entry.rows_out < 0 or min(entry.set_aside.values(), default=0) < 0:
                raise UserError(f"a ledger entry has negative counts: {entry}", code="ledger.negative")

        def run(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.executemany(
                    f"INSERT OR REPLACE INTO entries SELECT ?, ?, ?, ?, ?, ?, ?, ? WHERE NOT EXISTS"
                    f" (SELECT 1 FROM sums WHERE {_KEY} AND epoch >= ?)",
                    (
                        (*entry[:7], _dump(entry.set_aside), entry.stage, entry.stream, entry.partition, entry.epoch)
                        for entry in given
                    ),
                )
                for key in {entry[:3] for entry in given}:
                    self._tidy(connection, key)

        if given:
            await self._in_thread(run)

    async def totals(self) -> list[LedgerEntry]:
        def run(connection: sqlite3.Connection) -> list[LedgerEntry]:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM sums UNION ALL SELECT {_COLUMNS} FROM entries")
            return total(_entry(row) for row in rows)

        return await self._in_thread(run)

    async def entries(self, stage: str, limit: int = 100) -> list[LedgerEntry]:
        """The newest epochs of a stage that still stand one by one, newest first."""

        def run(connection: sqlite3.Connection) -> list[LedgerEntry]:
            sql = f"SELECT {_COLUMNS} FROM entries WHERE stage = ? ORDER BY epoch DESC, stream, partition LIMIT ?"
            return [_entry(row) for row in connection.execute(sql, (stage, limit))]

        return await self._in_thread(run)

    async def forget(self, stage: str) -> None:
        """Close the books of a stage for good: for one that starts again from the beginning with epoch 0."""

        def run(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.execute("DELETE FROM entries WHERE stage = ?", (stage,))
                connection.execute("DELETE FROM sums WHERE stage = ?", (stage,))

        await self._in_thread(run)

    async def close(self) -> None:
        """Let calls under way finish, then close the file. Safe to call twice."""
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._thread.shutdown()
        self._connection.close()

    def _tidy(self, connection: sqlite3.Connection, key: Key) -> None:
        """Roll up once twice the epochs that are kept stand one by one."""
        if key not in self._loose:
            self._loose[key] = connection.execute(f"SELECT count(*) FROM entries WHERE {_KEY}", key).fetchone()[0]
        else:
            self._loose[key] += 1
        if self._loose[key] >= 2 * self._epochs_kept:
            _roll_up(connection, key, keep=self._epochs_kept)
            self._loose[key] = self._epochs_kept

    async def _in_thread(self, run: Callable[[sqlite3.Connection], T]) -> T:
        def guarded() -> T:
            try:
                return run(self._connection)
            except sqlite3.Error as exc:
                raise unavailable(self._path, exc) from exc

        try:
            future = asyncio.get_running_loop().run_in_executor(self._thread, guarded)
        except RuntimeError as exc:
            raise UserError("the ledger is closed", code="ledger.closed") from exc
        return await future


def _roll_up(connection: sqlite3.Connection, key: Key, *, keep: int) -> None:
    """Sum all but the newest `keep` epochs of a key into its row of `sums`."""
    sql = f"SELECT epoch FROM entries WHERE {_KEY} ORDER BY epoch DESC LIMIT 1 OFFSET ?"
    last = connection.execute(sql, (*key, keep)).fetchone()
    if last is None:
        return
    old = f"FROM entries WHERE {_KEY} AND epoch <= ?"
    rows = connection.execute(f"SELECT {_COLUMNS} {old}", (*key, last[0])).fetchall()
    rows += connection.execute(f"SELECT {_COLUMNS} FROM sums WHERE {_KEY}", key).fetchall()
    (entry,) = total(_entry(row) for row in rows)
    connection.execute(
        "INSERT OR REPLACE INTO sums VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*entry[:7], _dump(entry.set_aside))
    )
    connection.execute(f"DELETE {old}", (*key, last[0]))


def _dump(set_aside: dict[str, int]) -> str:
    return msgspec.json.encode(set_aside, order="sorted").decode()


def _entry(row: Sequence[Any]) -> LedgerEntry:
    stage, stream, partition, epoch, offset_from, offset_to, rows_out, set_aside = row
    counts = msgspec.json.decode(set_aside, type=dict[str, int])
    return LedgerEntry(stage, stream, partition, epoch, offset_from, offset_to, rows_out, counts)
