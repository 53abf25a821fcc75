"""Numbers for models out of Arrow columns.

Nulls become NaN here; whether a model may see them is its algorithm's business, and never silently replaced by zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import DataError, NotFound, UserError, nearest

Floats = npt.NDArray[np.float64]
_NUMERIC = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)


def numbers(column: pa.Array | pa.ChunkedArray, name: str) -> Floats:
    """One column as float64, nulls as NaN. Raises UserError for a column that is neither number nor Boolean."""
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if not any(check(kind) for check in _NUMERIC):
        raise UserError(
            f"column {name!r} holds {kind}, a model needs numbers",
            hint="leave it out of `features`, or turn it into a number first",
            code="ml.feature_type",
        )
    made: Floats = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return made


def column_of(table: pa.Table, name: str) -> pa.ChunkedArray:
    """The named column; NotFound that names the nearest one."""
    if name not in table.column_names:
        raise NotFound(
            f"the table has no column {name!r}",
            hint=nearest(name, table.column_names) or f"it has: {', '.join(table.column_names[:40])}",
            code="ml.column",
        )
    return table[name]


def matrix(table: pa.Table, features: Sequence[str]) -> Floats:
    """Shape (rows, features), C order, nulls as NaN. Raises NotFound, UserError."""
    made = np.empty((table.num_rows, len(features)))
    for place, name in enumerate(features):
        made[:, place] = numbers(column_of(table, name).combine_chunks(), name)
    return made


def arguments(columns: Sequence[pa.Array], features: Sequence[str]) -> Floats:
    """As `matrix`, from the columns of a call in SQL."""
    made = np.empty((len(columns[0]), len(features)))
    for place, (column, name) in enumerate(zip(columns, features, strict=True)):
        made[:, place] = numbers(column, name)
    return made


def group_labels(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    """Each row's group (engine, machine) as a small integer."""
    encoded = pc.dictionary_encode(column_of(table, name).combine_chunks(), null_encoding="encode")
    made: npt.NDArray[np.int64] = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return made


def rolling_means(
    table: pa.Table, columns: Sequence[str], *, group: str, order: str, windows: Sequence[int]
) -> pa.Table:
    """The table sorted by group and order, with `<column>_mean<w>` added: the mean of the last w rows of the group.

    A row sees itself and rows before it only; the first rows of a group average what there is. Nulls are not allowed
    (DataError): a mean over a gap would look like data.
    """
    rows = table.sort_by([(group, "ascending"), (order, "ascending")])
    labels = group_labels(rows, group)
    heads = np.concatenate(([True], labels[1:] != labels[:-1]))
    place = np.arange(len(labels))
    begin = np.maximum.accumulate(np.where(heads, place, 0))
    for column in columns:
        values = numbers(column_of(rows, column).combine_chunks(), column)
        if np.isnan(values).any():
            raise DataError(f"column {column!r} has empty values", hint="fill or drop them before rolling means")
        centre = float(values.mean()) if len(values) else 0.0  # keeps the running sum small, and so exact
        total = np.concatenate(([0.0], np.cumsum(values - centre)))
        for window in windows:
            since = np.maximum(begin, place - window + 1)
            mean = (total[place + 1] - total[since]) / (place + 1 - since) + centre
            rows = rows.append_column(f"{column}_mean{window}", pa.array(mean))
    return rows
