"""Documents in one SQLite file that several processes share.

A commit is fsynced before the call returns. Followers of a change feed in other processes notice a commit by the size and
age of the write-ahead log, one `stat` each POLL_S, so an idle follower runs no query but one a second.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.errors import UserError
from headrace.core.sqlite import open_shared, transaction, unavailable
from headrace.docstore.contract import Change, Document
from headrace.docstore.encoding import check_match, check_scalars, decode, encode, expires_at
from headrace.docstore.gathered import Gathered, Outcome, Work

T = TypeVar("T")

POLL_S = 0.05
POLLS_PER_QUERY = 20  # look at the table itself this often, should a file system not keep times
CHANGES_KEPT_S = 7 * 86_400.0
_LIVE = "(expires IS NULL OR expires > ?)"
_LAST = "\U0010ffff"


class SqliteDocStore:
    """A DocStore in the file `path` (made when absent).

    The newest change of each document, a deletion too, stays in the feed for ever; older ones for `changes_kept_s`, or not at
    all in collections of `newest_only`, whose documents change often. Collections of `unfed` have no feed: nothing is left of
    a document that is deleted.
    Calls run in two threads of the store's own, one for writes and one for reads, so readers never wait for a writer. Writes
    that come while another is being made durable share the next commit, each with its own precondition.
    Every call may raise Unavailable (disk full, file locked for 30 s).
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        changes_kept_s: float = CHANGES_KEPT_S,
        newest_only: Collection[str] = (),
        unfed: Collection[str] = (),
    ) -> None:
        self._path = Path(path)
        self._clock = clock
        self._kept = int(changes_kept_s * TICKS_PER_S)
        self._feed = _Feed(frozenset(newest_only) | frozenset(unfed), frozenset(unfed))
        self._write = open_shared(self._path, synchronous="FULL")
        self._read = open_shared(self._path, synchronous="FULL")
        self._writer = Gathered("docstore-write", self._write_round)
        self._reader = Gathered("docstore-read", self._read_round)
        self._waiters: set[asyncio.Event] = set()
        script = files("headrace.docstore").joinpath("schema.sql").read_text(encoding="utf-8")
        try:
            self._write.executescript(f"BEGIN IMMEDIATE; {script} COMMIT;")
        except sqlite3.Error as exc:
            raise unavailable(self._path, exc) from exc

    async def get(self, collection: str, id: str) -> Document | None:
        sql = f"SELECT id, etag, body, updated, expires FROM documents WHERE collection = ? AND id = ? AND {_LIVE}"
        rows = await self._fetch(sql, (collection, id, self._clock.now()))
        return _document(rows[0]) if rows else None

    async def put(
        self,
        collection: str,
        id: str,
        body: Mapping[str, Any],
        *,
        if_match: str | None = None,
        ttl_s: float | None = None,
    ) -> Document:
        now = self._clock.now()
        text, expires = encode(body), expires_at(now, ttl_s)

        def run(connection: sqlite3.Connection) -> str:
            check_match(collection, id, _etag(connection, collection, id, now), if_match)
            return _store(connection, self._feed, collection, [(id, text)], now, expires)

        return Document(id, await self._commit(run), decode(text), now, expires)

    async def put_many(
        self,
        collection: str,
        bodies: Mapping[str, Mapping[str, Any]],
        *,
        if_match: str | None = None,
        newest_by: str = "",
    ) -> None:
        now = self._clock.now()
        texts = [(id, encode(body)) for id, body in bodies.items()]

        def run(connection: sqlite3.Connection) -> None:
            if if_match is not None:
                for id, _ in texts:
                    check_match(collection, id, _etag(connection, collection, id, now), if_match)
            kept = texts
            if newest_by:
                kept = [
                    each for each in texts if not _is_newer(connection, collection, each[0], bodies, newest_by, now)
                ]
            if kept:
                _store(connection, self._feed, collection, kept, now, None)

        if texts:
            await self._commit(run)

    async def delete(self, collection: str, id: str, *, if_match: str | None = None) -> bool:
        now = self._clock.now()

        def run(connection: sqlite3.Connection) -> bool:
            etag = _etag(connection, collection, id, now)
            check_match(collection, id, etag, if_match)
            if etag is None:
                return False
            _remove(connection, self._feed, [(collection, id, etag)], now)
            return True

        return await self._commit(run)

    async def query(
        self,
        collection: str,
        *,
        where: Mapping[str, Any] | None = None,
        prefix: str = "",
        after: str = "",
        limit: int = 1000,
    ) -> Sequence[Document]:
        sql = f"SELECT id, etag, body, updated, expires FROM documents WHERE collection = ? AND id > ? AND {_LIVE}"
        values: list[Any] = [collection, after, self._clock.now()]
        if prefix:
            sql += " AND id >= ? AND id <= ?"
            values += [prefix, prefix + _LAST * 8]
        for name, value in check_scalars(where or {}).items():
            sql += " AND json_extract(body, ?) IS ?"
            values += [f'$."{name}"', value]
        rows = await self._fetch(f"{sql} ORDER BY id LIMIT ?", (*values, limit))
        return [_document(row) for row in rows]

    async def count(self, collection: str) -> int:
        sql = f"SELECT count(*) FROM documents WHERE collection = ? AND {_LIVE}"
        return int((await self._fetch(sql, (collection, self._clock.now())))[0][0])

    async def changes(self, collection: str, since: int, *, limit: int = 1000, wait_s: float = 0.0) -> Sequence[Change]:
        sql = (
            "SELECT sequence, collection, id, etag, body FROM changes"
            " WHERE collection = ? AND sequence > ? ORDER BY sequence LIMIT ?"
        )
        polls = max(0, math.ceil(wait_s / POLL_S))
        woken = asyncio.Event()
        self._waiters.add(woken)
        try:
            while True:
                woken.clear()
                seen = self._marks()
                rows = await self._fetch(sql, (collection, since, limit))
                if rows or polls == 0:
                    return [_change(row) for row in rows]
                polls -= await self._quiet(woken, seen, min(polls, POLLS_PER_QUERY))
        finally:
            self._waiters.discard(woken)

    async def expire(self) -> int:
        now = self._clock.now()

        def run(connection: sqlite3.Connection) -> int:
            sql = "SELECT collection, id, etag FROM documents WHERE expires <= ?"
            gone = connection.execute(sql, (now,)).fetchall()
            _remove(connection, self._feed, gone, now)
            connection.execute(
                "DELETE FROM changes WHERE made < ? AND EXISTS (SELECT 1 FROM changes newer WHERE"
                " newer.collection = changes.collection AND newer.id = changes.id AND newer.sequence > changes.sequence)",
                (now - self._kept,),
            )
            return len(gone)

        return await self._commit(run)

    async def close(self) -> None:
        """Let calls under way finish, then close the file. Safe to call twice."""
        for woken in self._waiters:
            woken.set()
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._reader.shutdown()
        self._writer.shutdown()
        self._read.close()
        self._write.close()

    def _marks(self) -> tuple[int, int]:
        """What changes with every commit, ours or another process's: the log's age and size."""
        try:
            stat = Path(f"{self._path}-wal").stat()
        except OSError:
            return (0, 0)
        return (stat.st_mtime_ns, stat.st_size)

    async def _quiet(self, woken: asyncio.Event, seen: tuple[int, int], polls: int) -> int:
        """Wait until something was committed, at most `polls` times POLL_S; returns how many of these passed."""
        for passed in range(1, polls + 1):
            try:
                await asyncio.wait_for(woken.wait(), POLL_S)
                return passed
            except TimeoutError:
                if self._marks() != seen:
                    return passed
        return polls

    async def _fetch(self, sql: str, values: Sequence[Any]) -> list[Any]:
        return await self._reader.run(lambda: self._read.execute(sql, values).fetchall())

    async def _commit(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` checks before it writes: what it raises of ours leaves nothing behind, and others share its transaction."""
        answer = await self._writer.run(lambda: work(self._write))
        for woken in self._waiters:
            woken.set()
        return answer

    def _read_round(self, works: Sequence[Work]) -> Sequence[Outcome]:
        return [self._outcome(work) for work in works]

    def _write_round(self, works: Sequence[Work]) -> Sequence[Outcome]:
        """All in one transaction. A precondition that fails is that one's alone; when anything else goes wrong in one of
        several, nothing was written and each is tried by itself."""
        try:
            with transaction(self._write):
                outcomes = [self._outcome(work) for work in works]
                for _, error in outcomes:
                    if error is not None and not isinstance(error, UserError):
                        raise _Spoilt from error
            return outcomes
        except _Spoilt as exc:
            if len(works) > 1:
                return [self._write_round([work])[0] for work in works]
            return [(None, exc.__cause__)]
        except sqlite3.Error as exc:
            return [(None, unavailable(self._path, exc)) for _ in works]

    def _outcome(self, work: Work) -> Outcome:
        try:
            return work(), None
        except sqlite3.Error as exc:
            return None, unavailable(self._path, exc)
        except Exception as exc:
            return None, exc


class _Spoilt(Exception):
    """A write of a round failed in a way that may have left something behind."""


def _document(row: Sequence[Any]) -> Document:
    return Document(row[0], row[1], decode(row[2]), row[3], row[4])


def _change(row: Sequence[Any]) -> Change:
    return Change(row[0], row[1], row[2], row[3], None if row[4] is None else decode(row[4]))


def _etag(connection: sqlite3.Connection, collection: str, id: str, now: int) -> str | None:
    sql = f"SELECT etag FROM documents WHERE collection = ? AND id = ? AND {_LIVE}"
    row = connection.execute(sql, (collection, id, now)).fetchone()
    return None if row is None else str(row[0])


def _is_newer(
    connection: sqlite3.Connection, collection: str, id: str, bodies: Mapping[str, Mapping[str, Any]], by: str, now: int
) -> bool:
    """Whether the stored body of a document has a larger number than the one that should replace it."""
    sql = f"SELECT json_extract(body, ?) > ? FROM documents WHERE collection = ? AND id = ? AND {_LIVE}"
    row = connection.execute(sql, (f'$."{by}"', bodies[id][by], collection, id, now)).fetchone()
    return row is not None and bool(row[0])


def _next_sequence(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()
    return 1 if row is None else int(row[0]) + 1


class _Feed(NamedTuple):
    """Which collections keep only the newest change of a document, and which of these nothing of a deleted one."""

    newest_only: frozenset[str]
    unfed: frozenset[str]

    def forget(self, connection: sqlite3.Connection, collection: str, ids: Iterable[str]) -> None:
        """Drop the changes so far of documents that are about to change."""
        if collection in self.newest_only:
            sql = "DELETE FROM changes WHERE collection = ? AND id = ?"
            connection.executemany(sql, ((collection, id) for id in ids))


def _store(
    connection: sqlite3.Connection,
    feed: _Feed,
    collection: str,
    texts: Sequence[tuple[str, str]],
    now: int,
    expires: int | None,
) -> str:
    """Write bodies and their changes; returns the last etag (a sequence number in hexadecimal)."""
    feed.forget(connection, collection, (id for id, _ in texts))
    first = _next_sequence(connection)
    numbered = [(first + index, id, text) for index, (id, text) in enumerate(texts)]
    connection.executemany(
        "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?, ?)",
        ((collection, id, f"{sequence:x}", text, now, expires) for sequence, id, text in numbered),
    )
    connection.executemany(
        "INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?)",
        ((sequence, collection, id, f"{sequence:x}", text, now) for sequence, id, text in numbered),
    )
    return f"{numbered[-1][0]:x}"


def _remove(connection: sqlite3.Connection, feed: _Feed, keys: Sequence[tuple[str, str, str]], now: int) -> None:
    """Delete (collection, id, etag) and say so in the feed; the change carries the etag that is gone."""
    connection.executemany("DELETE FROM documents WHERE collection = ? AND id = ?", (key[:2] for key in keys))
    for collection, id, _ in keys:
        feed.forget(connection, collection, (id,))
    connection.executemany(
        "INSERT INTO changes (collection, id, etag, body, made) VALUES (?, ?, ?, NULL, ?)",
        ((*key, now) for key in keys if key[0] not in feed.unfed),
    )
