"""JOIN of two streams: pairs whose times lie within bounds of each other, found when the watermark has passed both.

A bound is DATEDIFF's: unit boundaries crossed, so for a left row it is a range of right times. Rows are held as long as a
row to come can match them, which the bounds and the watermark tell. Pairs come in order of their time (the later of the
two), then of their left and right rows' arrival, however the streams were cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headrace.core.flow import MAX_WATERMARK, MIN_WATERMARK, Watermark
from headrace.sql.arrays import expand
from headrace.sql.evaluate import Eval, Frame, truth
from headrace.sql.keys import Key, group
from headrace.sql.operators.reference_join import by_value
from headrace.sql.operators.spans import count_upto
from headrace.sql.operators.stored import load_rows, store_rows
from headrace.sql.rows import ABSENT, Joined, Rows
from headrace.sql.state import hashable, pack, thawed, unpack
from headrace.sql.units import ORIGIN
from headrace.sql.values import Bools, Ints

_FAR = 1 << 61


@dataclass(frozen=True)
class Bound:
    """`low <= boundaries of `unit` ticks from the source to the new one <= high`; None leaves an end open."""

    source: int
    unit: int
    low: int | None
    high: int | None

    def range(self, times: Ints) -> tuple[Ints, Ints]:
        """The earliest and latest right time that fits each left time."""
        floor = (times - ORIGIN) // self.unit
        low = np.full(len(times), -_FAR) if self.low is None else (floor + self.low) * self.unit + ORIGIN
        high = np.full(len(times), _FAR) if self.high is None else (floor + self.high + 1) * self.unit + ORIGIN - 1
        absent = times == ABSENT
        return np.where(absent, _FAR, low), np.where(absent, -_FAR, high)


@dataclass(frozen=True)
class StreamJoin:
    """What a join needs. `reach[i]` is how much earlier than a left row its source i may be, in ticks."""

    left: bool
    bounds: list[Bound]
    reach: list[int]
    left_keys: list[Eval]
    right_keys: list[Eval]
    residual: Eval | None

    def slack(self) -> int:
        """How long after an unmatched left row's stamp a match may still come."""
        if not self.left:
            return 0
        return max((bound.unit - 1 for bound in self.bounds if bound.high is not None and bound.high >= 0), default=0)


class _Side:
    """Rows of one side that may still be matched: what they are, the number of their key, and the order they came in."""

    def __init__(self) -> None:
        self.rows: Joined | None = None
        self.codes: Ints = np.zeros(0, np.int64)
        self.order: Ints = np.zeros(0, np.int64)
        self.matched: Bools = np.zeros(0, np.bool_)
        self.came = 0

    def add(self, rows: Joined, codes: Ints) -> None:
        self.rows = rows if self.rows is None else Joined.join([self.rows, rows])
        self.codes = np.concatenate([self.codes, codes])
        self.order = np.concatenate([self.order, self.came + np.arange(rows.rows)])
        self.matched = np.concatenate([self.matched, np.zeros(rows.rows, np.bool_)])
        self.came += rows.rows

    def keep(self, mask: Bools) -> None:
        if self.rows is None or mask.all():
            return
        at = np.flatnonzero(mask)
        self.rows = self.rows.pick(at).settled() if len(at) else None
        self.codes, self.order, self.matched = self.codes[at], self.order[at], self.matched[at]

    @property
    def times(self) -> Ints:
        return self.rows.times if self.rows is not None else np.zeros(0, np.int64)


