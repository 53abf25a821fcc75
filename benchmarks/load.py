"""What does a whole project sustain on one machine, and how long does a reading take to be stored, scored and seen?

A factory project under `headrace up` (windows, model, anomalies, lake, entities, alerts, console) fed over MQTT by a process of
its own. Publish-to-stored is the wait for the PUBACK, publish-to-scored the time until the scored row is in the log, and
publish-to-browser is measured by clients of the console's live feed. At the end everything acknowledged must be in the lake and
in the warehouse exactly once and the ledger balanced: what is lost makes the figures worthless, so the exit code says it.

    python benchmarks/load.py --rate 5000 --connections 1000 --seconds 300
    python benchmarks/load.py --find-max --connections 1000            # steps the rate up until lag grows
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import msgspec
import numpy as np
import psutil
import structlog
import uvloop

import ingest
from headrace.core.clock import TICKS_PER_MS, SystemClock, from_iso
from headrace.docstore.sqlite import SqliteDocStore
from headrace.eventlog.sqlite import SqliteEventLog
from headrace.gateway.client import Message

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "sim"))
from whole_project import POSTGRES, WholeProject, exactly_once

SAMPLE_S = 2.0
LAG_MAX_S = 5.0
"""A rate holds while no consumer is more than this many seconds of input behind at the end of the run."""
ACK_P99_MAX_MS = 1000.0
ACKED_SHARE_MIN = 0.99


class FactoryReadings:
    """What one machine says: JSON of about `size` bytes with the time of sending in `ts`, a new message id each."""

    def __init__(self, device: str, run: str, size: int, rng: random.Random) -> None:
        self._ids = f"{run}-{device}-"
        self._next = rng.randrange(1000) * 1_000_000
        self._head = b'{"machineId":"%b","factory":"%b","ts":"' % (device.encode(), device[:4].encode())
        self._tails = [self._tail(rng, 0) for _ in range(64)]
        pad = size - len(self._head) - 27 - len(self._tails[0])
        self._tails = [self._tail(rng, max(0, pad)) for _ in range(64)]

    def take(self, count: int, now_iso: str) -> list[Message]:
        first, self._next = self._next, self._next + count
        head, now, tails, ids = self._head, now_iso.encode(), self._tails, self._ids
        return [Message(head + now + tails[n & 63], f"{ids}{n}") for n in range(first, first + count)]

    @staticmethod
    def _tail(rng: random.Random, pad: int) -> bytes:
        """A machine that runs: 6,000 rpm and more, a temperature that no alert minds."""
        values = {
            "temperature": round(rng.gauss(68, 1), 3),
            "vibration": round(rng.gauss(2, 0.1), 4),
            "pressure": round(rng.gauss(6, 0.1), 3),
            "rpm": round(rng.gauss(8000, 50), 1),
            "load": round(rng.gauss(60, 3), 1),
            "wear": round(rng.gauss(20, 2), 2),
        }
        text = '",' + msgspec.json.encode(values).decode()[1:-1]
        return (text + (f',"note":"{"." * (pad - 10)}"' if pad > 10 else "") + "}").encode()


class FactoryLoad(ingest.Load):
    """ingest.py's generator with a machine's readings."""

    def __init__(self, args: argparse.Namespace, devices: dict[str, str]) -> None:
        super().__init__(args, devices)
        run = f"r{os.getpid():x}{self._clock.now() >> 20:x}"
        self._readings = [FactoryReadings(each.identity.device, run, args.size, self._rng) for each in self.clients]


def generate(options: argparse.Namespace) -> int:
    """The generator's process: send, wait for every acknowledgement, print one JSON line."""
    known = json.loads(options.generate.read_text())
    chosen = dict(list(known.items())[: options.connections])
    args = argparse.Namespace(
        acked=options.acked,
        seed=options.seed,
        run="",
        size=options.size,
        tls=options.tls_ca,
        port=options.port,
        in_flight=200,
        rate=str(options.rate),
        duration_s=options.seconds,
        patience_s=options.patience_s,
    )

    async def measured() -> dict[str, Any]:
        result = await FactoryLoad(args, chosen).run()
        return result | {"rss_mb": round(psutil.Process().memory_info().rss / 1e6)}

    result = uvloop.run(measured())
    print(json.dumps(result), flush=True)
    return 0 if not result["unacknowledged"] else 1


