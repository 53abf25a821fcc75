"""Aggregates with OVER (... LIMIT DURATION ...): for every event, over itself and what its key has seen lately.

History is kept per key as the values of the aggregate's arguments; a batch recalls the history of just the keys it holds.
Events that fail WHEN are no members, but still get a result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from headrace.core.flow import Watermark
from headrace.sql import values
from headrace.sql.aggregate import Accumulator
from headrace.sql.bind import AggregateCall, AnalyticCall
from headrace.sql.evaluate import Frame
from headrace.sql.keys import Key
from headrace.sql.operators.look_back import Analytic, candidates, groups
from headrace.sql.operators.spans import aggregate_spans, count_upto
from headrace.sql.state import hashable, table_values, thawed, value_table
from headrace.sql.values import Column, Ints

_Past = list[tuple[int, tuple[Any, ...]]]
"""Times and argument values, oldest first."""


class OverAggregate(Analytic):
    def __init__(self, call: AnalyticCall, aggregate: AggregateCall) -> None:
        self.call = call
        self.aggregate = aggregate
        self.history: dict[Key, _Past] = {}
        self._swept: Watermark = 0

    def _make(self) -> list[Accumulator]:
        return [self.aggregate.spec.make(self.aggregate.order, self.aggregate.constants)]

    def process(self, frame: Frame) -> Column:
        member = candidates(self.call, frame)
        since = len(frame.faults)
        args = [values.plain(arg(frame)) for arg in self.aggregate.args]
        frame.keep_faults(since, member)
        codes, keys = groups(self.call, frame)
        past = [(code, time, given) for code, key in enumerate(keys) for time, given in self.history.get(key, ())]
        before = len(past)
        times, members = frame.times, np.flatnonzero(member) + before
        row_codes = codes
        if before:
            old = zip(*(given for _, _, given in past), strict=True)
            args = [values.concat([values.from_values(list(one)), arg]) for one, arg in zip(old, args, strict=True)]
            codes = np.concatenate([np.array([code for code, _, _ in past], np.int64), codes])
            times = np.concatenate([np.array([time for _, time, _ in past], np.int64), times])
            members = np.concatenate([np.arange(before), members])
        order = members[np.argsort(codes[members], kind="stable")]
        # Up to the row itself in arrival order; later rows of the same time do not count.
        high = count_upto(codes[order], order, row_codes, np.arange(frame.rows) + before)
        low = count_upto(codes[order], times[order], row_codes, frame.times - self.call.limit)
        (found,) = aggregate_spans(self._make, [args], order, np.minimum(low, high), high)
        self._remember(order, codes, times, args, keys)
        return found

    def _remember(self, order: Ints, codes: Ints, times: Ints, args: list[Column], keys: list[Key]) -> None:
        """Every key of the batch keeps what its next row may still see."""
        newest = np.full(len(keys), np.iinfo(np.int64).min)
        np.maximum.at(newest, codes, times)
        kept = order[times[order] > newest[codes[order]] - self.call.limit]
        lists = [arg.take(kept).to_list() for arg in args]
        given = zip(*lists, strict=True) if lists else iter([()] * len(kept))
        for key in keys:
            self.history.pop(key, None)
        for code, time, value in zip(codes[kept].tolist(), times[kept].tolist(), given, strict=True):
            self.history.setdefault(keys[code], []).append((time, value))

    def advance(self, mark: Watermark) -> None:
        """Once per duration, drop the keys that nothing was heard of for that long."""
        if mark - self._swept < self.call.limit:
            return
        self._swept = mark
        self.history = {key: past for key, past in self.history.items() if past[-1][0] > mark + 1 - self.call.limit}

    def rows(self) -> int:
        return sum(map(len, self.history.values()))

    def snapshot(self) -> pa.Table:
        keys = [[thawed(part) for part in key] for key in self.history]
        return value_table(keys, [[[time, list(given)] for time, given in past] for past in self.history.values()])

    def restore(self, table: pa.Table) -> None:
        self.history = {}
        for key, past in table_values(table):
            self.history[tuple(hashable(part) for part in key)] = [(time, tuple(given)) for time, given in past]
