"""The arrays behind keyed operators, against plain Python: spans, order, keys, cells, and what the operators make of them."""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sql_events import START, at, log_events

from headrace.core.clock import TICKS_PER_S
from headrace.sql import doubling, values
from headrace.sql.arrays import Fifo, expand, numbered, pair_order, sorted_pairs, stable_order
from headrace.sql.compile import compile_script
from headrace.sql.evaluate import Frame, apply
from headrace.sql.functions.record import PROPERTY
from headrace.sql.key_ids import KeyIds
from headrace.sql.keys import Keys
from headrace.sql.operators.cells import Cells
from headrace.sql.operators.spans import count_upto
from headrace.sql.run import Policies, Run

Row = dict[str, Any]
SEEDS = range(4)


def spans(rng: np.random.Generator, rows: int, count: int, *, least: int = 0) -> tuple[Any, Any]:
    low = rng.integers(0, rows - least, count)
    return low, np.minimum(low + rng.integers(least, rows, count), rows)


@pytest.mark.parametrize("seed", SEEDS)
def test_span_sums_are_those_of_the_rows_and_of_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.normal(0, 1, 300) * 10.0 ** rng.integers(-8, 8, 300)
    low, high = spans(rng, 300, 200)
    found = doubling.sums(data, low, high)
    for value, start, stop in zip(found.tolist(), low.tolist(), high.tolist(), strict=True):
        exact = sum(map(Fraction, data[start:stop].tolist()), Fraction(0))
        reach = math.fsum(map(abs, data[start:stop].tolist()))
        assert abs(Fraction(value) - exact) <= 12 * 2.0**-53 * reach
        alone = doubling.sums(data[start:stop].copy(), np.array([0]), np.array([stop - start]))
        assert alone[0] == value, "what lies around a span changed its sum"


def test_a_value_that_left_leaves_nothing_behind_in_a_sum() -> None:
    data = np.array([1e16, 0.1, 0.2, 1e308, 1e308, 0.3])
    low, high = np.array([0, 1, 5, 2]), np.array([1, 3, 6, 2])
    assert doubling.sums(data, low, high).tolist() == [1e16, 0.1 + 0.2, 0.3, 0.0]


@pytest.mark.parametrize("seed", SEEDS)
def test_span_sums_of_bigints_are_exact_and_tell_what_fits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(-(1 << 63), (1 << 63) - 1, 60)
    low, high = spans(rng, 60, 100)
    upper, lower = doubling.whole_sums(data, low, high)
    want = [sum(data[start:stop].tolist()) for start, stop in zip(low.tolist(), high.tolist(), strict=True)]
    assert [(up << 32) + down for up, down in zip(upper.tolist(), lower.tolist(), strict=True)] == want
    assert [-(1 << 31) <= up < 1 << 31 for up in upper.tolist()] == [-(1 << 63) <= sum_ < 1 << 63 for sum_ in want]


@pytest.mark.parametrize("seed", SEEDS)
def test_span_extremes_and_moments_are_those_of_the_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.normal(1000, 3, 200)
    low, high = spans(rng, 200, 150, least=2)
    least, most = doubling.extremes(data, low, high, np.minimum), doubling.extremes(data, low, high, np.maximum)
    mean, deviations = doubling.moments(data, low, high)
    for index, (start, stop) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        own = data[start:stop].tolist()
        assert (least[index], most[index]) == (min(own), max(own))
        assert mean[index] == pytest.approx(statistics.fmean(own), rel=1e-14)
        assert deviations[index] == pytest.approx(statistics.pvariance(own) * len(own), rel=1e-9)


@pytest.mark.parametrize("groups", [1, 7, 70_000, 1 << 33])
def test_rows_are_ordered_by_group_and_stay_in_order_within(groups: int) -> None:
    codes = np.random.default_rng(groups).integers(0, groups, 500)
    assert stable_order(codes, groups).tolist() == np.argsort(codes, kind="stable").tolist()


@pytest.mark.parametrize("scale", [1, 1 << 40, 1 << 58])
def test_pairs_are_sorted_whether_or_not_they_fit_one_number(scale: int) -> None:
    rng = np.random.default_rng(scale % 97)
    small, wide = rng.integers(0, 40, 300), rng.integers(-9, 9, 300) * scale
    first, second = sorted_pairs(small, wide)
    want = sorted(set(zip(small.tolist(), wide.tolist(), strict=True)))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == want
    shuffled = rng.permutation(len(first))
    order = pair_order(second[shuffled], first[shuffled])
    found = list(zip(second[shuffled][order].tolist(), first[shuffled][order].tolist(), strict=True))
    assert found == sorted(found)


