"""Errors, EXPLAIN, set-aside rows, policies, user functions, conditions and state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sql_events import at, log_events

from headrace.core.clock import to_iso
from headrace.core.errors import DataError, NotFound, UserError
from headrace.sql.compile import compile_script
from headrace.sql.condition import compile_condition
from headrace.sql.errors import RowError, SqlError
from headrace.sql.functions.user import UserFunction
from headrace.sql.run import Policies, Results, Run

ADD = UserFunction("udf.add", lambda args: pc.add(args[0], args[1]))


def listed(results: Results) -> list[dict[str, Any]]:
    return [row for found in results.rows for row in found.to_pylist()]


@pytest.mark.parametrize(
    ("script", "line", "column", "text", "hint"),
    [
        ("SELECT a\nFRM r", 2, 5, "r", "FROM"),
        ("SELECT UPER(a) FROM r", 1, 8, "UPER", "upper"),
        ("SELECT a FROM r WHERE\n  b = 'open", 2, 7, "'open", "close"),
        ("WITH s AS (SELECT alpha FROM r) SELECT alhpa FROM s", 1, 40, "alhpa", "alpha"),
        ("SELECT COUNT(*) FROM r GROUP BY TumblingWindow(fortnight, 1)", 1, 48, "fortnight", "second"),
        ("SELECT a, COUNT(*) FROM r GROUP BY b, TumblingWindow(second, 1)", 1, 8, "a", "GROUP BY"),
        ("SELECT udf.ad(a, b) FROM r", 1, 8, "udf", "udf.add"),
        ("SELECT LEFT(a) FROM r", 1, 8, "LEFT", ""),
        ("SELECT l.a FROM l JOIN q ON l.a = q.a", 1, 19, "JOIN", "DATEDIFF"),
    ],
)
def test_an_error_says_where_and_what_to_do(script: str, line: int, column: int, text: str, hint: str) -> None:
    with pytest.raises(SqlError) as caught:
        compile_script(script, functions={"udf.add": ADD})
    error = caught.value
    assert (error.line, error.column, error.text) == (line, column, text)
    assert hint in error.hint


SCRIPT = """
SELECT FROM WHERE GROUP BY HAVING WITH AS INTO UNION ALL JOIN LEFT ON CASE WHEN THEN ELSE END CAST TRY_CAST IS NOT NULL AND
OR IN LIKE BETWEEN TIMESTAMP OVER PARTITION LIMIT DURATION TumblingWindow(second,10) COUNT(*) AVG LAG udf.add a b r s ( ) ,
; . * + - / % = <> < > ! ~ 'x' [y] "z" 1 2.5 .5 1e9 bigint datetime System.Timestamp() -- /* */
"""
WORDS = SCRIPT.split()


@settings(max_examples=250, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=30), st.text(max_size=8))
def test_nonsense_gives_only_errors_of_ours(words: list[str], noise: str) -> None:
    try:
        compile_script(" ".join(words) + noise, functions={"udf.add": ADD}, references=["s"])
    except SqlError as error:
        place = (error.line, error.column)
    else:
        place = (1, 1)
    assert min(place) >= 1


@pytest.mark.parametrize(
    "script",
    [
        "SELECT " + "(" * 5000,
        "SELECT " + "-" * 5000 + "1 FROM r",
        "SELECT " + "NOT " * 9000 + "a FROM r",
        "(" * 9000,
        "SELECT a" + " + a" * 9000 + " FROM r",
    ],
)
def test_deep_nesting_is_refused_politely(script: str) -> None:
    with pytest.raises(SqlError):
        compile_script(script)


def test_explain_shows_the_stages_what_is_decoded_and_what_runs_per_row() -> None:
    plan = compile_script(
        "WITH hot AS (SELECT *, LEN(name) AS l FROM r TIMESTAMP BY ts WHERE t > 80)\n"
        "SELECT id, AVG(t) AS m INTO a FROM hot GROUP BY id, HoppingWindow(second, 60, 10)\nSELECT l INTO b FROM hot"
    )
    text = plan.explain()
    assert "input r by ts: decode id, name, t, ts" in text
    assert "group by hopping 1 minute every 10 seconds, keys id; AVG(t)" in text
    assert "[per row: LEN]" in text
    assert "step hot (shared, see above)" in text
    assert (plan.inputs, plan.outputs, plan.references) == (["r"], ["a", "b"], [])


def test_a_row_that_fails_stops_the_job_or_is_set_aside_with_its_event() -> None:
    plan = compile_script("SELECT CAST(v AS bigint) AS b, 10 / d AS q FROM r WHERE keep = 1")
    bodies = [
        {"v": "1", "d": 2, "keep": 1},
        {"v": "x", "d": 1, "keep": 1},
        {"v": "x", "d": 0, "keep": 0},
        {"v": "3", "d": 0, "keep": 1},
    ]
    with pytest.raises(RowError, match=r"CAST of 'x'.*in event h1") as caught:
        Run(plan).process("r", log_events(bodies))
    assert caught.value.code == "sql.cast_failed"
    results = Run(plan, on_error="set_aside").process("r", log_events(bodies))
    assert listed(results) == [{"b": 1, "q": 5}]
    aside = {one.reason: one.events.column("_event_id").to_pylist() for one in results.set_aside}
    assert aside == {"cast_failed": ["h1"], "division_by_zero": ["h3"]}


def test_a_branch_not_taken_cannot_fail() -> None:
    plan = compile_script(
        "SELECT CASE WHEN d <> 0 THEN 10 / d ELSE -1 END AS q, COALESCE(d, CAST('x' AS bigint)) AS c FROM r "
        "WHERE GetType(d) = 'bigint' AND CAST(d AS bigint) < 9"
    )
    assert listed(Run(plan).process("r", log_events([{"d": 0}, {"d": "x"}, {"d": 5}]))) == [
        {"q": -1, "c": 0},
        {"q": 2, "c": 5},
    ]


def test_undecodable_events_and_bad_timestamps_are_set_aside() -> None:
    plan = compile_script("SELECT v FROM r TIMESTAMP BY ts")
    bodies = [b"not json", {"v": 1, "ts": "2025-01-01T00:00:01Z"}, {"v": 2, "ts": "soon"}, b"[1]", {"v": 3}]
    results = Run(plan, policies=Policies(late_arrival_s=-1)).process("r", log_events(bodies))
    assert listed(results) == [{"v": 1}]
    aside = {one.reason: one.events.column("_event_id").to_pylist() for one in results.set_aside}
    assert aside == {"undecodable": ["h0", "h3"], "bad_timestamp": ["h2", "h4"]}
    assert all(len(one.details) == one.events.num_rows for one in results.set_aside)


def test_late_early_and_disordered_events_are_dropped_by_name() -> None:
    plan = compile_script("SELECT k FROM r TIMESTAMP BY ts")
    bodies = [
        {"k": "on time", "ts": "2025-01-01T00:10:00Z"},
        {"k": "late", "ts": "2025-01-01T00:09:00Z"},
        {"k": "disordered", "ts": "2025-01-01T00:09:58Z"},
        {"k": "early", "ts": "2025-01-01T00:16:00Z"},
    ]
    run = Run(plan, policies=Policies(late_arrival_s=5, action="drop"))
    results = run.process("r", log_events(bodies, arrivals=[at(600), at(601), at(602), at(603)]))
    assert listed(results) == [{"k": "on time"}]
    assert {one.reason: one.events.num_rows for one in results.set_aside} == {"late": 1, "out_of_order": 1, "early": 1}


def test_a_user_function_gets_columns_and_gives_a_column() -> None:
    seen: list[list[pa.Array]] = []

    def call(args: list[pa.Array]) -> pa.Array:
        seen.append(args)
        return pc.add(pc.cast(args[0], pa.float64()), args[1])

    plan = compile_script("SELECT udf.f(a, b) AS s FROM r", functions={"udf.f": UserFunction("udf.f", call)})
    results = Run(plan).process("r", log_events([{"a": 1, "b": 0.5}, {"a": 2.5, "b": None}, {"b": 1.0}]))
    assert listed(results) == [{"s": 1.5}, {"s": None}, {"s": None}]
    assert len(seen) == 1
    assert [len(arg) for arg in seen[0]] == [3, 3]


def test_a_user_function_that_raises_is_named() -> None:
    def call(args: list[pa.Array]) -> pa.Array:
        raise ValueError("no such model")

    plan = compile_script("SELECT udf.f(a) AS s FROM r", functions={"udf.f": UserFunction("udf.f", call)})
    with pytest.raises(DataError, match=r"udf.f failed: ValueError: no such model"):
        Run(plan).process("r", log_events([{"a": 1}]))


def test_metadata_and_virtual_columns_stand_beside_the_payload() -> None:
    plan = compile_script(
        "SELECT GetMetadataPropertyValue(r, 'EventId') AS e, GetMetadataPropertyValue(r, '[User].[line]') AS l, "
        "EventEnqueuedUtcTime AS q, PartitionId AS p, IoTHub.ConnectionDeviceId AS d INTO meta FROM r SELECT * INTO star FROM r"
    )
    results = Run(plan).process("r", log_events([{"v": 1}], arrivals=[at(3)]))
    meta, star = results.rows
    assert meta.bodies() == [b'{"e":"h0","l":"L1","q":"2025-01-01T00:00:03.0000000Z","p":0,"d":"dev0"}']
    assert star.to_pylist() == [{"v": 1}]


def test_missing_reference_data_and_unknown_inputs_are_named() -> None:
    plan = compile_script("SELECT r.a FROM r JOIN names n ON r.a = n.a", references=["names"])
    with pytest.raises(NotFound, match="names"):
        Run(plan)
    with pytest.raises(NotFound, match="no input 'q'"):
        Run(compile_script("SELECT a FROM r")).process("q", log_events([{}]))


def test_a_state_of_another_script_is_refused() -> None:
    state = Run(compile_script("SELECT a FROM r")).snapshot()
    for wrong in (state, b"rubbish", b""):
        with pytest.raises(UserError) as caught:
            Run(compile_script("SELECT b FROM r")).restore(wrong)
        assert caught.value.code == "sql.state"


def test_a_condition_holds_per_event_and_never_fails() -> None:
    condition = compile_condition("temperature > 80 AND CAST(zone AS bigint) = 1")
    batch = log_events(
        [{"temperature": 81, "zone": "1"}, {"temperature": 90, "zone": "x"}, b"{", {"temperature": 80.5, "zone": 1}, {}]
    )
    assert condition.evaluate(batch).tolist() == [True, False, False, True, False]
    assert condition.fields(batch, np.array([0, 2])) == [{"temperature": 81, "zone": "1"}, {}]
    for wrong in ("a >", "COUNT(*) > 3", "LAG(a) OVER (LIMIT DURATION(second, 1)) = 1", "a = 1 b"):
        with pytest.raises(SqlError):
            compile_condition(wrong)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(-20, 330)), min_size=1, max_size=25),
    st.integers(-1, 15),
    st.integers(0, 10),
    st.booleans(),
    st.integers(1, 9),
)
def test_time_policies_are_the_rule_of_the_language(
    steps: list[tuple[int, int]], late: int, disorder: int, drop: bool, cut: int
) -> None:
    """The specification's loop, one event at a time, against the vectorised form at any cut."""
    arrivals = np.cumsum([gap for gap, _ in steps]).tolist()
    times = [arrival + shift for arrival, (_, shift) in zip(arrivals, steps, strict=True)]
    level: float = -np.inf
    kept: list[tuple[float, int]] = []
    for index, (arrival, time) in enumerate(zip(arrivals, times, strict=True)):
        event: float = time
        if event - arrival > 300:
            continue
        if late >= 0 and arrival - event > late:
            if drop:
                continue
            event = arrival - late
        if event < level:
            if drop:
                continue
            event = level
        kept.append((event, index))
        level = max(level, event - disorder)
    bodies = [{"k": index, "ts": _iso(time)} for index, time in enumerate(times)]
    run = Run(
        compile_script(
            "SELECT k, DATEDIFF(second, '2025-01-01T00:00:00Z', System.Timestamp()) AS t FROM r TIMESTAMP BY ts"
        ),
        policies=Policies(late_arrival_s=late, out_of_order_s=disorder, action="drop" if drop else "adjust"),
    )
    out: list[dict[str, Any]] = []
    for first in range(0, len(bodies), cut):
        piece = [at(arrival) for arrival in arrivals[first : first + cut]]
        out += listed(run.process("r", log_events(bodies[first : first + cut], arrivals=piece, first=first)))
        out += listed(run.advance("r", piece[-1] - 1))
    out += listed(run.finish())
    assert [(row["t"], row["k"]) for row in out] == sorted(kept)


