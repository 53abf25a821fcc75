"""kill -9 under load: is every acknowledged event in the lake and in the warehouse exactly once?

The judge is the generator's own fsynced list of acknowledged message ids, never the log. A short run is a test
(test_kill.py); a long one is a command:

    .venv/bin/python tests/sim/chaos.py --kills 20 --rate 1000 --connections 100 --seconds 180
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import psycopg
from deltalake import DeltaTable

from headrace.core.identity import message_event_id

ROOT = Path(__file__).resolve().parents[2]
HEADRACE = [sys.executable, "-m", "headrace"]
GENERATOR = [sys.executable, str(ROOT / "benchmarks" / "ingest.py")]


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; they must stay the same while the gateway is killed and comes back."""
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


def headrace(*arguments: str, project: Path, check: bool = True, timeout_s: float = 240) -> str:
    environ = {**os.environ, "HEADRACE_PROJECT": str(project)}
    done = subprocess.run([*HEADRACE, *arguments], env=environ, capture_output=True, text=True, timeout=timeout_s)
    if check and done.returncode != 0:
        raise RuntimeError(f"headrace {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def make_project(folder: Path) -> Path:
    """The factory blueprint on ports of its own, plain MQTT on loopback switched on."""
    subprocess.run([*HEADRACE, "init", str(folder), "--blueprint", "factory"], check=True, capture_output=True)
    mqtt, https, plain, web = free_ports(4)
    path = folder / "headrace.toml"
    text = path.read_text()
    text = text.replace("mqtt_port = 8883", f"mqtt_port = {mqtt}\nplain_mqtt_port = {plain}")
    text = text.replace("https_port = 8443", f"https_port = {https}").replace("port = 8800", f"port = {web}")
    path.write_text(text)
    return folder


def devices_file(project: Path, count: int, path: Path) -> Path:
    """Register `count` machines and write {device: connection string}, as benchmarks/ingest.py reads it."""
    headrace("device", "create-many", "--prefix", "fac", "--count", str(count), "--out", str(path), project=project)
    return path


def live_parts(project: Path) -> dict[str, int]:
    """Pids of the project's processes, PostgreSQL's postmaster included, read from the operating system."""
    found: dict[str, int] = {}
    for path in (project / ".headrace" / "run").glob("*.json"):
        try:
            state = json.loads(path.read_bytes())
            if psutil.pid_exists(state["pid"]):
                found[state["part"]] = state["pid"]
        except (ValueError, FileNotFoundError):
            continue
    return found


def kill(project: Path, part: str) -> None:
    """SIGKILL one part, or with `all` the supervisor, every part and the database, children included."""
    parts = live_parts(project)
    victims = list(parts.values()) if part == "all" else [parts[part]] if part in parts else []
    for pid in victims:
        try:
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in family if part == "all" else family[:1]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue


def judge(project: Path, acknowledged: Path) -> dict[str, Any]:
    """Compare the acknowledged ids with what lake and warehouse hold, and ask the ledger."""
    wanted: set[str] = set()
    for line in acknowledged.read_text().splitlines():
        device, _, message = line.partition(" ")
        wanted.add(message_event_id(device, None, message))
    ledger = json.loads(headrace("ledger", "--json", "--wait", "120", project=project, check=False))
    lake = Counter(DeltaTable(str(project / ".headrace" / "lake" / "raw" / "telemetry")).to_pyarrow_table(columns=["_event_id"])[0].to_pylist())
    status = json.loads(headrace("status", "--json", project=project, check=False))
    url = next(part["addresses"]["warehouse"] for part in status["parts"] if "warehouse" in part["addresses"])
    with psycopg.connect(url) as connection:
        entities = Counter(row[0] for row in connection.execute("SELECT event_id FROM machine_telemetry"))
    return {
        "acknowledged": len(wanted),
        "lake_missing": len(wanted - lake.keys()),
        "lake_twice": sum(count > 1 for count in lake.values()),
        "entities_missing": len(wanted - entities.keys()),
        "entities_twice": sum(count > 1 for count in entities.values()),
        "stored_but_not_acknowledged": len(lake.keys() - wanted),
        "balanced": ledger["balanced"],
        "gaps": [stage for stage in ledger["stages"] if stage["gap"]],
    }


def run(*, kills: int, rate: int, connections: int, seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """Load, kill at random moments, wait until all has drained, judge."""
    rng = random.Random(seed)
    project = make_project(folder / "plant")
    headrace("up", "--detach", "--ready-timeout", "120", project=project)
    try:
        devices = devices_file(project, connections, folder / "devices.json")
        acknowledged = folder / "acknowledged.txt"
        generator = subprocess.Popen(
            [*GENERATOR, "--devices", str(devices), "--connections", str(connections), "--rate", str(rate)]
            + ["--for", str(seconds), "--acknowledged", str(acknowledged), "--port", str(plain_port(project))],
            stdout=subprocess.PIPE,
            text=True,
        )
        moments = sorted(rng.uniform(2, max(3, seconds - 5)) for _ in range(kills))
        started = time.monotonic()
        done: list[str] = []
        for moment in moments:
            time.sleep(max(0.0, started + moment - time.monotonic()))
            part = rng.choice([*sorted(live_parts(project)), "all"])
            print(f"{time.monotonic() - started:6.1f} s  kill -9 {part}", file=sys.stderr, flush=True)
            kill(project, part)
            done.append(part)
            if part in ("all", "supervisor"):
                time.sleep(1.0)  # what the kernel ends with the supervisor needs a moment to go
                headrace("up", "--detach", "--ready-timeout", "120", project=project)
        output, _ = generator.communicate(timeout=seconds + 300)
        return {"kills": dict(Counter(done)), "generator": json.loads(output.splitlines()[-1]), **judge(project, acknowledged)}
    finally:
        headrace("down", project=project, check=False)


def plain_port(project: Path) -> int:
    for line in (project / "headrace.toml").read_text().splitlines():
        if line.startswith("plain_mqtt_port"):
            return int(line.split("=")[1])
    raise ValueError("no plain_mqtt_port")


def verdict(result: dict[str, Any]) -> bool:
    zero = ("lake_missing", "lake_twice", "entities_missing", "entities_twice")
    return all(result[name] == 0 for name in zero) and bool(result["balanced"]) and result["acknowledged"] > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rate", type=int, default=1000, help="messages a second")
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(2), "big"))
    parser.add_argument("--dir", type=Path, help="keep everything here; default: a temporary folder")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.dir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = run(
            kills=options.kills,
            rate=options.rate,
            connections=options.connections,
            seconds=options.seconds,
            seed=options.seed,
            folder=folder,
        )
    print(json.dumps(result, indent=2))
    return 0 if verdict(result) else 1


if __name__ == "__main__":
    sys.exit(main())
