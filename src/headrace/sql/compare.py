"""Comparison. Always true or false, never null: any comparison with null is false, `<>` included.

Numbers (bits count as 0 and 1) compare by value, text by code point, datetimes as instants; text beside a datetime is
converted. Values that cannot be compared are unequal, and neither is less.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.sql.evaluate import Frame, bits
from headrace.sql.moments import Moment, parse_moment, parse_moments
from headrace.sql.values import ARRAY, BIGINT, BIT, DATETIME, FLOAT, RECORD, TEXT, Bools, Column, Constant, Part, Repeat

_OPERATORS = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ARROW = {
    "=": pc.equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_NUMERIC = (BIGINT, FLOAT, BIT)
_EXACT = 1 << 53


def equal_values(left: Any, right: Any) -> bool:
    return compare_values("=", left, right)


def compare_values(op: str, left: Any, right: Any) -> bool:
    """Comparison of two Python values."""
    if left is None or right is None:
        return False
    left_type, right_type = type(left), type(right)
    numbers = (int, float, bool)
    if left_type in numbers and right_type in numbers:
        return bool(_OPERATORS[op](left, right))
    if left_type is Moment and right_type is str:
        ticks = parse_moment(right)
        return op == "<>" if ticks is None else bool(_OPERATORS[op](left.ticks, ticks))
    if left_type is str and right_type is Moment:
        ticks = parse_moment(left)
        return op == "<>" if ticks is None else bool(_OPERATORS[op](ticks, right.ticks))
    if left_type is not right_type or left_type in (dict, list):
        same = left_type is right_type and left == right
        return {"=": same, "<>": not same}.get(op, False)
    return bool(_OPERATORS[op](left, right))


def compare(frame: Frame, op: str, left: Column, right: Column) -> Column:
    """Comparison of two columns."""
    if isinstance(left, Constant) and isinstance(right, Constant):
        return Constant(frame.rows, compare_values(op, left.value, right.value))
    if len(left.parts) == 1 and len(right.parts) == 1:
        mask = _both(left.parts[0], right.parts[0])
        holds = _compare_parts(op, left.parts[0], right.parts[0], frame.rows)
        return bits(holds if mask is None else holds & mask)
    out: Bools = np.zeros(frame.rows, np.bool_)
    for one, other in itertools.product(left.parts, right.parts):
        mask = _both(one, other)
        if mask is None or mask.any():
            holds = _compare_parts(op, one, other, frame.rows)
            out |= holds if mask is None else holds & mask
    return bits(out)


def _both(left: Part, right: Part) -> Bools | None:
    if left.mask is None:
        return right.mask
    return left.mask if right.mask is None else left.mask & right.mask


def _compare_parts(op: str, left: Part, right: Part, rows: int) -> Bools:
    if left.kind in _NUMERIC and right.kind in _NUMERIC:
        return _compare_numbers(op, left, right)
    if left.kind == TEXT and right.kind == TEXT:
        found = _ARROW[op](_text(left), _text(right))
        return np.asarray(pc.fill_null(found, False))
    if {left.kind, right.kind} <= {DATETIME, TEXT}:
        ticks_left, good_left = _ticks(left)
        ticks_right, good_right = _ticks(right)
        good = good_left & good_right
        holds = np.where(good, _OPERATORS[op](ticks_left, ticks_right), op == "<>")
        return np.asarray(np.broadcast_to(holds, rows))
    if left.kind != right.kind or left.kind not in (RECORD, ARRAY):
        return np.full(rows, op == "<>", np.bool_)
    pairs = zip(_objects(left, rows), _objects(right, rows), strict=True)
    return np.fromiter((compare_values(op, one, other) for one, other in pairs), np.bool_, rows)


def _compare_numbers(op: str, left: Part, right: Part) -> Bools:
    one, other = _numbers(left), _numbers(right)
    found: Bools = np.asarray(_OPERATORS[op](one, other))
    if {left.kind, right.kind} != {BIGINT, FLOAT}:
        return found
    whole = one if left.kind == BIGINT else other
    wide = (whole > _EXACT) | (whole < -_EXACT)  # NumPy compares as floats, which cannot tell such integers apart
    if np.any(wide):
        for row in np.flatnonzero(np.broadcast_to(wide, found.shape)).tolist():
            found[row] = _OPERATORS[op](_at(one, row), _at(other, row))
    return found


def _at(data: Any, row: int) -> Any:
    return data[row].item() if isinstance(data, np.ndarray) else data


def _numbers(part: Part) -> Any:
    if isinstance(part.data, Repeat):
        return int(part.data.value) if part.kind == BIT else part.data.value
    return part.data.astype(np.int64) if part.kind == BIT else part.data


def _text(part: Part) -> Any:
    return pa.scalar(part.data.value, pa.string()) if isinstance(part.data, Repeat) else part.data


def _ticks(part: Part) -> tuple[Any, Any]:
    if isinstance(part.data, Repeat):
        ticks = part.data.value.ticks if part.kind == DATETIME else parse_moment(part.data.value)
        return (0, False) if ticks is None else (ticks, True)
    return (part.data, True) if part.kind == DATETIME else parse_moments(part.data)


def _objects(part: Part, rows: int) -> Any:
    return [part.data.value] * rows if isinstance(part.data, Repeat) else part.data
