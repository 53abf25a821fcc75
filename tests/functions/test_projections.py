"""The platform's projections store every event once, and the books show it when one is missing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from deltalake import DeltaTable
from function_bench import Bench, MemoryLedger
from fuse import Fuse, Killed

from headrace.core.clock import ManualClock, SystemClock
from headrace.core.config import EntityConfig, LakeConfig, WarehouseConfig
from headrace.core.identity import message_event_id
from headrace.core.schema import EventBatch, event_batch
from headrace.docstore.memory import MemoryDocStore
from headrace.eventlog.journal import EpochJournal
from headrace.eventlog.memory import MemoryEventLog
from headrace.functions.process import Means, run_entities, run_lake
from headrace.functions.projections.entities import EntityProjection
from headrace.functions.projections.lake import LakeProjection
from headrace.functions.runner import FunctionRunner, RunnerConfig
from headrace.jobs.ledger import LedgerReport
from headrace.lake.delta import DeltaLake
from headrace.ledger.sqlite import SqliteLedger
from headrace.warehouse.postgres import PostgresWarehouse


def readings(first: int, rows: int) -> EventBatch:
    """Rows with a device's own message ids; one body in ten is no JSON."""
    numbers = range(first, first + rows)
    devices = [f"machine-{number % 5}" for number in numbers]
    return event_batch(
        {
            "_event_id": [message_event_id(devices[n - first], None, f"{n}") for n in numbers],
            "_device": devices,
            "_body": [
                b"not json" if n % 10 == 9 else msgspec.json.encode({"machineId": f"machine-{n % 5}", "t": n})
                for n in numbers
            ],
        }
    )


class Parts:
    """The projections' surroundings, on files."""

    def __init__(self, folder: Path, warehouse: PostgresWarehouse) -> None:
        self.clock = SystemClock()
        self.log_clock = ManualClock()
        self.log = MemoryEventLog(self.log_clock, partitions=3)
        self.ledger = SqliteLedger(folder / "ledger.sqlite")
        self.docs = MemoryDocStore(self.clock)
        self.lake = DeltaLake(folder / "lake", self.clock)
        self.folder = folder
        self.warehouse = warehouse
        self.report = LedgerReport(
            self.log, self.ledger, lake=self.lake, warehouse=warehouse, entities={"machine_telemetry": "telemetry"}
        )

    def means(self) -> Means:
        return Means(self.log, self.ledger, self.docs, self.clock, random.Random(1), self.folder / "journals")

    async def while_running(self, work: Callable[[], Any]) -> None:
        """Run both projections for as long as `work` takes."""
        entities = {"machine_telemetry": EntityConfig(stream="telemetry")}
        tasks = [
            asyncio.create_task(
                run_lake(self.lake, LakeConfig(linger_s=0.05), wanted=lambda _: True, means=self.means())
            ),
            asyncio.create_task(
                run_entities(self.warehouse, WarehouseConfig(linger_s=0.05), entities, means=self.means())
            ),
        ]
        try:
            await work()
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)


@pytest.fixture
async def parts(tmp_path: Path, warehouse: PostgresWarehouse) -> AsyncIterator[Parts]:
    made = Parts(tmp_path, warehouse)
    yield made
    await made.ledger.close()
    await made.log.close()


def row_of(report: dict[str, Any], stage: str, stream: str = "telemetry") -> list[dict[str, Any]]:
    return [row for row in report["stages"] if (row["stage"], row["stream"]) == (stage, stream)]


async def test_one_lost_row_in_lake_or_entities_unbalances_the_books(parts: Parts, database: str) -> None:
    async def work() -> None:
        for batch in range(4):
            await parts.log.append("telemetry", readings(batch * 50, 50))
        await parts.log.append("aggregates", readings(1000, 20))
        assert await parts.report.drained(timeout_s=20)

    await parts.while_running(work)
    report = await parts.report.run()
    assert report["balanced"], report
    assert sum(row["rows_out"] for row in row_of(report, "function:lake")) == 200
    assert sum(row["rows_out"] for row in row_of(report, "function:entities:machine_telemetry")) == 200
    assert sum(row["rows_out"] for row in row_of(report, "function:lake", "aggregates")) == 20
    status = {document.id: document.body for document in await parts.docs.query("runtime")}
    assert status["function:lake:telemetry"]["lag"] == 0

    partition = max(range(3), key=(await parts.log.stats("telemetry")).next.__getitem__)
    one = [int(number == partition) for number in range(3)]
    where = f"_offset = 3 AND _partition = {partition}"
    DeltaTable(str(parts.folder / "lake" / "raw" / "telemetry")).delete(where)
    report = await parts.report.run()
    assert not report["balanced"]
    assert [row["gap"] for row in row_of(report, "function:lake")] == one

    with psycopg.connect(database) as connection:
        connection.execute("DELETE FROM machine_telemetry WHERE log_offset = 5 AND log_partition = %s", (partition,))
    report = await parts.report.run()
    assert [row["gap"] for row in row_of(report, "function:entities:machine_telemetry")] == one


