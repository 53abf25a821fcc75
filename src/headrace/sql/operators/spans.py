"""Aggregates over spans of rows: each result covers a run of neighbours in an order by key and time.

Sliding windows and aggregates with OVER both come down to this. A span's rows are added one by one in time order to an
empty accumulator, never subtracted again, so a result is the same whatever was computed before it. The cost is the total
length of the spans; they are worked off in blocks, so memory stays flat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from headrace.sql import values
from headrace.sql.aggregate import Accumulator
from headrace.sql.values import Column, Ints

_PAIRS_MAX = 1 << 20


def count_upto(codes: Ints, times: Ints, at_codes: Ints, at_times: Ints) -> Ints:
    """For each (code, time) asked, how many of the given (code, time) are not above it, codes compared first."""
    have = len(codes)
    code = np.concatenate([codes, at_codes])
    time = np.concatenate([times, at_times])
    asked = np.arange(len(code)) >= have
    order = np.lexsort((asked, time, code))
    counts = np.cumsum(~asked[order])
    out = np.empty(len(code), np.int64)
    out[order] = counts
    return out[have:]


def expand(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """For spans [low, high): the number of the span and the position, element by element."""
    lengths = high - low
    total = int(lengths.sum())
    span = np.repeat(np.arange(len(low)), lengths)
    begin = np.cumsum(lengths) - lengths
    return span, np.arange(total) - begin[span] + low[span]


def aggregate_spans(
    make: Callable[[], list[Accumulator]], args: Sequence[Sequence[Column]], order: Ints, low: Ints, high: Ints
) -> list[Column]:
    """Each aggregate over the rows `order[low:high]` of every span. Spans may be empty."""
    pieces: list[list[Column]] = []
    ends = np.cumsum(high - low)
    start = 0
    while start < len(low) or not pieces:
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + _PAIRS_MAX, side="right")), start + 1) if len(low) else 0
        span, position = expand(low[start:stop], high[start:stop])
        rows = order[position]
        slots = np.arange(stop - start)
        accumulators = make()
        for accumulator, columns in zip(accumulators, args, strict=True):
            accumulator.reserve(len(slots))
            if len(rows):
                accumulator.add(span, [column.take(rows) for column in columns])
        pieces.append([accumulator.result(slots) for accumulator in accumulators])
        start = max(stop, 1)
    return [values.concat(list(columns)) for columns in zip(*pieces, strict=True)]
