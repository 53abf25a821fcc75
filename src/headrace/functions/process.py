"""Functions as long-running work: start, restart after trouble, tell how far behind, stop when cancelled.

One process runs one of these: a user's function, or one of the platform's projections with all their streams as tasks. A
stream that cannot go on is reported and holds up no other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import msgspec
import structlog

from headrace.core.clock import Clock
from headrace.core.config import EntityConfig, FunctionConfig, LakeConfig, WarehouseConfig
from headrace.core.errors import HeadraceError, Unavailable, UserError
from headrace.core.flow import Function, Ledger
from headrace.docstore.contract import DocStore
from headrace.eventlog.contract import EventLog
from headrace.eventlog.journal import EpochJournal
from headrace.functions.handler import load_handler
from headrace.functions.projections.entities import EntityProjection
from headrace.functions.projections.lake import LakeProjection
from headrace.functions.runner import FunctionRunner, FunctionStatus, RunnerConfig
from headrace.lake.contract import Lake
from headrace.warehouse.contract import Warehouse

log = structlog.get_logger()

COLLECTION = "runtime"
_STATUS_S = 2.0
_DISCOVER_S = 1.0
_RESTART_S = 0.5
_RESTART_MAX_S = 30.0


class Means(NamedTuple):
    """What every function works with. `state` is the folder for journals."""

    event_log: EventLog
    ledger: Ledger
    docs: DocStore
    clock: Clock
    rng: random.Random
    state: Path


class Work(NamedTuple):
    """One function on one stream. `stage` is its name in the books, `name` the one of its journal and status."""

    name: str
    stage: str
    stream: str
    make: Callable[[], Function]
    config: RunnerConfig


async def run_function(name: str, config: FunctionConfig, *, folder: Path, means: Means) -> None:
    """Run the user's function NAME until cancelled. Raises UserError when its handler is not found or refuses to open."""
    function = load_handler(config.handler, folder)
    runner = RunnerConfig(
        linger_s=config.linger_s,
        batch_rows_max=config.batch_rows_max,
        retries_max=config.retries_max,
        timeout_s=config.timeout_s,
    )
    host = _Host(means)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(host.report())
        tasks.create_task(host.keep(Work(name, name, config.stream, lambda: function, runner), raises=True))


async def run_lake(lake: Lake, config: LakeConfig, *, wanted: Callable[[str], bool], means: Means) -> None:
    """Write every stream that is `wanted` into the lake until cancelled; streams that appear later join by themselves."""
    runner = RunnerConfig(
        linger_s=config.linger_s, batch_rows_max=config.batch_rows_max, retries_max=None, timeout_s=600.0
    )
    host = _Host(means)
    started: set[str] = set()

    def work(stream: str) -> Work:
        def make() -> Function:
            return LakeProjection(lake, stream, means.event_log, compact_files=config.compact_files)

        return Work(f"lake:{stream}", "lake", stream, make, runner)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(host.report())
        while True:
            for stream in await _streams(means.event_log):
                if stream not in started and wanted(stream):
                    started.add(stream)
                    tasks.create_task(host.keep(work(stream)))
            await means.clock.sleep(_DISCOVER_S)


async def run_entities(
    warehouse: Warehouse, config: WarehouseConfig, tables: Mapping[str, EntityConfig], *, means: Means
) -> None:
    """Load the streams of `tables` (warehouse table -> stream) until cancelled."""
    runner = RunnerConfig(
        linger_s=config.linger_s, batch_rows_max=config.batch_rows_max, retries_max=None, timeout_s=600.0
    )
    host = _Host(means)

    def work(table: str, entity: EntityConfig) -> Work:
        def make() -> Function:
            return EntityProjection(warehouse, table, entity.stream, entity.kind)

        return Work(f"entities:{table}", f"entities:{table}", entity.stream, make, runner)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(host.report())
        for table, entity in tables.items():
            if entity.enabled:
                tasks.create_task(host.keep(work(table, entity)))


async def _streams(event_log: EventLog) -> list[str]:
    try:
        return await event_log.streams()
    except Unavailable as exc:  # the streams that are known go on; look again in a second
        log.warning("streams.not_listed", problem=str(exc))
        return []


class _Host:
    """Keeps work running and its status documents current."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._runners: dict[str, FunctionRunner] = {}

    async def keep(self, work: Work, *, raises: bool = False) -> None:
        """Run `work` until cancelled, anew after trouble with a growing pause. What only a person can fix ends it."""
        pause_s = _RESTART_S
        while True:
            began = self._means.clock.monotonic()
            try:
                await self._once(work)
            except UserError as exc:
                log.error("function.failed", function=work.name, code=exc.code, problem=str(exc))
                await self._tell()
                if raises:
                    raise
                return
            except Exception as exc:
                known = isinstance(exc, Unavailable)
                problem = f"{exc}" if isinstance(exc, HeadraceError) else f"{type(exc).__name__}: {exc}"
                log.warning("function.restarted", function=work.name, problem=problem, exc_info=not known)
            if self._means.clock.monotonic() - began > _RESTART_MAX_S:
                pause_s = _RESTART_S
            await self._means.clock.sleep(self._means.rng.uniform(0.5, 1.0) * pause_s)
            pause_s = min(_RESTART_MAX_S, pause_s * 2)

    async def _once(self, work: Work) -> None:
        means = self._means
        path = means.state / f"function.{quote(work.name, safe='')}.{quote(work.stream, safe='')}.sqlite"
        journal = await asyncio.to_thread(EpochJournal, path)
        try:
            runner = FunctionRunner(
                work.stage,
                work.make(),
                stream=work.stream,
                event_log=means.event_log,
                journal=journal,
                ledger=means.ledger,
                clock=means.clock,
                rng=means.rng,
                config=work.config,
            )
            self._runners[work.name] = runner
            await runner.run()
        finally:
            journal.close()

    async def report(self) -> None:
        """Write status documents every two seconds, and once more when cancelled."""
        try:
            while True:
                await self._tell()
                await self._means.clock.sleep(_STATUS_S)
        except asyncio.CancelledError:
            for runner in self._runners.values():
                runner.status.state = "stopped"
            await self._tell()
            raise

    async def _tell(self) -> None:
        bodies: dict[str, dict[str, object]] = {}
        try:
            for name, runner in self._runners.items():
                await runner.refresh_lag()
                bodies[f"function:{name}"] = _document(name, runner.status)
            if bodies:
                await self._means.docs.put_many(COLLECTION, bodies)
        except Unavailable as exc:
            log.debug("status.not_written", problem=str(exc))


def _document(name: str, status: FunctionStatus) -> dict[str, object]:
    return {"part": "function", **msgspec.structs.asdict(status), "name": name}
