"""A function sees every row, whatever happens to its process, and a bad row takes nothing with it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from function_bench import Bench, EpochSink, events
from fuse import Fuse, Killed

from headrace.core.errors import DataError, Unavailable, UserError
from headrace.core.flow import Outcome, SetAside
from headrace.core.schema import EventBatch


class Picky(EpochSink):
    """Cannot take some events, and does not say which."""

    def __init__(self, *poison: str) -> None:
        super().__init__()
        self.poison = set(poison)
        self.calls = 0

    async def process(self, batch: EventBatch, epoch: int) -> Outcome:
        self.calls += 1
        if self.poison & set(batch.column("_event_id").to_pylist()):
            raise DataError("too bitter", code="test.bitter")
        return await super().process(batch, epoch)


class Failing(EpochSink):
    """Unavailable for a number of calls."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def process(self, batch: EventBatch, epoch: int) -> Outcome:
        self.times -= 1
        if self.times >= 0:
            raise Unavailable("the sink is away")
        return await super().process(batch, epoch)


async def fill(bench: Bench, batches: int = 5, rows: int = 20) -> list[str]:
    for number in range(batches):
        await bench.log.append("telemetry", events(number * rows, rows))
    return [f"e{number}" for number in range(batches * rows)]


async def set_aside(bench: Bench) -> list[dict[str, Any]]:
    piece = await bench.log.read_merged("set_aside", (), rows_max=10_000, wait_s=0.0)
    return [{**row, **msgspec.json.decode(row["_properties"])} for row in piece.batch.to_pylist()]


async def test_every_row_comes_once_and_the_books_balance(bench: Bench) -> None:
    expected = await fill(bench)
    sink = EpochSink()
    await bench.drain(bench.runner(sink, batch_rows_max=30))
    assert sorted(sink.ids) == sorted(expected)
    assert bench.ledger.sums() == (100, 100, {})


async def test_a_new_runner_goes_on_where_the_old_one_stopped(bench: Bench) -> None:
    await fill(bench, batches=2)
    sink = EpochSink()
    await bench.drain(bench.runner(sink))
    await bench.log.append("telemetry", events(40, 10))
    await bench.drain(bench.runner(sink))
    assert sorted(sink.ids) == sorted(f"e{number}" for number in range(50))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_killed_at_any_step_the_sink_has_each_row_once(tmp_path: Any, after: bool) -> None:
    crashes = 0
    for at in range(200):
        folder = tmp_path / f"{at}"
        bench = Bench(folder)
        expected = await fill(bench, batches=2, rows=8)
        sink = Picky("e5", "e12")
        try:
            await bench.drain(bench.runner(sink, fuse=Fuse(at, after), batch_rows_max=10))
            bench.close()
            break
        except Killed:
            crashes += 1
        await bench.drain(bench.runner(sink, batch_rows_max=7))
        good = [one for one in expected if one not in sink.poison]
        assert sorted(sink.ids) == sorted(good), f"killed at step {at}"
        aside = sorted(row["event_id"] for row in await set_aside(bench))
        assert aside == ["e12", "e5"], f"killed at step {at}"
        assert bench.ledger.sums() == (16, 14, {"test.bitter": 2}), f"killed at step {at}"
        bench.close()
    assert crashes > 30


async def test_one_poison_event_is_found_and_set_aside_as_it_was(bench: Bench) -> None:
    await fill(bench, batches=1, rows=1000)
    sink = Picky("e619")
    await bench.drain(bench.runner(sink))
    assert len(sink.ids) == 999
    assert sink.calls < 40
    (row,) = await set_aside(bench)
    original = (await bench.log.read_merged("telemetry", (), rows_max=1000, wait_s=0.0)).batch.to_pylist()
    (stood,) = [one for one in original if one["_event_id"] == "e619"]
    assert (row["_type"], row["_body"], row["_device"]) == ("test.bitter", b"{}", stood["_device"])
    assert (row["stage"], row["detail"], row["stream"]) == ("function:test", "too bitter", "telemetry")
    assert (row["partition"], row["offset"]) == (stood["_partition"], stood["_offset"])


