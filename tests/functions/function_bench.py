"""A function's surroundings, and sinks that remember."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fuse import Fuse

from headrace.core.clock import ManualClock
from headrace.core.flow import LedgerEntry, Outcome
from headrace.core.schema import EventBatch, event_batch
from headrace.eventlog.journal import EpochJournal
from headrace.eventlog.memory import MemoryEventLog
from headrace.functions.runner import FunctionRunner, RunnerConfig


class MemoryLedger:
    def __init__(self) -> None:
        self.entries: dict[tuple[str, str, int, int], LedgerEntry] = {}

    async def write(self, entries: Iterable[LedgerEntry]) -> None:
        for one in entries:
            self.entries[one.stage, one.stream, one.partition, one.epoch] = one

    async def totals(self) -> list[LedgerEntry]:
        return list(self.entries.values())

    async def close(self) -> None:
        pass

    def sums(self) -> tuple[int, int, dict[str, int]]:
        aside: dict[str, int] = {}
        for one in self.entries.values():
            for reason, rows in one.set_aside.items():
                aside[reason] = aside.get(reason, 0) + rows
        rows_in = sum(one.rows_in for one in self.entries.values())
        return rows_in, sum(one.rows_out for one in self.entries.values()), aside


class EpochSink:
    """A function that remembers its last epoch, as the lake and the warehouse do."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.epoch = -1

    async def open(self) -> None:
        pass

    async def process(self, batch: EventBatch, epoch: int) -> Outcome:
        if epoch > self.epoch:
            self.ids += batch.column("_event_id").to_pylist()
            self.epoch = epoch
        return Outcome(batch.num_rows)

    async def close(self) -> None:
        pass


def events(first: int, rows: int, body: bytes = b"{}") -> EventBatch:
    numbers = range(first, first + rows)
    return event_batch(
        {
            "_event_id": [f"e{number}" for number in numbers],
            "_device": [f"dev-{number % 7}" for number in numbers],
            "_body": [body] * rows,
        }
    )


class Bench:
    """A log, a ledger and a journal that outlive the runners on them."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.log = MemoryEventLog(self.clock)
        self.ledger = MemoryLedger()
        self.path = folder / "journal.sqlite"
        self._journals: list[EpochJournal] = []

    def runner(self, function: Any, *, fuse: Fuse | None = None, **config: Any) -> FunctionRunner:
        fuse = fuse or Fuse(1 << 60, False)
        journal = EpochJournal(self.path)
        self._journals.append(journal)
        return FunctionRunner(
            "test",
            fuse.wrap(function, "process"),
            stream="telemetry",
            event_log=fuse.wrap(self.log, "append", "read_merged"),
            journal=fuse.wrap(journal, "begin", "checkpoint", "pending", "last_checkpoint"),
            ledger=fuse.wrap(self.ledger, "write"),
            clock=self.clock,
            rng=random.Random(1),
            config=RunnerConfig(**{"linger_s": 0.0, **config}),
        )

    async def drain(self, runner: FunctionRunner) -> None:
        await runner.start()
        while await runner.once(wait_s=0.0):
            pass

    def close(self) -> None:
        for journal in self._journals:
            journal.close()
