"""Compiling names every mistake of a script; EXPLAIN and the statistics say what a plan does and did."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from sql_events import at, log_events
from typer.testing import CliRunner

from headrace.cli.sql import sql
from headrace.sql.compile import compile_script
from headrace.sql.errors import SqlError
from headrace.sql.plan import SelectNode
from headrace.sql.run import Policies, Run

WRONG = """\
CREATE TABLE t (a bigint, b flaot);
WITH s AS (SELECT id, LENN(name) AS l FROM input TIMESTAMP BY ts)
SELECT id, missing INTO a FROM s WHERE foo > 1 AND SQRTT(l) > 2
SELECT id, COUNT(*) INTO b FROM s GROUP BY id
SELECT x.id FROM s x JOIN other y ON x.id = y.id
SELECT id, LAG(v) OVER (LIMIT DURATION(second, 5)) INTO c FROM s x JOIN s y
  ON LAG(x.id) OVER (LIMIT DURATION(second, 5)) = y.id AND DATEDIFF(second, x, y) BETWEEN 0 AND 5
SELECT id FROM input WHERE
"""
PLACES = [(1, 29), (2, 23), (3, 12), (3, 40), (3, 52), (4, 35), (5, 22), (6, 16), (7, 6), (9, 1)]


def test_every_mistake_of_a_script_is_named_with_its_place() -> None:
    with pytest.raises(SqlError) as caught:
        compile_script(WRONG)
    found = sorted((caught.value, *caught.value.others), key=lambda error: (error.line, error.column))
    assert [(error.line, error.column) for error in found] == PLACES
    texts = [error.text for error in found]
    assert texts[:6] == ["flaot", "LENN", "missing", "foo", "SQRTT", "GROUP"]
    assert all(error.hint for error in found[:-1])
    assert "LAG is not allowed in ON" in str(found[8])


def test_sql_check_prints_every_mistake_and_exits_1(tmp_path: Path) -> None:
    file = tmp_path / "wrong.asaql"
    file.write_text(WRONG)
    result = CliRunner().invoke(sql, ["check", str(file)])
    assert result.exit_code == 1
    assert "would not run: 10 errors" in result.output
    assert "did you mean 'sqrt'" in result.output
    file.write_text("SELECT id INTO a FROM input")
    result = CliRunner().invoke(sql, ["check", str(file)])
    assert (result.exit_code, "would run" in result.output) == (0, True)


@pytest.mark.parametrize("script", ["SELECT", "SELECT a FROM", "WITH a AS (SELECT", "'", "CREATE TABLE", ")("])
def test_a_script_of_one_mistake_has_one_error(script: str) -> None:
    with pytest.raises(SqlError) as caught:
        compile_script(script)
    assert caught.value.others == ()


def test_a_mistake_in_a_step_is_not_repeated_where_the_step_is_read() -> None:
    with pytest.raises(SqlError) as caught:
        compile_script("WITH s AS (SELECT nope( FROM r) SELECT a, b INTO x FROM s SELECT c INTO y FROM s WHERE c > 1")
    assert caught.value.others == ()


def test_every_select_knows_its_place_in_the_script() -> None:
    plan = compile_script("WITH s AS (\n  SELECT a FROM r\n)\nSELECT a INTO x FROM s\nUNION SELECT a FROM s")
    assert [(node.at.line, node.at.column) for node in plan.nodes if isinstance(node, SelectNode)] == [
        (2, 3),
        (4, 1),
        (5, 7),
    ]


def test_explain_shows_state_rewrites_and_what_runs_per_row() -> None:
    plan = compile_script(
        "WITH s AS (SELECT id, v, LAG(v) OVER (PARTITION BY id LIMIT DURATION(minute, 5)) AS before FROM r TIMESTAMP BY ts)\n"
        "SELECT id, ABS(v) AS x, SUBSTRING(id, 1, 2) AS t INTO a FROM s WHERE v > 3\n"
        "SELECT id, AVG(v) AS m INTO b FROM s WHERE v > 4 GROUP BY id, TumblingWindow(minute, 1)\n"
        "SELECT x.id, n.name INTO c FROM r x TIMESTAMP BY ts JOIN names n ON x.k = n.k WHERE x.v > 2",
        references=["names"],
    )
    text = plan.explain()
    assert "input r by ts: decode id, k, ts, v; keeps events until the watermark reaches them" in text
    assert "keeps what each key needs of the last 5 minutes" in text
    assert "keeps one set of sums per key and open pane" in text
    assert "filter (v > 3); tested with the filter of 1 other SELECT" in text
    assert "filter (x.v > 2), before the joins" in text
    assert "ABS]" in text
    head, _, tail = text.partition("rewrites\n")
    assert head
    assert "  share_filters: step s: 2 filters, 2 comparisons of 1 expressions\n" in tail
    assert "  push_filters: (x.v > 2) before the join with reference data\n" in tail
    assert "  prune_columns: input r: id, k, ts, v\n" in tail
    assert "rewrites" not in compile_script("SELECT a FROM r", rewrites=[]).explain()


def test_statistics_count_rows_state_and_time_per_operator_across_a_kill() -> None:
    plan = compile_script(
        "SELECT k INTO a FROM r TIMESTAMP BY ts WHERE v > 1\nSELECT k INTO b FROM r TIMESTAMP BY ts WHERE v > 100\n"
        "SELECT k, COUNT(*) AS c INTO w FROM r TIMESTAMP BY ts GROUP BY k, TumblingWindow(second, 60) HAVING COUNT(*) > 9"
    )
    ticking = itertools.count()
    bodies = [{"k": n % 2, "v": n, "ts": f"2025-01-01T00:00:{n:02}Z"} for n in range(1, 6)]
    run = Run(plan, policies=Policies(late_arrival_s=-1), timer=lambda: float(next(ticking)))
    run.process("r", log_events(bodies, arrivals=[at(n + 2) for n in range(1, 6)]))
    state = run.snapshot()
    told = run.stats()
    other = Run(plan, policies=Policies(late_arrival_s=-1))
    other.restore(state)
    for stats in (told, other.stats()):
        by_output = {one["output"] or one["kind"]: one for one in stats["operators"]}
        assert (by_output["input"]["rows_in"], by_output["input"]["rows_out"]) == (5, 5)
        assert {name: by_output[name]["rows_in"] for name in "abw"} == {"a": 5, "b": 5, "w": 5}
        assert (by_output["a"]["filter_in"], by_output["a"]["filter_out"], by_output["a"]["rows_out"]) == (5, 4, 4)
        assert (by_output["b"]["filter_in"], by_output["b"]["filter_out"]) == (5, 0)
        assert by_output["w"]["state_rows"] == 2
        assert by_output["a"]["watermark"] == at(5) - 1
        assert by_output["a"]["watermark_delay_s"] == pytest.approx(2, abs=1e-3)
    busy = {one["output"]: one["busy_s"] for one in told["operators"]}
    assert busy["w"] > 0
    assert busy["b"] == 0  # no row reached it
    assert next(one for one in told["operators"] if one["output"] == "w")["state_bytes"] > 0
    assert all(one["busy_s"] == 0 for one in other.stats()["operators"])
    run.finish()
    (windowed,) = [one for one in run.stats()["operators"] if one["output"] == "w"]
    assert (windowed["having_in"], windowed["having_out"], windowed["watermark"]) == (2, 0, None)
