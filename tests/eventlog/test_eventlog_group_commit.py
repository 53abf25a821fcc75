"""Group commit and the write-ahead log."""

import asyncio
import random
from pathlib import Path

import pytest
from eventlog_given import Events, OpenLog

from headrace.eventlog import checkpoint
from headrace.eventlog.writer import StreamWriter


async def test_appends_that_wait_share_a_transaction(
    open_log: OpenLog, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []
    commit = StreamWriter.commit

    def counted(writer, requests):  # type: ignore[no-untyped-def]
        groups.append(len(requests))
        return commit(writer, requests)

    monkeypatch.setattr(StreamWriter, "commit", counted)
    log = open_log()
    await asyncio.gather(*(log.append("s", events(number, 1)) for number in range(100)))
    assert sum(groups) == 100
    assert len(groups) <= 3


async def test_a_caller_who_leaves_does_not_take_others_with_it(open_log: OpenLog, events: Events) -> None:
    log = open_log()
    tasks = [asyncio.create_task(log.append("s", events(number * 10, 10))) for number in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [index % 3 == 0 for index in range(20)]
    resent = await log.append("s", events(0, 200))
    assert resent.duplicates >= 130
    assert sum((await log.bounds("s"))[1]) == 200


async def test_the_write_ahead_log_is_used_again_while_appends_go_on(
    open_log: OpenLog, events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "START_BYTES", 500_000)
    log, rng = open_log(), random.Random(1)
    wal = tmp_path / "log" / "streams" / "s.sqlite-wal"
    for first in range(0, 10_000, 50):
        await log.append("s", events(first, 50, noise=rng))
    assert wal.stat().st_size < 4_000_000 < 10_000_000 < (await log.stats("s")).bytes_on_disk
