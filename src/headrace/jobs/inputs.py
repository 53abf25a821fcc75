"""A job's input streams as one sequence in the order of time.

Each stream comes in its merged order. Several are merged by `_enqueued`, so a row is handed on only when every stream has
told that nothing older will come: the order is the same on every replay, however fast each stream was read.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from headrace.core.clock import Clock
from headrace.core.flow import MAX_WATERMARK, MIN_WATERMARK
from headrace.core.schema import EventBatch
from headrace.eventlog.contract import EventLog, Positions, Slice, Trimmed
from headrace.eventlog.journal import positions_after


class Portion(NamedTuple):
    """What comes next: `runs` of (stream, rows) in order; then, for each stream of `quiet`, the tick up to which it had none.

    `positions` is where all streams stand after it. `trimmed` are rows that retention dropped before we read them, by
    (stream, partition).
    """

    runs: list[tuple[str, EventBatch]]
    quiet: dict[str, int]
    positions: dict[str, Positions]
    trimmed: dict[tuple[str, int], int]

    @property
    def rows(self) -> int:
        return sum(batch.num_rows for _, batch in self.runs)


class Inputs:
    """Reads the streams of `positions`, from there on. At most about `rows_max` rows of each wait for the others."""

    def __init__(self, event_log: EventLog, positions: Mapping[str, Positions], *, rows_max: int, clock: Clock) -> None:
        self._log = event_log
        self._clock = clock
        self._rows_max = rows_max
        self._readers = {stream: _Reader(stream, at) for stream, at in positions.items()}
        self._reads: dict[str, asyncio.Task[None]] = {}
        self._trimmed: dict[tuple[str, int], int] = {}
        self._horizon = MIN_WATERMARK
        self._taken_s = -math.inf

    @property
    def positions(self) -> dict[str, Positions]:
        """Where each stream stands: everything before was handed on."""
        return {stream: reader.handed for stream, reader in self._readers.items()}

    def frontier(self, stream: str) -> int:
        """Ticks: all that was enqueued in `stream` up to here has been read."""
        return self._readers[stream].frontier

    def waiting(self) -> bool:
        """Whether rows are held back by a stream that has not told its time yet."""
        return any(reader.rows for reader in self._readers.values())

    @property
    def behind(self) -> bool:
        """Whether the last read of a stream ended because it was large, so that more of it is there already."""
        return any(reader.full for reader in self._readers.values())

    async def take(self, *, wait_s: float, linger_s: float) -> Portion | None:
        """The next rows; None when neither rows nor time moved within `wait_s`.

        Rows that come after a pause are handed on at once; while they keep coming, they gather for `linger_s` after the
        portion before, the time that it took to process included.
        """
        early_s = linger_s - (self._clock.monotonic() - self._taken_s)
        if early_s > 0 and not self.behind:
            await self._clock.sleep(early_s)
        await self._fill(wait_s)
        portion = self._portion()
        if portion is not None:
            self._taken_s = self._clock.monotonic()
        return portion

    async def replay(self, until: Mapping[str, Positions]) -> Portion | None:
        """The next rows before `until`; None when all of them were handed on."""
        behind = [reader for reader in self._readers.values() if reader.handed != until[reader.stream]]
        if not behind:
            return None
        for reader in self._readers.values():
            end = until[reader.stream]
            if reader.read == end:
                reader.frontier = MAX_WATERMARK
                continue
            if reader.frontier == MAX_WATERMARK:  # from the epoch before
                reader.frontier = MIN_WATERMARK
            if self._has_room(reader):
                await self._read(reader, wait_s=1.0, until=end)
        return self._portion() or Portion([], {}, self.positions, {})

    def rejoin(self) -> None:
        """End a replay: what the streams told about time during it counted for the replay only."""
        self._horizon = MIN_WATERMARK
        for reader in self._readers.values():
            reader.frontier = MIN_WATERMARK

    async def close(self) -> None:
        """Stop reading ahead."""
        reads, self._reads = list(self._reads.values()), {}
        for task in reads:
            task.cancel()
        await asyncio.gather(*reads, return_exceptions=True)

    async def _fill(self, wait_s: float) -> None:
        """Let every stream that has room read on, until one of them got something or `wait_s` is over."""
        if len(self._readers) == 1:
            (reader,) = self._readers.values()
            await self._read(reader, wait_s=wait_s)
            return
        for stream, reader in self._readers.items():
            if stream not in self._reads and self._has_room(reader):
                # A read ahead goes on over several calls of take, so it may wait longer than one of them.
                self._reads[stream] = asyncio.create_task(self._read(reader, wait_s=wait_s))
        if self._reads:
            done, _ = await asyncio.wait(
                self._reads.values(), timeout=max(wait_s, 0.001), return_when=asyncio.FIRST_COMPLETED
            )
            self._reads = {stream: task for stream, task in self._reads.items() if task not in done}
            for task in done:
                task.result()

    def _has_room(self, reader: _Reader) -> bool:
        """Whether to read on: there is room, or everybody waits for this stream (one append may exceed the room)."""
        return reader.rows < self._rows_max or reader.frontier <= min(
            other.frontier for other in self._readers.values()
        )

    async def _read(self, reader: _Reader, *, wait_s: float, until: Positions | None = None) -> None:
        try:
            found = await self._log.read_merged(
                reader.stream, reader.read, rows_max=self._rows_max, wait_s=wait_s, until=until
            )
        except Trimmed:
            await self._skip_trimmed(reader, until)
        else:
            reader.add(found)
            reader.full = found.batch.num_rows >= self._rows_max

    async def _skip_trimmed(self, reader: _Reader, until: Positions | None) -> None:
        earliest, _ = await self._log.bounds(reader.stream)
        after = tuple(map(max, reader.read, earliest))
        if until is not None:
            after = tuple(map(min, after, until))
        for partition, (gone_to, at) in enumerate(zip(after, reader.read, strict=True)):
            if gone_to > at:
                key = reader.stream, partition
                self._trimmed[key] = self._trimmed.get(key, 0) + gone_to - at
        reader.read = after
        if not reader.rows:
            reader.handed = after

    def _portion(self) -> Portion | None:
        """What may be handed on now: the rows that no stream can precede any more."""
        horizon = min(reader.frontier for reader in self._readers.values())
        # A stream alone has its order already: nothing of it needs to wait.
        until = horizon if len(self._readers) > 1 else MAX_WATERMARK
        taken = [
            (reader.stream, batch) for reader in self._readers.values() if (batch := reader.take(until)) is not None
        ]
        if not taken and horizon <= self._horizon and not self._trimmed:
            return None
        self._horizon = max(self._horizon, horizon)
        trimmed, self._trimmed = self._trimmed, {}
        busy = {stream for stream, _ in taken}
        quiet = {stream: horizon for stream in self._readers if stream not in busy and _is_time(horizon)}
        return Portion(_interleaved(taken), quiet, self.positions, trimmed)


class _Reader:
    """One stream: `read` up to where it was read, `handed` up to where it was handed on; between them are `pieces`."""

    def __init__(self, stream: str, at: Positions) -> None:
        self.stream = stream
        self.read = at
        self.handed = at
        self.frontier = MIN_WATERMARK
        self.rows = 0
        self.full = False  # whether the last read got all that was asked for
        self._pieces: list[EventBatch] = []

    def add(self, found: Slice) -> None:
        if found.batch.num_rows:
            self._pieces.append(found.batch)
            self.rows += found.batch.num_rows
        self.read = found.positions
        self.frontier = max(self.frontier, found.frontier)
        if not self.rows:
            self.handed = self.read

    def take(self, horizon: int) -> EventBatch | None:
        """The rows enqueued up to `horizon`; None when there are none."""
        if not self._pieces:
            return None
        rows = self._pieces[0] if len(self._pieces) == 1 else pa.concat_batches(self._pieces)
        count = int(np.searchsorted(rows.column("_enqueued").to_numpy(), horizon, side="right"))
        if count == rows.num_rows:
            self._pieces, self.handed = [], self.read
        else:
            self._pieces = [rows.slice(count)]
            self.handed = positions_after(self.handed, rows.slice(0, count))
        self.rows -= count
        return rows.slice(0, count) if count else None


def _is_time(horizon: int) -> bool:
    return MIN_WATERMARK < horizon < MAX_WATERMARK


def _interleaved(taken: Sequence[tuple[str, EventBatch]]) -> list[tuple[str, EventBatch]]:
    """Rows of several streams by `_enqueued`, cut into runs of one stream; at equal times the streams' own order."""
    if len(taken) < 2:
        return list(taken)
    times = np.concatenate([batch.column("_enqueued").to_numpy() for _, batch in taken])
    which = np.repeat(np.arange(len(taken)), [batch.num_rows for _, batch in taken])
    which = which[np.lexsort((which, times))]
    ends = np.append(np.flatnonzero(np.diff(which)) + 1, len(which))
    begun = [0] * len(taken)
    runs: list[tuple[str, EventBatch]] = []
    start = 0
    for end in ends.tolist():
        index = int(which[start])
        stream, batch = taken[index]
        runs.append((stream, batch.slice(begun[index], end - start)))
        begun[index] += end - start
        start = end
    return runs
