"""Windows against a brute-force evaluator, and against themselves at other cuts."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sql_events import START, at, log_events

from headrace.core.clock import TICKS_PER_S, YEAR_ONE
from headrace.sql.compile import compile_script
from headrace.sql.moments import Moment
from headrace.sql.run import Policies, Run

ROWS = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.sampled_from(["a", "b", None, 1, 1.0, True]),
        st.one_of(
            st.none(),
            st.integers(-(1 << 40), 1 << 40),
            st.floats(-1e9, 1e9, allow_nan=False),
        ),
    ),
    min_size=1,
    max_size=40,
)


def brute(rows: list[tuple[int, Any, Any]], size: int, hop: int, offset: int) -> list[tuple[Any, ...]]:
    """(end, key, count, count of x, exact sum, min, max) per window and key, by the definition of the window."""
    found: list[tuple[Any, ...]] = []
    times = [START + second * TICKS_PER_S for second, _, _ in rows]
    origin = YEAR_ONE + offset
    end = -((origin - min(times)) // hop) * hop + origin
    while end - size < max(times):
        inside = [
            (second, (type(key) is bool, key), value)  # bits and numbers are different keys, 1 and 1.0 the same
            for (second, key, value), time in zip(rows, times, strict=True)
            if end - size < time <= end
        ]
        for key in dict.fromkeys(key for _, key, _ in inside):
            values = [value for _, other, value in inside if other == key and value is not None]
            total = sum(map(Fraction, values)) if values else None
            count = sum(other == key for _, other, _ in inside)
            found.append((end, key[1], count, len(values), total, min(values, default=None), max(values, default=None)))
        end += hop
    return found


def engine(rows: list[tuple[int, Any, Any]], window: str, *, cut: int, kill: bool = False) -> list[dict[str, Any]]:
    plan = compile_script(
        "SELECT k, COUNT(*) AS n, COUNT(x) AS nx, SUM(x) AS s, MIN(x) AS lo, MAX(x) AS hi, AVG(x) AS a, STDEV(x) AS sd, "
        f"COLLECT(x) AS c, System.Timestamp() AS w FROM r GROUP BY k, {window}"
    )
    run = Run(plan)
    out: list[dict[str, Any]] = []
    for first in range(0, len(rows), cut):
        piece = rows[first : first + cut]
        bodies = [{"k": key, "x": value} for _, key, value in piece]
        batch = log_events(bodies, arrivals=[at(second) for second, _, _ in piece], first=first)
        out += [row for found in run.process("r", batch).rows for row in found.to_pylist()]
        if kill:
            state = run.snapshot()
            run = Run(plan)
            run.restore(state)
    return out + [row for found in run.finish().rows for row in found.to_pylist()]


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 20), st.integers(1, 20), st.integers(-5, 5))
def test_windows_hold_what_their_definition_says(rows: list[Any], size: int, hop: int, offset: int) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    hop = min(hop, size)
    window = f"Hopping(Duration(second, {size}), Hop(second, {hop}), Offset(second, {offset}))"
    expected = brute(rows, size * TICKS_PER_S, hop * TICKS_PER_S, offset * TICKS_PER_S)
    got = engine(rows, window, cut=len(rows))
    assert [(row["w"], row["k"], row["n"], row["nx"]) for row in got] == [
        (Moment(e), k, n, m) for e, k, n, m, *_ in expected
    ]
    for row, (_, _, _, _, total, low, high) in zip(got, expected, strict=True):
        assert (row["lo"], row["hi"]) == (low, high)
        if total is None:
            assert row["s"] is None
        else:
            assert math.isclose(row["s"], float(total), rel_tol=1e-9, abs_tol=1e-3)


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(1, 12), st.sampled_from([1, 2, 7]), st.booleans())
def test_results_are_bit_identical_at_any_cut(rows: list[Any], size: int, cut: int, kill: bool) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    for window in (
        f"TumblingWindow(second, {size})",
        f"HoppingWindow(second, {size * 2}, {size})",
        "System.Timestamp()",
    ):
        assert repr(engine(rows, window, cut=cut, kill=kill)) == repr(engine(rows, window, cut=len(rows)))


def test_a_variance_far_from_zero_keeps_its_digits() -> None:
    rows = [(second, "a", 1e9 + value) for second, value in enumerate([4.0, 7.0, 13.0, 16.0], start=1)]
    found = engine(rows, "TumblingWindow(second, 10)", cut=4)
    assert found[0]["sd"] == pytest.approx(math.sqrt(30), rel=1e-12)
    merged = engine(rows, "HoppingWindow(second, 10, 1)", cut=1)
    assert merged[-7]["sd"] == pytest.approx(math.sqrt(30), rel=1e-12)


def test_state_shrinks_when_windows_close() -> None:
    run = Run(compile_script("SELECT k, COUNT(*) AS n FROM r GROUP BY k, TumblingWindow(second, 10)"))
    sizes = []
    for turn in range(20):
        bodies = [{"k": f"{turn}-{index}"} for index in range(50)]
        run.process("r", log_events(bodies, arrivals=[at(turn * 10 + 1)] * 50))
        sizes.append(run.stats()["operators"][1]["state_rows"])
    assert max(sizes[1:]) <= 100


def test_idle_time_closes_a_window() -> None:
    plan = compile_script("SELECT COUNT(*) AS n FROM r TIMESTAMP BY ts GROUP BY TumblingWindow(second, 10)")
    run = Run(plan, policies=Policies(late_arrival_s=5))
    assert run.process("r", log_events([{"ts": "2025-01-01T00:00:01Z"}], arrivals=[at(1)])).rows == []
    assert run.advance("r", at(14.9)).rows == []
    closed = run.advance("r", at(15)).rows
    assert [row for found in closed for row in found.to_pylist()] == [{"n": 1}]


def test_a_bigint_sum_that_overflows_is_an_error_not_a_wrong_number() -> None:
    from headrace.core.errors import DataError

    big = (1 << 63) - 1
    run = Run(compile_script("SELECT SUM(x) AS s FROM r GROUP BY TumblingWindow(second, 10)"))
    run.process("r", log_events([{"x": big}, {"x": 1}], arrivals=[at(1), at(2)]))
    with pytest.raises(DataError, match="overflow"):
        run.finish()
