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
from headrace.sql.arrays import expand, sorted_pairs
from headrace.sql.values import Bools, Column, Ints

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


def changes(ids: Ints, times: Ints, size: int, come: Bools, go: Bools) -> tuple[Ints, Ints, Ints, Ints]:
    """For rows sorted by id and time: the distinct instants at which rows that `come` arrive, or rows that `go` leave `size`
    later. For each, in order: its id, the instant, and the rows [low, high) of that id that then lie in the last `size`.

    `come` are the last rows of every id, `go` the first, and no row that stays would have left by the last instant.
    """
    if not len(ids):
        return ids, times, ids, ids
    least, most = int(times.min()), int(times.max())
    length = most - least + size + 1
    few = 2 * (np.count_nonzero(come) + np.count_nonzero(go)) < len(
        ids
    )  # looking each up costs less than a pass over all
    if few or length * (int(ids[-1]) + 1) >= 1 << 60:
        at, ends = sorted_pairs(np.concatenate([ids[come], ids[go]]), np.concatenate([times[come], times[go] + size]))
        return at, ends, count_upto(ids, times, at, ends - size), count_upto(ids, times, at, ends)
    # Arrivals and departures are two sorted runs, which a stable sort merges. Each number is the row's place in
    # (id, time), then whether it is a departure (2), then whether something changes (1).
    own = ids * length + (times - least)
    merged = np.sort(np.concatenate([own * 4 + come, (own[go] + size) * 4 + 3]), kind="stable")
    place = merged >> 2
    last = np.append(place[1:] != place[:-1], True)
    at = np.flatnonzero(last & (merged & 1).astype(np.bool_))
    arrived = np.cumsum(merged & 2 == 0)[at]
    left = at + 1 - arrived
    place = place[at]
    found = place // length
    rows, gone = np.bincount(ids), np.bincount(ids[go], minlength=int(ids[-1]) + 1)
    before = np.cumsum(rows - gone) - (rows - gone)  # rows of ids below that do not leave
    return found, place - found * length + least, left + before[found], arrived


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
