"""Columns whose values each have a type of their own.

A `Column` is a few typed *parts* over the same rows: row i belongs to the one part whose mask holds it, or to none (null).
The usual column has one part, so it costs what a plain array costs; a field that changes type from event to event has two
or three, and every kernel still runs on whole arrays. Data under a part's mask is meaningless and must not be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.sql.moments import Moment

BIGINT, FLOAT, BIT, DATETIME, TEXT, RECORD, ARRAY = range(7)
KIND_NAMES = ("bigint", "float", "bit", "datetime", "nvarchar(max)", "record", "array")
NUMBERS = (BIGINT, FLOAT)
INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_DTYPES: dict[int, Any] = {BIGINT: np.int64, FLOAT: np.float64, BIT: np.bool_, DATETIME: np.int64}
_KIND_OF: dict[type, int] = {
    int: BIGINT,
    float: FLOAT,
    bool: BIT,
    Moment: DATETIME,
    str: TEXT,
    dict: RECORD,
    list: ARRAY,
    type(None): -1,
}


class Part(NamedTuple):
    """Values of one kind. `data` is as long as the column: a NumPy array, or an Arrow string array for TEXT."""

    kind: int
    data: Any
    mask: Bools | None  # None: every row


def kind_of(value: Any) -> int:
    """The kind of a Python value; -1 for null."""
    return _KIND_OF[type(value)]


def blank(kind: int, rows: int) -> Any:
    """Data of `rows` meaningless values."""
    if kind == TEXT:
        return pa.nulls(rows, pa.string())
    if kind in _DTYPES:
        return np.zeros(rows, _DTYPES[kind])
    return np.empty(rows, object)


class Column:
    """`rows` values. `parts` have disjoint masks; a row in none of them is null."""

    __slots__ = ("parts", "rows")

    def __init__(self, rows: int, parts: Sequence[Part] = ()) -> None:
        self.rows = rows
        self.parts = tuple(parts)

    @property
    def constant(self) -> bool:
        return False

    def only(self, kind: int) -> Any | None:
        """The data if every row is of `kind`, else None."""
        if len(self.parts) == 1 and self.parts[0].kind == kind and self.parts[0].mask is None:
            return self.parts[0].data
        return None

    def valid(self) -> Bools:
        """Which rows are not null."""
        found: Bools | None = None
        for part in self.parts:
            if part.mask is None:
                return np.ones(self.rows, np.bool_)
            found = part.mask if found is None else found | part.mask
        return np.zeros(self.rows, np.bool_) if found is None else found

    def kinds(self) -> set[int]:
        return {part.kind for part in self.parts}

    def take(self, at: Ints) -> Column:
        """Rows by position; -1 gives null."""
        missing = at < 0
        some_missing = bool(missing.any())
        parts: list[Part] = []
        for kind, data, mask in self.parts:
            if self.rows == 0:
                continue
            taken = data.take(pa.array(at if not some_missing else np.maximum(at, 0))) if kind == TEXT else data[at]
            kept = None if mask is None else mask[at]
            if some_missing:
                kept = ~missing if kept is None else kept & ~missing
            if kept is None or kept.any():
                parts.append(Part(kind, taken, None if kept is not None and kept.all() else kept))
        return Column(len(at), parts)

    def slice(self, start: int, stop: int) -> Column:
        parts = []
        for kind, data, mask in self.parts:
            cut = data.slice(start, stop - start) if kind == TEXT else data[start:stop]
            parts.append(Part(kind, cut, None if mask is None else mask[start:stop]))
        return Column(stop - start, parts)

    def where(self, keep: Bools) -> Column:
        """The same rows, null where `keep` is false."""
        if keep.all():
            return self
        parts = [Part(kind, data, keep if mask is None else mask & keep) for kind, data, mask in self.parts]
        return Column(self.rows, [part for part in parts if part.mask is not None and part.mask.any()])

    def to_list(self) -> list[Any]:
        """Python values: int, float, bool, Moment, str, dict, list or None."""
        if len(self.parts) == 1 and self.parts[0].mask is None:
            return _listed(self.parts[0].kind, self.parts[0].data)
        out: list[Any] = [None] * self.rows
        for kind, data, mask in self.parts:
            if mask is None:
                return _listed(kind, data)
            at = np.flatnonzero(mask)
            chosen = data.take(pa.array(at)) if kind == TEXT else data[at]
            for row, value in zip(at.tolist(), _listed(kind, chosen), strict=True):
                out[row] = value
        return out

    def to_arrow(self) -> pa.Array:
        """One Arrow array with nulls. Numbers of both kinds become float64; other mixtures become their text."""
        kinds = self.kinds()
        if not kinds:
            return pa.nulls(self.rows)
        if len(kinds) == 1:
            kind, data, mask = self.parts[0]
            if kind == TEXT:
                return data if mask is None else pc.if_else(pa.array(mask), data, pa.scalar(None, pa.string()))
            if kind in _DTYPES:
                return pa.array(data, mask=None if mask is None else ~mask)
            return pa.array(self.to_list())
        if kinds <= {BIGINT, FLOAT, BIT}:
            numbers = np.zeros(self.rows)
            for _, data, mask in self.parts:
                assert mask is not None
                numbers[mask] = data[mask]
            return pa.array(numbers, mask=~self.valid())
        return pa.array([None if value is None else str(value) for value in self.to_list()], pa.string())


class Constant(Column):
    """The same value in every row; arrays are made only where a kernel cannot take one value."""

    __slots__ = ("value",)

    def __init__(self, rows: int, value: Any) -> None:
        super().__init__(rows)
        self.value = value
        if value is not None:
            self.parts = (Part(kind_of(value), Repeat(rows, value), None),)

    @property
    def constant(self) -> bool:
        return True

    def spread(self) -> Column:
        """As a plain column."""
        if self.value is None:
            return Column(self.rows)
        kind = kind_of(self.value)
        if kind == TEXT:
            return Column(self.rows, [Part(TEXT, pa.repeat(pa.scalar(self.value, pa.string()), self.rows), None)])
        if kind in _DTYPES:
            value = self.value.ticks if kind == DATETIME else self.value
            return Column(self.rows, [Part(kind, np.full(self.rows, value, _DTYPES[kind]), None)])
        data = np.empty(self.rows, object)
        for row in range(self.rows):
            data[row] = self.value
        return Column(self.rows, [Part(kind, data, None)])

    def take(self, at: Ints) -> Column:
        return Constant(len(at), self.value) if not (at < 0).any() else self.spread().take(at)

    def slice(self, start: int, stop: int) -> Column:
        return Constant(stop - start, self.value)

    def where(self, keep: Bools) -> Column:
        return self if keep.all() else self.spread().where(keep)

    def to_list(self) -> list[Any]:
        return [self.value] * self.rows

    def to_arrow(self) -> pa.Array:
        return self.spread().to_arrow()


class Struct(Column):
    """Records with the same fields, kept as a column per field. Dicts are made only where somebody asks for them.

    `present` says which rows have a record; the others are null, and so are their fields.
    """

    __slots__ = ("_made", "fields", "present")

    def __init__(self, fields: Mapping[str, Column], present: Bools) -> None:
        self.rows = len(present)
        self.fields = dict(fields)
        self.present = present
        self._made: tuple[Part, ...] | None = None

    @property
    def parts(self) -> tuple[Part, ...]:  # type: ignore[override]
        if self._made is None:
            data = np.empty(self.rows, object)
            rows = zip(*(column.to_list() for column in self.fields.values()), strict=True)
            data[:] = [dict(zip(self.fields, row, strict=True)) for row in rows]
            self._made = of(RECORD, data, self.present).parts
        return self._made

    def field(self, name: str) -> Column:
        """One field of all records, exact spelling first."""
        found = self.fields.get(name)
        if found is None:
            found = next((column for key, column in self.fields.items() if key.lower() == name.lower()), None)
        return Column(self.rows) if found is None else found

    def valid(self) -> Bools:
        return self.present.copy()

    def kinds(self) -> set[int]:
        return {RECORD} if self.present.any() else set()

    def take(self, at: Ints) -> Column:
        present = (at >= 0) & self.present[at] if self.rows else np.zeros(len(at), np.bool_)
        return Struct({name: column.take(at) for name, column in self.fields.items()}, present)

    def slice(self, start: int, stop: int) -> Column:
        fields = {name: column.slice(start, stop) for name, column in self.fields.items()}
        return Struct(fields, self.present[start:stop])

    def where(self, keep: Bools) -> Column:
        if keep.all():
            return self
        return Struct({name: column.where(keep) for name, column in self.fields.items()}, self.present & keep)


class Repeat(NamedTuple):
    """The data of a Constant's part: not an array. Kernels ask for `.value`."""

    rows: int
    value: Any


