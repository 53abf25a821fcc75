"""JOIN with reference data: an index over the table's rows, looked up once per distinct key of a batch.

Equalities between the two sides make the key (nulls never match); whatever else ON says is tested on the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from headrace.sql.arrays import expand, stable_order
from headrace.sql.calls import from_arrow
from headrace.sql.evaluate import Eval, Frame, truth
from headrace.sql.key_ids import KeyIds
from headrace.sql.keys import Key, Keys, group
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


def _by_value(keys: Keys) -> Sequence[Key]:
    if any(Frozen in set(map(type, column)) for column in keys.columns):
        return [by_value(key) for key in keys]
    return keys


class _Index(NamedTuple):
    """The table's rows by key: those of key number k are `rows[starts[k] : starts[k] + lengths[k]]`."""

    ids: KeyIds
    rows: Ints
    starts: Ints
    lengths: Ints


class ReferenceJoinOperator:
    """Holds the index. Reference data is given anew on every start, so it is no state."""

    def __init__(self, join: ReferenceJoin, table: pa.Table) -> None:
        self.join = join
        self.rows = table_rows(table)
        self.index: _Index | None = None

    def _build(self, position: int) -> _Index:
        empty = Rows(self.rows.times, [])
        frame = Frame(self.rows.times, [*[empty] * position, self.rows])
        codes, keys = group([key(frame) for key in self.join.table_keys], self.rows.rows)
        ids = KeyIds()
        found = [by_value(key) for key in keys]
        known = {key: number for number, key in enumerate(dict.fromkeys(key for key in found if None not in key))}
        ids.number(list(known))
        number = np.array([known.get(key, -1) for key in found], np.int64)[codes]
        rows = np.flatnonzero(number >= 0)
        rows = rows[stable_order(number[rows], len(known))]
        lengths = np.bincount(number[rows], minlength=len(known) + 1)  # the last one is the key that no row has
        return _Index(ids, rows, np.cumsum(lengths) - lengths, lengths)

    def process(self, frame: Frame) -> Frame:
        if self.index is None:
            self.index = self._build(len(frame.sources))
        codes, keys = group([key(frame) for key in self.join.stream_keys], frame.rows)
        ids, rows, starts, lengths = self.index
        number = ids.find(_by_value(keys))[codes]  # -1 is the last
        if len(rows) and int(lengths.max()) == 1:
            stream_at = np.flatnonzero(number >= 0)
            table_at = rows[starts[number[stream_at]]]
        else:
            stream_at, position = expand(starts[number], (starts + lengths)[number])
            table_at = rows[position]
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
