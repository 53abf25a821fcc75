"""A job that is behind reads ahead, but never far; one whose outputs are slow waits for them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from job_plant import Plant

from headrace.eventlog.contract import Appended
from headrace.jobs.ahead import Ahead
from headrace.jobs.inputs import Inputs
from headrace.sql.compile import compile_script
from headrace.sql.run import Decoded, Run

COPY = "SELECT machineId, t INTO copy FROM telemetry"
ROWS = 50


class Slow:
    """A log that counts what was read from it, and whose appends to `copy` wait until they are let through."""

    def __init__(self, log: Any) -> None:
        self.log = log
        self.read = 0
        self.stuck = asyncio.Event()
        self.let_through = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

    async def read_merged(self, *arguments: Any, **options: Any) -> Any:
        found = await self.log.read_merged(*arguments, **options)
        self.read += found.batch.num_rows
        return found

    async def append(self, stream: str, *arguments: Any, **options: Any) -> Appended:
        if stream == "copy":
            self.stuck.set()
            await self.let_through.wait()
        return await self.log.append(stream, *arguments, **options)  # type: ignore[no-any-return]


async def backlog(plant: Plant, batches: int) -> None:
    for batch in range(batches):
        await plant.log.append("telemetry", plant.readings([float(batch)] * ROWS, first=batch * ROWS))


async def test_while_an_output_is_stuck_a_backlog_stays_in_the_log(plant: Plant) -> None:
    await backlog(plant, 40)
    slow = Slow(plant.log)
    plant.log = slow  # type: ignore[assignment]
    runner = plant.runner(COPY, batch_rows_max=ROWS)
    await runner.start()
    step = asyncio.create_task(runner.step(wait_s=0.0))
    async with asyncio.timeout(20):
        await slow.stuck.wait()
        while slow.read < 2 * ROWS:  # noqa: ASYNC110 - the second read is seen in a number
            await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert slow.read == 2 * ROWS
    assert not step.done()
    slow.let_through.set()
    await step
    await plant.drain(runner, start=False)
    assert len(await plant.rows("copy")) == 40 * ROWS


async def test_what_was_read_ahead_is_decoded_and_comes_in_its_order(plant: Plant) -> None:
    await backlog(plant, 6)
    run = Run(compile_script(COPY))
    inputs = Inputs(plant.log, {"telemetry": (0, 0, 0)}, rows_max=ROWS, clock=plant.clock)
    ahead = Ahead(inputs, {"telemetry": ["telemetry"]}, run.decode)
    kinds: list[bool] = []
    ids: list[str] = []
    positions: list[Any] = []
    while (ready := await ahead.take(wait_s=0.0, linger_s=0.0)) is not None:
        ahead.go_on()
        assert ahead.positions == ready.portion.positions
        positions.append(ahead.positions["telemetry"])
        for _, rows in ready.pieces:
            kinds.append(isinstance(rows, Decoded))
            events = rows.events if isinstance(rows, Decoded) else rows
            ids += events.column("_event_id").to_pylist()
    await ahead.close()
    whole = await plant.log.read_merged("telemetry", (), rows_max=10_000, wait_s=0.0)
    assert ids == whole.batch.column("_event_id").to_pylist()
    assert positions == sorted(set(positions))
    assert not kinds[0]
    assert all(kinds[1:])


async def test_a_job_that_stops_drops_what_it_read_ahead_and_a_new_one_reads_it_again(plant: Plant) -> None:
    await backlog(plant, 10)
    runner = plant.runner(COPY, batch_rows_max=ROWS)
    await runner.start()
    await runner.step(wait_s=0.0)
    await runner.step(wait_s=0.0)
    await runner.checkpoint()
    await runner.close()
    assert len(await plant.rows("copy")) == 2 * ROWS
    await plant.drain(plant.runner(COPY, batch_rows_max=ROWS))
    rows = await plant.rows("copy")
    assert len(rows) == len({row["_event_id"] for row in rows}) == 10 * ROWS


async def test_rows_gather_while_they_keep_coming_and_go_at_once_after_a_pause(plant: Plant) -> None:
    inputs = Inputs(plant.log, {"telemetry": (0, 0, 0)}, rows_max=1000, clock=plant.clock)

    async def taken() -> int:
        portion = await inputs.take(wait_s=0.0, linger_s=0.02)
        return portion.rows if portion else 0

    await plant.log.append("telemetry", plant.readings([1.0]))
    assert await taken() == 1  # nothing came before it
    await plant.log.append("telemetry", plant.readings([1.0], first=1))
    second = asyncio.create_task(taken())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not second.done()
    await plant.log.append("telemetry", plant.readings([1.0], first=2))
    plant.clock.advance(0.02)
    assert await second == 2
    plant.clock.advance(1.0)
    await plant.log.append("telemetry", plant.readings([1.0], first=3))
    assert await taken() == 1
    await inputs.close()


@pytest.mark.parametrize("rows_max", [7, 50, 1000])
async def test_the_answer_does_not_depend_on_reading_ahead(plant: Plant, rows_max: int) -> None:
    await backlog(plant, 8)
    await plant.drain(plant.runner(COPY, batch_rows_max=rows_max))
    given = [{"machineId": row["machineId"], "t": row["t"]} for row in await plant.bodies("telemetry")]
    copied = await plant.bodies("copy")
    assert sorted(copied, key=str) == sorted(given, key=str)
