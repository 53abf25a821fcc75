"""Values of any type in numbered cells: what an operator remembers of rows that are gone.

Each type has an array of its own, made when the type first occurs, so a field that never changes its type costs one array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.sql import values
from headrace.sql.values import TEXT, Column, Ints, Part

_NONE = -1


class Cells:
    """`room` cells, each holding a value or null."""

    def __init__(self) -> None:
        self.room = 0
        self._kinds: npt.NDArray[np.int8] = np.empty(0, np.int8)
        self._data: dict[int, Any] = {}

    def reserve(self, room: int) -> None:
        """Make room for cells 0 to `room` - 1; new ones hold null."""
        if room <= self.room:
            return
        more = max(room, self.room * 2, 64) - self.room
        self._kinds = np.concatenate([self._kinds, np.full(more, _NONE, np.int8)])
        for kind, data in self._data.items():
            self._data[kind] = np.concatenate([data, _blank(kind, more)])
        self.room += more

    def put(self, at: Ints, column: Column) -> None:
        """Value i of `column` goes into cell `at[i]`; of equal cells the last one wins."""
        self.clear(at)
        for kind, data, mask in values.plain(column).parts:
            store = self._data.get(kind)
            if store is None:
                store = self._data[kind] = _blank(kind, self.room)
            some = data if mask is None else (data.filter(pa.array(mask)) if kind == TEXT else data[mask])
            cells = at if mask is None else at[mask]
            store[cells] = np.array(some.to_pylist(), object) if kind == TEXT else some
            self._kinds[cells] = kind

    def take(self, at: Ints) -> Column:
        """The values of some cells."""
        kinds = self._kinds[at]
        parts: list[Part] = []
        for kind in sorted(self._data):
            mask = kinds == kind
            if not mask.any():
                continue
            data = self._data[kind][at]
            if kind == TEXT:
                data = pa.array(data.tolist(), pa.string())
            parts.append(Part(kind, data, None if mask.all() else mask))
        return Column(len(at), parts)

    def clear(self, at: Ints) -> None:
        """Set cells to null and let go of what they held."""
        self._kinds[at] = _NONE
        for data in self._data.values():
            if data.dtype == object:
                data[at] = None


def _blank(kind: int, cells: int) -> Any:
    return np.full(cells, None, object) if kind == TEXT else values.blank(kind, cells)
