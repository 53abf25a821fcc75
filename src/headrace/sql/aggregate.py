"""What an aggregate is: a spec, and an accumulator that keeps its state in slots, one per open group.

Rows are always added in their order, one after the other within a slot, so a result does not depend on how the stream was
cut into batches. `merge` joins the panes of a hopping window in time order for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from headrace.sql import tree
from headrace.sql.dialect import Token
from headrace.sql.evaluate import Eval
from headrace.sql.state import pack, unpack
from headrace.sql.values import RECORD, Bools, Column, Ints, Part


class Failed(NamedTuple):
    """Stands in a result where the aggregate of a group has none. The SELECT makes a fault of it, so that one group is set
    aside and the others go on.
    """

    reason: str
    detail: str


def failed(rows: int, where: Bools, how: Sequence[Failed] | Failed) -> Column:
    """A column with `how` at the rows in `where` (one for all, or one for each of them), null elsewhere."""
    data = np.empty(rows, object)
    for number, row in enumerate(np.flatnonzero(where).tolist()):
        data[row] = how if isinstance(how, Failed) else how[number]
    return Column(rows, [Part(RECORD, data, where)])


class Accumulator:
    """State of one aggregate over all open groups."""

    def reserve(self, slots: int) -> None:
        """Make room for slots 0 to `slots` - 1; new ones are empty."""
        raise NotImplementedError

    def add(self, slots: Ints, args: Sequence[Column]) -> None:
        """Add row i to slot `slots[i]`, in order."""
        raise NotImplementedError

    def merge(self, into: Ints, other: Any, slots: Ints) -> None:
        """Add slot `slots[i]` of `other` to slot `into[i]`, in order."""
        raise NotImplementedError

    def spans(self, args: Sequence[Column], low: Ints, high: Ints) -> bool:
        """Make slot i of a fresh accumulator the aggregate of rows `low[i]` to `high[i]` - 1, all at once. False: it cannot,
        so the rows must be added.
        """
        return False

    def result(self, slots: Ints) -> Column:
        raise NotImplementedError

    def clear(self, slots: Ints) -> None:
        raise NotImplementedError

    def save(self, slots: Ints) -> pa.Table:
        raise NotImplementedError

    def load(self, slots: Ints, table: pa.Table) -> None:
        raise NotImplementedError


def _as_is(node: tree.Node, bound: Eval) -> Eval:
    return bound


def _any_constants(at: Token, constants: Sequence[Any]) -> None:
    return None


class Aggregate(NamedTuple):
    """An aggregate function. `make(descending, constants)` gives a new accumulator.

    `argument` may wrap the bound argument (MIN casts text, say). `record`: without arguments it takes the whole event.
    `ordered`: needs OVER (ORDER BY ...), whose values follow the arguments. `constants`: how many leading arguments are
    constants, judged by `check`.
    """

    name: str
    least: int
    most: int
    make: Callable[[Sequence[bool], Sequence[Any]], Accumulator]
    argument: Callable[[tree.Node, Eval], Eval] = _as_is
    ordering: Callable[[tree.Node, Eval], Eval] = _as_is
    record: bool = False
    ordered: bool = False
    constants: int = 0
    check: Callable[[Token, Sequence[Any]], None] = _any_constants
    per_row: bool = False
    doc: str = ""


class ArrayAccumulator(Accumulator):
    """State in NumPy arrays, one element a slot."""

    fields: ClassVar[dict[str, tuple[Any, Any]]]  # name -> dtype, value of an empty slot

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {name: np.full(0, empty, dtype) for name, (dtype, empty) in self.fields.items()}

    def reserve(self, slots: int) -> None:
        have = len(next(iter(self.arrays.values())))
        if slots <= have:
            return
        more = max(slots, have * 2, 64) - have
        for name, (dtype, empty) in self.fields.items():
            self.arrays[name] = np.concatenate([self.arrays[name], np.full(more, empty, dtype)])

    def clear(self, slots: Ints) -> None:
        for name, (_, empty) in self.fields.items():
            self.arrays[name][slots] = empty

    def save(self, slots: Ints) -> pa.Table:
        return pa.table({name: pa.array(array[slots]) for name, array in self.arrays.items()})

    def load(self, slots: Ints, table: pa.Table) -> None:
        for name in self.fields:
            self.arrays[name][slots] = table.column(name).to_numpy()


class ObjectAccumulator(Accumulator):
    """State as one Python object a slot: for aggregates that keep values. Slower, marked in EXPLAIN."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    def new(self) -> Any:
        raise NotImplementedError

    def reserve(self, slots: int) -> None:
        self.items += [self.new() for _ in range(slots - len(self.items))]

    def clear(self, slots: Ints) -> None:
        for slot in slots.tolist():
            self.items[slot] = self.new()

    def save(self, slots: Ints) -> pa.Table:
        return pa.table({"value": pa.array([pack(self.items[slot]) for slot in slots.tolist()], pa.binary())})

    def load(self, slots: Ints, table: pa.Table) -> None:
        for slot, data in zip(slots.tolist(), table.column("value").to_pylist(), strict=True):
            self.items[slot] = unpack(data)
