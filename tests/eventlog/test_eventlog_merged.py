"""Reading in any pieces, by any reader, is reading at once."""

import asyncio
import random
from pathlib import Path

import pyarrow as pa
from eventlog_given import Events
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.core.clock import ManualClock, SystemClock
from headrace.core.schema import LOG_SCHEMA, event_batch
from headrace.eventlog.contract import EventLog, Positions
from headrace.eventlog.memory import MemoryEventLog
from headrace.eventlog.sqlite import SqliteEventLog

Sizes = list[tuple[int, int]]  # rows of an append, devices they come from
SIZES = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=12)
CUTS = st.lists(st.integers(1, 25), min_size=1, max_size=10)


async def fill(log: EventLog, sizes: Sizes) -> None:
    number = 0
    for rows, devices in sizes:
        names = [f"d{index * index % devices}" for index in range(rows)]
        ids = [f"h{number + index}" for index in range(rows)]
        await log.append("s", event_batch({"_event_id": ids, "_device": names, "_body": [b"x"] * rows}))
        number += rows


async def walked(log: EventLog, cuts: list[int]) -> tuple[list[pa.RecordBatch], list[Positions], list[int]]:
    """The stream from its beginning in pieces of the sizes given, over and over: batches, positions, frontiers."""
    batches: list[pa.RecordBatch] = []
    positions: list[Positions] = []
    frontiers: list[int] = []
    while not batches or batches[-1].num_rows:
        rows_max = cuts[len(batches) % len(cuts)]
        piece = await log.read_merged("s", positions[-1] if positions else (), rows_max=rows_max, wait_s=0)
        batches.append(piece.batch)
        positions.append(piece.positions)
        frontiers.append(piece.frontier)
    return batches, positions, frontiers


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=SIZES, cuts=CUTS)
def test_random_cuts_of_either_log_equal_one_whole_read(tmp_path_factory, sizes: Sizes, cuts: list[int]) -> None:  # type: ignore[no-untyped-def]
    async def check() -> None:
        logs: list[EventLog] = [
            MemoryEventLog(ManualClock()),
            SqliteEventLog(tmp_path_factory.mktemp("log"), ManualClock()),
        ]
        found = []
        for log in logs:
            await fill(log, sizes)
            whole = await log.read_merged("s", (), rows_max=10_000, wait_s=0)
            batches, positions, frontiers = await walked(log, cuts)
            assert pa.Table.from_batches(batches, LOG_SCHEMA).to_pylist() == whole.batch.to_pylist()
            assert frontiers == sorted(frontiers)
            for start, batch, end in zip([(0,) * 4, *positions], batches, positions, strict=False):
                again = await log.read_merged("s", start, rows_max=10_000, wait_s=0, until=end)
                assert again.batch.to_pylist() == batch.to_pylist()
                assert again.positions == end
            found.append((whole.batch.to_pylist(), positions, frontiers))
            await log.close()
        assert found[0] == found[1]

    asyncio.run(check())


async def test_readers_that_follow_live_see_the_order_that_a_later_reader_sees(tmp_path: Path, events: Events) -> None:
    writing, reading = SqliteEventLog(tmp_path, SystemClock()), SqliteEventLog(tmp_path, SystemClock())
    rng = random.Random(1)
    sizes = [rng.randrange(1, 60) for _ in range(99)]
    total = sum(sizes)

    async def follow(rows_max: int) -> list[bytes]:
        bodies: list[bytes] = []
        positions: Positions = ()
        while len(bodies) < total:
            piece = await reading.read_merged("s", positions, rows_max=rows_max, wait_s=10)
            positions = piece.positions
            bodies += piece.batch.column("_body").to_pylist()
        return bodies

    followers = [asyncio.create_task(follow(rows_max)) for rows_max in (1000, 33, 7)]
    appends = [(sum(sizes[:index]), size) for index, size in enumerate(sizes)]
    for index in range(0, 99, 3):
        await asyncio.gather(*(writing.append("s", events(*one)) for one in appends[index : index + 3]))
    seen = [await follower for follower in followers]
    later = (await writing.read_merged("s", (), rows_max=10_000, wait_s=0)).batch.column("_body").to_pylist()
    assert seen == [later] * 3
    await writing.close()
    await reading.close()
