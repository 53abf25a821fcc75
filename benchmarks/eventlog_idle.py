"""What do ten idle readers of a stream cost, and how soon does each hear of an event?

Ten processes wait at the end of a stream for `--seconds` in which nothing is appended; their CPU time is read from
getrusage before and after. Then events are appended one at a time, and every reader says how long after the append's
answer it had the event (clocks of one machine). The readers' count of events is checked before anything is printed.

    python benchmarks/eventlog_idle.py [--readers N] [--seconds S] [--events N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from headrace.core.clock import SystemClock
from headrace.core.schema import event_batch
from headrace.eventlog.sqlite import SqliteEventLog


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def read(folder: Path, seconds: float, events: int) -> None:
    """One reader: say `ready`, sit idle, print the CPU that took, then print when each event came."""
    log = SqliteEventLog(folder, SystemClock())
    piece = await log.read_merged("s", (), rows_max=100, wait_s=0)
    print("ready", flush=True)
    before, end = cpu_s(), time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        piece = await log.read_merged("s", piece.positions, rows_max=100, wait_s=min(1.0, left))
    print(cpu_s() - before, flush=True)
    came: list[tuple[str, int]] = []
    while len(came) < events:
        piece = await log.read_merged("s", piece.positions, rows_max=100, wait_s=60)
        now = time.time_ns()
        came += [(body.decode(), now) for body in piece.batch.column("_body").to_pylist()]
        if not piece.batch.num_rows:
            break
    print(json.dumps(came), flush=True)
    await log.close()


async def append(folder: Path, events: int) -> dict[str, int]:
    """When each event was acknowledged."""
    log = SqliteEventLog(folder, SystemClock())
    answered: dict[str, int] = {}
    for number in range(events):
        await log.append("s", event_batch({"_event_id": [f"h{number}"], "_device": ["d"], "_body": [b"%d" % number]}))
        answered[str(number)] = time.time_ns()
        await asyncio.sleep(0.02)
    await log.close()
    return answered


def main(options: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--reader", folder, *map(str, ("--seconds", options.seconds))]
        command += ["--events", str(options.events)]
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(options.readers)]
        lines = [reader.stdout for reader in readers if reader.stdout]
        assert all(line.readline().strip() == "ready" for line in lines)
        cpu = [float(line.readline()) for line in lines]
        answered = asyncio.run(append(Path(folder), options.events))
        came = [json.loads(line.readline()) for line in lines]
        assert all(reader.wait(timeout=30) == 0 for reader in readers)
    assert all([name for name, _ in one] == list(answered) for one in came), "a reader missed an event"
    after_ms = np.array([(at - answered[name]) / 1e6 for one in came for name, at in one])
    p50, p99 = np.percentile(after_ms, [50, 99])
    return {
        "value": round(100 * sum(cpu) / options.seconds, 3),
        "unit": "% of one core, all readers",
        "readers": options.readers,
        "rounds": len(after_ms),
        "p50_ms": round(p50, 2),  # from the append's answer to the reader's having the event
        "p99_ms": round(p99, 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--events", type=int, default=50)
    parser.add_argument("--reader", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.reader:
        asyncio.run(read(Path(given.reader), given.seconds, given.events))
        raise SystemExit
    answer = main(given)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.platform()}"
    print(json.dumps({"benchmark": "eventlog_idle", **answer, "commit": commit.stdout.strip(), "machine": machine}))