async def test_rows_that_a_function_names_are_set_aside_without_a_search(bench: Bench) -> None:
    class Naming(EpochSink):
        async def process(self, batch: EventBatch, epoch: int) -> Outcome:
            return Outcome(batch.num_rows - 2, (SetAside(0, "dull"), SetAside(3, "blunt", "no edge")))

    await fill(bench, batches=1)
    await bench.drain(bench.runner(Naming()))
    assert [row["_type"] for row in await set_aside(bench)] == ["dull", "blunt"]
    assert bench.ledger.sums() == (20, 18, {"dull": 1, "blunt": 1})


async def test_rows_that_a_function_loses_are_a_gap_in_the_books(bench: Bench) -> None:
    class Losing(EpochSink):
        async def process(self, batch: EventBatch, epoch: int) -> Outcome:
            return Outcome(batch.num_rows - 1)

    await fill(bench, batches=1)
    await bench.drain(bench.runner(Losing()))
    assert bench.ledger.sums() == (20, 19, {})


async def test_an_index_outside_the_batch_is_the_functions_mistake(bench: Bench) -> None:
    class Confused(EpochSink):
        async def process(self, batch: EventBatch, epoch: int) -> Outcome:
            return Outcome(batch.num_rows - 1, (SetAside(batch.num_rows, "dull"),))

    await fill(bench, batches=1)
    with pytest.raises(UserError, match="index in the batch"):
        await bench.drain(bench.runner(Confused()))


async def test_an_unavailable_sink_is_tried_until_it_is_back(bench: Bench, passing_time: None) -> None:
    expected = await fill(bench)
    sink = Failing(30)
    await bench.drain(bench.runner(sink, retries_max=None))
    assert sorted(sink.ids) == sorted(expected)


async def test_after_its_retries_a_users_batch_is_set_aside(bench: Bench, passing_time: None) -> None:
    await fill(bench, batches=1)
    await bench.drain(bench.runner(Failing(4), retries_max=3))
    assert bench.ledger.sums() == (20, 0, {"unavailable": 20})


async def test_no_answer_in_time_counts_as_unavailable(bench: Bench, passing_time: None) -> None:
    class Hanging(EpochSink):
        async def process(self, batch: EventBatch, epoch: int) -> Outcome:
            await asyncio.Event().wait()
            raise AssertionError("never reached")

    await fill(bench, batches=1)
    await bench.drain(bench.runner(Hanging(), retries_max=1, timeout_s=0.01))
    assert bench.ledger.sums() == (20, 0, {"unavailable": 20})


async def test_rows_gone_by_retention_are_in_the_books(bench: Bench) -> None:
    sink = EpochSink()
    await bench.drain(bench.runner(sink))
    await fill(bench, batches=1)
    bench.clock.advance(10)
    await bench.log.trim("telemetry", bench.clock.now())
    await bench.log.append("telemetry", events(20, 5))
    runner = bench.runner(sink)
    await runner.start()
    assert await runner.once(wait_s=0.0) == 0
    assert await runner.once(wait_s=0.0) == 5
    assert bench.ledger.sums() == (25, 5, {"trimmed": 20})


async def test_stopping_finishes_the_epoch_under_way(bench: Bench) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    class Slow(EpochSink):
        async def process(self, batch: EventBatch, epoch: int) -> Outcome:
            entered.set()
            await leave.wait()
            return await super().process(batch, epoch)

    await fill(bench, batches=1)
    runner = bench.runner(Slow())
    task = asyncio.create_task(runner.run())
    await asyncio.wait_for(entered.wait(), 5)
    task.cancel()
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.ledger.sums() == (20, 20, {})
    assert runner.status.epoch == 1


async def test_the_lag_is_what_the_log_has_more(bench: Bench) -> None:
    runner = bench.runner(EpochSink())
    await bench.drain(runner)
    await fill(bench, batches=1)
    await runner.refresh_lag()
    assert runner.status.lag == 20
