"""A job reads streams and writes streams, each row exactly once, whatever happens to its process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from fuse import Fuse, Killed
from job_plant import Plant

from headrace.core.clock import TICKS_PER_S, to_iso
from headrace.core.errors import DataError
from headrace.jobs.ledger import LedgerReport


async def feed(plant: Plant, *, batches: int = 8, rows: int = 9) -> None:
    """Event time runs along with arrival, a little behind; some rows are undecodable."""
    for batch in range(batches):
        times = [batch * 5 + number * 0.5 for number in range(rows)]
        events = plant.readings(times, first=batch * rows)
        await plant.log.append("telemetry", events)
        plant.clock.advance(5.0)


async def partitions(plant: Plant, stream: str) -> list[list[dict[str, Any]]]:
    """The bodies of each partition, in order: between partitions the order depends on where epochs were cut."""
    rows = await plant.rows(stream)
    return [[msgspec.json.decode(row["_body"]) for row in rows if row["_partition"] == number] for number in range(3)]


async def test_windows_and_filters_land_in_their_streams(plant: Plant) -> None:
    await feed(plant)
    await plant.drain(plant.runner())
    sums = await plant.bodies("sums")
    ends = sorted(row["windowEnd"] for row in sums)
    assert ends[:4] == ["2025-01-01T00:00:10.0000000Z"] * 3 + ["2025-01-01T00:00:20.0000000Z"]
    assert sum(row["n"] for row in sums if row["windowEnd"] == "2025-01-01T00:00:20.0000000Z") == 18
    hot = await plant.rows("hot")
    assert {row["_type"] for row in hot} == {"hot"}
    assert all(row["_device"] == row["_entity_id"] == msgspec.json.decode(row["_body"])["machineId"] for row in hot)


async def test_a_new_runner_goes_on_with_open_windows(plant: Plant, tmp_path: Path) -> None:
    await feed(plant, batches=3)
    await plant.drain(plant.runner())
    await feed(plant, batches=1)  # event times from 0 again: late ones, adjusted
    await plant.drain(plant.runner())
    whole = Plant(tmp_path / "whole")
    await feed(whole, batches=3)
    await feed(whole, batches=1)
    await whole.drain(whole.runner())
    assert await partitions(plant, "sums") == await partitions(whole, "sums")
    await whole.close()


@pytest.mark.parametrize(
    ("after", "checkpoint_s"), [(False, 3600.0), (True, 0.0)], ids=["before-rarely", "after-often"]
)
async def test_killed_at_any_step_the_output_is_as_if_never(tmp_path: Path, after: bool, checkpoint_s: float) -> None:
    async def live(plant: Plant, fuse: Fuse | None) -> None:
        """Rows come while the job runs; at the quiet end only ticks close the last window."""
        await plant.drain(runner := plant.runner(fuse=fuse, batch_rows_max=10, checkpoint_s=checkpoint_s))
        plant.clock.advance(120.0)
        for _ in range(4):
            await runner.step(wait_s=0.0)
        await runner.checkpoint()
        await runner.close()

    expected = Plant(tmp_path / "expected")
    await feed(expected, batches=4)
    await live(expected, None)
    crashes = 0
    for at in range(0, 100, 2 if after else 1):
        plant = Plant(tmp_path / str(at))
        await feed(plant, batches=4)
        try:
            await live(plant, Fuse(at, after))
            await plant.close()
            break
        except Killed:
            crashes += 1
        await live(plant, None)
        for stream in ("sums", "hot"):
            assert await partitions(plant, stream) == await partitions(expected, stream), f"{stream}, step {at}"
        report = await LedgerReport(plant.log, plant.ledger).run()
        assert report["balanced"], (at, report)
        await plant.close()
    assert sum(row["n"] for row in await expected.bodies("sums")) == 36
    await expected.close()
    assert crashes > 12


UNION = """
WITH every AS (SELECT machineId, t FROM a UNION SELECT machineId, t FROM b)
SELECT machineId, System.Timestamp() AS windowEnd, COUNT(*) AS n INTO counts FROM every
GROUP BY machineId, TumblingWindow(second, 2)
"""


async def test_killed_at_any_step_two_streams_still_merge_exactly(tmp_path: Path) -> None:
    async def feed_both(plant: Plant) -> None:
        for step in range(12):
            await plant.log.append("ab"[step % 3 % 2], plant.readings([0.0] * (step % 4 + 1), first=step * 10))
            plant.clock.advance(0.7)

    async def live(plant: Plant, fuse: Fuse | None) -> None:
        runner = plant.runner(UNION, fuse=fuse, batch_rows_max=6)
        await runner.start()
        for _ in range(40):
            await runner.step(wait_s=0.0)
            plant.clock.advance(2.0)
        await runner.checkpoint()
        await runner.close()

    expected = Plant(tmp_path / "expected")
    await feed_both(expected)
    await live(expected, None)
    assert sum(row["n"] for row in await expected.bodies("counts")) == 30
    for at in range(0, 400, 7):
        plant = Plant(tmp_path / str(at))
        await feed_both(plant)
        try:
            await live(plant, Fuse(at, after=at % 2 == 0))
            await plant.close()
            break
        except Killed:
            pass
        await live(plant, None)
        assert await partitions(plant, "counts") == await partitions(expected, "counts"), f"killed at step {at}"
        report = await LedgerReport(plant.log, plant.ledger).run()
        assert report["balanced"], (at, report)
        await plant.close()
    await expected.close()


async def test_a_quiet_stream_closes_its_windows_and_then_is_left_alone(plant: Plant) -> None:
    await plant.log.append("telemetry", plant.readings([1.0, 2.0, 3.0]))
    runner = plant.runner(late_arrival_s=5.0)
    await runner.start()
    await runner.step(wait_s=0.5)
    assert await plant.bodies("sums") == []
    for _ in range(40):
        plant.clock.advance(1.0)
        await runner.step(wait_s=0.0)
        await runner.step(wait_s=0.05)
    assert sum(row["n"] for row in await plant.bodies("sums")) == 3
    before = (await plant.log.read_merged("telemetry", (), rows_max=10, wait_s=0.0)).frontier
    plant.clock.advance(100.0)
    for _ in range(3):
        await runner.step(wait_s=0.0)
    assert (await plant.log.read_merged("telemetry", (), rows_max=10, wait_s=0.0)).frontier == before
    await runner.close()


def at(second: float) -> int:
    return 17_356_896_000_000_000 + int(second * TICKS_PER_S)


def span(start: float, end: float) -> dict[str, str]:
    return {"start": to_iso(at(start)), "end": to_iso(at(end))}


async def test_refused_rows_are_a_stream_and_the_books_balance(plant: Plant) -> None:
    good = plant.readings([1.0, 1.0, 1.0])
    late = plant.readings([-400.0, -401.0], first=10)
    await plant.log.append("telemetry", good)
    await plant.log.append("telemetry", late)
    broken = late.set_column(late.schema.get_field_index("_body"), late.schema.field("_body"), pa.array([b"{", b"[]"]))
    await plant.log.append("telemetry", broken)
    await plant.drain(plant.runner(action="drop"))
    aside = await plant.rows("set_aside")
    assert sorted(row["_type"] for row in aside) == ["late", "late", "undecodable", "undecodable"]
    notes = [msgspec.json.decode(row["_properties"]) for row in aside]
    assert {note["stage"] for note in notes} == {"job:test"}
    timed = {note["time"]: note["window"] for note in notes if note["reason"] == "late"}
    assert timed == {to_iso(at(-400)): [span(-410, -400)], to_iso(at(-401)): [span(-410, -400)]}
    report = await LedgerReport(plant.log, plant.ledger).run()
    job = [row for row in report["stages"] if row["stage"] == "job:test"]
    assert report["balanced"], report
    assert sum(row["rows_in"] for row in job) == 7
    assert sum(row["rows_out"] for row in job) == 3
    assert sum(row["set_aside"].get("late", 0) for row in job) == 2


async def test_a_row_that_no_job_wrote_into_an_output_stream_is_a_gap(plant: Plant) -> None:
    await feed(plant)
    await plant.drain(plant.runner())
    await plant.log.append("hot", plant.readings([1.0], first=99))  # a stranger's
    report = await LedgerReport(plant.log, plant.ledger).run()
    assert [(row["stage"], row["gap"]) for row in report["stages"] if row["gap"]] == [("output:test", -1)]


async def test_with_on_error_stop_the_event_is_named_and_the_job_stops(plant: Plant) -> None:
    events = plant.readings([1.0])
    body = pa.array([b'{"machineId": "m1", "t": "warm"}'], pa.binary())
    await plant.log.append("telemetry", events.set_column(9, events.schema.field("_body"), body))
    runner = plant.runner("SELECT CAST(t AS bigint) AS t INTO hot FROM telemetry", on_error="stop")
    with pytest.raises(DataError, match="h0"):
        await plant.drain(runner)
    await runner.close()
    again = plant.runner("SELECT CAST(t AS bigint) AS t INTO hot FROM telemetry", on_error="set_aside")
    await plant.drain(again)
    assert [row["_body"] for row in await plant.rows("set_aside")] == [b'{"machineId": "m1", "t": "warm"}']


async def test_a_changed_script_goes_on_after_the_epochs_of_the_old_one(plant: Plant) -> None:
    await plant.log.append("telemetry", plant.readings([1.0] * 9))
    dying = plant.runner("SELECT machineId, 1 AS v INTO hot FROM telemetry", fuse=Fuse(8), batch_rows_max=3)
    with pytest.raises(Killed):
        await plant.drain(dying)
    await dying.close()
    await plant.drain(plant.runner("SELECT machineId, 2 AS v INTO hot FROM telemetry", batch_rows_max=3))
    versions = sorted(row["v"] for row in await plant.bodies("hot"))
    assert len(versions) == 9
    assert set(versions) == {1, 2}
    assert (await LedgerReport(plant.log, plant.ledger).run())["balanced"]


async def test_stopping_writes_a_checkpoint_and_loses_nothing(plant: Plant) -> None:
    await feed(plant, batches=3)
    runner = plant.runner()
    task = asyncio.create_task(runner.run())
    while runner.status.rows_in < 27:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    totals = [entry for entry in await plant.ledger.totals() if entry.stage == "job:test"]
    assert sum(entry.rows_in for entry in totals) == 27


async def test_rows_without_a_machine_keep_the_device_they_came_from(plant: Plant) -> None:
    await plant.log.append("telemetry", plant.readings([1.0, 2.0]))
    await plant.drain(plant.runner("SELECT t INTO hot FROM telemetry"))
    assert sorted(row["_device"] for row in await plant.rows("hot")) == ["m0", "m1"]
