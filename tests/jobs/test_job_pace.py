"""How often a job writes its state: as often as set, but never most of the time."""

from __future__ import annotations

from typing import Any

import pytest
from job_plant import Plant

from headrace.eventlog.journal import EpochJournal


@pytest.mark.parametrize(("takes_s", "written"), [(0.0, 20), (0.5, 2)])
async def test_state_that_takes_long_to_write_is_written_less_often(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, takes_s: float, written: int
) -> None:
    count = 0
    checkpoint = EpochJournal.checkpoint

    def slow(journal: EpochJournal, *args: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        plant.clock.advance(takes_s)
        checkpoint(journal, *args, **options)

    runner = plant.runner(checkpoint_s=1.0)
    await runner.start()
    monkeypatch.setattr(EpochJournal, "checkpoint", slow)
    for second in range(20):
        plant.clock.advance(1.0)
        await plant.log.append("telemetry", plant.readings([float(second)], first=second))
        await runner.step(wait_s=0.0)
    await runner.close()
    assert count == written
