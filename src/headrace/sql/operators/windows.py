"""Windows with a grid: tumbling, hopping and snapshot.

Time is cut into panes (a window's ends and starts all lie on pane boundaries); each pane holds its groups in the order in
which they first appeared, and each (pane, group) is a slot of the accumulators. A window closes when the watermark reaches
its end: no row at or before it can come any more. State is one slot per open pane and live key, so it grows with keys,
not with time; slots of closed panes are used again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.core.flow import MIN_WATERMARK, Watermark
from headrace.sql import values
from headrace.sql.keys import Key, renumber
from headrace.sql.operators.grouped import Closed, Make, Parts, WindowState
from headrace.sql.operators.session import Sessions
from headrace.sql.operators.sliding import Sliding
from headrace.sql.state import hashable, pack, thawed, unpack
from headrace.sql.tree import Window
from headrace.sql.units import ORIGIN
from headrace.sql.values import Column, Constant, Ints


class Panes:
    """One window of a GROUP BY."""

    def __init__(self, window: Window, make: Make) -> None:
        self.window = window
        self.make = make
        self.snapshot_window = window.kind == "snapshot"
        self.size = 1 if self.snapshot_window else window.size
        self.hop = 1 if self.snapshot_window else (window.hop if window.kind == "hopping" else window.size)
        self.pane = math.gcd(self.size, self.hop)
        self.origin = ORIGIN + window.offset
        self.accumulators = make()
        self.slots: dict[int, dict[Key, int]] = {}  # pane number -> group -> slot
        self.free: list[int] = []
        self.used = 0
        self.emitted: Watermark = MIN_WATERMARK

    def add(
        self,
        times: Ints,
        codes: Ints,
        keys: Sequence[Key],
        args: Sequence[Sequence[Column]],
        parts: Parts | None = None,
    ) -> None:
        """Rows in time order: a group number per row, the groups' keys, and each aggregate's arguments."""
        panes = -((self.origin - times) // self.pane)  # ceiling: the pane ends at or after the row
        low, high = int(panes.min()), int(panes.max())
        if low == high:
            slot_of = self._slots_in(low, keys)
            slots = slot_of[codes]
        else:
            combined = (panes - low) * len(keys) + codes if (high - low) < (1 << 62) // max(len(keys), 1) else None
            if combined is None:
                panes_dense, _ = renumber(panes)
                combined = panes_dense * len(keys) + codes
            dense, first = renumber(combined)
            slot_of = np.fromiter(
                (
                    self._slot(pane, keys[code])
                    for pane, code in zip(panes[first].tolist(), codes[first].tolist(), strict=True)
                ),
                np.int64,
                len(first),
            )
            slots = slot_of[dense]
        for accumulator, columns in zip(self.accumulators, args, strict=True):
            accumulator.reserve(self.used)
            accumulator.add(slots, columns)

    def _slots_in(self, pane: int, keys: Sequence[Key]) -> Ints:
        groups = self.slots.setdefault(pane, {})
        out = np.empty(len(keys), np.int64)
        for index, key in enumerate(keys):
            slot = groups.get(key)
            if slot is None:
                slot = groups[key] = self._new_slot()
            out[index] = slot
        return out

    def _slot(self, pane: int, key: Key) -> int:
        groups = self.slots.get(pane)
        if groups is None:
            groups = self.slots[pane] = {}
        slot = groups.get(key)
        if slot is None:
            slot = groups[key] = self._new_slot()
        return slot

    def _new_slot(self) -> int:
        if self.free:
            return self.free.pop()
        self.used += 1
        return self.used - 1

    def close(self, mark: Watermark) -> Closed | None:
        """Everything of the windows that end at or before `mark` and were not reported yet."""
        if mark <= self.emitted or not self.slots:
            self.emitted = max(self.emitted, mark)
            return None
        closed = self._close_plain(mark) if self.size == self.hop else self._close_hopping(mark)
        self.emitted = mark
        return closed

    def _end(self, pane: int) -> int:
        return pane * self.pane + self.origin

    def _close_plain(self, mark: Watermark) -> Closed | None:
        done = sorted(pane for pane in self.slots if self._end(pane) <= mark)
        if not done:
            return None
        keys: list[Key] = []
        slots: list[int] = []
        counts: list[int] = []
        for pane in done:
            groups = self.slots.pop(pane)
            keys += groups
            slots += groups.values()
            counts.append(len(groups))
        at = np.array(slots, np.int64)
        ends = np.repeat(np.array([self._end(pane) for pane in done], np.int64), counts)
        results = [accumulator.result(at) for accumulator in self.accumulators]
        self._release(at)
        return Closed(ends, keys, results)

    def _close_hopping(self, mark: Watermark) -> Closed | None:
        ends = self._due(mark)
        keys: list[Key] = []
        into: list[int] = []
        slots: list[int] = []
        counts: list[int] = []
        for end in ends:
            last = (end - self.origin) // self.pane
            index: dict[Key, int] = {}
            for pane in range(last - self.size // self.pane + 1, last + 1):
                for key, slot in self.slots.get(pane, {}).items():
                    found = index.get(key)
                    if found is None:
                        found = index[key] = len(keys)
                        keys.append(key)
                    into.append(found)
                    slots.append(slot)
            counts.append(len(index))
        closed: Closed | None = None
        if keys:
            merged = self.make()
            for accumulator, other in zip(merged, self.accumulators, strict=True):
                accumulator.reserve(len(keys))
                accumulator.merge(np.array(into, np.int64), other, np.array(slots, np.int64))
            everything = np.arange(len(keys))
            closed = Closed(
                np.repeat(np.array(ends, np.int64), counts), keys, [one.result(everything) for one in merged]
            )
        self._retire(mark)
        return closed

    def _due(self, mark: Watermark) -> list[int]:
        """Ends of windows that hold a pane and lie in (emitted, mark], ascending."""
        due: set[int] = set()
        for pane in self.slots:
            end = self._end(pane)
            first = -((self.origin - end) // self.hop) * self.hop + self.origin
            last = self._last_end(pane)
            if self.emitted >= first:
                first += ((self.emitted - first) // self.hop + 1) * self.hop
            due.update(range(first, min(last, mark) + 1, self.hop))
        return sorted(due)

    def _last_end(self, pane: int) -> int:
        """The end of the last window that covers a pane."""
        start = self._end(pane) - self.pane
        return (start + self.size - self.origin) // self.hop * self.hop + self.origin

    def _retire(self, mark: Watermark) -> None:
        done = [pane for pane in self.slots if self._last_end(pane) <= mark]
        gone: list[int] = []
        for pane in done:
            gone += self.slots.pop(pane).values()
        if gone:
            self._release(np.array(gone, np.int64))

    def _release(self, slots: Ints) -> None:
        for accumulator in self.accumulators:
            accumulator.clear(slots)
        self.free += slots[::-1].tolist()

    def rows(self) -> int:
        return sum(map(len, self.slots.values()))

    # -- state

    def snapshot(self) -> pa.Table:
        """One row per open (pane, group), in pane and appearance order, with the accumulators' columns beside it."""
        panes: list[int] = []
        keys: list[bytes] = []
        slots: list[int] = []
        for pane in sorted(self.slots):
            for key, slot in self.slots[pane].items():
                panes.append(pane)
                keys.append(pack([thawed(value) for value in key]))
                slots.append(slot)
        columns: dict[str, Any] = {"_key": pa.array(keys, pa.binary()), "pane": pa.array(panes, pa.int64())}
        at = np.array(slots, np.int64)
        for index, accumulator in enumerate(self.accumulators):
            accumulator.reserve(self.used)
            saved = accumulator.save(at)
            columns |= {f"{index}.{name}": saved.column(name) for name in saved.column_names}
        return pa.table(columns).replace_schema_metadata({"emitted": str(self.emitted)})

    def restore(self, state: pa.Table) -> None:
        self.__init__(self.window, self.make)  # type: ignore[misc]
        self.emitted = int(state.schema.metadata[b"emitted"])
        for pane, key in zip(state.column("pane").to_pylist(), state.column("_key").to_pylist(), strict=True):
            self._slot(pane, tuple(hashable(value) for value in unpack(key)))
        at = np.arange(self.used)
        for index, accumulator in enumerate(self.accumulators):
            accumulator.reserve(self.used)
            names = [name for name in state.column_names if name.startswith(f"{index}.")]
            part = pa.table({name.split(".", 1)[1]: state.column(name) for name in names})
            accumulator.load(at, part)


