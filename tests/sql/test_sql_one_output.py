"""Statements that share an output: which rows come first is decided by the events, never by how they were cut into batches."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest
from sql_events import at, log_events

from headrace.sql.compile import compile_script
from headrace.sql.run import Policies, Results, Run

ROUNDS = 40
STATEMENTS = [
    "SELECT id, x, 'plain' AS how INTO out FROM a",
    "SELECT id, x, 'high' AS how INTO out FROM a WHERE x > 4",
    "SELECT id, x, 'two' AS how, System.Timestamp() AS w INTO out FROM a WHERE x = 2 OR k = 'm1'",
    "SELECT id, LAG(x) OVER (PARTITION BY k LIMIT DURATION(second, 9)) AS x, 'lag' AS how INTO out FROM a",
    "SELECT id, x / k AS x, 'fails' AS how INTO out FROM a WHERE x > 6",
    "SELECT id, name AS x, 'joined' AS how INTO out FROM a JOIN names ON a.k = names.k WHERE x < 7",
    "SELECT * INTO out FROM a WHERE x = 3",
    "SELECT id, x, 'step' AS how INTO out FROM few WHERE k = 'm2'",
    "SELECT k AS id, COUNT(*) AS x, 'window' AS how INTO out FROM a GROUP BY k, TumblingWindow(second, 3)",
    "SELECT id, x, 'other' AS how INTO out FROM b WHERE x > 1",
    "SELECT id, x, 'b' AS how INTO out FROM b UNION SELECT id, x, 'both' AS how FROM a WHERE x < 2",
    "SELECT a.id, b.x, 'pair' AS how INTO out FROM a JOIN b ON a.k = b.k AND DATEDIFF(second, a, b) BETWEEN 0 AND 2",
]
STEP = "WITH few AS (SELECT id, x, k FROM a WHERE x <> 5)\n"
NAMES = {"names": pa.table({"k": ["m0", "m1", "m1"], "name": ["zero", "one", "uno"]})}
Event = tuple[str, int, dict[str, Any]]


def events(rng: random.Random, rows: int) -> list[Event]:
    """Input, arrival and body; several arrive in one tick."""
    found: list[Event] = []
    second = 0
    for number in range(rows):
        second += rng.choice([0, 0, 0, 1, 2])
        body = {"id": number, "x": rng.randrange(9), "k": f"m{rng.randrange(3)}"}
        found.append((rng.choice("aab"), at(second), body))
    return found


def answered(script: str, given: list[Event], cuts: set[int], *, kills: bool = False) -> list[bytes]:
    """What the output got, row after row as JSON."""
    plan = compile_script(script, references=["names"])
    references = {name: NAMES[name] for name in plan.references}
    run = Run(plan, references=references, policies=Policies(late_arrival_s=-1), on_error="set_aside")
    found: list[Results] = []
    some: list[tuple[int, Event]] = []
    for number, event in enumerate(given):
        some.append((number, event))
        last = number + 1 == len(given)
        if last or number in cuts or given[number + 1][0] != event[0]:
            if event[0] in plan.inputs:
                bodies = [one[2] for _, one in some]
                found.append(
                    run.process(event[0], log_events(bodies, arrivals=[one[1] for _, one in some], first=some[0][0]))
                )
            some = []
            if kills:
                state = run.snapshot()
                run = Run(plan, references=references, policies=Policies(late_arrival_s=-1), on_error="set_aside")
                run.restore(state)
    found.append(run.finish())
    return [body for results in found for out in results.rows for body in out.bodies()]


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_the_order_of_an_output_does_not_depend_on_batches(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.choice([2, 2, 3, 5])
    chosen = rng.sample(STATEMENTS[:8] if seed % 2 else STATEMENTS, count)
    script = (STEP if any("FROM few" in one for one in chosen) else "") + "\n".join(chosen)
    given = events(rng, 60)
    whole = answered(script, given, set())
    assert whole
    for share in (0.1, 0.5, 1.0):
        cuts = {number for number in range(len(given)) if rng.random() < share}
        assert answered(script, given, cuts, kills=share == 0.5) == whole, f"seed {seed}: {script}"


def test_rows_of_rules_come_at_once_and_event_by_event() -> None:
    script = "SELECT id, 'low' AS how INTO out FROM a WHERE x > 1\nSELECT id, 'high' AS how INTO out FROM a WHERE x > 2"
    run = Run(compile_script(script))
    bodies = [{"id": 1, "x": 3}, {"id": 2, "x": 2}, {"id": 3, "x": 9}]
    (out,) = run.process("a", log_events(bodies, arrivals=[at(0)] * 3)).rows
    assert [tuple(row.values()) for row in out.to_pylist()] == [
        (1, "low"),
        (1, "high"),
        (2, "low"),
        (3, "low"),
        (3, "high"),
    ]


def test_a_window_and_a_filter_into_one_output_stand_in_time_order() -> None:
    script = (
        "SELECT id, x INTO out FROM a\nSELECT COUNT(*) AS id, 0 AS x INTO out FROM a GROUP BY TumblingWindow(second, 2)"
    )
    plan = compile_script(script)
    assert "all into out; keeps rows until the slowest branch has passed them" in plan.explain()
    run = Run(plan)
    first = run.process("a", log_events([{"id": 7, "x": 1}, {"id": 8, "x": 2}], arrivals=[at(1), at(1)]))
    assert first.rows == []  # another event of this very moment may come
    (out,) = run.process("a", log_events([{"id": 9, "x": 3}], arrivals=[at(3)])).rows
    assert [(row["id"], row["x"]) for row in out.to_pylist()] == [(7, 1), (8, 2), (2, 0)]
    assert run.stats()["operators"][-1]["state_rows"] == 1


VALUES = [None, 1, 2.5, "hot", "", True, {"a": 1}, [1], (1 << 53) + 1, 7, 7, 8]
COLUMNS = [
    "x",
    "y",
    "'rule'",
    "3",
    "2.5",
    "NULL",
    "COALESCE(x, y)",
    "System.Timestamp()",
    "TRY_CAST(y AS bigint)",
    "-1",
]


@pytest.mark.parametrize("seed", range(12))
def test_rules_whose_rows_are_made_together_give_the_rows_of_each(seed: int) -> None:
    rng = random.Random(seed)
    script = "\n".join(
        f"SELECT id, {rng.choice(COLUMNS)} AS v, {rng.choice(COLUMNS)} AS w, {number} AS rule INTO out FROM a "
        f"WHERE {rng.choice('xy')} {rng.choice(['=', '<>', '>', '<'])} {rng.choice(['7', '2', chr(39) + 'hot' + chr(39)])}"
        + (f" AND 10 / x > {number}" if number % 5 == 4 else "")
        for number in range(12)
    )
    bodies = [{"id": n, "x": rng.choice(VALUES), "y": rng.choice(VALUES)} for n in range(50)]
    found = []
    for rewrites in ([], None):
        for size in (50, 7):
            run = Run(compile_script(script, rewrites=rewrites), on_error="set_aside")
            parts = [run.process("a", log_events(bodies[at : at + size], first=at)) for at in range(0, 50, size)]
            rows = [body for results in parts for out in results.rows for body in out.bodies()]
            counts = [(one["filter_out"], one["rows_out"]) for one in run.stats()["operators"]]
            found.append((rows, counts))
    assert found[0][0]
    assert all(one == found[0] for one in found)
    assert "share_projections" in compile_script(script).rewrites
