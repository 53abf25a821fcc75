"""A stored batch: how appended rows are laid out, and how a piece of a stream is cut from stored batches.

Rows of a stored batch are sorted by partition and share one stamp, so stored batches laid end to end are the merged order.
That is why reading never sorts: a position is a prefix of that sequence, even where a batch is cut in its middle.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from headrace.core.errors import UserError, nearest
from headrace.core.identity import partition_of
from headrace.core.schema import EVENT_SCHEMA, LOG_SCHEMA, EventBatch
from headrace.eventlog.contract import Positions, Slice

STORED_SCHEMA = EVENT_SCHEMA.remove(EVENT_SCHEMA.get_field_index("_enqueued"))
"""What a batch keeps per row. Stamp, partition and offset follow from its place."""

_STORED_NAMES = STORED_SCHEMA.names
_LOG_NAMES = LOG_SCHEMA.names

NEVER = (1 << 63) - 1
"""A position that no row reaches: leaves a partition out of a cut."""

SLICE_BYTES_MAX = 64 << 20
"""One slice stops growing here, whatever `rows_max` allows: Arrow's string columns end at 2 GiB."""


class Stored(NamedTuple):
    """One appended batch as the log keeps it: `counts[p]` rows from offset `starts[p]` on, partition after partition."""

    enqueued: int
    starts: Positions
    counts: Positions
    rows: pa.RecordBatch  # STORED_SCHEMA
    size: int  # of `rows` in memory, bytes, about

    @property
    def ends(self) -> Positions:
        return tuple(map(int.__add__, self.starts, self.counts))


class Partitioned(NamedTuple):
    """Rows of an append sorted by partition (arrival order within one), and each row's partition, int64 of shape (n,)."""

    rows: pa.RecordBatch  # STORED_SCHEMA
    partition: np.ndarray[Any, np.dtype[np.int64]]


def partitioned(batch: EventBatch, partitions: int) -> Partitioned:
    """Check an appended batch and sort its rows by partition. Raises UserError where it is no EventBatch."""
    if not batch.schema.equals(EVENT_SCHEMA):
        raise UserError(
            f"not an event batch: columns {batch.schema.names}",
            hint="build it with headrace.core.schema.event_batch",
            code="eventlog.schema",
        )
    rows = batch.select(_STORED_NAMES)
    if any(rows.column(index).null_count for index in REQUIRED):
        names = [STORED_SCHEMA.names[index] for index in REQUIRED if rows.column(index).null_count]
        raise UserError(f"null values in {', '.join(names)}", hint="give every row a value", code="eventlog.schema")
    devices = rows.column("_device").to_numpy(zero_copy_only=False).tolist()  # four times as fast as to_pylist
    partition = np.fromiter(map(_places(partitions).__getitem__, devices), dtype=np.int64, count=len(devices))
    if np.all(partition[1:] >= partition[:-1]):
        return Partitioned(rows, partition)
    order = np.argsort(partition, kind="stable")
    return Partitioned(rows.take(_array(order)), partition[order])


REQUIRED = [index for index, field in enumerate(STORED_SCHEMA) if not field.nullable]


class _Places(dict[str, int]):
    """The partition of each device met so far: one dictionary look-up a row on the way of every append."""

    def __init__(self, partitions: int) -> None:
        super().__init__()
        self._partitions = partitions

    def __missing__(self, device: str) -> int:
        if len(self) >= _DEVICES_MAX:
            self.clear()
        self[device] = partition_of(device, self._partitions)
        return self[device]


_DEVICES_MAX = 200_000
_places = lru_cache(maxsize=64)(_Places)


def counts_of(partition: np.ndarray[Any, np.dtype[np.int64]], partitions: int) -> Positions:
    """Rows per partition."""
    return tuple(np.bincount(partition, minlength=partitions).tolist())


