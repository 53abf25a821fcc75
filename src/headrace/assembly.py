"""Settings become stores, engines, services and doors here, and nowhere else.

Every `if backend ==` of Headrace is in this file. A `Platform` opens each store on first use, so a command that only lists
devices never touches the lake.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.core import runstate
from headrace.core.clock import Clock, SystemClock
from headrace.core.config import ModelConfig, Project, Settings
from headrace.core.errors import NotFound, UserError, nearest
from headrace.core.lean import hide
from headrace.core.observe.metrics import Metrics

# Imported where they are used: a part loads what it runs and no more, which is most of its start and of its memory.
if TYPE_CHECKING:
    import ssl

    import pyarrow as pa

    from headrace.alerts.incidents import IncidentStore
    from headrace.blueprints.spec import Blueprint
    from headrace.devices.authority import DevelopmentAuthority
    from headrace.devices.commands import DeviceCommands
    from headrace.devices.queries import DeviceQueries
    from headrace.docstore.sqlite import SqliteDocStore
    from headrace.eventlog.contract import EventLog
    from headrace.functions.process import Means
    from headrace.gateway.client import DeviceClient
    from headrace.history.query import HistoryQuery
    from headrace.lake.delta import DeltaLake
    from headrace.ledger.sqlite import SqliteLedger
    from headrace.ml.registry import ModelRegistry
    from headrace.ml.scoring import ServedModel
    from headrace.sql.functions.user import UserFunction
    from headrace.sql.plan import Plan
    from headrace.warehouse.postgres import PostgresWarehouse
    from headrace.warehouse.server import PostgresServer

Ready = Callable[[dict[str, str]], None]
Report = Callable[[str], None]
RETAIN_EVERY_S = 60.0
LEAN_PARTS = ("gateway", "alerts", "web", "function:lake", "function:entities")
"""Parts that run no code but ours, none of which uses pandas. Jobs call models and functions call people's code."""


def parts(settings: Settings) -> list[str]:
    """The processes of a project, in the order they stop: the door first, what drains it later."""
    functions = [f"function:{name}" for name, function in settings.functions.items() if function.enabled]
    entities = ["function:entities"] if settings.warehouse.enabled and settings.entities else []
    return ["gateway", "jobs", *functions, "alerts", *entities, "function:lake", "web"]


def device_streams(settings: Settings) -> list[str]:
    """The streams besides `telemetry` that devices may send to."""
    return [name for name, config in settings.streams.items() if config.devices]


