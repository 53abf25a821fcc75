"""One browser's share of the live feed: a bounded buffer between a stream's feed and a socket that may be slow.

Exactly once per browser: per stream and partition it knows the next offset it has not given out, so rows that both the
catch-up and the feed would bring are given once, in order. What a slow browser cannot take is thinned, counted and told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.clock import Clock
from headrace.eventlog.contract import Positions


class Watcher:
    """Rows of one entity in some streams, waiting for its browser.

    `rows_max` bounds the buffer; `rows_per_s_max` what is accepted in a second (evenly spaced rows are kept, the first
    and the last of a batch always among them while the budget lasts). Anomalies pass by the second limit.
    """

    def __init__(
        self,
        entity: str,
        start: dict[str, Positions],
        *,
        clock: Clock,
        rows_max: int,
        rows_per_s_max: int,
        unthinned: Iterable[str] = (),
    ) -> None:
        self.entity = entity
        self.next: dict[str, list[int]] = {stream: list(positions) for stream, positions in start.items()}
        self.thinned = 0
        self.closed = False
        self._clock = clock
        self._rows_max = rows_max
        self._rate = rows_per_s_max
        self._budget = float(rows_per_s_max)
        self._refilled = clock.monotonic()
        self._unthinned = frozenset(unthinned)
        self._buffer: list[tuple[str, pa.Table]] = []
        self._rows = 0
        self._ready = asyncio.Event()

    @property
    def streams(self) -> list[str]:
        return list(self.next)

    @property
    def buffered_rows(self) -> int:
        return self._rows

    def select(self, stream: str, rows: pa.Table) -> pa.Table:
        """Of some rows (flattened or not) those of the entity that were not given out yet."""
        wanted = pc.equal(rows.column("_entity_id"), self.entity).to_numpy(zero_copy_only=False)
        partition = rows.column("_partition").to_numpy()
        known = np.asarray(self.next[stream] or [0], dtype=np.int64)
        if len(partition) and (top := int(partition.max())) >= len(known):
            known = np.pad(known, (0, top + 1 - len(known)))
        fresh = wanted & (rows.column("_offset").to_numpy() >= known[partition])
        return rows if fresh.all() else rows.filter(pa.array(fresh))

    def advance(self, stream: str, positions: Positions) -> None:
        """Everything before `positions` has been offered."""
        known = self.next[stream]
        known.extend([0] * (len(positions) - len(known)))
        self.next[stream] = [max(old, new) for old, new in zip(known, positions, strict=True)]

    def offer(self, stream: str, rows: pa.Table) -> None:
        """Take rows in; never waits. Thins when they come too fast or the buffer is full."""
        if stream not in self._unthinned:
            rows = self._within_rate(rows)
        if rows.num_rows:
            self._buffer.append((stream, rows))
            self._rows += rows.num_rows
        if self._rows > self._rows_max:
            self._thin()
        self._ready.set()

    async def take(self, wait_s: float) -> list[tuple[str, pa.Table]]:
        """All that is buffered, one table per run of one stream; empty when nothing came within `wait_s`.

        When it returns, everything before `next` has been given out or thinned.
        """
        if not self._buffer and not self.closed:
            try:
                async with asyncio.timeout(wait_s):
                    await self._ready.wait()
            except TimeoutError:
                return []
        taken, self._buffer, self._rows = self._buffer, [], 0
        self._ready.clear()
        return _joined(taken)

    def take_thinned(self) -> int:
        """How many rows were left out since the last call."""
        count, self.thinned = self.thinned, 0
        return count

    def close(self) -> None:
        self.closed = True
        self._ready.set()

    def _within_rate(self, rows: pa.Table) -> pa.Table:
        now = self._clock.monotonic()
        self._budget = min(float(self._rate), self._budget + (now - self._refilled) * self._rate)
        self._refilled = now
        keep = min(rows.num_rows, int(self._budget))
        self._budget -= keep
        self.thinned += rows.num_rows - keep
        return rows if keep == rows.num_rows else _spread(rows, keep)

    def _thin(self) -> None:
        """Keep half of what fits: an even share of every run of rows, the newest first where runs are many."""
        runs = _joined(self._buffer)[-(self._rows_max // 2) :]
        share = self._rows_max / 2 / self._rows
        kept = [(stream, _spread(table, max(1, int(table.num_rows * share)))) for stream, table in runs]
        rows = sum(table.num_rows for _, table in kept)
        self.thinned += self._rows - rows
        self._buffer, self._rows = kept, rows


def _spread(rows: pa.Table, keep: int) -> pa.Table:
    """`keep` of the rows, evenly spaced, the last one among them."""
    if keep == 0:
        return rows.slice(0, 0)
    picks = np.linspace(rows.num_rows - 1, 0, keep).astype(np.int64)[::-1]
    return rows.take(pa.array(picks))


def _joined(parts: list[tuple[str, pa.Table]]) -> list[tuple[str, pa.Table]]:
    """Neighbouring tables of one stream as one; columns that only some have are null in the others."""
    joined: list[tuple[str, list[pa.Table]]] = []
    for stream, table in parts:
        if joined and joined[-1][0] == stream:
            joined[-1][1].append(table)
        else:
            joined.append((stream, [table]))
    return [(stream, pa.concat_tables(tables, promote_options="default")) for stream, tables in joined]
