"""Events as points of a chart: times in milliseconds and one list per payload field.

History and live use the same shape, so a panel cannot tell where one ends and the other begins.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from headrace.core.clock import TICKS_PER_MS
from headrace.wire.payload import SYSTEM_COLUMNS

MS_PER_US = 1e-3


class Points(msgspec.Struct, kw_only=True):
    """Rows of one stream, oldest first. `t` is when the hub received them, in ms since 1970 (UTC)."""

    stream: str
    t: list[float]
    fields: dict[str, list[float | bool | str | None]]
    resume: str = ""


def points_of(stream: str, table: pa.Table, *, resume: str = "") -> Points:
    """A flattened table as points; columns that hold nothing are left out."""
    fields: dict[str, Any] = {}
    for name in table.column_names:
        column = table.column(name)
        if name in SYSTEM_COLUMNS or column.null_count == len(column):
            continue
        fields[name] = _values(column)
    return Points(stream=stream, t=times_ms(table), fields=fields, resume=resume)


def times_ms(table: pa.Table) -> list[float]:
    """Receive times in ms, from `_enqueued` (ticks) or, where a query gives no such column, `_time`."""
    if "_enqueued" in table.column_names:
        ticks = table.column("_enqueued").to_numpy()
        return list((ticks / TICKS_PER_MS).tolist())
    micros = table.column("_time").cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
    return list((micros * MS_PER_US).tolist())


def _values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        numbers = column.to_numpy().astype(np.float64)
        return [None if value != value else value for value in numbers.tolist()]
    if pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return list(column.to_pylist())
    return [None if value is None else str(value) for value in column.to_pylist()]
