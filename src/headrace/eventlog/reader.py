"""Reading a stream's file: short read transactions on connections of their own, from any thread.

A transaction pins the write-ahead log while it is open, so rows are decoded inside it but nothing ever waits in it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from headrace.core.errors import UserError
from headrace.core.schema import EventBatch
from headrace.eventlog import lookup
from headrace.eventlog.batches import NEVER, Cut, Stored
from headrace.eventlog.codec import NO_ROWS, decode, size_of
from headrace.eventlog.contract import Positions, Slice, StreamStats, Trimmed
from headrace.eventlog.storage import LogDamaged, open_stream, translated

_CACHED_BATCHES = 64
_CACHED_BYTES = 16 << 20
_HINTS = 64


class StreamReader:
    """Reads one stream. All calls block and may come from several threads."""

    def __init__(self, path: Path, stream: str, *, partitions: int) -> None:
        self._path = path
        self._stream = stream
        self._partitions = partitions
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._hints: OrderedDict[Positions, int] = OrderedDict()  # positions -> the batch to go on with
        self._decoded: OrderedDict[int, tuple[pa.RecordBatch, int]] = OrderedDict()
        self._decoded_bytes = 0
        with self._snapshot() as connection:
            self.partitions = len(lookup.head(connection).next)

    def merged(
        self, positions: Positions, *, rows_max: int, until: Positions | None, columns: Sequence[str] | None
    ) -> Slice:
        """What is there now, in merged order. Raises Trimmed."""
        with self._snapshot() as connection:
            head = lookup.head(connection)
            start = positions or self._earliest(connection, head)
            self._check(start)
            cut = Cut(start, rows_max=rows_max, until=until)
            if not cut.done and any(map(int.__gt__, head.next, start)):
                self._gather(connection, head, start, cut)
            else:
                self._check_kept(connection, head, start)
            if not cut.rows:
                cut.frontier = self._stamp(connection, head, start) if until else head.enqueued
        return cut.slice(columns)

    def one(self, partition: int, offset: int, *, rows_max: int) -> EventBatch:
        """What one partition has now. Raises Trimmed."""
        if not 0 <= partition < self.partitions:
            raise UserError(f"stream {self._stream!r} has partitions 0 to {self.partitions - 1}, not {partition}")
        start = tuple(offset if index == partition else NEVER for index in range(self.partitions))
        cut = Cut(start, rows_max=rows_max)
        with self._snapshot() as connection:
            head = lookup.head(connection)
            if head.next[partition] > offset:
                self._gather(connection, head, start, cut)
            else:
                self._check_kept(connection, head, start)
        return cut.batch()

    def stamp(self, positions: Positions) -> int:
        """Ticks: up to when everything lies before `positions`, not counting ticks after the last row."""
        with self._snapshot() as connection:
            return self._stamp(connection, lookup.head(connection), positions)

    def bounds(self) -> tuple[Positions, Positions]:
        with self._snapshot() as connection:
            head = lookup.head(connection)
            return self._earliest(connection, head), head.next

    def positions_at(self, time: int) -> Positions:
        with self._snapshot() as connection:
            head = lookup.head(connection)
            found = lookup.first(connection, head.seq, lambda place: place.enqueued >= time)
            return found.starts if found else head.next

    def stats(self) -> StreamStats:
        with self._snapshot() as connection:
            head = lookup.head(connection)
            earliest = self._earliest(connection, head)
        return StreamStats(head.received, head.duplicates, earliest, head.next, bytes_on_disk(self._path))

    def close(self) -> None:
        with self._lock:
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def _gather(self, connection: sqlite3.Connection, head: lookup.Head, start: Positions, cut: Cut) -> None:
        """Feed the cut from the batch on that holds the first row at or after `start`."""
        self._check_kept(connection, head, start)
        seq = self._hints.get(start, 0)
        if not seq:
            found = lookup.first(connection, head.seq, lookup.past(start))
            seq = found.seq if found else head.seq + 1
        # Who goes on where nobody read before has each batch in one look-up; others find most of the rows decoded.
        fresh = seq not in self._decoded
        for place, data in lookup.stored(connection, seq) if fresh else lookup.places(connection, seq):
            wanted = any(map(int.__gt__, place.ends, cut.positions)) and any(place.counts)
            rows, size = self._rows(connection, place.seq, data) if wanted else (NO_ROWS, 0)
            seq = place.seq
            if cut.take(Stored(place.enqueued, place.starts, place.counts, rows, size)):
                break
        with self._lock:  # the next batch to read is this one (cut in two) or one after it
            self._hints[tuple(cut.positions)] = seq
            if len(self._hints) > _HINTS:
                self._hints.popitem(last=False)

    def _rows(self, connection: sqlite3.Connection, seq: int, data: bytes | None) -> tuple[pa.RecordBatch, int]:
        """The rows of a batch and their size in bytes, decoded once for all who read at about the same place."""
        with self._lock:
            known = self._decoded.get(seq)
        if known is not None:
            return known
        if data is None:
            data = lookup.data(connection, seq)
        try:
            found = decode(data), size_of(data)
        except (ValueError, OSError) as exc:
            raise LogDamaged(f"{self._path}: batch {seq} cannot be read: {exc}") from exc
        with self._lock:
            if seq not in self._decoded:
                self._decoded[seq] = found
                self._decoded_bytes += found[1]
            while len(self._decoded) > _CACHED_BATCHES or self._decoded_bytes > _CACHED_BYTES:
                self._decoded_bytes -= self._decoded.popitem(last=False)[1][1]
        return found

    def _stamp(self, connection: sqlite3.Connection, head: lookup.Head, positions: Positions) -> int:
        found = lookup.first(connection, head.seq, lookup.reaching(positions))
        if found is None:
            return head.enqueued
        return found.enqueued - 1 if lookup.past(positions)(found) else found.enqueued

    def _earliest(self, connection: sqlite3.Connection, head: lookup.Head) -> Positions:
        found = lookup.oldest(connection)
        return found.starts if found else head.next

    def _check(self, positions: Positions) -> None:
        if len(positions) != self.partitions:
            raise UserError(f"{len(positions)} positions for the {self.partitions} partitions of {self._stream!r}")

    def _check_kept(self, connection: sqlite3.Connection, head: lookup.Head, start: Positions) -> None:
        earliest = self._earliest(connection, head)
        if any(map(int.__lt__, start, earliest)):
            raise Trimmed(
                f"stream {self._stream!r} keeps offsets from {earliest} on, not {start}",
                hint="read from the earliest kept (positions ()), or raise retention_h",
            )

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one moment of the stream."""
        with translated(self._path):
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            connection = connection or open_stream(self._path, self._partitions)
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                with self._lock:
                    self._idle.append(connection)


def bytes_on_disk(path: Path) -> int:
    """The stream's file and its write-ahead log."""
    files = (path, path.with_name(path.name + "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
