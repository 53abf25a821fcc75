"""Full disks, damaged and locked files: a clear error, nothing half stored, and on it goes afterwards."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from eventlog_given import Events, OpenLog

from headrace.core.clock import ManualClock
from headrace.core.errors import Unavailable, UserError
from headrace.eventlog import storage
from headrace.eventlog.contract import LogFull
from headrace.eventlog.reader import StreamReader
from headrace.eventlog.sqlite import SqliteEventLog
from headrace.eventlog.storage import LogDamaged
from headrace.eventlog.writer import Request, StreamWriter


async def test_a_stream_at_its_limit_refuses_rows_until_it_is_trimmed(
    open_log: OpenLog, events: Events, clock: ManualClock
) -> None:
    log = open_log(size_bytes_max=200_000)
    stored = 0

    async def fill() -> None:
        nonlocal stored
        for first in range(0, 100_000, 100):
            stored = sum((await log.append("s", events(first, 100))).positions)

    with pytest.raises(LogFull, match=r"stream 's' holds (19|20)\d,\d\d\d of 200,000 bytes") as caught:
        await fill()
    assert "size_bytes_max" in caught.value.hint
    assert sum((await log.bounds("s"))[1]) == stored > 1000
    await log.trim("s", clock.now() + 1_000_000)
    assert (await log.append("s", events(100_000, 100))).rows == 100


def test_a_full_disk_stores_nothing_of_the_group_and_later_appends_work(tmp_path: Path, events: Events) -> None:
    path = tmp_path / "s.sqlite"
    writer = StreamWriter(
        path, "s", ManualClock(), partitions=4, window=1_000_000, size_bytes_max=1 << 40, committed=lambda: None
    )
    (before,) = writer.commit([Request(events(0, 100), "", -1)])
    pages = writer._connection.execute("PRAGMA page_count").fetchone()[0]
    writer._connection.execute(f"PRAGMA max_page_count={pages + 4}")  # what SQLite does when the disk is full
    with pytest.raises(LogFull, match=r"no room left for .*s\.sqlite"):
        writer.commit([Request(events(100, 5), "", -1), Request(events(105, 5000), "", -1)])
    reader = StreamReader(path, "s", partitions=4)
    assert reader.bounds()[1] == before.positions  # type: ignore[union-attr]
    writer._connection.execute("PRAGMA max_page_count=1000000")
    (after,) = writer.commit([Request(events(50, 150), "", -1)])  # 50 old ones; none of those that were refused counts
    assert after[:2] == (100, 50)  # type: ignore[index]
    reader.close()
    writer.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"file/log: "):
        SqliteEventLog(tmp_path / "file" / "log", ManualClock())


async def test_a_file_that_is_no_stream_is_named(open_log: OpenLog, events: Events, tmp_path: Path) -> None:
    log = open_log()
    (tmp_path / "log" / "streams").mkdir()
    (tmp_path / "log" / "streams" / "s.sqlite").write_bytes(b"not a database, though it looks long enough" * 100)
    for call in (log.append("s", events(0, 1)), log.read_merged("s", (), rows_max=1, wait_s=0)):
        with pytest.raises(LogDamaged, match=r"streams/s\.sqlite is damaged"):
            await call
    assert (await log.append("t", events(0, 1))).rows == 1


async def test_a_damaged_batch_is_named(open_log: OpenLog, events: Events, tmp_path: Path) -> None:
    log = open_log()
    await log.append("s", events(0, 100))
    with sqlite3.connect(tmp_path / "log" / "streams" / "s.sqlite") as connection:
        connection.execute("UPDATE batches SET data = x'0700000000000000'")
    connection.close()
    with pytest.raises(LogDamaged, match=r"s\.sqlite: batch 1 cannot be read: batch format 7"):
        await log.read_merged("s", (), rows_max=10, wait_s=0)


async def test_a_locked_file_is_an_error_after_a_bounded_wait(
    open_log: OpenLog, events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BUSY_TIMEOUT_MS", 20)
    log = open_log()
    await log.append("s", events(0, 5))
    other = sqlite3.connect(tmp_path / "log" / "streams" / "s.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match=r"s\.sqlite was locked by another process"):
        await log.append("s", events(5, 5))
    assert (await log.read_merged("s", (), rows_max=10, wait_s=0)).batch.num_rows == 5
    other.execute("ROLLBACK")
    other.close()
    assert (await log.append("s", events(5, 5))).rows == 5


@pytest.mark.parametrize("name", ["", "../s", "a/b", ".hidden", "x" * 121, "new\nline"])
async def test_a_name_that_cannot_be_a_file_is_refused(open_log: OpenLog, events: Events, name: str) -> None:
    with pytest.raises(UserError, match="cannot name a stream"):
        await open_log().append(name, events(0, 1))


async def test_one_bad_append_does_not_spoil_those_that_share_its_transaction(
    open_log: OpenLog, events: Events
) -> None:
    log = open_log()
    bad = events(0, 1).select(["_device"])
    answers = await asyncio.gather(
        *(log.append("s", bad if index == 5 else events(index * 10, 10)) for index in range(10)), return_exceptions=True
    )
    assert [isinstance(answer, UserError) for answer in answers] == [index == 5 for index in range(10)]
    assert sum((await log.bounds("s"))[1]) == 90


async def test_a_closed_log_says_so_and_wakes_who_waits(open_log: OpenLog, events: Events) -> None:
    log = open_log()
    waiting = asyncio.create_task(log.read_merged("s", (), rows_max=10, wait_s=60))
    handed_in = asyncio.create_task(log.append("s", events(0, 10)))
    async with asyncio.timeout(5):
        assert (await handed_in).rows == 10
        assert (await waiting).batch.num_rows == 10
        waiting = asyncio.create_task(log.read_merged("s", (await waiting).positions, rows_max=10, wait_s=60))
        await log.bounds("s")
        await log.close()
        assert (await waiting).batch.num_rows == 0
    with pytest.raises(Unavailable, match="closed"):
        await log.append("s", events(10, 10))
