"""Does memory stay flat while workload W1 runs for an hour of event time, with a checkpoint every 60 s of it?

10,000 events a second of 10,000 machines through a 10 s tumbling window; every checkpoint goes to a journal file, as deltas
where it takes them. One JSON line: resident memory after each tenth, its slope over the second half in MB per million
events, the peak, and the bytes of state and of each kind of checkpoint. The counts of all result rows must add up to the
events. An hour is 36 million events: `--rows 36000000`.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from headrace.core.lean import hide
from headrace.eventlog.journal import EpochJournal
from headrace.sql.compile import compile_script
from headrace.sql.run import Policies, Results, Run
from sql_w1 import bodies, log_batch

QUERY = """
SELECT machine_id, COUNT(*) AS c, AVG(temperature) AS t, MAX(vibration) AS v, STDEV(pressure) AS p, System.Timestamp() AS w
INTO result FROM telemetry TIMESTAMP BY ts GROUP BY machine_id, TumblingWindow(second, 10)
"""
BATCH = 10_000  # a second of events


def resident_mb(name: str = "VmRSS") -> float:
    status = Path("/proc/self/status").read_text()
    return round(int(status.split(f"{name}:")[1].split()[0]) / 1024, 1)


def counted(results: Results) -> int:
    """Events behind the rows; the rows are written as JSON, as a sink would have them."""
    found = 0
    for out in results.rows:
        assert all(map(len, out.bodies()))
        found += int(np.sum(out.data.column("c").to_arrow().to_numpy()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--machines", type=int, default=10_000)
    given = parser.parse_args()
    hide("pandas")  # as jobs do
    run = Run(compile_script(QUERY), policies=Policies(late_arrival_s=5.0))
    resident: list[float] = []
    whole: list[int] = []
    deltas: list[int] = []
    checkpoint_ms: list[float] = []
    events, kept, busy = 0, None, 0.0
    with tempfile.TemporaryDirectory() as folder:
        journal = EpochJournal(Path(folder) / "job.sqlite")
        for number, first in enumerate(range(0, given.rows, BATCH)):
            batch = log_batch(*bodies(BATCH, given.machines, seed=number, first=first), first)
            began = time.process_time()
            events += counted(run.process("telemetry", batch))
            if number % 60 == 59:
                since = kept if kept is not None and journal.takes_delta() else None
                started = time.process_time()
                state = run.snapshot(since)
                journal.checkpoint(number, {"telemetry": (first,)}, state, delta=since is not None)
                checkpoint_ms.append((time.process_time() - started) * 1000)
                kept = run.snapshots
                (whole if since is None else deltas).append(len(state))
            busy += time.process_time() - began
            if (first + BATCH) * 10 // given.rows > len(resident):
                resident.append(resident_mb())
        left = journal.last_checkpoint()
        assert left is not None
        copy = Run(compile_script(QUERY), policies=Policies(late_arrival_s=5.0))
        copy.restore(left.state, left.deltas)
        journal.close()
        file_mb = round(os.path.getsize(Path(folder) / "job.sqlite") / 1e6, 1)
    events += counted(run.finish())
    assert events == given.rows, f"{events:,} events counted of {given.rows:,}"
    half = resident[len(resident) // 2 :]
    slope = np.polyfit(np.arange(len(half)) * given.rows / len(resident) / 1e6, half, 1)[0]
    peak = resident_mb("VmHWM")
    line = {
        "benchmark": "sql_memory",
        "value": peak,
        "unit": "MB at the peak",
        "resident_mb": resident,
        "slope_mb_per_million": round(float(slope), 3),
        "rows": given.rows,
        "machines": given.machines,
        "event_time_s": given.rows // BATCH,
        "whole_kb": round(max(whole, default=0) / 1000),
        "delta_kb": round(max(deltas, default=0) / 1000),
        "checkpoints": [len(whole), len(deltas)],
        "checkpoint_ms_p50": round(float(np.median(checkpoint_ms or [0])), 1),
        "journal_mb": file_mb,
        "cpu_us_per_event": round(busy / given.rows * 1e6, 2),
        "load": round(os.getloadavg()[0], 1),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "machine": f"{platform.machine()} x{os.cpu_count()}",
    }
    print(msgspec.json.encode(line).decode())
    if peak > 400:
        raise SystemExit("the peak is above 400 MB")


if __name__ == "__main__":
    main()
