"""How many events of 150 B a second does one process append durably, and how long does an append take?

Two questions in one run: `crowd` has appenders that each hand in 500 events as fast as they are answered (they share
fsyncs); `paced` hands in what 50,000 events a second bring every 5 ms, as the gateway does. Every id is resendable, so
de-duplication is on. The events stored are counted by reading them back before any figure is printed.

    python benchmarks/eventlog_append.py [--seconds S] [--appenders N] [--batch ROWS] [--rate EVENTS_PER_S]
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
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from headrace.core.clock import SystemClock
from headrace.core.schema import EventBatch, event_batch
from headrace.eventlog.sqlite import SqliteEventLog

BODY_BYTES = 150
DEVICES = 1000


class Batches:
    """Batches of events of BODY_BYTES from DEVICES devices; ids are fresh in every one."""

    def __init__(self, rows: int, rng: random.Random) -> None:
        names = [f"machine-{rng.randrange(DEVICES):04}" for _ in range(rows)]
        bodies = [self._body(name, rng) for name in names]
        self._template = event_batch(
            {
                "_event_id": [""] * rows,
                "_device": names,
                "_body": bodies,
                "_properties": ['{"schema":"1"}'] * rows,
                "_content_type": ["application/json"] * rows,
                "_site": ["central"] * rows,
            }
        )
        self._random = np.random.default_rng(rng.randrange(1 << 62))

    def take(self) -> EventBatch:
        rows = self._template.num_rows
        text = np.full((rows, 33), ord("m"), dtype=np.uint8)
        text[:, 1:] = np.frombuffer(self._random.bytes(rows * 16).hex().encode(), dtype=np.uint8).reshape(rows, 32)
        offsets = pa.py_buffer(np.arange(0, 33 * rows + 1, 33, dtype=np.int32))
        ids = pa.StringArray.from_buffers(rows, offsets, pa.py_buffer(text))
        return self._template.set_column(0, self._template.schema.field(0), ids)

    @staticmethod
    def _body(name: str, rng: random.Random) -> bytes:
        text = json.dumps(
            {
                "machineId": name,
                "temperature": round(rng.gauss(65, 4), 3),
                "vibration": round(rng.gauss(2, 0.3), 4),
                "pressure": round(rng.gauss(101, 1), 3),
                "rpm": rng.randrange(900, 3000),
                "status": "running",
            }
        )
        return text.ljust(BODY_BYTES).encode()[:BODY_BYTES]


async def crowd(
    log: SqliteEventLog, seconds: float, appenders: int, batches: Batches
) -> tuple[int, float, list[float]]:
    """Rows stored, seconds, and the seconds each append took."""
    took: list[float] = []
    rows = 0
    start = time.perf_counter()

    async def appender() -> None:
        nonlocal rows
        while time.perf_counter() - start < seconds:
            batch = batches.take()
            began = time.perf_counter()
            answer = await log.append("crowd", batch)
            rows += answer.rows  # not in one line: `rows` would be read before the wait
            took.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        for _ in range(appenders):
            group.create_task(appender())
    return rows, time.perf_counter() - start, took


async def paced(log: SqliteEventLog, seconds: float, rate: int) -> tuple[int, float, list[float]]:
    """The same for batches handed in every 5 ms, whether or not those before them have been answered."""
    took: list[float] = []
    batches = Batches(rate // 200, random.Random(2))
    start = time.perf_counter()

    async def one(due: float) -> int:
        answer = await log.append("paced", batches.take())
        took.append(time.perf_counter() - due)
        return answer.rows

    async with asyncio.TaskGroup() as group:
        tasks = []
        for index in range(int(seconds * 200)):
            due = start + index * 0.005
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(group.create_task(one(due)))
    return sum(task.result() for task in tasks), time.perf_counter() - start, took


async def stored(log: SqliteEventLog, stream: str) -> int:
    """Rows of a stream, counted by reading it from its beginning."""
    positions, rows = (), 0
    while True:
        piece = await log.read_merged(stream, positions, rows_max=100_000, wait_s=0, columns=["_event_id"])
        if not piece.batch.num_rows:
            return rows
        rows, positions = rows + piece.batch.num_rows, piece.positions


def figures(rows: int, seconds: float, took: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(np.array(took) * 1000, [50, 99])
    return {
        "events_per_s": round(rows / seconds),
        "p50_ms": round(p50, 2),
        "p99_ms": round(p99, 2),
        "rounds": len(took),
    }


async def main(options: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        log = SqliteEventLog(Path(folder), SystemClock(), size_bytes_max=1 << 40)
        batches = Batches(options.batch, random.Random(1))
        await log.append("crowd", batches.take().slice(0, 0))  # open the file, start the threads
        await log.append("paced", batches.take().slice(0, 0))
        crowded = await crowd(log, options.seconds, options.appenders, batches)
        cpu = resource.getrusage(resource.RUSAGE_SELF)
        steady = await paced(log, options.seconds, options.rate)
        busy = resource.getrusage(resource.RUSAGE_SELF)
        for stream, (rows, _, _) in (("crowd", crowded), ("paced", steady)):
            found = await stored(log, stream)
            assert found == rows, f"{stream}: {rows} acknowledged, {found} read back"
        size = (await log.stats("crowd")).bytes_on_disk
        await log.close()
    used = busy.ru_utime + busy.ru_stime - cpu.ru_utime - cpu.ru_stime
    return {
        "value": figures(*crowded)["events_per_s"],
        "unit": "events/s",
        "crowd": figures(*crowded) | {"disk_bytes_per_event": round(size / crowded[0], 1)},
        "paced": figures(*steady) | {"offered_per_s": options.rate, "cores": round(used / steady[1], 2)},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--appenders", type=int, default=8)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--rate", type=int, default=50_000)
    parser.add_argument("--folder", default=None, help="where the log is made (default: the temporary folder)")
    answer = asyncio.run(main(parser.parse_args()))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.platform()}"
    print(json.dumps({"benchmark": "eventlog_append", **answer, "commit": commit.stdout.strip(), "machine": machine}))
