"""An event that came too late says which windows it would have counted in."""

from __future__ import annotations

from typing import Any

import pytest
from sql_events import at, log_events

from headrace.core.clock import to_iso
from headrace.sql.compile import compile_script
from headrace.sql.missed import spans, windows_of
from headrace.sql.run import Policies, Run


def refused(
    text: str, seconds: list[float], *, out_of_order_s: float = 0.0
) -> list[tuple[str, list[dict[str, Any]] | None]]:
    run = Run(compile_script(text), policies=Policies(late_arrival_s=5.0, out_of_order_s=out_of_order_s, action="drop"))
    events = log_events([{"k": "a", "t": to_iso(at(second)), "v": 1} for second in seconds])
    return [(one.reason, one.about) for one in run.process("i", events).set_aside]


def window(start: float, end: float) -> dict[str, str]:
    return {"start": to_iso(at(start)), "end": to_iso(at(end))}


def test_a_late_event_has_its_time_and_the_windows_of_all_statements_that_read_its_input() -> None:
    text = """
    WITH warm AS (SELECT * FROM i TIMESTAMP BY t WHERE v > 0)
    SELECT COUNT(*) AS n INTO a FROM warm GROUP BY TumblingWindow(second, 10);
    SELECT COUNT(*) AS n INTO b FROM warm GROUP BY HoppingWindow(second, 20, 10);
    SELECT COUNT(*) AS n INTO c FROM warm GROUP BY k, TumblingWindow(second, 10);
    SELECT COUNT(*) AS n INTO d FROM warm GROUP BY SessionWindow(second, 5, 20)
    """
    wanted = {"time": to_iso(at(-13)), "window": [window(-20, -10), window(-30, -10), window(-20, 0)]}
    assert refused(text, [0, -13]) == [("late", [wanted])]


def test_a_time_on_a_boundary_belongs_to_the_window_that_ends_there() -> None:
    text = "SELECT COUNT(*) AS n INTO a FROM i TIMESTAMP BY t GROUP BY TumblingWindow(second, 10)"
    assert refused(text, [0, -20]) == [("late", [{"time": to_iso(at(-20)), "window": [window(-30, -20)]}])]
    assert refused(text, [0, 1, 0.5]) == [("out_of_order", [{"time": to_iso(at(0.5)), "window": [window(0, 10)]}])]


def test_an_event_without_windows_still_has_its_time() -> None:
    text = "SELECT COUNT(*) AS n INTO a FROM i TIMESTAMP BY t GROUP BY SlidingWindow(second, 10)"
    assert refused(text, [0, -13]) == [("late", [{"time": to_iso(at(-13))}])]


@pytest.mark.parametrize("second", [0.0, 0.1, 9.9, 10.0, 59.9])
def test_the_windows_of_a_time_are_those_that_count_it(second: float) -> None:
    text = "SELECT System.Timestamp() AS e INTO o FROM i TIMESTAMP BY t GROUP BY HoppingWindow(second, 60, 10)"
    plan = compile_script(text)
    run = Run(plan, policies=Policies(late_arrival_s=-1))
    found = [run.process("i", log_events([{"t": to_iso(at(second))}])), run.finish()]
    ends = [str(row["e"]) for one in found for rows in one.rows for row in rows.to_pylist()]
    (windows,) = windows_of(plan).values()
    assert [to_iso(end) for _, end in spans(windows, at(second))] == ends
