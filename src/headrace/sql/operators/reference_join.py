"""JOIN with reference data: an index over the table's rows, looked up once per distinct key of a batch.

Equalities between the two sides make the key (nulls never match); whatever else ON says is tested on the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headrace.sql.calls import from_arrow
from headrace.sql.evaluate import Eval, Frame, truth
from headrace.sql.keys import Key, group
from headrace.sql.rows import Named, Rows
from headrace.sql.state import Frozen, thawed
from headrace.sql.values import Ints


@dataclass(frozen=True)
class ReferenceJoin:
    """What a join needs: the table's name, the key expressions of both sides, the rest of ON."""

    table: str
    left: bool
    stream_keys: list[Eval]
    table_keys: list[Eval]
    residual: Eval | None


def table_rows(table: pa.Table) -> Rows:
    """Reference data as rows; they have no time of their own."""
    names = table.column_names
    columns = [Named(name, from_arrow(table.column(name))) for name in names]
    return Rows(np.zeros(table.num_rows, np.int64), columns)


def by_value(key: Key) -> Key:
    """A key as comparison sees it: bits are 0 and 1."""
    if not any(isinstance(part, Frozen) for part in key):
        return key
    return tuple(int(thawed(part)) if type(thawed(part)) is bool else part for part in key)


class ReferenceJoinOperator:
    """Holds the index. Reference data is given anew on every start, so it is no state."""

    def __init__(self, join: ReferenceJoin, table: pa.Table) -> None:
        self.join = join
        self.rows = table_rows(table)
        self.index: dict[Key, list[int]] | None = None

    def _build(self, position: int) -> dict[Key, list[int]]:
        empty = Rows(self.rows.times, [])
        frame = Frame(self.rows.times, [*[empty] * position, self.rows])
        codes, keys = group([key(frame) for key in self.join.table_keys], self.rows.rows)
        keys = [by_value(key) for key in keys]
        index: dict[Key, list[int]] = {key: [] for key in keys if None not in key}
        for row, code in enumerate(codes.tolist()):
            if keys[code] in index:
                index[keys[code]].append(row)
        return index

    def process(self, frame: Frame) -> Frame:
        if self.index is None:
            self.index = self._build(len(frame.sources))
        codes, keys = group([key(frame) for key in self.join.stream_keys], frame.rows)
        found = [self.index.get(by_value(key), []) if None not in key else [] for key in keys]
        lengths = np.array([len(rows) for rows in found], np.int64)
        per_row = lengths[codes] if len(lengths) else np.zeros(frame.rows, np.int64)
        stream_at = np.repeat(np.arange(frame.rows), per_row)
        flat = np.array([row for rows in found for row in rows], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64) if len(lengths) else lengths
        begin = np.concatenate([[0], np.cumsum(per_row)[:-1]]).astype(np.int64) if frame.rows else per_row
        table_at = (
            flat[starts[codes[stream_at]] + np.arange(len(stream_at)) - begin[stream_at]] if len(flat) else flat[:0]
        )
        if self.join.residual is not None and len(stream_at):
            pairs = self._pair(frame, stream_at, table_at)
            keep = truth(self.join.residual(pairs))
            for fault in pairs.faults:
                frame.faults.append(fault._replace(row=int(stream_at[fault.row])))
            stream_at, table_at = stream_at[keep], table_at[keep]
        if self.join.left:
            stream_at, table_at = self._keep_unmatched(frame.rows, stream_at, table_at)
        joined = self._pair(frame, stream_at, table_at)
        if frame.faults:
            first = {row: index for index, row in reversed(list(enumerate(stream_at.tolist())))}
            joined.faults += [fault._replace(row=first[fault.row]) for fault in frame.faults if fault.row in first]
        return joined

    def _pair(self, frame: Frame, stream_at: Ints, table_at: Ints) -> Frame:
        pairs = frame.take(stream_at)
        pairs.sources.append(self.rows.take(table_at))
        return pairs

    @staticmethod
    def _keep_unmatched(rows: int, stream_at: Ints, table_at: Ints) -> tuple[Ints, Ints]:
        alone = np.ones(rows, np.bool_)
        alone[stream_at] = False
        lonely = np.flatnonzero(alone)
        together = np.concatenate([stream_at, lonely])
        order = np.argsort(together, kind="stable")
        return together[order], np.concatenate([table_at, np.full(len(lonely), -1, np.int64)])[order]
