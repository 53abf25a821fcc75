"""The change point detector: against the rules read one event at a time."""

import math
import random

import numpy as np
import pytest
from one_key_reference import Reference

from headrace.core.clock import TICKS_PER_S
from headrace.core.errors import UserError
from headrace.detect.change_point import ChangePoint

SECOND = TICKS_PER_S


def levels(seed, rows=900, keys=5):
    """Keys whose level jumps now and then, with pauses that make them forget."""
    rng = random.Random(seed)
    clock, level = [0] * keys, [0.0] * keys
    key, time, value = [], [], []
    for _ in range(rows):
        k = rng.randrange(keys)
        clock[k] += rng.choice([SECOND] * 60 + [2 * SECOND, 70 * SECOND])
        if rng.random() < 0.02:
            level[k] += rng.choice([-30, 30])
        key.append(k)
        time.append(clock[k])
        value.append(level[k] + rng.gauss(0, 1))
    return np.array(key), np.array(time), np.array(value)


class Plain:
    """One key: p-values of the reference, a product of bets, a pause after a mark."""

    def __init__(self, history, duration, confidence):
        self.tail = Reference(history, duration, 100.0, "spikesanddips")
        self.history, self.duration = history, duration
        self.bets, self.since, self.limit = [], 1 << 40, history * self.bet(max(1 - confidence / 100, 1e-8))

    @staticmethod
    def bet(p):
        return math.log(0.1 * p ** (0.1 - 1))

    def push(self, time, value):
        _, p = self.tail.push(time, value)
        past = len(self.tail.past) - 1
        if past == 0:
            self.bets, self.since = [self.bet(p)] * self.history, 1 << 40
        else:
            self.bets = [*self.bets[1:], self.bet(p)]
        total = math.fsum(self.bets)
        ready = past + 1 >= self.history or (time - self.tail.observed >= self.duration and past >= 1)
        mark = ready and total >= self.limit and self.since >= self.history
        self.since = 0 if mark else self.since + 1
        return int(mark), total


@pytest.mark.parametrize("seed", range(4))
def test_scores_and_marks_are_those_of_the_rules_read_one_event_at_a_time(seed):
    keys, times, values = levels(seed)
    marks, scores = ChangePoint(12, 60.0, 12 * SECOND).score(keys, times, values)
    plain = {k: Plain(12, 12 * SECOND, 60.0) for k in range(5)}
    expected = [plain[k].push(t, v) for k, t, v in zip(keys.tolist(), times.tolist(), values.tolist(), strict=True)]
    assert np.abs(np.log(scores) - [total for _, total in expected]).max() < 0.2, f"seed {seed}"
    assert marks.tolist() == [mark for mark, _ in expected], f"seed {seed}"
    assert marks.sum() > 3


@pytest.mark.parametrize("seed", range(4))
def test_cuts_snapshots_and_expiry_change_no_bit(seed):
    keys, times, values = levels(seed)
    whole = ChangePoint(12, 60.0, 12 * SECOND).score(keys, times, values)
    rng = random.Random(seed)
    detector, pieces, start = ChangePoint(12, 60.0, 12 * SECOND), [], 0
    while start < len(keys):
        end = start + rng.choice([1, 3, 30, 200])
        pieces.append(detector.score(keys[start:end], times[start:end], values[start:end]))
        start = end
        detector.expire(min((times[start:][keys[start:] == k].min() for k in set(keys[start:].tolist())), default=0))
        state = detector.snapshot()
        detector = ChangePoint(12, 60.0, 12 * SECOND)
        detector.restore(state)
    assert b"".join(m.tobytes() for m, _ in pieces) == whole[0].tobytes(), f"seed {seed}"
    assert b"".join(s.tobytes() for _, s in pieces) == whole[1].tobytes(), f"seed {seed}"


@pytest.mark.parametrize("seed", range(4))
def test_a_step_is_marked_once_soon_after_it_happens(seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate((rng.normal(0, 1, 400), rng.normal(5, 1, 400)))
    marks, _ = ChangePoint(120, 80.0, 120 * SECOND).score(np.zeros(800, np.int64), np.arange(800) * SECOND, values)
    assert marks.sum() == 1
    assert 400 <= int(np.flatnonzero(marks)[0]) < 420


def test_a_steady_series_is_not_marked():
    values = np.random.default_rng(2).normal(0, 1, 2000)
    marks, _ = ChangePoint(120, 80.0, 120 * SECOND).score(np.zeros(2000, np.int64), np.arange(2000) * SECOND, values)
    assert marks.sum() == 0


def test_a_place_that_another_key_left_remembers_nothing():
    detector = ChangePoint(5, 60.0, 5 * SECOND)
    detector.score(np.zeros(30, np.int64), np.arange(30) * SECOND, np.arange(30.0) ** 2)
    assert detector.expire(1000 * SECOND).tolist() == [0]
    series = np.random.default_rng(3).normal(size=30)
    reused = detector.score(np.ones(30, np.int64), np.arange(2000, 2030) * SECOND, series)
    fresh = ChangePoint(5, 60.0, 5 * SECOND).score(np.ones(30, np.int64), np.arange(2000, 2030) * SECOND, series)
    assert reused[1].tolist() == fresh[1].tolist()
    assert reused[0].tolist() == fresh[0].tolist()


def test_state_of_another_history_size_is_refused():
    detector = ChangePoint(5, 95.0, 5 * SECOND)
    detector.score(np.array([0]), np.array([0]), np.array([1.0]))
    with pytest.raises(UserError, match="remembers 5 values"):
        ChangePoint(6, 95.0, 5 * SECOND).restore(detector.snapshot())
