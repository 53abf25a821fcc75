"""How long does it take to import 50,000 devices from a file, as `headrace device import` does it?

CSV with keys and without, JSON lines with tags and desired properties, and the same file again, all of which is there already.
Documents are in SQLite, every batch is fsynced. One JSON line a case; the registry is counted before a time is printed.

    python benchmarks/import_devices.py --devices 50000
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from headrace.core.clock import SystemClock
from headrace.devices.commands import DeviceCommands
from headrace.devices.provisioning_files import Format
from headrace.devices.provisioning_import import DeviceImport
from headrace.devices.queries import DeviceQueries
from headrace.devices.twins import COLLECTION as TWINS
from headrace.devices.twins import TwinService
from headrace.docstore.sqlite import SqliteDocStore


def key(rng: random.Random) -> str:
    return base64.b64encode(rng.randbytes(32)).decode()


def csv_ids(count: int, rng: random.Random) -> list[str]:
    return ["id,site", *(f"press-{number:06d},plant-{number % 20}" for number in range(count))]


def csv_keys(count: int, rng: random.Random) -> list[str]:
    rows = (f"press-{number:06d},{key(rng)},{key(rng)},plant-{number % 20}" for number in range(count))
    return ["id,primaryKey,secondaryKey,site", *rows]


def json_twins(count: int, rng: random.Random) -> list[str]:
    return [
        json.dumps(
            {
                "id": f"press-{number:06d}",
                "site": f"plant-{number % 20}",
                "tags": {"line": number % 9, "maker": "acme"},
                "desired": {"rate": {"hz": 10}, "threshold": number / 7},
            }
        )
        for number in range(count)
    ]


async def measure(name: str, format: Format, make: Callable[[int, random.Random], list[str]], devices: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = make(devices, random.Random(7))
        random.Random(8).shuffle(body := lines[1:] if format == "csv" else lines)  # files are seldom in order
        path = Path(folder) / f"devices.{format}"
        path.write_text("\n".join([*(lines[:1] if format == "csv" else []), *body]) + "\n")
        clock = SystemClock()
        docs = SqliteDocStore(Path(folder) / "documents.db", clock, newest_only=(TWINS,))
        twins = TwinService(docs, clock, random_bytes=os.urandom)
        bulk = DeviceImport(docs, DeviceCommands(docs, clock, os.urandom), DeviceQueries(docs), twins)
        try:
            for again in (False, True):
                began, cpu = time.perf_counter(), time.process_time()
                with path.open("rb") as file:
                    found = await bulk.run(file, format)
                took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
                expected = (0, devices, 0) if again else (devices, 0, 0)
                assert (found.created, found.kept, found.failed) == expected, found
                assert await docs.count("devices") == devices
                assert await docs.count(TWINS) == (devices if make is json_twins else 0)
                report(f"{name}{', again' if again else ''}", devices, took_s, cpu_s)
        finally:
            await docs.close()


def report(name: str, devices: int, took_s: float, cpu_s: float) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    line: dict[str, Any] = {
        "benchmark": "import_devices",
        "case": name,
        "value": round(took_s, 2),
        "unit": "s",
        "devices": devices,
        "devices_per_s": round(devices / took_s),
        "cpu_s": round(cpu_s, 2),
        "load": round(os.getloadavg()[0], 1),
        "rounds": 1,
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()} {os.cpu_count()} cpu, Python {platform.python_version()}",
    }
    print(json.dumps(line), flush=True)


async def main(devices: int) -> None:
    await measure("csv, ids and sites", "csv", csv_ids, devices)
    await measure("csv with keys", "csv", csv_keys, devices)
    await measure("json lines with tags and desired", "jsonl", json_twins, devices)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=50_000)
    given = parser.parse_args()
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(given.devices))
