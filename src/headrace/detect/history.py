"""The recent past of many series at once: what a detector compares each new value with.

A batch is laid out as one flat array: for each key its last `history` values from the state, then its new events, with
imputed values between them. The past of an event is then the `history` places before it, so all events are scored
together however they are spread over keys, and a row of the matrix holds the same numbers in the same places whatever
the batch cuts. State is 16·history + 8 bytes a live key.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view

from headrace.core.errors import DataError, UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NEVER = -(1 << 63)
VALUE_MAX = 1e150  # squares must not overflow
_PIECE = 1_000_000  # elements of the flat array at most, so memory does not follow the caller's batch


@dataclass(frozen=True, slots=True)
class Laid:
    """Events sorted by key, with their past. Every array has one element an event but `flat`."""

    order: Ints  # sorted event -> its place in the caller's batch
    slots: Ints  # where the event's key lives in the state
    starts: Bools  # first event of a key here, or the first after everything was forgotten
    fresh: Bools  # nothing of the past is within the duration: the series begins (again) here
    lasts: Bools  # last event of a key here
    values: Floats
    counts: Ints  # how many past values are within the duration, 0..history
    ready: Bools
    flat: Floats
    places: Ints  # the event's place in `flat`


class History:
    """Ring-free history buffers for dense integer keys, imputation, forgetting and readiness.

    `history` values and `duration` ticks bound what is remembered: a value at h counts for an event at t if
    t - h < duration. When a key was silent for more than 1.5 spacings (duration / history), its last value is inserted
    at the missing places, at most `history` times. Once nothing is left the series starts afresh.
    """

    def __init__(self, history: int, duration: int) -> None:
        if not 1 <= history <= 100_000:
            raise UserError(
                f"history size {history} is not between 1 and 100,000",
                hint="give the number of events to compare with, 120 say",
                code="detect.history",
            )
        if not 1 <= duration < (1 << 43) or 6 * duration * history >= 1 << 63:
            raise UserError(
                f"duration of {duration} ticks is not between 1 tick and 10 days",
                hint="LIMIT DURATION(second, 120) fits a history of 120 events at one a second",
                code="detect.duration",
            )
        self.history, self.duration = history, duration
        self._slot_of: Ints = np.empty(0, np.int64)  # key -> slot, -1 for none
        self._free: list[int] = []
        self._used = 0
        self.values: Floats = np.empty((0, history))
        self.times: Ints = np.empty((0, history), np.int64)
        self.observed: Ints = np.empty(0, np.int64)  # since when the key has been seen without a full gap

    @property
    def capacity(self) -> int:
        return len(self.observed)

    @property
    def live(self) -> int:
        """How many keys have state."""
        return self._used - len(self._free)

    @property
    def rows_max(self) -> int:
        """How many events may be laid out at once."""
        return max(1, _PIECE // (2 * self.history + 1))

    def check(self, values: Floats) -> None:
        """DataError for a value no detector can use. Called on the whole batch before any state changes."""
        bad = ~(np.abs(values) <= VALUE_MAX)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"row {row} holds {values[row]}, which cannot be scored",
                hint="filter NaN and infinite values before the detector",
                code="detect.value",
            )

    def lay(self, keys: Ints, times: Ints, values: Floats) -> Laid:
        """Lay out at most `rows_max` events (in event order) and take them into the state."""
        size, rows = self.history, len(keys)
        order = np.argsort(keys, kind="stable")
        key, value = keys[order], values[order]
        heads = np.empty(rows, np.bool_)
        heads[0] = True
        np.not_equal(key[1:], key[:-1], out=heads[1:])
        first = np.flatnonzero(heads)
        last = np.append(first[1:], rows) - 1
        key_slots = self._slots(key[first])
        slots = np.repeat(key_slots, last - first + 1)
        time, before = self._ordered(times[order], first, self.times[key_slots, -1])
        value_before = np.concatenate((value[:1], value[:-1]))
        value_before[first] = self.values[key_slots, -1]

        # Never seen before: no gap. A longer gap than three durations forgets just the same, and cannot overflow.
        gap = np.minimum(time - np.where(before == NEVER, time, before), 3 * self.duration)
        inserted = np.clip(-((3 * self.duration - 2 * gap * size) // (2 * self.duration)), 0, size)
        places = np.cumsum(np.where(heads, size + 1, 1) + inserted) - 1
        flat = np.empty(int(places[-1]) + 1)
        flat_times = np.empty(len(flat), np.int64)
        windows = sliding_window_view(flat, size, writeable=True)
        time_windows = sliding_window_view(flat_times, size, writeable=True)
        begin = places[first] - inserted[first] - size
        windows[begin] = self.values[key_slots]
        time_windows[begin] = self.times[key_slots]
        flat[places], flat_times[places] = value, time
        if inserted.any():
            row = np.repeat(np.arange(rows), inserted)
            nth = np.arange(1, len(row) + 1) - np.repeat(np.cumsum(inserted) - inserted, inserted)
            at = places[row] - inserted[row] + nth - 1
            flat[at], flat_times[at] = value_before[row], before[row] + nth * self.duration // size

        counts = places - _first_after(flat_times, places - size, places, time - self.duration)
        fresh = counts == 0
        starts = heads | fresh
        opening = np.maximum.accumulate(np.where(starts, np.arange(rows), 0))
        observed = np.where(fresh[opening], time[opening], self.observed[slots])
        ready = (counts + 1 >= size) | ((time - observed >= self.duration) & (counts >= 1))

        end = places[last] - size + 1
        self.values[key_slots], self.times[key_slots] = windows[end], time_windows[end]
        self.observed[key_slots] = observed[last]
        lasts = np.zeros(rows, np.bool_)
        lasts[last] = True
        return Laid(order, slots, starts, fresh, lasts, value, counts, ready, flat, places)

    def expire(self, now: int) -> Ints:
        """Forget keys whose past can count for no event at `now` (ticks) or later; returns them, ready for re-use.

        Never changes a score. Call it with the watermark of the keys' timeline.
        """
        keys, slots = self.living()
        # Imputation may still place the last value up to one duration after it was seen.
        idle = self.times[slots, -1] <= now - 2 * self.duration
        self._slot_of[keys[idle]] = -1
        self._free.extend(slots[idle].tolist())
        expired: Ints = keys[idle]
        return expired

    def living(self) -> tuple[Ints, Ints]:
        """Keys with state, ascending, and their slots."""
        keys = np.flatnonzero(self._slot_of >= 0).astype(np.int64)
        return keys, self._slot_of[keys]

    def snapshot(self) -> dict[str, pa.Array]:
        """Columns of the state, one row a live key, `_key` first."""
        keys, slots = self.living()
        return {
            "_key": pa.array(keys),
            "observed": pa.array(self.observed[slots]),
            "times": fixed_lists(self.times[slots]),
            "values": fixed_lists(self.values[slots]),
        }

    def restore(self, state: pa.Table) -> Ints:
        """Replace the state by a snapshot's; returns the slot of each row."""
        self._slot_of, self._free, self._used = np.empty(0, np.int64), [], 0
        if not state.num_rows:
            return np.empty(0, np.int64)
        slots = self._slots(state["_key"].to_numpy().astype(np.int64))
        self.observed[slots] = state["observed"].to_numpy()
        self.times[slots] = matrix(state["times"], self.history)
        self.values[slots] = matrix(state["values"], self.history)
        return slots

    def _ordered(self, time: Ints, first: Ints, seen: Ints) -> tuple[Ints, Ints]:
        """Event times that never go back within a key, and the time before each; a late event counts as simultaneous."""
        before = np.concatenate((time[:1], time[:-1]))
        before[first] = seen
        if (time < before).any():
            time = time.copy()
            ends = np.append(first[1:], len(time))
            for n in np.unique(np.searchsorted(first, np.flatnonzero(time < before), side="right") - 1):
                part = time[first[n] : ends[n]]
                part[0] = max(part[0], seen[n])
                np.maximum.accumulate(part, out=part)
            before[1:] = time[:-1]
            before[first] = seen
        return time, before

    def _slots(self, keys: Ints) -> Ints:
        """Slots of distinct keys; new ones get an empty past."""
        if len(keys) and int(keys.min()) < 0:
            raise UserError(f"key {int(keys.min())} is negative", hint="number keys from 0", code="detect.key")
        top = int(keys.max()) + 1
        if top > len(self._slot_of):
            grown = np.full(max(top, 2 * len(self._slot_of)), -1, np.int64)
            grown[: len(self._slot_of)] = self._slot_of
            self._slot_of = grown
        slots = self._slot_of[keys]
        new = np.flatnonzero(slots < 0)
        if len(new):
            slots[new] = self._allocate(len(new))
            self._slot_of[keys[new]] = slots[new]
            self.values[slots[new]], self.times[slots[new]], self.observed[slots[new]] = 0.0, NEVER, NEVER
        return slots

    def _allocate(self, count: int) -> Ints:
        reused = [self._free.pop() for _ in range(min(count, len(self._free)))]
        end = self._used + count - len(reused)
        if end > self.capacity:
            extra = max(end, 2 * self.capacity) - self.capacity
            self.values = np.concatenate((self.values, np.zeros((extra, self.history))))
            self.times = np.concatenate((self.times, np.full((extra, self.history), NEVER)))
            self.observed = np.concatenate((self.observed, np.full(extra, NEVER)))
        fresh = np.arange(self._used, end)
        self._used = end
        return np.concatenate((np.array(reused, np.int64), fresh))


def fixed_lists(rows: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> pa.Array:
    """A matrix as an Arrow column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def matrix(column: pa.ChunkedArray, width: int) -> npt.NDArray[np.float64]:
    """The reverse of `fixed_lists`; UserError when the width is another (the query changed)."""
    if column.type.list_size != width:
        raise UserError(
            f"the stored state remembers {column.type.list_size} values, the query asks for {width}",
            hint="start the changed job without its old state",
            code="detect.state",
        )
    flat: npt.NDArray[np.float64] = column.combine_chunks().flatten().to_numpy()
    return flat.reshape(-1, width)


def _first_after(times: Ints, low: Ints, high: Ints, cutoff: Ints) -> Ints:
    """For each row, the first place in low..high whose time is after the cutoff (times ascend, `high` always is)."""
    low, high = low.copy(), high.copy()
    while (low < high).any():
        middle = (low + high) >> 1
        after = times[middle] > cutoff
        np.copyto(high, middle, where=after)
        np.copyto(low, middle + 1, where=~after)
    return low
