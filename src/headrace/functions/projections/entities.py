"""From the log to the warehouse: events as rows about machines, for applications to query.

A row that the table has already under the same machine and event id came from an earlier event of the log (a device that
sent again after the log stopped looking for duplicates), or from this very epoch before a crash. The table itself knows
which: it keeps the offset each row came from, so the books are right in both cases.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

from headrace.core.flow import Outcome, SetAside
from headrace.core.schema import EventBatch
from headrace.eventlog.journal import positions_after
from headrace.warehouse.contract import BadRow, Warehouse
from headrace.warehouse.rows import aggregate_rows, telemetry_rows

_MAKE = {"telemetry": telemetry_rows, "aggregate": aggregate_rows}
_STORED = """
SELECT number FROM unnest(%(machine_ids)s::text[], %(event_ids)s::text[], %(partitions)s::int[], %(offsets)s::bigint[])
    WITH ORDINALITY AS given (machine_id, event_id, log_partition, log_offset, number)
WHERE EXISTS (
    SELECT FROM {table} AS stored
    WHERE stored.machine_id = given.machine_id AND stored.event_id = given.event_id AND stored.stream = %(stream)s
        AND stored.log_partition = given.log_partition AND stored.log_offset = given.log_offset
)
"""


class EntityProjection:
    """A Function: rows of one stream into one entity table, exactly once."""

    def __init__(
        self, warehouse: Warehouse, table: str, stream: str, kind: Literal["telemetry", "aggregate"] = "telemetry"
    ) -> None:
        self._warehouse = warehouse
        self._table = table
        self._stream = stream
        self._make = _MAKE[kind]
        self._producer = f"entities:{stream}:{table}"

    async def open(self) -> None:
        await asyncio.to_thread(self._warehouse.prepare)

    async def process(self, batch: EventBatch, epoch: int) -> Outcome:
        return await asyncio.to_thread(self._load, batch, epoch)

    async def close(self) -> None:
        pass

    def _load(self, batch: EventBatch, epoch: int) -> Outcome:
        rows, unusable = self._make(batch, self._stream)
        numbers = _without(range(batch.num_rows), unusable)
        zeros = (0,) * (max(batch.column("_partition").to_pylist()) + 1)
        loaded = self._warehouse.load(
            self._table, rows, producer=self._producer, epoch=epoch, positions=positions_after(zeros, batch)
        )
        aside = [SetAside(one.row, one.reason, one.detail) for one in unusable]
        aside += [SetAside(numbers[one.row], one.reason, one.detail) for one in loaded.bad]
        if loaded.known:
            fine = _without(range(rows.num_rows), loaded.bad)
            stored = self._stored(rows.take(pa.array(fine, pa.int64())))
            aside += [SetAside(numbers[row], "duplicate") for at, row in enumerate(fine) if at not in stored]
        return Outcome(batch.num_rows - len(aside), tuple(sorted(aside)))

    def _stored(self, rows: pa.Table) -> set[int]:
        """Which of `rows` the table has from exactly the place in the log that they came from."""
        found: list[dict[str, Any]] = self._warehouse.query(
            _STORED.format(table=self._table),
            {
                "machine_ids": rows["machine_id"].to_pylist(),
                "event_ids": rows["event_id"].to_pylist(),
                "partitions": rows["log_partition"].to_pylist(),
                "offsets": rows["log_offset"].to_pylist(),
                "stream": self._stream,
            },
        )
        return {int(row["number"]) - 1 for row in found}


def _without(numbers: Sequence[int], bad: Sequence[BadRow]) -> list[int]:
    gone = {one.row for one in bad}
    return [number for number in numbers if number not in gone]