class StreamJoinOperator:
    """Port 0 is the left side, port 1 the new source."""

    def __init__(self, join: StreamJoin, on_faults: Callable[[Frame], Frame]) -> None:
        self.join = join
        self.on_faults = on_faults
        self.ids: dict[Key, int] = {}
        self.left, self.right = _Side(), _Side()
        self.shape: list[Rows] = [Rows(np.zeros(0, np.int64), [])]  # what the right side looks like, for rows of nulls
        self.mark: Watermark = MIN_WATERMARK  # of the result: nothing at or before it will come

    def process(self, rows: Rows, port: int) -> None:
        sources = rows.sources if isinstance(rows, Joined) else [rows]
        joined = Joined(rows.times, sources)
        if port == 0:
            frame = Frame(rows.times, sources)
            keys = [key(frame) for key in self.join.left_keys]
        else:
            empty = [Rows(rows.times, []) for _ in self.join.reach]
            frame = Frame(rows.times, [*empty, rows])
            keys = [key(frame) for key in self.join.right_keys]
        codes, found = group(keys, rows.rows)
        number = np.fromiter((self._id(by_value(key)) for key in found), np.int64, len(found))
        own = number[codes]
        if port == 1 and (own < 0).any():  # a null key matches nothing
            at = np.flatnonzero(own >= 0)
            joined, own = joined.pick(at), own[at]
        if joined.rows:
            (self.left if port == 0 else self.right).add(joined, own)

    def _id(self, key: Key) -> int:
        return -1 if None in key else self.ids.setdefault(key, len(self.ids))

    def advance(self, mark: Watermark) -> Joined | None:
        """Pairs that are certain once both sides are at `mark`."""
        slack = self.join.slack()
        until = mark if mark == MAX_WATERMARK or mark < MIN_WATERMARK + slack else mark - slack
        if until <= self.mark:
            return None
        found = self._pairs(until, mark)
        self.mark = until
        self._forget(until)
        return found

    def _pairs(self, until: Watermark, mark: Watermark) -> Joined | None:
        left, right = self.left, self.right
        if left.rows is None:
            return None
        times = left.times
        low, high = self._ranges(left.rows)
        now = np.flatnonzero(times <= until)
        # Only pairs with a new row: the pair's time lies in (the mark before, until].
        at_left, at_right = self._match(now, low, high, until)
        stamp = np.maximum(times[at_left], right.times[at_right])
        fresh = (stamp > self.mark) & (stamp <= until)
        at_left, at_right, stamp = self._judge(at_left[fresh], at_right[fresh], stamp[fresh])
        left.matched[at_left] = True
        if self.join.left:
            alone, alone_stamp = self._alone(low, high, until, mark)
            at_left = np.concatenate([at_left, alone])
            at_right = np.concatenate([at_right, np.full(len(alone), -1, np.int64)])
            stamp = np.concatenate([stamp, alone_stamp])
        if not len(at_left):
            return None
        right_order = np.where(at_right < 0, 0, right.order[at_right]) if len(right.order) else np.zeros_like(at_right)
        sorting = np.lexsort((right_order, left.order[at_left], stamp))
        return self._joined(stamp[sorting], at_left[sorting], at_right[sorting])

    def _ranges(self, rows: Joined) -> tuple[Ints, Ints]:
        low, high = np.full(rows.rows, -_FAR), np.full(rows.rows, _FAR)
        for bound in self.join.bounds:
            lowest, highest = bound.range(rows.sources[bound.source].times)
            low, high = np.maximum(low, lowest), np.minimum(high, highest)
        return low, high

    def _match(self, rows: Ints, low: Ints, high: Ints, until: Watermark, after: int = -_FAR) -> tuple[Ints, Ints]:
        """Candidates by key and time: positions on both sides. Right times lie in (`after`, `until`]."""
        codes, times = self.right.codes, self.right.times
        nothing = np.zeros(0, np.int64)
        rows = rows[self.left.codes[rows] >= 0]
        if not len(rows) or not len(codes):
            return nothing, nothing
        order = np.argsort(codes, kind="stable")
        begin = np.maximum(low[rows] - 1, after)
        end = np.minimum(high[rows], min(until, _FAR))
        first = count_upto(codes[order], times[order], self.left.codes[rows], begin)
        last = count_upto(codes[order], times[order], self.left.codes[rows], end)
        span, position = expand(first, np.maximum(first, last))
        return rows[span], order[position]

    def _judge(self, at_left: Ints, at_right: Ints, stamp: Ints) -> tuple[Ints, Ints, Ints]:
        """The pairs that the rest of ON accepts."""
        if self.join.residual is None or not len(at_left):
            return at_left, at_right, stamp
        pairs = self._joined(stamp, at_left, at_right)
        frame = Frame(stamp, pairs.sources)
        keep = truth(self.join.residual(frame)).copy()
        if frame.faults:
            keep[[fault.row for fault in frame.faults]] = False
            self.on_faults(frame)
        return at_left[keep], at_right[keep], stamp[keep]

    def _alone(self, low: Ints, high: Ints, until: Watermark, mark: Watermark) -> tuple[Ints, Ints]:
        """Left rows that nothing matched, whose time to report that has come."""
        left = self.left
        assert left.rows is not None
        stamp = np.full(len(left.times), _FAR)
        for bound in self.join.bounds:
            if bound.high is not None:
                times = left.rows.sources[bound.source].times
                stamp = np.minimum(stamp, np.where(times == ABSENT, -_FAR, times + bound.high * bound.unit))
        stamp = np.maximum(stamp, left.times)
        due = np.flatnonzero((stamp <= until) & (stamp > self.mark) & ~left.matched)
        more_left, more_right = self._match(due, low, high, mark, until)
        if len(more_left):
            more_left, _, _ = self._judge(more_left, more_right, self.right.times[more_right])
            later = np.zeros(len(stamp), np.bool_)
            later[more_left] = True
            due = due[~later[due]]
        return due, stamp[due]

    def _joined(self, stamp: Ints, at_left: Ints, at_right: Ints) -> Joined:
        assert self.left.rows is not None
        sources = [source.take(at_left) for source in self.left.rows.sources]
        right = self.right.rows.sources[0] if self.right.rows is not None else self.shape[0]
        return Joined(stamp, [*sources, right.take(at_right)])

    def _forget(self, until: Watermark) -> None:
        """Drop the rows that nothing to come can match."""
        if self.left.rows is not None:
            _, high = self._ranges(self.left.rows)
            last = np.maximum(high, self.left.times)
            if self.join.left:  # an unmatched row waits for its stamp, which is never later than this
                last = np.maximum(last, self.left.times + self._longest())
            self.left.keep(last > until)
        if self.right.rows is not None:
            keep = np.ones(len(self.right.times), np.bool_)
            for bound in self.join.bounds:
                if bound.low is not None:
                    floor = (self.right.times - ORIGIN) // bound.unit
                    latest = (floor - bound.low + 1) * bound.unit + ORIGIN - 1
                    keep &= latest > until - self.join.reach[bound.source]
            self.shape = [self.right.rows.sources[0].take(np.zeros(0, np.int64))]
            self.right.keep(keep | (self.right.times > until))
        if len(self.ids) > 1000 and len(self.ids) > 2 * (len(self.left.codes) + len(self.right.codes)):
            self._renumber()

    def _longest(self) -> int:
        return max((max(bound.high, 0) * bound.unit for bound in self.join.bounds if bound.high is not None), default=0)

    def _renumber(self) -> None:
        """Forget the keys that no held row has."""
        used = np.unique(np.concatenate([self.left.codes, self.right.codes]))
        used = used[used >= 0]
        keys = list(self.ids)
        back = np.full(len(keys) + 1, -1, np.int64)
        back[used] = np.arange(len(used))
        self.ids = {keys[index]: at for at, index in enumerate(used.tolist())}
        for side in (self.left, self.right):
            side.codes = back[side.codes]

    def rows(self) -> int:
        return len(self.left.codes) + len(self.right.codes)

    # -- state

    def snapshot(self, since: int | None = None) -> pa.Table:
        """One row per side: its rows, their keys, and which left ones had a match."""
        sides = []
        for side in (self.left, self.right):
            stored = None
            if side.rows is not None:
                stored = [side.rows.times.tolist(), [store_rows(source) for source in side.rows.sources]]
            sides.append(pack([stored, *(part.tolist() for part in (side.codes, side.order, side.matched)), side.came]))
        keys = pack([[thawed(part) for part in key] for key in self.ids])
        table = pa.table({"_key": pa.array([b"left", b"right"]), "value": pa.array(sides, pa.binary())})
        return table.replace_schema_metadata({b"mark": str(self.mark).encode(), b"keys": keys})

    def restore(self, table: pa.Table) -> None:
        self.mark = int(table.schema.metadata[b"mark"])
        keys = unpack(table.schema.metadata[b"keys"])
        self.ids = {tuple(hashable(part) for part in key): at for at, key in enumerate(keys)}
        for side, data in zip((self.left, self.right), table.column("value").to_pylist(), strict=True):
            stored, codes, order, matched, side.came = unpack(data)
            if stored is not None:
                side.rows = Joined(np.array(stored[0], np.int64), [load_rows(part) for part in stored[1]])
            side.codes, side.order = np.array(codes, np.int64), np.array(order, np.int64)
            side.matched = np.array(matched, np.bool_)


def reach_after(reach: Sequence[int], bounds: Sequence[Bound]) -> list[int]:
    """How much earlier than a joined row each of its sources may be, after one more join."""
    source = next(bound for bound in bounds if bound.low is not None and bound.high is not None)
    assert source.low is not None
    assert source.high is not None
    ahead = max(0, (source.high + 1) * source.unit)
    behind = max(0, (1 - source.low) * source.unit)
    return [*(old + ahead for old in reach), reach[source.source] + behind]
