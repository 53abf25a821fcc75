"""The epoch journal survives what happens between an epoch's beginning and its checkpoint."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.core.errors import Unavailable
from headrace.eventlog.journal import Checkpoint, Cut, EpochJournal, StateDamaged, positions_after


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


def written(path: Path, *deltas: bytes) -> EpochJournal:
    journal = EpochJournal(path)
    journal.checkpoint(1, {"a": (1,)}, b"whole" * 100)
    for epoch, delta in enumerate(deltas, 2):
        journal.checkpoint(epoch, {"a": (epoch,)}, delta, delta=True)
    return journal


def test_deltas_come_back_in_order_after_the_whole_state(path: Path) -> None:
    written(path, b"one", b"two").close()
    journal = EpochJournal(path)
    assert journal.last_checkpoint() == Checkpoint(3, {"a": (3,)}, {}, b"whole" * 100, (b"one", b"two"))
    journal.checkpoint(4, {"a": (4,)}, b"anew")
    assert journal.last_checkpoint() == Checkpoint(4, {"a": (4,)}, {}, b"anew")
    journal.close()


def test_a_chain_of_deltas_is_bounded_in_number_and_in_bytes(path: Path) -> None:
    journal = EpochJournal(path)
    assert not journal.takes_delta()
    journal.checkpoint(1, {}, bytes(1000))
    deltas = 0
    while journal.takes_delta():
        journal.checkpoint(1, {}, b"x", delta=True)
        deltas += 1
    assert deltas == 16
    journal.checkpoint(1, {}, bytes(1000))
    journal.checkpoint(1, {}, bytes(600), delta=True)
    assert journal.takes_delta()
    journal.checkpoint(1, {}, bytes(600), delta=True)
    assert not journal.takes_delta()
    journal.close()


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM parts WHERE number = 0",
        "DELETE FROM parts WHERE number = 1",
        "DELETE FROM parts WHERE number = 2",
        "UPDATE parts SET state = x'00' WHERE number = 1",
        "UPDATE parts SET state = x'6f6e65' WHERE number = 2",
        "DELETE FROM parts",
    ],
)
def test_a_part_that_is_missing_or_damaged_is_an_error_never_a_state(path: Path, damage: str) -> None:
    written(path, b"one", b"two").close()
    with closing(sqlite3.connect(path)) as rows:
        rows.execute(damage)
        rows.commit()
    journal = EpochJournal(path)
    with pytest.raises(StateDamaged, match="damaged"):
        journal.last_checkpoint()
    journal.close()


def test_a_checkpoint_that_fails_half_way_leaves_the_one_before(path: Path) -> None:
    journal = written(path, b"one")
    with pytest.raises(TypeError):
        journal.checkpoint(3, {"a": (3,)}, b"two", {"no json": object()}, delta=True)
    with closing(sqlite3.connect(path)) as rows:
        rows.execute("CREATE TRIGGER full BEFORE DELETE ON epochs BEGIN SELECT raise(ABORT, 'the disk is full'); END")
        rows.commit()
    journal.begin(2, {"a": (2,)})
    with pytest.raises(Unavailable, match="the disk is full"):  # after the part was written
        journal.checkpoint(3, {"a": (3,)}, b"two", delta=True)
    assert journal.last_checkpoint() == Checkpoint(2, {"a": (2,)}, {}, b"whole" * 100, (b"one",))
    journal.close()


def test_a_file_from_before_states_had_parts_is_read(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as rows:
        rows.execute(
            "CREATE TABLE checkpoint (only INTEGER PRIMARY KEY CHECK (only = 1), epoch INTEGER NOT NULL,"
            " positions TEXT NOT NULL, extra TEXT NOT NULL, state BLOB NOT NULL)"
        )
        rows.execute("INSERT INTO checkpoint VALUES (1, 7, '{\"a\":[3]}', '{}', x'6f6c64')")
        rows.commit()
    journal = EpochJournal(path)
    assert journal.last_checkpoint() == Checkpoint(7, {"a": (3,)}, {}, b"old")
    assert not journal.takes_delta()
    journal.checkpoint(8, {"a": (4,)}, b"new")
    assert journal.last_checkpoint() == Checkpoint(8, {"a": (4,)}, {}, b"new")
    journal.close()