class Platform:
    """The stores and services of one project in one process, each made when it is first asked for."""

    def __init__(self, project: Project, *, clock: Clock | None = None) -> None:
        self.project = project
        self.settings = project.settings
        self.clock: Clock = clock or SystemClock()
        self.metrics = Metrics()
        self.rng = random.Random(os.urandom(16))
        self._closers: list[Callable[[], Awaitable[None]]] = []

    async def close(self) -> None:
        for closer in reversed(self._closers):
            await closer()
        self._closers.clear()

    @cached_property
    def log(self) -> EventLog:
        from headrace.eventlog.memory import MemoryEventLog
        from headrace.eventlog.sqlite import SqliteEventLog

        config = self.settings.eventlog
        made: EventLog
        if config.backend == "memory":
            made = MemoryEventLog(self.clock, partitions=config.partitions, deduplicate_s=config.deduplicate_s)
        else:
            made = SqliteEventLog(
                self.project.state_folder("log"),
                self.clock,
                partitions=config.partitions,
                deduplicate_s=config.deduplicate_s,
                size_bytes_max=config.size_bytes_max,
            )
        self._closers.append(made.close)
        return made

    @cached_property
    def docs(self) -> SqliteDocStore:
        from headrace.docstore.sqlite import SqliteDocStore

        made = SqliteDocStore(self.project.state_folder("documents") / "documents.db", self.clock)
        self._closers.append(made.close)
        return made

    @cached_property
    def ledger(self) -> SqliteLedger:
        from headrace.ledger.sqlite import SqliteLedger

        made = SqliteLedger(self.project.state_folder("ledger") / "ledger.db")
        self._closers.append(made.close)
        return made

    @cached_property
    def lake(self) -> DeltaLake:
        from headrace.lake.delta import DeltaLake

        path = self.settings.lake.path
        folder = (self.project.folder / path) if path else self.project.state_folder("lake")
        return DeltaLake(folder, self.clock)

    @cached_property
    def warehouse(self) -> PostgresWarehouse:
        from headrace.warehouse.postgres import PostgresWarehouse

        made = PostgresWarehouse(warehouse_url(self.project), self.clock)

        async def close() -> None:
            await asyncio.to_thread(made.close)

        self._closers.append(close)
        return made

    @cached_property
    def history(self) -> HistoryQuery:
        from headrace.history.query import HistoryQuery

        return HistoryQuery(self.lake, self.log, self.clock)

    @cached_property
    def device_commands(self) -> DeviceCommands:
        from headrace.devices.commands import DeviceCommands

        return DeviceCommands(self.docs, self.clock, os.urandom)

    @cached_property
    def device_queries(self) -> DeviceQueries:
        from headrace.devices.queries import DeviceQueries

        return DeviceQueries(self.docs)

    @cached_property
    def authority(self) -> DevelopmentAuthority:
        from headrace.devices.authority import DevelopmentAuthority

        return DevelopmentAuthority(self.project.state_folder("certificates"), self.clock)

    @cached_property
    def incidents(self) -> IncidentStore:
        from headrace.alerts.incidents import IncidentStore

        return IncidentStore(self.docs, self.clock)

    @cached_property
    def registry(self) -> ModelRegistry:
        from headrace.ml.registry import ModelRegistry

        return ModelRegistry(self.project.state_folder("models"))

    @property
    def hostname(self) -> str:
        """What devices are told to connect to."""
        config = self.settings.gateway
        return config.hostname or ("localhost" if config.host in ("", "0.0.0.0", "::") else config.host)

    def means(self) -> Means:
        from headrace.functions.process import Means

        return Means(self.log, self.ledger, self.docs, self.clock, self.rng, self.project.state_folder("journals"))

    async def device_strings(self, devices: Sequence[str], sites: Sequence[str]) -> dict[str, str]:
        """Connection strings of devices; those that are new are registered."""
        from headrace.devices.connection_string import build
        from headrace.devices.model import Draft

        drafts = [Draft(id=device, site=site) for device, site in zip(devices, sites, strict=True)]
        made = await self.device_commands.create_many(drafts, if_exists="keep")
        return {device.id: build(self.hostname, device.id, device.primary_key) for device in made}

    def client(self, connection_string: str, addresses: Mapping[str, str]) -> DeviceClient:
        """The device's side of our own gateway, over plain MQTT where that is switched on, else over TLS."""
        from headrace.gateway.client import DeviceClient

        plain = addresses.get("mqtt-plain", "")
        address = plain or addresses["mqtt"]
        return DeviceClient.from_connection_string(
            connection_string,
            port=int(address.rpartition(":")[2]),
            clock=self.clock,
            rng=self.rng,
            tls=None if plain else self.client_tls,
        )

    @cached_property
    def client_tls(self) -> ssl.SSLContext:
        return self.authority.client_context()

    async def ledger_report(self, *, wait_s: float = 0.0) -> dict[str, Any]:
        """The books, after waiting up to `wait_s` for the stages to catch up."""
        from headrace.gateway.streams import PLATFORM_STREAMS, STREAM
        from headrace.jobs.ledger import LedgerReport

        streams = self.settings.streams
        report = LedgerReport(
            self.log,
            self.ledger,
            clock=self.clock,
            lake=self.lake,
            lake_streams=lambda stream: stream not in streams or streams[stream].lake,
            warehouse=self.warehouse if self.settings.warehouse.enabled and self.settings.entities else None,
            entities={name: config.stream for name, config in self.settings.entities.items() if config.enabled},
            shared=frozenset({STREAM, *PLATFORM_STREAMS, *device_streams(self.settings)}),
        )
        return await report.run(wait_s=wait_s)


