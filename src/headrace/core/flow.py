"""Rows in motion: the contracts between sources, operators, sinks and functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import pyarrow as pa

from headrace.core.schema import EventBatch

Watermark = int
"""Ticks: no row at or before this time will come any more (adjusted ones apart). MAX_WATERMARK ends the stream."""
MAX_WATERMARK: Watermark = (1 << 63) - 1
MIN_WATERMARK: Watermark = -(1 << 63)


class Operator(Protocol):
    """One step of a running query: Arrow in, Arrow out; no I/O, no clock, same input same output."""

    def process(self, batch: pa.RecordBatch, port: int) -> Iterator[pa.RecordBatch]: ...

    def advance(self, watermark: Watermark) -> Iterator[pa.RecordBatch]: ...

    def snapshot(self, since: int | None = None) -> pa.Table: ...

    def restore(self, state: pa.Table, watermark: Watermark) -> None: ...


class SetAside(NamedTuple):
    """One row that a stage could not use: which (its index in the batch), why (a stable word), and the detail."""

    row: int
    reason: str
    detail: str = ""


class Outcome(NamedTuple):
    """What a function did with a batch: rows stored (or otherwise used up) and rows set aside. They must add up."""

    rows_out: int
    set_aside: tuple[SetAside, ...] = ()


class Function(Protocol):
    """Code on a stream, run in its own process, in batches.

    `process` returns when its effect is durable. After a crash the same epoch comes again with the same rows, so a
    function that remembers its last epoch is exactly once. It raises `Unavailable` to be called again later, and
    `DataError` when one of the rows is bad but it cannot say which (the runner then bisects).
    """

    async def open(self) -> None: ...

    async def process(self, batch: EventBatch, epoch: int) -> Outcome: ...

    async def close(self) -> None: ...


class LedgerEntry(NamedTuple):
    """The books of one stage for one partition and epoch: what came in, what went out, what was set aside and why.

    `rows_in` is counted from log offsets, `rows_out` by the stage itself; `headrace ledger` counts out once more by
    reading the sink back. Writing the same (stage, stream, partition, epoch) again replaces the entry.
    """

    stage: str
    stream: str
    partition: int
    epoch: int
    offset_from: int
    offset_to: int
    rows_out: int
    set_aside: dict[str, int]

    @property
    def rows_in(self) -> int:
        return self.offset_to - self.offset_from


class Ledger(Protocol):
    """Where stages write their books. Entries of closed epochs may be summed up, never dropped."""

    async def write(self, entries: Iterable[LedgerEntry]) -> None: ...

    async def totals(self) -> list[LedgerEntry]:
        """One entry per (stage, stream, partition): sums over all epochs; `epoch` is the last one written."""
        ...

    async def close(self) -> None: ...