class Browser(threading.Thread):
    """A client of /api/live for one machine, as the machine page is: how old is each point when it gets here (ms)?"""

    def __init__(self, console: str, entity: str) -> None:
        super().__init__(daemon=True, name=f"browser {entity}")
        self._url = (
            f"{console}/api/live?{urlencode({'entity': entity, 'streams': 'telemetry,scored,aggregates,anomalies'})}"
        )
        self.waits_ms: list[float] = []
        self.problem = ""

    def run(self) -> None:
        try:
            with httpx.stream("GET", self._url, timeout=60) as answer:
                for line in answer.iter_lines():
                    if line.startswith('data: {"stream":"telemetry"'):
                        now = time.time()
                        points = json.loads(line[6:])
                        self.waits_ms += [(now - from_iso(ts) / 1e7) * 1000 for ts in points["fields"].get("ts", ())]
        except httpx.HTTPError as exc:
            self.problem = f"{type(exc).__name__}: {exc}"


class Watch(threading.Thread):
    """Samples CPU and memory of every process, and each consumer's lag, every two seconds."""

    def __init__(self, running: WholeProject, generator: int) -> None:
        super().__init__(daemon=True, name="watch")
        self._running = running
        self._generator = generator
        self.ended = threading.Event()
        self.cpu_s: dict[str, float] = {}
        self.rss_mb: dict[str, float] = {}
        self.lags: list[tuple[float, dict[str, int]]] = []
        self.machine_percent: list[float] = []
        self._first: dict[tuple[str, int], float] = {}
        self._last: dict[tuple[str, int], float] = {}

    def run(self) -> None:
        began = time.monotonic()
        psutil.cpu_percent()
        while not self.ended.wait(SAMPLE_S):
            self.machine_percent.append(psutil.cpu_percent())
            self._processes()
            self.lags.append((round(time.monotonic() - began, 1), self.lag()))

    def _processes(self) -> None:
        parts = {**self._running.parts(), "generator": self._generator}
        memory: dict[str, float] = {}
        for part, pid in parts.items():
            try:
                process = psutil.Process(pid)
                family = [process, *(process.children(recursive=True) if part == POSTGRES else [])]
            except psutil.NoSuchProcess:
                continue
            for member in family:
                try:
                    times, info = member.cpu_times(), member.memory_info()
                except psutil.NoSuchProcess:
                    continue
                key = part, member.pid
                self._first.setdefault(key, times.user + times.system)
                self._last[key] = times.user + times.system
                memory[part] = memory.get(part, 0.0) + (info.rss - (info.shared if part == POSTGRES else 0)) / 1e6
        for part, megabytes in memory.items():
            self.rss_mb[part] = max(self.rss_mb.get(part, 0.0), megabytes)
        self.cpu_s = {}
        for key, seconds in self._last.items():
            self.cpu_s[key[0]] = self.cpu_s.get(key[0], 0.0) + seconds - self._first[key]

    def lag(self) -> dict[str, int]:
        """Rows behind, per consumer, as the parts tell it themselves (at most two seconds old)."""

        async def read() -> dict[str, int]:
            docs = SqliteDocStore(self._running.folder / ".headrace" / "documents" / "documents.db", SystemClock())
            try:
                return {one.id: int(one.body.get("lag") or 0) for one in await docs.query("runtime")}
            finally:
                await docs.close()

        return asyncio.run(read())