async def test_an_event_sent_again_late_is_one_entity_and_counted_as_duplicate(parts: Parts) -> None:
    async def work() -> None:
        await parts.log.append("telemetry", readings(0, 30))
        parts.log_clock.advance(601)  # the log forgets ids after ten minutes
        await parts.log.append("telemetry", readings(20, 20))
        assert await parts.report.drained(timeout_s=20)

    await parts.while_running(work)
    report = await parts.report.run()
    assert report["balanced"], report
    entities = row_of(report, "function:entities:machine_telemetry")
    assert sum(row["rows_out"] for row in entities) == 40
    assert sum(row["set_aside"].get("duplicate", 0) for row in entities) == 10
    assert "set_aside" not in await parts.log.streams()


async def test_a_projection_that_never_ran_has_everything_pending_and_no_gap(parts: Parts) -> None:
    await parts.log.append("telemetry", readings(0, 30))
    report = await parts.report.run()
    assert report["balanced"]
    assert sum(row["pending"] for row in row_of(report, "function:lake")) == 30
    assert not await parts.report.drained(timeout_s=0.0)


async def test_trimmed_streams_still_balance(parts: Parts) -> None:
    async def work() -> None:
        await parts.log.append("telemetry", readings(0, 30))
        assert await parts.report.drained(timeout_s=20)
        await parts.log.append("telemetry", readings(30, 30))
        parts.log_clock.advance(1)
        await parts.log.trim("telemetry", parts.log_clock.now())
        assert await parts.report.drained(timeout_s=20)

    await parts.while_running(work)
    assert (await parts.report.run())["balanced"]


def runner_on(
    parts: Parts, journal: EpochJournal, make: Callable[[], Any], fuse: Fuse, ledger: MemoryLedger
) -> FunctionRunner:
    return FunctionRunner(
        "test",
        fuse.wrap(make(), "process", "open"),
        stream="telemetry",
        event_log=parts.log,
        journal=fuse.wrap(journal, "begin", "checkpoint"),
        ledger=fuse.wrap(ledger, "write"),
        clock=parts.clock,
        rng=random.Random(1),
        config=RunnerConfig(linger_s=0.0, batch_rows_max=25, retries_max=None),
    )


@pytest.mark.parametrize("kind", ["lake", "entities"])
async def test_killed_between_any_two_steps_a_projection_stores_each_event_once(parts: Parts, kind: str) -> None:
    makers: dict[str, Callable[[], Any]] = {
        "lake": lambda: LakeProjection(parts.lake, "telemetry", parts.log),
        "entities": lambda: EntityProjection(parts.warehouse, "machine_telemetry", "telemetry"),
    }
    counts = {
        "lake": lambda: parts.lake.counts("raw.telemetry"),
        "entities": lambda: parts.warehouse.counts("machine_telemetry"),
    }
    ledger = MemoryLedger()
    for batch in range(12):
        await parts.log.append("telemetry", readings(batch * 25, 25))
    parts.log_clock.advance(601)
    await parts.log.append("telemetry", readings(290, 25))  # ten of them for the second time
    path = parts.folder / "one.sqlite"
    for at in range(40):
        # Each new process gets one step further than the one before it.
        journal = EpochJournal(path)
        runner = runner_on(parts, journal, makers[kind], Fuse(at, after=at % 2 == 0), ledger)
        try:
            await runner.start()
            while await runner.once(wait_s=0.0):
                pass
            break
        except Killed:
            pass
        finally:
            journal.close()
    else:
        raise AssertionError("never came through")
    rows_in, rows_out, aside = ledger.sums()
    duplicates = aside.get("duplicate", 0)
    assert rows_in == 325
    assert duplicates == (10 if kind == "entities" else 0)
    assert rows_out == 325 - duplicates == sum(counts[kind]().values())


async def test_the_lake_knows_the_positions_that_it_holds(parts: Parts, bench: Bench) -> None:
    async def work() -> None:
        await parts.log.append("telemetry", readings(0, 30))
        assert await parts.report.drained(timeout_s=20)

    await parts.while_running(work)
    kept = parts.lake.last_properties("raw.telemetry", "lake:telemetry")
    assert tuple(msgspec.json.decode(kept["positions"])) == (await parts.log.stats("telemetry")).next
