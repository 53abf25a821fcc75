"""The spike detector: the rules, one value at a time, against the vectorised whole."""

import math
import random

import numpy as np
import provided
import pytest
import yaml
from one_key_reference import Reference

from headrace.core.clock import TICKS_PER_S, from_iso
from headrace.core.errors import DataError, UserError
from headrace.detect.erf import Erf
from headrace.detect.spike_dip import SpikeDip

SECOND = TICKS_PER_S
CASES = provided.CASES


def workload(seed: int, rows: int = 600, keys: int = 7, step: int = SECOND):
    """Keys of different rates with pauses, repeats, simultaneous events and outliers."""
    rng = random.Random(seed)
    clock = [rng.randrange(5 * step) for _ in range(keys)]
    key, time, value = [], [], []
    for _ in range(rows):
        k = min(rng.randrange(keys), rng.randrange(keys))
        clock[k] += rng.choice(
            [0, step, step, step, step * 3 // 2, 2 * step, 3 * step, 13 * step, rng.randrange(40 * step)]
        )
        key.append(k)
        time.append(clock[k])
        value.append(rng.choice([5.0, rng.gauss(10 * k, 1), rng.gauss(10 * k, 1), 10 * k + 40.0]))
    return np.array(key), np.array(time), np.array(value)


@pytest.mark.parametrize("mode", ["spikes", "dips", "spikesanddips"])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_the_rules_read_one_event_at_a_time(seed, mode):
    keys, times, values = workload(seed)
    detector = SpikeDip(10, 95.0, mode, 10 * SECOND)
    anomalies, scores = detector.score(keys, times, values)
    plain = {k: Reference(10, 10 * SECOND, 95.0, mode) for k in range(7)}
    expected = [plain[k].push(t, v) for k, t, v in zip(keys.tolist(), times.tolist(), values.tolist(), strict=True)]
    assert np.abs(scores - [p for _, p in expected]).max() < 1e-9, f"seed {seed}"
    assert anomalies.tolist() == [a for a, _ in expected], f"seed {seed}"
    assert anomalies.any()


@pytest.mark.parametrize("seed", range(6))
def test_cuts_snapshots_and_expiry_change_no_bit(seed):
    keys, times, values = workload(seed, rows=400)
    whole = SpikeDip(13, 90.0, "spikesanddips", 9 * SECOND).score(keys, times, values)
    rng = random.Random(seed)
    detector, pieces, start = SpikeDip(13, 90.0, "spikesanddips", 9 * SECOND), [], 0
    while start < len(keys):
        end = start + rng.choice([1, 2, 5, 40, 120])
        pieces.append(detector.score(keys[start:end], times[start:end], values[start:end]))
        start = end
        detector.expire(min((times[start:][keys[start:] == k].min() for k in set(keys[start:].tolist())), default=0))
        state = detector.snapshot()
        detector = SpikeDip(13, 90.0, "spikesanddips", 9 * SECOND)
        detector.restore(state)
    assert b"".join(a.tobytes() for a, _ in pieces) == whole[0].tobytes(), f"seed {seed}"
    assert b"".join(s.tobytes() for _, s in pieces) == whole[1].tobytes(), f"seed {seed}"


def test_a_batch_larger_than_a_piece_scores_as_small_ones_do(monkeypatch):
    keys, times, values = workload(1)
    whole = SpikeDip(10, 95.0, "spikes", 10 * SECOND).score(keys, times, values)
    monkeypatch.setattr("headrace.detect.history._PIECE", 17)
    pieces = SpikeDip(10, 95.0, "spikes", 10 * SECOND).score(keys, times, values)
    assert pieces[1].tobytes() == whole[1].tobytes()
    assert pieces[0].tobytes() == whole[0].tobytes()


def test_idle_keys_give_their_place_to_new_ones():
    detector = SpikeDip(5, 95.0, "spikes", 5 * SECOND)
    for wave in range(20):
        keys = np.arange(100 * wave, 100 * wave + 100)
        detector.score(keys, np.full(100, wave * 60 * SECOND), np.ones(100))
        assert detector.expire(wave * 60 * SECOND + 30 * SECOND).tolist() == keys.tolist()
        assert detector.live == 0
    assert detector._history.capacity == 100


def test_a_key_silent_for_two_durations_starts_afresh():
    detector = SpikeDip(4, 95.0, "spikes", 4 * SECOND)
    one = np.zeros(1, np.int64)
    for second in range(8):
        detector.score(one, np.array([second * SECOND]), np.array([1.0 + second % 2]))
    assert detector.score(one, np.array([100 * SECOND]), np.array([500.0]))[1].tolist() == [0.5]
    flag, score = detector.score(one, np.array([101 * SECOND]), np.array([900.0]))
    assert (flag.tolist(), score.tolist()) == ([0], [1e-8])


def test_an_event_out_of_order_counts_as_simultaneous_with_the_latest():
    late, adjusted = (SpikeDip(6, 95.0, "spikes", 6 * SECOND) for _ in range(2))
    keys, values = np.array([0, 1, 0, 1, 0, 1]), np.array([1.0, 5, 2, 6, 9, 7])
    got = late.score(keys, np.array([5, 5, 3, 6, 4, 7]) * SECOND, values)
    assert got[1].tolist() == adjusted.score(keys, np.array([5, 5, 5, 6, 5, 7]) * SECOND, values)[1].tolist()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_refused_before_anything_changes(value):
    detector = SpikeDip(5, 95.0, "spikes", 5 * SECOND)
    with pytest.raises(DataError, match="row 1"):
        detector.score(np.array([0, 0]), np.array([0, SECOND]), np.array([1.0, value]))
    assert detector.live == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((0, 95.0, "spikes", SECOND), "detect.history"),
        ((5, 0.5, "spikes", SECOND), "detect.confidence"),
        ((5, 95.0, "peaks", SECOND), "detect.mode"),
        ((5, 95.0, "spikes", 0), "detect.duration"),
    ],
)
def test_wrong_arguments_are_user_errors(arguments, code):
    with pytest.raises(UserError) as caught:
        SpikeDip(*arguments)
    assert caught.value.code == code


