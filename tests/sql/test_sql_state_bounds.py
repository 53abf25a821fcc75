"""State grows with live keys, not with time: what quiet keys leave behind is gone once the watermark has passed."""

from __future__ import annotations

import random

import pytest
from sql_events import at, log_events

from headrace.core.clock import TICKS_PER_S, to_iso
from headrace.sql.compile import compile_script
from headrace.sql.run import Policies, Run

QUERIES = {
    "tumbling": "SELECT k, COUNT(*) AS n INTO o FROM i TIMESTAMP BY t GROUP BY k, TumblingWindow(second, 5)",
    "hopping": "SELECT k, SUM(v) AS n INTO o FROM i TIMESTAMP BY t GROUP BY k, HoppingWindow(second, 10, 5)",
    "sliding": "SELECT k, SUM(v) AS n INTO o FROM i TIMESTAMP BY t GROUP BY k, SlidingWindow(second, 5)",
    "session": "SELECT k, COUNT(*) AS n INTO o FROM i TIMESTAMP BY t GROUP BY k, SessionWindow(second, 4, 9)",
    "snapshot": "SELECT k, COUNT(*) AS n INTO o FROM i TIMESTAMP BY t GROUP BY k, System.Timestamp()",
    "lag": "SELECT LAG(v, 2) OVER (PARTITION BY k LIMIT DURATION(second, 5)) AS n INTO o FROM i TIMESTAMP BY t",
    "isfirst": "SELECT ISFIRST(second, 5) OVER (PARTITION BY k) AS n INTO o FROM i TIMESTAMP BY t",
    "over": "SELECT SUM(v) OVER (PARTITION BY k LIMIT DURATION(second, 5)) AS n INTO o FROM i TIMESTAMP BY t",
    "spikes": "SELECT AnomalyDetection_SpikeAndDip(v, 95, 5, 'spikes') OVER (PARTITION BY k LIMIT DURATION(second, 5)) AS n"
    " INTO o FROM i TIMESTAMP BY t",
    "change": "SELECT AnomalyDetection_ChangePoint(v, 80, 5) OVER (PARTITION BY k LIMIT DURATION(second, 5)) AS n"
    " INTO o FROM i TIMESTAMP BY t",
    "join": "SELECT a.v AS x, b.v AS y INTO o FROM i a TIMESTAMP BY t JOIN i b TIMESTAMP BY t"
    " ON a.k = b.k AND DATEDIFF(second, a, b) BETWEEN 0 AND 3",
    "left join": "SELECT a.v AS x, b.v AS y INTO o FROM i a TIMESTAMP BY t LEFT JOIN i b TIMESTAMP BY t"
    " ON a.k = b.k AND DATEDIFF(second, a, b) BETWEEN 0 AND 3",
    "match": "SELECT * INTO o FROM i TIMESTAMP BY t MATCH_RECOGNIZE (LIMIT DURATION(second, 4) PARTITION BY k"
    " MEASURES LAST(A.v) AS v AFTER MATCH SKIP TO NEXT ROW PATTERN (A B) DEFINE A AS A.v > 0.3, B AS B.v > 0.6) AS m",
    "union": "SELECT k INTO o FROM i TIMESTAMP BY t WHERE v > 0.5 UNION SELECT k FROM i TIMESTAMP BY t WHERE v < 0.2",
    "lanes": "SELECT k, COUNT(*) AS n INTO o FROM i TIMESTAMP BY t OVER k GROUP BY k, TumblingWindow(second, 5)",
}


def new_run(name: str) -> Run:
    return Run(compile_script(QUERIES[name]), policies=Policies(late_arrival_s=3.0))


def feed(run: Run, rng: random.Random, second: int, keys: list[str]) -> None:
    """Each key twice within a second."""
    times = sorted(at(second + rng.random()) for _ in range(2 * len(keys)))
    bodies = [{"k": keys[row % len(keys)], "v": rng.random(), "t": to_iso(time)} for row, time in enumerate(times)]
    run.process("i", log_events(bodies, arrivals=[time + TICKS_PER_S // 2 for time in times], first=second * 1000))


def state_rows(run: Run) -> int:
    return sum(one["state_rows"] for one in run.stats()["operators"])


@pytest.mark.parametrize("name", QUERIES)
def test_state_of_quiet_keys_expires(name: str) -> None:
    rng = random.Random(5)
    run = new_run(name)
    for second in range(6):
        feed(run, rng, second, ["still"])
    alone = most = state_rows(run)
    for second in range(6, 18):
        feed(run, rng, second, ["still", *(f"k{second}-{number}" for number in range(40))])
        most = max(most, state_rows(run))
    for second in range(18, 50):
        feed(run, rng, second, ["still"])
    assert name in ("union", "snapshot") or most > 40, "the keys had state"
    assert state_rows(run) <= 2 * alone + 8
    run.advance("i", at(500))
    run.advance("i", at(1000))
    assert state_rows(run) == 0
    assert run.stats()["substreams"] == 0 or name == "lanes"


@pytest.mark.parametrize("name", QUERIES)
def test_state_of_the_same_keys_does_not_grow_with_time(name: str) -> None:
    rng = random.Random(6)
    run = new_run(name)
    keys = [f"k{number}" for number in range(20)]
    sizes, rows = [], []
    for second in range(120):
        feed(run, rng, second, keys)
        sizes.append(len(run.snapshot()))
        rows.append(state_rows(run))
    assert max(rows[60:]) <= 1.2 * max(rows[20:60]) + 8
    assert max(sizes[60:]) <= 1.2 * max(sizes[20:60]) + 1000
