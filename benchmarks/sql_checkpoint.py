"""How many bytes and milliseconds does a checkpoint cost with 10,000 keys, when 5 % of them change and when all do?

One JSON line per kind of state: a tumbling window, a hopping one, SpikeAndDip with a history of 120, LAG and a sum with
OVER. `whole` is a snapshot of everything, `some` one of the changes after 5 % of the keys had an event, `all` after every
key had one. A restored copy (base and deltas) must go on with the same rows before anything is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.core.clock import from_iso, to_iso
from headrace.core.schema import LOG_SCHEMA
from headrace.sql.compile import compile_script
from headrace.sql.run import Policies, Run

START = from_iso("2025-01-01T00:00:00Z")
SECOND = 10_000_000
PREFIX = "SELECT machine_id, {} INTO result FROM telemetry TIMESTAMP BY ts "
QUERIES = {
    "tumbling": (PREFIX.format("COUNT(*) AS c, AVG(v) AS a, MAX(v) AS m, STDEV(v) AS s"), "TumblingWindow(second, 600)"),
    "hopping": (PREFIX.format("COUNT(*) AS c, AVG(v) AS a, MAX(v) AS m, STDEV(v) AS s"), "HoppingWindow(second, 60, 10)"),
    "spikes": (PREFIX.format("AnomalyDetection_SpikeAndDip(v, 95, 120, 'spikesanddips') OVER"
                             " (PARTITION BY machine_id LIMIT DURATION(second, 120)) AS r"), ""),
    "lag": (PREFIX.format("LAG(v, 1) OVER (PARTITION BY machine_id LIMIT DURATION(minute, 10)) AS r"), ""),
    "over": (PREFIX.format("SUM(v) OVER (PARTITION BY machine_id LIMIT DURATION(second, 60)) AS r"), ""),
}  # fmt: skip
WARM_S = {"tumbling": 5, "hopping": 61, "spikes": 125, "lag": 5, "over": 61}


def second(which: Sequence[int], at_s: int, rng: np.random.Generator) -> pa.RecordBatch:
    """One event of each of some keys within second `at_s`."""
    rows = len(which)
    times = START + at_s * SECOND + np.arange(1, rows + 1) * (SECOND // (rows + 1))
    values = np.round(rng.normal(65, 5, rows), 2).tolist()
    bodies = [
        b'{"machine_id":"m-%05d","ts":"%s","v":%s}' % (key, to_iso(time_).encode(), repr(value).encode())
        for key, time_, value in zip(which, times.tolist(), values, strict=True)
    ]
    same = pa.array(["d"] * rows)
    columns = {
        "_event_id": pa.array([f"{at_s}-{row}" for row in range(rows)]),
        "_entity_id": same,
        "_type": same,
        "_device": same,
        "_enqueued": pa.array(times),
        "_body": pa.array(bodies, pa.binary()),
        "_partition": pa.array(np.zeros(rows, np.int32)),
        "_offset": pa.array(np.arange(rows) + at_s * 1_000_000),
    }
    arrays = [columns.get(field.name, pa.nulls(rows, field.type)) for field in LOG_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=LOG_SCHEMA)


def measured(take: Callable[[], bytes]) -> tuple[float, bytes]:
    began = time.process_time()
    data = take()
    return (time.process_time() - began) * 1000, data


def bodies(run: Run, batch: pa.RecordBatch) -> list[bytes]:
    return [body for rows in run.process("telemetry", batch).rows for body in rows.bodies()]


def measure(name: str, keys: int, rounds: int) -> dict[str, Any]:
    query, window = QUERIES[name]
    plan = compile_script(query + (f"GROUP BY machine_id, {window}" if window else ""))

    def fresh() -> Run:
        return Run(plan, policies=Policies(late_arrival_s=-1))

    run, rng, at_s = fresh(), np.random.default_rng(1), 0
    everyone = list(range(keys))
    for at_s in range(WARM_S[name]):
        run.process("telemetry", second(everyone, at_s, rng))
    took: dict[str, list[float]] = {"whole": [], "some": [], "all": []}
    size: dict[str, list[int]] = {"whole": [], "some": [], "all": []}
    chain: list[bytes] = []
    for turn in range(3 * rounds):
        kind = ("whole", "some", "all")[turn % 3]
        at_s += 1
        some = everyone if kind == "all" else sorted(rng.choice(keys, keys // 20, replace=False).tolist())
        run.process("telemetry", second(some, at_s, rng))
        ms, data = measured(lambda kind=kind: run.snapshot(None if kind == "whole" else run.snapshots))  # type: ignore[misc]
        chain = [data] if kind == "whole" else [*chain, data]
        took[kind].append(ms)
        size[kind].append(len(data))
    copy = fresh()
    restore_ms, _ = measured(lambda: copy.restore(chain[0], chain[1:]) or b"")  # type: ignore[func-returns-value]
    for _ in range(12):
        at_s += 1
        batch = second(everyone, at_s, rng)
        assert bodies(run, batch) == bodies(copy, batch), "a restored copy goes on with other rows"
    found = {f"{kind}_ms": round(statistics.median(ms), 1) for kind, ms in took.items()}
    found |= {f"{kind}_kb": round(statistics.median(some) / 1000, 1) for kind, some in size.items()}
    return {"value": found["some_ms"], "unit": "CPU ms", **found, "restore_ms": round(restore_ms, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(QUERIES))
    given = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    for name in given.only.split(","):
        line = {"benchmark": f"sql_checkpoint.{name}", **measure(name, given.keys, given.rounds), "keys": given.keys}
        line |= {"rounds": given.rounds, "load": round(os.getloadavg()[0], 1), "commit": commit.strip()}
        print(json.dumps(line | {"machine": f"{platform.machine()} x{os.cpu_count()}"}), flush=True)


if __name__ == "__main__":
    main()
