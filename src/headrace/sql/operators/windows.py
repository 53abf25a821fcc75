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
from headrace.sql.arrays import Fifo, enlarged, expand
from headrace.sql.changes import Touched, delta, numbered_rows
from headrace.sql.key_ids import KeyIds
from headrace.sql.keys import Key, renumber
from headrace.sql.operators.grouped import Closed, Make, Parts, WindowState
from headrace.sql.operators.session import Sessions
from headrace.sql.operators.sliding import Sliding
from headrace.sql.tree import Window
from headrace.sql.units import ORIGIN
from headrace.sql.values import Column, Constant, Ints

_PANE, _ID, _SLOT = range(3)
_IDLE_MAX = 1024


class Panes:
    """One window of a GROUP BY.

    Open groups stand in order of pane and first appearance. Rows come in time order, so only the newest pane can get more:
    one slot per key is all there is to look up.
    """

    def __init__(self, window: Window, make: Make) -> None:
        self.window = window
        self.make = make
        self.snapshot_window = window.kind == "snapshot"
        self.size = 1 if self.snapshot_window else window.size
        self.hop = 1 if self.snapshot_window else (window.hop if window.kind == "hopping" else window.size)
        self.pane = math.gcd(self.size, self.hop)
        self.origin = ORIGIN + window.offset
        self.accumulators = make()
        self.ids = KeyIds()
        self.open = Fifo(3)  # pane number, key number, slot
        self.newest = MIN_WATERMARK  # pane
        self.slot: Ints = np.empty(0, np.int64)  # by key number: its slot in the newest pane it is in
        self.slot_pane: Ints = np.empty(0, np.int64)  # and that pane
        self.live: Ints = np.empty(0, np.int64)  # and how many open groups it has
        self.free: list[int] = []
        self.used = 0
        self.emitted: Watermark = MIN_WATERMARK
        self.released = 0  # groups so far: open group i has the number `released` + i
        self.touched = Touched()  # slots

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
        assert low >= self.newest, "rows come in time order"
        ids = self.ids.number(keys)
        if low == high:
            groups, row_groups = self._slots(np.full(len(keys), low), ids), codes
        else:
            combined = (panes - low) * len(keys) + codes if (high - low) < (1 << 62) // max(len(keys), 1) else None
            if combined is None:
                panes_dense, _ = renumber(panes)
                combined = panes_dense * len(keys) + codes
            row_groups, first = renumber(combined)
            groups = self._slots(panes[first], ids[codes[first]])
        self.newest = high
        self.touched.mark(groups)
        slots = groups[row_groups]
        for accumulator, columns in zip(self.accumulators, args, strict=True):
            accumulator.reserve(self.used)
            accumulator.add(slots, columns)

    def _slots(self, panes: Ints, ids: Ints) -> Ints:
        """The slot of each (pane, key), pairs in order of pane and appearance; opens what is not open yet."""
        room = self.ids.room
        if room > len(self.slot):
            self.slot = enlarged(self.slot, room)
            self.live = enlarged(self.live, room)
            self.slot_pane = np.concatenate(
                [self.slot_pane, np.full(len(self.slot) - len(self.slot_pane), MIN_WATERMARK)]
            )
        slots = self.slot[ids]
        new = np.flatnonzero(self.slot_pane[ids] != panes)
        if len(new):
            slots[new] = self._new_slots(len(new))
            self.open.append(panes[new], ids[new], slots[new])
            np.add.at(self.live, ids[new], 1)
            self.slot[ids[new]], self.slot_pane[ids[new]] = slots[new], panes[new]  # of several panes the last stays
        return slots

    def _new_slots(self, count: int) -> Ints:
        again = min(count, len(self.free))
        slots = np.empty(count, np.int64)
        if again:
            slots[:again] = self.free[: -again - 1 : -1]
            del self.free[-again:]
        slots[again:] = np.arange(self.used, self.used + count - again)
        self.used += count - again
        return slots

    def close(self, mark: Watermark) -> Closed | None:
        """Everything of the windows that end at or before `mark` and were not reported yet."""
        if mark <= self.emitted or not len(self.open):
            self.emitted = max(self.emitted, mark)
            return None
        closed = self._close_plain(mark) if self.size == self.hop else self._close_hopping(mark)
        self.emitted = mark
        return closed

    def _ends(self, panes: Ints) -> Ints:
        return panes * self.pane + self.origin

    def _close_plain(self, mark: Watermark) -> Closed | None:
        done = int(np.searchsorted(self._ends(self.open.column(_PANE)), mark, side="right"))
        if not done:
            return None
        panes, ids, slots = (self.open.column(which)[:done].copy() for which in (_PANE, _ID, _SLOT))
        results = [accumulator.result(slots) for accumulator in self.accumulators]
        closed = Closed(self._ends(panes), self.ids.keys(ids), results)
        self._release(done)
        return closed

    def _close_hopping(self, mark: Watermark) -> Closed | None:
        ends = self._due(mark)
        panes, ids, slots = (self.open.column(which) for which in (_PANE, _ID, _SLOT))
        last = (np.array(ends, np.int64) - self.origin) // self.pane
        low = np.searchsorted(panes, last - self.size // self.pane, side="right")
        high = np.searchsorted(panes, last, side="right")
        found: list[Ints] = []  # the keys of each window
        into: list[Ints] = []
        total = 0
        for start, stop in zip(low.tolist(), high.tolist(), strict=True):
            number, first = _by_appearance(ids[start:stop], self.ids.room)
            into.append(number + total)
            found.append(ids[start:stop][first])
            total += len(first)
        closed: Closed | None = None
        if total:
            _, at = expand(low, high)
            merged = self.make()
            for accumulator, other in zip(merged, self.accumulators, strict=True):
                accumulator.reserve(total)
                accumulator.merge(np.concatenate(into), other, slots[at])
            everything = np.arange(total)
            closed = Closed(
                np.repeat(np.array(ends, np.int64), [len(one) for one in found]),
                self.ids.keys(np.concatenate(found)),
                [one.result(everything) for one in merged],
            )
        self._release(int(np.searchsorted(self._last_ends(panes), mark, side="right")))
        return closed

    def _due(self, mark: Watermark) -> list[int]:
        """Ends of windows that hold a pane and lie in (emitted, mark], ascending."""
        panes = self.open.column(_PANE)
        panes = panes[np.concatenate([[True], panes[1:] != panes[:-1]])]
        first = -((self.origin - self._ends(panes)) // self.hop) * self.hop + self.origin
        first += ((np.maximum(first - 1, self.emitted) - first) // self.hop + 1) * self.hop
        last = np.minimum(self._last_ends(panes), mark)
        due: set[int] = set()
        for begin, end in zip(first.tolist(), last.tolist(), strict=True):
            due.update(range(begin, end + 1, self.hop))
        return sorted(due)

    def _last_ends(self, panes: Ints) -> Ints:
        """The end of the last window that covers each pane."""
        start = self._ends(panes) - self.pane
        return (start + self.size - self.origin) // self.hop * self.hop + self.origin

    def _release(self, groups: int) -> None:
        """Let go of the first open groups. Keys without any are forgotten once they are more than the others."""
        if not groups:
            return
        panes, ids, slots = (self.open.column(which)[:groups] for which in (_PANE, _ID, _SLOT))
        for accumulator in self.accumulators:
            accumulator.clear(slots)
        self.free += slots[::-1].tolist()
        np.subtract.at(self.live, ids, 1)
        self.slot_pane[ids[self.slot_pane[ids] == panes]] = MIN_WATERMARK
        self.open.pop(groups)
        self.released += groups
        if len(self.ids) > 2 * len(self.open) + _IDLE_MAX:
            known = self.ids.live()
            gone = known[self.live[known] == 0]
            self.ids.forget(gone)

    def rows(self) -> int:
        return len(self.open)

    # -- state

    def snapshot(self, since: int | None = None) -> pa.Table:
        """One row per open (pane, group), in pane and appearance order, with the accumulators' columns beside it."""
        changed = self.touched.has(self.open.column(_SLOT))
        self.touched.take()
        at = np.arange(len(self.open)) if since is None else np.flatnonzero(changed)
        slots = self.open.column(_SLOT)[at]
        columns: dict[str, Any] = {
            "_key": pa.array(self.ids.packed(self.open.column(_ID)[at]), pa.binary()),
            "pane": pa.array(self.open.column(_PANE)[at]),
        }
        for index, accumulator in enumerate(self.accumulators):
            accumulator.reserve(self.used)
            saved = accumulator.save(slots)
            columns |= {f"{index}.{name}": saved.column(name) for name in saved.column_names}
        table = pa.table(columns).replace_schema_metadata({"emitted": str(self.emitted)})
        numbers = at + self.released
        return numbered_rows(table, numbers) if since is None else delta(table, numbers, first=self.released)

    def restore(self, state: pa.Table) -> None:
        self.__init__(self.window, self.make)  # type: ignore[misc]
        self.emitted = int(state.schema.metadata[b"emitted"])
        ids = self.ids.restore(state.column("_key").to_pylist())
        panes = state.column("pane").to_numpy()
        at = self._slots(panes, ids)
        self.newest = int(panes[-1]) if len(panes) else MIN_WATERMARK
        for index, accumulator in enumerate(self.accumulators):
            accumulator.reserve(self.used)
            names = [name for name in state.column_names if name.startswith(f"{index}.")]
            part = pa.table({name.split(".", 1)[1]: state.column(name) for name in names})
            accumulator.load(at, part)


def _by_appearance(ids: Ints, room: int) -> tuple[Ints, Ints]:
    """Numbers by first appearance, and where each one first appears: `renumber` for ids below `room`."""
    place = np.empty(room, np.int64)
    rows = np.arange(len(ids))
    place[ids[::-1]] = rows[::-1]
    first = place[ids]
    heads = first == rows
    return (np.cumsum(heads) - 1)[first], np.flatnonzero(heads)


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

    def snapshot(self, since: int | None = None) -> list[pa.Table]:
        return [panes.snapshot(since) for panes in self.panes]

    def restore(self, tables: Sequence[pa.Table]) -> None:
        for panes, table in zip(self.panes, tables, strict=True):
            panes.restore(table)
