"""Numbers too great for a float fail their group and nothing else, in every window, however the stream is cut."""

from __future__ import annotations

import pytest
from sql_events import log_events

from headrace.sql.compile import compile_script
from headrace.sql.errors import RowError
from headrace.sql.run import Policies, Run

WINDOWS = ["TumblingWindow(second, 20)", "HoppingWindow(second, 20, 10)", "SlidingWindow(second, 20)"]
EVENTS = [{"k": key, "v": value} for _ in range(3) for key, value in (("big", 9e307), ("wide", -1e308), ("ok", 2.0))]
EVENTS[4] = {"k": "wide", "v": 1e308}


def run(call: str, window: str, on_error: str) -> Run:
    text = f"SELECT k, {call} AS r INTO o FROM i GROUP BY k, {window}"
    return Run(compile_script(text), policies=Policies(late_arrival_s=-1), on_error=on_error)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    ("call", "failing"),
    [("SUM(v)", {"big"}), ("AVG(v)", {"big"}), ("VAR(v)", {"wide"}), ("STDEVP(v)", {"wide"}), ("MAX(v)", set())],
)
def test_a_group_whose_numbers_are_too_great_is_set_aside_alone(call: str, failing: set[str], window: str) -> None:
    answers = []
    for size in (1, 9):
        job = run(call, window, "set_aside")
        found = [job.process("i", log_events(EVENTS[at : at + size], first=at + 1)) for at in range(0, 9, size)]
        found.append(job.finish())
        rows = [row for one in found for piece in one.rows for row in piece.to_pylist()]
        aside = [one for results in found for one in results.set_aside]
        assert {one.reason for one in aside} == ({"overflow"} if failing else set())
        assert bool(aside) == bool(failing)
        assert all(row["r"] is None or abs(row["r"]) < 1e309 for row in rows), "no infinity, no NaN"
        assert any(row["k"] == "ok" and row["r"] is not None for row in rows)
        if window.startswith("Tumbling"):
            assert {row["k"] for row in rows} == {"big", "wide", "ok"} - failing
        answers.append((rows, [(one.reason, one.events.column("_body").to_pylist()) for one in aside]))
    assert answers[0][0] == answers[1][0]


def test_a_sum_that_is_too_great_stops_a_job_that_should_stop() -> None:
    job = run("SUM(v)", WINDOWS[0], "stop")
    job.process("i", log_events(EVENTS))
    with pytest.raises(RowError, match="beyond what a float can hold") as raised:
        job.finish()
    assert raised.value.code == "sql.overflow"
