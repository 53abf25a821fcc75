"""Runs the jobs of a project as tasks of one process; what happens to one stops no other.

A job that meets trouble of the moment starts again by itself, from its journal, after a growing pause. One that a person must
mend (its script is wrong, or its data stopped it) stays down and says why.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import structlog

from headrace.core.clock import Clock
from headrace.core.config import JobConfig
from headrace.core.errors import DataError, HeadraceError, Unavailable, UserError
from headrace.core.flow import Ledger
from headrace.docstore.contract import DocStore
from headrace.eventlog.contract import EventLog
from headrace.eventlog.journal import EpochJournal
from headrace.jobs.model import DETAILS, STATUS, JobSpec, JobStatus, load_job
from headrace.jobs.runner import JobRunner, describe
from headrace.sql.functions.user import UserFunction

logger = structlog.get_logger()

_STATUS_S = 2.0
_RESTART_S = 0.5
_RESTART_MAX_S = 30.0


class JobSupervisor:
    """`state` is the folder for journals; `functions` what scripts may call besides the built-in ones; `reference` reads a
    file of the project folder as a table."""

    def __init__(
        self,
        jobs: Mapping[str, JobConfig],
        *,
        folder: Path,
        state: Path,
        log: EventLog,
        ledger: Ledger,
        docs: DocStore,
        clock: Clock,
        functions: Mapping[str, UserFunction],
        reference: Callable[[Path, str], pa.Table],
        rng: random.Random | None = None,
    ) -> None:
        self._jobs = {name: config for name, config in jobs.items() if config.enabled}
        self._folder = folder
        self._state = state
        self._log = log
        self._ledger = ledger
        self._docs = docs
        self._clock = clock
        self._rng = rng or random.Random(0)  # spreads restarts; need not be unpredictable
        self._functions = functions
        self._reference = reference
        self._runners: dict[str, JobRunner] = {}
        self._status = {name: JobStatus(name=name) for name in self._jobs}

    async def run(self) -> None:
        """Run all jobs until cancelled; each then finishes its portion and writes a checkpoint."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, config in self._jobs.items():
                    tasks.create_task(self._keep(name, config), name=f"job:{name}")
                tasks.create_task(self._report(), name="jobs:status")
        finally:
            for status in self._status.values():
                status.state = status.state if status.state == "failed" else "stopped"
            await self.tell()

    def status(self) -> dict[str, JobStatus]:
        """How each job stands; lag and delay are at most two seconds old."""
        return dict(self._status)

    async def _keep(self, name: str, config: JobConfig) -> None:
        pause_s = _RESTART_S
        while True:
            began = self._clock.monotonic()
            try:
                await self._once(name, config)
            except (UserError, DataError) as exc:
                self._say(name, "failed", str(exc))
                logger.error("job.failed", job=name, code=exc.code, problem=str(exc))
                return
            except Exception as exc:
                problem = str(exc) if isinstance(exc, HeadraceError) else f"{type(exc).__name__}: {exc}"
                self._say(name, "waiting", problem)
                logger.warning("job.restarted", job=name, problem=problem, exc_info=not isinstance(exc, Unavailable))
            if self._clock.monotonic() - began > _RESTART_MAX_S:
                pause_s = _RESTART_S
            await self._clock.sleep(self._rng.uniform(0.5, 1.0) * pause_s)
            pause_s = min(_RESTART_MAX_S, pause_s * 2)

    async def _once(self, name: str, config: JobConfig) -> None:
        job = await asyncio.to_thread(load_job, name, config, self._folder)
        references = {
            name: await asyncio.to_thread(self._reference, self._folder, given.path)
            for name, given in config.reference.items()
        }
        journal = await asyncio.to_thread(EpochJournal, self._state / f"job.{quote(name, safe='')}.sqlite")
        try:
            runner = self._runner(job, journal, references)
            self._runners[name], self._status[name] = runner, runner.status
            await runner.run()
        finally:
            self._runners.pop(name, None)
            journal.close()

    def _runner(self, job: JobSpec, journal: EpochJournal, references: Mapping[str, pa.Table]) -> JobRunner:
        return JobRunner(
            job,
            event_log=self._log,
            journal=journal,
            ledger=self._ledger,
            clock=self._clock,
            rng=self._rng,
            functions=self._functions,
            references=references,
        )

    def _say(self, name: str, state: Any, error: str) -> None:
        self._status[name].state, self._status[name].error = state, error

    async def _report(self) -> None:
        while True:
            await self.tell()
            await self._clock.sleep(_STATUS_S)

    async def tell(self) -> None:
        """Write the status documents now."""
        try:
            for runner in list(self._runners.values()):
                await runner.refresh()
            bodies = {f"job:{name}": describe(status) for name, status in self._status.items()}
            if bodies:
                await self._docs.put_many(STATUS, bodies)
            if details := {name: runner.details() for name, runner in self._runners.items()}:
                await self._docs.put_many(DETAILS, details)
        except Unavailable as exc:
            logger.debug("status.not_written", problem=str(exc))
