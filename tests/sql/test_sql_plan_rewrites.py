"""Rewrites change what a plan costs, never what it gives: every case with each of them alone, without any, and with all."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import provided
import pytest
from sql_events import at, log_events

from headrace.core.errors import UserError
from headrace.sql import cases, rewrite
from headrace.sql.cases import Cut
from headrace.sql.compile import compile_script
from headrace.sql.functions.user import UserFunction
from headrace.sql.run import Policies, Results, Run

CASES = sorted(provided.CASES.glob("*.yaml")) + sorted((Path(__file__).parent / "cases").glob("*.yaml"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_case_gives_the_same_rows_with_and_without_rewrites(path: Path) -> None:
    case = cases.load(path)
    if "expect_error" in case.keys:
        return
    wanted = repr(cases.execute(case, Cut())[2])
    for rewrites in ([], *([name] for name in rewrite.names())):
        assert repr(cases.execute(case, Cut(), rewrites)[2]) == wanted, rewrites
    assert repr(cases.execute(case, Cut(3, 2), [])[2]) == wanted


def listed(found: list[Results]) -> list[Any]:
    rows = [(out.output, out.times.tolist(), out.to_pylist()) for results in found for out in results.rows if out.rows]
    aside = [
        (one.reason, *event)
        for results in found
        for one in results.set_aside
        for event in zip(one.events.column("_event_id").to_pylist(), one.details, strict=True)
    ]
    return [rows, sorted(aside, key=repr)]


def fed(script: str, bodies: list[Any], *, rewrites: list[str] | None, batch: int = 50, **more: Any) -> list[Any]:
    references = more.pop("references", {})
    functions = more.pop("functions", {})
    plan = compile_script(script, references=list(references), functions=functions, rewrites=rewrites)
    run = Run(plan, references=references, policies=Policies(late_arrival_s=-1), on_error="set_aside")
    found = []
    for first in range(0, len(bodies), batch):
        for name in plan.inputs:
            found.append(run.process(name, log_events(bodies[first : first + batch], first=first)))
    return listed([*found, run.finish()])


VALUES = [None, 0, 1, 20, 20.0, 20.5, -3, "20", "hot", "", True, False, {"x": 1}, [1], (1 << 53) + 1, 9e15, 1e300]
OPERATORS = ["=", "<>", "<", "<=", ">", ">="]
CONSTANTS = ["20", "20.5", "-3", "'hot'", "'20'", "0", "1", "9007199254740993", "''", "1e300"]


def condition(rng: random.Random, depth: int = 0) -> str:
    if depth < 3 and rng.random() < 0.5:
        kind = rng.choice(["AND", "OR", "NOT"])
        if kind == "NOT":
            return f"NOT ({condition(rng, depth + 1)})"
        return f"({condition(rng, depth + 1)} {kind} {condition(rng, depth + 1)})"
    name, constant = rng.choice("abc"), rng.choice(CONSTANTS)
    kind = rng.randrange(8)
    if kind == 0:
        return f"{name} IN ({constant}, {rng.choice(CONSTANTS)})"
    if kind == 1:
        return f"{name} BETWEEN {constant} AND {rng.choice(CONSTANTS)}"
    if kind == 2:
        return f"{name} IS {rng.choice(['', 'NOT '])}NULL"
    if kind == 3:
        return f"{constant} {rng.choice(OPERATORS)} {name}"
    if kind == 4:
        return f"10 / {name} > 1"  # faults
    return f"{name} {rng.choice(OPERATORS)} {constant}"


@pytest.mark.parametrize("seed", range(12))
def test_a_filter_bank_lets_through_what_each_filter_would(seed: int) -> None:
    rng = random.Random(seed)
    statements = [f"SELECT n, '{i}' AS rule INTO o{i} FROM r WHERE {condition(rng)}" for i in range(8)]
    statements += [
        f"SELECT COUNT(*) AS c INTO w FROM r WHERE {condition(rng)} AND {condition(rng)} "
        "GROUP BY TumblingWindow(second, 9)"
    ]
    bodies = [{"n": n, **{name: rng.choice(VALUES) for name in "abc" if rng.random() < 0.9}} for n in range(90)]
    script = "\n".join(statements)
    plain = fed(script, bodies, rewrites=[])
    assert fed(script, bodies, rewrites=["share_filters"]) == plain
    assert fed(script, bodies, rewrites=None, batch=7)[1] == plain[1]


def test_a_step_with_faults_keeps_its_filter_where_it_is() -> None:
    bodies = [{"v": "x", "k": 1}, {"v": "1", "k": 2}, {"v": "y", "k": 2}]
    faulty = "WITH s AS (SELECT CAST(v AS bigint) AS b, k FROM r) SELECT b INTO o FROM s WHERE k = 2"
    assert fed(faulty, bodies, rewrites=None) == fed(faulty, bodies, rewrites=[])
    assert "push_filters" not in compile_script(faulty).rewrites
    sound = "WITH s AS (SELECT TRY_CAST(v AS bigint) AS b, k FROM r) SELECT b INTO o FROM s WHERE k = 2 AND b > 0"
    assert fed(sound, bodies, rewrites=None) == fed(sound, bodies, rewrites=[])
    assert compile_script(sound).rewrites["push_filters"] == ["(k = 2) AND (b > 0) into step s"]


def test_a_filter_is_not_pushed_across_an_analytic_function_or_a_window() -> None:
    for step in (
        "SELECT k, LAG(v) OVER (LIMIT DURATION(second, 60)) AS before FROM r",
        "SELECT k, COUNT(*) AS before FROM r GROUP BY k, TumblingWindow(second, 10)",
    ):
        plan = compile_script(f"WITH s AS ({step}) SELECT before INTO o FROM s WHERE k = 2")
        assert "push_filters" not in plan.rewrites


def test_a_join_holds_only_what_its_filter_lets_through() -> None:
    script = (
        "SELECT a.k, b.v INTO o FROM l a TIMESTAMP BY ts JOIN r b TIMESTAMP BY ts "
        "ON a.k = b.k AND DATEDIFF(second, a, b) BETWEEN 0 AND 5 WHERE a.keep = 1 AND b.v > 3 AND a.k <> b.v"
    )
    plan = compile_script(script)
    assert plan.rewrites["push_filters"] == ["(a.keep = 1) AND (b.v > 3) below join with b"]
    bodies = [{"k": n % 3, "v": n % 7, "keep": n % 2, "ts": f"2025-01-01T00:00:{n:02}Z"} for n in range(40)]
    assert fed(script, bodies, rewrites=None, batch=9) == fed(script, bodies, rewrites=[], batch=9)
    held = []
    for rewrites in (None, []):
        run = Run(compile_script(script, rewrites=rewrites), policies=Policies(late_arrival_s=-1))
        run.process("l", log_events(bodies[:20]))
        held.append(sum(one["state_rows"] for one in run.stats()["operators"]))
    assert held[0] < held[1]


def test_a_left_join_is_not_filtered_on_its_right_side() -> None:
    script = (
        "SELECT a.k, b.v INTO o FROM l a TIMESTAMP BY ts LEFT JOIN r b TIMESTAMP BY ts "
        "ON a.k = b.k AND DATEDIFF(second, a, b) BETWEEN 0 AND 5 WHERE b.v IS NULL"
    )
    bodies = [{"k": n % 3, "v": n % 7 or None, "ts": f"2025-01-01T00:00:{n:02}Z"} for n in range(40)]
    assert "push_filters" not in compile_script(script).rewrites
    assert fed(script, bodies, rewrites=None) == fed(script, bodies, rewrites=[])


def test_equal_expressions_of_several_statements_are_computed_once() -> None:
    calls: list[int] = []
    script = "".join(
        f"SELECT COUNT(*) AS c, MAX(LEN(name) * 2) AS m INTO o{size} FROM r WHERE LEN(name) > 1 "
        f"GROUP BY k, TumblingWindow(second, {size})\n"
        for size in (5, 10)
    )
    plan = compile_script(script)
    (note,) = plan.rewrites["share_expressions"]
    assert "LEN(name)" in note
    bodies = [{"k": n % 2, "name": "x" * (n % 4)} for n in range(30)]
    assert fed(script, bodies, rewrites=None) == fed(script, bodies, rewrites=[])
    from headrace.sql.bind import scalars

    length = scalars()["len"]
    for rewrites, times in ((None, 1), ([], 2)):
        calls.clear()
        counted = length._replace(call=lambda text: calls.append(1) or len(text))
        scalars()["len"] = counted
        try:
            script = "SELECT LEN(a) AS l INTO x FROM r SELECT LEN(a) + 1 AS l INTO y FROM r"
            run = Run(compile_script(script, rewrites=rewrites))
        finally:
            scalars()["len"] = length
        run.process("r", log_events([{"a": "abc"}] * 4))
        assert len(calls) == 4 * times


def test_user_functions_are_called_by_every_statement() -> None:
    seen: list[int] = []

    def call(args: list[Any]) -> Any:
        seen.append(len(args[0]))
        return args[0]

    plan = compile_script(
        "SELECT udf.f(a) AS l INTO x FROM r SELECT udf.f(a) AS l INTO y FROM r",
        functions={"udf.f": UserFunction("udf.f", call)},
    )
    Run(plan).process("r", log_events([{"a": 1}]))
    assert seen == [1, 1]


def test_constants_are_folded_but_what_would_fault_is_left_to_the_event() -> None:
    plan = compile_script("SELECT a + 2 * 3 AS x, DATEADD(day, 1, '2025-01-01') AS d FROM r WHERE a > 10 - 1")
    assert plan.rewrites["fold_constants"] == [
        "(10 - 1) is 9",
        "(2 * 3) is 6",
        "DATEADD(day, 1, '2025-01-01') is 2025-01-02T00:00:00.0000000Z",
    ]
    script = "SELECT 1 / 0 AS q FROM r"
    assert "fold_constants" not in compile_script(script).rewrites
    assert fed(script, [{"a": 1}], rewrites=None) == fed(script, [{"a": 1}], rewrites=[])


def test_an_unknown_rewrite_is_named() -> None:
    with pytest.raises(UserError, match="no rewrite 'push_filter'") as caught:
        compile_script("SELECT a FROM r", rewrites=["push_filter"])
    assert "push_filters" in caught.value.hint


def test_statements_that_share_an_output_give_rows_by_time_then_by_statement() -> None:
    script = "SELECT n, 1 AS s INTO o FROM r WHERE n > 0 SELECT n, 2 AS s INTO O FROM r WHERE n > 1"
    plan = compile_script(script)
    assert plan.outputs == ["o"]
    (out,) = Run(plan).process("r", log_events([{"n": n} for n in range(4)])).rows
    assert [(row["n"], row["s"]) for row in out.to_pylist()] == [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2)]
    assert out.times.tolist() == [at(1), at(2), at(2), at(3), at(3)]
