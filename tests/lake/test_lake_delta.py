"""Delta tables as a lake: what only files on a disk can go through."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from headrace.core.clock import ManualClock
from headrace.core.errors import Unavailable, UserError
from headrace.core.schema import event_batch
from headrace.lake import layout, marks
from headrace.lake.delta import DeltaLake
from headrace.wire.payload import flatten

TABLE = "raw.telemetry"


@pytest.fixture
def lake(tmp_path: Path) -> DeltaLake:
    return DeltaLake(tmp_path / "lake", ManualClock())


def rows(first: int, last: int) -> pa.Table:
    numbers = list(range(first, last))
    return pa.table({"_event_id": [f"e{n}" for n in numbers], "_partition": pa.array([0] * len(numbers), pa.int32())})


def test_epochs_and_properties_survive_compaction_checkpoint_and_clean_up_of_the_log(
    lake: DeltaLake, tmp_path: Path
) -> None:
    positions = "[" + ", ".join(str(10**15 + n) for n in range(16)) + "]"
    lake.append(TABLE, rows(0, 1), producer="p", epoch=0, properties={"positions": positions})
    for epoch in range(1, 6):
        lake.append(TABLE, rows(epoch, epoch + 1), producer="other", epoch=epoch, properties={"positions": "[1]"})
    lake.compact(TABLE, retention_h=0)
    folder = tmp_path / "lake" / "raw" / "telemetry"
    table = DeltaTable(folder)
    table.alter.set_table_properties({"delta.logRetentionDuration": "interval 0 seconds"})
    table.create_checkpoint()
    for entry in (folder / "_delta_log").iterdir():
        os.utime(entry, (1, 1))
    table.cleanup_metadata()
    assert len(list((folder / "_delta_log").glob("*.json"))) == 1, "the entry of the append is gone"
    assert lake.last_properties(TABLE, "p") == {"positions": positions}
    assert lake.last_properties(TABLE, "other") == {"positions": "[1]"}
    assert (lake.last_epoch(TABLE, "p"), lake.last_epoch(TABLE, "other")) == (0, 5)
    assert not lake.append(TABLE, rows(0, 1), producer="p", epoch=0)


def test_shorter_properties_do_not_show_the_end_of_longer_ones(lake: DeltaLake) -> None:
    lake.append(TABLE, rows(0, 1), producer="p", epoch=0, properties={"text": "x" * 500})
    lake.append(TABLE, rows(1, 2), producer="p", epoch=1)
    assert lake.last_properties(TABLE, "p") == {}
    lake.append(TABLE, rows(2, 3), producer="p", epoch=2, properties={"text": "\0"})
    assert lake.last_properties(TABLE, "p") == {"text": "\0"}


def test_properties_beyond_the_bound_are_refused(lake: DeltaLake) -> None:
    with pytest.raises(UserError, match="at most 2,048"):
        lake.append(TABLE, rows(0, 1), producer="p", epoch=0, properties={"text": "x" * marks.BYTES_MAX})


def test_two_processes_that_bring_one_epoch_write_it_once(lake: DeltaLake, tmp_path: Path) -> None:
    lake.append(TABLE, rows(0, 1), producer="p", epoch=0)
    start, answers = threading.Barrier(4), []

    def bring() -> None:
        mine = DeltaLake(tmp_path / "lake", ManualClock())
        start.wait(10)
        answers.append(mine.append(TABLE, rows(1, 3), producer="p", epoch=1))

    threads = [threading.Thread(target=bring) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [False, False, False, True]
    assert lake.counts(TABLE) == {("telemetry", 0): 3}


def test_compaction_while_rows_arrive_loses_none_and_doubles_none(lake: DeltaLake, tmp_path: Path) -> None:
    for epoch in range(10):
        lake.append(TABLE, rows(epoch, epoch + 1), producer="p", epoch=epoch)
    problems: list[BaseException] = []

    def arrive() -> None:
        mine = DeltaLake(tmp_path / "lake", ManualClock())
        try:
            for epoch in range(10, 40):
                mine.append(TABLE, rows(epoch, epoch + 1), producer="p", epoch=epoch)
        except BaseException as exc:
            problems.append(exc)

    thread = threading.Thread(target=arrive)
    thread.start()
    while thread.is_alive():
        lake.compact(TABLE)
    thread.join()
    assert problems == []
    assert sorted(lake.scan(TABLE)["_event_id"].to_pylist()) == sorted(f"e{n}" for n in range(40))


def test_replaced_files_are_deleted_when_their_time_is_over(lake: DeltaLake, tmp_path: Path) -> None:
    for epoch in range(5):
        lake.append(TABLE, rows(epoch, epoch + 1), producer="p", epoch=epoch)
    folder = tmp_path / "lake" / "raw" / "telemetry"
    lake.compact(TABLE)
    assert len(list(folder.glob("*.parquet"))) == 6, "a reader may still hold the five"
    lake.compact(TABLE, retention_h=0)
    assert len(list(folder.glob("*.parquet"))) == 1
    assert lake.counts(TABLE) == {("telemetry", 0): 5}


def test_counts_see_a_row_that_was_deleted_behind_our_back(lake: DeltaLake, tmp_path: Path) -> None:
    lake.append(TABLE, rows(0, 5), producer="p", epoch=0)
    DeltaTable(tmp_path / "lake" / "raw" / "telemetry").delete("_event_id = 'e3'")
    assert lake.counts(TABLE) == {("telemetry", 0): 4}


def test_flattened_batches_of_any_types_always_fit(lake: DeltaLake) -> None:
    bodies = [
        b'{"a b": 1, "x": {"y": true}}',
        b'{"a b": "warm", "x": 3, "New;{}": "n"}',
        b'{"A B": 2, "x.y": "no"}',
        b"{",
    ]
    for epoch, body in enumerate(bodies):
        batch = event_batch({"_event_id": [f"e{epoch}"], "_device": ["d"], "_body": [body]})
        known = lake.schema(TABLE) if epoch else None
        assert lake.append(TABLE, flatten(batch, schema=known), producer="p", epoch=epoch)
    found = lake.scan(TABLE).sort_by("_event_id")
    assert found["a b"].to_pylist() == [1.0, None, 2.0, None]
    assert found["x.y"].to_pylist() == [True, None, None, None]
    assert found["_rescued"].to_pylist() == [None, '{"a b": "warm"}', '{"x.y": "no"}', None]
    assert found["_error"].null_count == 3


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("a file where the lake should be")
    with pytest.raises(Unavailable) as caught:
        DeltaLake(tmp_path / "lake", ManualClock()).append(TABLE, rows(0, 1), producer="p", epoch=0)
    assert "writable" in caught.value.hint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a disk of a given size takes root")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"mount: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_unavailable_and_the_rows_go_in_once_there_is_room(small_disk: Path) -> None:
    lake = DeltaLake(small_disk / "lake", ManualClock())
    lake.append(TABLE, rows(0, 10), producer="p", epoch=0)
    free = os.statvfs(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (free.f_bavail * free.f_bsize))
    with pytest.raises(Unavailable) as caught:
        lake.append(TABLE, rows(10, 20), producer="p", epoch=1)
    assert "No space left" in caught.value.message
    assert lake.counts(TABLE) == {("telemetry", 0): 10}
    ballast.unlink()
    assert lake.append(TABLE, rows(10, 20), producer="p", epoch=1)
    assert lake.counts(TABLE) == {("telemetry", 0): 20}


def test_streams_have_tables_by_layer() -> None:
    assert layout.table_of("telemetry") == "raw.telemetry"
    assert layout.table_of("scored") == "served.scored"
    assert layout.stream_of("served.scored") == "scored"


@pytest.mark.parametrize("name", ["telemetry", "raw.", "raw.a.b", "raw.../x", ".x", "raw.a b"])
def test_names_that_would_leave_the_lake_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="not a lake table"):
        layout.parse_table(name)


def test_a_folder_name_that_delta_cannot_handle_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"refuse '\['"):
        DeltaLake(tmp_path / "a [b]", ManualClock())


def test_a_folder_name_with_spaces_and_quotes_works(tmp_path: Path) -> None:
    lake = DeltaLake(tmp_path / "a lake's #1? \u00e4", ManualClock())
    lake.append(TABLE, rows(0, 2), producer="p", epoch=0)
    snapshot = lake.snapshot(TABLE, "p")
    assert lake.counts(TABLE) == {("telemetry", 0): 2}
    assert [Path(name).exists() for name in snapshot.files or ()] == [True]
