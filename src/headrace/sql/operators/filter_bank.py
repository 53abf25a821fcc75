"""Many filters over the same rows as one table of truth: a line per comparison, a column per row.

Comparisons of one field with many constants are one NumPy call, so three hundred rules cost about as many calls as they have
fields. Only comparisons with constants stand here: they can never fault, so nothing changes when they are all computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from headrace.sql import values
from headrace.sql.compare import compare
from headrace.sql.evaluate import Eval, Frame, truth
from headrace.sql.rows import Rows
from headrace.sql.values import BIGINT, BIT, DATETIME, FLOAT, TEXT, Bools, Column, Constant, Ints

_CALLS: dict[str, Callable[..., Any]] = {
    "=": np.equal,
    "<>": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}
_EXACT = 1 << 53
_CHUNK = 1 << 22
"""Cells of the table of truth that are computed at once: more rows come in several pieces."""


class Comparison(NamedTuple):
    """`operand` (a position) compared with a constant; `op` may be "null" and "not null", whose value is None."""

    operand: int
    op: str
    value: int | float | str | None


Rule = tuple[Any, ...]
"""("is", comparison), ("and", rules), ("or", rules) or ("not", rule)."""


class FilterBank:
    """`evaluate` says which rules hold in which rows. It has no state."""

    def __init__(self, operands: Sequence[Eval], comparisons: Sequence[Comparison], rules: Sequence[Rule]) -> None:
        self.operands = list(operands)
        self.size = len(rules)
        order = sorted(range(len(comparisons)), key=lambda at: (comparisons[at].operand, _block_of(comparisons[at])))
        line = {at: number for number, at in enumerate(order)}
        self._blocks: list[list[_Block]] = [[] for _ in operands]
        at = 0
        while at < len(order):
            first = comparisons[order[at]]
            stop = at
            while stop < len(order) and _same_block(comparisons[order[stop]], first):
                stop += 1
            self._blocks[first.operand].append(_Block(at, [comparisons[index] for index in order[at:stop]]))
            at = stop
        self._lines = len(order)
        plain: list[tuple[int, list[int]]] = []
        self._other: list[tuple[int, Rule]] = []
        for number, rule in enumerate(rules):
            found = _conjunction(rule)
            if found is None:
                self._other.append((number, _renamed(rule, line)))
            else:
                plain.append((number, [line[at] for at in found]))
        self._plain = np.array([number for number, _ in plain], np.int64)
        self._parts = np.array([at for _, found in plain for at in found], np.int64)
        lengths = [len(found) for _, found in plain]
        self._starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64) if plain else self._parts

    def evaluate(self, rows: Rows) -> tuple[Bools, Ints]:
        """Truth by rule and row, and the rules that hold anywhere."""
        frame = Frame(rows.times, [rows])
        columns = [values.plain(operand(frame)) for operand in self.operands]
        step = max(1, _CHUNK // max(self._lines + self.size, 1))
        if rows.rows <= step:
            found = self._table(columns, rows.rows)
        else:
            pieces = [
                self._table(
                    [column.slice(at, min(at + step, rows.rows)) for column in columns], min(step, rows.rows - at)
                )
                for at in range(0, rows.rows, step)
            ]
            found = np.concatenate(pieces, axis=1)
        return found, np.flatnonzero(found.any(axis=1))

    def _table(self, columns: Sequence[Column], rows: int) -> Bools:
        holds = np.empty((self._lines, rows), np.bool_)
        for column, blocks in zip(columns, self._blocks, strict=True):
            operand = _Operand(column, rows)
            for block in blocks:
                block.fill(operand, holds[block.start : block.stop])
        out = np.empty((self.size, rows), np.bool_)
        if len(self._plain):
            out[self._plain] = np.logical_and.reduceat(holds[self._parts], self._starts, axis=0)
        for number, rule in self._other:
            out[number] = _judge(rule, holds)
        return out


def _block_of(one: Comparison) -> tuple[int, str]:
    kind = 2 if one.value is None else 1 if isinstance(one.value, str) else 0
    return kind, one.op


def _same_block(one: Comparison, other: Comparison) -> bool:
    return one.operand == other.operand and _block_of(one) == _block_of(other)


def _conjunction(rule: Rule) -> list[int] | None:
    """The comparisons of a rule that is nothing but them, joined by AND."""
    match rule:
        case ("is", at):
            return [at]
        case ("and", rules):
            parts = [_conjunction(one) for one in rules]
            return None if None in parts else [at for part in parts if part is not None for at in part]
    return None


def _renamed(rule: Rule, line: dict[int, int]) -> Rule:
    match rule:
        case ("is", at):
            return ("is", line[at])
        case ("not", inner):
            return ("not", _renamed(inner, line))
    return rule[0], [_renamed(one, line) for one in rule[1]]


def _judge(rule: Rule, holds: Bools) -> Bools:
    match rule:
        case ("is", at):
            return holds[at]
        case ("not", inner):
            return ~_judge(inner, holds)
    found = _judge(rule[1][0], holds)
    for one in rule[1][1:]:
        found = found & _judge(one, holds) if rule[0] == "and" else found | _judge(one, holds)
    return found


class _Operand:
    """The values of one operand, made ready once for all that is compared with them."""

    def __init__(self, column: Column, rows: int) -> None:
        self.column = column
        self.rows = rows
        self.exact = True
        self.numbers: Any = None
        self.numeric: Bools | None = None  # None: every row, as in a part
        self.text: Any = None
        self.textual: Bools | None = None
        self.other: Bools | bool = False  # rows that hold something else
        self.kinds = column.kinds()
        for kind, data, mask in column.parts:
            if kind in (BIGINT, FLOAT, BIT):
                self._number(kind, data, mask)
            elif kind == TEXT:
                self.text, self.textual = data, mask

    def _number(self, kind: int, data: Any, mask: Bools | None) -> None:
        if kind == BIGINT and len(data) and (data.max() > _EXACT or data.min() < -_EXACT):
            self.exact = False
        found = data if kind == FLOAT else data.astype(np.float64)
        if self.numbers is None:
            self.numbers, self.numeric = found, mask
        else:
            assert mask is not None
            assert self.numeric is not None
            self.numbers, self.numeric = np.where(mask, found, self.numbers), self.numeric | mask

    def beside(self, mine: Bools | None, *, has: bool) -> Bools | None:
        """Rows that hold a value of another kind; None where there are none."""
        if has and mine is None:
            return None
        valid = self.column.valid()
        return valid if not has else valid & ~mine if mine is not None else None

    def codes(self, ids: dict[str, int]) -> Ints:
        """For each row the number of its text, -1 for any other."""
        texts = self.text.to_pylist()
        return np.fromiter(map(ids.get, texts, repeat(-1)), np.int64, len(texts))


class _Block:
    """Comparisons of one operand by one operator with constants of one kind: consecutive lines of the table."""

    def __init__(self, start: int, comparisons: Sequence[Comparison]) -> None:
        self.start, self.stop = start, start + len(comparisons)
        self.op = comparisons[0].op
        self.constants = [one.value for one in comparisons]
        self.kind = _block_of(comparisons[0])[0]
        self.exact = self.kind == 0 and all(isinstance(one, float) or abs(one) <= _EXACT for one in self.constants)  # type: ignore[arg-type]
        self.limits: Any = None
        if self.exact:
            self.limits = np.array(self.constants, np.float64)[:, None]
        if self.kind == 1:
            self.ids: dict[str, int] = {}
            numbers = [self.ids.setdefault(str(one), len(self.ids)) for one in self.constants]
            self.limits = np.array(numbers, np.int64)[:, None]

    def fill(self, operand: _Operand, out: Bools) -> None:
        if self.kind == 2:
            valid = operand.column.valid()
            out[:] = valid if self.op == "not null" else ~valid
        elif self.kind == 0 and self.exact and operand.exact:
            mine = operand.numeric
            has = operand.numbers is not None
            if has:
                _CALLS[self.op](operand.numbers, self.limits, out=out)
            self._rest(operand, mine, out, has=has)
        elif self.kind == 1 and self.op in ("=", "<>") and DATETIME not in operand.kinds:
            has = operand.text is not None
            if has:
                _CALLS[self.op](operand.codes(self.ids), self.limits, out=out)
            self._rest(operand, operand.textual, out, has=has)
        else:
            frame = Frame(np.zeros(operand.rows, np.int64), [])
            for line, value in enumerate(self.constants):
                out[line] = truth(compare(frame, self.op, operand.column, Constant(operand.rows, value)))

    def _rest(self, operand: _Operand, mine: Bools | None, out: Bools, *, has: bool) -> None:
        """Values of other kinds are unequal to the constant, and neither less nor greater; null is nothing."""
        if not has:
            out[:] = False
        elif mine is not None:
            out &= mine
        if self.op == "<>":
            beside = operand.beside(mine, has=has)
            if beside is not None:
                out |= beside
