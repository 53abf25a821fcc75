"""How fast is a 10 s tumbling window per machine (workload W1) against a plain DuckDB batch query, and what does a small
live batch of 100 rows with filter, user function and window cost?

One JSON line per case: events in memory with one thread and with two, a tenth of one field's values of another type, the
plain decoder, a file of newline JSON, and the event log. Both engines run in this process, alternately, with as many threads
each, from JSON text to result rows; the answers are compared before anything is timed. Our side includes decoding, time
policies, grouping and writing result rows as JSON; in `file` and `log` reading too. The peak of memory is that of a
process of its own that reads the file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.clock import SystemClock, from_iso, to_iso
from headrace.core.schema import EVENT_SCHEMA, LOG_SCHEMA
from headrace.eventlog.sqlite import SqliteEventLog
from headrace.sql.compile import compile_script
from headrace.sql.decode import Decoder
from headrace.sql.functions.user import UserFunction
from headrace.sql.run import Policies, Run

START = from_iso("2025-01-01T00:00:00Z")
QUERY = """
SELECT machine_id, COUNT(*) AS c, AVG(temperature) AS t, MAX(vibration) AS v, STDEV(pressure) AS p, System.Timestamp() AS w
INTO result FROM telemetry TIMESTAMP BY ts
GROUP BY machine_id, TumblingWindow(second, 10) HAVING COUNT(*) >= 3 AND AVG(temperature) > 65
"""
FIELDS = '{"machine_id":"VARCHAR","ts":"VARCHAR","temperature":"DOUBLE","vibration":"DOUBLE","pressure":"DOUBLE"}'
MEMORY = f"(SELECT unnest(from_json(line, '{FIELDS}')) FROM lines)"
SHAPE = """
SELECT machine_id, w, count(*) AS c, avg(temperature) AS t, max(vibration) AS v, stddev(pressure) AS p FROM (
  SELECT machine_id, temperature, vibration, pressure,
         ((epoch_us(ts::TIMESTAMP) + 9999999) // 10000000) * 10000000 AS w FROM SOURCE)
GROUP BY machine_id, w HAVING c >= 3 AND t > 65
"""
PEER = SHAPE.replace("SOURCE", MEMORY)
SMALL = """
SELECT machine_id, udf.risk(temperature, vibration) AS risk INTO scored FROM telemetry TIMESTAMP BY ts WHERE temperature > 20
SELECT machine_id, AVG(temperature) AS t INTO windows FROM telemetry TIMESTAMP BY ts
GROUP BY machine_id, TumblingWindow(second, 10)
"""


def bodies(
    rows: int, machines: int, *, seed: int = 1, first: int = 0, mixed: str = ""
) -> tuple[list[bytes], np.ndarray]:
    """JSON events of about 150 bytes at 10,000 events/s, and their arrival times.

    `mixed`: a tenth of the values of one field have another type, "whole" temperatures or "text" for vibrations.
    """
    rng = np.random.default_rng(seed)
    which = rng.integers(0, machines, rows)
    times = START + np.arange(first + 1, first + rows + 1) * 1000
    temperature = np.round(rng.normal(65, 5, rows), 2)
    vibration = np.round(rng.gamma(2, 0.5, rows), 3)
    pressure = np.round(rng.normal(101, 3, rows), 2)
    rpm = rng.integers(900, 3000, rows)
    temperatures = [repr(value).encode() for value in temperature.tolist()]
    vibrations = [repr(value).encode() for value in vibration.tolist()]
    for at in np.flatnonzero(rng.random(rows) < 0.1).tolist() if mixed else []:
        if mixed == "whole":
            temperatures[at] = temperatures[at].split(b".")[0]
        else:
            vibrations[at] = b'"%s"' % vibrations[at]
    lines = [
        b'{"machine_id":"m-%05d","factory":"f-%d","ts":"%s","temperature":%s,"vibration":%s,"pressure":%s,"rpm":%d,"status":"ok"}'
        % (m, m % 5, to_iso(t)[:23].encode() + b"Z", a, b, repr(c).encode(), r)
        for m, t, a, b, c, r in zip(
            which.tolist(),
            times.tolist(),
            temperatures,
            vibrations,
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


class Answer(NamedTuple):
    """Result rows, and sums over them that both engines must agree on.

    Rows whose average is 65 but for rounding are left out: which side of HAVING they fall on depends on the order of a sum.
    """

    rows: int = 0
    events: int = 0
    averages: float = 0.0
    highest: float = 0.0
    spreads: float = 0.0

    def plus(self, column: Callable[[str], Any]) -> Answer:
        found = [column(name).to_numpy(zero_copy_only=False) for name in ("c", "t", "v", "p")]
        clear = np.abs(found[1] - 65) > 1e-9
        sums = [float(array[clear].sum()) for array in found]
        own = (int(clear.sum()), int(sums[0]), *sums[1:])
        return Answer(*(a + b for a, b in zip(self, own, strict=True)))

    def agrees(self, other: Answer) -> bool:
        return self[:2] == other[:2] and bool(np.allclose(self[2:], other[2:], rtol=1e-9))


def write_events(path: Path, rows: int, *, mixed: str = "") -> None:
    """Newline JSON, 100,000 rows at a time."""
    with path.open("wb") as out:
        for first in range(0, rows, 100_000):
            lines, _ = bodies(min(100_000, rows - first), 10_000, seed=first + 1, first=first, mixed=mixed)
            out.write(b"\n".join(lines) + b"\n")


def read_events(path: Path, rows_max: int, *, bare: bool = False) -> Iterator[pa.RecordBatch]:
    """Batches of a file of newline JSON. Each event arrives an hour after the first one's time, so that none is early.

    A body keeps its line break (a blank to JSON), unless `bare`: that copies, and is what the log would give.
    """
    first, rest = 0, b""
    with path.open("rb") as file:
        while chunk := file.read(rows_max * 140):
            block = rest + chunk
            rest = block[block.rfind(b"\n") + 1 :]
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10)
            if bare:
                block, ends = block.replace(b"\n", b""), ends - np.arange(1, len(ends) + 1)
            for at in range(0, len(ends), rows_max):
                yield _lines_batch(block, ends, at, min(at + rows_max, len(ends)), first + at)
            first += len(ends)


def _lines_batch(block: bytes, ends: np.ndarray, low: int, high: int, first: int) -> pa.RecordBatch:
    """Lines `low` to `high` of a block; line i's last byte stands at `ends[i]`."""
    marks = np.concatenate([[int(ends[low - 1]) + 1 if low else 0], ends[low:high] + 1]).astype(np.int32)
    rows = high - low
    same = pa.repeat(pa.scalar("d"), rows)
    columns = {
        "_event_id": pa.array(np.arange(first, first + rows)).cast(pa.string()),
        "_entity_id": same,
        "_type": same,
        "_device": same,
        "_enqueued": pa.array(np.full(rows, START + 3600 * 10_000_000)),
        "_body": pa.BinaryArray.from_buffers(pa.binary(), rows, [None, pa.py_buffer(marks), pa.py_buffer(block)]),
        "_partition": pa.array(np.zeros(rows, np.int32)),
        "_offset": pa.array(np.arange(first, first + rows)),
    }
    arrays = [columns.get(field.name, pa.nulls(rows, field.type)) for field in LOG_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=LOG_SCHEMA)


def new_run(*, compiled: bool = True) -> Run:
    run = Run(compile_script(QUERY), policies=Policies(late_arrival_s=-1))
    if not compiled:
        run.decoders = {name: Decoder(one.names, compiled=False) for name, one in run.decoders.items()}
    return run


def decoded_ahead(run: Run, batches: Iterable[pa.RecordBatch], pool: ThreadPoolExecutor) -> Iterator[Any]:
    """Batches in their order, each decoded by another thread while those before it are worked on: two ahead."""
    waiting: deque[Any] = deque()
    for batch in batches:
        waiting.append(pool.submit(run.decode, "telemetry", batch))
        if len(waiting) > 2:
            yield waiting.popleft().result(timeout=60)
    while waiting:
        yield waiting.popleft().result(timeout=60)


def ours(batches: Iterable[pa.RecordBatch], *, threads: int = 1, compiled: bool = True) -> Answer:
    run = new_run(compiled=compiled)
    answer = Answer()
    with ThreadPoolExecutor(1) as pool:
        ready = decoded_ahead(run, batches, pool) if threads > 1 else batches
        for batch in ready:
            answer = answered(run.process("telemetry", batch), answer)
    return answered(run.finish(), answer)


def _arrow(out: Any, name: str) -> pa.Array:
    return out.data.column(name).to_arrow()


def answered(results: Any, answer: Answer) -> Answer:
    for out in results.rows:
        written = sum(map(len, out.bodies()))
        assert written > 0
        answer = answer.plus(partial(_arrow, out))
    return answer


def peer(source: str, lines: pa.Table | None, threads: int) -> Answer:
    connection = duckdb.connect()
    connection.execute(f"SET threads = {threads}")
    if lines is not None:
        connection.register("lines", lines)
    found = connection.sql(SHAPE.replace("SOURCE", source)).to_arrow_table()
    return Answer().plus(lambda name: found.column(name).combine_chunks())


async def fill_log(log: SqliteEventLog, path: Path, rows: int) -> None:
    for batch in read_events(path, 10_000, bare=True):
        if rows <= 0:
            return
        events = batch.select(EVENT_SCHEMA.names).slice(0, rows)
        await log.append("telemetry", events.cast(EVENT_SCHEMA))
        rows -= events.num_rows


async def from_log(log: SqliteEventLog, rows_max: int) -> Answer:
    """The whole stream, one partition: within one append the log knows no order between partitions."""
    run, answer, offset = new_run(), Answer(), 0
    while (batch := await log.read("telemetry", 0, offset, rows_max=rows_max, wait_s=0)).num_rows:
        answer = answered(run.process("telemetry", batch), answer)
        offset = int(batch.column("_offset")[-1].as_py()) + 1
    return answered(run.finish(), answer)


def alternately(
    mine: Callable[[], Answer], theirs: Callable[[int], Answer], threads: int, rounds: int
) -> dict[str, float]:
    """Both answers compared, then both timed by turns: seconds and seconds of processor, medians."""
    one, other = mine(), theirs(threads)
    assert one.agrees(other), f"ours {one}, DuckDB {other}"
    walls: dict[str, list[float]] = {"wall": [], "cpu": [], "peer_wall": [], "peer_cpu": []}
    for _ in range(rounds):
        for prefix, call in (("", mine), ("peer_", partial(theirs, threads))):
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            walls[prefix + "wall"].append(time.perf_counter() - wall)
            walls[prefix + "cpu"].append(time.process_time() - cpu)
    return {name: statistics.median(found) for name, found in walls.items()} | {"result_rows": one.rows}


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


def as_lines(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    return pa.table({"line": pa.chunked_array([batch.column("_body").cast(pa.string()) for batch in batches])})


def peak_mb(path: Path, batch: int) -> float:
    """Peak memory of a process that only reads the file and runs the query."""
    command = [sys.executable, __file__, "--peak-of", str(path), "--batch", str(batch)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout)


Case = tuple[str, int, int, Callable[[], Answer], Callable[[int], Answer]]
"""Name, threads, events, our call and the peer's (with so many threads). What a case needs is made when its turn comes."""


def cases(given: argparse.Namespace, folder: Path) -> Iterator[Case]:
    wanted = set(given.cases.split(","))
    path = folder / "events.json"
    write_events(path, given.rows)
    if wanted & {"memory", "threads", "plain"}:
        yield from memory_cases(given, path, wanted)
    if "mixed" in wanted:
        yield from mixed_cases(given, folder)
    if "file" in wanted:
        yield from file_cases(given, path)
    if "log" in wanted:
        yield from log_case(given, folder)


def memory_cases(given: argparse.Namespace, path: Path, wanted: set[str]) -> Iterator[Case]:
    batches = list(read_events(path, given.batch, bare=True))
    lines = as_lines(batches)
    if "memory" in wanted:
        yield "memory", 1, given.rows, lambda: ours(batches), partial(peer, MEMORY, lines)
    if "threads" in wanted:
        yield "threads", 2, given.rows, lambda: ours(batches, threads=2), partial(peer, MEMORY, lines)
    if "plain" in wanted:
        yield "plain", 1, given.rows, lambda: ours(batches, compiled=False), partial(peer, MEMORY, lines)


def mixed_cases(given: argparse.Namespace, folder: Path) -> Iterator[Case]:
    for mixed in ("whole", "text"):
        path = folder / f"{mixed}.json"
        write_events(path, given.rows, mixed=mixed)
        batches = list(read_events(path, given.batch, bare=True))
        mine, theirs = partial(ours, batches), partial(peer, MEMORY, as_lines(batches))
        yield f"mixed_{mixed}", 1, given.rows, mine, theirs


def file_cases(given: argparse.Namespace, path: Path) -> Iterator[Case]:
    columns = FIELDS.replace('"', "'")
    source = f"read_json('{path}', format='newline_delimited', columns={columns})"
    for threads in (1, 2):

        def mine(threads: int = threads) -> Answer:
            return ours(read_events(path, given.batch), threads=threads)

        yield f"file_{threads}", threads, given.rows, mine, partial(peer, source, None)


def log_case(given: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """The event log reads on a thread of its own while the query runs, so the peer has one thread too."""
    rows = min(given.rows, given.log_rows)
    part = folder / "part.json"
    write_events(part, rows)
    lines = as_lines(read_events(part, given.batch, bare=True))
    with asyncio.Runner() as runner:

        async def opened() -> SqliteEventLog:
            return SqliteEventLog(folder / "log", SystemClock(), partitions=1, deduplicate_s=1)

        log = runner.run(opened())
        runner.run(fill_log(log, part, rows))
        yield "log", 1, rows, lambda: runner.run(from_log(log, given.batch)), partial(peer, MEMORY, lines)
        runner.run(log.close())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--log-rows", type=int, default=500_000)
    parser.add_argument("--batch", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default="memory,threads,plain,mixed,file,log,peak,small")
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak_of:
        ours(read_events(given.peak_of, given.batch))
        status = Path("/proc/self/status").read_text()  # getrusage counts what the parent had before exec
        print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    common = {"commit": commit.strip(), "machine": f"{platform.machine()} x{os.cpu_count()}"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, threads, rows, mine, theirs in cases(given, folder):
            found = alternately(mine, theirs, threads, given.rounds)
            print(
                json.dumps(
                    {
                        "benchmark": f"sql_w1.{name}",
                        "value": round(found["peer_wall"] / found["wall"], 3),
                        "unit": f"x of DuckDB batch, {threads} thread(s) each",
                        "by_cpu": round(found["peer_cpu"] / found["cpu"], 3),
                        "events_per_s": round(rows / found["wall"]),
                        "cpu_us_per_event": round(found["cpu"] / rows * 1e6, 3),
                        "duckdb_events_per_s": round(rows / found["peer_wall"]),
                        "rounds": given.rounds,
                        "rows": rows,
                        "result_rows": found["result_rows"],
                        "load": round(os.getloadavg()[0], 1),
                    }
                    | common
                ),
                flush=True,
            )
        if "peak" in given.cases:
            found_mb = round(peak_mb(folder / "events.json", given.batch), 1)
            print(
                json.dumps({"benchmark": "sql_w1.peak", "value": found_mb, "unit": "MB", "rows": given.rows} | common)
            )
    if "small" in given.cases:
        p50, p99 = small_batches(200, 100)
        found = {
            "benchmark": "sql_w1.small",
            "value": round(p50, 3),
            "unit": "ms per 100 rows, p50",
            "p99": round(p99, 3),
        }
        print(json.dumps(found | {"load": round(os.getloadavg()[0], 1)} | common))


if __name__ == "__main__":
    main()
