"""A timeline decides for each event by what came before it, wherever batches were cut."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from sql_events import START, at, log_events

from headrace.core.clock import to_iso
from headrace.sql.compile import compile_script
from headrace.sql.run import Policies, Run


@pytest.mark.parametrize("seed", range(30))
def test_late_early_and_disordered_events_are_judged_alike_in_any_batches(seed: int) -> None:
    rng = random.Random(seed)
    policies = Policies(
        late_arrival_s=rng.choice([-1.0, 0.0, 5.0]),
        out_of_order_s=rng.choice([0.0, 2.0]),
        action=rng.choice(["adjust", "drop"]),
    )
    arrivals = sorted(at(rng.randrange(400, 460)) for _ in range(40))
    calm = rng.random() < 0.4
    bodies = []
    for number, arrival in enumerate(arrivals):
        apart = 0 if calm and number % 13 else rng.choice([-310, -2, 0, 0, 1, 3, 8])
        bodies.append({"n": number, "ts": to_iso(max(START, arrival - apart * 10_000_000))})
    plan = compile_script("SELECT n, System.Timestamp() AS w INTO o FROM r TIMESTAMP BY ts")

    def judged(cuts: list[int]) -> tuple[list[bytes], list[Any]]:
        run = Run(plan, policies=policies, on_error="set_aside")
        found = [
            run.process("r", log_events(bodies[low:high], arrivals=arrivals[low:high], first=low))
            for low, high in pairwise(cuts)
        ]
        found.append(run.finish())
        aside = [
            (one.reason, *event)
            for results in found
            for one in results.set_aside
            for event in zip(one.events.column("_event_id").to_pylist(), one.details, strict=True)
        ]
        return [body for results in found for out in results.rows for body in out.bodies()], sorted(aside)

    one_by_one = judged(list(range(41)))
    assert judged([0, 40]) == one_by_one
    assert judged(sorted({0, 40, *rng.sample(range(40), 6)})) == one_by_one
