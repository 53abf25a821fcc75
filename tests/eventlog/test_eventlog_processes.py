"""Several processes on one log, and processes that are killed."""

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

from headrace.core.clock import SystemClock
from headrace.eventlog.sqlite import SqliteEventLog

WORKER = Path(__file__).with_name("worker.py")
ROWS = 20  # of a worker's batch


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def stored_bodies(folder: Path) -> list[str]:
    log = SqliteEventLog(folder, SystemClock())
    bodies: list[str] = []
    positions: tuple[int, ...] = ()
    while (piece := await log.read_merged("s", positions, rows_max=1000, wait_s=0)).batch.num_rows:
        bodies += [body.decode() for body in piece.batch.column("_body").to_pylist()]
        positions = piece.positions
    await log.close()
    return bodies


async def test_what_two_processes_write_two_others_read_alike_and_whole(tmp_path: Path) -> None:
    batches = 25
    total = 2 * batches * ROWS
    readers = [start("read", tmp_path, total) for _ in range(2)]
    writers = [start("write", tmp_path, name, 0, batches) for name in ("a", "b")]
    outcomes = await asyncio.gather(*(asyncio.to_thread(one.communicate, timeout=60) for one in writers + readers))
    assert [one.returncode for one in writers + readers] == [0] * 4
    first, second = (out.split() for out, _ in outcomes[2:])
    assert first == second == await stored_bodies(tmp_path)
    assert set(first) == {f"{name}/{number}" for name in "ab" for number in range(batches * ROWS)}
    assert len(first) == total


async def test_a_killed_writer_loses_nothing_acknowledged_and_its_resends_are_stored_once(tmp_path: Path) -> None:
    resume = 0
    for kill_after in (7, 40):
        writer = start("write", tmp_path, "a", resume, 100_000)
        assert writer.stdout is not None
        for _ in range(kill_after):
            resume = max(resume, int(writer.stdout.readline()) - 3)  # others of its appends may not be answered yet
        writer.kill()  # in the middle of an append: it never pauses
        writer.communicate(timeout=20)
    acknowledged = (tmp_path / "a.acknowledged").read_text().split()
    stored = Counter(await stored_bodies(tmp_path))
    assert len(set(acknowledged)) >= (7 + 40 - 8) * ROWS
    assert set(acknowledged) <= stored.keys()
    assert set(stored.values()) == {1}