def _iso(second: int) -> str:
    return to_iso(at(second))


def test_a_value_that_is_no_number_leaves_the_detector_alone() -> None:
    plan = compile_script(
        "SELECT v, AnomalyDetection_SpikeAndDip(v, 95, 10, 'spikes') OVER (LIMIT DURATION(second, 10)) AS s FROM r"
    )
    with pytest.raises(RowError, match="needs numbers"):
        Run(plan).process("r", log_events([{"v": "x"}]))
    results = Run(plan, on_error="set_aside").process("r", log_events([{"v": 1.0}, {"v": "x"}, {"v": None}]))
    assert [row["s"] is None for row in listed(results)] == [False, True]
    assert [one.reason for one in results.set_aside] == ["bad_argument"]


def test_a_detector_forgets_keys_that_fell_silent() -> None:
    plan = compile_script(
        "SELECT AnomalyDetection_SpikeAndDip(v, 95, 5, 'dips') OVER (PARTITION BY k LIMIT DURATION(second, 5)) AS s FROM r"
    )
    run = Run(plan)
    sizes = []
    for turn in range(10):
        run.process(
            "r", log_events([{"k": f"{turn}-{index}", "v": 1} for index in range(20)], arrivals=[at(turn * 20)] * 20)
        )
        sizes.append(run.stats()["operators"][1]["state_rows"])
    assert max(sizes) <= 40


def test_a_slice_of_a_batch_is_a_batch() -> None:
    plan = compile_script("SELECT v, name FROM r TIMESTAMP BY ts")
    bodies = [{"v": index, "name": f"n{index}", "ts": f"2025-01-01T00:00:{index:02d}Z"} for index in range(20)]
    whole = log_events(bodies, arrivals=[at(index) for index in range(20)])
    assert listed(Run(plan).process("r", whole.slice(7, 5))) == [{"v": i, "name": f"n{i}"} for i in range(7, 12)]
    assert listed(Run(plan).process("r", whole.slice(0, 0))) == []
