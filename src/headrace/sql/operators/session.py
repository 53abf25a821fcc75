"""Session windows: a span of events no two neighbours of which lie further apart than the timeout.

A session that opened at t0 with its last event at tl ends at the earlier of tl + timeout and the first multiple of the
maximum duration that lies at least that duration after t0; an event exactly there still belongs to it. Within a batch only
gaps are looked for, so the work in Python is per session, not per event.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.core.flow import MAX_WATERMARK, MIN_WATERMARK, Watermark
from headrace.sql.keys import Key, renumber
from headrace.sql.operators.grouped import Closed, Make, Parts
from headrace.sql.state import hashable, pack, thawed, unpack
from headrace.sql.tree import Window
from headrace.sql.units import ORIGIN
from headrace.sql.values import Column, Ints


class Sessions:
    """One session window of a GROUP BY. A session's number is that of its first row: it orders sessions of equal end."""

    def __init__(self, window: Window, make: Make) -> None:
        self.window = window
        self.make = make
        self.timeout = window.size
        self.longest = window.hop
        self.accumulators = make()
        self.open: dict[Key, tuple[int, int, int]] = {}  # partition -> first time, last time, number
        self.ended: list[tuple[int, int]] = []  # end, number: no event can join any more
        self.slots: dict[int, dict[Key, int]] = {}  # number -> group -> slot
        self.free: list[int] = []
        self.used = 0
        self.seen = 0  # rows so far
        self.next_end: Watermark = MAX_WATERMARK  # no open session ends before
        self.emitted: Watermark = MIN_WATERMARK

    def _check(self, first: int) -> int:
        """The instant at which a session that began at `first` is cut at the latest."""
        return ORIGIN - (ORIGIN - first - self.longest) // self.longest * self.longest

    def _end(self, first: int, last: int) -> int:
        return min(last + self.timeout, self._check(first))

    def add(
        self,
        times: Ints,
        codes: Ints,
        keys: Sequence[Key],
        args: Sequence[Sequence[Column]],
        parts: Parts | None = None,
    ) -> None:
        part_codes, part_keys = parts if parts is not None else (np.zeros(len(times), np.int64), [()])
        order = np.argsort(part_codes, kind="stable")
        numbers = np.empty(len(times), np.int64)
        numbers[order] = self._number(times[order], part_codes[order], part_keys, order)
        self.seen += len(times)
        dense, _ = renumber(numbers)
        dense, first = renumber(dense * len(keys) + codes)
        slots = [
            self._slot(number, keys[code])
            for number, code in zip(numbers[first].tolist(), codes[first].tolist(), strict=True)
        ]
        slot_of = np.array(slots, np.int64)[dense]
        for accumulator, columns in zip(self.accumulators, args, strict=True):
            accumulator.reserve(self.used)
            accumulator.add(slot_of, columns)

    def _number(self, times: Ints, codes: Ints, keys: Sequence[Key], order: Ints) -> Ints:
        """The session number of each row, rows by partition, then time; moves the open sessions on."""
        out = np.empty(len(times), np.int64)
        cut = np.concatenate([[True], (codes[1:] != codes[:-1]) | (np.diff(times) > self.timeout), [True]])
        bounds = np.flatnonzero(cut).tolist()
        for start, stop in itertools.pairwise(bounds):
            key = keys[codes[start]]
            while start < stop:
                first_time = int(times[start])
                session = self.open.get(key)
                if session is not None and first_time > self._end(session[0], session[1]):
                    self.ended.append((self._end(session[0], session[1]), session[2]))
                    session = None
                first, number = (session[0], session[2]) if session else (first_time, self.seen + int(order[start]))
                until = start + int(np.searchsorted(times[start:stop], self._check(first), side="right"))
                out[start:until] = number
                last = int(times[until - 1])
                self.open[key] = (first, last, number)
                self.next_end = min(self.next_end, self._end(first, last))
                start = until
        return out

    def _slot(self, number: int, key: Key) -> int:
        groups = self.slots.setdefault(number, {})
        slot = groups.get(key)
        if slot is None:
            if self.free:
                slot = self.free.pop()
            else:
                slot, self.used = self.used, self.used + 1
            groups[key] = slot
        return slot

    def close(self, mark: Watermark) -> Closed | None:
        """Sessions that ended at or before `mark`, by end, then by their first row."""
        self.emitted = max(self.emitted, mark)
        if mark >= self.next_end:
            ends = {key: self._end(first, last) for key, (first, last, _) in self.open.items()}
            self.ended += [(end, self.open.pop(key)[2]) for key, end in ends.items() if end <= mark]
            self.next_end = min((end for end in ends.values() if end > mark), default=MAX_WATERMARK)
        due = sorted(pair for pair in self.ended if pair[0] <= mark)
        if not due:
            return None
        self.ended = [pair for pair in self.ended if pair[0] > mark]
        keys: list[Key] = []
        ends_of: list[int] = []
        slots: list[int] = []
        for end, number in due:
            groups = self.slots.pop(number)
            keys += groups
            slots += groups.values()
            ends_of += [end] * len(groups)
        at = np.array(slots, np.int64)
        results = [accumulator.result(at) for accumulator in self.accumulators]
        for accumulator in self.accumulators:
            accumulator.clear(at)
        self.free += slots[::-1]
        return Closed(np.array(ends_of, np.int64), keys, results)

    def rows(self) -> int:
        return sum(map(len, self.slots.values()))

    # -- state

    def snapshot(self, since: int | None = None) -> pa.Table:
        """One row per open (session, group), with the accumulators' columns; the sessions are in the metadata. Always whole."""
        pairs = [(number, key, slot) for number, groups in self.slots.items() for key, slot in groups.items()]
        at = np.array([slot for _, _, slot in pairs], np.int64)
        columns: dict[str, Any] = {
            "_key": pa.array([pack([thawed(part) for part in key]) for _, key, _ in pairs], pa.binary()),
            "session": pa.array([number for number, _, _ in pairs], pa.int64()),
        }
        for index, accumulator in enumerate(self.accumulators):
            accumulator.reserve(self.used)
            saved = accumulator.save(at)
            columns |= {f"{index}.{name}": saved.column(name) for name in saved.column_names}
        open_ = [[[thawed(part) for part in key], list(session)] for key, session in self.open.items()]
        about = pack([self.seen, self.emitted, self.ended, open_])
        return pa.table(columns).replace_schema_metadata({b"sessions": about})

    def restore(self, state: pa.Table) -> None:
        self.__init__(self.window, self.make)  # type: ignore[misc]
        self.seen, self.emitted, ended, open_ = unpack(state.schema.metadata[b"sessions"])
        self.ended = [(end, number) for end, number in ended]
        for key, (first, last, number) in open_:
            self.open[tuple(hashable(part) for part in key)] = (first, last, number)
            self.next_end = min(self.next_end, self._end(first, last))
        for number, key in zip(state.column("session").to_pylist(), state.column("_key").to_pylist(), strict=True):
            self._slot(number, tuple(hashable(part) for part in unpack(key)))
        for index, accumulator in enumerate(self.accumulators):
            accumulator.reserve(self.used)
            names = [name for name in state.column_names if name.startswith(f"{index}.")]
            part = pa.table({name.split(".", 1)[1]: state.column(name) for name in names})
            accumulator.load(np.arange(self.used), part)
