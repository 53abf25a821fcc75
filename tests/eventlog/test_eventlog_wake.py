"""Waiting without looking."""

import asyncio
from pathlib import Path

import pytest
from eventlog_given import Events, OpenLog

from headrace.eventlog.reader import StreamReader
from headrace.eventlog.wake import Wakes


async def test_an_idle_reader_looks_at_the_file_once_however_often_it_asks(
    open_log: OpenLog, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    merged = StreamReader.merged

    def counted(*args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal looks
        looks += 1
        return merged(*args, **kwargs)

    monkeypatch.setattr(StreamReader, "merged", counted)
    log = open_log()
    for _ in range(20):
        assert not (await log.read_merged("s", (0, 0, 0, 0), rows_max=10, wait_s=0.005)).batch.num_rows
    assert looks == 1
    await log.append("s", events(0, 3))
    assert (await log.read_merged("s", (0, 0, 0, 0), rows_max=10, wait_s=0)).batch.num_rows == 3


async def test_another_log_s_append_wakes_a_reader(open_log: OpenLog, events: Events) -> None:
    reading, writing = open_log(), open_log()
    waiting = asyncio.create_task(reading.read_merged("s", (), rows_max=10, wait_s=60))
    await reading.bounds("s")
    await writing.append("s", events(0, 3))
    async with asyncio.timeout(5):
        assert (await waiting).batch.num_rows == 3


async def test_without_inotify_a_reader_still_hears(
    open_log: OpenLog, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = open_log(), open_log()
    monkeypatch.setattr(reading._wakes, "_libc", object())  # a system whose C library has no inotify
    waiting = asyncio.create_task(reading.read_merged("s", (), rows_max=10, wait_s=60))
    await reading.bounds("s")
    await writing.append("s", events(0, 3))
    async with asyncio.timeout(5):
        assert (await waiting).batch.num_rows == 3


async def test_what_is_acknowledged_is_read_at_once_by_another_log(open_log: OpenLog, events: Events) -> None:
    reading, writing = open_log(), open_log()
    positions: tuple[int, ...] = ()
    for number in range(30):
        piece = await reading.read_merged("s", positions, rows_max=10, wait_s=0)  # remembered as empty
        await writing.append("s", events(number, 1))
        piece = await reading.read_merged("s", positions, rows_max=10, wait_s=0)
        assert piece.batch.num_rows == 1
        positions = piece.positions


async def test_a_touch_between_turn_and_wait_is_not_missed(tmp_path: Path) -> None:
    wakes = Wakes(tmp_path)
    turn = wakes.turn("s")
    wakes.touch("s")
    assert await wakes.changed("s", turn, 5)
    assert not await wakes.changed("s", wakes.turn("s"), 0.01)
    assert (tmp_path / "s").stat().st_size == 0
    wakes.close()


async def test_a_touch_wakes_only_who_waits_for_that_stream(tmp_path: Path) -> None:
    wakes = Wakes(tmp_path)
    one = asyncio.create_task(wakes.changed("one", wakes.turn("one"), 5))
    other = asyncio.create_task(wakes.changed("other", wakes.turn("other"), 0.1))
    await asyncio.sleep(0)
    wakes.touch("one")
    assert await one
    assert not await other
    wakes.close()