def own_server(project: Project) -> PostgresServer | None:
    """The PostgreSQL server that Headrace runs for this project; None where it uses another or no warehouse at all."""
    from headrace.warehouse.server import PostgresServer

    config = project.settings.warehouse
    if not config.enabled or not project.settings.entities or config.url:
        return None
    return PostgresServer(project.state_folder("warehouse"), SystemClock())


@asynccontextmanager
async def database(project: Project) -> AsyncIterator[None]:
    """Our own PostgreSQL, started for the time of one command where the project is down."""
    server = own_server(project)
    if server is None or server.status().running:
        yield
        return
    await server.start()
    try:
        yield
    finally:
        await server.stop()


async def prepare(project: Project, report: Report) -> PostgresServer | None:
    """What must stand before the parts start: certificates, documents, the database. May take seconds.

    Returns our own database server, which the caller must keep running and stop at last.
    """
    platform = Platform(project)
    await asyncio.to_thread(platform.authority.server_context, [platform.hostname])
    server = own_server(project)
    if server is not None:
        await server.start()
        report(f"warehouse: PostgreSQL on 127.0.0.1:{server.status().port}")
    try:
        for collection, named in (("fields", project.settings.fields), ("sites", project.settings.sites)):
            bodies = {name: msgspec.structs.asdict(config) for name, config in named.items()}
            await platform.docs.put_many(collection, bodies)
        await asyncio.to_thread(_prepare_warehouse, platform)
    except BaseException:
        if server is not None:
            await server.stop()
        raise
    finally:
        await platform.close()
    return server


def _prepare_warehouse(platform: Platform) -> None:
    """Migrations and metadata."""
    settings = platform.settings
    spec = _blueprint(settings)
    if settings.warehouse.enabled and settings.entities:
        platform.warehouse.prepare()
        if spec is not None and spec.metadata is not None:
            for table, rows in spec.metadata().items():
                platform.warehouse.upsert(table, rows.to_pylist())


def untrained(project: Project) -> list[str]:
    """Models of the project that have no version yet."""
    registry = Platform(project).registry
    models = project.settings.models
    return [name for name, config in models.items() if not registry.version_at(_registered(name, config), config.alias)]


def warehouse_url(project: Project) -> str:
    """The configured PostgreSQL, else our own server's address. Raises Unavailable where that was never started."""
    server = own_server(project)
    return server.url if server is not None else project.settings.warehouse.url.reveal()


async def run_part(platform: Platform, part: str, ready: Ready, stop: asyncio.Event) -> None:
    """Run one part until `stop` is set. `ready` is told the addresses that others may use."""
    kind, _, name = part.partition(":")
    if part in LEAN_PARTS:
        hide("pandas")
    runners: dict[str, Callable[[], Awaitable[None]]] = {
        "gateway": lambda: _gateway(platform, ready, stop),
        "jobs": lambda: _jobs(platform, ready, stop),
        "alerts": lambda: _alerts(platform, ready, stop),
        "web": lambda: _web(platform, ready, stop),
        "function": lambda: _function(platform, name, ready, stop),
    }
    if kind not in runners:
        raise NotFound(
            f"no part {part!r}", hint=nearest(part, parts(platform.settings)) or "see `headrace serve --help`"
        )
    await runners[kind]()


async def _until(stop: asyncio.Event, *work: Awaitable[None]) -> None:
    """Run `work` until `stop`, then cancel it; an error of any of them ends all."""
    tasks = [asyncio.ensure_future(item) for item in work]
    stopped = asyncio.ensure_future(stop.wait())
    try:
        done, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in [*tasks, stopped]:
            task.cancel()
        await asyncio.gather(*tasks, stopped, return_exceptions=True)


