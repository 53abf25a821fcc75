"""Aggregates over spans of rows: each result covers a run of neighbours in an order by key and time.

Sliding windows and aggregates with OVER both come down to this. Counts, sums, extremes and variances are put together from
nodes of doubling length (`sql/doubling.py`); what keeps values (Collect, TopOne, ...) is added up anew for every span, in
blocks, so that memory stays flat. Either way a result depends on the span's own rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from headrace.sql import values
from headrace.sql.aggregate import Accumulator
from headrace.sql.arrays import expand
from headrace.sql.values import Column, Ints

_PAIRS_MAX = 1 << 20


def count_upto(codes: Ints, times: Ints, at_codes: Ints, at_times: Ints) -> Ints:
    """For each (code, time) asked, how many of the given (code, time) are not above it, codes compared first.

    What is given is sorted so; questions are answered fastest in that order, too.
    """
    if not len(codes) or not len(at_codes):
        return np.zeros(len(at_codes), np.int64)
    least, most = int(times.min()), int(times.max())
    length = most - least + 2
    if length * (max(int(codes[-1]), int(at_codes.max())) + 1) < 1 << 62:
        given = codes * length + (times - least + 1)
        # Times outside the range count as its ends. The codes of questions may be negative: nothing is up to those.
        asked = at_codes * length + (np.clip(at_times, least - 1, most) - least + 1)
        return np.searchsorted(given, asked, side="right")
    have = len(codes)
    code = np.concatenate([codes, at_codes])
    time = np.concatenate([times, at_times])
    later = np.arange(len(code)) >= have
    order = np.lexsort((later, time, code))
    counts = np.cumsum(~later[order])
    out = np.empty(len(code), np.int64)
    out[order] = counts
    return out[have:]


def aggregate_spans(
    make: Callable[[], list[Accumulator]], args: Sequence[Sequence[Column]], order: Ints, low: Ints, high: Ints
) -> list[Column]:
    """Each aggregate over the rows `order[low:high]` of every span. Spans may be empty."""
    everything = np.arange(len(low))
    results: list[Column] = []
    for at, (accumulator, columns) in enumerate(zip(make(), args, strict=True)):
        accumulator.reserve(len(low))
        ordered = [values.plain(column).take(order) for column in columns]
        if accumulator.spans(ordered, low, high):
            results.append(accumulator.result(everything))
        else:
            results.append(_one_by_one(lambda at=at: make()[at], ordered, low, high))  # type: ignore[misc]
    return results


def _one_by_one(make: Callable[[], Accumulator], args: Sequence[Column], low: Ints, high: Ints) -> Column:
    """Every row of every span added, in order."""
    pieces: list[Column] = []
    ends = np.cumsum(high - low)
    start = 0
    while start < len(low) or not pieces:
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + _PAIRS_MAX, side="right")), start + 1) if len(low) else 0
        span, rows = expand(low[start:stop], high[start:stop])
        slots = np.arange(stop - start)
        accumulator = make()
        accumulator.reserve(len(slots))
        if len(rows):
            accumulator.add(span, [column.take(rows) for column in args])
        pieces.append(accumulator.result(slots))
        start = max(stop, 1)
    return values.concat(pieces)
