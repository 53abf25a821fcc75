"""Change points: when values stop being exchangeable with their key's recent past (AnomalyDetection_ChangePoint).

Each p-value is a bet, b(p) = e·p^(e-1) with e = 0.1, that wins when p is small; the score is the product of the last
`history` bets, a power martingale: while nothing changes it seldom grows (Fedorova and others, arXiv 1204.3251). Logs of
bets are summed anew for every event, never updated, so pieces score as the whole does and no error builds up.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view

from headrace.detect.history import Bools, Floats, History, Ints, Laid, fixed_lists, matrix
from headrace.detect.spike_dip import P_MIN, Tails, limit_p

_EPSILON = 0.1
_LONG_AGO = 1 << 40  # events since the last alert, when there was none
_LOG_MAX = 700.0  # exp of it is still a float64


def log_bet(p: Floats | float) -> Floats:
    """ln b(p)."""
    made: Floats = math.log(_EPSILON) + (_EPSILON - 1) * np.log(np.asarray(p, np.float64))
    return made


class ChangePoint:
    """Scores values of many keys; the score grows exponentially with oddness.

    `history` events within `duration` ticks are the past, `confidence` 1..100: lower marks more. By this threshold (that of
    the SQL specification) 80 suits a history of 120: a step of 5 standard deviations is marked after about 10 events,
    while above 90 even one of 25 passes. After a mark, `history` events of the key pass before the next. Raises UserError
    for wrong arguments.
    """

    def __init__(self, history: int, confidence: float, duration: int) -> None:
        self._size = history
        self._history = History(history, duration)
        self._tails = Tails(history)
        self._limit = history * float(log_bet(limit_p(confidence)))
        self._bets: Floats = np.empty((0, history))  # by slot, oldest first
        self._since: Ints = np.empty(0, np.int64)  # events since the key's last mark

    @property
    def live(self) -> int:
        """How many keys have state."""
        return self._history.live

    def score(self, keys: Ints, times: Ints, values: Floats) -> tuple[Ints, Floats]:
        """(is_anomaly 0/1, score > 0) per row; shapes, order and errors as SpikeDip.score."""
        self._history.check(values)
        anomalies, scores = np.zeros(len(keys), np.int64), np.empty(len(keys))
        for laid in self._history.lay(keys, times, values):
            self._grow()
            upper = self._tails.upper(laid)
            p = np.clip(np.minimum(upper, 1.0 - upper), P_MIN, 1 - P_MIN)
            total = self._totals(laid, log_bet(p))
            scores[laid.rows] = np.exp(np.clip(total, -_LOG_MAX, _LOG_MAX))
            anomalies[laid.rows] = self._marks(laid, laid.ready & (total >= self._limit))
        return anomalies, scores

    def expire(self, now: int) -> Ints:
        """As SpikeDip.expire."""
        return self._history.expire(now)

    def snapshot(self, keys: Ints | None = None) -> pa.Table:
        """The state, one row a live key (or each of `keys`, which have state): `_key`, `observed`, `times`, `values`,
        `bets`, `since`.
        """
        slots = self._history.living()[1] if keys is None else self._history.places(keys)
        self._grow()
        columns = {"bets": fixed_lists(self._bets[slots]), "since": pa.array(self._since[slots])}
        return pa.table({**self._history.snapshot(keys), **columns})

    def restore(self, state: pa.Table) -> None:
        """Replace the state by a snapshot's. UserError when it was taken with another history size."""
        slots = self._history.restore(state)
        self._grow()
        if len(slots):
            self._bets[slots] = matrix(state["bets"], self._size)
            self._since[slots] = state["since"].to_numpy()

    def _grow(self) -> None:
        extra = self._history.capacity - len(self._since)
        if extra:
            self._bets = np.concatenate((self._bets, np.zeros((extra, self._size))))
            self._since = np.concatenate((self._since, np.full(extra, _LONG_AGO)))

    def _totals(self, laid: Laid, bets: Floats) -> Floats:
        """The sum of the last `history` log bets at each event. A fresh series counts its first bet that many times."""
        size = self._size
        starts = laid.heads | laid.fresh
        lengths = np.where(starts, size + 1, 1)
        places = np.cumsum(lengths) - 1
        flat = np.empty(int(places[-1]) + 1)
        flat[places] = bets
        first = np.flatnonzero(starts)
        before = np.where(laid.fresh[first, None], bets[first, None], self._bets[laid.slots[first]])
        sliding_window_view(flat, size, writeable=True)[places[first] - size] = before
        windows = sliding_window_view(flat, size)
        total = np.empty(len(bets))
        block = max(1, 65_536 // size)
        for start in range(0, len(bets), block):
            part = slice(start, start + block)
            total[part] = windows[places[part] - size + 1].sum(axis=1)
        lasts = np.append(laid.heads[1:], True)
        self._bets[laid.slots[lasts]] = windows[places[lasts] - size + 1]
        return total

    def _marks(self, laid: Laid, candidates: Bools) -> Ints:
        """Candidates that are not within `history` events of a mark. A loop over candidates only: they are rare."""
        rows = len(candidates)
        heads = np.flatnonzero(laid.heads)
        nth = np.arange(rows) - np.repeat(heads, np.diff(np.append(heads, rows)))
        since = self._since[laid.slots]
        # The state of a slot may be a forgotten key's; a fresh series has had no mark.
        opening = np.maximum.accumulate(np.where(laid.heads | laid.fresh, np.arange(rows), 0))
        passed = np.where(laid.fresh[opening], _LONG_AGO, since + nth)
        marks = np.zeros(rows, np.int64)
        slot, last = -1, 0
        for row in np.flatnonzero(candidates).tolist():
            if laid.slots[row] != slot or opening[row] > last:
                slot, last = int(laid.slots[row]), row - int(passed[row]) - 1
            if row - last > self._size:
                marks[row], last = 1, row
        self._remember(laid, marks, passed)
        return marks

    def _remember(self, laid: Laid, marks: Ints, passed: Ints) -> None:
        """How many events have passed since each key's last mark."""
        rows = np.arange(len(marks))
        lasts = np.append(laid.heads[1:], True)
        begins = np.maximum.accumulate(np.where(laid.heads | laid.fresh, rows, 0))
        marked = np.maximum.accumulate(np.where(marks == 1, rows, -1))
        since = np.where(marked >= begins, rows - marked, passed + 1)
        self._since[laid.slots[lasts]] = np.minimum(since[lasts], _LONG_AGO)
