"""Aggregates with OVER (... LIMIT DURATION ...): for every event, over itself and what its key has seen lately.

History are the rows that a later event may still see, with the values of the aggregate's arguments; a batch recalls the
history of just the keys it holds. Events that fail WHEN are no members, but still get a result.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from headrace.core.flow import Watermark
from headrace.sql import values
from headrace.sql.aggregate import Accumulator
from headrace.sql.arrays import stable_order
from headrace.sql.bind import AggregateCall, AnalyticCall
from headrace.sql.evaluate import Frame
from headrace.sql.keys import Keys
from headrace.sql.operators.held import Held, Some
from headrace.sql.operators.look_back import Analytic, candidates, groups
from headrace.sql.operators.spans import aggregate_spans, count_upto
from headrace.sql.values import Bools, Column, Ints


class OverAggregate(Analytic):
    def __init__(self, call: AnalyticCall, aggregate: AggregateCall) -> None:
        self.call = call
        self.aggregate = aggregate
        self.held = Held()

    def _make(self) -> list[Accumulator]:
        return [self.aggregate.spec.make(self.aggregate.order, self.aggregate.constants)]

    def process(self, frame: Frame) -> Column:
        member = candidates(self.call, frame)
        since = len(frame.faults)
        args = [values.plain(arg(frame)) for arg in self.aggregate.args]
        frame.keep_faults(since, member)
        codes, keys = groups(self.call, frame)
        past = self._recall(keys)
        own = Some(frame.times, codes, args)
        found = self._found(own, member, past, len(keys))
        self._remember(own, member, keys)
        return found

    def _recall(self, keys: Keys) -> Some | None:
        """What is held of some keys, with the position of the key instead of its number."""
        held = self.held.together()
        if held is None:
            return None
        ids = self.held.ids.find(keys)
        position = np.full(self.held.ids.room + 1, -1)
        position[ids] = np.arange(len(keys))
        position[-1] = -1  # where the keys without a number went
        codes = position[held.ids]
        at = np.flatnonzero(codes >= 0)
        if len(at) == len(codes):
            return held._replace(ids=codes)
        return held.take(at)._replace(ids=codes[at]) if len(at) else None

    def _found(self, own: Some, member: Bools, past: Some | None, keys: int) -> Column:
        """The aggregate for each row: over the members up to it, itself included, that are within the duration.

        Up to the row in order of arrival: later rows of the same time do not count.
        """
        rows, times, codes, args = len(own.times), own.times, own.ids, own.columns
        before = 0
        if past is not None:
            before = len(past.times)
            times, codes = np.concatenate([past.times, times]), np.concatenate([past.ids, codes])
            member = np.concatenate([np.ones(before, np.bool_), member])
            args = [values.concat([old, new]) for old, new in zip(past.columns, args, strict=True)]
        order = stable_order(codes, keys)
        inside = member[order]
        fresh = order >= before
        asking = order[fresh]
        members = order if inside.all() else order[inside]
        high: Ints = np.cumsum(inside)[fresh].astype(np.int64)
        low = count_upto(codes[members], times[members], codes[asking], times[asking] - self.call.limit)
        (found,) = aggregate_spans(self._make, [args], members, np.minimum(low, high), high)
        back = np.empty(rows, np.int64)
        back[asking - before] = np.arange(rows)
        return found.take(back)

    def _remember(self, own: Some, member: Bools, keys: Keys) -> None:
        """Keep the members, and let go of what no later row can see."""
        if not member.all():
            own = own.take(np.flatnonzero(member))
        if not len(own.times):
            return
        have = np.flatnonzero(np.bincount(own.ids, minlength=len(keys)))
        ids = np.empty(len(keys), np.int64)
        ids[have] = self.held.ids.number(keys if len(have) == len(keys) else keys.pick(have))
        self.held.append(own.times, ids[own.ids], own.columns)
        self.held.forget(int(own.times[-1]) - self.call.limit)

    def advance(self, mark: Watermark) -> None:
        """Rows to come are later than `mark`."""
        self.held.forget(mark + 1 - self.call.limit)

    def rows(self) -> int:
        return len(self.held)

    def snapshot(self, since: int | None = None) -> pa.Table:
        return self.held.snapshot(since)

    def restore(self, table: pa.Table) -> None:
        self.held = Held()
        self.held.restore(table)
