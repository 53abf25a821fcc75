"""The broker that benchmarks/broker.py measures, in a process of its own: a SQLite log, and its port on standard output."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

import structlog
import uvloop

from headrace.core.clock import SystemClock
from headrace.core.config import BrokerConfig
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.eventlog.sqlite import SqliteEventLog
from headrace.gateway.broker.server import Broker


async def main(folder: Path) -> None:
    clock = SystemClock()
    events = SqliteEventLog(folder / "log", clock)
    broker = Broker(
        BrokerConfig(port=0, inflight_max=1000),
        events=events,
        folder=folder,
        clock=clock,
        rng=random.Random(1),
        metrics=Metrics(),
        ids=EventIds(b"benchmark"),
        entropy=b"entropy of a benchmark",
    )
    print(json.dumps({"port": await broker.start()}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)  # until the benchmark closes it
    rows = 0
    for stream in await events.streams():
        rows += sum((await events.stats(stream)).next)
    await broker.stop()
    await events.close()
    print(json.dumps({"events": rows}), flush=True)


if __name__ == "__main__":
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(30)
    )
    uvloop.run(main(Path(sys.argv[1])))
