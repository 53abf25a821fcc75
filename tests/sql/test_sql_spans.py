"""Sliding windows, sessions, OVER and joins against a brute-force reading of the rules, at any cut and through restarts."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from sql_events import START, at, log_events

from headrace.core.clock import TICKS_PER_S
from headrace.sql.compile import compile_script
from headrace.sql.operators.spans import changes
from headrace.sql.run import Policies, Run

Row = dict[str, Any]
SEEDS = range(8)


def run(script: str, streams: dict[str, list[tuple[float, Row]]], *, size: int, kill: bool = False) -> list[Row]:
    """Events (seconds, payload) in time order per stream, merged, in batches of at most `size`."""
    plan = compile_script(script)
    policies = Policies(late_arrival_s=-1)
    running = Run(plan, policies=policies)
    merged = sorted(
        ((time, name, row) for name, rows in streams.items() for time, row in rows), key=lambda event: event[0]
    )
    out: list[Row] = []
    start = 0
    while start < len(merged):
        stop = start
        while stop < len(merged) and merged[stop][1] == merged[start][1] and stop - start < size:
            stop += 1
        some = merged[start:stop]
        batch = log_events([row for _, _, row in some], arrivals=[at(time) for time, _, _ in some], first=start)
        for rows in running.process(some[0][1], batch).rows:
            out += rows.to_pylist()
        if kill:
            state, running = running.snapshot(), Run(plan, policies=policies)
            running.restore(state)
        start = stop
    for rows in running.finish().rows:
        out += rows.to_pylist()
    return out


def everywhere(script: str, streams: dict[str, list[tuple[float, Row]]]) -> list[Row]:
    straight = run(script, streams, size=10_000)
    for size, kill in ((1, False), (3, True)):
        assert repr(run(script, streams, size=size, kill=kill)) == repr(straight)
    return straight


def walk(rng: random.Random, count: int, **ranges: int) -> list[tuple[float, Row]]:
    time, found = 0.0, []
    for number in range(count):
        time += rng.choice([0, 1, 1, 2, 7])
        found.append((time, {"n": number, **{name: rng.randrange(most) for name, most in ranges.items()}}))
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sliding_window_reports_every_change_of_its_group(seed: int) -> None:
    events = walk(random.Random(seed), 40, k=3)
    script = "SELECT k, System.Timestamp() AS t, SUM(n) AS s FROM r GROUP BY k, SlidingWindow(second, 5)"
    want = set()
    for key in range(3):
        own = [(time, row["n"]) for time, row in events if row["k"] == key]
        for instant in {time for time, _ in own} | {time + 5 for time, _ in own}:
            inside = [number for time, number in own if instant - 5 < time <= instant]
            if inside:
                want.add((key, at(instant), sum(inside)))
    got = [(row["k"], row["t"].ticks, row["s"]) for row in everywhere(script, {"r": events})]
    assert len(got) == len(want)
    assert set(got) == want


@pytest.mark.parametrize("unit", [1, 1 << 50])  # times that fit into one number with an id, and times that do not
@pytest.mark.parametrize("seed", SEEDS)
def test_changes_name_each_instant_once_with_the_rows_of_its_window(seed: int, unit: int) -> None:
    rng = random.Random(seed)
    size, emitted = 6 * unit, 20 * unit
    mark = emitted + rng.randrange(1, 12) * unit
    rows = sorted((rng.randrange(0, 2000, 300), rng.randrange(emitted - size, mark, unit) + unit) for _ in range(40))
    come = [time > emitted for _, time in rows]
    go = [time <= mark - size for _, time in rows]
    want = []
    instants = {row for row, some in zip(rows, come, strict=True) if some}
    instants |= {(key, time + size) for (key, time), some in zip(rows, go, strict=True) if some}
    for key, end in sorted(instants):
        low, high = ((key, time) for time in (end - size, end))
        want.append((key, end, sum(row <= low for row in rows), sum(row <= high for row in rows)))
    ids, times = np.array(rows).T
    got = changes(ids, times, size, np.array(come), np.array(go))
    assert list(zip(*(part.tolist() for part in got), strict=True)) == want


@pytest.mark.parametrize("seed", SEEDS)
def test_a_session_ends_at_its_timeout_or_a_check_point(seed: int) -> None:
    events = walk(random.Random(seed), 40, k=2)
    script = """SELECT k, System.Timestamp() AS t, COUNT(*) AS c FROM r
        GROUP BY k, SessionWindow(second, 3, 10) OVER (PARTITION BY k)"""
    want: list[tuple[int, int, int]] = []
    for key in range(2):
        session: list[float] = []

        def end(session: list[float]) -> float:
            check = 0
            while check - session[0] < 10:  # START lies on a multiple of 10 s
                check += 10
            return min(session[-1] + 3, check)

        for time in [time for time, row in events if row["k"] == key]:
            if session and time > end(session):
                want.append((key, at(end(session)), len(session)))
                session = []
            session.append(time)
        if session:
            want.append((key, at(end(session)), len(session)))
    got = [(row["k"], row["t"].ticks, row["c"]) for row in everywhere(script, {"r": events})]
    assert sorted(got) == sorted(want)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_aggregate_with_over_sees_its_past_and_itself(seed: int) -> None:
    events = walk(random.Random(seed), 40, k=2, v=3)
    script = "SELECT n, SUM(n) OVER (PARTITION BY k LIMIT DURATION(second, 6) WHEN v > 0) AS s FROM r"
    want = []
    for index, (time, row) in enumerate(events):
        past = events[: index + 1]
        some = [e["n"] for t, e in past if e["k"] == row["k"] and e["v"] > 0 and time - t < 6]
        want.append((row["n"], sum(some) if some else None))
    assert [(row["n"], row["s"]) for row in everywhere(script, {"r": events})] == want


@pytest.mark.parametrize("low", [-2, 0, 1])
@pytest.mark.parametrize("unit", ["second", "minute"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_left_join_pairs_what_lies_within_its_bounds(seed: int, unit: str, low: int) -> None:
    rng = random.Random(seed)
    high, length = low + 2, {"second": 1, "minute": 60}[unit]
    left, right = (
        [(time * (1 if unit == "second" else 17) + 0.25, row) for time, row in walk(rng, 15, k=2)] for _ in range(2)
    )
    script = f"""SELECT l.n AS a, q.n AS b, System.Timestamp() AS t FROM l LEFT JOIN q
        ON l.k = q.k AND DATEDIFF({unit}, l, q) BETWEEN {low} AND {high} AND l.n + q.n <> 9"""
    want = []
    for time, row in left:
        pairs = [
            (row["n"], other["n"], at(max(time, when)))
            for when, other in right
            if row["k"] == other["k"] and low <= when // length - time // length <= high and row["n"] + other["n"] != 9
        ]
        want += pairs or [(row["n"], None, at(max(time, time + high * length)))]
    got = [(row["a"], row["b"], row["t"].ticks) for row in everywhere(script, {"l": left, "q": right})]
    assert [time for _, _, time in got] == sorted(time for _, _, time in got)
    assert sorted(map(repr, got)) == sorted(map(repr, want))


def test_what_a_join_and_a_window_hold_does_not_grow_with_time() -> None:
    script = """SELECT l.n FROM l JOIN q ON DATEDIFF(second, l, q) BETWEEN 0 AND 3 AND l.k = q.k
        SELECT COUNT(*) AS c INTO w FROM l GROUP BY SlidingWindow(second, 5)"""
    running = Run(compile_script(script), policies=Policies())
    held = []
    for step in range(40):
        for name in ("l", "q"):
            batch = log_events([{"k": step, "n": 1}] * 5, arrivals=[at(step * 10)] * 5)
            running.process(name, batch)
        held.append(sum(operator["state_rows"] for operator in running.stats()["operators"]))
    assert max(held[5:]) <= max(held[:5]) <= 40


def test_a_pattern_may_branch_repeat_and_compare_with_what_was_matched() -> None:
    script = """SELECT T.first, T.top, T.names FROM r MATCH_RECOGNIZE (LIMIT DURATION(second, 30) PARTITION BY k
        MEASURES First(A.v) AS first, Max(B.v) AS top, Classifier() AS names
        AFTER MATCH SKIP TO NEXT ROW PATTERN (A B+ (C | D)?)
        DEFINE A AS A.v = 0, B AS B.v > Last(A.v) AND B.v >= First(B.v), C AS C.v = 0, D AS D.v < 0) AS T"""
    events = [(float(at_), {"k": 1, "v": value}) for at_, value in enumerate([0, 2, 3, -1, 0, 5, 0, 4, 4])]
    assert everywhere(script, {"r": events}) == [
        {"first": 0, "top": 3, "names": ["A", "B", "B", "D"]},
        {"first": 0, "top": 5, "names": ["A", "B", "C"]},
        {"first": 0, "top": 4, "names": ["A", "B", "B"]},
    ]


def test_create_table_refuses_what_does_not_fit_and_gives_types() -> None:
    script = """CREATE TABLE r (a bigint, f float, d datetime);
        SELECT a, GetType(f) AS f, GetType(d) AS d FROM r"""
    running = Run(compile_script(script))
    day = "2025-01-01T00:00:00Z"
    good = {"a": 1, "f": 2, "d": day}
    bodies = [good, {**good, "a": "1"}, {"a": 1, "f": 1.5}, {**good, "a": None}, {**good, "d": "monday"}]
    found = running.process("r", log_events(bodies))
    assert [row for rows in found.rows for row in rows.to_pylist()] == [
        {"a": 1, "f": "float", "d": "datetime"},
        {"a": None, "f": "float", "d": "datetime"},
    ]
    assert [(aside.reason, aside.events.num_rows) for aside in found.set_aside] == [("type_mismatch", 3)]


def test_each_over_key_has_its_own_time_and_is_forgotten_when_idle() -> None:
    script = "SELECT k, COUNT(*) AS c FROM r TIMESTAMP BY ts OVER k GROUP BY k, TumblingWindow(second, 5)"
    running = Run(compile_script(script), policies=Policies(late_arrival_s=20))
    stamp = "2025-01-01T00:00:{:02}Z".format
    out: list[Row] = []
    for step, (key, second) in enumerate([("a", 10), ("b", 1), ("a", 17), ("b", 2), ("b", 9)]):
        batch = log_events([{"k": key, "ts": stamp(second)}], arrivals=[at(18 + step * 0.1)])
        out += [row for rows in running.process("r", batch).rows for row in rows.to_pylist()]
    assert out == [{"k": "a", "c": 1}, {"k": "b", "c": 2}]
    late = log_events([{"k": "c", "ts": "2025-01-01T01:00:00Z"}], arrivals=[START + 3600 * TICKS_PER_S])
    running.process("r", late)
    assert list(running.lanes) == [("c",)]
    null = running.process("r", log_events([{"ts": stamp(1)}], arrivals=[START + 3601 * TICKS_PER_S]))
    assert [aside.reason for aside in null.set_aside] == ["bad_timestamp_key"]