class Cut:
    """Gathers a slice from stored batches that arrive in order.

    Feed it with `take` until it answers True (nothing more fits), then ask for `slice()`. Partitions at NEVER are left out.
    """

    def __init__(self, positions: Positions, *, rows_max: int, until: Positions | None = None) -> None:
        if rows_max < 1:
            raise UserError(f"rows_max is {rows_max}", hint="ask for at least one row")
        self.positions = list(positions)
        self.rows = 0
        self.frontier = 0
        self._until = until or (NEVER,) * len(positions)
        self._bounded = until is not None
        self._rows_max = rows_max
        self._bytes = 0
        self._pieces: list[pa.RecordBatch] = []
        self._runs: list[tuple[int, int, int, int]] = []  # partition, first offset, rows, stamp

    def take(self, batch: Stored) -> bool:
        """Take what fits of the next stored batch. True when the slice is full or `until` is reached."""
        whole = self._take_whole(batch) or self._take_part(batch)
        self.frontier = batch.enqueued if whole else batch.enqueued - 1
        return not whole or self.rows >= self._rows_max or self._bytes >= SLICE_BYTES_MAX or self.done

    def _take_whole(self, batch: Stored) -> bool:
        """Take a batch that fits as it is, which nearly all do; False when it does not."""
        at, starts, rows, ends = batch.enqueued, batch.starts, batch.rows.num_rows, batch.ends
        if (
            rows != sum(batch.counts)
            or self.rows + rows > self._rows_max
            or any(map(int.__lt__, starts, self.positions))
            or (self._bounded and any(map(int.__gt__, ends, self._until)))
        ):
            return False
        if rows:
            self._runs += [(p, starts[p], count, at) for p, count in enumerate(batch.counts) if count]
            self._add(batch.rows, batch.size)
            self.positions = list(ends)
        return True

    def _take_part(self, batch: Stored) -> bool:
        """Take what fits, partition by partition; True when nothing of the batch is left to read."""
        whole, row = True, 0
        for partition, (start, count) in enumerate(zip(batch.starts, batch.counts, strict=True)):
            first = max(start, self.positions[partition])
            last = min(start + count, self._until[partition], first + self._rows_max - self.rows)
            if last > first:
                self._runs.append((partition, first, last - first, batch.enqueued))
                self._add(batch.rows.slice(row + first - start, last - first), batch.size)
                self.positions[partition] = last
            whole = whole and self.positions[partition] >= start + count
            row += count
        return whole

    @property
    def done(self) -> bool:
        """Whether `until` has been reached."""
        return self._bounded and all(map(int.__ge__, self.positions, self._until))

    def _add(self, rows: pa.RecordBatch, size: int) -> None:
        self._bytes += size
        self.rows += rows.num_rows
        self._pieces.append(rows)

    def slice(self, columns: Sequence[str] | None = None) -> Slice:
        return Slice(self.batch(columns), tuple(self.positions), self.frontier)

    def batch(self, columns: Sequence[str] | None = None) -> EventBatch:
        """The rows gathered, concatenated once: LOG_SCHEMA, or those of its columns that were asked for."""
        names: Collection[str] = _LOG_NAMES if columns is None else _known(columns)
        gathered = self._gathered() if columns is None else self._gathered_of(names)
        runs = np.array(self._runs, dtype=np.int64).reshape(-1, 4)
        counts = runs[:, 2]
        if "_enqueued" in names:
            gathered["_enqueued"] = _array(np.repeat(runs[:, 3], counts))
        if "_partition" in names:
            gathered["_partition"] = _array(np.repeat(runs[:, 0].astype(np.int32), counts))
        if "_offset" in names:
            before = np.cumsum(counts) - counts
            gathered["_offset"] = _array(np.arange(self.rows) + np.repeat(runs[:, 1] - before, counts))
        schema = LOG_SCHEMA if columns is None else pa.schema([field for field in LOG_SCHEMA if field.name in names])
        return pa.RecordBatch.from_arrays([gathered[name] for name in _LOG_NAMES if name in names], schema=schema)

    def _gathered(self) -> dict[str, pa.Array]:
        """All that is stored, a column an array."""
        if not self._pieces:
            return self._gathered_of(_STORED_NAMES)
        rows = self._pieces[0] if len(self._pieces) == 1 else pa.concat_batches(self._pieces)
        return dict(zip(_STORED_NAMES, rows.columns, strict=True))

    def _gathered_of(self, names: Collection[str]) -> dict[str, pa.Array]:
        """Some of the stored columns."""
        kept = [name for name in _STORED_NAMES if name in names]
        table = pa.Table.from_batches(self._pieces, STORED_SCHEMA).select(kept).combine_chunks()
        return {name: _only_chunk(column) for name, column in zip(kept, table.columns, strict=True)}


def _array(values: np.ndarray[Any, np.dtype[Any]]) -> pa.Array:
    """An Arrow array over a NumPy one. pa.array would first ask pandas what it is, which costs more than small batches do."""
    kind = pa.int32() if values.dtype == np.int32 else pa.int64()
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _only_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _known(columns: Iterable[str]) -> set[str]:
    asked = set(columns)
    for name in asked - set(LOG_SCHEMA.names):
        raise UserError(f"events have no column {name!r}", hint=nearest(name, LOG_SCHEMA.names))
    return asked
