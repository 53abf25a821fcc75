"""COUNT, SUM, AVG, MIN, MAX and the variances, in arrays.

Sums are added sequentially in row order (`np.add.at`), never pairwise, so they are the same at any batch size. Variances
keep sums of differences from the group's first value. That value is a member of the sample, so its distance d from the
mean adds at least d²(n-1)/n to the squared deviations: cancellation costs at most about n units in the last place,
however far the values lie from zero. Panes are merged by Chan, Golub and LeVeque's pairwise update (1983).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from headrace.sql import doubling, tree, values
from headrace.sql.aggregate import Accumulator, Aggregate, ArrayAccumulator, Failed, failed
from headrace.sql.arrays import stable_order
from headrace.sql.convert import number, shown, type_name
from headrace.sql.errors import Fault
from headrace.sql.evaluate import Eval, apply
from headrace.sql.moments import Moment
from headrace.sql.spec import Kernel, Scalar
from headrace.sql.state import pack, unpack
from headrace.sql.values import BIGINT, BIT, DATETIME, FLOAT, INT_MAX, INT_MIN, TEXT, Bools, Column, Ints

_SAFE = float(1 << 62)


def _summand(value: Any) -> Any:
    if type(value) is bool:
        return int(value)
    if type(value) in (int, float):
        return value
    raise Fault(
        f"{shown(value)} ({type_name(value)}) cannot be summed: CAST it to bigint or float first", "cast_failed"
    )


_SUMMAND = Scalar(
    "summand",
    1,
    1,
    _summand,
    {
        (BIGINT,): (BIGINT, lambda data: data),
        (FLOAT,): (FLOAT, lambda data: data),
        (BIT,): (BIGINT, lambda data: data.astype(np.int64)),
    },
)


def _numeric(node: tree.Node, bound: Eval) -> Eval:
    return lambda frame: apply(frame, _SUMMAND, [bound(frame)])


def _comparable(value: Any) -> Any:
    if type(value) is str:
        found = number(value)
        return float(found)
    if type(value) in (dict, list):
        raise Fault(f"MIN and MAX of a {type_name(value)}", "bad_argument")
    return value


_SAME: dict[tuple[int, ...], tuple[int, Kernel]] = {
    (kind,): (kind, lambda data: data) for kind in (BIGINT, FLOAT, BIT, DATETIME)
}
_COMPARABLE = Scalar("comparable", 1, 1, _comparable, _SAME)


def _ordered(node: tree.Node, bound: Eval) -> Eval:
    """Text is cast to float, unless the argument is itself a cast to text."""
    if isinstance(node, tree.Cast) and node.type == "nvarchar":
        return bound
    return lambda frame: apply(frame, _COMPARABLE, [bound(frame)])


def _rows(slots: Ints, mask: Any, data: Any) -> tuple[Ints, Any]:
    return (slots, data) if mask is None else (slots[mask], data[mask])


def _within(mask: Any, low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """Spans over all rows as spans over the rows that `mask` holds (None: all)."""
    if mask is None or mask.all():
        return low, high
    before = np.concatenate([[0], np.cumsum(mask)])
    return before[low], before[high]


_OVERFLOW = Failed("overflow", "SUM of bigint overflows: CAST to float first")
_FLOAT_OVERFLOW = Failed("overflow", "the sum of the values goes beyond what a float can hold")
_SPREAD_OVERFLOW = Failed("overflow", "the squares of the values' distances go beyond what a float can hold")


def _quiet() -> np.errstate:
    """For sums that are looked at afterwards: what is not finite becomes a Failed. No value that comes in is infinite."""
    return np.errstate(over="ignore", invalid="ignore")


def _or_failed(found: Column, wrong: Bools, how: Failed) -> Column:
    """The column, with a failure in the rows that are `wrong`."""
    if not wrong.any():
        return found
    return values.merge(found.rows, [(~wrong, found), (wrong, failed(found.rows, wrong, how))])


class _Count(ArrayAccumulator):
    fields: ClassVar = {"count": (np.int64, 0)}

    def add(self, slots: Ints, args: Sequence[Column]) -> None:
        if args:
            valid = args[0].valid()
            slots = slots if valid.all() else slots[valid]
        np.add.at(self.arrays["count"], slots, 1)

    def merge(self, into: Ints, other: Any, slots: Ints) -> None:
        np.add.at(self.arrays["count"], into, other.arrays["count"][slots])

    def spans(self, args: Sequence[Column], low: Ints, high: Ints) -> bool:
        low, high = _within(args[0].valid(), low, high) if args else (low, high)
        self.arrays["count"][: len(low)] = high - low
        return True

    def result(self, slots: Ints) -> Column:
        return values.of(BIGINT, self.arrays["count"][slots])


class _Sum(ArrayAccumulator):
    """Bigints and floats are summed apart: the sum is a bigint unless a float was among the values."""

    fields: ClassVar = {
        "bigints": (np.int64, 0),
        "bigint_count": (np.int64, 0),
        "floats": (np.float64, 0.0),
        "float_count": (np.int64, 0),
        "over": (np.bool_, False),  # the bigints went beyond 64 bits
    }

    def add(self, slots: Ints, args: Sequence[Column]) -> None:
        for kind, data, mask in values.plain(args[0]).parts:
            at, numbers = _rows(slots, mask, data)
            if kind == FLOAT:
                with _quiet():
                    np.add.at(self.arrays["floats"], at, numbers)
                np.add.at(self.arrays["float_count"], at, 1)
            else:
                self._add_bigints(at, numbers)
                np.add.at(self.arrays["bigint_count"], at, 1)

    def _add_bigints(self, at: Ints, numbers: Ints) -> None:
        if not len(at):
            return
        sums = self.arrays["bigints"]
        reach = float(np.abs(numbers.astype(np.float64)).sum()) + float(np.abs(sums[at].astype(np.float64)).max())
        if reach < _SAFE:
            np.add.at(sums, at, numbers)
            return
        for slot, value in zip(at.tolist(), numbers.tolist(), strict=True):
            total = int(sums[slot]) + value
            if INT_MIN <= total <= INT_MAX:
                sums[slot] = total
            else:
                self.arrays["over"][slot] = True

    def spans(self, args: Sequence[Column], low: Ints, high: Ints) -> bool:
        for kind, data, mask in values.plain(args[0]).parts:
            begin, end = _within(mask, low, high)
            some = data if mask is None else data[mask]
            if kind == FLOAT:
                self.arrays["floats"][: len(low)] = doubling.sums(some, begin, end)
                self.arrays["float_count"][: len(low)] = end - begin
            else:
                upper, lower = doubling.whole_sums(some, begin, end)
                self.arrays["over"][: len(low)] = np.abs(upper + 0.5) > 1 << 31
                self.arrays["bigints"][: len(low)] = (upper << 32) + lower
                self.arrays["bigint_count"][: len(low)] = end - begin
        return True

    def merge(self, into: Ints, other: Any, slots: Ints) -> None:
        self._add_bigints(into, other.arrays["bigints"][slots])
        with _quiet():
            for name in ("floats", "bigint_count", "float_count"):
                np.add.at(self.arrays[name], into, other.arrays[name][slots])
        self.arrays["over"][into[other.arrays["over"][slots]]] = True

    def result(self, slots: Ints) -> Column:
        floats = self.arrays["float_count"][slots] > 0
        bigints = ~floats & (self.arrays["bigint_count"][slots] > 0)
        whole = self.arrays["bigints"][slots]
        total = whole + self.arrays["floats"][slots]
        pieces = [(floats, values.of(FLOAT, total)), (bigints, values.of(BIGINT, whole))]
        return self._or_overflow(values.merge(len(slots), pieces), slots)

    def _or_overflow(self, found: Column, slots: Ints) -> Column:
        found = _or_failed(found, ~np.isfinite(self.arrays["floats"][slots]), _FLOAT_OVERFLOW)
        return _or_failed(found, self.arrays["over"][slots], _OVERFLOW)


class _Average(_Sum):
    def result(self, slots: Ints) -> Column:
        count = self.arrays["float_count"][slots] + self.arrays["bigint_count"][slots]
        total = self.arrays["bigints"][slots] + self.arrays["floats"][slots]
        return self._or_overflow(values.of(FLOAT, total / np.maximum(count, 1), count > 0), slots)


class _Extreme(Accumulator):
    """MIN or MAX: one array per kind that occurs, texts as objects."""

    _EMPTY: ClassVar[dict[int, tuple[Any, Any, Any]]] = {
        BIGINT: (np.int64, INT_MAX, INT_MIN),
        FLOAT: (np.float64, np.inf, -np.inf),
        DATETIME: (np.int64, INT_MAX, INT_MIN),
        BIT: (np.int64, 2, -1),
    }

    def __init__(self, *, largest: bool) -> None:
        self.largest = largest
        self.slots = 0
        self.best: dict[int, Any] = {}
        self.has: dict[int, Any] = {}

    def reserve(self, slots: int) -> None:
        if slots <= self.slots:
            return
        more = max(slots, self.slots * 2, 64) - self.slots
        for kind in self.best:
            self.best[kind] = np.concatenate([self.best[kind], self._empty(kind, more)])
            self.has[kind] = np.concatenate([self.has[kind], np.zeros(more, np.bool_)])
        self.slots += more

    def _empty(self, kind: int, slots: int) -> Any:
        if kind == TEXT:
            return np.full(slots, None, object)
        dtype, low, high = self._EMPTY[kind]
        return np.full(slots, high if self.largest else low, dtype)

    def _open(self, kind: int) -> None:
        if kind not in self.best:
            self.best[kind] = self._empty(kind, self.slots)
            self.has[kind] = np.zeros(self.slots, np.bool_)

    def _put(self, kind: int, slots: Ints, data: Any) -> None:
        self._open(kind)
        best = self.best[kind]
        if kind == TEXT:
            for slot, value in zip(slots.tolist(), data, strict=True):
                held = best[slot]
                if held is None or ((value > held) if self.largest else (value < held)):
                    best[slot] = value
        else:
            (np.maximum if self.largest else np.minimum).at(best, slots, data)
        self.has[kind][slots] = True

    def add(self, slots: Ints, args: Sequence[Column]) -> None:
        for kind, data, mask in values.plain(args[0]).parts:
            if kind == TEXT:
                at = slots if mask is None else slots[mask]
                texts = data if mask is None else data.filter(pa.array(mask))
                self._put(TEXT, at, texts.to_pylist())
            else:
                at, some = _rows(slots, mask, data)
                self._put(kind, at, some.astype(np.int64) if kind == BIT else some)

    def spans(self, args: Sequence[Column], low: Ints, high: Ints) -> bool:
        pick = np.maximum if self.largest else np.minimum
        for kind, data, mask in values.plain(args[0]).parts:
            begin, end = _within(mask, low, high)
            some = np.flatnonzero(end > begin)
            self._open(kind)
            self.has[kind][some] = True
            if kind == TEXT:
                texts = data.to_pylist() if mask is None else data.filter(pa.array(mask)).to_pylist()
                ranks = {text: rank for rank, text in enumerate(sorted(set(texts)))}
                order = np.fromiter(map(ranks.__getitem__, texts), np.int64, len(texts))
                named = np.array(list(ranks), object)
                self.best[kind][some] = named[doubling.extremes(order, begin[some], end[some], pick)]
            else:
                numbers = data if mask is None else data[mask]
                # Which of -0.0 and 0.0 is the greater is up to the processor; as sums they are one.
                numbers = numbers + 0.0 if kind == FLOAT else numbers.astype(np.int64)
                self.best[kind][some] = doubling.extremes(numbers, begin[some], end[some], pick)
        return True

    def merge(self, into: Ints, other: Any, slots: Ints) -> None:
        for kind in other.best:
            held = other.has[kind][slots]
            self._put(kind, into[held], other.best[kind][slots][held])

    def result(self, slots: Ints) -> Column:
        pieces: list[tuple[Any, Column]] = []
        taken = np.zeros(len(slots), np.bool_)
        both = {BIGINT, FLOAT} <= self.best.keys()
        for kind in sorted(self.best):
            chosen = self.has[kind][slots] & ~taken
            if both and kind == BIGINT:
                bigints, floats = self.best[BIGINT][slots], self.best[FLOAT][slots]
                loses = (floats > bigints) if self.largest else (floats < bigints)
                chosen &= ~(self.has[FLOAT][slots] & loses)
            data = self.best[kind][slots]
            if kind == TEXT:
                data = pa.array(data.tolist(), pa.string())
            pieces.append((chosen, values.of(kind, data.astype(np.bool_) if kind == BIT else data)))
            taken |= chosen
        return values.merge(len(slots), pieces)

    def clear(self, slots: Ints) -> None:
        for kind in self.best:
            self.best[kind][slots] = self._empty(kind, 1)[0]
            self.has[kind][slots] = False

    def save(self, slots: Ints) -> pa.Table:
        rows = [self._saved(slot) for slot in slots.tolist()]
        return pa.table({"value": pa.array([pack(row) for row in rows], pa.binary())})

    def _saved(self, slot: int) -> list[Any]:
        found: list[Any] = []
        for kind in sorted(self.best):
            if self.has[kind][slot]:
                value = self.best[kind][slot]
                value = value if kind == TEXT else value.item()
                found.append([kind, Moment(value) if kind == DATETIME else value])
        return found

    def load(self, slots: Ints, table: pa.Table) -> None:
        for slot, data in zip(slots.tolist(), table.column("value").to_pylist(), strict=True):
            for kind, value in unpack(data):
                self._open(kind)
                self.best[kind][slot] = value.ticks if kind == DATETIME else value
                self.has[kind][slot] = True


def _floats(column: Column) -> tuple[Any, Any]:
    """The numbers of a column as floats, and which rows have one."""
    column = values.plain(column)
    numbers = np.zeros(column.rows)
    for _, data, mask in column.parts:
        numbers = data.astype(np.float64) if mask is None else np.where(mask, data, numbers)
    return numbers, column.valid()


class _Spread(ArrayAccumulator):
    """Sums of differences from the group's first value, and of their squares."""

    fields: ClassVar = {
        "count": (np.int64, 0),
        "first": (np.float64, 0.0),
        "sum": (np.float64, 0.0),
        "squares": (np.float64, 0.0),
    }

    def __init__(self, *, sample: bool, root: bool) -> None:
        super().__init__()
        self.sample = sample
        self.root = root

    def spans(self, args: Sequence[Column], low: Ints, high: Ints) -> bool:
        numbers, valid = _floats(args[0])
        begin, end = _within(valid, low, high)
        mean, deviations = doubling.moments(numbers if valid.all() else numbers[valid], begin, end)
        filled = slice(len(low))
        self.arrays["count"][filled] = end - begin
        self.arrays["first"][filled], self.arrays["squares"][filled] = mean, deviations
        return True

    def add(self, slots: Ints, args: Sequence[Column]) -> None:
        numbers, valid = _floats(args[0])
        if not valid.all():
            slots, numbers = slots[valid], numbers[valid]
        count, first = self.arrays["count"], self.arrays["first"]
        new = count[slots] == 0
        if new.any():
            first[slots[new][::-1]] = numbers[new][::-1]  # the earliest row of a slot is written last
        np.add.at(count, slots, 1)
        with _quiet():
            away = numbers - first[slots]
            np.add.at(self.arrays["sum"], slots, away)
            np.add.at(self.arrays["squares"], slots, away * away)

    def _moments(self, slots: Ints) -> tuple[Any, Any, Any]:
        """Count, mean and sum of squared deviations."""
        count = self.arrays["count"][slots]
        safe = np.maximum(count, 1)
        total = self.arrays["sum"][slots]
        with _quiet():
            deviations = np.maximum(self.arrays["squares"][slots] - total * total / safe, 0.0)
        return count, self.arrays["first"][slots] + total / safe, deviations

    def merge(self, into: Ints, other: Any, slots: Ints) -> None:
        """One round per pane: the k-th contribution of each target, so that the order per target is kept."""
        rounds = _occurrence(into)
        count, mean, deviations = other._moments(slots)
        for turn in range(int(rounds.max()) + 1 if len(rounds) else 0):
            now = (rounds == turn) & (count > 0)
            self._merge_once(into[now], count[now], mean[now], deviations[now])

    def _merge_once(self, into: Ints, count: Any, mean: Any, deviations: Any) -> None:
        with _quiet():
            self._update(into, count, mean, deviations)

    def _update(self, into: Ints, count: Any, mean: Any, deviations: Any) -> None:
        own, own_mean, own_deviations = self._moments(into)
        total = own + count
        apart = np.where(own > 0, mean - own_mean, 0.0)
        self.arrays["count"][into] = total
        self.arrays["first"][into] = np.where(own > 0, own_mean + apart * count / total, mean)
        self.arrays["sum"][into] = 0.0
        self.arrays["squares"][into] = own_deviations + deviations + apart * apart * own * count / total

    def result(self, slots: Ints) -> Column:
        count, _, deviations = self._moments(slots)
        least = 2 if self.sample else 1
        found = deviations / np.maximum(count - 1 if self.sample else count, 1)
        column = values.of(FLOAT, np.sqrt(found) if self.root else found, count >= least)
        return _or_failed(column, (count >= least) & ~np.isfinite(found), _SPREAD_OVERFLOW)


