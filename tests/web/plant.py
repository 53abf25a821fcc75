"""A small made-up plant behind a console, in memory: for the tests of the pages, and to look at them.

`python tests/web/plant.py --port 8800` serves it until interrupted, with an hour of history.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.clock import TICKS_PER_S, SystemClock, to_iso
from headrace.core.config import JobConfig, ProjectConfig, Settings, WebConfig
from headrace.core.errors import NotFound, UserError, nearest
from headrace.core.schema import event_batch
from headrace.docstore.memory import MemoryDocStore
from headrace.eventlog.memory import MemoryEventLog
from headrace.jobs.supervisor import JobSupervisor
from headrace.ledger.sqlite import SqliteLedger
from headrace.web.services import WebServices
from headrace.wire.payload import flatten

SITES = {
    "fac1": ("Hamburg", "Germany"),
    "fac2": ("Gdańsk", "Poland"),
    "fac3": ("Porto", "Portugal"),
    "fac4": ("Monterrey", "Mexico"),
    "fac5": ("Pune", "India"),
}


class ShiftedClock(SystemClock):
    """The machine's clock, moved back by `shift_s`: history is written first, then time catches up."""

    shift_s = 0.0

    def now(self) -> int:
        return super().now() - int(self.shift_s * TICKS_PER_S)


async def until(condition: Callable[[], bool], *, limit_s: float = 10.0) -> None:
    """Let the loop run until something has become true. TimeoutError when it does not."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.002)


class LogHistory:
    """History straight from a log on the loop that `loop` names; asked from threads, as the console does."""

    def __init__(self, log: MemoryEventLog, loop: asyncio.AbstractEventLoop) -> None:
        self._log = log
        self._loop = loop

    def _read(self, stream: str, keep: pc.Expression | None = None) -> tuple[pa.Table, tuple[int, ...]]:
        wait = self._log.read_merged(stream, (), rows_max=1_000_000, wait_s=0.0)
        piece = asyncio.run_coroutine_threadsafe(wait, self._loop).result(10)
        rows = piece.batch if keep is None else piece.batch.filter(keep)
        return flatten(rows), piece.positions

    def range(
        self,
        stream: str,
        since: int,
        until: int,
        fields: Sequence[str] | None,
        entity: str | None,
        points_max: int,
    ) -> tuple[pa.Table, tuple[int, ...]]:
        streams = asyncio.run_coroutine_threadsafe(self._log.streams(), self._loop).result(10)
        if stream not in streams:
            raise NotFound(f"no stream {stream!r}", hint=nearest(stream, streams))
        keep = (pc.field("_enqueued") >= since) & (pc.field("_enqueued") <= until)
        if entity:
            keep &= pc.field("_entity_id") == entity
        table, positions = self._read(stream, keep)
        if fields:
            table = table.select([name for name in table.column_names if name.startswith("_") or name in fields])
        step = max(1, math.ceil(table.num_rows / points_max))
        return table.take(pa.array(range(0, table.num_rows, step), pa.int64())), positions

    def run(self, sql: str, *, limit: int | None = None) -> pa.Table:
        streams = asyncio.run_coroutine_threadsafe(self._log.streams(), self._loop).result(10)
        with duckdb.connect() as database:
            for stream in streams:
                database.register(stream, self._read(stream)[0])
            try:
                return database.sql(sql).to_arrow_table().slice(0, limit)
            except duckdb.Error as exc:
                raise UserError(str(exc), hint="see the tables with SHOW TABLES", code="query.sql") from exc


class Incidents:
    """Incidents in a list."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def open(self, id: str, key: str, severity: str, title: str, at: int, **fields: Any) -> None:
        self.all.insert(
            0,
            {
                "id": id,
                "rule": title.split(" ")[-1],
                "key": key,
                "severity": severity,
                "title": title,
                "state": "open",
                "opened": at,
                "last_seen": at,
                "resolved": 0,
                "acknowledged_by": "",
                "events": 3,
                "fields": fields,
            },
        )

    async def list(self, *, state: str = "", key: str = "", limit: int = 200) -> Sequence[Mapping[str, Any]]:
        wanted = {"open": ("open", "acknowledged"), "resolved": ("resolved",)}.get(state)
        found = [one for one in self.all if (not wanted or one["state"] in wanted) and (not key or one["key"] == key)]
        return [dict(one) for one in found[:limit]]

    async def acknowledge(self, id: str, by: str, note: str = "") -> Mapping[str, Any]:
        for one in self.all:
            if one["id"] == id:
                one.update(state="acknowledged", acknowledged_by=by, note=note)
                return dict(one)
        raise NotFound(f"no incident {id!r}", hint="it may have been removed")


