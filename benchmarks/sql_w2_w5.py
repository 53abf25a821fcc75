"""What do hopping windows (W2), LAG with a threshold (W3), a reference join (W4), a count over the last 10 s on every event
(W5: with OVER, and as a sliding window) and spike detection (W7) cost, next to our own W1 and to a DuckDB batch query?

The events are those of W1. Every answer is compared with DuckDB's (the sliding window's with a plain NumPy count, the
scores with the detector's own over the whole series) before anything is timed; then W1, the workload and the peer run
alternately in this process, on one thread, from JSON in memory to result rows written as JSON. One JSON line a workload;
ratios above 1 mean faster than what is compared with. W7 needs over 1,200,000 rows: a history fills in 120 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import sql_w1
from headrace.core.clock import TICKS_PER_S
from headrace.detect.spike_dip import SpikeDip
from headrace.sql.compile import compile_script
from headrace.sql.run import Policies, Run
from sql_w1 import bodies, log_batch

MACHINES = 10_000
SPREAD = "us, ((us + 9999999) // 10000000) * 10000000 AS w"
DECODED = """(SELECT *, epoch_us(ts::TIMESTAMP) AS us, row_number() OVER () AS n FROM
  (SELECT unnest(from_json(line, '{{"machine_id":"VARCHAR","ts":"VARCHAR",{fields}}}')) FROM lines))"""


class Workload(NamedTuple):
    """`checked` is the result column whose sum must agree with the peer's column of that name."""

    query: str
    peer: str
    checked: str
    title: str


def decoded(*fields: str) -> str:
    return DECODED.format(fields=", ".join(f'"{field}":"DOUBLE"' for field in fields))


WORKLOADS = {
    "w1": Workload(sql_w1.QUERY, sql_w1.PEER, "t", "10 s tumbling window"),
    "w2": Workload(
        """SELECT machine_id, COUNT(*) AS c, AVG(temperature) AS t, MAX(vibration) AS v, STDEV(pressure) AS p,
             System.Timestamp() AS w
           INTO result FROM telemetry TIMESTAMP BY ts
           GROUP BY machine_id, HoppingWindow(second, 60, 10)
           HAVING COUNT(*) >= 3 AND AVG(temperature) > 65.0001""",
        f"""SELECT machine_id, w + 10000000 * hop AS w, count(*) AS c, avg(temperature) AS t, max(vibration) AS v,
              stddev(pressure) AS p
            FROM (SELECT machine_id, temperature, vibration, pressure, {SPREAD}, unnest(range(6)) AS hop
                  FROM {decoded("temperature", "vibration", "pressure")})
            GROUP BY ALL HAVING c >= 3 AND t > 65.0001""",
        "t",
        "hopping window 60 s / 10 s",
    ),
    "w3": Workload(
        """SELECT machine_id, temperature, LAG(temperature) OVER (PARTITION BY machine_id LIMIT DURATION(second, 60)) AS t
           INTO result FROM telemetry TIMESTAMP BY ts
           WHERE temperature - LAG(temperature) OVER (PARTITION BY machine_id LIMIT DURATION(second, 60)) > 12""",
        f"""SELECT machine_id, temperature, t FROM (SELECT machine_id, temperature, us,
              lag(temperature) OVER last AS t, lag(us) OVER last AS before FROM {decoded("temperature")}
              WINDOW last AS (PARTITION BY machine_id ORDER BY n))
            WHERE temperature - t > 12 AND us - before < 60000000""",
        "t",
        "LAG per machine and threshold",
    ),
    "w4": Workload(
        """SELECT t.machine_id, t.temperature, m.ceiling, m.hall INTO result FROM telemetry t TIMESTAMP BY ts
           JOIN machines m ON t.machine_id = m.machine_id WHERE t.temperature > m.ceiling""",
        f"""SELECT machine_id, temperature, ceiling, hall FROM {decoded("temperature")} JOIN machines USING (machine_id)
            WHERE temperature > ceiling""",
        "temperature",
        "reference join (10,000 rows) and filter",
    ),
    "w5": Workload(
        """WITH counted AS (SELECT machine_id, COUNT(*) OVER (PARTITION BY machine_id LIMIT DURATION(second, 10)) AS c
             FROM telemetry TIMESTAMP BY ts)
           SELECT machine_id, c INTO result FROM counted WHERE c >= 15""",
        f"""SELECT machine_id, c FROM (SELECT machine_id,
              count(*) OVER (PARTITION BY machine_id ORDER BY us RANGE BETWEEN 9999999 PRECEDING AND CURRENT ROW)
              - count(*) OVER (PARTITION BY machine_id, us)
              + row_number() OVER (PARTITION BY machine_id, us ORDER BY n) AS c FROM {decoded()})
            WHERE c >= 15""".replace('VARCHAR",}', 'VARCHAR"}'),
        "c",
        "count over the last 10 s per machine on every event (OVER)",
    ),
    "w5_sliding": Workload(
        """SELECT machine_id, COUNT(*) AS c, System.Timestamp() AS w INTO result FROM telemetry TIMESTAMP BY ts
           GROUP BY machine_id, SlidingWindow(second, 10) HAVING COUNT(*) >= 15""",
        "",
        "c",
        "count over the last 10 s per machine at every change (sliding window)",
    ),
    "w5_sums": Workload(
        """SELECT machine_id, AVG(temperature) AS t, MAX(vibration) AS v, System.Timestamp() AS w
           INTO result FROM telemetry TIMESTAMP BY ts
           GROUP BY machine_id, SlidingWindow(second, 10) HAVING AVG(temperature) > 72.0001""",
        "",
        "t",
        "average and maximum over the last 10 s per machine at every change (sliding window)",
    ),
    "w7": Workload(
        """WITH scored AS (SELECT machine_id, temperature,
             AnomalyDetection_SpikeAndDip(temperature, 99, 120, 'spikesanddips')
               OVER (PARTITION BY machine_id LIMIT DURATION(second, 120)) AS s FROM telemetry TIMESTAMP BY ts)
           SELECT machine_id, temperature, s.Score AS p INTO result FROM scored WHERE s.IsAnomaly = 1""",
        "",
        "p",
        "AnomalyDetection_SpikeAndDip per machine, history 120",
    ),
}