def _occurrence(codes: Ints) -> Ints:
    """For each element, how many equal ones stand before it."""
    order = stable_order(codes, int(codes.max()) + 1 if len(codes) else 0)
    ordered = codes[order]
    starts = (
        np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(codes) else np.zeros(0, np.int64)
    )
    lengths = np.diff(np.concatenate([starts, [len(codes)]]))
    out = np.empty(len(codes), np.int64)
    out[order] = np.arange(len(codes)) - np.repeat(starts, lengths)
    return out


COUNT = Aggregate("count", 0, 1, lambda order, constants: _Count(), doc="Events, or non-null values of x.")
SUM = Aggregate("sum", 1, 1, lambda order, constants: _Sum(), _numeric)
AVG = Aggregate("avg", 1, 1, lambda order, constants: _Average(), _numeric)
MIN = Aggregate("min", 1, 1, lambda order, constants: _Extreme(largest=False), _ordered)
MAX = Aggregate("max", 1, 1, lambda order, constants: _Extreme(largest=True), _ordered)
STDEV = Aggregate("stdev", 1, 1, lambda order, constants: _Spread(sample=True, root=True), _numeric)
STDEVP = Aggregate("stdevp", 1, 1, lambda order, constants: _Spread(sample=False, root=True), _numeric)
VAR = Aggregate("var", 1, 1, lambda order, constants: _Spread(sample=True, root=False), _numeric)
VARP = Aggregate("varp", 1, 1, lambda order, constants: _Spread(sample=False, root=False), _numeric)
