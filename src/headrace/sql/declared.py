"""CREATE TABLE: the declared payload of an input. What does not fit is refused, what fits has the declared type.

Null fits every type, an absent field none. Nothing is converted between formats, but ISO 8601 text is a datetime where one is
declared, and a bigint a float.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from headrace.sql import values
from headrace.sql.calls import from_arrow
from headrace.sql.decode import VIRTUAL, Payload
from headrace.sql.moments import parse_moments
from headrace.sql.rows import Named, Rows
from headrace.sql.values import ARRAY, BIGINT, BIT, DATETIME, FLOAT, RECORD, TEXT, Bools, Column, Ints

_KINDS = {
    "bigint": BIGINT,
    "float": FLOAT,
    "nvarchar": TEXT,
    "datetime": DATETIME,
    "bit": BIT,
    "record": RECORD,
    "array": ARRAY,
}
Declared = Sequence[tuple[str, str]]
"""Column names and types, as CREATE TABLE lists them."""


def fit(column: Column, type: str) -> tuple[Column, Bools]:
    """The column as the declared type, and which rows fit it."""
    wanted = _KINDS[type]
    column = values.plain(column)
    good = ~column.valid()
    pieces: list[tuple[Bools, Column]] = []
    for kind, data, mask in column.parts:
        fits = np.ones(column.rows, np.bool_) if mask is None else mask
        if kind == wanted:
            found = data
            if kind == FLOAT:
                fits = fits & np.isfinite(data)
        elif kind == BIGINT and wanted == FLOAT:
            found = data.astype(np.float64)
        elif kind == TEXT and wanted == DATETIME:
            found, iso = parse_moments(data)
            fits = fits & iso
        else:
            continue
        good = good | fits
        pieces.append((fits, values.of(wanted, found)))
    return (values.merge(column.rows, pieces) if pieces else Column(column.rows)), good


def check(payload: Payload, declared: Declared) -> tuple[Ints, list[str]]:
    """The rows that do not fit, ascending, and what is wrong with each."""
    wrong: dict[int, str] = {}
    for name, type in declared:
        column = payload.column(name)
        _, good = fit(column, type)
        for row in np.flatnonzero(~good).tolist():
            wrong.setdefault(row, f"column {name!r} does not fit {type}")
        empty = np.flatnonzero(~column.valid())
        lowered = name.lower()
        for row, record in zip(empty.tolist(), payload.take(empty).records() if len(empty) else (), strict=True):
            if not any(key.lower() == lowered for key in record):
                wrong.setdefault(row, f"column {name!r} is missing")
    rows = sorted(wrong)
    return np.array(rows, np.int64), [wrong[row] for row in rows]


def typed(rows: Rows, declared: Declared) -> Rows:
    """Rows of checked payloads with their declared columns, and what every event has beside them."""
    columns = [Named(name, fit(rows.column(name), type)[0]) for name, type in declared]
    if rows.origin is None:
        return Rows(rows.times, columns)
    return Rows(rows.times, [*columns, _Beside(rows.origin)], rows.origin)


def typed_table(table: pa.Table, declared: Declared) -> pa.Table:
    """Reference data whose rows fit the declaration; others are left out. Columns it does not have are null."""
    keep = np.ones(table.num_rows, np.bool_)
    for name, type in declared:
        found = next((known for known in table.column_names if known.lower() == name.lower()), None)
        if found is None:
            return table.slice(0, 0)
        keep &= fit(from_arrow(table.column(found)), type)[1]
    return table.filter(pa.array(keep))


class _Beside:
    """The names that every event has beside its payload; never part of `*`."""

    def __init__(self, origin: Payload) -> None:
        self.origin = origin

    def column(self, name: str) -> Column:
        return self.origin.column(name) if name.lower() in VIRTUAL else Column(self.origin.rows)

    def records(self) -> list[dict[str, object]]:
        return [{} for _ in range(self.origin.rows)]

    def take(self, at: Ints) -> _Beside:
        return _Beside(self.origin.take(np.maximum(at, 0)))
