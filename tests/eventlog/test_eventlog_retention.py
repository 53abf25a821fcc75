"""Retention gives the disk back."""

import asyncio
import random
from pathlib import Path

from eventlog_given import Events, OpenLog

from headrace.core.clock import TICKS_PER_S, ManualClock
from headrace.eventlog.memory import MemoryEventLog
from headrace.eventlog.retention import retain


async def test_trimming_shrinks_the_file_by_what_it_dropped(
    open_log: OpenLog, events: Events, clock: ManualClock, tmp_path: Path
) -> None:
    log, rng = open_log(), random.Random(1)
    for hour in range(40):
        clock.advance(3600)
        await log.append("s", events(hour * 150, 150, noise=rng))
    file = tmp_path / "log" / "streams" / "s.sqlite"
    before = (await log.stats("s")).bytes_on_disk
    freed = await log.trim("s", clock.now() - 10 * 3600 * TICKS_PER_S)
    after = (await log.stats("s")).bytes_on_disk
    assert before > 40 * 150 * 1000
    assert freed == before - after
    assert after < 0.35 * before
    assert file.stat().st_size == after
    rest = await log.read_merged("s", (), rows_max=10_000, wait_s=0)
    assert rest.batch.num_rows == 11 * 150


async def test_appends_and_reads_go_on_while_a_stream_is_trimmed(
    open_log: OpenLog, events: Events, clock: ManualClock
) -> None:
    log = open_log()
    for first in range(0, 5000, 10):
        await log.append("s", events(first, 10))
    clock.advance(60)
    trimming = asyncio.create_task(log.trim("s", clock.now()))
    for first in range(5000, 5500, 10):
        await log.append("s", events(first, 10))
    await trimming
    rest = await log.read_merged("s", (), rows_max=10_000, wait_s=0)
    assert sorted(map(int, rest.batch.column("_body").to_pylist())) == list(range(5000, 5500))


async def test_one_pass_trims_each_stream_to_its_own_time(clock: ManualClock, events: Events) -> None:
    log = MemoryEventLog(clock)
    for hour in range(10):
        clock.advance(3600)
        for stream in ("short", "long", "forever"):
            await log.append(stream, events(hour, 1))
    freed = await retain(log, clock, {"short": 7200.0, "long": 5 * 3600.0, "forever": 0.0}.__getitem__)
    kept = {
        stream: (await log.read_merged(stream, (), rows_max=100, wait_s=0)).batch.num_rows
        for stream in ("short", "long", "forever")
    }
    assert kept == {"short": 3, "long": 6, "forever": 10}
    assert freed.keys() == {"short", "long"}
