"""Aggregates that keep values: COUNT(DISTINCT), Collect, TopOne and the percentiles. One Python object per group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from headrace.sql import tree, values
from headrace.sql.aggregate import Aggregate, ObjectAccumulator
from headrace.sql.convert import shown, type_name
from headrace.sql.dialect import Token
from headrace.sql.errors import Fault
from headrace.sql.evaluate import Eval, apply
from headrace.sql.moments import Moment
from headrace.sql.scope import fail
from headrace.sql.spec import Scalar
from headrace.sql.state import hashable, thawed
from headrace.sql.values import BIGINT, DATETIME, FLOAT, Column, Ints


def _sortable(value: Any) -> Any:
    if type(value) in (int, float, Moment):
        return value
    raise Fault(f"ORDER BY needs bigint, float or datetime, not {shown(value)} ({type_name(value)})", "cast_failed")


_SORTABLE = Scalar(
    "sortable", 1, 1, _sortable, {(kind,): (kind, lambda data: data) for kind in (BIGINT, FLOAT, DATETIME)}
)


def _ordering(node: tree.Node, bound: Eval) -> Eval:
    return lambda frame: apply(frame, _SORTABLE, [bound(frame)])


class _Distinct(ObjectAccumulator):
    """An ordered set of the values seen, per slot."""

    def new(self) -> dict[Any, None]:
        return {}

    def add(self, slots: Ints, args: Sequence[Column]) -> None:
        for slot, value in zip(slots.tolist(), args[0].to_list(), strict=True):
            if value is not None:
                self.items[slot][hashable(value)] = None

    def merge(self, into: Ints, other: Any, slots: Ints) -> None:
        for target, slot in zip(into.tolist(), slots.tolist(), strict=True):
            self.items[target].update(other.items[slot])

    def result(self, slots: Ints) -> Column:
        return values.from_values([len(self.items[slot]) for slot in slots.tolist()])

    def save(self, slots: Ints) -> Any:
        kept, self.items = self.items, [[thawed(value) for value in item] for item in self.items]
        try:
            return super().save(slots)
        finally:
            self.items = kept

    def load(self, slots: Ints, table: Any) -> None:
        super().load(slots, table)
        for slot in slots.tolist():
            self.items[slot] = {hashable(value): None for value in self.items[slot]}


class _Collect(ObjectAccumulator):
    """All values in order, nulls kept."""

    def new(self) -> list[Any]:
        return []

    def add(self, slots: Ints, args: Sequence[Column]) -> None:
        for slot, value in zip(slots.tolist(), args[0].to_list(), strict=True):
            self.items[slot].append(value)

    def merge(self, into: Ints, other: Any, slots: Ints) -> None:
        for target, slot in zip(into.tolist(), slots.tolist(), strict=True):
            self.items[target] += other.items[slot]

    def result(self, slots: Ints) -> Column:
        return values.from_values([list(self.items[slot]) or None for slot in slots.tolist()])


class _Ranked(ObjectAccumulator):
    """Events by ORDER BY, as [order values, value]. Null is the smallest."""

    def __init__(self, descending: Sequence[bool]) -> None:
        super().__init__()
        self.descending = list(descending)

    def _better(self, new: list[Any], held: list[Any]) -> bool:
        for value, other, descending in zip(new, held, self.descending, strict=True):
            if value == other:
                continue
            if value is None or other is None:
                less = value is None
            elif isinstance(value, Moment) == isinstance(other, Moment):
                less = value < other
            else:
                less = isinstance(other, Moment)  # numbers before datetimes
            return less != descending
        return False

    def _offer(self, slot: int, order: list[Any], value: Any) -> None:
        raise NotImplementedError

    def add(self, slots: Ints, args: Sequence[Column]) -> None:
        orders = zip(*(column.to_list() for column in args[1:]), strict=True)
        for slot, value, order in zip(slots.tolist(), args[0].to_list(), orders, strict=True):
            self._offer(slot, list(order), value)


class _TopOne(_Ranked):
    """The best event so far; of equal ones the first stays."""

    def new(self) -> Any:
        return None

    def _offer(self, slot: int, order: list[Any], value: Any) -> None:
        held = self.items[slot]
        if held is None or self._better(order, held[0]):
            self.items[slot] = [order, value]

    def merge(self, into: Ints, other: Any, slots: Ints) -> None:
        for target, slot in zip(into.tolist(), slots.tolist(), strict=True):
            held = other.items[slot]
            if held is not None:
                self._offer(target, held[0], held[1])

    def result(self, slots: Ints) -> Column:
        return values.from_values([None if (held := self.items[slot]) is None else held[1] for slot in slots.tolist()])


class _CollectTop(_Ranked):
    """The best `count` events so far, best first; equal ones in the order in which they came."""

    def __init__(self, descending: Sequence[bool], count: int) -> None:
        super().__init__(descending)
        self.count = count

    def new(self) -> list[Any]:
        return []

    def _offer(self, slot: int, order: list[Any], value: Any) -> None:
        held = self.items[slot]
        at = len(held)
        while at and self._better(order, held[at - 1][0]):
            at -= 1
        if at < self.count:
            held.insert(at, [order, value])
            del held[self.count :]

    def merge(self, into: Ints, other: Any, slots: Ints) -> None:
        for target, slot in zip(into.tolist(), slots.tolist(), strict=True):
            for order, value in other.items[slot]:
                self._offer(target, order, value)

    def result(self, slots: Ints) -> Column:
        return values.from_values([_listed(self.items[slot]) for slot in slots.tolist()])


def _listed(held: list[Any]) -> list[dict[str, Any]] | None:
    """The array that CollectTop gives; null for no event at all."""
    return [{"rank": at + 1, "value": value} for at, (_, value) in enumerate(held)] or None


class _Percentile(_Collect):
    """PERCENTILE_CONT interpolates between neighbours, PERCENTILE_DISC takes element max(1, ceil(p·n))."""

    def __init__(self, fraction: float, *, descending: bool, continuous: bool) -> None:
        super().__init__()
        self.fraction = fraction
        self.exact = Fraction(repr(fraction))  # 0.07 of 100 is 7, not the 8th
        self.descending = descending
        self.continuous = continuous

    def add(self, slots: Ints, args: Sequence[Column]) -> None:
        for slot, value in zip(slots.tolist(), args[0].to_list(), strict=True):
            if value is not None:
                self.items[slot].append(value)

    def result(self, slots: Ints) -> Column:
        return values.from_values([self._of(self.items[slot]) for slot in slots.tolist()])

    def _of(self, found: list[Any]) -> Any:
        if not found:
            return None
        ordered = sorted(found, key=_rank, reverse=self.descending)
        if not self.continuous:
            return ordered[max(1, math.ceil(self.exact * len(ordered))) - 1]
        rank = self.fraction * (len(ordered) - 1)
        low, high = ordered[math.floor(rank)], ordered[math.ceil(rank)]
        if isinstance(low, Moment) or isinstance(high, Moment):
            return low
        return float(low + (high - low) * (rank - math.floor(rank)))


def _rank(value: Any) -> tuple[bool, Any]:
    return isinstance(value, Moment), value


def _fraction(at: Token, constants: Sequence[Any]) -> None:
    fraction = constants[0] if constants else None
    if not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
        fail(at, f"the percentile must be a constant between 0 and 1, not {fraction!r}")


def _how_many(at: Token, constants: Sequence[Any]) -> None:
    if not constants or type(constants[0]) is not int or constants[0] < 1:
        given = repr(constants[0]) if constants else "nothing"
        fail(at, f"{at.text} needs a positive whole number of events first, not {given}", hint="CollectTop(3) OVER …")


def _percentile(name: str, *, continuous: bool) -> Aggregate:
    return Aggregate(
        name,
        0,
        1,
        lambda order, constants: _Percentile(float(constants[0]), descending=order[0], continuous=continuous),
        ordering=_ordering,
        ordered=True,
        constants=1,
        check=_fraction,
        per_row=True,
    )


DISTINCT = Aggregate("count distinct", 1, 1, lambda order, constants: _Distinct(), per_row=True)
COLLECT = Aggregate("collect", 0, 1, lambda order, constants: _Collect(), record=True, per_row=True)
TOPONE = Aggregate(
    "topone",
    0,
    1,
    lambda order, constants: _TopOne(order),
    ordering=_ordering,
    record=True,
    ordered=True,
    per_row=True,
)
COLLECTTOP = Aggregate(
    "collecttop",
    1,
    2,
    lambda order, constants: _CollectTop(order, constants[0]),
    ordering=_ordering,
    record=True,
    ordered=True,
    constants=1,
    check=_how_many,
    per_row=True,
)
PERCENTILE_CONT = _percentile("percentile_cont", continuous=True)
PERCENTILE_DISC = _percentile("percentile_disc", continuous=False)
