"""The write-ahead log stays small, however small the appends are: a lone event dirties whole pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.core.clock import ManualClock
from headrace.core.schema import event_batch
from headrace.eventlog import checkpoint
from headrace.eventlog.sqlite import SqliteEventLog


async def test_single_events_do_not_let_the_write_ahead_log_grow_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "START_BYTES", 256 << 10)
    log = SqliteEventLog(tmp_path, ManualClock())
    wal = tmp_path / "streams" / "telemetry.sqlite-wal"
    sizes: list[int] = []
    for number in range(300):
        event = {"_event_id": [f"m{number:032x}"], "_device": ["d"], "_body": [b"1" * 200]}
        await log.append("telemetry", event_batch(event))
        sizes.append(wal.stat().st_size)
    await log.close()
    # 300 commits write about 3.5 MB; what is moved is written over.
    assert max(sizes) < 1_500_000
