"""The recent past of many series at once: what a detector compares each new value with.

Each key owns a row of 2·history + 1 places that fills from left to right; when it is full its last `history` values move
to the front. New events of a batch, and imputed values between them, are written behind the past, so the past of every
event is the `history` places before it and all are scored together, however they are spread over keys. The same numbers
stand in the same order whatever the batch cuts. State is about 32·history bytes a live key.
"""

from __future__ import annotations

from collections.abc import Iterator
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
_PIECE = 8_192  # events sorted at once, so memory does not follow the caller's batch


@dataclass(frozen=True, slots=True)
class Laid:
    """Events sorted by key, with their past. Every array but `flat` has one element an event."""

    rows: Ints  # where the event stands in the caller's batch
    slots: Ints  # where its key lives in the state
    heads: Bools  # first event of its key here
    fresh: Bools  # nothing of the past is within the duration: the series begins (again) here
    values: Floats
    counts: Ints  # how many past values are within the duration, 0..history
    ready: Bools
    flat: Floats  # the past of an event is flat[place - history : place], oldest first, the last `counts` of it
    places: Ints


class History:
    """History buffers for dense integer keys, imputation, forgetting and readiness.

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
        self._width = 2 * history + 1  # room for one event with all its imputed values
        self._slot_of: Ints = np.empty(0, np.int64)  # key -> slot, -1 for none
        self._free: list[int] = []
        self._used = 0
        self._values: Floats = np.empty((0, self._width))
        self._times: Ints = np.empty((0, self._width), np.int64)
        self._end: Ints = np.empty(0, np.int64)  # places used in the row, at least `history`
        self._observed: Ints = np.empty(0, np.int64)  # since when the key has been seen without a full gap

    @property
    def capacity(self) -> int:
        return len(self._observed)

    @property
    def live(self) -> int:
        """How many keys have state."""
        return self._used - len(self._free)

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

    def lay(self, keys: Ints, times: Ints, values: Floats) -> Iterator[Laid]:
        """Take events (in event order) into the state; each Laid holds until the next is asked for."""
        for start in range(0, len(keys), _PIECE):
            part = slice(start, start + _PIECE)
            for laid in self._lay(keys[part], times[part], values[part]):
                np.add(laid.rows, start, out=laid.rows)
                yield laid

    def _lay(self, keys: Ints, times: Ints, values: Floats) -> Iterator[Laid]:
        size, rows = self.history, len(keys)
        order = np.argsort(keys, kind="stable")
        key, value = keys[order], values[order]
        heads = np.empty(rows, np.bool_)
        heads[0] = True
        np.not_equal(key[1:], key[:-1], out=heads[1:])
        first = np.flatnonzero(heads)
        ends = np.append(first[1:], rows)
        slots = self._slots(key[first])
        newest = slots * self._width + self._end[slots] - 1
        time, before = self._ordered(times[order], first, self._times.reshape(-1)[newest])
        value_before = np.concatenate((value[:1], value[:-1]))
        value_before[first] = self._values.reshape(-1)[newest]

        # A gap longer than three durations forgets just the same, and cannot overflow.
        gap = np.minimum(time - np.where(before == NEVER, time, before), 3 * self.duration)
        inserted = np.clip(-((3 * self.duration - 2 * gap * size) // (2 * self.duration)), 0, size)
        written = np.concatenate(([0], np.cumsum(inserted + 1)))  # places that all events before need

        # Rounds: as many events of each key as its row has room for. Nearly always one round takes all.
        while len(slots):
            stop = np.minimum(np.searchsorted(written, written[first] + self._width - size, side="right") - 1, ends)
            lengths = stop - first
            head = np.repeat(np.cumsum(lengths) - lengths, lengths)
            at = np.arange(int(lengths.sum())) - head + np.repeat(first, lengths)
            slot = np.repeat(slots, lengths)
            row = self._row_starts(slots, written[stop] - written[first])
            places = np.repeat(row - written[first], lengths) + written[at + 1] - 1
            self._write(places, time[at], value[at], inserted[at], before[at], value_before[at])
            yield self._laid(order[at], slot, places, time[at], value[at])
            more = stop < ends
            first, ends, slots = stop[more], ends[more], slots[more]

    def _row_starts(self, slots: Ints, need: Ints) -> Ints:
        """Where in the flat state the next `need` values of each slot go; makes room and counts them as used."""
        full = slots[self._end[slots] + need > self._width]
        if len(full):
            past = full * self._width + self._end[full] - self.history
            self._values[full, : self.history] = sliding_window_view(self._values.reshape(-1), self.history)[past]
            self._times[full, : self.history] = sliding_window_view(self._times.reshape(-1), self.history)[past]
            self._end[full] = self.history
        start: Ints = slots * self._width + self._end[slots]
        self._end[slots] += need
        return start

    def _write(self, places: Ints, time: Ints, value: Floats, inserted: Ints, before: Ints, last: Floats) -> None:
        flat, flat_times = self._values.reshape(-1), self._times.reshape(-1)
        flat[places], flat_times[places] = value, time
        if inserted.any():
            row = np.repeat(np.arange(len(places)), inserted)
            nth = np.arange(1, len(row) + 1) - np.repeat(np.cumsum(inserted) - inserted, inserted)
            at = places[row] - inserted[row] + nth - 1
            flat[at], flat_times[at] = last[row], before[row] + nth * self.duration // self.history

    def _laid(self, rows: Ints, slots: Ints, places: Ints, time: Ints, value: Floats) -> Laid:
        oldest = _first_after(self._times.reshape(-1), places - self.history, places, time - self.duration)
        counts = places - oldest
        heads = np.concatenate(([True], slots[1:] != slots[:-1]))
        fresh = counts == 0
        opening = np.maximum.accumulate(np.where(heads | fresh, np.arange(len(slots)), 0))
        observed = np.where(fresh[opening], time[opening], self._observed[slots])
        ready = (counts + 1 >= self.history) | ((time - observed >= self.duration) & (counts >= 1))
        lasts = np.append(heads[1:], True)
        self._observed[slots[lasts]] = observed[lasts]
        return Laid(rows, slots, heads, fresh, value, counts, ready, self._values.reshape(-1), places)

    def expire(self, now: int) -> Ints:
        """Forget keys whose past can count for no event at `now` (ticks) or later; returns them, ready for re-use.

        Never changes a score. Call it with the watermark of the keys' timeline.
        """
        keys, slots = self.living()
        # Imputation may still place the last value up to one duration after it was seen.
        idle = self._times[slots, self._end[slots] - 1] <= now - 2 * self.duration
        self._slot_of[keys[idle]] = -1
        self._free.extend(slots[idle].tolist())
        expired: Ints = keys[idle]
        return expired

    def living(self) -> tuple[Ints, Ints]:
        """Keys with state, ascending, and their slots."""
        keys = np.flatnonzero(self._slot_of >= 0).astype(np.int64)
        return keys, self._slot_of[keys]

    def snapshot(self, keys: Ints | None = None) -> dict[str, pa.Array]:
        """Columns of the state, one row a live key (or each of `keys`, which have state), `_key` first."""
        keys, slots = self.living() if keys is None else (keys, self.places(keys))
        past = (slots * self._width + self._end[slots] - self.history)[:, None] + np.arange(self.history)
        return {
            "_key": pa.array(keys),
            "observed": pa.array(self._observed[slots]),
            "times": fixed_lists(self._times.reshape(-1)[past]),
            "values": fixed_lists(self._values.reshape(-1)[past]),
        }

    def places(self, keys: Ints) -> Ints:
        """The slots of keys with state."""
        return self._slot_of[keys]

    def restore(self, state: pa.Table) -> Ints:
        """Replace the state by a snapshot's; returns the slot of each row."""
        self._slot_of, self._free, self._used = np.empty(0, np.int64), [], 0
        if not state.num_rows:
            return np.empty(0, np.int64)
        slots = self._slots(state["_key"].to_numpy().astype(np.int64))
        self._observed[slots] = state["observed"].to_numpy()
        self._times[slots, : self.history] = matrix(state["times"], self.history)
        self._values[slots, : self.history] = matrix(state["values"], self.history)
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
            made = slots[new]
            self._values[made], self._times[made], self._observed[made], self._end[made] = (
                0.0,
                NEVER,
                NEVER,
                self.history,
            )
        return slots

    def _allocate(self, count: int) -> Ints:
        reused = [self._free.pop() for _ in range(min(count, len(self._free)))]
        end = self._used + count - len(reused)
        if end > self.capacity:
            extra = max(end, 2 * self.capacity) - self.capacity
            self._values = np.concatenate((self._values, np.zeros((extra, self._width))))
            self._times = np.concatenate((self._times, np.full((extra, self._width), NEVER)))
            self._observed = np.concatenate((self._observed, np.full(extra, NEVER)))
            self._end = np.concatenate((self._end, np.full(extra, self.history)))
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
    found = np.where(times[low] > cutoff, low, low + 1)
    open_ = np.flatnonzero(times[found] <= cutoff)  # at a steady rate none or one is too old: few are left to search
    low, high, cutoff = found[open_] + 1, high[open_].copy(), cutoff[open_]
    while (low < high).any():
        middle = (low + high) >> 1
        after = times[middle] > cutoff
        np.copyto(high, middle, where=after)
        np.copyto(low, middle + 1, where=~after)
    found[open_] = low
    return found
