"""How fast is a 10 s tumbling window per machine (workload W1) against a plain DuckDB batch query, and what does a small
live batch of 100 rows with filter, user function and window cost?

Both engines run in this process, alternately, on one thread, from JSON text in memory to result rows; the answers are
compared before anything is timed. Our side includes decoding, time policies, grouping and writing result rows as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.clock import from_iso, to_iso
from headrace.core.schema import LOG_SCHEMA
from headrace.sql.compile import compile_script
from headrace.sql.functions.user import UserFunction
from headrace.sql.run import Policies, Run

START = from_iso("2025-01-01T00:00:00Z")
QUERY = """
SELECT machine_id, COUNT(*) AS c, AVG(temperature) AS t, MAX(vibration) AS v, STDEV(pressure) AS p, System.Timestamp() AS w
INTO result FROM telemetry TIMESTAMP BY ts
GROUP BY machine_id, TumblingWindow(second, 10) HAVING COUNT(*) >= 3 AND AVG(temperature) > 65
"""
PEER = """
SELECT machine_id, w, count(*) AS c, avg(temperature) AS t, max(vibration) AS v, stddev(pressure) AS p FROM (
  SELECT machine_id, temperature, vibration, pressure, epoch_us(ts::TIMESTAMP) AS us,
         ((epoch_us(ts::TIMESTAMP) + 9999999) // 10000000) * 10000000 AS w
  FROM (SELECT unnest(from_json(line, '{"machine_id":"VARCHAR","ts":"VARCHAR","temperature":"DOUBLE",
        "vibration":"DOUBLE","pressure":"DOUBLE"}')) FROM lines))
GROUP BY machine_id, w HAVING c >= 3 AND t > 65
"""
SMALL = """
SELECT machine_id, udf.risk(temperature, vibration) AS risk INTO scored FROM telemetry TIMESTAMP BY ts WHERE temperature > 20
SELECT machine_id, AVG(temperature) AS t INTO windows FROM telemetry TIMESTAMP BY ts
GROUP BY machine_id, TumblingWindow(second, 10)
"""


def bodies(rows: int, machines: int, *, seed: int = 1) -> tuple[list[bytes], np.ndarray]:
    """JSON events of about 150 bytes at 10,000 events/s, and their arrival times."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, machines, rows)
    times = START + np.arange(1, rows + 1) * 1000
    temperature = np.round(rng.normal(65, 5, rows), 2)
    vibration = np.round(rng.gamma(2, 0.5, rows), 3)
    pressure = np.round(rng.normal(101, 3, rows), 2)
    rpm = rng.integers(900, 3000, rows)
    lines = [
        b'{"machine_id":"m-%05d","factory":"f-%d","ts":"%s","temperature":%s,"vibration":%s,"pressure":%s,"rpm":%d,"status":"ok"}'
        % (m, m % 5, to_iso(t)[:23].encode() + b"Z", repr(a).encode(), repr(b).encode(), repr(c).encode(), r)
        for m, t, a, b, c, r in zip(
            which.tolist(),
            times.tolist(),
            temperature.tolist(),
            vibration.tolist(),
            pressure.tolist(),
            rpm.tolist(),
            strict=True,
        )
    ]
    return lines, times


def log_batch(lines: list[bytes], times: np.ndarray, first: int) -> pa.RecordBatch:
    rows = len(lines)
    same = pa.array(["d"] * rows)
    columns = {
        "_event_id": pa.array([f"h{first + index:x}" for index in range(rows)]),
        "_entity_id": same,
        "_type": same,
        "_device": same,
        "_enqueued": pa.array(times),
        "_body": pa.array(lines, pa.binary()),
        "_partition": pa.array(np.zeros(rows, np.int32)),
        "_offset": pa.array(np.arange(first, first + rows)),
    }
    arrays = [columns.get(field.name, pa.nulls(rows, field.type)) for field in LOG_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=LOG_SCHEMA)


def ours(batches: list[pa.RecordBatch]) -> tuple[int, int, float]:
    """Result rows, bytes written, and a checksum of the averages."""
    run = Run(compile_script(QUERY), policies=Policies(late_arrival_s=-1))
    rows, size, total = 0, 0, 0.0
    for results in [*(run.process("telemetry", batch) for batch in batches), run.finish()]:
        for out in results.rows:
            rows += out.rows
            size += sum(map(len, out.bodies()))
            total += float(pc.sum(out.data.column("t").to_arrow()).as_py())
    return rows, size, total


def peer(lines: pa.Table) -> tuple[int, float]:
    connection = duckdb.connect()
    connection.execute("SET threads = 1")
    connection.register("lines", lines)
    found = connection.execute(PEER).to_arrow_table()
    return found.num_rows, float(pc.sum(found.column("t")).as_py())


def small_batches(rounds: int, rows: int) -> tuple[float, float]:
    """Median and 99th percentile of milliseconds per batch."""
    lines, times = bodies(rounds * rows, 200, seed=2)
    call = lambda args: pc.add(args[0], args[1])  # noqa: E731
    run = Run(compile_script(SMALL, functions={"udf.risk": UserFunction("udf.risk", call)}), on_error="set_aside")
    took: list[float] = []
    for at in range(0, len(lines), rows):
        batch = log_batch(lines[at : at + rows], times[at : at + rows], at)
        begin = time.perf_counter()
        for out in run.process("telemetry", batch).rows:
            out.bodies()
        took.append((time.perf_counter() - begin) * 1000)
    took = sorted(took[len(took) // 10 :])
    return statistics.median(took), took[int(len(took) * 0.99)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    lines, times = bodies(given.rows, 10_000)
    table = pa.table({"line": pa.array([line.decode() for line in lines])})
    batches = [
        log_batch(lines[at : at + given.batch], times[at : at + given.batch], at)
        for at in range(0, given.rows, given.batch)
    ]
    rows, _, total = ours(batches)
    peer_rows, peer_total = peer(table)
    assert rows == peer_rows, f"{rows} rows, DuckDB has {peer_rows}"
    assert abs(total - peer_total) < 1e-6 * abs(total), f"averages differ: {total}, {peer_total}"
    walls: dict[str, list[float]] = {"ours": [], "duckdb": []}
    for _ in range(given.rounds):
        for name, call, given_rows in (("ours", ours, batches), ("duckdb", peer, table)):
            begin = time.perf_counter()
            call(given_rows)  # type: ignore[operator]
            walls[name].append(time.perf_counter() - begin)
    mine, theirs = statistics.median(walls["ours"]), statistics.median(walls["duckdb"])
    p50, p99 = small_batches(200, 100)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    print(
        json.dumps(
            {
                "benchmark": "sql_w1",
                "value": round(theirs / mine, 3),
                "unit": "x of DuckDB batch, 1 thread each",
                "events_per_s": round(given.rows / mine),
                "duckdb_events_per_s": round(given.rows / theirs),
                "rounds": given.rounds,
                "rows": given.rows,
                "result_rows": rows,
                "small_batch_ms_p50": round(p50, 3),
                "small_batch_ms_p99": round(p99, 3),
                "load": round(os.getloadavg()[0], 1),
                "commit": commit.strip(),
                "machine": f"{platform.machine()} x{os.cpu_count()}",
            }
        )
    )


if __name__ == "__main__":
    main()
