"""The gateway that `twins.py` measures: SQLite documents in the folder given, plain MQTT, a bus that nobody else is on.

Prints one line when it listens. Each line on stdin is a JSON array: `["methods", devices, at once, seconds]` invokes methods
and prints how many were answered and how long each took; the end of stdin stops it, after a line with its CPU time.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from pathlib import Path

import structlog
import uvloop

from headrace.core.clock import SystemClock
from headrace.core.config import GatewayConfig
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.devices.authority import DevelopmentAuthority
from headrace.devices.commands import DeviceCommands
from headrace.devices.queries import DeviceDirectory
from headrace.docstore.sqlite import SqliteDocStore
from headrace.eventlog.memory import MemoryEventLog
from headrace.gateway.methods import Methods
from headrace.gateway.server import Gateway
from headrace.wire.iothub.topics import Identity


async def invoke(methods: Methods, devices: int, at_once: int, seconds: float) -> dict[str, object]:
    waits_s: list[float] = []
    end = time.monotonic() + seconds

    async def caller(number: int) -> None:
        identity = Identity(f"dev-{number % devices}")
        while (began := time.monotonic()) < end:
            answer = await methods.invoke(identity, "echo", {"n": len(waits_s)}, response_timeout_s=30)
            assert answer == (200, {"ok": True})
            waits_s.append(time.monotonic() - began)

    await asyncio.gather(*(caller(number) for number in range(at_once)))
    waits_s.sort()
    return {
        "done": len(waits_s),
        "p50_ms": round(1000 * waits_s[len(waits_s) // 2], 2),
        "p99_ms": round(1000 * waits_s[len(waits_s) * 99 // 100], 2),
    }


async def serve(folder: Path, devices: int) -> None:
    clock = SystemClock()
    docs = SqliteDocStore(folder / "docs.sqlite", clock)
    directory = DeviceDirectory(docs, clock=clock)
    made = await DeviceCommands(docs, clock, os.urandom).create_many([f"dev-{number}" for number in range(devices)])
    await directory.open()
    gateway = Gateway(
        GatewayConfig(mqtt_port=-1, https_port=-1, plain_mqtt_port=0),
        log=MemoryEventLog(clock),
        docs=docs,
        directory=directory,
        authority=DevelopmentAuthority(folder / "authority", clock),
        clock=clock,
        metrics=Metrics(),
        ids=EventIds(os.urandom(16)),
    )
    listening = await gateway.start()
    print(json.dumps({"port": listening.plain_port, "keys": {each.id: each.primary_key for each in made}}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, *arguments = json.loads(line)
        if command == "methods":
            print(json.dumps(await invoke(gateway.methods, *arguments)), flush=True)
        else:
            used = resource.getrusage(resource.RUSAGE_SELF)
            print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime}), flush=True)
    await gateway.stop()
    await docs.close()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    uvloop.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