def machines() -> pa.Table:
    rng = np.random.default_rng(3)
    names = [f"m-{number:05d}" for number in range(MACHINES)]
    ceiling = np.round(rng.normal(72, 2, MACHINES), 1)
    return pa.table({"machine_id": names, "ceiling": ceiling, "hall": [f"hall-{n % 40}" for n in range(MACHINES)]})


def ours(work: Workload, batches: list[pa.RecordBatch], reference: pa.Table) -> tuple[int, float]:
    """Result rows, and the sum of the checked column."""
    plan = compile_script(work.query, references=["machines"])
    run = Run(
        plan,
        references={"machines": reference} if plan.references else {},
        policies=Policies(late_arrival_s=-1),
    )
    rows, total = 0, 0.0
    (name,) = plan.inputs
    for step in [*batches, None]:
        results = run.finish() if step is None else run.process(name, step)
        for out in results.rows:
            rows += out.rows
            sum(map(len, out.bodies()))
            total += float(pc.sum(out.data.column(work.checked).to_arrow()).as_py())
    return rows, total


def peer(work: Workload, lines: pa.Table, reference: pa.Table) -> tuple[int, float]:
    connection = duckdb.connect()
    connection.execute("SET threads = 1")
    connection.register("lines", lines)
    connection.register("machines", reference)
    found = connection.sql(work.peer).to_arrow_table()
    return found.num_rows, float(pc.sum(found.column(work.checked)).as_py() or 0)


