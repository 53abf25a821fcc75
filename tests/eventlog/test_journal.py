"""The epoch journal survives what happens between an epoch's beginning and its checkpoint."""

import sqlite3
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.core.errors import Unavailable
from headrace.eventlog.journal import Checkpoint, Cut, EpochJournal, positions_after


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journals" / "job.sqlite"


def test_a_new_journal_knows_nothing(path: Path) -> None:
    journal = EpochJournal(path)
    assert journal.last_checkpoint() is None
    assert journal.pending() == []
    journal.close()


def test_a_begun_epoch_is_there_for_the_next_process(path: Path) -> None:
    first = EpochJournal(path)
    first.begin(1, {"telemetry": (3, 0)}, {"advance": {"telemetry": 70}})
    # No close: the first process is killed.
    second = EpochJournal(path)
    assert second.pending() == [Cut(1, {"telemetry": (3, 0)}, {"advance": {"telemetry": 70}})]
    second.close()
    first.close()


def test_epochs_after_the_checkpoint_come_back_in_order(path: Path) -> None:
    journal = EpochJournal(path)
    for epoch in (1, 2, 3, 10):
        journal.begin(epoch, {"a": (epoch,)})
    journal.checkpoint(2, {"a": (2,)}, b"state")
    assert [cut.epoch for cut in journal.pending()] == [3, 10]
    assert journal.last_checkpoint() == Checkpoint(2, {"a": (2,)}, {}, b"state")
    journal.close()


def test_an_epoch_begun_again_has_the_new_cut(path: Path) -> None:
    journal = EpochJournal(path)
    journal.begin(1, {"a": (100,)})
    journal.begin(1, {"a": (50,)})
    assert journal.pending() == [Cut(1, {"a": (50,)}, {})]
    journal.close()


def test_a_checkpoint_deletes_the_rows_before_it(path: Path) -> None:
    journal = EpochJournal(path)
    for epoch in range(1, 101):
        journal.begin(epoch, {"a": (epoch,)})
        journal.checkpoint(epoch, {"a": (epoch,)}, bytes(1000))
    journal.close()
    rows = sqlite3.connect(path)
    assert rows.execute("SELECT (SELECT count(*) FROM epochs), (SELECT count(*) FROM checkpoint)").fetchone() == (0, 1)
    rows.close()


def test_a_file_that_is_no_database_is_a_clear_error(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is not a database, not at all" * 200)
    with pytest.raises(Unavailable, match=r"job\.sqlite"):
        EpochJournal(path)


def test_positions_after_a_batch_are_the_next_offsets_of_the_partitions_it_touched() -> None:
    batch = pa.record_batch({"_partition": pa.array([2, 0, 2], pa.int32()), "_offset": pa.array([7, 0, 8], pa.int64())})
    assert positions_after((0, 5, 7), batch) == (1, 5, 9)
