"""From the log to the lake: every row of a stream, with its payload as columns, in the stream's table.

Each append carries the log positions it ends at, so a history query knows from where on to read the log instead.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec
import pyarrow as pa
import structlog

from headrace.core.errors import HeadraceError, NotFound
from headrace.core.flow import Outcome
from headrace.core.schema import EventBatch
from headrace.eventlog.contract import Positions
from headrace.eventlog.journal import positions_after
from headrace.lake.contract import Lake
from headrace.lake.layout import table_of
from headrace.wire.payload import flatten

log = structlog.get_logger()


class Ends(Protocol):
    """Tells how many partitions a stream has: the event log's `bounds`."""

    async def bounds(self, stream: str) -> tuple[Positions, Positions]: ...


class LakeProjection:
    """A Function: rows of one stream into its lake table, exactly once. Every `compact_files` appends join small files."""

    def __init__(self, lake: Lake, stream: str, ends: Ends, *, compact_files: int = 64) -> None:
        self._lake = lake
        self._stream = stream
        self._ends = ends
        self._table = table_of(stream)
        self._producer = f"lake:{stream}"
        self._compact_files = compact_files
        self._appends = 0
        self._compacting: asyncio.Task[None] | None = None
        self._positions: Positions = ()

    async def open(self) -> None:
        """Resume from the positions that the lake itself knows; a new table begins where the log does."""
        known = await asyncio.to_thread(self._lake.last_properties, self._table, self._producer)
        if known:
            self._positions = tuple(msgspec.json.decode(known["positions"], type=list[int]))
        else:
            self._positions, _ = await self._ends.bounds(self._stream)

    async def process(self, batch: EventBatch, epoch: int) -> Outcome:
        after = positions_after(self._positions, batch)
        await asyncio.to_thread(self._append, batch, epoch, after)
        self._positions = after
        self._appends += 1
        if self._appends % self._compact_files == 0 and (self._compacting is None or self._compacting.done()):
            self._compacting = asyncio.create_task(self._compact())
        return Outcome(batch.num_rows)

    async def close(self) -> None:
        if self._compacting is not None:
            await self._compacting

    def _append(self, batch: EventBatch, epoch: int, after: Positions) -> None:
        rows = flatten(batch, schema=self._schema())
        rows = rows.append_column("_stream", pa.repeat(pa.scalar(self._stream), rows.num_rows))
        positions = msgspec.json.encode(after).decode()
        self._lake.append(self._table, rows, producer=self._producer, epoch=epoch, properties={"positions": positions})

    def _schema(self) -> pa.Schema | None:
        try:
            return self._lake.schema(self._table)
        except NotFound:
            return None

    async def _compact(self) -> None:
        """Joining files changes no row that anybody sees, so when it fails it is only tried again later."""
        try:
            await asyncio.to_thread(self._lake.compact, self._table)
        except HeadraceError as exc:
            log.warning("lake.compaction_failed", table=self._table, code=exc.code, problem=str(exc))