def counted(lines: list[bytes], work: str) -> tuple[int, float]:
    """The sliding window by hand: each machine's instants of change, and what lies in the 10 s up to each."""
    events: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        event = json.loads(line)
        stamp = int(np.datetime64(event["ts"][:-1], "ms").astype(np.int64))
        events.setdefault(event["machine_id"], []).append((stamp, event["temperature"]))
    rows, total = 0, 0.0
    for own in events.values():
        times = np.array([time for time, _ in own])
        sums = np.concatenate([[0.0], np.cumsum([value for _, value in own])])
        instants = np.unique(np.concatenate([times, times + 10_000]))
        low = np.searchsorted(times, instants - 10_000, side="right")
        high = np.searchsorted(times, instants, side="right")
        count = high - low
        some = count > 0
        if work == "w5_sliding":
            found = count[count >= 15].astype(np.float64)
        else:
            average = (sums[high[some]] - sums[low[some]]) / count[some]
            assert not (np.abs(average - 72.0001) < 1e-9).any(), "an average on the very threshold may fall either way"
            found = average[average > 72.0001]
        rows += len(found)
        total += float(found.sum())
    return rows, total


def scored(lines: list[bytes]) -> tuple[int, float]:
    """The detector fed with arrays at once. That it scores as its formula says is checked in spike_dip.py."""
    events = [json.loads(line) for line in lines]
    numbers: dict[str, int] = {}
    keys = np.array([numbers.setdefault(event["machine_id"], len(numbers)) for event in events])
    stamps = np.array([np.datetime64(event["ts"][:-1], "ms") for event in events]).astype(np.int64) * 10_000
    detector = SpikeDip(120, 99.0, "spikesanddips", 120 * TICKS_PER_S)
    odd, score = detector.score(keys, stamps, np.array([event["temperature"] for event in events]))
    return int(odd.sum()), float(score[odd == 1].sum())


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def answer(name: str, lines: list[bytes], table: pa.Table, reference: pa.Table) -> tuple[int, float]:
    """What the workload should give: rows, and the sum of the checked column."""
    if WORKLOADS[name].peer:
        return peer(WORKLOADS[name], table, reference)
    return scored(lines) if name == "w7" else counted(lines, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_500_000)
    parser.add_argument("--batch", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(WORKLOADS)[1:], default=list(WORKLOADS)[1:])
    given = parser.parse_args()
    lines, times = bodies(given.rows, MACHINES)
    table = pa.table({"line": pa.array([line.decode() for line in lines])})
    reference = machines()
    batches = [
        log_batch(lines[at : at + given.batch], times[at : at + given.batch], at)
        for at in range(0, given.rows, given.batch)
    ]
    base = WORKLOADS["w1"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    for name in given.only:
        work = WORKLOADS[name]
        rows, total = ours(work, batches, reference)
        want_rows, want = answer(name, lines, table, reference)
        assert rows, f"{name} gives no rows of so few events"
        assert rows == want_rows, f"{name}: {rows} rows, should be {want_rows}"
        assert abs(total - want) <= 1e-9 * abs(want), f"{name}: sums differ: {total}, {want}"
        took: dict[str, list[tuple[float, float]]] = {"w1": [], "own": [], "duckdb": []}
        for _ in range(given.rounds):
            took["w1"].append(timed(lambda: ours(base, batches, reference)))
            took["own"].append(timed(lambda work=work: ours(work, batches, reference)))
            if work.peer:
                took["duckdb"].append(timed(lambda work=work: peer(work, table, reference)))
        wall = {key: statistics.median(pair[0] for pair in pairs) for key, pairs in took.items() if pairs}
        cpu = {key: statistics.median(pair[1] for pair in pairs) for key, pairs in took.items() if pairs}
        line = {
            "benchmark": f"sql_{name}",
            "value": round(cpu["w1"] / cpu["own"], 3),
            "unit": "x of own W1, CPU seconds, 1 thread",
            "of": work.title,
            "of_w1_wall": round(wall["w1"] / wall["own"], 3),
            "of_duckdb_wall": round(wall["duckdb"] / wall["own"], 3) if work.peer else None,
            "events_per_s": round(given.rows / wall["own"]),
            "events_per_cpu_s": round(given.rows / cpu["own"]),
            "w1_events_per_cpu_s": round(given.rows / cpu["w1"]),
            "rows": given.rows,
            "batch": given.batch,
            "result_rows": rows,
            "rounds": given.rounds,
            "load": round(os.getloadavg()[0], 1),
            "commit": commit.strip(),
            "machine": f"{platform.machine()} x{os.cpu_count()}",
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