class Machine:
    def __init__(self, rng: random.Random, site: str, number: int) -> None:
        self.id = f"{site}-cnc-{number:03d}"
        self.site = site
        self.rng = rng
        self.base = rng.uniform(52, 68)
        self.wear = rng.uniform(0.02, 0.9)
        self.phase = rng.uniform(0, 6)
        self.rpm = rng.choice([3000, 4500, 6000])

    def reading(self, t: float) -> tuple[dict[str, Any], float | None]:
        """The telemetry at `t` seconds, and the temperature of a spike where there is one."""
        rng = self.rng
        self.wear = self.wear + 0.00003 if self.wear < 1 else 0.02
        load = 55 + 25 * math.sin(t / 240 + self.phase) + rng.gauss(0, 3)
        temperature = self.base + 0.12 * load + 9 * self.wear**3 + rng.gauss(0, 0.35)
        spike = temperature + rng.uniform(9, 16) if rng.random() < 0.002 else None
        return {
            "machineId": self.id,
            "factory": self.site,
            "ts": to_iso(int(t * TICKS_PER_S)),
            "temperature": round(spike or temperature, 3),
            "vibration": round(1.2 + 2.2 * self.wear**2 + abs(rng.gauss(0, 0.12)), 4),
            "pressure": round(6.1 + 0.25 * math.sin(t / 90 + self.phase) + rng.gauss(0, 0.03), 4),
            "rpm": round(self.rpm * (1 + rng.gauss(0, 0.004)), 1),
            "load": round(load, 2),
            "wear": round(self.wear, 5),
        }, spike


