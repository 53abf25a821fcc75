"""The gateway that `ingest.py --self` measures, and that the kill test kills: SQLite log and documents in the folder given.

Prints one line when it listens; stops when its stdin ends, then prints what it used and how many acknowledged ids (file
`acked`) the log holds, lacks or holds twice. Started again in the same folder it listens on the same ports.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import structlog
import uvloop

from headrace.core.clock import SystemClock
from headrace.core.config import GatewayConfig
from headrace.core.identity import EventIds, message_event_id
from headrace.core.observe.metrics import Metrics
from headrace.devices import connection_string
from headrace.devices.authority import DevelopmentAuthority
from headrace.devices.commands import DeviceCommands
from headrace.devices.model import Draft
from headrace.devices.queries import DeviceDirectory
from headrace.docstore.sqlite import SqliteDocStore
from headrace.eventlog.contract import EventLog
from headrace.eventlog.sqlite import SqliteEventLog
from headrace.gateway.server import Gateway

HOST = "127.0.0.1"


async def serve(folder: Path, devices: int, commit_interval_ms: float) -> None:
    clock, metrics = SystemClock(), Metrics()
    log, docs = SqliteEventLog(folder / "log", clock), SqliteDocStore(folder / "docs.sqlite", clock)
    directory = DeviceDirectory(docs, clock=clock)
    await directory.open()
    if not len(directory):
        made = await DeviceCommands(docs, clock, os.urandom).create_many([Draft(id=f"dev-{n}") for n in range(devices)])
        keys = {device.id: connection_string.build(HOST, device.id, device.primary_key) for device in made}
        (folder / "devices.json").write_text(json.dumps(keys))
        await directory.open()
    authority = DevelopmentAuthority(folder / "authority", clock)
    kept = folder / "ports.json"
    ports: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"tls_port": 0, "plain_port": 0}
    gateway = Gateway(
        GatewayConfig(
            mqtt_port=ports["tls_port"],
            https_port=-1,
            plain_mqtt_port=ports["plain_port"],
            commit_interval_ms=commit_interval_ms,
        ),
        log=log,
        docs=docs,
        directory=directory,
        authority=authority,
        clock=clock,
        metrics=metrics,
        ids=EventIds(os.urandom(16)),
    )
    listening = await gateway.start()
    ports = {"tls_port": listening.mqtt_port, "plain_port": listening.plain_port, "ca": str(authority.ca_path)}
    kept.write_text(json.dumps(ports))
    print(json.dumps(ports), flush=True)
    began = _cpu_s()
    await asyncio.to_thread(sys.stdin.read)
    used = {
        "gateway_cpu_s": round(_cpu_s() - began, 2),
        "gateway_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    await gateway.stop()
    used["append_s"] = round(_total(metrics, "headrace_gateway_append_seconds_sum"), 2)
    rows, batches = (_total(metrics, f"headrace_gateway_{what}_total") for what in ("events", "batches"))
    print(json.dumps(used | {"rows_per_batch": round(rows / max(1, batches))} | await checked(log, folder)), flush=True)
    await log.close()
    await docs.close()


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _total(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0


async def checked(log: EventLog, folder: Path) -> dict[str, object]:
    """How the log compares with the list of acknowledged ids: the list is the judge, the log is what is judged."""
    acked = (folder / "acked").read_text().split()
    stored: list[str] = []
    positions: tuple[int, ...] = ()
    while True:
        piece = await log.read_merged("telemetry", positions, rows_max=50_000, wait_s=0, columns=["_event_id"])
        if not piece.batch.num_rows:
            break
        stored += piece.batch.column("_event_id").to_pylist()
        positions = piece.positions
    wanted = {message_event_id(id.split("-", 1)[1].rsplit("-", 1)[0], None, id) for id in acked}
    return {
        "acked": len(acked),
        "stored": len(stored),
        "missing": len(wanted - set(stored)),
        "twice": len(stored) - len(set(stored)),
    }


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    uvloop.run(serve(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
