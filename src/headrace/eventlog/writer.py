"""Writing a stream's file: one transaction, and so one fsync, for all appends that wait.

Everything an append promises is decided inside the transaction: its stamp, its offsets, which rows are duplicates, whether
its producer has been here before. Other processes append to the same file, so nothing remembered from the last
transaction is trusted until the file has been asked what came since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from headrace.core.clock import Clock
from headrace.core.errors import HeadraceError
from headrace.core.schema import EventBatch
from headrace.eventlog import lookup
from headrace.eventlog.batches import Partitioned, counts_of, partitioned
from headrace.eventlog.checkpoint import passive
from headrace.eventlog.codec import encode, pack, unpack
from headrace.eventlog.contract import Appended, LogFull, Positions
from headrace.eventlog.recent import Keys, Mask, RecentIds, resendable
from headrace.eventlog.storage import PAGE_BYTES, begin, open_stream, translated

_CATCH_UP_BATCHES = 1000  # whose ids go into the index as one run
_COMMIT_BYTES = 3 * PAGE_BYTES  # of every transaction, however small: the head, the last page of batches, one above it


class Request(NamedTuple):
    """An append that waits for its transaction."""

    batch: EventBatch
    producer: str
    epoch: int


class _Prepared(NamedTuple):
    """What can be computed before the file is locked."""

    given: Partitioned
    resendable: Mask
    keys: Keys
    data: bytes  # all rows, as if none were a duplicate
    producer: str
    epoch: int


class StreamWriter:
    """The one writer of a stream in this process. Not for two threads at a time.

    `window` is how long ids are remembered (ticks); `committed` is called after each transaction.
    """

    def __init__(
        self,
        path: Path,
        stream: str,
        clock: Clock,
        *,
        partitions: int,
        window: int,
        size_bytes_max: int,
        committed: Callable[[], None],
    ) -> None:
        self.path = path
        self.stream = stream
        self._clock = clock
        self._window = window
        self._size_bytes_max = size_bytes_max
        self._committed = committed
        self._connection = open_stream(path, partitions)
        self._partitions = len(lookup.head(self._connection).next)
        self._page_bytes = int(self._connection.execute("PRAGMA page_size").fetchone()[0])
        self._recent: RecentIds | None = None
        self._known_seq = 0  # up to here `_recent` has the ids
        self._index_ahead = False  # whether it also has some of the transaction that runs
        self.bytes_written = 0  # to the write-ahead log, about

    def commit(self, requests: Sequence[Request]) -> list[Appended | HeadraceError]:
        """Store all of them durably, in order. An answer each; what is wrong with one alone is its answer.

        Raises LogFull, Unavailable or LogDamaged when nothing at all was stored.
        """
        with translated(self.path):
            prepared = [self._prepare(request) for request in requests]
            if self._recent is None and _has_keys(prepared):  # may take seconds: before the file is locked
                self._catch_up(lookup.head(self._connection))
            self._index_ahead = False
            try:
                answers = self._transact(prepared)
            except BaseException:
                if self._index_ahead:
                    self._recent = None  # it holds ids of the transaction that failed
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            self._committed()
        return answers

    def checkpoint(self) -> None:
        """Move what is in the write-ahead log, between two transactions."""
        with translated(self.path):
            passive(self._connection)

    def close(self) -> None:
        self._connection.close()

    def _prepare(self, request: Request) -> _Prepared | HeadraceError:
        try:
            given = partitioned(request.batch, self._partitions)
            mask, keys = resendable(given.rows.column("_event_id"))
            return _Prepared(given, mask, keys, encode(given.rows), request.producer, request.epoch)
        except HeadraceError as exc:
            return exc

    def _transact(self, prepared: list[_Prepared | HeadraceError]) -> list[Appended | HeadraceError]:
        begin(self._connection)
        before = head = lookup.head(self._connection)
        room = self._room()
        if _has_keys(prepared):
            self._catch_up(head)
        answers: list[Appended | HeadraceError] = []
        for one in prepared:
            if isinstance(one, HeadraceError):
                answers.append(one)
                continue
            head, answer, size = self._store(head, one, room)
            room -= size
            self.bytes_written += size
            answers.append(answer)
        if head is not before:
            self._connection.execute(
                "UPDATE head SET seq = ?, enqueued = ?, next = ?, received = ?, duplicates = ?",
                (head.seq, head.enqueued, pack(head.next), pack(head.received), pack(head.duplicates)),
            )
        self._connection.execute("COMMIT")
        self.bytes_written += _COMMIT_BYTES
        if self._recent is not None and self._known_seq == before.seq:
            self._known_seq = head.seq
        return answers

    def _store(self, head: lookup.Head, one: _Prepared, room: int) -> tuple[lookup.Head, Appended | HeadraceError, int]:
        """Insert one append. Returns the head after it, its answer, and the bytes it took."""
        known = self._answered(one)
        if known is not None:
            return head, known, 0
        partitions = len(head.next)
        at = max(self._clock.now(), head.enqueued + 1)
        again = np.zeros(len(one.resendable), dtype=np.bool_)
        if self._recent is not None and len(one.keys):
            again[one.resendable] = self._recent.duplicates(one.keys, at)
        rows, data, partition, keys = one.given.rows, one.data, one.given.partition, one.keys
        if again.any():
            rows, partition = rows.filter(pa.array(~again)), partition[~again]
            data, keys = encode(rows), keys[~again[one.resendable]]
        if len(data) > room:
            return head, self._full(room, len(data)), 0
        counts = counts_of(partition, partitions)
        place = lookup.Place(head.seq + 1, at, head.next, counts)
        self._connection.execute(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (place.seq, at, pack(place.starts), pack(counts), one.producer, one.epoch, keys.tobytes(), data),
        )
        if self._recent is not None and len(keys):
            self._index_ahead = True
            self._recent.add(keys, np.full(len(keys), at))
        answer = Appended(rows.num_rows, int(again.sum()), at, place.ends)
        if one.producer:
            self._connection.execute(
                "INSERT OR REPLACE INTO producers VALUES (?, ?, ?, ?, ?, ?)",
                (one.producer, one.epoch, answer.rows, answer.duplicates, at, pack(answer.positions)),
            )
        received = _plus(head.received, counts_of(one.given.partition, partitions))
        duplicates = _plus(head.duplicates, counts_of(one.given.partition[again], partitions))
        return lookup.Head(place.seq, at, place.ends, received, duplicates), answer, len(data) + len(keys) * 16 + 256

    def _answered(self, one: _Prepared) -> Appended | None:
        """The answer to a producer's epoch that is not its first time here."""
        if not one.producer:
            return None
        row = self._connection.execute(
            "SELECT epoch, rows, duplicates, enqueued, positions FROM producers WHERE producer = ?", (one.producer,)
        ).fetchone()
        if row is None or one.epoch > row[0]:
            return None
        epoch, rows, duplicates, enqueued, positions = row
        if one.epoch == epoch:
            return Appended(rows, duplicates, enqueued, unpack(positions))
        return Appended(0, one.given.rows.num_rows, enqueued, unpack(positions))

    def _catch_up(self, head: lookup.Head) -> None:
        """Put into the index the ids that other processes stored since; all of the window when there is no index yet."""
        if self._recent is None:
            self._recent, since = RecentIds(self._window), self._clock.now() - self._window
            start = lookup.first(self._connection, head.seq, lambda place: place.enqueued >= since)
            self._known_seq = start.seq - 1 if start else head.seq
        if self._known_seq == head.seq:
            return
        stored = self._connection.execute(
            "SELECT enqueued, ids FROM batches WHERE seq > ? ORDER BY seq", (self._known_seq,)
        )
        while rows := stored.fetchmany(_CATCH_UP_BATCHES):
            keys = np.frombuffer(b"".join(ids for _, ids in rows), dtype=np.uint64).reshape(-1, 2)
            stamps = np.array([at for at, _ in rows], dtype=np.int64)
            self._recent.add(keys, np.repeat(stamps, [len(ids) // 16 for _, ids in rows]))
        self._known_seq = head.seq

    def _room(self) -> int:
        """Bytes that may still be stored."""
        pages, free = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count")
        )
        return self._size_bytes_max - int((pages - free) * self._page_bytes)

    def _full(self, room: int, size: int) -> LogFull:
        held = self._size_bytes_max - room
        return LogFull(
            f"stream {self.stream!r} holds {held:,} of {self._size_bytes_max:,} bytes; {size:,} more do not fit",
            hint="raise [eventlog] size_bytes_max, or lower retention_h",
        )


def _has_keys(prepared: Sequence[_Prepared | HeadraceError]) -> bool:
    return any(isinstance(one, _Prepared) and len(one.keys) for one in prepared)


def _plus(one: Positions, other: Positions) -> Positions:
    return tuple(map(int.__add__, one, other))
