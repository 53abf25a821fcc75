"""Functions from outside: a registered model, or Python code, called as `udf.name(...)` or, per window, `uda.name(x)`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

import numpy as np

from headrace.sql import values
from headrace.sql.aggregate import Accumulator, Aggregate, Failed, ObjectAccumulator, failed
from headrace.sql.errors import Fault
from headrace.sql.moments import Moment
from headrace.sql.spec import Scalar
from headrace.sql.values import INT_MAX, INT_MIN, Column, Ints

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UserFunction(NamedTuple):
    """`udf.rul` is called as `udf.rul(a, b)`. What `call` is depends on `kind`:

    arrow: gets one Arrow array per argument, all of equal length (nulls allowed; whole numbers as int64, others as float64,
    records as struct), and returns one of that length. row: gets one row's values (None, int, float, bool, str, datetime,
    dict, list) and returns one. aggregate: gets the list of a window's values, nulls left out, and returns one.
    accumulator: takes nothing and returns an object with `accumulate(value, time)` and `compute_result()`; it is fed the
    window's values anew for each result, so `deaccumulate` is not needed.
    """

    name: str
    call: Callable[..., Any]
    kind: Literal["arrow", "row", "aggregate", "accumulator"] = "arrow"


def as_scalar(function: UserFunction, arguments: int) -> Scalar:
    """A function of kind "row". What it raises is a fault of that row."""

    def call(*given: Any) -> Any:
        return _guarded(function.name, lambda: function.call(*map(outward, given)))

    return Scalar(function.name, arguments, arguments, call, nulls=True)


def as_aggregate(function: UserFunction) -> Aggregate:
    """A function of kind "aggregate" or "accumulator". Its arguments are the value and the event's time."""
    return Aggregate(function.name, 1, 1, lambda order, constants: _Gathered(function), per_row=True)


class _Gathered(ObjectAccumulator):
    """The window's values with their times (ticks), in order; nulls are no members."""

    def __init__(self, function: UserFunction) -> None:
        super().__init__()
        self.function = function

    def new(self) -> list[Any]:
        return []

    def add(self, slots: Ints, args: Sequence[Column]) -> None:
        times = [moment.ticks for moment in args[1].to_list()]
        for slot, value, time in zip(slots.tolist(), args[0].to_list(), times, strict=True):
            if value is not None:
                self.items[slot].append([value, time])

    def merge(self, into: Ints, other: Accumulator, slots: Ints) -> None:
        assert isinstance(other, _Gathered)
        for target, slot in zip(into.tolist(), slots.tolist(), strict=True):
            self.items[target] += other.items[slot]

    def result(self, slots: Ints) -> Column:
        found: list[Any] = []
        faults: dict[int, Failed] = {}
        for row, slot in enumerate(slots.tolist()):
            try:
                found.append(self._of(self.items[slot]))
            except Fault as fault:
                found.append(None)
                faults[row] = Failed(fault.reason, fault.detail)
        column = values.from_values(found)
        if not faults:
            return column
        wrong = np.zeros(len(found), np.bool_)
        wrong[list(faults)] = True
        return values.merge(len(found), [(~wrong, column), (wrong, failed(len(found), wrong, list(faults.values())))])

    def _of(self, found: list[Any]) -> Any:
        if not found:
            return None
        return _guarded(self.function.name, lambda: self._compute(found))

    def _compute(self, found: list[Any]) -> Any:
        if self.function.kind == "aggregate":
            return self.function.call([outward(value) for value, _ in found])
        state = self.function.call()
        for value, time in found:
            state.accumulate(outward(value), outward(Moment(time)))
        return state.compute_result()


def _guarded(name: str, call: Callable[[], Any]) -> Any:
    try:
        found = call()
    except Exception as exc:
        raise Fault(f"{name} failed: {type(exc).__name__}: {exc}", "function_failed") from exc
    return _inward(found, name)


def outward(value: Any) -> Any:
    """A value as Python code gets it: datetimes as `datetime` (microseconds, UTC)."""
    if isinstance(value, Moment):
        return _EPOCH + timedelta(microseconds=value.ticks // 10)
    if type(value) is dict:
        return {name: outward(part) for name, part in value.items()}
    return [outward(part) for part in value] if type(value) is list else value


def _inward(value: Any, name: str) -> Any:
    """What a function returned as a value: a whole number is a bigint, NaN and infinity are null."""
    kind = type(value)
    if value is None or kind in (bool, str, Moment):
        return value
    if kind is int or (kind is float and value.is_integer() and abs(value) < 2.0**63):
        if not INT_MIN <= int(value) <= INT_MAX:
            raise Fault(f"{name} returned {value}, which does not fit a bigint", "function_failed")
        return int(value)
    if kind is float:
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return Moment((aware - _EPOCH) // timedelta(microseconds=1) * 10)
    if kind is dict:
        return {str(key): _inward(part, name) for key, part in value.items()}
    if kind in (list, tuple):
        return [_inward(part, name) for part in value]
    if hasattr(value, "item"):  # a NumPy scalar
        return _inward(value.item(), name)
    raise Fault(f"{name} returned a {kind.__name__}, which is no value of a query", "function_failed")
