"""LAG, LAST, ISFIRST and the anomaly detectors: values that look back over earlier events of the same key.

History is a few values per key, kept in arrays by the key's number; a batch takes the history of just the keys it holds,
computes all its rows at once with sorted arrays, and puts the new history back. History that is older than the duration is
dropped when a key is seen again and, for keys gone silent, by a sweep now and then.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa

from headrace.core.flow import MIN_WATERMARK, Watermark
from headrace.detect.change_point import ChangePoint
from headrace.detect.spike_dip import SpikeDip
from headrace.sql import values
from headrace.sql.arrays import enlarged, expand, stable_order
from headrace.sql.bind import AnalyticCall
from headrace.sql.changes import Touched, delta, numbered_rows
from headrace.sql.evaluate import Frame, RowFault
from headrace.sql.key_ids import KeyIds
from headrace.sql.keys import Keys
from headrace.sql.operators.cells import Cells
from headrace.sql.operators.look_back import Analytic, candidates, groups
from headrace.sql.operators.over_aggregate import OverAggregate
from headrace.sql.operators.stored import arrow_columns, column_from
from headrace.sql.units import ORIGIN
from headrace.sql.values import BIGINT, FLOAT, Bools, Column, Constant, Ints, Struct


def make_analytic(call: AnalyticCall) -> Analytic:
    """The operator behind an analytic call."""
    if call.aggregate is not None:
        return OverAggregate(call, call.aggregate)
    if call.name == "isfirst":
        return IsFirst(call)
    return Anomaly(call) if call.name.startswith("anomaly") else Lag(call)


class Lag(Analytic):
    """LAG(x, n, default) and LAST(x, default), which is LAG with offset 0.

    Key number k owns the cells k·keep to k·keep + keep - 1; the first `count[k]` hold its newest candidates, oldest first.
    """

    def __init__(self, call: AnalyticCall) -> None:
        self.call = call
        self.offset: int = call.constants[0]
        self.keep = max(self.offset, 1)
        self._empty()
        self._swept: Watermark = 0

    def _empty(self) -> None:
        self.ids = KeyIds()
        self.count: Ints = np.empty(0, np.int64)  # by key number
        self.times: Ints = np.empty(0, np.int64)  # by cell
        self.cells = Cells()
        self.touched = Touched()  # key numbers

    def _reserve(self) -> None:
        room = self.ids.room
        if room > len(self.count):
            self.count = enlarged(self.count, room)
            self.times = enlarged(self.times, len(self.count) * self.keep)
            self.cells.reserve(len(self.times))

    def process(self, frame: Frame) -> Column:
        call = self.call
        column = values.plain(call.args[0](frame))
        default = call.args[1](frame) if len(call.args) > 1 else Constant(frame.rows, None)
        candidate = candidates(call, frame)
        codes, keys = groups(call, frame)
        old_codes, cells = self._recall(keys)
        before, times = len(old_codes), frame.times
        if before:
            column = values.concat([self.cells.take(cells), column])
            times = np.concatenate([self.times[cells], times])
            codes = np.concatenate([old_codes, codes])
            candidate = np.concatenate([np.ones(before, np.bool_), candidate])
        order = stable_order(codes, len(keys))
        chosen = self._look_back(order, codes, times, candidate)[before:]
        self._remember(order, codes, times, candidate, column, keys)
        found = column.take(chosen)
        missing = chosen < 0
        if not missing.any() or (isinstance(default, Constant) and default.value is None):
            return found
        return values.merge(frame.rows, [(~missing, found), (missing, default)])

    def _recall(self, keys: Keys) -> tuple[Ints, Ints]:
        """The cells that hold history of some keys, and the position of the key of each."""
        ids = self.ids.find(keys)
        known = np.flatnonzero(ids >= 0)
        starts = ids[known] * self.keep
        if self.keep == 1:
            return known, starts
        span, cells = expand(starts, starts + self.count[ids[known]])
        return known[span], cells

    def _look_back(self, order: Ints, codes: Ints, times: Ints, candidate: Bools) -> Ints:
        """For each row, which row its value comes from; -1 for none within the duration."""
        ordered = candidate[order]
        positions = order[ordered]  # candidates, by key, then time
        seen = np.cumsum(ordered) - (ordered if self.offset else 0)  # candidates before the row (LAST: up to it)
        wanted = seen - max(self.offset, 1)
        inside = wanted >= 0
        source = np.full(len(order), -1, np.int64)
        source[inside] = positions[wanted[inside]]
        back = np.empty(len(order), np.int64)
        back[order] = source
        good = back >= 0
        at = np.maximum(back, 0)
        good &= codes[at] == codes
        good &= times - times[at] < self.call.limit
        return np.where(good, back, -1)

    def _remember(self, order: Ints, codes: Ints, times: Ints, candidate: Bools, column: Column, keys: Keys) -> None:
        """The last `keep` candidates of every key in the batch become its history."""
        positions = order if candidate.all() else order[candidate[order]]
        if not len(positions):
            return
        lengths = np.bincount(codes[positions], minlength=len(keys))
        stops = np.cumsum(lengths)
        have = np.flatnonzero(lengths)  # keys with a candidate: the others get no number, as nothing would free it
        ids = self.ids.number(keys if len(have) == len(keys) else keys.pick(have))
        self._reserve()
        kept = np.minimum(lengths[have], self.keep)
        span, at = expand(stops[have] - kept, stops[have])
        cells = (ids * self.keep - (stops[have] - kept))[span] + at
        self.touched.mark(ids)
        self.count[ids] = kept
        self.times[cells] = times[positions[at]]
        self.cells.put(cells, column.take(positions[at]))

    def advance(self, mark: Watermark) -> None:
        """Sweep once per duration: a key whose newest value is too old for any later row has no use."""
        if mark - self._swept < self.call.limit:
            return
        self._swept = mark
        live = self.ids.live()
        gone = live[self.times[live * self.keep + self.count[live] - 1] <= mark + 1 - self.call.limit]
        _, cells = expand(gone * self.keep, (gone + 1) * self.keep)
        self.cells.clear(cells)
        self.count[gone] = 0
        self.touched.mark(gone)
        self.ids.forget(gone)

    def rows(self) -> int:
        return len(self.ids)

    def snapshot(self, since: int | None = None) -> pa.Table:
        """One row a candidate: a key's stand together, oldest first, under the key's number."""
        ids, gone = told(self.ids, self.touched, since)
        starts = ids * self.keep
        span, cells = expand(starts, starts + self.count[ids])
        columns = {"_key": pa.array(self.ids.packed(ids[span]), pa.binary()), "time": pa.array(self.times[cells])}
        table = pa.table(columns | arrow_columns("value", self.cells.take(cells)))
        return numbered_rows(table, ids[span]) if since is None else delta(table, ids[span], gone=gone)

    def restore(self, table: pa.Table) -> None:
        self._empty()
        ids = self.ids.restore(table.column("_key").to_pylist())
        self._reserve()
        self.count[: self.ids.room] = np.bincount(ids, minlength=self.ids.room)
        _, first, which = np.unique(table.column("_row").to_numpy(), return_index=True, return_inverse=True)
        cells = ids * self.keep + np.arange(len(ids)) - first[which]
        self.times[cells] = table.column("time").to_numpy()
        self.cells.put(cells, column_from("value", table))


class IsFirst(Analytic):
    """ISFIRST(unit, n): whether a row is the first of its key in its interval that satisfies WHEN."""

    def __init__(self, call: AnalyticCall) -> None:
        self.call = call
        self.ids = KeyIds()
        self.last: Ints = np.empty(0, np.int64)  # by key number: the interval that had its first row already
        self.swept = MIN_WATERMARK  # interval
        self.touched = Touched()  # key numbers

    def process(self, frame: Frame) -> Column:
        candidate = candidates(self.call, frame)
        codes, keys = groups(self.call, frame)
        intervals = -((ORIGIN - frame.times) // self.call.limit)
        out = np.zeros(frame.rows, np.int64)
        at = np.flatnonzero(candidate)
        if len(at):
            order = at[stable_order(codes[at], len(keys))]
            code, interval = codes[order], intervals[order]
            head = np.concatenate([[True], code[1:] != code[:-1]])
            which = code[head]  # keys with a candidate, ascending
            fresh = np.concatenate([[True], interval[1:] != interval[:-1]]) | head
            known = self.ids.find(keys.pick(which))
            first = np.flatnonzero(head)
            seen = known >= 0
            fresh[first[seen]] = interval[first[seen]] != self.last[known[seen]]
            out[order] = fresh
            ids = self.ids.number(keys.pick(which))
            self.last = enlarged(self.last, self.ids.room)
            self.touched.mark(ids)
            self.last[ids] = interval[np.append(first[1:], len(code)) - 1]
        return values.of(BIGINT, out)

    def advance(self, mark: Watermark) -> None:
        current = -((ORIGIN - mark) // self.call.limit)
        if current > self.swept:
            self.swept = current
            live = self.ids.live()
            gone = live[self.last[live] < current]
            self.touched.mark(gone)
            self.ids.forget(gone)

    def rows(self) -> int:
        return len(self.ids)

    def snapshot(self, since: int | None = None) -> pa.Table:
        ids, gone = told(self.ids, self.touched, since)
        table = pa.table({"_key": pa.array(self.ids.packed(ids), pa.binary()), "value": pa.array(self.last[ids])})
        return numbered_rows(table, ids) if since is None else delta(table, ids, gone=gone)

    def restore(self, table: pa.Table) -> None:
        ids = self.ids.restore(table.column("_key").to_pylist())
        self.last = np.zeros(self.ids.room, np.int64)
        self.last[ids] = table.column("value").to_numpy()


class Anomaly(Analytic):
    """AnomalyDetection_SpikeAndDip and _ChangePoint: a record {IsAnomaly, Score}. Nulls and rows that fail WHEN get null."""

    def __init__(self, call: AnalyticCall) -> None:
        self.call = call
        self.ids = KeyIds()
        self.detector = self._new()
        self.touched = Touched()  # key numbers
        self._swept: Watermark = 0

    def _new(self) -> SpikeDip | ChangePoint:
        if self.call.name == "anomalydetection_changepoint":
            confidence, history = self.call.constants
            return ChangePoint(history, confidence, self.call.limit)
        confidence, history, mode = self.call.constants
        return SpikeDip(history, confidence, cast(Any, mode), self.call.limit)

    def process(self, frame: Frame) -> Column:
        column = values.plain(self.call.args[0](frame))
        seen = candidates(self.call, frame)
        numbers, fits = self._numbers(frame, column, seen)
        seen = seen & fits
        at = np.flatnonzero(seen)
        if not len(at):
            return Column(frame.rows)
        codes, keys = groups(self.call, frame)
        ids = np.zeros(len(keys), np.int64)
        with_value = np.flatnonzero(np.bincount(codes[at], minlength=len(keys)))
        ids[with_value] = self.ids.number(keys.pick(with_value))  # the others get none, as nothing would free it
        self.touched.mark(ids[with_value])
        odd, score = self.detector.score(ids[codes[at]], frame.times[at], numbers[at])
        flags, scores = np.zeros(frame.rows, np.int64), np.zeros(frame.rows)
        flags[at], scores[at] = odd, score
        return Struct({"IsAnomaly": values.of(BIGINT, flags, seen), "Score": values.of(FLOAT, scores, seen)}, seen)

    def _numbers(self, frame: Frame, column: Column, seen: Bools) -> tuple[Any, Bools]:
        """Values as floats and which rows have one; anything but a number is a fault of its row."""
        numbers = np.zeros(frame.rows)
        fits = np.zeros(frame.rows, np.bool_)
        for kind, data, mask in column.parts:
            if kind in (BIGINT, FLOAT):
                numbers = data.astype(np.float64) if mask is None else np.where(mask, data, numbers)
                fits = fits | (True if mask is None else mask)
            else:
                detail = f"{self.call.call.at.text} needs numbers, not {values.KIND_NAMES[kind]}"
                wrong = seen if mask is None else seen & mask
                frame.faults += [RowFault(row, "bad_argument", detail) for row in np.flatnonzero(wrong).tolist()]
        return numbers, fits

    def advance(self, mark: Watermark) -> None:
        """Once per duration, forget keys whose past counts no more; their numbers are used again."""
        if mark - self._swept < self.call.limit:
            return
        self._swept = mark
        gone = self.detector.expire(mark)
        self.touched.mark(gone)
        self.ids.forget(gone)

    def rows(self) -> int:
        return len(self.ids)

    def snapshot(self, since: int | None = None) -> pa.Table:
        """The detector's own columns, one row a key."""
        ids, gone = told(self.ids, self.touched, since)
        table = self.detector.snapshot(ids)
        packed = pa.array(self.ids.packed(ids), pa.binary())
        table = table.set_column(table.schema.get_field_index("_key"), "_key", packed)
        return numbered_rows(table, ids) if since is None else delta(table, ids, gone=gone)

    def restore(self, table: pa.Table) -> None:
        numbers = self.ids.restore(table.column("_key").to_pylist())
        self.detector = self._new()
        at = table.schema.get_field_index("_key")
        self.detector.restore(table.set_column(at, "_key", pa.array(numbers, pa.int64())))


def told(ids: KeyIds, touched: Touched, since: int | None) -> tuple[Ints, Ints]:
    """The key numbers whose state a snapshot holds, ascending, and those that are gone since the one before."""
    changed = touched.take()
    if since is None:
        return np.sort(ids.live()), changed[:0]
    used = ids.used(changed)
    return changed[used], changed[~used]
