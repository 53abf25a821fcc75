"""The gateway that `ingest.py --self` measures: SQLite log, documents in memory, in the folder given. Stops when stdin ends.

At its end it reads the log back and compares it with the list of acknowledged ids, so that the figure is of true work.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from pathlib import Path

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
from headrace.docstore.memory import MemoryDocStore
from headrace.eventlog.contract import EventLog
from headrace.eventlog.sqlite import SqliteEventLog
from headrace.gateway.server import Gateway

HOST = "127.0.0.1"


async def serve(folder: Path, devices: int) -> None:
    clock = SystemClock()
    log = SqliteEventLog(folder / "log", clock)
    docs = MemoryDocStore(clock)
    made = await DeviceCommands(docs, clock, os.urandom).create_many([Draft(id=f"dev-{n}") for n in range(devices)])
    keys = {device.id: connection_string.build(HOST, device.id, device.primary_key) for device in made}
    (folder / "devices.json").write_text(json.dumps(keys))
    directory = DeviceDirectory(docs, clock=clock)
    await directory.open()
    authority = DevelopmentAuthority(folder / "authority", clock)
    gateway = Gateway(
        GatewayConfig(mqtt_port=0, https_port=0, plain_mqtt_port=0),
        log=log,
        docs=docs,
        directory=directory,
        authority=authority,
        clock=clock,
        metrics=Metrics(),
        ids=EventIds(os.urandom(16)),
    )
    ports = await gateway.start()
    print(
        json.dumps({"tls_port": ports.mqtt_port, "plain_port": ports.plain_port, "ca": str(authority.ca_path)}),
        flush=True,
    )
    began = resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.to_thread(sys.stdin.read)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    await gateway.stop()
    print(
        json.dumps(
            await checked(log, folder)
            | {
                "gateway_cpu_s": round(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime, 2),
                "gateway_rss_mb": ended.ru_maxrss // 1024,
                "rows_per_batch": round(_value(gateway, "events") / max(1.0, _value(gateway, "batches"))),
            }
        ),
        flush=True,
    )
    await log.close()


def _value(gateway: Gateway, what: str) -> float:
    found = {"events": gateway.ingress._events_total, "batches": gateway.ingress._batches_total}[what]
    return float(found._value.get())


async def checked(log: EventLog, folder: Path) -> dict[str, object]:
    """Every acknowledged id exactly once in the log."""
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
    uvloop.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