def _state_of(window: Window, make: Make) -> WindowState:
    if window.kind == "sliding":
        return Sliding(window, make)
    return Sessions(window, make) if window.kind == "session" else Panes(window, make)


class GroupOperator:
    """GROUP BY over one window or several."""

    def __init__(self, windows: Sequence[Window], make: Make) -> None:
        self.panes = [_state_of(window, make) for window in windows]

    def process(
        self,
        times: Ints,
        codes: Ints,
        keys: Sequence[Key],
        args: Sequence[Sequence[Column]],
        parts: Sequence[Parts | None],
    ) -> None:
        """Rows in time order; `parts` has the keys of each window's own PARTITION BY."""
        for panes, part in zip(self.panes, parts, strict=True):
            panes.add(times, codes, keys, args, part)

    def advance(self, mark: Watermark) -> tuple[Ints, list[Column]] | None:
        """(ends, columns) of all that closed, by end, then window, then appearance. The columns are the parts of the key,
        the aggregates, and last the window's id.
        """
        found = [(index, panes.close(mark)) for index, panes in enumerate(self.panes)]
        closed = [(index, one) for index, one in found if one is not None and len(one.ends)]
        if not closed:
            return None
        ends = np.concatenate([one.ends for _, one in closed])
        pieces = [
            [
                *(one.key_column(part) for part in range(len(one.keys[0]))),
                *one.results,
                Constant(len(one.ends), self.panes[index].window.id),
            ]
            for index, one in closed
        ]
        columns = [values.concat(list(same)) for same in zip(*pieces, strict=True)]
        if len(closed) > 1:
            order = np.argsort(ends, kind="stable")
            ends, columns = ends[order], [column.take(order) for column in columns]
        return ends, columns

    def rows(self) -> int:
        return sum(panes.rows() for panes in self.panes)

    def snapshot(self) -> list[pa.Table]:
        return [panes.snapshot() for panes in self.panes]

    def restore(self, tables: Sequence[pa.Table]) -> None:
        for panes, table in zip(self.panes, tables, strict=True):
            panes.restore(table)
