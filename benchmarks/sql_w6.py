"""How many rule evaluations per second do 300 distinct rules on one input make (workload W6), and in how much memory?

Each event is held against 300 rules: thresholds on eight fields, some with a second condition, each with a text of its own.
Batches are as they come live (20 and 50 rows) and larger; the answer is checked against a loop over plain Python values
before anything is timed. Counted is CPU time from JSON text to alert rows as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.core.clock import from_iso
from headrace.core.schema import LOG_SCHEMA
from headrace.sql.compile import compile_script
from headrace.sql.run import Run

START = from_iso("2025-01-01T00:00:00Z")
FIELDS = {
    "temperature": (65, 5),
    "vibration": (1.0, 0.4),
    "pressure": (101, 3),
    "rpm": (2000, 300),
    "voltage": (230, 4),
    "current": (12, 3),
    "humidity": (50, 10),
    "load": (60, 15),
}
STATES = ("ok", "warm", "maintenance")
TESTS: dict[str, Callable[[Any, Any], bool]] = {
    ">": lambda value, limit: value > limit,
    "<": lambda value, limit: value < limit,
    ">=": lambda value, limit: value >= limit,
    "=": lambda value, limit: value == limit,
    "<>": lambda value, limit: value != limit,
}
Rule = list[tuple[str, str, Any]]


def rules(count: int, hit_rate: float, rng: random.Random) -> list[Rule]:
    """Conditions that about `hit_rate` of the events satisfy; every second rule has a second condition."""
    spread = statistics.NormalDist().inv_cdf(1 - hit_rate)
    found: list[Rule] = []
    for number in range(count):
        name, (mean, deviation) = rng.choice(list(FIELDS.items()))
        far = deviation * spread * rng.uniform(0.97, 1.05)
        op = rng.choice([">", "<", ">="])
        rule: Rule = [(name, op, round(mean + (far if op != "<" else -far), 3))]
        if number % 2:
            rule.append(rng.choice([("state", "<>", "maintenance"), ("state", "=", "ok"), ("load", ">", 20)]))
        found.append(rule)
    return found


def script(found: list[Rule]) -> str:
    def literal(value: Any) -> str:
        return f"'{value}'" if isinstance(value, str) else repr(value)

    lines = []
    for number, rule in enumerate(found):
        where = " AND ".join(f"{name} {op} {literal(value)}" for name, op, value in rule)
        lines.append(
            f"SELECT machine_id, {rule[0][0]} AS value, 'rule {number}: {rule[0][0]}' AS text, System.Timestamp() AS at "
            f"INTO alerts FROM telemetry WHERE {where}"
        )
    return "\n".join(lines)


def events(rows: int, *, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    columns = {name: np.round(rng.normal(*how, rows), 3).tolist() for name, how in FIELDS.items()}
    columns["rpm"] = [int(value) for value in columns["rpm"]]
    machines, states = rng.integers(0, 2000, rows).tolist(), rng.choice(STATES, rows, p=(0.8, 0.15, 0.05)).tolist()
    return [
        {"machine_id": f"m-{machines[row]:05}", "state": states[row], **{name: columns[name][row] for name in FIELDS}}
        for row in range(rows)
    ]


def log_batches(found: list[dict[str, Any]], size: int) -> list[pa.RecordBatch]:
    batches = []
    for first in range(0, len(found), size):
        some = found[first : first + size]
        rows = len(some)
        same = pa.array(["d"] * rows)
        columns = {
            "_event_id": pa.array([f"h{first + index:x}" for index in range(rows)]),
            "_entity_id": same,
            "_type": same,
            "_device": same,
            "_enqueued": pa.array(START + (np.arange(first, first + rows) + 1) * 10_000),
            "_body": pa.array([json.dumps(row).encode() for row in some], pa.binary()),
            "_partition": pa.array(np.zeros(rows, np.int32)),
            "_offset": pa.array(np.arange(first, first + rows)),
        }
        arrays = [columns.get(field.name, pa.nulls(rows, field.type)) for field in LOG_SCHEMA]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=LOG_SCHEMA))
    return batches


def ours(plan: Any, batches: list[pa.RecordBatch]) -> tuple[list[bytes], list[float]]:
    """Alerts as JSON, and CPU seconds per batch."""
    run = Run(plan)
    alerts: list[bytes] = []
    took: list[float] = []
    for batch in batches:
        begin = time.process_time()
        for out in run.process("telemetry", batch).rows:
            alerts += out.bodies()
        took.append(time.process_time() - begin)
    return alerts, took


def by_hand(found: list[Rule], rows: list[dict[str, Any]]) -> list[tuple[str, float, str]]:
    """The same alerts by a loop, in the order of events and rules."""
    return [
        (row["machine_id"], row[rule[0][0]], f"rule {number}: {rule[0][0]}")
        for row in rows
        for number, rule in enumerate(found)
        if all(TESTS[op](row[name], value) for name, op, value in rule)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", type=int, default=300)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--hit-rates", type=float, nargs="+", default=[0.0001, 0.001, 0.01])
    options = parser.parse_args()
    measured = []
    for hit_rate in options.hit_rates:
        found = rules(options.rules, hit_rate, random.Random(6))
        begin = time.process_time()
        plan = compile_script(script(found))
        compiled = time.process_time() - begin
        rows = events(options.events, seed=6)
        answer = by_hand(found, rows)
        for size in (20, 50, 1000, options.events):
            batches = log_batches(rows, size)
            alerts, _ = ours(plan, batches)
            got = [(one["machine_id"], one["value"], one["text"]) for one in map(json.loads, alerts)]
            assert got == answer, f"batches of {size}: {len(got)} alerts, by hand {len(answer)}"
            took = ours(plan, batches)[1]
            took_ms = sorted(1000 * one for one in took)
            measured.append(
                {
                    "hit_rate": hit_rate,
                    "alerts": len(answer),
                    "batch_rows": size,
                    "evaluations_per_cpu_s": round(options.events * options.rules / sum(took)),
                    "core_share_at_1000_events_per_s": round(1000 * sum(took) / options.events, 4),
                    "batch_cpu_ms_p50": round(statistics.median(took_ms), 3),
                    "batch_cpu_ms_p99": round(took_ms[int(len(took_ms) * 0.99)], 3),
                    "compile_cpu_s": round(compiled, 3),
                }
            )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    live = [one["evaluations_per_cpu_s"] for one in measured if one["batch_rows"] == 20 and one["hit_rate"] == 0.001]
    print(
        json.dumps(
            {
                "benchmark": "sql_w6",
                "value": live[0] if live else None,
                "unit": "rule evaluations per CPU second, batches of 20 rows",
                "rss_mb_max": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "rules": options.rules,
                "events": options.events,
                "measured": measured,
                "commit": commit.stdout.strip(),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            }
        )
    )


if __name__ == "__main__":
    main()
