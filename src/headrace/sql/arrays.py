"""Array steps that keyed operators share: sorting by group, spans of positions, growing.

NumPy sorts 64-bit integers stably by merging, 16-bit ones by radix, about six times faster: group numbers are small.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
T = TypeVar("T", bound=np.generic)


def stable_order(codes: Ints, groups: int) -> Ints:
    """The order of rows by code, equal codes in row order. Codes lie in 0..`groups` - 1."""
    if groups <= 1:
        return np.arange(len(codes))
    low = np.argsort(codes.astype(np.uint16), kind="stable")
    if groups <= 1 << 16:
        return low
    if groups > 1 << 32:
        return np.argsort(codes, kind="stable")
    order: Ints = low[np.argsort((codes >> 16).astype(np.uint16)[low], kind="stable")]
    return order


def sorted_pairs(first: Ints, second: Ints) -> tuple[Ints, Ints]:
    """The distinct pairs, sorted; `first` is not negative."""
    if not len(first):
        return first, second
    least, length = _extent(first, second)
    if not length:
        found = np.unique(np.stack([first, second]), axis=1)
        return found[0], found[1]
    both = np.sort(first * length + (second - least))
    both = both[np.concatenate([[True], both[1:] != both[:-1]])]
    left = both // length
    return left, both - left * length + least


def pair_order(first: Ints, second: Ints) -> Ints:
    """The order of distinct pairs; `second` is not negative."""
    if not len(first):
        return np.arange(0)
    least, length = _extent(second, first)
    if not length:
        return np.lexsort((second, first))
    return np.argsort((first - least) * (int(second.max()) + 1) + second)


def _extent(small: Ints, wide: Ints) -> tuple[int, int]:
    """The least of `wide` and the length of its range, if both numbers fit into one together; else length 0."""
    least = int(wide.min())
    length = int(wide.max()) - least + 1
    return least, length if length * (int(small.max()) + 1) < 1 << 62 else 0


def numbered(ids: Ints, room: int) -> tuple[Ints, Ints]:
    """Numbers for ids below `room`, in ascending order: one per element, and the distinct ids behind the numbers."""
    present = np.zeros(room, np.bool_)
    present[ids] = True
    return (np.cumsum(present) - 1)[ids], np.flatnonzero(present)


def expand(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """For spans [low, high): the number of the span and the position, element by element."""
    lengths = high - low
    total = int(lengths.sum())
    span = np.repeat(np.arange(len(low)), lengths)
    begin = np.cumsum(lengths) - lengths
    return span, np.arange(total) + np.repeat(low - begin, lengths)


def enlarged(array: npt.NDArray[T], room: int) -> npt.NDArray[T]:
    """The array, longer if need be: at least `room` elements, new ones zero. It doubles, so growing is cheap on the whole."""
    more = room - len(array)
    if more <= 0:
        return array
    return np.concatenate([array, np.zeros(max(more, len(array), 64), array.dtype)])


class Fifo:
    """Rows of integers, first in, first out. A row is copied once or twice in its life, however small the batches are."""

    def __init__(self, columns: int) -> None:
        self._data: Ints = np.empty((columns, 0), np.int64)
        self._start = self._stop = 0

    def __len__(self) -> int:
        return self._stop - self._start

    def column(self, which: int) -> Ints:
        """A column of all rows; valid until the next append."""
        return self._data[which, self._start : self._stop]

    def append(self, *columns: Ints) -> None:
        rows, more = len(self), len(columns[0])
        if self._stop + more > self._data.shape[1]:
            room = max(2 * (rows + more), 64)
            data = np.empty((len(columns), room), np.int64)
            data[:, :rows] = self._data[:, self._start : self._stop]
            self._data, self._start, self._stop = data, 0, rows
        for which, column in enumerate(columns):
            self._data[which, self._stop : self._stop + more] = column
        self._stop += more

    def pop(self, rows: int) -> None:
        """Drop the first rows."""
        self._start += rows
