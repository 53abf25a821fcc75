"""Sliding windows: a row for every instant at which a group's last `size` changed by an event that came or left.

Held rows are those that a later instant can still see, so state is one window's content. Rows of one instant come in the
order in which the oldest event of each group's window arrived, which no cut of the stream can change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from headrace.core.flow import MIN_WATERMARK, Watermark
from headrace.sql import values
from headrace.sql.keys import Key
from headrace.sql.operators.grouped import Closed, Make
from headrace.sql.operators.spans import aggregate_spans, count_upto
from headrace.sql.state import hashable, pack, thawed, unpack
from headrace.sql.tree import Window
from headrace.sql.values import Column, Ints


class _Held(NamedTuple):
    times: Ints
    ids: Ints
    args: list[list[Column]]


class Sliding:
    """One sliding window of a GROUP BY."""

    def __init__(self, window: Window, make: Make) -> None:
        self.window = window
        self.make = make
        self.size = window.size
        self.ids: dict[Key, int] = {}
        self.held: list[_Held] = []
        self.emitted: Watermark = MIN_WATERMARK

    def add(
        self, times: Ints, codes: Ints, keys: Sequence[Key], args: Sequence[Sequence[Column]], parts: Any = None
    ) -> None:
        """Rows in time order: a group number per row, the groups' keys, and each aggregate's arguments."""
        ids = np.fromiter((self.ids.setdefault(key, len(self.ids)) for key in keys), np.int64, len(keys))
        self.held.append(_Held(times, ids[codes], [[values.plain(column) for column in columns] for columns in args]))

    def _together(self) -> _Held | None:
        if len(self.held) > 1:
            args = [
                [values.concat(list(same)) for same in zip(*columns, strict=True)]
                for columns in zip(*(held.args for held in self.held), strict=True)
            ]
            times = np.concatenate([held.times for held in self.held])
            self.held = [_Held(times, np.concatenate([held.ids for held in self.held]), args)]
        return self.held[0] if self.held else None

    def close(self, mark: Watermark) -> Closed | None:
        """Every change in (the mark before, `mark`]."""
        if mark <= self.emitted:
            return None
        held = self._together()
        closed = self._changes(held, mark) if held is not None else None
        if held is not None:
            self._forget(held, mark)
        self.emitted = mark
        return closed

    def _changes(self, held: _Held, mark: Watermark) -> Closed | None:
        exits = held.times + self.size
        comes = (held.times > self.emitted) & (held.times <= mark)
        goes = (exits > self.emitted) & (exits <= mark)
        ids = np.concatenate([held.ids[comes], held.ids[goes]])
        ends = np.concatenate([held.times[comes], exits[goes]])
        if not len(ids):
            return None
        sorting = np.lexsort((ends, ids))
        ids, ends = ids[sorting], ends[sorting]
        fresh = np.concatenate([[True], (ids[1:] != ids[:-1]) | (ends[1:] != ends[:-1])])
        ids, ends = ids[fresh], ends[fresh]
        order = np.argsort(held.ids, kind="stable")
        member_ids, member_times = held.ids[order], held.times[order]
        high = count_upto(member_ids, member_times, ids, ends)
        low = count_upto(member_ids, member_times, ids, ends - self.size)
        some = high > low
        ids, ends, low, high = ids[some], ends[some], low[some], high[some]
        if not len(ids):
            return None
        sorting = np.lexsort((order[low], ends))
        ids, ends, low, high = ids[sorting], ends[sorting], low[sorting], high[sorting]
        keys = list(self.ids)
        results = aggregate_spans(self.make, held.args, order, low, high)
        return Closed(ends, [keys[index] for index in ids.tolist()], results)

    def _forget(self, held: _Held, mark: Watermark) -> None:
        keep = np.flatnonzero(held.times > mark - self.size)
        if len(keep) == len(held.times):
            return
        kept = held.ids[keep]
        keys = list(self.ids)
        alive, dense = np.unique(kept, return_inverse=True)
        self.ids = {keys[index]: at for at, index in enumerate(alive.tolist())}
        args = [[column.take(keep) for column in columns] for columns in held.args]
        self.held = [_Held(held.times[keep], dense.reshape(-1).astype(np.int64), args)] if len(keep) else []

    def rows(self) -> int:
        return sum(len(held.times) for held in self.held)

    # -- state

    def snapshot(self) -> pa.Table:
        """One row per event that a window still holds."""
        held = self._together()
        metadata = {"emitted": str(self.emitted)}
        if held is None:
            empty = pa.table({"_key": pa.array([], pa.binary()), "time": pa.array([], pa.int64())})
            return empty.replace_schema_metadata(metadata)
        keys = [pack([thawed(part) for part in key]) for key in self.ids]
        columns: dict[str, Any] = {
            "_key": pa.array([keys[index] for index in held.ids.tolist()], pa.binary()),
            "time": pa.array(held.times),
        }
        for at, arguments in enumerate(held.args):
            for index, column in enumerate(arguments):
                columns[f"{at}.{index}"] = pa.array([pack(value) for value in column.to_list()], pa.binary())
        return pa.table(columns).replace_schema_metadata(metadata)

    def restore(self, state: pa.Table) -> None:
        self.emitted = int(state.schema.metadata[b"emitted"])
        self.ids, self.held = {}, []
        if not state.num_rows:
            return
        ids: list[int] = []
        for data in state.column("_key").to_pylist():
            key = tuple(hashable(part) for part in unpack(data))
            ids.append(self.ids.setdefault(key, len(self.ids)))
        args: list[list[Column]] = [[] for _ in self.make()]
        for name in state.column_names:
            at, dot, _ = name.partition(".")
            if dot:
                args[int(at)].append(values.from_values([unpack(data) for data in state.column(name).to_pylist()]))
        self.held = [_Held(state.column("time").to_numpy(), np.array(ids, np.int64), args)]