async def _gateway(platform: Platform, ready: Ready, stop: asyncio.Event) -> None:
    from headrace.core.identity import EventIds
    from headrace.devices.queries import DeviceDirectory
    from headrace.gateway.server import Gateway

    directory = DeviceDirectory(platform.docs, clock=platform.clock)
    await directory.open()
    gateway = Gateway(
        platform.settings.gateway,
        log=platform.log,
        docs=platform.docs,
        directory=directory,
        authority=platform.authority,
        clock=platform.clock,
        metrics=platform.metrics,
        ids=EventIds(os.urandom(16)),
        streams=device_streams(platform.settings),
    )
    listening = await gateway.start()
    try:
        addresses = {"mqtt": f"mqtts://{platform.hostname}:{listening.mqtt_port}"}
        addresses["https"] = f"https://{platform.hostname}:{listening.https_port}"
        if listening.plain_port >= 0:
            addresses["mqtt-plain"] = f"mqtt://127.0.0.1:{listening.plain_port}"
        addresses["ca"] = str(platform.authority.ca_path)
        ready(addresses)
        await _until(stop, directory.run(), _retain(platform), _expire(platform))
    finally:
        await gateway.stop()


async def _retain(platform: Platform) -> None:
    """Once a minute, give back the disk of what streams no longer keep."""
    from headrace.eventlog.retention import retain

    config = platform.settings.eventlog

    def retention_s(stream: str) -> float:
        own = platform.settings.streams.get(stream)
        return 3600 * (own.retention_h if own is not None and own.retention_h else config.retention_h)

    while True:
        await platform.clock.sleep(RETAIN_EVERY_S)
        await retain(platform.log, platform.clock, retention_s)


async def _expire(platform: Platform) -> None:
    while True:
        await platform.clock.sleep(RETAIN_EVERY_S)
        await platform.docs.expire()


async def _jobs(platform: Platform, ready: Ready, stop: asyncio.Event) -> None:
    from headrace.jobs.supervisor import JobSupervisor

    models = served_models(platform)
    supervisor = JobSupervisor(
        platform.settings.jobs,
        folder=platform.project.folder,
        log=platform.log,
        ledger=platform.ledger,
        docs=platform.docs,
        clock=platform.clock,
        state=platform.project.state_folder("journals"),
        functions=user_functions(models),
        reference=load_reference,
    )

    async def refresh() -> None:
        while True:
            await platform.clock.sleep(2.0)
            for model in models.values():
                await asyncio.to_thread(model.refresh)

    ready({})
    await _until(stop, supervisor.run(), refresh())


async def _function(platform: Platform, name: str, ready: Ready, stop: asyncio.Event) -> None:
    from headrace.functions.process import run_entities, run_function, run_lake

    settings, means = platform.settings, platform.means()
    ready({})
    if name == "lake":
        streams = settings.streams

        def wanted(stream: str) -> bool:
            return stream not in streams or streams[stream].lake

        await _until(stop, run_lake(platform.lake, settings.lake, wanted=wanted, means=means))
    elif name == "entities":
        enabled = {table: config for table, config in settings.entities.items() if config.enabled}
        await _until(stop, run_entities(platform.warehouse, settings.warehouse, enabled, means=means))
    elif name in settings.functions:
        folder = platform.project.folder
        await _until(stop, run_function(name, settings.functions[name], folder=folder, means=means))
    else:
        known = [part.removeprefix("function:") for part in parts(settings) if part.startswith("function:")]
        raise NotFound(f"no function {name!r}", hint=nearest(name, known) or f"there are: {', '.join(known)}")


async def _alerts(platform: Platform, ready: Ready, stop: asyncio.Event) -> None:
    from headrace.alerts.service import AlertService

    service = AlertService(
        platform.log,
        platform.docs,
        platform.clock,
        rules=platform.settings.alerts,
        channels=platform.settings.channels,
        metrics=platform.metrics,
    )
    ready({})
    await _until(stop, service.run())


