"""Several streams become one sequence, the same however they were read."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from headrace.core.clock import ManualClock
from headrace.core.schema import EventBatch, event_batch
from headrace.eventlog.memory import MemoryEventLog
from headrace.jobs.inputs import Inputs, Portion

STREAMS = ("a", "b", "c")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def event_log(clock: ManualClock) -> AsyncIterator[MemoryEventLog]:
    log = MemoryEventLog(clock, partitions=3)
    yield log
    await log.close()


def events(stream: str, first: int, rows: int) -> EventBatch:
    numbers = range(first, first + rows)
    return event_batch(
        {
            "_event_id": [f"{stream}{number}" for number in numbers],
            "_device": [f"dev-{number % 5}" for number in numbers],
            "_body": [b"{}"] * rows,
        }
    )


def inputs(log: MemoryEventLog, clock: ManualClock, *streams: str, rows_max: int = 1000) -> Inputs:
    return Inputs(log, dict.fromkeys(streams, (0, 0, 0)), rows_max=rows_max, clock=clock)


def ids(portions: list[Portion]) -> list[str]:
    return [one for portion in portions for _, batch in portion.runs for one in batch.column("_event_id").to_pylist()]


async def drain(reader: Inputs, *, idle_max: int = 3) -> list[Portion]:
    found: list[Portion] = []
    idle = 0
    while idle < idle_max:
        portion = await reader.take(wait_s=0.0, linger_s=0.0)
        idle = 0 if portion else idle + 1
        if portion:
            found.append(portion)
    await reader.close()
    return found


async def fill(log: MemoryEventLog, clock: ManualClock, rng: random.Random) -> None:
    for step in range(60):
        stream = rng.choice(STREAMS)
        await log.append(stream, events(stream, step * 100, rng.randrange(0, 12)))
        clock.advance(rng.choice([0.0, 0.001]))
    clock.advance(1.0)
    for stream in STREAMS:
        await log.append(stream, events(stream, 0, 0))


async def test_one_stream_comes_as_it_is(event_log: MemoryEventLog, clock: ManualClock) -> None:
    await event_log.append("a", events("a", 0, 10))
    await event_log.append("a", events("a", 10, 10))
    found = await drain(inputs(event_log, clock, "a"))
    whole = await event_log.read_merged("a", (), rows_max=100, wait_s=0.0)
    assert ids(found) == whole.batch.column("_event_id").to_pylist()
    assert found[-1].positions == {"a": whole.positions}


async def test_a_row_waits_until_every_stream_has_passed_its_time(
    event_log: MemoryEventLog, clock: ManualClock
) -> None:
    await event_log.append("b", events("b", 0, 1))
    clock.advance(1)
    await event_log.append("a", events("a", 0, 1))
    reader = inputs(event_log, clock, "a", "b")
    first = await reader.take(wait_s=0.1, linger_s=0.0)
    while first is not None and not first.runs:
        first = await reader.take(wait_s=0.1, linger_s=0.0)
    assert first is not None
    assert ids([first]) == ["b0"]
    assert await reader.take(wait_s=0.0, linger_s=0.0) is None
    assert reader.waiting()
    clock.advance(1)
    await event_log.append("b", events("b", 0, 0))
    second = await reader.take(wait_s=0.1, linger_s=0.0)
    assert second is not None
    assert ids([second]) == ["a0"]
    assert second.positions == {stream: (await event_log.bounds(stream))[1] for stream in ("a", "b")}
    await reader.close()


@pytest.mark.parametrize("seed", range(5))
async def test_streams_merge_by_time_whatever_the_portions(
    event_log: MemoryEventLog, clock: ManualClock, seed: int
) -> None:
    await fill(event_log, clock, random.Random(seed))
    whole = ids(await drain(inputs(event_log, clock, *STREAMS)))
    small = ids(await drain(inputs(event_log, clock, *STREAMS, rows_max=7)))
    stamps = {
        row["_event_id"]: row["_enqueued"]
        for stream in STREAMS
        for row in (await event_log.read_merged(stream, (), rows_max=10_000, wait_s=0.0)).batch.to_pylist()
    }
    assert whole == small
    assert sorted(whole) == sorted(stamps)
    assert [stamps[one] for one in whole] == sorted(stamps.values())


@pytest.mark.parametrize("seed", range(5))
async def test_a_replay_ends_exactly_at_its_cuts(event_log: MemoryEventLog, clock: ManualClock, seed: int) -> None:
    await fill(event_log, clock, random.Random(seed))
    portions = await drain(inputs(event_log, clock, *STREAMS, rows_max=9))
    again = inputs(event_log, clock, *STREAMS, rows_max=5)
    for cut in (portions[len(portions) // 3], portions[len(portions) // 2]):
        pieces: list[Portion] = []
        while (piece := await again.replay(cut.positions)) is not None:
            pieces.append(piece)
        assert again.positions == cut.positions
        expected = portions[: portions.index(cut) + 1]
        assert ids(pieces) == ids(expected)[-len(ids(pieces)) :]
    again.rejoin()
    assert ids(await drain(again)) == ids(portions[portions.index(cut) + 1 :])


async def test_one_append_larger_than_the_room_does_not_block(event_log: MemoryEventLog, clock: ManualClock) -> None:
    await event_log.append("a", events("a", 0, 50))
    await event_log.append("b", events("b", 0, 50))
    clock.advance(1)
    await event_log.append("a", events("a", 0, 0))
    await event_log.append("b", events("b", 0, 0))
    assert len(ids(await drain(inputs(event_log, clock, "a", "b", rows_max=4), idle_max=30))) == 100


async def test_rows_that_retention_dropped_are_told(event_log: MemoryEventLog, clock: ManualClock) -> None:
    await event_log.append("a", events("a", 0, 10))
    clock.advance(10)
    await event_log.trim("a", clock.now())
    await event_log.append("a", events("a", 10, 5))
    found = await drain(inputs(event_log, clock, "a"))
    assert sum(rows for portion in found for rows in portion.trimmed.values()) == 10
    assert len(ids(found)) == 5
