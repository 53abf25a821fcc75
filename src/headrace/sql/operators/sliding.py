"""Sliding windows: a row for every instant at which a group's last `size` changed by an event that came or left.

Held rows are those that a later instant can still see, so state is one window's content. Rows of one instant come in the
order in which the oldest event of each group's window arrived, which no cut of the stream can change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.core.flow import MIN_WATERMARK, Watermark
from headrace.sql.arrays import numbered, pair_order, stable_order
from headrace.sql.keys import Key
from headrace.sql.operators.grouped import Closed, Make
from headrace.sql.operators.held import Held, Some
from headrace.sql.operators.spans import aggregate_spans, changes
from headrace.sql.tree import Window
from headrace.sql.values import Column, Ints


class Sliding:
    """One sliding window of a GROUP BY."""

    def __init__(self, window: Window, make: Make) -> None:
        self.window = window
        self.make = make
        self.size = window.size
        self.shape: list[int] = []  # how many arguments each aggregate has
        self.held = Held()
        self.emitted: Watermark = MIN_WATERMARK

    def add(
        self, times: Ints, codes: Ints, keys: Sequence[Key], args: Sequence[Sequence[Column]], parts: Any = None
    ) -> None:
        """Rows in time order: a group number per row, the groups' keys, and each aggregate's arguments."""
        self.shape = [len(columns) for columns in args]
        ids = self.held.ids.number(keys)
        self.held.append(times, ids[codes], [column for columns in args for column in columns])

    def close(self, mark: Watermark) -> Closed | None:
        """Every change in (the mark before, `mark`]."""
        if mark <= self.emitted:
            return None
        held = self.held.together()
        closed = self._changes(held, mark) if held is not None else None
        self.held.forget(mark - self.size)
        self.emitted = mark
        return closed

    def _changes(self, held: Some, mark: Watermark) -> Closed | None:
        before = max(self.emitted, MIN_WATERMARK + self.size) - self.size  # an event at or before has left already
        come = slice(*np.searchsorted(held.times, [self.emitted, mark], side="right"))
        go = slice(*np.searchsorted(held.times, [before, mark - self.size], side="right"))
        room = self.held.ids.room
        if come.start == come.stop and go.start == go.stop:
            return None
        seen = slice(go.start, come.stop)
        changed = np.zeros(room, np.bool_)
        changed[held.ids[come]] = changed[held.ids[go]] = True
        if 2 * np.count_nonzero(changed) < len(self.held.ids):  # leave the groups out that did not change
            members = go.start + np.flatnonzero(changed[held.ids[seen]])
            members = members[stable_order(held.ids[members], room)]
        else:
            members = stable_order(held.ids[seen], room)
            members += go.start
        ids, ends, low, high = changes(
            held.ids[members], held.times[members], self.size, members >= come.start, members < go.stop
        )
        some = np.flatnonzero(high > low)
        if not len(some):
            return None
        if len(some) < len(ids):
            ids, ends, low, high = ids[some], ends[some], low[some], high[some]
        args, columns = [], iter(held.columns)
        for count in self.shape:
            args.append([next(columns) for _ in range(count)])
        results = aggregate_spans(self.make, args, members, low, high)
        # By end; at one instant the group whose oldest event came first.
        order = pair_order(ends, members[low])
        codes, groups = numbered(ids[order], room)
        return Closed(ends[order], self.held.ids.keys(groups), [column.take(order) for column in results], codes)

    def rows(self) -> int:
        return len(self.held)

    # -- state

    def snapshot(self, since: int | None = None) -> pa.Table:
        """One row per event that a window still holds."""
        self.held.forget(self.emitted - self.size, all=True)
        about = {b"emitted": str(self.emitted), b"shape": " ".join(map(str, self.shape))}
        table = self.held.snapshot(since)
        return table.replace_schema_metadata({**(table.schema.metadata or {}), **about})

    def restore(self, state: pa.Table) -> None:
        self.emitted = int(state.schema.metadata[b"emitted"])
        self.shape = [int(count) for count in state.schema.metadata[b"shape"].split()]
        self.held = Held()
        self.held.restore(state)
