"""What an event log promises, whatever stores it.

A stream is split into partitions by device. Offsets start at 0 in each partition and never repeat. Every appended batch
gets one `_enqueued` stamp that is later than any before it in the stream, so (`_enqueued`, `_partition`, `_offset`) is a
total order, the *merged order*, that every reader sees alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from headrace.core.errors import Unavailable, UserError
from headrace.core.schema import EventBatch

Positions = tuple[int, ...]
"""The next offset to read, per partition."""


class LogFull(Unavailable):
    """A stream reached its size limit, or the disk is full. Nothing of the batch was stored."""

    code = "eventlog.full"


class Trimmed(UserError):
    """The offset asked for is older than what retention kept."""

    code = "eventlog.trimmed"


class Appended(NamedTuple):
    """The answer to an append. `rows` were stored, `duplicates` were already there (and are safe just the same)."""

    rows: int
    duplicates: int
    enqueued: int  # the stamp of the batch, ticks
    positions: Positions  # next offsets after the batch


class Slice(NamedTuple):
    """A piece of a stream in merged order."""

    batch: EventBatch  # LOG_SCHEMA
    positions: Positions  # where to go on
    frontier: int  # ticks: every event of the stream enqueued up to here has been returned by now


class StreamStats(NamedTuple):
    """Counted by the log itself, in the transaction that stored the rows. Lists have one number a partition."""

    received: Positions  # rows handed to append
    duplicates: Positions  # rows of those that were already there
    earliest: Positions
    next: Positions
    bytes_on_disk: int


class EventLog(Protocol):
    """Ordered, durable streams split into partitions by key. Streams come into being with their first append or read."""

    async def append(self, stream: str, batch: EventBatch, *, producer: str = "", epoch: int = -1) -> Appended:
        """Durable when it returns. The same (producer, epoch), or an older epoch, again is a no-op: the first answer
        where it is still known (the last one always is).

        Rows are partitioned by `_device`; ids that start with `m` are de-duplicated over the window set. An empty batch
        is a *tick*: it stores no row but moves the frontier. Raises LogFull.
        """
        ...

    async def read(self, stream: str, partition: int, offset: int, *, rows_max: int, wait_s: float) -> EventBatch:
        """Rows of one partition from `offset` on, LOG_SCHEMA; empty when none came within `wait_s`. Raises Trimmed."""
        ...

    async def read_merged(
        self,
        stream: str,
        positions: Positions,
        *,
        rows_max: int,
        wait_s: float,
        until: Positions | None = None,
        columns: Sequence[str] | None = None,
    ) -> Slice:
        """Rows of all partitions in merged order. Returns as soon as there is a row or the frontier moved, else after
        `wait_s`. `until` (positions that an earlier Slice returned) stops exactly there; ticks after its last row are
        then not seen, so who replays keeps the frontier beside the positions. `columns` leaves out others.
        `rows_max` may be exceeded by what one appended batch holds. `()` as positions means the earliest kept.
        """
        ...

    async def commit(self, group: str, stream: str, positions: Positions) -> None: ...

    async def committed(self, group: str, stream: str) -> Positions:
        """What the group committed last; zeros when never."""
        ...

    async def bounds(self, stream: str) -> tuple[Positions, Positions]:
        """Earliest kept and next offset, per partition."""
        ...

    async def positions_at(self, stream: str, time: int) -> Positions:
        """Positions of the first event enqueued at or after `time` (ticks)."""
        ...

    async def trim(self, stream: str, before: int) -> int:
        """Drop whole batches enqueued before `time` and give their disk back. Returns the bytes given back."""
        ...

    async def streams(self) -> list[str]: ...

    async def stats(self, stream: str) -> StreamStats: ...

    async def close(self) -> None: ...
