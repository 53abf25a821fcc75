"""A job's surroundings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
from fuse import Fuse

from headrace.core.clock import ManualClock, to_iso
from headrace.core.config import JobConfig
from headrace.core.schema import EventBatch, event_batch
from headrace.eventlog.contract import EventLog
from headrace.eventlog.journal import EpochJournal
from headrace.eventlog.memory import MemoryEventLog
from headrace.eventlog.sqlite import SqliteEventLog
from headrace.jobs.model import JobSpec
from headrace.jobs.runner import JobRunner
from headrace.ledger.sqlite import SqliteLedger
from headrace.sql.functions.user import UserFunction

WINDOW = """
SELECT machineId, System.Timestamp() AS windowEnd, COUNT(*) AS n, SUM(t) AS total
INTO sums FROM telemetry TIMESTAMP BY ts GROUP BY machineId, TumblingWindow(second, 10);
SELECT machineId, t INTO hot FROM telemetry TIMESTAMP BY ts WHERE t > 90
"""


class Plant:
    """A log, a ledger and journals that outlive the runners on them."""

    def __init__(self, folder: Path, *, lasting: bool = False) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.log: EventLog = (
            SqliteEventLog(folder / "log", self.clock, partitions=3)
            if lasting
            else MemoryEventLog(self.clock, partitions=3)
        )
        self.ledger = SqliteLedger(folder / "ledger.sqlite")
        self.functions: dict[str, UserFunction] = {}
        self._journals: list[EpochJournal] = []

    def runner(self, text: str = WINDOW, *, name: str = "test", fuse: Fuse | None = None, **config: Any) -> JobRunner:
        fuse = fuse or Fuse(1 << 60)
        journal = EpochJournal(self.folder / f"{name}.sqlite")
        self._journals.append(journal)
        options = {"query": "x.asaql", "linger_ms": 0.0, "checkpoint_s": 3600.0, "late_arrival_s": 60.0, **config}
        return JobRunner(
            JobSpec(name, text, JobConfig(**options), self.folder),
            event_log=fuse.wrap(self.log, "append", "read_merged"),
            journal=fuse.wrap(journal, "begin", "checkpoint", "pending", "last_checkpoint"),
            ledger=fuse.wrap(self.ledger, "write"),
            clock=self.clock,
            rng=random.Random(1),
            functions=self.functions,
            references={},
        )

    def readings(self, seconds: list[float], *, machines: int = 3, first: int = 0) -> EventBatch:
        """Events at `seconds` after the clock's start, machine after machine."""
        start = 17_356_896_000_000_000
        names = [f"m{number % machines}" for number in range(len(seconds))]
        bodies = [
            {"machineId": name, "ts": to_iso(start + int(at * 10_000_000)), "t": (37 * (first + number)) % 100}
            for number, (name, at) in enumerate(zip(names, seconds, strict=True))
        ]
        return event_batch(
            {
                "_event_id": [f"h{first + number}" for number in range(len(seconds))],
                "_device": names,
                "_body": [msgspec.json.encode(body) for body in bodies],
            }
        )

    async def rows(self, stream: str) -> list[dict[str, Any]]:
        """All rows of a stream, in order."""
        piece = await self.log.read_merged(stream, (), rows_max=100_000, wait_s=0.0)
        return piece.batch.to_pylist()

    async def bodies(self, stream: str) -> list[dict[str, Any]]:
        return [msgspec.json.decode(row["_body"]) for row in await self.rows(stream)]

    async def drain(self, runner: JobRunner, *, start: bool = True) -> None:
        """Process all that is in the log, then write a checkpoint."""
        if start:
            await runner.start()
        idle = 0
        while idle < 3:
            idle = 0 if await runner.step(wait_s=0.02) else idle + 1
        await runner.checkpoint()
        await runner.close()

    async def close(self) -> None:
        for journal in self._journals:
            journal.close()
        await self.ledger.close()
        await self.log.close()
