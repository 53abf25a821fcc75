"""LAG, LAST, ISFIRST and the anomaly detectors: values that look back over earlier events of the same key.

History is a few values per key, kept in a dictionary; a batch takes the history of just the keys it holds, computes all its
rows at once with sorted arrays, and puts the new history back. History that is older than the duration is dropped when a
key is seen again and, for keys gone silent, by a sweep now and then.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa

from headrace.core.flow import Watermark
from headrace.detect.change_point import ChangePoint
from headrace.detect.spike_dip import SpikeDip
from headrace.sql import values
from headrace.sql.bind import AnalyticCall
from headrace.sql.evaluate import Frame, RowFault
from headrace.sql.keys import Key
from headrace.sql.operators.look_back import Analytic, candidates, groups
from headrace.sql.operators.over_aggregate import OverAggregate
from headrace.sql.state import hashable, pack, table_values, thawed, unpack, value_table
from headrace.sql.units import ORIGIN
from headrace.sql.values import BIGINT, FLOAT, RECORD, Bools, Column, Constant, Ints


def make_analytic(call: AnalyticCall) -> Analytic:
    """The operator behind an analytic call."""
    if call.aggregate is not None:
        return OverAggregate(call, call.aggregate)
    if call.name == "isfirst":
        return IsFirst(call)
    return Anomaly(call) if call.name.startswith("anomaly") else Lag(call)


class Lag(Analytic):
    """LAG(x, n, default) and LAST(x, default), which is LAG with offset 0."""

    def __init__(self, call: AnalyticCall) -> None:
        self.call = call
        self.offset: int = call.constants[0]
        self.keep = max(self.offset, 1)
        self.history: dict[Key, list[tuple[int, Any]]] = {}  # oldest first, at most `keep`
        self._swept: Watermark = 0

    def process(self, frame: Frame) -> Column:
        call = self.call
        column = values.plain(call.args[0](frame))
        default = call.args[1](frame) if len(call.args) > 1 else Constant(frame.rows, None)
        candidate = candidates(call, frame)
        codes, keys = groups(call, frame)
        old_codes, old_times, old_values = self._recall(keys)
        before = len(old_codes)
        if before:
            column = values.concat([values.from_values(old_values), column])
            times = np.concatenate([np.array(old_times, np.int64), frame.times])
            codes = np.concatenate([np.array(old_codes, np.int64), codes])
            candidate = np.concatenate([np.ones(before, np.bool_), candidate])
        else:
            times = frame.times
        order = np.argsort(codes, kind="stable")
        chosen = self._look_back(order, codes, times, candidate)[before:]
        self._remember(order, codes, times, candidate, column, keys)
        found = column.take(chosen)
        missing = chosen < 0
        if not missing.any() or (isinstance(default, Constant) and default.value is None):
            return found
        return values.merge(frame.rows, [(~missing, found), (missing, default)])

    def _recall(self, keys: list[Key]) -> tuple[list[int], list[int], list[Any]]:
        codes: list[int] = []
        times: list[int] = []
        found: list[Any] = []
        for code, key in enumerate(keys):
            for time, value in self.history.get(key, ()):
                codes.append(code)
                times.append(time)
                found.append(value)
        return codes, times, found

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

    def _remember(
        self, order: Ints, codes: Ints, times: Ints, candidate: Bools, column: Column, keys: list[Key]
    ) -> None:
        """The last `keep` candidates of every key in the batch become its history."""
        positions = order[candidate[order]]
        if not len(positions):
            return
        key_codes = codes[positions]
        ends = np.searchsorted(key_codes, np.arange(len(keys)), side="right")
        starts = np.maximum(np.searchsorted(key_codes, np.arange(len(keys)), side="left"), ends - self.keep)
        lengths = ends - starts
        total = int(lengths.sum())
        flat = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) + np.arange(total)
        picked = positions[flat]
        pairs = list(zip(times[picked].tolist(), column.take(picked).to_list(), strict=True))
        at = 0
        for key, length in zip(keys, lengths.tolist(), strict=True):
            if length:
                self.history[key] = pairs[at : at + length]
                at += length

    def advance(self, mark: Watermark) -> None:
        """Sweep once per duration: a key whose newest value is too old for any later row has no use."""
        if mark - self._swept < self.call.limit:
            return
        self._swept = mark
        limit = mark + 1 - self.call.limit
        self.history = {key: found for key, found in self.history.items() if found[-1][0] > limit}

    def rows(self) -> int:
        return len(self.history)

    def snapshot(self) -> pa.Table:
        keys = [[thawed(part) for part in key] for key in self.history]
        return value_table(keys, list(self.history.values()))

    def restore(self, table: pa.Table) -> None:
        self.history = {}
        for key, found in table_values(table):
            self.history[tuple(hashable(part) for part in key)] = [(time, value) for time, value in found]


class IsFirst(Analytic):
    """ISFIRST(unit, n): whether a row is the first of its key in its interval that satisfies WHEN."""

    def __init__(self, call: AnalyticCall) -> None:
        self.call = call
        self.last: dict[Key, int] = {}  # the interval that had its first row already

    def process(self, frame: Frame) -> Column:
        candidate = candidates(self.call, frame)
        codes, keys = groups(self.call, frame)
        intervals = -((ORIGIN - frame.times) // self.call.limit)
        known = np.array([self.last.get(key, -(1 << 62)) for key in keys], np.int64)
        at = np.flatnonzero(candidate)
        out = np.zeros(frame.rows, np.int64)
        if len(at):
            order = at[np.argsort(codes[at], kind="stable")]
            code, interval = codes[order], intervals[order]
            fresh = np.ones(len(order), np.bool_)
            fresh[1:] = (code[1:] != code[:-1]) | (interval[1:] != interval[:-1])
            out[order] = fresh & (interval != known[code])
            for which, last in zip(code.tolist(), interval.tolist(), strict=True):
                self.last[keys[which]] = last
        return values.of(BIGINT, out)

    def advance(self, mark: Watermark) -> None:
        current = -((ORIGIN - mark) // self.call.limit)
        if len(self.last) > 1000:
            self.last = {key: interval for key, interval in self.last.items() if interval >= current}

    def rows(self) -> int:
        return len(self.last)

    def snapshot(self) -> pa.Table:
        return value_table([[thawed(part) for part in key] for key in self.last], list(self.last.values()))

    def restore(self, table: pa.Table) -> None:
        self.last = {tuple(hashable(part) for part in key): last for key, last in table_values(table)}


class Anomaly(Analytic):
    """AnomalyDetection_SpikeAndDip and _ChangePoint: a record {IsAnomaly, Score}. Nulls and rows that fail WHEN get null."""

    def __init__(self, call: AnalyticCall) -> None:
        self.call = call
        self.ids: dict[Key, int] = {}
        self.free: list[int] = []
        self.detector = self._new()
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
        for code in np.unique(codes[at]).tolist():  # a key without any value gets no number, as nothing would free it
            ids[code] = self._id(keys[code])
        odd, score = self.detector.score(ids[codes[at]], frame.times[at], numbers[at])
        records = np.empty(frame.rows, object)
        for row, flag, value in zip(at.tolist(), odd.tolist(), score.tolist(), strict=True):
            records[row] = {"IsAnomaly": flag, "Score": value}
        return values.of(RECORD, records, seen)

    def _id(self, key: Key) -> int:
        found = self.ids.get(key)
        if found is None:
            found = self.ids[key] = self.free.pop() if self.free else len(self.ids)
        return found

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
        gone = set(self.detector.expire(mark).tolist())
        if gone:
            self.free += sorted(gone)
            self.ids = {key: index for key, index in self.ids.items() if index not in gone}

    def rows(self) -> int:
        return len(self.ids)

    def snapshot(self) -> pa.Table:
        keys = pack([[[thawed(part) for part in key], index] for key, index in self.ids.items()])
        table = self.detector.snapshot()
        return table.replace_schema_metadata({**(table.schema.metadata or {}), b"keys": keys})

    def restore(self, table: pa.Table) -> None:
        metadata = dict(table.schema.metadata)
        keys = unpack(metadata.pop(b"keys"))
        self.ids = {tuple(hashable(part) for part in key): index for key, index in keys}
        used = set(self.ids.values())
        self.free = [index for index in range(max(used, default=-1)) if index not in used]
        self.detector = self._new()
        self.detector.restore(table.replace_schema_metadata(metadata or None))
