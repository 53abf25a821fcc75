"""Fewer points of a long series, such that what stands out still does.

Time is cut into equal buckets; of each bucket and field the rows with the smallest and the largest value stay. A spike of
one reading among a million is an extreme of its bucket, so it stays; an average would have hidden it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Integers = npt.NDArray[np.int64]


def thin(rows: pa.Table, fields: Sequence[str], points_max: int, *, time: str = "_enqueued") -> pa.Table:
    """At most `points_max` of the rows, which are ordered by `time` (int64); all of them where they are no more.

    Fields of numbers decide; without any, every n-th row stays. First and last row stay. O(n).
    """
    if rows.num_rows <= points_max:
        return rows
    numbers = [name for name in fields if pa.types.is_floating(rows.schema.field(name).type)]
    if not numbers or points_max < 2 * len(numbers) + 2:
        return rows.take(pa.array(np.linspace(0, rows.num_rows - 1, points_max).astype(np.int64)))
    buckets = _buckets(rows[time].to_numpy(), (points_max - 2) // (2 * len(numbers)))
    keep = np.zeros(rows.num_rows, bool)
    keep[[0, -1]] = True
    for name in numbers:
        keep[_extremes(rows[name], buckets)] = True
    return rows.filter(pa.array(keep))


def _buckets(times: Integers, count: int) -> Integers:
    """Which of `count` equal spans each time lies in."""
    first, span = int(times[0]), int(times[-1] - times[0]) + 1
    found: Integers = ((times - first) / span * count).astype(np.int64)
    return found


def _extremes(column: pa.ChunkedArray, buckets: Integers) -> Integers:
    """Row numbers of the first smallest and the first largest value in each bucket, nulls and NaN left out."""
    values = pc.fill_null(column, np.nan).to_numpy()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(buckets)) + 1])  # rows are in order of time, so of bucket
    lengths = np.diff(np.append(starts, len(values)))
    found: list[Integers] = []
    for extreme in (np.fmin, np.fmax):
        rows = np.flatnonzero(values == np.repeat(extreme.reduceat(values, starts), lengths))
        found.append(rows[np.unique(buckets[rows], return_index=True)[1]])
    return np.concatenate(found)