async def publish_to_scored_ms(running: WholeProject) -> list[float]:
    """From the `ts` a machine wrote to the stamp that the log gave the scored row, for every scored row."""

    class Sent(msgspec.Struct):
        ts: str

    decoder = msgspec.json.Decoder(Sent)
    log = SqliteEventLog(running.folder / ".headrace" / "log", SystemClock())
    waits: list[float] = []
    positions, _ = await log.bounds("scored")
    try:
        while True:
            piece = await log.read_merged(
                "scored", positions, rows_max=50_000, wait_s=0, columns=["_enqueued", "_body"]
            )
            if not piece.batch.num_rows:
                return waits
            stamps = piece.batch.column("_enqueued").to_numpy()
            sent = [from_iso(decoder.decode(body).ts) for body in piece.batch.column("_body").to_pylist()]
            waits += ((stamps - np.array(sent)) / TICKS_PER_MS).tolist()
            positions = piece.positions
    finally:
        await log.close()


def measure(
    running: WholeProject, devices: Path, options: argparse.Namespace, *, rate: int, seconds: float
) -> dict[str, Any]:
    """One run at one rate on a project that is up."""
    acknowledged = running.folder / "acknowledged"
    generator = running.generator(
        devices,
        acknowledged,
        rate=rate,
        connections=options.connections,
        seconds=seconds,
        size=options.size,
        tls=options.tls,
    )
    names = list(json.loads(devices.read_text()))
    browsers = [
        Browser(running.console, name) for name in names[:: max(1, len(names) // options.browsers)][: options.browsers]
    ]
    watch = Watch(running, generator.pid)
    for thread in (*browsers, watch):
        thread.start()
    output, _ = generator.communicate(timeout=seconds + 300)
    ended = time.monotonic()
    sent = json.loads(output.splitlines()[-1])
    lag_at_end = watch.lag()
    while max(watch.lag().values(), default=0) and time.monotonic() < ended + 120:
        time.sleep(0.5)
    watch.ended.set()
    watch.join(10)
    seen = [wait for browser in browsers for wait in browser.waits_ms]
    sending_s = sent["sending_s"]
    return {
        "rate": rate,
        "acknowledged_per_s": round(sent["acked"] / sent["took_s"]),
        "stored_ms": {"p50": sent["p50_ms"], "p99": sent["p99_ms"], "max": sent["max_ms"]},
        "browser_ms": percentiles(seen),
        "browser_points": len(seen),
        "browser_problems": [browser.problem for browser in browsers if browser.problem],
        "resent": sent["resent"],
        "unacknowledged": sent["unacknowledged"],
        "cpu_s": {part: round(seconds, 1) for part, seconds in sorted(watch.cpu_s.items())},
        "cpu_us_per_message": {
            part: round(seconds / sent["acked"] * 1e6, 1) for part, seconds in sorted(watch.cpu_s.items())
        },
        "rss_mb": {part: round(megabytes) for part, megabytes in sorted(watch.rss_mb.items())},
        "machine_percent": round(float(np.mean(watch.machine_percent or [0.0])), 1),
        "lag_at_end": lag_at_end,
        "lag_max": {name: max(lag.get(name, 0) for _, lag in watch.lags) for name in lag_at_end},
        "lag_s_at_end": round(max(lag_at_end.values(), default=0) / max(rate, 1), 2),
        "drain_s": round(time.monotonic() - ended, 1),
        "seconds": round(sending_s, 1),
        "lags": watch.lags,
    }


def holds(result: dict[str, Any]) -> bool:
    """Whether the project kept up: all was acknowledged in time, and no consumer fell behind."""
    return bool(
        result["acknowledged_per_s"] >= ACKED_SHARE_MIN * result["rate"] * result["seconds"] / (result["seconds"] + 1)
        and result["stored_ms"]["p99"] <= ACK_P99_MAX_MS
        and result["lag_s_at_end"] <= LAG_MAX_S
    )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    p50, p99, most = np.percentile(np.array(values), (50, 99, 100))
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "max": round(float(most), 1)}


def run(options: argparse.Namespace, folder: Path) -> int:
    project = WholeProject(folder / "plant")
    say(f"starting {project.folder}")
    with project.running(keep=options.dir is not None) as running:
        devices = running.register(options.connections)
        if options.find_max:
            return find_max(running, devices, options)
        result = measure(running, devices, options, rate=options.rate, seconds=options.seconds)
        say("judging")
        result |= {"scored_ms": percentiles(asyncio.run(publish_to_scored_ms(running)))}
        result |= running.judge(running.folder / "acknowledged")
        result |= {"disk_mb": disk_mb(running.folder / ".headrace")}
    return report(options, result)


def find_max(running: WholeProject, devices: Path, options: argparse.Namespace) -> int:
    """Step the rate by a quarter until it no longer holds; the highest that did is the answer."""
    best, rate = 0, options.rate
    steps = []
    while True:
        result = measure(running, devices, options, rate=rate, seconds=options.seconds)
        steps.append(
            {name: result[name] for name in ("rate", "acknowledged_per_s", "stored_ms", "lag_s_at_end", "drain_s")}
        )
        say(f"{rate}/s: {'holds' if holds(result) else 'does not hold'} {steps[-1]}")
        if not holds(result):
            break
        best, rate = rate, int(rate * 1.25)
    verdict = running.judge(running.folder / "acknowledged")
    return report(options, {"rate": best, "steps": steps, **verdict})


def report(options: argparse.Namespace, result: dict[str, Any]) -> int:
    """A table for people on stderr, one JSON line for programs."""
    whole = {
        "benchmark": "load",
        "value": result.get("acknowledged_per_s", result["rate"]),
        "unit": "acknowledged messages/s, whole project",
        "connections": options.connections,
        "size": options.size,
        "tls": options.tls,
        **result,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "commit": ingest._commit(),
    }
    for part, seconds in sorted(result.get("cpu_s", {}).items(), key=lambda item: -item[1]):
        share = 100 * seconds / max(result["seconds"], 1)
        say(
            f"  {part:<20} {share:5.1f} % CPU  {result['cpu_us_per_message'][part]:7.1f} µs/message  {result['rss_mb'][part]:6} MB"
        )
    for name in ("stored_ms", "scored_ms", "browser_ms", "lag_at_end", "lag_max", "drain_s", "machine_percent"):
        if name in result:
            say(f"  {name:<20} {result[name]}")
    say(f"  exactly once: {exactly_once(result)}")
    print(json.dumps({name: value for name, value in whole.items() if name != "lags" or options.lags}))
    return 0 if exactly_once(result) else 1


def disk_mb(folder: Path) -> dict[str, int]:
    return {
        each.name: sum(path.stat().st_size for path in each.rglob("*") if path.is_file()) // 1_000_000
        for each in folder.iterdir()
        if each.is_dir()
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=1000, help="messages a second over all connections")
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--size", type=int, default=200, help="bytes of a body")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--tls", action="store_true", help="devices connect over TLS")
    parser.add_argument("--browsers", type=int, default=2, help="clients of the console's live feed")
    parser.add_argument("--find-max", action="store_true", help="raise the rate until the project falls behind")
    parser.add_argument("--lags", action="store_true", help="print every sample of every consumer's lag")
    parser.add_argument("--dir", type=Path, help="keep the project here; default: a temporary folder")
    parser.add_argument("--seed", type=int, default=0)
    generator = parser.add_argument_group("generator", "what this program starts itself with")
    generator.add_argument("--generate", type=Path, metavar="DEVICES", help="only send, as the devices of this file")
    generator.add_argument("--acked", type=Path, help="acknowledged message ids are appended to this file")
    generator.add_argument("--port", type=int, default=8883)
    generator.add_argument("--tls-ca", metavar="CA", help="connect over TLS, trusting this CA file")
    generator.add_argument(
        "--patience-s", type=float, default=120.0, help="wait this long for the last acknowledgements"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(20)
    )
    options = arguments(argv)
    if options.generate is not None:
        return generate(options)
    folder = options.dir or Path(tempfile.mkdtemp(prefix="load-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return run(options, folder)
    finally:
        if options.dir is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
