"""Sums, extremes and moments of many spans of one array, in time that grows with the logarithm of their length.

Node i of level l stands for the 2^l rows from i on and is made from two nodes of the level below. A span is cut into nodes
by the bits of its length, shortest first, so its result depends on its own rows only: not on what else is in the array,
and hence not on how a stream was cut into batches. Sums in pairs also err less than sums in a row. Positions are always in
range; `take` is told to clip because that is its fastest way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def whole_sums(data: Ints, low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """Exact sums of int64 over [low, high): the upper part (an int64 sum is the upper part times 2^32 plus the lower) and the
    lower 32 bits. A sum fits 64 bits if its upper part fits 32. For fewer than 2^31 rows.
    """
    upper = np.concatenate([[0], np.cumsum(data >> 32)])
    lower = np.concatenate([[0], np.cumsum(data & 0xFFFFFFFF)])
    rest = lower[high] - lower[low]
    return upper[high] - upper[low] + (rest >> 32), rest & 0xFFFFFFFF


def sums(data: Floats, low: Ints, high: Ints) -> Floats:
    """The sum over each span [low, high); 0 for an empty one."""
    found = np.zeros(len(low))
    node = data
    with np.errstate(over="ignore", invalid="ignore"):  # nodes that mix groups are made, too, but never read
        for level, spans, at in _pieces(low, high):
            node = _doubled(node, level, np.add)
            found[spans] = found.take(spans, mode="clip") + node.take(at, mode="clip")
    return found


def extremes(data: Any, low: Ints, high: Ints, pick: Callable[..., Any]) -> Any:
    """The least or greatest value (`pick` is np.minimum or np.maximum) over each span, none of them empty.

    Two nodes that overlap cover a span, since it does no harm to see a value twice.
    """
    found = np.empty(len(low), data.dtype)
    levels = _log2(high - low)
    node = data
    for level in range(int(levels.max()) + 1 if len(levels) else 0):
        node = _doubled(node, level, pick)
        spans = np.flatnonzero(levels == level)
        first, last = low.take(spans, mode="clip"), high.take(spans, mode="clip") - (1 << level)
        found[spans] = pick(node.take(first, mode="clip"), node.take(last, mode="clip"))
    return found


def moments(data: Floats, low: Ints, high: Ints) -> tuple[Floats, Floats]:
    """Mean and sum of squared deviations over each span; zeros for an empty one.

    Halves are joined by the update of Chan, Golub and LeVeque (1983), which for two halves of n rows adds (b - a)²·n/2.
    """
    mean, deviations, count = np.zeros(len(low)), np.zeros(len(low)), np.zeros(len(low))
    node, spread = data, np.zeros(len(data))
    with np.errstate(over="ignore", invalid="ignore"):
        for level, spans, at in _pieces(low, high):
            if level:
                half = 1 << (level - 1)
                apart = node[half:] - node[:-half]
                spread = spread[:-half] + spread[half:] + apart * apart * (half / 2)
                node = node[:-half] + apart / 2
            size = float(1 << level)
            own = count[spans]
            total = own + size
            apart = node[at] - mean[spans]
            mean[spans] += apart * (size / total)
            deviations[spans] += spread[at] + apart * apart * (own * size / total)
            count[spans] = total
    return mean, deviations


def _pieces(low: Ints, high: Ints) -> Iterator[tuple[int, Ints, Ints]]:
    """For each level: the spans that have a node of it, and that node."""
    lengths = high - low
    for level in range(int(lengths.max()).bit_length() if len(lengths) else 0):
        spans = np.flatnonzero(lengths & (1 << level) != 0)
        lower = lengths.take(spans, mode="clip") & (1 << level) - 1  # the rows in nodes of the lower bits
        yield level, spans, low.take(spans, mode="clip") + lower


def _doubled(node: Any, level: int, join: Callable[..., Any]) -> Any:
    """The nodes of a level from those of the level below. Level 0 are the rows themselves."""
    return node if level == 0 else join(node[: -(1 << level - 1)], node[1 << level - 1 :])


def _log2(lengths: Ints) -> Ints:
    """The position of the highest bit; exact, as lengths are far below 2^53."""
    found: Ints = np.frexp(lengths.astype(np.float64))[1].astype(np.int64) - 1
    return found
