"""What becomes of a hub that is offered ten times its limit: memory, losses, what clients are told, and how soon it is over?

A gateway of its own with `[limits] messages_per_s` at a tenth of what it took in a first, unlimited run on this machine; the
generator then offers ten times the limit, QoS 1, for `--for` seconds. Every acknowledged message is looked for in the log, the
gateway's memory is read twice a second, HTTP is asked meanwhile for its 429, and afterwards messages are sent at a quarter of
the limit until their acknowledgements are quick again.

    .venv/bin/python benchmarks/overload.py --for 60
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import uvloop

from headrace import assembly
from headrace.cli import bench
from headrace.core import runstate
from headrace.core.clock import TICKS_PER_S
from headrace.core.config import load_project
from headrace.wire.iothub import sas

TOML = """[project]
name = "overload"
[logs]
level = "error"
[gateway]
mqtt_port = 0
https_port = 0
plain_mqtt_port = 0
[broker]
enabled = false
[limits]
messages_per_s = {limit}
"""
SAMPLE_S = 0.5
QUICK_MS = 250.0


async def main(seconds: float, connections: int, window: int, limit: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="headrace-overload-") as folder:
        able = 10 * limit
        if not limit:
            async with _hub(Path(folder) / "free", 0) as project:
                able = (await _load(project, connections, 0.0, 5.0, window))["acked_per_s"]
                limit = max(1, able // 10)
        async with _hub(Path(folder) / "limited", limit) as project:
            before_mb = _memory_mb(project)
            samples: list[float] = []
            watching = asyncio.create_task(_watch(project, samples))
            told = asyncio.create_task(_told_over_http(project, after_s=seconds / 2))
            flood = await _load(project, connections, 10.0 * limit, seconds, window)
            ended = asyncio.get_running_loop().time()
            recovery_s = await _recovered(project, limit, window, ended)
            watching.cancel()
            platform = assembly.Platform(project)
            try:
                balanced = await platform.ledger_report()
                _, ends = await platform.log.bounds("telemetry")
            finally:
                await platform.close()
            throttled = await _throttled(project)
            status = await told
    assert flood["acknowledged_and_missing"] == 0, flood
    return {
        "able_per_s": able,
        "limit_per_s": limit,
        "offered_per_s": round(flood["offered"] / flood["seconds"]),
        "sent_per_s": flood["sent_per_s"],
        "accepted_per_s": flood["acked_per_s"],
        "seconds": flood["seconds"],
        "acknowledged": flood["acked"],
        "acknowledged_and_missing": flood["acknowledged_and_missing"],
        "in_log": sum(ends),
        "lost_connections": flood["lost_connections"],
        "ingest_gap": sum(abs(row["gap"]) for row in balanced["stages"] if row["stage"] == "ingest"),
        "puback_p50_ms": flood.get("puback_p50_ms"),
        "puback_p99_ms": flood.get("puback_p99_ms"),
        "memory_mb": {
            "before": before_mb,
            "highest": max(samples, default=0.0),
            "after": samples[-1] if samples else 0.0,
        },
        "http_while_overloaded": status,
        "throttled": throttled,
        "recovery_s": recovery_s,
        "hub_cpu_s": flood["hub_cpu_s"],
        "generator_cpu_s": flood["generator_cpu_s"],
    }


@contextlib.asynccontextmanager
async def _hub(folder: Path, limit: int) -> AsyncIterator[Any]:
    """A gateway of its own while it is measured."""
    project = _project(folder, limit)
    command = (sys.executable, "-m", "headrace", "serve", "gateway", "--project", str(folder))
    hub = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(int(bench.START_TIMEOUT_S / 0.1)):
            if bench._addresses(project):
                break
            await asyncio.sleep(0.1)
        yield project
    finally:
        with contextlib.suppress(ProcessLookupError):
            hub.terminate()
        await hub.wait()


def _project(folder: Path, limit: int) -> Any:
    folder.mkdir()
    (folder / "headrace.toml").write_text(TOML.format(limit=limit))
    return load_project(str(folder))


async def _load(project: Any, connections: int, rate: float, seconds: float, window: int) -> dict[str, Any]:
    return await bench._measure(
        project,
        connections=connections,
        rate=rate,
        seconds=seconds,
        tls=False,
        qos=1,
        size=150,
        window=window,
        processes=1,
    )


def _memory_mb(project: Any) -> float:
    used = runstate.usage([state for state in runstate.read_all(project) if state.part == "gateway"])
    return round(sum(part["memory_mb"] for part in used.values()), 1)


async def _watch(project: Any, samples: list[float]) -> None:
    while True:
        samples.append(_memory_mb(project))
        await asyncio.sleep(SAMPLE_S)


async def _told_over_http(project: Any, *, after_s: float) -> dict[str, Any]:
    """How a device's POST is answered in the middle of it."""
    await asyncio.sleep(after_s)
    platform = assembly.Platform(project)
    try:
        device = await platform.device_queries.get("bench-00001")
        path = f"devices/{device.id}"
        expires_s = platform.clock.now() // TICKS_PER_S + 600
        token = sas.build(f"{platform.hostname}/{path}", device.primary_key, expires_s=expires_s)
        base = bench._addresses(project)["https"]
        async with httpx.AsyncClient(verify=platform.client_tls, trust_env=False) as http:
            answer = await http.post(
                f"{base}/{path}/messages/events", headers={"authorization": token}, content=b"{}", timeout=30
            )
        return {
            "status": answer.status_code,
            "retry_after": answer.headers.get("retry-after"),
            "message": answer.json().get("message") if answer.content else None,
        }
    finally:
        await platform.close()


async def _recovered(project: Any, limit: int, window: int, ended: float) -> float:
    """Seconds from the end of the flood (its drain included) until a quarter of the limit is acknowledged quickly."""
    for _ in range(30):
        calm = await _load(project, 20, limit / 4, 1.0, window)
        if calm["acked"] and calm["puback_p99_ms"] <= QUICK_MS and calm["refused"] == 0:
            break
    return round(asyncio.get_running_loop().time() - ended, 1)


async def _throttled(project: Any) -> Any:
    from headrace.gateway.limits_throttled import throttled

    platform = assembly.Platform(project)
    try:
        return [
            {name: row[name] for name in ("device", "limit", "count", "waited_s")}
            for row in await throttled(platform.docs)
        ][:5]
    finally:
        await platform.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--for", dest="seconds", type=float, default=60.0)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--window", type=int, default=200)
    parser.add_argument(
        "--limit", type=int, default=0, help="messages a second; 0: a tenth of what this machine can do"
    )
    given = parser.parse_args()
    print(json.dumps(uvloop.run(main(given.seconds, given.connections, given.window, given.limit))))
