"""What goes wrong for one event or one group is set aside; the job goes on."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sql_events import log_events

from headrace.core.errors import DataError, NotFound
from headrace.sql.compile import compile_script
from headrace.sql.errors import RowError
from headrace.sql.functions.user import UserFunction
from headrace.sql.run import Run

BIG = 9_000_000_000_000_000_000


def rows_of(found: Any) -> list[dict[str, Any]]:
    return [row for out in found.rows for row in out.to_pylist()]


def to_the_end(run: Run, bodies: list[Any]) -> None:
    run.process("r", log_events(bodies))
    run.finish()


@pytest.mark.parametrize(
    "window", ["TumblingWindow(second, 10)", "HoppingWindow(second, 10, 5)", "SlidingWindow(second, 10)"]
)
def test_a_sum_that_overflows_sets_its_group_aside_and_the_others_go_on(window: str) -> None:
    plan = compile_script(f"SELECT k, SUM(v) AS s, COUNT(*) AS c FROM r GROUP BY k, {window}")
    bodies = [{"k": "c", "v": 0}, {"k": "a", "v": BIG}, {"k": "b", "v": 1}, {"k": "a", "v": BIG}, {"k": "b", "v": 2}]
    with pytest.raises(DataError, match="SUM of bigint overflows") as caught:
        to_the_end(Run(plan), bodies)
    assert caught.value.code == "sql.overflow"
    run = Run(plan, on_error="set_aside")
    first = run.process("r", log_events(bodies[:3]))
    state = run.snapshot()
    run = Run(plan, on_error="set_aside")
    run.restore(state)
    found = [first, run.process("r", log_events(bodies[3:], first=3)), run.finish()]
    sums = [(row["k"], row["s"]) for one in found for row in rows_of(one)]
    assert ("b", 3) in sums
    assert all(key != "a" or total == BIG for key, total in sums)
    aside = [one for results in found for one in results.set_aside]
    assert {one.reason for one in aside} == {"overflow"}
    assert all(b'"a"' in body for one in aside for body in one.events.column("_body").to_pylist())


def test_a_running_sum_that_overflows_sets_its_event_aside() -> None:
    plan = compile_script("SELECT v, SUM(v) OVER (PARTITION BY k LIMIT DURATION(second, 100)) AS s FROM r")
    found = Run(plan, on_error="set_aside").process(
        "r", log_events([{"k": 1, "v": BIG}, {"k": 1, "v": BIG}, {"k": 2, "v": 5}])
    )
    assert rows_of(found) == [{"v": BIG, "s": BIG}, {"v": 5, "s": 5}]
    assert [one.events.column("_event_id").to_pylist() for one in found.set_aside] == [["h1"]]


def test_a_user_aggregate_that_raises_sets_its_window_aside() -> None:
    def worst(found: list[Any]) -> Any:
        return 1 / min(found)

    plan = compile_script(
        "SELECT k, uda.worst(v) AS w FROM r GROUP BY k, TumblingWindow(second, 10)",
        functions={"uda.worst": UserFunction("uda.worst", worst, "aggregate")},
    )
    run = Run(plan, on_error="set_aside")
    run.process("r", log_events([{"k": "a", "v": 0}, {"k": "b", "v": 2}], first=1))
    found = run.finish()
    assert rows_of(found) == [{"k": "b", "w": 0.5}]
    assert [(one.reason, len(one.details)) for one in found.set_aside] == [("function_failed", 1)]
    assert "ZeroDivisionError" in found.set_aside[0].details[0]


def poisoned(calls: list[int]) -> UserFunction:
    def call(args: list[pa.Array]) -> pa.Array:
        calls.append(len(args[0]))
        if pc.any(pc.equal(args[0], 13)).as_py():
            raise ValueError("thirteen")
        return pc.multiply(args[0], 2)

    return UserFunction("udf.twice", call)


def test_a_vectorised_function_that_raises_sets_aside_the_rows_that_make_it_raise() -> None:
    calls: list[int] = []
    plan = compile_script("SELECT udf.twice(v) AS t FROM r", functions={"udf.twice": poisoned(calls)})
    bodies = [{"v": 13 if row in (37, 90) else row} for row in range(100)]
    bodies[13] = {"v": 0}
    found = Run(plan, on_error="set_aside").process("r", log_events(bodies))
    assert [row["t"] for row in rows_of(found)] == [2 * body["v"] for body in bodies if body["v"] != 13]
    assert [one.events.column("_event_id").to_pylist() for one in found.set_aside] == [["h37", "h90"]]
    assert found.set_aside[0].reason == "function_failed"
    assert found.set_aside[0].details[0] == "udf.twice failed: ValueError: thirteen"
    assert len(calls) < 40
    with pytest.raises(RowError, match="thirteen in event h37"):
        Run(plan).process("r", log_events(bodies))


def test_a_function_that_is_not_there_now_is_no_fault_of_a_row() -> None:
    def call(args: list[pa.Array]) -> pa.Array:
        raise NotFound("no such model")

    plan = compile_script("SELECT udf.f(v) AS t FROM r", functions={"udf.f": UserFunction("udf.f", call)})
    with pytest.raises(NotFound, match="no such model"):
        Run(plan, on_error="set_aside").process("r", log_events([{"v": 1}]))


def test_a_function_that_returns_too_few_values_is_named() -> None:
    plan = compile_script(
        "SELECT udf.f(v) AS t FROM r", functions={"udf.f": UserFunction("udf.f", lambda args: pa.array([1] * 5))}
    )
    with pytest.raises(DataError, match=r"udf.f failed: ValueError: it returned 5 values for 1 rows"):
        Run(plan).process("r", log_events([{"v": 1}, {"v": 2}]))


def test_names_of_inputs_ignore_case() -> None:
    plan = compile_script("SELECT v INTO a FROM Sensors SELECT v INTO b FROM [sensors]")
    assert plan.inputs == ["Sensors"]
    found = Run(plan).process("SENSORS", log_events([{"v": 1}]))
    assert [(out.output, out.to_pylist()) for out in found.rows] == [("a", [{"v": 1}]), ("b", [{"v": 1}])]


def test_reference_rows_that_do_not_fit_their_table_are_counted() -> None:
    plan = compile_script(
        "CREATE TABLE names (k bigint, name nvarchar(max)); SELECT r.k, n.name FROM r JOIN names n ON r.k = n.k",
        references=["names"],
    )
    table = pa.table({"k": pa.array([1, 2, 3]), "name": pa.array(["x", "y", "z"])})
    assert Run(plan, references={"names": table}).stats()["references"] == {"names": {"rows": 3, "misfits": 0}}
    wrong = pa.table({"k": pa.array([1.5, 2.0, 3.0]), "name": pa.array(["x", "y", "z"])})
    assert Run(plan, references={"names": wrong}).stats()["references"] == {"names": {"rows": 3, "misfits": 3}}
