"""`headrace replay` against a running project: whatever is killed, every row is stored once."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from replay_plant import Plant, until

ROWS = 1800
PACE = "60"  # three devices, a row each a second: 180 rows a second, 10 seconds for all


def recording(folder: Path, name: str, rows: int = ROWS, *, salt: int = 0) -> Path:
    lines = [f"{name}-{row % 3},{row // 3},{row * 0.5 + salt}" for row in range(rows)]
    path = folder / f"{name}.csv"
    path.write_text("\n".join(["device,ts,value", *lines]))
    return path


def stored(plant: Plant, name: str, stream: str = "telemetry") -> tuple[int, int]:
    (row,) = plant.rows(
        f"SELECT count(*) AS n, count(DISTINCT _event_id) AS ids FROM {stream} WHERE _device LIKE '{name}-%'"
    )
    return row["n"], row["ids"]


def test_a_replay_stopped_with_ctrl_c_goes_on_where_it_was(plant: Plant, tmp_path: Path) -> None:
    path = recording(tmp_path, "stopped")
    process = plant.start("replay", str(path), "--speed", PACE)
    until(lambda: plant.remembered(path) > 0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    assert "the same command goes on from here" in out
    before, _ = stored(plant, "stopped")
    assert 0 < before < ROWS
    said = plant.run("replay", str(path))
    assert f"{before:,} of {ROWS:,} rows" in said
    assert f"{ROWS - before:,} rows" in said
    assert stored(plant, "stopped") == (ROWS, ROWS)
    assert "nothing to send" in plant.run("replay", str(path))
    assert stored(plant, "stopped") == (ROWS, ROWS)


def test_a_replay_killed_in_the_middle_stores_every_row_once(plant: Plant, tmp_path: Path) -> None:
    path = recording(tmp_path, "killed")
    process = plant.start("replay", str(path), "--speed", PACE)
    until(lambda: plant.remembered(path) > 0)
    process.kill()
    process.communicate(timeout=30)
    assert 0 < stored(plant, "killed")[0] < ROWS
    plant.run("replay", str(path))
    assert stored(plant, "killed") == (ROWS, ROWS)


def test_a_gateway_killed_in_the_middle_costs_no_row_and_doubles_none(plant: Plant, tmp_path: Path) -> None:
    path = recording(tmp_path, "survivor")
    process = plant.start("replay", str(path), "--speed", PACE)
    until(lambda: plant.remembered(path) > 0)
    plant.kill("gateway")
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, out + err
    assert f"{ROWS:,} rows" in out
    assert stored(plant, "survivor") == (ROWS, ROWS)


def test_again_sends_the_same_rows_as_new_events(plant: Plant, tmp_path: Path) -> None:
    path = recording(tmp_path, "twice", rows=30)
    plant.run("replay", str(path))
    plant.run("replay", str(path), "--again")
    assert stored(plant, "twice") == (60, 60)
    assert "nothing to send" in plant.run("replay", str(path))


def test_a_folder_is_replayed_file_by_file_and_clashing_numbers_get_their_files_name(
    plant: Plant, tmp_path: Path
) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("unit,cycle,s1\n" + "\n".join(f"{1 + n % 2},{n},{n}" for n in range(10)))
    (tmp_path / "empty.csv").write_text("")
    said = plant.run("replay", str(tmp_path))
    assert "left out" in said
    assert "empty.csv" in said
    rows = plant.rows(
        "SELECT _device AS d, count(*) AS n FROM telemetry WHERE _device LIKE 't%-_' GROUP BY 1 ORDER BY 1"
    )
    found = {row["d"]: row["n"] for row in rows if row["d"].startswith(("train-", "test-"))}
    assert found == {"test-1": 5, "test-2": 5, "train-1": 5, "train-2": 5}


def test_rows_go_to_another_stream_that_is_open_to_devices(plant: Plant, tmp_path: Path) -> None:
    path = recording(tmp_path, "probe", rows=50)
    plant.run("replay", str(path), "--stream", "laboratory")
    assert stored(plant, "probe", "laboratory") == (50, 50)
    assert stored(plant, "probe") == (0, 0)


def test_a_stream_that_the_running_gateway_does_not_know_yet_is_told_before_more_is_sent(
    plant: Plant, tmp_path: Path
) -> None:
    path = recording(tmp_path, "eager", rows=20)
    toml = plant.folder / "headrace.toml"
    before = toml.read_text()
    toml.write_text(before.replace("[streams.cellar]", "[streams.cellar]\ndevices = true"))
    try:
        said = plant.run("replay", str(path), "--stream", "cellar", code=1)
    finally:
        toml.write_text(before)
    assert "replay.stream" in said
    assert "headrace down" in said


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        ("laboratry", ["did you mean 'laboratory'?", "[streams.laboratry] with devices = true"]),
        ("cellar", ["devices may not send to stream 'cellar'", "[streams.cellar] with devices = true"]),
    ],
)
def test_a_stream_that_is_closed_is_refused_before_anything_is_sent(
    plant: Plant, tmp_path: Path, stream: str, words: list[str]
) -> None:
    path = recording(tmp_path, "never", rows=10)
    said = " ".join(plant.run("replay", str(path), "--stream", stream, code=1).split())
    assert all(word in said for word in words), said
