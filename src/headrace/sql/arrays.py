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