async def _web(platform: Platform, ready: Ready, stop: asyncio.Event) -> None:
    from headrace.web.app import create_app
    from headrace.web.serve import serve as serve_app
    from headrace.web.services import WebServices

    config = platform.settings.web

    async def ledger_report() -> Mapping[str, Any]:
        return await platform.ledger_report()

    app = create_app(
        WebServices(
            log=platform.log,
            docs=platform.docs,
            clock=platform.clock,
            settings=platform.settings,
            history=platform.history,
            status=Status(platform).for_console,
            ledger_report=ledger_report,
            incidents=platform.incidents,
            metrics=platform.metrics,
        )
    )

    def started(port: int) -> None:
        ready({"console": f"http://{'localhost' if config.host == '127.0.0.1' else config.host}:{port}"})

    await _until(stop, serve_app(app, config.host, config.port, on_started=started))


class Status:
    """What runs, where, how far behind, and what it uses."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._last: dict[int, tuple[float, float]] = {}  # pid -> (moment, CPU seconds)

    async def report(self) -> dict[str, Any]:
        """As `headrace status --json` prints it."""
        project = self._platform.project
        states = {state.part: state for state in runstate.read_all(project)}
        used = runstate.usage(list(states.values()))
        parts_now: list[dict[str, Any]] = []
        for part in ["supervisor", *parts(project.settings)]:
            state = states.get(part)
            row: dict[str, Any] = {"part": part, "state": "stopped", "pid": None, "problem": "", "addresses": {}}
            if state is not None:
                row |= {"state": state.state, "pid": state.pid, "problem": state.problem, "addresses": state.addresses}
            parts_now.append(row | used.get(part, {}))
        work = [document.body for document in await self._platform.docs.query("runtime")]
        return {
            "project": project.settings.project.name,
            "folder": str(project.folder),
            "healthy": all(part["state"] == "ready" for part in parts_now),
            "parts": parts_now,
            "work": sorted(work, key=lambda body: (str(body.get("part")), str(body.get("name")))),
        }

    async def for_console(self) -> Mapping[str, Any]:
        """The same, in the console's terms: CPU in percent since the last time it was asked, lag per part."""
        found = await self.report()
        lags: dict[str, int] = {}
        for work in found["work"]:
            part = str(work.get("part", ""))
            lags[part] = lags.get(part, 0) + int(work.get("lag") or 0)
        now = self._platform.clock.monotonic()
        rows = []
        for part in found["parts"]:
            pid, seconds = part["pid"], part.get("cpu_s", 0.0)
            before = self._last.get(pid) if pid else None
            if pid:
                self._last[pid] = (now, seconds)
            percent = 100 * (seconds - before[1]) / (now - before[0]) if before and now > before[0] else None
            rows.append(
                {
                    "name": part["part"],
                    "state": part["state"],
                    "pid": pid,
                    "cpu": percent,
                    "memory": int(part.get("memory_mb", 0) * 1e6) or None,
                    "lag": lags.get(part["part"].split(":")[0] if part["part"] == "jobs" else part["part"]),
                    "detail": part["problem"],
                }
            )
        return {"parts": rows, "work": found["work"]}


def served_models(platform: Platform) -> dict[str, ServedModel]:
    """The project's models by the name SQL calls them, each following its alias."""
    from headrace.ml.scoring import ServedModel

    models = platform.settings.models
    return {
        name: ServedModel(platform.registry, _registered(name, config), config.alias) for name, config in models.items()
    }


def user_functions(models: Mapping[str, ServedModel]) -> dict[str, UserFunction]:
    from headrace.sql.functions.user import UserFunction

    return {f"udf.{name}": UserFunction(f"udf.{name}", model.score) for name, model in models.items()}


