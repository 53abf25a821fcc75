"""What a replay remembers, and what it finds in the log when it remembers too little."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.cli.replay_memory import Memory
from headrace.connectors.files import FileRows
from headrace.core.clock import TICKS_PER_S, ManualClock
from headrace.core.identity import message_event_id
from headrace.core.schema import event_batch
from headrace.eventlog.memory import MemoryEventLog


@pytest.fixture
def file(tmp_path: Path) -> FileRows:
    path = tmp_path / "f.csv"
    path.write_text("device,x\n" + "\n".join(f"d{row % 3},{row}" for row in range(100)))
    return FileRows(path)


async def store(log: MemoryEventLog, file: FileRows, memory: Memory, rows: range) -> None:
    (batch,) = file.batches()
    ids = memory.message_ids(batch.message_ids)
    picked = [(batch.devices[row], ids[row], batch.bodies[row]) for row in rows]
    columns = {
        "_event_id": [message_event_id(device, None, id) for device, id, _ in picked],
        "_device": [device for device, _, _ in picked],
        "_body": [body for _, _, body in picked],
    }
    await log.append("telemetry", event_batch(columns))


def test_what_was_noted_and_written_is_known_to_the_next_one(tmp_path: Path, file: FileRows) -> None:
    memory = Memory(tmp_path, file, "telemetry")
    memory.note([0, 5, 99])
    memory.write(7)
    later = Memory(tmp_path, file, "telemetry")
    assert (later.done, later.written) == (3, 7)
    assert later.missing([0, 1, 5, 99]) == [False, True, False, False]
    assert Memory(tmp_path, file, "laboratory").done == 0


def test_a_memory_that_cannot_be_read_counts_as_none(tmp_path: Path, file: FileRows) -> None:
    memory = Memory(tmp_path, file, "telemetry")
    memory.note([1])
    memory.write(7)
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(path.read_bytes()[:20])
    assert Memory(tmp_path, file, "telemetry").done == 0


async def test_rows_that_arrived_before_a_kill_are_found_in_the_log_after_any_time(
    tmp_path: Path, file: FileRows
) -> None:
    clock = ManualClock()
    log = MemoryEventLog(clock, deduplicate_s=600.0)
    memory = Memory(tmp_path, file, "telemetry")
    memory.write(clock.now())
    clock.advance(1)
    await store(log, file, memory, range(20))
    memory.note(range(20))
    memory.write(clock.now())
    clock.advance(1)
    await store(log, file, memory, range(20, 50))  # and then it was killed
    clock.advance(100_000)  # the log itself has forgotten these message ids long ago
    later = Memory(tmp_path, file, "telemetry")
    assert later.done == 20
    assert await later.look_up(log, "telemetry") == 30
    assert later.missing([19, 20, 49, 50]) == [False, False, False, True]


async def test_the_log_is_not_read_for_a_file_that_was_never_sent_or_is_complete(
    tmp_path: Path, file: FileRows
) -> None:
    log = MemoryEventLog(ManualClock())
    fresh = Memory(tmp_path, file, "telemetry")
    await store(log, file, fresh, range(10))
    assert await fresh.look_up(log, "telemetry") == 0
    fresh.note(range(100))
    fresh.write(TICKS_PER_S)
    assert await Memory(tmp_path, file, "telemetry").look_up(log, "telemetry") == 0


async def test_another_run_of_the_same_rows_has_ids_of_its_own(tmp_path: Path, file: FileRows) -> None:
    clock = ManualClock()
    log = MemoryEventLog(clock)
    memory = Memory(tmp_path, file, "telemetry")
    memory.write(clock.now())
    await store(log, file, memory, range(100))
    memory.start_again("1f")
    memory.write(clock.now())
    assert await Memory(tmp_path, file, "telemetry").look_up(log, "telemetry") == 0
    (batch,) = file.batches()
    assert memory.message_ids(batch.message_ids)[0] == f"1f.{batch.message_ids[0]}"
