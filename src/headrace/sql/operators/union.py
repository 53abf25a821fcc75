"""UNION: several streams as one, in time order, then by the order of the SELECTs.

A row is let through when no other branch can still bring an earlier one, so the order of the result does not depend on
how the branches were fed.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.core.flow import MIN_WATERMARK, Watermark
from headrace.core.schema import LOG_SCHEMA, EventBatch
from headrace.sql import values
from headrace.sql.decode import Decoder, Payload
from headrace.sql.rows import Named, Records, Rows, Spread
from headrace.sql.state import table_values, value_table


class UnionOperator:
    def __init__(self, ports: int) -> None:
        self.waiting: list[list[Rows]] = [[] for _ in range(ports)]
        self.mark: Watermark = MIN_WATERMARK

    def process(self, rows: Rows, port: int) -> None:
        self.waiting[port].append(rows)

    def advance(self, mark: Watermark) -> Rows | None:
        """Rows at or before `mark`, the lowest of all branches."""
        self.mark = max(self.mark, mark)
        pieces = [rows for port in self.waiting for rows in port]
        if not pieces:
            return None
        ports = [port for port, found in enumerate(self.waiting) for _ in found]
        together = Rows.concat(pieces)
        port_of = np.repeat(ports, [rows.rows for rows in pieces])
        order = np.argsort(together.times, kind="stable")
        count = int(np.searchsorted(together.times[order], self.mark, side="right"))
        self.waiting = [[] for _ in self.waiting]
        rest = np.sort(order[count:])
        for port in range(len(self.waiting)):
            mine = rest[port_of[rest] == port]
            if len(mine):
                self.waiting[port].append(together.take(mine).settle())
        return together.take(order[:count]) if count else None

    def rows(self) -> int:
        return sum(rows.rows for port in self.waiting for rows in port)

    def snapshot(self, since: int | None = None) -> pa.Table:
        """A row per waiting row: port and time as key, its columns, and the event it was made from."""
        keys: list[list[int]] = []
        found: list[list[Any]] = []
        for port, pieces in enumerate(self.waiting):
            for rows in pieces:
                names = rows.names
                records = rows.records() if names is None else [list(row) for row in zip(*_lists(rows), strict=True)]
                events = [None] * rows.rows if rows.origin is None else _packed(rows.origin.events())
                for time, record, event in zip(rows.times.tolist(), records, events, strict=True):
                    keys.append([port, time])
                    found.append([names, record, event])
        return value_table(keys, found).replace_schema_metadata({"mark": str(self.mark)})

    def restore(self, table: pa.Table) -> None:
        self.mark = int(table.schema.metadata[b"mark"])
        self.waiting = [[] for _ in self.waiting]
        rows = table_values(table)
        for (port, names, has_event), same in itertools.groupby(
            rows, lambda row: (row[0][0], row[1][0], bool(row[1][2]))
        ):
            some = list(same)
            times = np.array([key[1] for key, _ in some], np.int64)
            records = [record for _, (_, record, _) in some]
            items: list[Named | Spread] = [Records(records)]
            if names is not None:
                columns = zip(*records, strict=True)
                items = [
                    Named(name, values.from_values(list(column))) for name, column in zip(names, columns, strict=True)
                ]
            origin = _unpacked([event for _, (_, _, event) in some]) if has_event else None
            self.waiting[port].append(Rows(times, items, origin))


def _lists(rows: Rows) -> list[list[object]]:
    return [item.column.to_list() for item in rows.items if isinstance(item, Named)]


def _packed(events: EventBatch) -> list[list[Any]]:
    """Events as lists of their columns."""
    return [list(row) for row in zip(*(column.to_pylist() for column in events.select(LOG_SCHEMA.names)), strict=True)]


def _unpacked(rows: list[list[Any]]) -> Payload:
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), LOG_SCHEMA, strict=True)]
    return Payload.split(pa.RecordBatch.from_arrays(columns, schema=LOG_SCHEMA), Decoder([]))[0]
