"""How late is a job's output at 10,000 events a second, and what does the job cost (workload W8)?

Three processes on one machine: a feeder appends batches every 5 ms to an event log on disk (`_small_batches.py`), a job runs
a filter and a 5 s window over some 6,000 machines from that log into two streams of it, and this one compares. An event
arrived when the log stamped it; its output counts as there when the job's append has returned, so it is on disk. A window
closes with its end; what counts is when the append of all its rows has returned. The first two windows and the events
before their end are warm-up. Rows and values of both outputs are compared with the events themselves before anything is
printed. CPU is that of the whole job process, log and journal included, between warm-up and end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import uvloop

from headrace.core.clock import TICKS_PER_S, SystemClock, from_iso
from headrace.core.config import JobConfig
from headrace.core.schema import EventBatch
from headrace.eventlog.contract import Appended
from headrace.eventlog.journal import EpochJournal
from headrace.eventlog.sqlite import SqliteEventLog
from headrace.jobs.model import JobSpec
from headrace.jobs.runner import JobRunner
from headrace.ledger.sqlite import SqliteLedger

SCRIPT = """
SELECT machine_id, temperature, EventEnqueuedUtcTime AS arrived INTO hot FROM telemetry TIMESTAMP BY ts WHERE temperature > 70
SELECT machine_id, COUNT(*) AS c, AVG(temperature) AS t, MAX(vibration) AS v, STDEV(pressure) AS p, System.Timestamp() AS w
INTO windows FROM telemetry TIMESTAMP BY ts GROUP BY machine_id, TumblingWindow(second, 5)
"""
WINDOW = 5 * TICKS_PER_S
WARM_WINDOWS = 2


class Watched:
    """A log that notes when each append returned. The stamp of an append says which rows it was about."""

    def __init__(self, log: SqliteEventLog, clock: SystemClock) -> None:
        self._log, self._clock = log, clock
        self.appends: list[tuple[str, int, int]] = []  # stream, stamp, when it returned

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append(self, stream: str, batch: EventBatch, *, producer: str = "", epoch: int = -1) -> Appended:
        answer = await self._log.append(stream, batch, producer=producer, epoch=epoch)
        self.appends.append((stream, answer.enqueued, self._clock.now()))
        return answer


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def job(folder: Path, linger_ms: float | None) -> None:
    """Say `ready`, run until a line comes, then say when each append returned and what it all cost."""
    clock = SystemClock()
    log = Watched(SqliteEventLog(folder / "log", clock), clock)
    journal, ledger = EpochJournal(folder / "journal.sqlite"), SqliteLedger(folder / "ledger.sqlite")
    options = {} if linger_ms is None else {"linger_ms": linger_ms}
    runner = JobRunner(
        JobSpec("w8", SCRIPT, JobConfig(query="w8.asaql", **options), folder),
        event_log=log,
        journal=journal,
        ledger=ledger,
        clock=clock,
        rng=random.Random(1),
        functions={},
        references={},
    )
    task = asyncio.create_task(runner.run())
    print("ready", flush=True)
    for _ in range(2):  # end of the warm-up, end of it all
        await asyncio.to_thread(sys.stdin.readline)
        print(json.dumps([clock.monotonic(), cpu_s(), runner.status.epoch]), flush=True)
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.wait([task])
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"appends": log.appends, "peak_mb": peak_kb // 1024}), flush=True)
    await log.close()
    await ledger.close()
    journal.close()


async def rows(log: SqliteEventLog, stream: str) -> pa.Table:
    """The bodies of a stream as columns, and the stamps."""
    pieces, positions = [], ()
    while True:
        piece = await log.read_merged(stream, positions, rows_max=50_000, wait_s=0, columns=["_body", "_enqueued"])
        if not piece.batch.num_rows:
            break
        pieces.append(piece.batch)
        positions = piece.positions
    table = pa.Table.from_batches(pieces)
    found = pa.Table.from_pylist([json.loads(body) for body in table.column("_body").to_pylist()])
    return found.append_column("_enqueued", table.column("_enqueued"))


def ticks(column: pa.ChunkedArray) -> np.ndarray:
    return np.array([from_iso(text) for text in column.to_pylist()], np.int64)


def check(events: pa.Table, hot: pa.Table, windows: pa.Table) -> None:
    """Both outputs against the events that were appended."""
    warm = np.sort(events.column("temperature").to_numpy()[events.column("temperature").to_numpy() > 70])
    assert np.array_equal(np.sort(hot.column("temperature").to_numpy()), warm), "the filter's rows are not the events'"
    own = pa.table(
        {
            "machine_id": events.column("machine_id"),
            "w": -(-ticks(events.column("ts")) // WINDOW) * WINDOW,
            "temperature": events.column("temperature"),
            "vibration": events.column("vibration"),
        }
    )
    grouped = own.group_by(["w", "machine_id"]).aggregate(
        [("temperature", "count"), ("temperature", "mean"), ("vibration", "max")]
    )
    ends = ticks(windows.column("w"))
    grouped = grouped.filter(pa.compute.less_equal(grouped.column("w"), int(ends.max())))
    grouped = grouped.sort_by([("w", "ascending"), ("machine_id", "ascending")])
    theirs = windows.set_column(windows.schema.get_field_index("w"), "w", pa.array(ends))
    theirs = theirs.sort_by([("w", "ascending"), ("machine_id", "ascending")])
    assert theirs.column("machine_id").equals(grouped.column("machine_id")), "windows are missing or too many"
    assert theirs.column("c").equals(grouped.column("temperature_count")), "a window has another count"
    assert np.allclose(theirs.column("t").to_numpy(), grouped.column("temperature_mean").to_numpy())
    assert np.array_equal(theirs.column("v").to_numpy(), grouped.column("vibration_max").to_numpy())


def lateness(hot: pa.Table, windows: pa.Table, appends: list[tuple[str, int, int]]) -> dict[str, Any]:
    """Milliseconds from arrival to disk, and from each window's end to all its rows being on disk."""
    back = {(stream, stamp): returned for stream, stamp, returned in appends}
    ends, stamps = ticks(windows.column("w")), windows.column("_enqueued").to_numpy()
    closes = [
        (
            end,
            max(back["windows", stamp] for stamp in np.unique(stamps[ends == end]).tolist()),
            int((ends == end).sum()),
        )
        for end in np.unique(ends).tolist()
    ]
    warm, closes = closes[WARM_WINDOWS - 1][0], closes[WARM_WINDOWS:]
    arrived = ticks(hot.column("arrived"))
    there = np.array([back["hot", stamp] for stamp in hot.column("_enqueued").to_pylist()], np.int64)
    late_ms = (there - arrived)[arrived > warm] / 10_000
    close_ms = np.array([(done - end) / 10_000 for end, done, _ in closes])
    p50, p99 = np.percentile(late_ms, [50, 99]).tolist()
    return {
        "value": round(p50, 1),
        "unit": "ms from event to output on disk, p50",
        "p99_ms": round(p99, 1),
        "max_ms": round(float(late_ms.max()), 1),
        "close_p50_ms": round(float(np.median(close_ms)), 1),
        "close_max_ms": round(float(close_ms.max()), 1),
        "window_rows": int(np.median([count for _, _, count in closes])),
        "windows": len(closes),
        "rounds": len(late_ms),
    }