def plain(column: Column) -> Column:
    """The column with real arrays in its parts."""
    return column.spread() if isinstance(column, Constant) else column


def _listed(kind: int, data: Any) -> list[Any]:
    if kind == TEXT:
        return data.to_pylist()  # type: ignore[no-any-return]
    if kind == DATETIME:
        return [Moment(ticks) for ticks in data.tolist()]
    return data.tolist()  # type: ignore[no-any-return]


def of(kind: int, data: Any, mask: Bools | None = None) -> Column:
    """A column of one kind."""
    if mask is not None:
        if mask.all():
            mask = None
        elif not mask.any():
            return Column(len(data))
    return Column(len(data), [Part(kind, data, mask)])


def typed(kind: int, values: Sequence[Any]) -> Any:
    """Data of one kind from Python values that all are of it. Raises OverflowError for integers beyond 64 bits."""
    if kind == TEXT:
        return pa.array(values, pa.string())
    if kind == DATETIME:
        return np.array([value.ticks for value in values], np.int64)
    if kind in _DTYPES:
        return np.array(values, _DTYPES[kind])
    data = np.empty(len(values), object)
    for row, value in enumerate(values):  # np.array would turn lists of equal length into a matrix
        data[row] = value
    return data


def from_values(values: Sequence[Any], types: set[type] | None = None) -> Column:
    """A column from Python values; integers must fit 64 bits. `types` are the values' types where known already."""
    rows = len(values)
    types = set(map(type, values)) if types is None else set(types)
    if len(types) == 1:
        kind = _KIND_OF[types.pop()]
        return Column(rows) if kind < 0 or rows == 0 else Column(rows, [Part(kind, typed(kind, values), None)])
    codes = np.fromiter(map(_KIND_OF.__getitem__, map(type, values)), np.int8, rows)
    parts: list[Part] = []
    for kind in sorted({_KIND_OF[type_] for type_ in types} - {-1}):
        mask = codes == kind
        at = np.flatnonzero(mask)
        some = typed(kind, [values[row] for row in at.tolist()])
        parts.append(Part(kind, spread_out(kind, some, at, rows), mask))
    return Column(rows, parts)


