"""Every case once more: restored from a base and deltas, decoded by another thread, shuffled inside its tolerance. The rows
must have the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import provided
import pytest
from sql_events import at, log_events

from headrace.core.clock import TICKS_PER_S, to_iso
from headrace.core.schema import EventBatch
from headrace.sql import cases
from headrace.sql.cases import Case
from headrace.sql.compile import compile_script
from headrace.sql.run import Policies, Results, Run

OWN = Path(__file__).parent / "cases"
CASES = sorted(provided.CASES.glob("*.yaml")) + sorted(OWN.glob("*.yaml"))
CHAIN_MAX = 5

Bytes = list[tuple[str, list[bytes]]]
Step = tuple[str, EventBatch | None, int]
"""Rows of an input, or None and how far its time goes on."""


def steps(case: Case, inputs: list[str], size: int | None) -> list[Step]:
    """The events cut into batches of one input; the others hear how far time is."""
    found: list[Step] = []
    begin = 0
    while begin < len(case.events):
        stop = begin
        while stop < len(case.events) and case.events[stop].input == case.events[begin].input:
            stop += 1
            if size and stop - begin == size:
                break
        for name in inputs:
            if name.lower() == case.events[begin].input.lower():
                found.append((name, cases.event_batch(case.events[begin:stop], begin), 0))
            elif stop < len(case.events):
                found.append((name, None, case.events[stop].arrival - 1))
        begin = stop
    return found


def take(run: Run, step: Step, ready: Any = None) -> Bytes:
    name, batch, time = step
    return told(run.advance(name, time) if batch is None else run.process(name, ready or batch))


def told(results: Results) -> Bytes:
    rows = [(rows.output, rows.bodies()) for rows in results.rows if rows.rows]
    return rows + [(aside.reason, aside.events.column("_body").to_pylist()) for aside in results.set_aside]


def together(found: list[Bytes]) -> dict[str, list[bytes]]:
    out: dict[str, list[bytes]] = {}
    for one in found:
        for name, bodies in one:
            out.setdefault(name, []).extend(bodies)
    return out


def decoded(run: Run, step: Step) -> Any:
    return None if step[1] is None else run.decode(step[0], step[1])


def ahead(pool: ThreadPoolExecutor, run: Run, todo: list[Step]) -> Iterator[tuple[Step, Any]]:
    """Steps with their batches decoded by other threads, up to three at once."""
    waiting: list[tuple[Step, Future[Any]]] = []
    for step in todo:
        waiting.append((step, pool.submit(decoded, run, step)))
        if len(waiting) == 3:
            first, future = waiting.pop(0)
            yield first, future.result(timeout=60)
    for first, future in waiting:
        yield first, future.result(timeout=60)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_case_restored_from_deltas_or_decoded_elsewhere_gives_the_same_bytes(path: Path) -> None:
    case = cases.load(path)
    if "expect_error" in case.keys:
        pytest.skip("it gives no rows")
    plan = case.plan()
    straight = case.start(plan)
    want = [take(straight, step) for step in steps(case, plan.inputs, None)]
    want.append(told(straight.finish()))

    run, chain, got = case.start(plan), list[bytes](), list[Bytes]()
    for number, step in enumerate(steps(case, plan.inputs, 2)):
        whole = not chain or len(chain) == CHAIN_MAX
        data = run.snapshot(None if whole else run.snapshots)
        chain = [data] if whole else [*chain, data]
        copy = case.start(plan)
        copy.restore(chain[0], chain[1:])
        got.append(take(run, step))
        assert take(copy, step) == got[-1], f"restored from {len(chain)} parts, step {number} gives other rows"
    got.append(told(run.finish()))
    assert together(got) == together(want)

    with ThreadPoolExecutor(2) as pool:  # one thread, then two, then one, with a restore between
        run, got = case.start(plan), []
        todo = steps(case, plan.inputs, 1)
        for turn, begin in enumerate(range(0, len(todo), 4)):
            some = todo[begin : begin + 4]
            got += [take(run, *pair) for pair in (ahead(pool, run, some) if turn % 2 else ((one,) for one in some))]
            state, run = run.snapshot(), case.start(plan)
            run.restore(state)
        got.append(told(run.finish()))
    assert together(got) == together(want)


TOLERANT = [
    "SELECT k, SUM(v) AS s, AVG(v) AS a, STDEV(v) AS d, System.Timestamp() AS w INTO o FROM i TIMESTAMP BY t"
    " GROUP BY k, TumblingWindow(second, 7)",
    "SELECT k, SUM(v) AS s, MIN(v) AS m, System.Timestamp() AS w INTO o FROM i TIMESTAMP BY t"
    " GROUP BY k, HoppingWindow(second, 10, 3)",
    "SELECT k, SUM(v) AS s, COUNT(*) AS c INTO o FROM i TIMESTAMP BY t GROUP BY k, SlidingWindow(second, 5)",
    "SELECT k, SUM(v) AS s, COUNT(*) AS c INTO o FROM i TIMESTAMP BY t GROUP BY k, SessionWindow(second, 3, 20)",
    "SELECT k, v, LAG(v) OVER (PARTITION BY k LIMIT DURATION(second, 9)) AS l,"
    " AVG(v) OVER (PARTITION BY k LIMIT DURATION(second, 9)) AS a INTO o FROM i TIMESTAMP BY t",
    "SELECT a.k, a.v AS x, b.v AS y INTO o FROM i a TIMESTAMP BY t JOIN i b TIMESTAMP BY t"
    " ON a.k = b.k AND DATEDIFF(second, a, b) BETWEEN 0 AND 4",
    "SELECT k, AnomalyDetection_SpikeAndDip(v, 95, 5, 'spikesanddips')"
    " OVER (PARTITION BY k LIMIT DURATION(second, 60)) AS r INTO o FROM i TIMESTAMP BY t",
]


@pytest.mark.parametrize("query", TOLERANT)
@pytest.mark.parametrize("seed", range(3))
def test_events_shuffled_inside_their_tolerance_give_the_same_bytes(query: str, seed: int) -> None:
    rng = random.Random(seed)
    tolerance, rows = 4.0, 120
    times = sorted(rng.sample(range(600), rows))  # tenths of a second, all different
    bodies = [
        {"k": rng.choice("abc"), "v": rng.gauss(20, 5), "t": to_iso(at(0) + time * TICKS_PER_S // 10)} for time in times
    ]
    order = sorted(range(rows), key=lambda row: times[row] / 10 + rng.uniform(0, tolerance))
    arrivals = [at(100 + row / 10) for row in range(rows)]
    plan = compile_script(query)
    policies = Policies(late_arrival_s=-1, out_of_order_s=tolerance)
    answers = []
    for some, size in ((list(range(rows)), rows), (order, rows), (order, 7)):
        run = Run(plan, policies=policies)
        got: list[Bytes] = []
        for begin in range(0, rows, size):
            part = some[begin : begin + size]
            batch = log_events([bodies[row] for row in part], arrivals=arrivals[begin : begin + len(part)], first=begin)
            got.append(told(run.process("i", batch)))
        answers.append(together([*got, told(run.finish())]))
    assert order != sorted(order)
    assert answers[0] == answers[1] == answers[2], f"seed {seed}"
