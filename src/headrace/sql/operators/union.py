"""UNION: several streams as one, in time order, then by the order of the SELECTs.

A row is let through when no other branch can still bring an earlier one, so the order of the result does not depend on
how the branches were fed.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from headrace.core.flow import MIN_WATERMARK, Watermark
from headrace.sql import values
from headrace.sql.rows import Named, Records, Rows
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

    def snapshot(self) -> pa.Table:
        keys: list[list[int]] = []
        found: list[object] = []
        for port, pieces in enumerate(self.waiting):
            for rows in pieces:
                names = rows.names
                records = rows.records() if names is None else list(zip(*_lists(rows), strict=True))
                for time, record in zip(rows.times.tolist(), records, strict=True):
                    keys.append([port, time])
                    found.append([names, record])
        return value_table(keys, found).replace_schema_metadata({"mark": str(self.mark)})

    def restore(self, table: pa.Table) -> None:
        self.mark = int(table.schema.metadata[b"mark"])
        self.waiting = [[] for _ in self.waiting]
        for (port, time), (names, record) in table_values(table):
            times = np.array([time], np.int64)
            if names is None:
                rows = Rows(times, [Records([record])])
            else:
                rows = Rows(
                    times, [Named(name, values.from_values([value])) for name, value in zip(names, record, strict=True)]
                )
            self.waiting[port].append(rows)


def _lists(rows: Rows) -> list[list[object]]:
    return [item.column.to_list() for item in rows.items if isinstance(item, Named)]
