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
from headrace.sql.arrays import numbered, pair_order, sorted_pairs, stable_order
from headrace.sql.keys import Key
from headrace.sql.operators.grouped import Closed, Make
from headrace.sql.operators.held import Held, Some
from headrace.sql.operators.spans import aggregate_spans, count_upto
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
        ids, ends = sorted_pairs(
            np.concatenate([held.ids[come], held.ids[go]]),
            np.concatenate([held.times[come], held.times[go] + self.size]),
        )
        if not len(ids):
            return None
        seen = slice(go.start, come.stop)
        changed = np.zeros(room, np.bool_)
        changed[ids] = True
        if 2 * np.count_nonzero(changed) < len(self.held.ids):  # leave the groups out that did not change
            members = go.start + np.flatnonzero(changed[held.ids[seen]])
            members = members[stable_order(held.ids[members], room)]
        else:
            members = stable_order(held.ids[seen], room)
            members += go.start
        member_ids, member_times = held.ids[members], held.times[members]
        high = count_upto(member_ids, member_times, ids, ends)
        low = count_upto(member_ids, member_times, ids, ends - self.size)
        some = np.flatnonzero(high > low)
        if not len(some):
            return None
        # By end; at one instant the group whose oldest event came first.
        some = some[pair_order(ends[some], members[low[some]])]
        args, columns = [], iter(held.columns)
        for count in self.shape:
            args.append([next(columns) for _ in range(count)])
        results = aggregate_spans(self.make, args, members, low[some], high[some])
        codes, groups = numbered(ids[some], room)
        return Closed(ends[some], self.held.ids.keys(groups), results, codes)

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
