"""The feeder of `sql_w8.py`: appends small batches of JSON events to the event log in the folder given, as a gateway does.

Every `--every-ms` it appends what devices would have sent since: `--rate` events a second, machine after machine, about 150
bytes each, timed now. An append does not wait for the one before (the log lets them share a commit), but no more
than 64 are under way. Prints the number of events appended and the CPU seconds that took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
from pathlib import Path

import numpy as np
import uvloop

from headrace.core.clock import SystemClock, to_iso
from headrace.core.schema import JSON_TYPE, EventBatch, event_batch
from headrace.eventlog.sqlite import SqliteEventLog

UNDER_WAY_MAX = 64


class Fleet:
    """Machines that report in turn; temperatures are normal around 65, with a fixed seed."""

    def __init__(self, machines: int) -> None:
        self._rng = np.random.default_rng(8)
        self._machines = machines
        self._sent = 0

    def events(self, count: int, now: int) -> EventBatch:
        """`count` events, all of the time `now` (ticks): within one append the log knows no order between partitions."""
        numbers = np.arange(self._sent, self._sent + count)
        self._sent += count
        text = to_iso(now).encode()
        names = [f"m-{number:05d}" for number in (numbers % self._machines).tolist()]
        readings = zip(
            names,
            np.round(self._rng.normal(65, 5, count), 2).tolist(),
            np.round(self._rng.gamma(2, 0.5, count), 3).tolist(),
            np.round(self._rng.normal(101, 3, count), 2).tolist(),
            strict=True,
        )
        bodies = [
            b'{"machine_id":"%s","factory":"f-1","ts":"%s","temperature":%a,"vibration":%a,"pressure":%a,"rpm":1500,"status":"ok"}'
            % (name.encode(), text, temperature, vibration, pressure)
            for name, temperature, vibration, pressure in readings
        ]
        ids = [f"h{number:x}" for number in numbers.tolist()]
        return event_batch({"_event_id": ids, "_device": names, "_content_type": [JSON_TYPE] * count, "_body": bodies})


async def feed(given: argparse.Namespace) -> dict[str, float]:
    clock = SystemClock()
    log, fleet = SqliteEventLog(given.folder, clock), Fleet(given.machines)
    room = asyncio.Semaphore(UNDER_WAY_MAX)
    under_way: set[asyncio.Task[None]] = set()
    appended = 0

    async def append(batch: EventBatch) -> None:
        nonlocal appended
        try:
            answer = await log.append("telemetry", batch)
            appended += answer.rows
        finally:
            room.release()

    began, sent = clock.monotonic(), 0
    while (elapsed := clock.monotonic() - began) < given.seconds:
        await asyncio.sleep(given.every_ms / 1000)
        due = int((clock.monotonic() - began) * given.rate) - sent
        if due > 0:
            await room.acquire()
            task = asyncio.create_task(append(fleet.events(due, clock.now())))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            sent += due
    await asyncio.gather(*under_way)
    await log.close()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"events": appended, "seconds": elapsed, "cpu_s": used.ru_utime + used.ru_stime}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--every-ms", type=float, default=5.0)
    parser.add_argument("--machines", type=int, default=6000)
    print(json.dumps(uvloop.run(feed(parser.parse_args()))))
