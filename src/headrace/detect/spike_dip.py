"""Spikes and dips: how unlikely a value is after its key's recent past (AnomalyDetection_SpikeAndDip).

The past is a mean of n Gaussians, one a remembered value, whose width is the past's own standard deviation; the p-value is
its upper tail above the new value. Scores depend on a key's own events only, so pieces score as the whole does, bit for bit,
and the compiled form of the sum (`native`, where it was built) gives the same bits as NumPy's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view

from headrace.core.errors import UserError, nearest
from headrace.detect import native
from headrace.detect.erf import GRID, Erf
from headrace.detect.history import Floats, History, Ints, Laid

Mode = Literal["spikes", "dips", "spikesanddips"]
MODES: tuple[Mode, ...] = ("spikes", "dips", "spikesanddips")
P_MIN = 1e-8
WIDTH_MIN = 1e-6 / 2**0.5
_BLOCK = 32_768  # matrix elements worked on at once: they stay in the second-level cache


class Tails:
    """p-values of laid-out events against their past: the part that spikes and change points share.

    `compiled` says whether the kernel in C does it, which is used unless told otherwise or not built: same bits, sooner.
    """

    def __init__(self, history: int, *, compiled: bool = True) -> None:
        self._history = history
        self._kernel = native.tails() if compiled else None
        self._scratch = np.empty(2 * history)
        self._rows = max(1, _BLOCK // history)
        shape = (self._rows, history)
        self._deviation, self._work = np.empty(shape), np.empty(shape)
        self._erf = Erf(shape)
        self._column = np.arange(history)

    def upper(self, laid: Laid) -> Floats:
        """The chance of a value at least this high, in laid order, in (0, 1); 0.5 where there is no past."""
        if self._kernel is not None:
            return self._compiled(self._kernel, laid)
        windows = sliding_window_view(laid.flat, self._history)
        begin = laid.places - self._history
        found = np.empty(len(begin))
        for start in range(0, len(begin), self._rows):
            part = slice(start, start + self._rows)
            found[part] = self._block(windows[begin[part]], laid.values[part], laid.counts[part])
        return found

    @property
    def compiled(self) -> bool:
        return self._kernel is not None

    def _compiled(self, kernel: Callable[..., None], laid: Laid) -> Floats:
        found = np.empty(len(laid.places))
        flat, places, values, counts = map(np.ascontiguousarray, (laid.flat, laid.places, laid.values, laid.counts))
        kernel(
            *(array.ctypes.data for array in (flat, places, values, counts)),
            len(found),
            self._history,
            WIDTH_MIN,
            *(array.ctypes.data for array in (*GRID, self._scratch, found)),
        )
        return found

    def _block(self, past: Floats, value: Floats, count: Ints) -> Floats:
        deviation, work = self._deviation[: len(value)], self._work[: len(value)]
        np.subtract(past, value[:, None], out=deviation)
        # What is not seen (any more) stands in the first columns: usually none or one of them.
        some = self._history - int(count.min())
        unseen = self._column[:some] < (self._history - count)[:, None]
        np.copyto(deviation[:, :some], 0.0, where=unseen)
        divisor = np.maximum(count, 1).astype(np.float64)
        total = np.add.reduce(deviation, axis=1)
        np.multiply(deviation, deviation, out=work)
        # About the new value instead of the mean: where that cancels, the value lies so far off that p is 0 or 1 anyway.
        squares = np.add.reduce(work, axis=1) - total * total / divisor
        width = np.maximum(np.sqrt(np.maximum(squares, 0.0) / divisor), WIDTH_MIN)
        width[count == 1] = 1.0
        # What is unseen has deviation 0, hence erf 0: it adds nothing. Past minus value, so the sum has its sign turned.
        upper: Floats = 0.5 + np.add.reduce(self._erf(deviation, 1.0 / (width * 2**0.5)), axis=1) / (2.0 * divisor)
        return upper


def limit_p(confidence: float) -> float:
    """1 - confidence/100 within the range that p-values have; UserError unless 1 <= confidence <= 100."""
    if not 1 <= confidence <= 100:
        raise UserError(
            f"confidence {confidence} is not between 1 and 100",
            hint="95 marks a value that 1 in 20 would exceed; higher marks fewer",
            code="detect.confidence",
        )
    return min(max(1 - confidence / 100, P_MIN), 1 - P_MIN)


class SpikeDip:
    """Scores values of many keys against each key's last `history` values within `duration` ticks.

    `confidence` 1..100: lower marks more. `mode`, any case: which side counts. Raises UserError for wrong arguments.
    """

    def __init__(self, history: int, confidence: float, mode: str, duration: int) -> None:
        if mode.lower() not in MODES:
            raise UserError(
                f"mode {mode!r} is none of 'spikes', 'dips', 'spikesanddips'",
                hint=nearest(mode.lower(), MODES) or "write 'spikesanddips' for both sides",
                code="detect.mode",
            )
        self._mode = mode.lower()
        self._limit = limit_p(confidence)
        self._history = History(history, duration)
        self._tails = Tails(history)

    @property
    def live(self) -> int:
        """How many keys have state."""
        return self._history.live

    def score(self, keys: Ints, times: Ints, values: Floats) -> tuple[Ints, Floats]:
        """(is_anomaly 0/1, score) per row; the score is a p-value in [1e-8, 1 - 1e-8], small is odd.

        Shapes (n,): `keys` small dense integers from 0, `times` ticks, ascending per key, `values` finite. Raises
        DataError, before any state changes, for NaN or an infinite value. O(n · history), about 2 µs an event at 120.
        """
        self._history.check(values)
        anomalies, scores = np.zeros(len(keys), np.int64), np.empty(len(keys))
        for laid in self._history.lay(keys, times, values):
            p = self._side(self._tails.upper(laid))
            scores[laid.rows] = p
            anomalies[laid.rows] = laid.ready & (p <= self._limit)
        return anomalies, scores

    def expire(self, now: int) -> Ints:
        """Forget keys that were silent so long that their past counts no more; returns them. Never changes a score."""
        return self._history.expire(now)

    def snapshot(self, keys: Ints | None = None) -> pa.Table:
        """The state, one row a live key (or each of `keys`, which have state): `_key`, `observed`, `times`, `values`."""
        return pa.table(self._history.snapshot(keys))

    def restore(self, state: pa.Table) -> None:
        """Replace the state by a snapshot's. UserError when it was taken with another history size."""
        self._history.restore(state)

    def _side(self, upper: Floats) -> Floats:
        if self._mode == "spikes":
            p = upper
        elif self._mode == "dips":
            p = 1.0 - upper
        else:
            p = np.minimum(upper, 1.0 - upper)
        return np.clip(p, P_MIN, 1 - P_MIN)
