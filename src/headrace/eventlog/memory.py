"""An event log in memory: for tests, and for a look around without a folder. Gone with the process."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.errors import UserError
from headrace.core.schema import EventBatch
from headrace.eventlog.batches import NEVER, Cut, Stored, counts_of, partitioned
from headrace.eventlog.contract import Appended, Positions, Slice, StreamStats, Trimmed
from headrace.eventlog.frontiers import Frontiers
from headrace.eventlog.recent import RecentIds, resendable


@dataclass
class _Stream:
    next: Positions
    received: Positions
    duplicates: Positions
    recent: RecentIds
    enqueued: int = 0
    batches: list[Stored] = field(default_factory=list)
    producers: dict[str, tuple[int, Appended]] = field(default_factory=dict)
    grown: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def earliest(self) -> Positions:
        return self.batches[0].starts if self.batches else self.next

    def first(self, condition: Callable[[Stored], bool]) -> int:
        """Index of the first batch where a condition that stays true once true holds."""
        return bisect_left(self.batches, True, key=condition)

    def wake(self) -> None:
        self.grown.set()
        self.grown = asyncio.Event()


class MemoryEventLog:
    """EventLog without a disk. One process, one event loop."""

    def __init__(self, clock: Clock, partitions: int = 4, deduplicate_s: float = 600.0) -> None:
        self._clock = clock
        self._partitions = partitions
        self._window = int(deduplicate_s * TICKS_PER_S)
        self._streams: dict[str, _Stream] = {}
        self._frontiers = Frontiers()
        self._groups: dict[tuple[str, str], Positions] = {}

    async def append(self, stream: str, batch: EventBatch, *, producer: str = "", epoch: int = -1) -> Appended:
        found = self._stream(stream)
        given = partitioned(batch, self._partitions)
        known = found.producers.get(producer)
        if producer and known and epoch <= known[0]:
            return known[1] if epoch == known[0] else Appended(0, batch.num_rows, known[1].enqueued, known[1].positions)
        at = max(self._clock.now(), found.enqueued + 1)
        mask, keys = resendable(given.rows.column("_event_id"))
        again = mask.copy()
        again[mask] = found.recent.duplicates(keys, at)
        rows = given.rows.filter(pa.array(~again)) if again.any() else given.rows
        counts = counts_of(given.partition[~again], self._partitions)
        stored = Stored(at, found.next, counts, rows, int(rows.nbytes))
        fresh = keys[~again[mask]]
        found.recent.add(fresh, np.full(len(fresh), at))
        found.received = _plus(found.received, counts_of(given.partition, self._partitions))
        found.duplicates = _plus(found.duplicates, counts_of(given.partition[again], self._partitions))
        found.batches.append(stored)
        found.next, found.enqueued = stored.ends, at
        answer = Appended(rows.num_rows, int(again.sum()), at, found.next)
        if producer:
            found.producers[producer] = epoch, answer
        found.wake()
        return answer

    async def read(self, stream: str, partition: int, offset: int, *, rows_max: int, wait_s: float) -> EventBatch:
        found = self._stream(stream)
        if not 0 <= partition < self._partitions:
            raise UserError(f"stream {stream!r} has partitions 0 to {self._partitions - 1}, not {partition}")
        start = tuple(offset if index == partition else NEVER for index in range(self._partitions))
        await self._wait(found, lambda: found.next[partition] > offset, wait_s)
        return self._cut(stream, start, Cut(start, rows_max=rows_max)).batch()

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
        found = self._stream(stream)
        start = positions or found.earliest
        if len(start) != self._partitions:
            raise UserError(f"{len(start)} positions for the {self._partitions} partitions of stream {stream!r}")
        cut = Cut(start, rows_max=rows_max, until=until)
        if not cut.done:
            known = self._frontiers.known(stream, start) or _stamp(found, start)
            await self._wait(found, lambda: _any_past(found.next, start) or found.enqueued > known, wait_s)
            self._cut(stream, start, cut)
        if not cut.rows:
            cut.frontier = _stamp(found, start) if until else found.enqueued
        return self._frontiers.told(stream, cut.slice(columns))

    async def commit(self, group: str, stream: str, positions: Positions) -> None:
        self._groups[group, stream] = tuple(positions)

    async def committed(self, group: str, stream: str) -> Positions:
        return self._groups.get((group, stream), (0,) * self._partitions)

    async def bounds(self, stream: str) -> tuple[Positions, Positions]:
        found = self._stream(stream)
        return found.earliest, found.next

    async def positions_at(self, stream: str, time: int) -> Positions:
        found = self._stream(stream)
        index = found.first(lambda batch: batch.enqueued >= time)
        return found.batches[index].starts if index < len(found.batches) else found.next

    async def trim(self, stream: str, before: int) -> int:
        found = self._stream(stream)
        index = found.first(lambda batch: batch.enqueued >= before)
        freed = sum(batch.size for batch in found.batches[:index])
        del found.batches[:index]
        return freed

    async def streams(self) -> list[str]:
        return sorted(self._streams)

    async def stats(self, stream: str) -> StreamStats:
        found = self._stream(stream)
        size = sum(batch.size for batch in found.batches)
        return StreamStats(found.received, found.duplicates, found.earliest, found.next, size)

    async def close(self) -> None:
        for stream in self._streams.values():
            stream.wake()

    def _stream(self, name: str) -> _Stream:
        if name not in self._streams:
            zeros = (0,) * self._partitions
            self._streams[name] = _Stream(zeros, zeros, zeros, RecentIds(self._window))
        return self._streams[name]

    async def _wait(self, stream: _Stream, ready: Callable[[], bool], wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                while not ready():
                    await stream.grown.wait()
        except TimeoutError:
            return

    def _cut(self, name: str, start: Positions, cut: Cut) -> Cut:
        found = self._streams[name]
        if any(map(int.__lt__, start, found.earliest)):
            raise Trimmed(
                f"stream {name!r} keeps offsets from {found.earliest} on, not {start}",
                hint="read from the earliest kept (positions ()), or raise retention_h",
            )
        for index in range(found.first(lambda batch: _any_past(batch.ends, start)), len(found.batches)):
            if cut.take(found.batches[index]):
                break
        return cut


def _plus(one: Positions, other: Positions) -> Positions:
    return tuple(map(int.__add__, one, other))


def _any_past(ends: Positions, positions: Positions) -> bool:
    return any(map(int.__gt__, ends, positions))


def _stamp(stream: _Stream, positions: Positions) -> int:
    """Up to when everything lies before `positions`, ticks after the last row apart."""
    index = stream.first(lambda batch: all(map(int.__ge__, batch.ends, positions)))
    if index == len(stream.batches):
        return stream.enqueued
    found = stream.batches[index]
    return found.enqueued - 1 if _any_past(found.ends, positions) else found.enqueued
