"""A project's jobs and alerts in one process, over stores in memory, on a clock that the plant moves.

What runs is what `headrace up` runs: the job runner with the project's scripts and the alert service with its rules. Only
the sockets, the processes and the wall clock are missing, so an hour of plant time takes seconds and comes out the same
every time.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.csv

from headrace.alerts.model import Incident
from headrace.alerts.service import AlertService
from headrace.core.clock import ManualClock
from headrace.core.config import JobConfig, Settings
from headrace.core.errors import UserError
from headrace.core.observe.metrics import Metrics
from headrace.core.schema import EventBatch
from headrace.docstore.memory import MemoryDocStore
from headrace.eventlog.journal import EpochJournal
from headrace.eventlog.memory import MemoryEventLog
from headrace.jobs.model import JobSpec
from headrace.jobs.runner import JobRunner
from headrace.ledger.sqlite import SqliteLedger
from headrace.sql.functions.user import UserFunction

Arrivals = list[tuple[int, EventBatch]]
"""Batches with the time (ticks) that each comes in, rising."""

CHECKPOINT_S = 600.0
INCIDENTS_MAX = 100_000


class Rehearsal:
    """`files` are a project's, by path; `functions` what its scripts may call. Journals go into `folder`, which may go
    afterwards. Call `open`, then `feed` with rising times, then `close`. Problems of scripts, rules and data raise."""

    def __init__(
        self,
        files: Mapping[str, str],
        settings: Settings,
        *,
        functions: Mapping[str, UserFunction],
        folder: Path,
        start: int,
    ) -> None:
        self.clock = ManualClock(start)
        self.log = MemoryEventLog(self.clock, partitions=settings.eventlog.partitions)
        self._files, self._folder, self._functions = files, folder, functions
        self._ledger = SqliteLedger(folder / "ledger.sqlite")
        self._journals: list[EpochJournal] = []
        self._jobs = [self._job(name, config) for name, config in settings.jobs.items() if config.enabled]
        docs = MemoryDocStore(self.clock)
        rules = {  # nobody is to be told of a rehearsal
            name: msgspec.structs.replace(rule, channels=()) for name, rule in settings.alerts.items()
        }
        self._alerts = AlertService(self.log, docs, self.clock, rules=rules, channels={}, metrics=Metrics())
        if problems := self._alerts.problems():
            raise UserError(f"alert rules that do not run: {problems}", hint="mend them in headrace.toml")

    async def open(self) -> None:
        for job in self._jobs:
            await job.start()
        for watch in self._alerts.watches:
            await watch.restore()

    async def feed(self, stream: str, arrivals: Arrivals) -> None:
        """Append each batch when its time (ticks) has come, then let jobs and alerts act on all of them."""
        for time, batch in arrivals:
            self.clock.set(time)
            await self.log.append(stream, batch)
        for job in self._jobs:
            while await job.step(wait_s=0.0):
                pass
        for watch in self._alerts.watches:
            while await watch.step(wait_s=0.0):
                pass

    async def incidents(self) -> list[Incident]:
        """All that the rules opened so far, newest first."""
        return list(await self._alerts.store.list(limit=INCIDENTS_MAX))

    def set_aside(self) -> int:
        """Rows that the jobs could not use."""
        return sum(job.status.set_aside for job in self._jobs)

    async def close(self) -> None:
        for job in self._jobs:
            await job.close()
        for journal in self._journals:
            journal.close()
        await self._ledger.close()
        await self.log.close()

    def _job(self, name: str, config: JobConfig) -> JobRunner:
        journal = EpochJournal(self._folder / f"{name}.sqlite")
        self._journals.append(journal)
        # Whole portions are there when a step begins, and nothing will be restored: neither waiting nor checkpoints help.
        config = msgspec.structs.replace(config, linger_ms=0.0, checkpoint_s=CHECKPOINT_S, on_error="stop")
        return JobRunner(
            JobSpec(name, self._files[config.query], config, self._folder),
            event_log=self.log,
            journal=journal,
            ledger=self._ledger,
            clock=self.clock,
            rng=random.Random(0),
            functions=self._functions,
            references={name: self._reference(given.path) for name, given in config.reference.items()},
        )

    def _reference(self, path: str) -> pa.Table:
        if not path.endswith(".csv"):
            raise UserError(f"reference {path!r} is no CSV", hint="a blueprint's reference data are CSV files")
        return pyarrow.csv.read_csv(io.BytesIO(self._files[path].encode()))