def spread_out(kind: int, some: Any, at: Ints, rows: int) -> Any:
    """Data of `rows` values with `some` at the positions `at`."""
    if kind == TEXT:
        back = np.zeros(rows, np.int64)
        back[at] = np.arange(len(at))
        return some.take(pa.array(back))
    data = blank(kind, rows)
    data[at] = some
    return data


def concat(columns: Sequence[Column]) -> Column:
    """Columns one after the other."""
    if len(columns) == 1:
        return columns[0]
    columns = [plain(column) for column in columns]
    rows = sum(column.rows for column in columns)
    parts: list[Part] = []
    for kind in sorted(set().union(*(column.kinds() for column in columns))):
        data: list[Any] = []
        masks: list[Bools] = []
        for column in columns:
            part = next((part for part in column.parts if part.kind == kind), None)
            if part is None:
                data.append(blank(kind, column.rows))
                masks.append(np.zeros(column.rows, np.bool_))
            else:
                data.append(part.data)
                masks.append(np.ones(column.rows, np.bool_) if part.mask is None else part.mask)
        joined = _join_text(data) if kind == TEXT else np.concatenate(data)
        mask = np.concatenate(masks)
        parts.append(Part(kind, joined, None if mask.all() else mask))
    return Column(rows, parts)


def _join_text(arrays: list[Any]) -> pa.Array:
    return pa.concat_arrays([pa.array(array) if not isinstance(array, pa.Array) else array for array in arrays])


def merge(rows: int, pieces: Iterable[tuple[Bools | None, Column]]) -> Column:
    """One column from several: each row is taken from the piece whose mask holds it (masks are disjoint)."""
    gathered: dict[int, list[tuple[Any, Bools | None]]] = {}
    for chosen, column in pieces:
        for kind, data, mask in plain(column).parts:
            both = mask if chosen is None else (chosen if mask is None else chosen & mask)
            if both is None or both.any():
                gathered.setdefault(kind, []).append((data, both))
    parts: list[Part] = []
    for kind, found in sorted(gathered.items(), key=lambda item: item[0]):
        data, mask = found[0]
        for more, more_mask in found[1:]:
            assert mask is not None
            assert more_mask is not None
            data = pc.if_else(pa.array(more_mask), more, data) if kind == TEXT else np.where(more_mask, more, data)
            mask = mask | more_mask
        parts.append(Part(kind, data, None if mask is not None and mask.all() else mask))
    return Column(rows, parts)


def by_row(rows: int, call: Callable[[int], Any]) -> Column:
    """The per-row fallback: `call(row)` for each row."""
    return from_values([call(row) for row in range(rows)])