@dataclass(frozen=True)
class ScriptContext:
    """What a script may call and join."""

    functions: Mapping[str, UserFunction] = field(default_factory=dict)
    references: tuple[str, ...] = ()


def script_context(project: Project, file: Path) -> ScriptContext:
    """The context of a script of a project: the one of the job that runs it, else all references of all jobs.

    Models are known by name only: checking a script neither needs nor loads a trained one.
    """
    from headrace.sql.functions.user import UserFunction

    def untrained(columns: Sequence[pa.Array]) -> pa.Array:
        raise UserError("a script that is only checked was run")

    jobs = project.settings.jobs
    own = [job for job in jobs.values() if (project.folder / job.query).resolve() == file.resolve()]
    references = {name for job in own or jobs.values() for name in job.reference}
    functions = {f"udf.{name}": UserFunction(f"udf.{name}", untrained) for name in project.settings.models}
    return ScriptContext(functions, tuple(sorted(references)))


def compile_file(text: str, context: ScriptContext) -> Plan:
    from headrace.sql.compile import compile_script

    return compile_script(text, functions=context.functions, references=context.references)


def load_reference(folder: Path, path: str) -> pa.Table:
    """A CSV, JSON lines or Parquet file of the project as a table. Raises NotFound, UserError."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    file = folder / path
    readers: dict[str, Callable[[Path], pa.Table]] = {
        ".csv": pyarrow.csv.read_csv,
        ".json": pyarrow.json.read_json,
        ".jsonl": pyarrow.json.read_json,
        ".parquet": pyarrow.parquet.read_table,
    }
    reader = readers.get(file.suffix)
    if reader is None:
        raise UserError(f"reference file {path!r} is none of {', '.join(readers)}", hint="convert it to one of them")
    try:
        return reader(file)
    except FileNotFoundError as exc:
        raise NotFound(f"no reference file {file}", hint="check the path in headrace.toml") from exc
    except pa.ArrowInvalid as exc:
        raise UserError(f"{file}: {exc}", hint="fix the file", code="reference.invalid") from exc


def train_model(project: Project, name: str) -> dict[str, Any]:
    """Train the project's model NAME and register it as its alias. Returns version and metrics."""
    from headrace.ml.training import train

    models = project.settings.models
    if name not in models:
        raise NotFound(
            f"no model {name!r} in headrace.toml", hint=nearest(name, models) or "add a [models.NAME] section"
        )
    config = models[name]
    trained = train(
        _training_table(project, name, config),
        features=config.features,
        target=config.target,
        task=config.task,
        algorithm=config.algorithm,
        seed=1,
        group=config.group,
    )
    version = Platform(project).registry.register(_registered(name, config), trained, alias=config.alias)
    return {"model": name, "version": version, "metrics": trained.metrics}


def list_models(project: Project) -> list[dict[str, Any]]:
    registry = Platform(project).registry
    rows = []
    for name, config in project.settings.models.items():
        registered = _registered(name, config)
        rows.append(
            {
                "name": name,
                "champion": registry.version_at(registered, config.alias) or None,
                "versions": len(registry.versions(registered)),
                "call": f"udf.{name}({', '.join(config.features)})",
            }
        )
    return rows


def _training_table(project: Project, name: str, config: ModelConfig) -> pa.Table:
    if config.training == "blueprint":
        spec = _blueprint(project.settings)
        if spec is None or spec.training is None:
            raise UserError(
                f"model {name!r}: the project's blueprint has no training data", hint="set `training` to a file"
            )
        return spec.training(name)
    return load_reference(project.folder, config.training)


def _registered(name: str, config: ModelConfig) -> str:
    return config.model or name


def _blueprint(settings: Settings) -> Blueprint | None:
    from headrace.blueprints.spec import Blueprint
    from headrace.core.plugins import collect

    known = {spec.name: spec for spec in collect("headrace.blueprints", Blueprint)}
    return known.get(settings.project.blueprint)
