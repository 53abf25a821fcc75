"""How many QoS 1 messages of 150 bytes a second are acknowledged over 100 pipelining connections: our hub, and mosquitto?

The same generator against both, in turns. What each has on disk when it acknowledges differs, and the report says so: our hub has
fsynced the message into the event log, mosquitto with persistence on has it in memory and writes its database every so often.

    python benchmarks/ingest_peer.py --for 10 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from headrace.gateway.load import LoadDevice, LoadPlan, LoadResult, merged

SETTINGS = """listener {port} 127.0.0.1
allow_anonymous true
persistence true
persistence_location {folder}/
autosave_interval 1
max_inflight_messages 0
max_queued_messages 0
user root
"""


def ours(connections: int, seconds: float, size: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "headrace", "bench", "ingest", "--json"]
    command += ["--connections", str(connections), "--for", str(seconds), "--size", str(size)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["acked"] == report["sent"] == report["stored"], report
    return report


def mosquitto(program: str, connections: int, seconds: float, size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = Path(folder) / "mosquitto.conf"
        settings.write_text(SETTINGS.format(port=port, folder=folder))
        broker = subprocess.Popen([program, "-c", settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _await_port(port)
            devices = tuple(
                LoadDevice(f"b{n}", None, None, f"devices/b{n}/messages/events/") for n in range(connections)
            )
            plan = LoadPlan(host="127.0.0.1", port=port, devices=devices, seconds=seconds, body_bytes=size)
            done = subprocess.run(
                [sys.executable, "-m", "headrace.gateway.load"],
                input=msgspec.json.encode(plan) + b"\ngo\n",
                capture_output=True,
                check=True,
            )
            report = merged([msgspec.json.decode(done.stdout.splitlines()[1], type=LoadResult)])
            assert report["acked"] == report["sent"], report
            return report
        finally:
            broker.terminate()
            broker.wait()


def _await_port(port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("mosquitto does not listen")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--for", dest="seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=150)
    given = parser.parse_args()
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    mine: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for _ in range(given.rounds):
        mine.append(ours(given.connections, given.seconds, given.size))
        if program:
            theirs.append(mosquitto(program, given.connections, given.seconds, given.size))
    middle = statistics.median(report["acked_per_s"] for report in mine)
    peer = statistics.median(report["acked_per_s"] for report in theirs) if theirs else None
    print(
        "on disk at PUBACK: headrace the message itself, fsynced; mosquitto nothing yet (saved once a second)",
        file=sys.stderr,
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    print(
        json.dumps(
            {
                "benchmark": "ingest_peer",
                "value": middle,
                "unit": "messages/s acknowledged after fsync",
                "mosquitto_per_s": peer if peer is not None else "mosquitto is not installed",
                "ratio": round(middle / peer, 2) if peer else None,
                "rounds": given.rounds,
                "puback_p50_ms": statistics.median(report["puback_p50_ms"] for report in mine),
                "puback_p99_ms": statistics.median(report["puback_p99_ms"] for report in mine),
                "mosquitto_p99_ms": statistics.median(report["puback_p99_ms"] for report in theirs) if theirs else None,
                "hub_cpu_s": statistics.median(report["hub_cpu_s"] for report in mine),
                "generator_cpu_share": statistics.median(report["generator_cpu_share"] for report in mine),
                "load": round(os.getloadavg()[0], 1),
                "commit": commit.strip(),
                "machine": f"{platform.machine()} x{os.cpu_count()}",
            }
        )
    )


if __name__ == "__main__":
    main()
