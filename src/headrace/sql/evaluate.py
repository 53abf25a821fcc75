"""Evaluation of bound expressions over whole frames, with the scalar form of each function as the judge.

A fault (a CAST that fails, a division by zero) is recorded for its row and gives null there; whether the job stops or the
event is set aside is decided by whoever made the frame. A branch that a CASE did not take cannot fault.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from headrace.sql import values
from headrace.sql.errors import Fault
from headrace.sql.rows import Rows
from headrace.sql.spec import Scalar
from headrace.sql.values import BIT, DATETIME, TEXT, Bools, Column, Constant, Ints, Part

Eval = Callable[["Frame"], Column]


class RowFault(NamedTuple):
    row: int
    reason: str
    detail: str


class Memo:
    """Results over the rows of one frame, kept for other readers. `wanted` are the numbers of the expressions to keep."""

    __slots__ = ("columns", "filtered", "groups", "wanted")

    def __init__(self, wanted: frozenset[int]) -> None:
        self.wanted = wanted
        self.columns: dict[int, tuple[Column, list[RowFault]]] = {}
        self.groups: dict[int, tuple[Ints, Sequence[Any]]] = {}  # by the number of the keys
        self.filtered: dict[int, Frame] = {}  # what a filter lets through, by the filter's number


class Kept:
    """An expression whose result a memo keeps where it is wanted. Faults come again for each reader, as without."""

    __slots__ = ("number", "of")

    def __init__(self, number: int, of: Eval) -> None:
        self.number = number
        self.of = of

    def __call__(self, frame: Frame) -> Column:
        memo = frame.memo
        if memo is None or self.number not in memo.wanted:
            return self.of(frame)
        found = memo.columns.get(self.number)
        if found is None:
            since = len(frame.faults)
            column = self.of(frame)
            memo.columns[self.number] = column, frame.faults[since:]
            return column
        frame.faults += found[1]
        return found[0]


class Frame:
    """What an expression sees: sources by position, timestamps, and results of earlier stages in `extra`.

    `memo` holds what several SELECTs compute over these very rows; it is gone as soon as rows are taken.
    """

    __slots__ = ("extra", "faults", "memo", "rows", "sources", "times")

    def __init__(
        self, times: Ints, sources: Sequence[Rows], extra: Sequence[Column] = (), memo: Memo | None = None
    ) -> None:
        self.memo = memo
        self.rows = len(times)
        self.times = times
        self.sources = list(sources)
        self.extra = list(extra)
        self.faults: list[RowFault] = []

    def take(self, at: Ints) -> Frame:
        return Frame(
            self.times[at], [rows.take(at) for rows in self.sources], [column.take(at) for column in self.extra]
        )

    def keep_faults(self, since: int, mask: Bools) -> None:
        """Forget faults recorded after `since` in rows outside `mask`: their branch was not taken."""
        if len(self.faults) > since:
            self.faults[since:] = [fault for fault in self.faults[since:] if mask[fault.row]]


def apply(frame: Frame, spec: Scalar, args: Sequence[Column]) -> Column:
    """A scalar function over columns."""
    rows = frame.rows
    if all(arg.constant for arg in args):
        return _apply_constants(frame, spec, args)
    if spec.whole is not None and (found := spec.whole(args)) is not None:
        return found
    if spec.nulls:
        return _apply_rows(frame, spec, args, None)
    pieces: list[tuple[Bools | None, Column]] = []
    for parts in itertools.product(*(arg.parts for arg in args)):
        mask = _both(parts)
        if mask is not None and not mask.any():
            continue
        kernel = spec.kernels.get(tuple(part.kind for part in parts))
        if kernel is None:
            pieces.append((mask, _apply_rows(frame, spec, args, mask)))
            continue
        with np.errstate(all="ignore"):
            answer = kernel[1](*(_argument(part) for part in parts))
        data, unsure = answer if isinstance(answer, tuple) else (answer, None)
        if unsure is not None and mask is not None:
            unsure = unsure & mask
        if unsure is None or not unsure.any():
            pieces.append((mask, Column(rows, [Part(kernel[0], data, None)])))
        else:
            sure = ~unsure if mask is None else mask & ~unsure
            pieces.append((sure, Column(rows, [Part(kernel[0], data, None)])))
            pieces.append((unsure, _apply_rows(frame, spec, args, unsure)))
    if len(pieces) == 1 and pieces[0][0] is None:
        return pieces[0][1]
    return values.merge(rows, pieces)


def _both(parts: Sequence[Part]) -> Bools | None:
    mask: Bools | None = None
    for part in parts:
        if part.mask is not None:
            mask = part.mask if mask is None else mask & part.mask
    return mask


def _argument(part: Part) -> Any:
    if isinstance(part.data, values.Repeat):
        return part.data.value.ticks if part.kind == DATETIME else part.data.value
    return part.data


def _apply_constants(frame: Frame, spec: Scalar, args: Sequence[Column]) -> Column:
    given = [arg.value for arg in args if isinstance(arg, Constant)]
    if not spec.nulls and any(value is None for value in given):
        return Constant(frame.rows, None)
    try:
        return Constant(frame.rows, spec.call(*given))
    except Fault as fault:
        frame.faults += [RowFault(row, fault.reason, fault.detail) for row in range(frame.rows)]
        return Constant(frame.rows, None)


def _apply_rows(frame: Frame, spec: Scalar, args: Sequence[Column], mask: Bools | None) -> Column:
    """The scalar form, row by row, where `mask` says so."""
    at = np.arange(frame.rows) if mask is None else np.flatnonzero(mask)
    whole = len(at) == frame.rows
    lists = [(arg if whole else arg.take(at)).to_list() for arg in args]
    out: list[Any] = [None] * len(at)
    index = 0
    for index, given in enumerate(zip(*lists, strict=True)):
        if spec.nulls or None not in given:
            try:
                out[index] = spec.call(*given)
            except Fault as fault:
                frame.faults.append(RowFault(int(at[index]), fault.reason, fault.detail))
    found = values.from_values(out)
    return found if whole else scatter(found, at, frame.rows)


def scatter(column: Column, at: Ints, rows: int) -> Column:
    """A column of `rows` rows with the given values at positions `at`, null elsewhere."""
    back = np.full(rows, -1, np.int64)
    back[at] = np.arange(len(at))
    return column.take(back) if len(at) else Column(rows)


def truth(column: Column) -> Bools:
    """Where a condition holds. Null is false; a number holds unless it is 0."""
    if isinstance(column, Constant):
        return np.full(column.rows, bool(column.value) and not isinstance(column.value, str), np.bool_)
    only = column.only(BIT)
    if only is not None:
        return only  # type: ignore[no-any-return]
    out = np.zeros(column.rows, np.bool_)
    for kind, data, mask in column.parts:
        if kind in (values.BIGINT, values.FLOAT, BIT):
            holds = data.astype(np.bool_)
            out |= holds if mask is None else holds & mask
    return out


def bits(mask: Bools) -> Column:
    return Column(len(mask), [Part(BIT, mask, None)])


def text_array(column: Column) -> pa.StringArray | None:
    """The data if every row is text."""
    return values.plain(column).only(TEXT)