@pytest.mark.parametrize("far", [10, 1 << 61])
def test_counting_up_to_a_time_agrees_with_counting(far: int) -> None:
    rng = np.random.default_rng(3)
    pairs = sorted(zip(rng.integers(0, 5, 80).tolist(), (rng.integers(-9, 9, 80) * (far // 10)).tolist(), strict=True))
    codes, times = (np.array(part, np.int64) for part in zip(*pairs, strict=True))
    asked, when = rng.integers(-1, 6, 60), rng.integers(-12, 12, 60) * (far // 10)
    want = [sum(pair <= (c, t) for pair in pairs) for c, t in zip(asked.tolist(), when.tolist(), strict=True)]
    assert count_upto(codes, times, asked, when).tolist() == want


def test_a_queue_gives_its_rows_back_in_order() -> None:
    rng, queue, want = random.Random(5), Fifo(2), deque()
    for step in range(300):
        more = np.arange(rng.randrange(9)) + step * 10
        queue.append(more, -more)
        want.extend(more.tolist())
        gone = rng.randrange(len(want) + 1) if step % 3 == 0 else 0
        queue.pop(gone)
        for _ in range(gone):
            want.popleft()
        assert queue.column(0).tolist() == [-value for value in queue.column(1).tolist()] == list(want)


def test_spans_expand_and_ids_are_numbered() -> None:
    span, position = expand(np.array([4, 2, 9]), np.array([6, 2, 12]))
    assert (span.tolist(), position.tolist()) == ([0, 0, 2, 2, 2], [4, 5, 9, 10, 11])
    codes, found = numbered(np.array([7, 2, 7, 5]), 8)
    assert (codes.tolist(), found.tolist()) == ([2, 0, 2, 1], [2, 5, 7])


@pytest.mark.parametrize("width", [0, 1, 2])
def test_a_forgotten_key_gives_its_number_to_another_and_a_snapshot_keeps_the_rest(width: int) -> None:
    ids = KeyIds()
    parts = [["a", "b", "c", None], [1, 2, 1, 2]][:width]
    keys = Keys(parts, 4 if width else 1)
    first = ids.number(keys)
    assert first.tolist() == list(range(len(keys)))
    assert list(ids.keys(first)) == list(keys)
    restored = KeyIds()
    assert restored.restore(ids.packed(first)).tolist() == first.tolist()
    assert restored.find(keys).tolist() == first.tolist()
    ids.forget(first[:1])
    assert ids.find(keys).tolist() == [-1, *first[1:].tolist()]
    again = Keys([["new"]] * width, 1)
    assert ids.number(again).tolist() == [0]
    assert ids.room == len(keys)


def test_cells_keep_every_type_and_null() -> None:
    rng, cells, want = random.Random(2), Cells(), {}
    cells.reserve(5)
    for _ in range(40):
        some = rng.sample(range(30), 6)
        new = [rng.choice([1, -2.5, True, "x", None, {"a": [1]}, [2], ""]) for _ in some]
        cells.reserve(30)
        cells.put(np.array(some), values.from_values(new))
        want |= dict(zip(some, new, strict=True))
        asked = rng.sample(sorted(want), len(want))
        assert cells.take(np.array(asked)).to_list() == [want[cell] for cell in asked]


# -- operators on them


def run(script: str, events: list[tuple[float, Row]], *, size: int, kill: bool = False) -> list[Row]:
    plan = compile_script(script)
    policies = Policies(late_arrival_s=-1)
    running, out = Run(plan, policies=policies), []
    for start in range(0, len(events), size):
        some = events[start : start + size]
        batch = log_events([row for _, row in some], arrivals=[at(time) for time, _ in some], first=start)
        out += [row for rows in running.process("r", batch).rows for row in rows.to_pylist()]
        if kill:
            state, running = running.snapshot(), Run(plan, policies=policies)
            running.restore(state)
    return out + [row for rows in running.finish().rows for row in rows.to_pylist()]


def everywhere(script: str, events: list[tuple[float, Row]]) -> list[Row]:
    straight = run(script, events, size=10_000)
    for size, kill in ((1, False), (5, True), (64, False)):
        assert repr(run(script, events, size=size, kill=kill)) == repr(straight)
    return straight


def mixed(rng: random.Random, rows: int) -> list[tuple[float, Row]]:
    """Events of a few keys, values of changing types, with pauses in which everything is forgotten."""
    time, found = 0.0, []
    for number in range(rows):
        time += rng.choice([0, 0.1, 0.5, 1, 1, 4, 60 if number % 97 == 0 else 1])
        value = rng.choice([rng.randrange(9), rng.random() * 1e6, rng.random(), None])
        found.append((time, {"n": number, "k": rng.choice(["a", "b", 3, 3.0, None]), "x": value}))
    return found


AGGREGATES = ["COUNT(x)", "SUM(x)", "AVG(x)", "MIN(x)", "MAX(x)", "STDEV(x)", "VARP(x)"]


@pytest.mark.parametrize(
    "window", ["SlidingWindow(second, 6)", "HoppingWindow(second, 12, 2)", "TumblingWindow(second, 3)"]
)
@pytest.mark.parametrize("seed", SEEDS)
def test_windows_over_values_of_any_number_type_agree_with_plain_sums_at_any_cut(seed: int, window: str) -> None:
    events = mixed(random.Random(seed), 150)
    calls = ", ".join(f"{call} AS [{call}]" for call in ["COUNT(*)", *AGGREGATES])
    got = everywhere(f"SELECT k, System.Timestamp() AS t, {calls} FROM r GROUP BY k, {window}", events)
    size = {"S": 6, "H": 12, "T": 3}[window[0]]
    assert got
    for row in got:
        end = row["t"].ticks
        own = [e["x"] for t, e in events if e["k"] == row["k"] and end - size * TICKS_PER_S < at(t) <= end]
        agree(row, own)


@pytest.mark.parametrize("seed", SEEDS)
def test_aggregates_with_over_agree_with_plain_sums_at_any_cut(seed: int) -> None:
    events = mixed(random.Random(seed), 150)
    over = "OVER (PARTITION BY k LIMIT DURATION(second, 6))"
    calls = ", ".join(f"{call} {over} AS [{call}]" for call in ["COUNT(*)", *AGGREGATES[:5]])
    got = everywhere(f"SELECT {calls} FROM r", events)
    assert len(got) == len(events)
    for index, row in enumerate(got):
        time, event = events[index]
        own = [e["x"] for t, e in events[: index + 1] if e["k"] == event["k"] and at(time) - at(t) < 6 * TICKS_PER_S]
        agree(row, own)


def agree(row: Row, own: list[Any]) -> None:
    """`row` has aggregates by their text, over the values `own`."""
    numbers = [value for value in own if value is not None]
    assert (row["COUNT(*)"], row["COUNT(x)"]) == (len(own), len(numbers))
    if not numbers:
        assert {row[name] for name in AGGREGATES[1:] if name in row} == {None}
        return
    assert row["SUM(x)"] == pytest.approx(math.fsum(numbers), rel=1e-12)
    assert type(row["SUM(x)"]) is (float if any(type(value) is float for value in numbers) else int)
    assert row["AVG(x)"] == pytest.approx(math.fsum(numbers) / len(numbers), rel=1e-12)
    assert (row["MIN(x)"], row["MAX(x)"]) == (min(numbers), max(numbers))
    if "VARP(x)" in row:
        assert row["VARP(x)"] == pytest.approx(statistics.pvariance(numbers), rel=1e-9, abs=1e-9)
        if len(numbers) == 1:
            assert row["STDEV(x)"] is None
        else:
            assert row["STDEV(x)"] == pytest.approx(statistics.stdev(numbers), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("offset", [1, 3])
def test_lag_and_last_find_what_a_plain_search_finds_at_any_cut(seed: int, offset: int) -> None:
    events = [
        (t, {**e, "x": random.Random(t + seed).choice([1, 2.5, "s", None, True, {"y": 1}])})
        for t, e in mixed(random.Random(seed), 150)
    ]
    when = "WHEN n % 3 <> 0"
    over = f"OVER (PARTITION BY k LIMIT DURATION(second, 9) {when})"
    got = everywhere(
        f"""SELECT LAG(x, {offset}, -1) {over} AS p, LAST(x) {over} AS q,
            ISFIRST(second, 4) OVER (PARTITION BY k {when}) AS f FROM r""",
        events,
    )
    opened: set[Any] = set()
    for index, row in enumerate(got):
        time, event = events[index]
        own = [(t, e["x"]) for t, e in events[: index + 1] if e["k"] == event["k"] and e["n"] % 3]
        before = own[:-1] if event["n"] % 3 else own
        far = before[-offset] if len(before) >= offset else None
        near = own[-1] if own else None
        assert repr(row["p"]) == repr(far[1] if far and at(time) - at(far[0]) < 9 * TICKS_PER_S else -1)
        assert repr(row["q"]) == repr(near[1] if near and at(time) - at(near[0]) < 9 * TICKS_PER_S else None)
        mark = (repr(event["k"]).replace(".0", ""), -((START - at(time)) // (4 * TICKS_PER_S)))
        assert row["f"] == int(bool(event["n"] % 3) and mark not in opened)
        if event["n"] % 3:
            opened.add(mark)


def test_a_reference_join_pairs_each_event_with_all_rows_of_its_key() -> None:
    table = pa.table({"id": ["a", "b", "a", None], "size": [1, 2, 3, 4]})
    events = [{"n": number, "k": key} for number, key in enumerate(["b", "a", "z", None, "a"])]
    for kind, alone in (("JOIN", []), ("LEFT JOIN", [(2, None), (3, None)])):
        plan = compile_script(f"SELECT r.n, m.size FROM r {kind} m ON r.k = m.id", references=["m"])
        found = Run(plan, references={"m": table}).process("r", log_events(events))
        got = [(row["n"], row["size"]) for rows in found.rows for row in rows.to_pylist()]
        assert got == sorted([(0, 2), (1, 1), (1, 3), (4, 1), (4, 3), *alone], key=lambda pair: pair[0])


def test_state_of_keys_that_went_silent_is_let_go() -> None:
    script = """SELECT LAG(n) OVER (PARTITION BY k LIMIT DURATION(second, 5)) AS a INTO a FROM r
        SELECT COUNT(*) OVER (PARTITION BY k LIMIT DURATION(second, 5)) AS b INTO b FROM r
        SELECT k, COUNT(*) AS c INTO c FROM r GROUP BY k, HoppingWindow(second, 4, 2)
        SELECT k, COUNT(*) AS d INTO d FROM r GROUP BY k, SlidingWindow(second, 4)"""
    running = Run(compile_script(script), policies=Policies())
    sizes, held = [], []
    for step in range(60):
        bodies = [{"k": step * 50 + one, "n": one} for one in range(50)]
        running.process(
            "r", log_events(bodies, arrivals=[at(step * 2 + one / 50) for one in range(50)], first=step * 50)
        )
        sizes.append(len(running.snapshot()))
        held.append(sum(operator["state_rows"] for operator in running.stats()["operators"]))
    assert max(held[30:]) <= max(held[:30])
    assert max(sizes[30:]) <= 1.05 * max(sizes[:30])


def test_records_kept_by_field_are_the_records_they_stand_for() -> None:
    present = np.array([True, False, True])
    odd = values.of(values.BIGINT, np.array([1, 0, 0]), present)
    struct = values.Struct({"IsAnomaly": odd, "Score": values.from_values([0.5, None, 0.25])}, present)
    whole = [{"IsAnomaly": 1, "Score": 0.5}, None, {"IsAnomaly": 0, "Score": 0.25}]
    assert struct.to_list() == whole
    assert struct.take(np.array([2, -1, 1, 0])).to_list() == [whole[2], None, None, whole[0]]
    assert struct.slice(1, 3).to_list() == whole[1:]
    assert struct.where(np.array([False, True, True])).to_list() == [None, None, whole[2]]
    assert values.concat([struct, struct]).to_list() == whole * 2
    assert struct.field("score").to_list() == [0.5, None, 0.25]
    assert struct.field("other").to_list() == [None] * 3


def test_a_named_property_of_records_kept_by_field_is_read_as_a_column() -> None:
    struct = values.Struct({"Score": values.from_values([0.5, None])}, np.array([True, False]))
    whole, frame = PROPERTY.whole, Frame(np.zeros(2, np.int64), [])
    assert whole is not None
    for records in (struct, values.from_values(struct.to_list())):
        found = apply(frame, PROPERTY, [records, values.Constant(2, "score")])
        assert found.to_list() == [0.5, None]
    assert frame.faults == []
    assert whole([struct, values.Constant(2, None)]) is None, "what is no text is for the rows' own code"
    assert whole([struct, values.from_values(["Score", "x"])]) is None