class Plant:
    """Machines that write telemetry, scores, anomalies and windows to a log."""

    def __init__(self, log: MemoryEventLog, *, machines: int = 8, seed: int = 7) -> None:
        rng = random.Random(seed)
        self.log = log
        self.machines = [Machine(rng, site, number + 1) for site in SITES for number in range(machines)]
        self.count = 0
        self.windows: dict[str, list[float]] = {}
        self.window = 0
        self.extra_field = False

    def batch(self, rows: Sequence[tuple[Machine, Mapping[str, Any]]]) -> pa.RecordBatch:
        self.count += len(rows)
        return event_batch(
            {
                "_event_id": [f"e{self.count}-{index}" for index in range(len(rows))],
                "_device": [machine.id for machine, _ in rows],
                "_site": [machine.site for machine, _ in rows],
                "_body": [orjson.dumps(body) for _, body in rows],
            }
        )

    async def step(self, t: float) -> list[tuple[Machine, Mapping[str, Any]]]:
        """One reading of each machine; returns the spikes."""
        rows: list[tuple[Machine, Mapping[str, Any]]] = []
        spikes: list[tuple[Machine, Mapping[str, Any]]] = []
        for machine in self.machines:
            body, spike = machine.reading(t)
            if self.extra_field:
                body["humidity"] = round(42 + machine.rng.gauss(0, 1), 2)
            rows.append((machine, body))
            self.windows.setdefault(machine.id, []).append(body["temperature"])
            if spike:
                anomaly = {"machineId": machine.id, "ts": body["ts"], "temperature": body["temperature"]}
                spikes.append(
                    (machine, {**anomaly, "isAnomaly": 1, "score": round(machine.rng.uniform(1e-6, 4e-3), 6)})
                )
        await self.log.append("telemetry", self.batch(rows))
        scores = [(one, {**body, "rul_s": round((1 - one.wear) / 0.00003)}) for one, body in rows]
        await self.log.append("scored", self.batch(scores))
        if spikes:
            await self.log.append("anomalies", self.batch(spikes))
        if (window := int(t) // 10) != self.window:
            self.window = window
            await self.log.append("aggregates", self.batch([self._window(machine, t) for machine in self.machines]))
        return spikes

    def _window(self, machine: Machine, t: float) -> tuple[Machine, Mapping[str, Any]]:
        values = self.windows.pop(machine.id)
        return machine, {
            "machineId": machine.id,
            "windowEnd": to_iso(int(t) * TICKS_PER_S),
            "avgTemperature": round(sum(values) / len(values), 3),
            "minTemperature": min(values),
            "maxTemperature": max(values),
            "events": len(values),
        }


async def status() -> dict[str, Any]:
    return {
        "parts": [
            {"name": "gateway", "state": "running", "pid": 4101, "cpu": 31.4, "memory": 96_400_000, "lag": 0},
            {"name": "jobs", "state": "running", "pid": 4102, "cpu": 44.0, "memory": 212_000_000, "lag": 180},
            {"name": "function lake", "state": "running", "pid": 4103, "cpu": 12.2, "memory": 180_500_000, "lag": 2400},
            {
                "name": "function entities",
                "state": "failed",
                "pid": None,
                "cpu": None,
                "memory": None,
                "lag": 51_200,
                "detail": "the warehouse refuses connections; next try in 4 s",
            },
            {"name": "alerts", "state": "running", "pid": 4105, "cpu": 1.8, "memory": 71_000_000, "lag": 0},
            {"name": "web", "state": "running", "pid": 4106, "cpu": 3.5, "memory": 128_000_000, "lag": 0},
        ],
        "work": [
            {
                "name": "machines",
                "stream": "telemetry",
                "state": "running",
                "rows": 728_400,
                "set_aside": 12,
                "lag": 80,
            },
            {"name": "lake:telemetry", "stream": "telemetry", "state": "running", "rows": 727_200, "lag": 1200},
        ],
    }


async def ledger() -> dict[str, Any]:
    stages: list[dict[str, Any]] = []
    for partition in range(4):
        base = 182_000 + 311 * partition
        for stage, stream, out, aside, gap, pending, counted in (
            ("ingest", "telemetry", base, {"duplicate": 41}, 0, 0, "log"),
            ("job:factory", "telemetry", base - 3, {"undecodable": 3}, 0, 20, "offsets"),
            ("function:lake", "telemetry", base, {}, 0, 300, "lake rows"),
            ("function:entities", "telemetry", base - (partition == 2), {}, int(partition == 2), 0, "warehouse rows"),
        ):
            stages.append(
                {
                    "stage": stage,
                    "stream": stream,
                    "partition": partition,
                    "rows_in": out + sum(aside.values()) + gap,
                    "rows_out": out,
                    "set_aside": aside,
                    "gap": gap,
                    "pending": pending,
                    "counted": counted,
                }
            )
    return {"balanced": False, "stages": stages}


async def label(docs: MemoryDocStore) -> None:
    units = {"temperature": "°C", "vibration": "mm/s", "pressure": "bar", "rpm": "rpm", "load": "%", "humidity": "%"}
    for name, unit in units.items():
        await docs.put("fields", name, {"unit": unit})
    for site, (place, country) in SITES.items():
        await docs.put("sites", site, {"title": f"Factory {site[-1]}", "place": f"{place}, {country}"})


async def set_some_aside(plant: Plant) -> None:
    bodies = [b'{"machineId": "fac1-cnc-002", "temperature": ', b"temp=21.5;vib=1.1", b'{"temperature": "hot"}']
    reasons = ["undecodable", "undecodable", "wrong_type"]
    rows = event_batch(
        {
            "_event_id": [f"s{index}" for index in range(3)],
            "_device": ["fac1-cnc-002", "fac3-cnc-001", "fac5-cnc-004"],
            "_type": reasons,
            "_properties": [
                orjson.dumps({"stage": "job:factory", "reason": reason, "detail": "not JSON at byte 45"}).decode()
                for reason in reasons
            ],
            "_body": bodies,
        }
    )
    await plant.log.append("set_aside", rows)


JOB = """
SELECT machineId, System.Timestamp() AS windowEnd, AVG(temperature) AS t INTO aggregates FROM telemetry
GROUP BY machineId, TumblingWindow(second, 10);
SELECT machineId, temperature INTO anomalies FROM telemetry WHERE temperature > 72
"""


async def add_jobs(log: MemoryEventLog, docs: MemoryDocStore, clock: SystemClock, folder: Path) -> JobSupervisor:
    """A job over the log, and one whose script is not there: both run, and tell how they stand, once `run` is awaited."""
    (folder / "factory.asaql").write_text(JOB)
    jobs = {"factory": JobConfig(query="factory.asaql"), "wrong": JobConfig(query="wrong.asaql")}
    return JobSupervisor(
        jobs,
        folder=folder,
        state=folder,
        log=log,
        ledger=SqliteLedger(folder / "ledger.sqlite"),
        docs=docs,
        clock=clock,
        functions={},
        reference=lambda _, __: pa.table({}),
    )


async def services_of(log: MemoryEventLog, clock: SystemClock, incidents: Incidents, port: int = 0) -> WebServices:
    docs = MemoryDocStore(clock)
    await label(docs)
    return WebServices(
        log=log,
        docs=docs,
        clock=clock,
        settings=Settings(project=ProjectConfig(name="factory", title="Five factories"), web=WebConfig(port=port)),
        history=LogHistory(log, asyncio.get_running_loop()),
        status=status,
        ledger_report=ledger,
        incidents=incidents,
    )


async def backfill(plant: Plant, clock: ShiftedClock, seconds: int, *, step_s: int = 1) -> None:
    now = SystemClock().now() / TICKS_PER_S
    for back in range(seconds, 0, -step_s):
        clock.shift_s = float(back)
        await plant.step(now - back)
    clock.shift_s = 0.0


async def main() -> None:
    from headrace.web.app import create_app
    from headrace.web.serve import serve

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8800)
    parser.add_argument("--machines", type=int, default=8, help="per factory")
    parser.add_argument("--history", type=int, default=3600, help="seconds")
    args = parser.parse_args()
    clock, incidents = ShiftedClock(), Incidents()
    plant = Plant(MemoryEventLog(clock), machines=args.machines)
    await backfill(plant, clock, args.history)
    await set_some_aside(plant)
    now = clock.now()
    one, two, three = plant.machines[3], plant.machines[args.machines], plant.machines[2 * args.machines + 2]
    incidents.open(
        "i1", one.id, "critical", f"{one.id} needs maintenance within 4 h", now - 40 * TICKS_PER_S, rul_s=13_900
    )
    incidents.open("i2", two.id, "warning", f"Temperature spike on {two.id}", now - 400 * TICKS_PER_S, temperature=84.2)
    incidents.open(
        "i3", three.id, "warning", f"Vibration rising on {three.id}", now - 3000 * TICKS_PER_S, vibration=4.4
    )
    await incidents.acknowledge("i3", "m.silva")
    app = create_app(await services_of(plant.log, clock, incidents, args.port))
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(app, "127.0.0.1", args.port, on_started=lambda port: print(f"http://127.0.0.1:{port}")))
        seconds = 0
        while True:
            seconds += 1
            plant.extra_field = seconds > 20
            for machine, body in await plant.step(clock.now() / TICKS_PER_S):
                title = f"Temperature spike on {machine.id}"
                incidents.open(f"s{seconds}{machine.id}", machine.id, "warning", title, clock.now(), **body)
            await asyncio.sleep(1.0 - clock.now() / TICKS_PER_S % 1.0)


if __name__ == "__main__":
    asyncio.run(main())
