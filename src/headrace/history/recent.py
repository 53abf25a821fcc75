"""What the log has and the lake does not yet, asked for from any thread.

Queries run on threads, a log belongs to one event loop: calls are handed to that loop and waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from headrace.core.errors import Unavailable
from headrace.eventlog.contract import EventLog, Positions, Trimmed
from headrace.wire.payload import flatten

log = structlog.get_logger()

T = TypeVar("T")
_PIECE_ROWS = 50_000
_TRIES = 3


class Recent(NamedTuple):
    """Flattened rows of the log up to `end`, the next offset per partition at the moment of asking."""

    rows: pa.Table
    end: Positions


class RecentRows:
    """`loop` is the log's; without one, the loop that runs now, else a new one for each call."""

    def __init__(
        self, events: EventLog, *, loop: asyncio.AbstractEventLoop | None, rows_max: int, timeout_s: float
    ) -> None:
        self._log = events
        self._loop = loop or _running()
        self._rows_max = rows_max
        self._timeout_s = timeout_s

    def streams(self) -> list[str]:
        return self._ask(self._log.streams())

    def since(self, stream: str, start: Positions, schema: pa.Schema | None, *, entity: str | None = None) -> Recent:
        """Rows (of one entity, where given) from `start` on (`()`: from the earliest kept); columns that `schema` has
        are typed as it says. Raises Unavailable when there are more than `rows_max`.
        """
        batches, end = self._ask(self._read(stream, start))
        if entity is not None:
            batches = [batch.filter(pc.equal(batch.column("_entity_id"), entity)) for batch in batches]
        return Recent(_flattened(batches, schema), end)

    def positions_at(self, stream: str, time: int) -> Positions:
        return self._ask(self._log.positions_at(stream, time))

    async def _read(self, stream: str, start: Positions) -> tuple[list[pa.RecordBatch], Positions]:
        for _ in range(_TRIES - 1):
            try:
                return await self._read_once(stream, start)
            except Trimmed:  # retention moved on between two calls: what it took is asked for no more
                continue
        return await self._read_once(stream, start)

    async def _read_once(self, stream: str, start: Positions) -> tuple[list[pa.RecordBatch], Positions]:
        earliest, end = await self._log.bounds(stream)
        positions = tuple(map(max, start or earliest, earliest))
        if start and positions != start:
            log.warning("history.gap", stream=stream, lake=start, earliest=earliest)
        behind = sum(end) - sum(positions)
        if behind > self._rows_max:
            raise Unavailable(
                f"the lake is {behind:,} events of {stream!r} behind the log",
                hint="wait until it has caught up (`headrace status`), or start `headrace serve function lake`",
                code="history.behind",
            )
        batches: list[pa.RecordBatch] = []
        while positions != end:
            piece = await self._log.read_merged(stream, positions, rows_max=_PIECE_ROWS, wait_s=0.0, until=end)
            if piece.positions == positions:
                break
            batches.append(piece.batch)
            positions = piece.positions
        return batches, positions

    def _ask(self, call: Coroutine[Any, Any, T]) -> T:
        loop = self._loop
        if loop is None or loop.is_closed() or not loop.is_running():
            return asyncio.run(call)
        assert _running() is not loop, "history blocks: call it in a thread, not on the event loop"
        future = asyncio.run_coroutine_threadsafe(call, loop)
        try:
            return future.result(self._timeout_s)
        except TimeoutError:
            future.cancel()
            raise Unavailable(
                f"the log did not answer within {self._timeout_s:g} s", hint="try again", code="history.log"
            ) from None


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _flattened(batches: list[pa.RecordBatch], schema: pa.Schema | None) -> pa.Table:
    """The batches' rows in one table; a column keeps the type that `schema` or an earlier batch gave it."""
    types = {field.name: field.type for field in schema} if schema is not None else {}
    pieces: list[pa.Table] = []
    for batch in batches:
        pieces.append(flatten(batch, schema=types))
        types |= {field.name: field.type for field in pieces[-1].schema if field.name not in types}
    return pa.concat_tables(pieces, promote_options="default") if pieces else pa.table({})
