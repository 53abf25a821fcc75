"""How many connected devices does a hub hold, each sending a reading every few seconds: PUBACK waits, memory, nothing lost?

A hub of its own in a temporary folder (`headrace serve gateway` and its workers, on disk), and `headrace bench ingest` against
it, whose processes come from several addresses of 127.0.0.0/8. Memory of a connection is what the workers' memory grew by from
before the first connection to the end of the run, which includes the sessions and what the first messages need. Afterwards the
log is counted, and the ledger must balance. Hub and generator share the machine: the line says what each took. One JSON line.

    python benchmarks/connections.py --connections 10000 --every 5 --for 30 --workers 2 [--tls]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

PER_WORKER_MAX = 18_000
"""Connections of one worker where a process may have 20,000 open files."""
PER_PROCESS_MAX = 12_500
"""Devices of one process of the generator."""
START_TIMEOUT_S = 90.0
SETTINGS = """[project]
name = "connections"

[logs]
level = "warning"

[gateway]
workers = {workers}
mqtt_port = 0
https_port = 0
plain_mqtt_port = 0
connections_max = 100000

[broker]
enabled = false
"""


class Hub:
    """The workers of one hub, from outside."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        (folder / "headrace.toml").write_text(SETTINGS.format(workers=workers))
        self.parts = ["gateway", *(f"gateway:{number}" for number in range(2, workers + 1))]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        command = [sys.executable, "-m", "headrace", "serve"]
        self._workers = [
            subprocess.Popen([*command, part, "--project", str(self.folder)], stdout=subprocess.DEVNULL)
            for part in self.parts
        ]
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not all(self._ready(part) for part in self.parts):
                if time.monotonic() > deadline or any(worker.poll() is not None for worker in self._workers):
                    raise SystemExit("the hub did not start")
                time.sleep(0.1)
            yield
        finally:
            for worker in self._workers:
                worker.terminate()
            for worker in self._workers:
                worker.wait(60)

    def _ready(self, part: str) -> bool:
        path = self.folder / ".headrace" / "run" / f"{part}.json"
        return path.is_file() and json.loads(path.read_text())["state"] == "ready"

    def memory_mb(self) -> float:
        return sum(psutil.Process(worker.pid).memory_info().rss for worker in self._workers) / 1e6

    def headrace(self, *arguments: str, timeout_s: float) -> Any:
        command = [sys.executable, "-m", "headrace", *arguments, "--project", str(self.folder), "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=timeout_s, check=False)
        if not done.stdout.strip():
            raise SystemExit(f"headrace {arguments[0]} said nothing (exit code {done.returncode})")
        return json.loads(done.stdout)


def measure(connections: int, every_s: float, seconds: float, workers: int, *, tls: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="headrace-connections-") as name:
        hub = Hub(Path(name), workers)
        with hub.running():
            empty = hub.memory_mb()
            report = hub.headrace(
                "bench",
                "ingest",
                f"--connections={connections}",
                f"--rate={connections / every_s:g}",
                f"--for={seconds:g}",
                f"--processes={-(-connections // PER_PROCESS_MAX)}",
                "--window=4",
                *(["--tls"] if tls else []),
                timeout_s=seconds + 300 + connections / 20,
            )
            report["memory_kb_a_connection"] = round(1000 * (report["hub_memory_mb"] - empty) / connections, 1)
            report["memory_empty_mb"] = round(empty, 1)
        books = hub.headrace("ledger", timeout_s=120)
        report["ledger_balanced"] = books["balanced"]
    return report


def problems(report: dict[str, Any]) -> list[str]:
    """What must not be: the figures of such a run would say nothing."""
    asked = report["connections"]
    wrong = {
        "not all devices came in": report["connected"] != asked,
        "connections were lost": report["lost_connections"] > 0,
        "not all that was sent was acknowledged": report["acked"] != report["sent"],
        "the log holds another number of events than were sent": report["stored"] != report["sent"],
        "the ledger does not balance": not report["ledger_balanced"],
    }
    return [what for what, is_so in wrong.items() if is_so]


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--connections", type=int, default=10_000)
    arguments.add_argument("--every", type=float, default=5.0, help="seconds between two messages of a device")
    arguments.add_argument("--for", dest="seconds", type=float, default=30.0)
    arguments.add_argument("--workers", type=int, default=0, help=f"0: one for each {PER_WORKER_MAX:,} connections")
    arguments.add_argument("--tls", action="store_true")
    given = arguments.parse_args()
    workers = given.workers or -(-given.connections // PER_WORKER_MAX)
    report = measure(given.connections, given.every, given.seconds, workers, tls=given.tls)
    found = problems(report)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    line = {
        "question": f"{given.connections} devices, a message every {given.every:g} s each",
        "value": report.get("puback_p99_ms"),
        "unit": "ms (p99 of PUBACK)",
        "workers": workers,
        "every_s": given.every,
        **report,
        "problems": found,
        "commit": commit.strip(),
        "machine": f"{platform.machine()} {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(line))
    if found:
        raise SystemExit(f"wrong: {'; '.join(found)}")


if __name__ == "__main__":
    main()