def test_state_of_another_history_size_is_refused():
    detector = SpikeDip(5, 95.0, "spikes", 5 * SECOND)
    detector.score(np.array([0]), np.array([0]), np.array([1.0]))
    with pytest.raises(UserError, match="remembers 5 values"):
        SpikeDip(6, 95.0, "spikes", 5 * SECOND).restore(detector.snapshot())


def test_an_empty_batch_and_an_empty_state_are_fine():
    detector = SpikeDip(5, 95.0, "spikes", 5 * SECOND)
    detector.restore(detector.snapshot())
    none = np.empty(0, np.int64)
    assert [len(a) for a in detector.score(none, none, np.empty(0))] == [0, 0]


def test_the_error_function_is_right_to_nine_digits():
    z = np.concatenate([np.linspace(-7, 7, 40_001), [0.0, 1e300, -1e300, 1e-300]])[None, :]
    wanted = np.array([math.erf(v) for v in z[0]])
    got = Erf(z.shape)(z, np.ones(1))[0]
    assert np.abs(got - wanted).max() < 1e-9
    assert got[-4] == 0.0


@pytest.mark.skipif(not CASES.is_dir(), reason="the conformance cases are not on this machine")
@pytest.mark.parametrize(
    ("case", "mode", "output"),
    [
        ("anomaly-spike", "spikesanddips", "output"),
        ("anomaly-partitioned", "spikesanddips", "output"),
        ("anomaly-modes", "spikes", "spikes"),
        ("anomaly-modes", "dips", "dips"),
    ],
)
def test_conformance_cases_mark_the_outlier_only(case, mode, output):
    content = yaml.safe_load((CASES / f"{case}.yaml").read_text())
    rows = content["inputs"]["r"]["rows"]
    devices = sorted({row.get("dev", "") for row in rows})
    keys = np.array([devices.index(row.get("dev", "")) for row in rows])
    times = np.array([from_iso(row["ts"]) for row in rows])
    flags, _ = SpikeDip(40, 95.0, mode, 40 * SECOND).score(keys, times, np.array([row["v"] for row in rows]))
    marked = [row for row, flag in zip(rows, flags, strict=True) if flag]
    assert [(row["seq"], row.get("dev")) for row in marked] == [
        (r["seq"], r.get("dev")) for r in content["expect"][output]
    ]
