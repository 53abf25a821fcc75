"""W1 on Bytewax, one worker, tuned as far as it goes: the source hands over 50,000 lines at a time. Prints one JSON line."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
import bytewax.operators.windowing as win
import orjson
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

STARTED = time.perf_counter()
BATCH = 50_000


class Lines(StatelessSourcePartition[bytes]):
    def __init__(self, path: str) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - it lives as long as the flow

    def next_batch(self) -> list[bytes]:
        batch = self._file.readlines(BATCH * 150)
        if not batch:
            raise StopIteration
        return batch


class File(DynamicSource[bytes]):
    def __init__(self, path: str) -> None:
        self._path = path

    def build(self, step_id: str, worker_index: int, worker_count: int) -> Lines:
        return Lines(self._path)


class Totals(StatelessSinkPartition[tuple[float, ...]]):
    def write_batch(self, items: list[tuple[float, ...]]) -> None:
        for item in items:
            RESULT["rows"] += 1
            RESULT["total"] += item[1]


class Sink(DynamicSink[tuple[float, ...]]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> Totals:
        return Totals()


RESULT: dict[str, Any] = {"rows": 0, "total": 0.0}


def parsed(line: bytes) -> tuple[str, tuple[datetime, float, float, float]]:
    event = orjson.loads(line)
    at = datetime.fromisoformat(event["ts"])
    return event["machine_id"], (at, event["temperature"], event["vibration"], event["pressure"])


def folded(state: list[float], event: tuple[datetime, float, float, float]) -> list[float]:
    _, temperature, vibration, pressure = event
    state[0] += 1
    state[1] += temperature
    state[2] = max(state[2], vibration)
    state[3] += pressure
    state[4] += pressure * pressure
    return state


def merged(a: list[float], b: list[float]) -> list[float]:
    return [a[0] + b[0], a[1] + b[1], max(a[2], b[2]), a[3] + b[3], a[4] + b[4]]


def finished(item: tuple[str, tuple[int, list[float]]]) -> tuple[float, ...] | None:
    count, heat, peak, pressure, squares = item[1][1]
    if count < 3 or heat / count <= 65:
        return None
    variance = max(0.0, (squares - pressure * pressure / count) / (count - 1))
    return count, heat / count, peak, math.sqrt(variance)


def main(path: str) -> None:
    flow = Dataflow("w1")
    keyed = op.map("parse", op.input("file", flow, File(path)), parsed)
    clock = win.EventClock(lambda event: event[0], wait_for_system_duration=timedelta(seconds=2))
    windows = win.TumblingWindower(length=timedelta(seconds=10), align_to=datetime(2025, 1, 1, tzinfo=UTC))
    folds = win.fold_window(
        "fold",
        keyed,
        clock,
        windows,
        lambda: [0, 0.0, -math.inf, 0.0, 0.0],
        folded,
        merged,
        ordered=False,
    )
    op.output("out", op.filter_map("having", folds.down, finished), Sink())
    began = time.perf_counter()
    run_main(flow)
    used = resource.getrusage(resource.RUSAGE_SELF)
    RESULT["seconds"] = time.perf_counter() - began
    RESULT["with_start_s"] = time.perf_counter() - STARTED
    RESULT["cpu_s"] = used.ru_utime + used.ru_stime
    RESULT["rss_mb"] = used.ru_maxrss // 1024
    print(json.dumps(RESULT))


if __name__ == "__main__":
    main(sys.argv[1])