async def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    feeder = [sys.executable, str(Path(__file__).with_name("_small_batches.py")), str(folder / "log")]
    options = [f"--{name}={value}" for name, value in (("seconds", given.seconds), ("rate", given.rate))]
    worker = [sys.executable, __file__, "--job", str(folder)]
    if given.linger_ms is not None:
        worker.append(f"--linger-ms={given.linger_ms}")
    one = subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert one.stdin is not None
    assert one.stdout is not None
    try:
        assert one.stdout.readline().strip() == "ready"
        options.append(f"--machines={given.machines}")
        other = subprocess.Popen([*feeder, *options], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
        try:
            await asyncio.sleep(WARM_WINDOWS * 5 + 1)
            marks = []
            one.stdin.write("\n")
            one.stdin.flush()
            marks.append(json.loads(one.stdout.readline()))
            fed = json.loads(other.communicate(timeout=given.seconds + 60)[0])
        finally:
            other.kill()
        one.stdin.write("\n")
        one.stdin.flush()
        marks.append(json.loads(one.stdout.readline()))
        told = json.loads(one.stdout.readline())
        assert one.wait(timeout=30) == 0
    finally:
        one.kill()
    log = SqliteEventLog(folder / "log", SystemClock())
    events, hot, windows = [await rows(log, stream) for stream in ("telemetry", "hot", "windows")]
    await log.close()
    assert len(events) == fed["events"]
    check(events, hot, windows)
    spent = [after - before for before, after in zip(*marks, strict=True)]
    return lateness(hot, windows, [tuple(one) for one in told["appends"]]) | {
        "job_core_percent": round(100 * spent[1] / spent[0], 1),
        "epochs_per_s": round(spent[2] / spent[0], 1),
        "peak_mb": told["peak_mb"],
        "events_per_s": round(fed["events"] / fed["seconds"]),
        "feeder_core_percent": round(100 * fed["cpu_s"] / fed["seconds"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--machines", type=int, default=6000)
    parser.add_argument("--linger-ms", type=float, help="the job's own setting unless given")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        uvloop.run(job(given.job, given.linger_ms))
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(given, Path(folder)))
    machine = f"{platform.machine()} x{os.cpu_count()}, load {os.getloadavg()[0]:.1f}"
    print(json.dumps({"benchmark": "sql_w8", **found, "commit": commit.strip(), "machine": machine}))


if __name__ == "__main__":
    main()
