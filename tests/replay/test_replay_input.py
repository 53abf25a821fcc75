"""What people give `headrace replay` and `headrace demo`, and what they are told."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.blueprints.explore import project_files, window_of
from headrace.blueprints.explore_profile import Profile
from headrace.cli import app, demo, replay
from headrace.connectors.file_order import by_time, pace_for
from headrace.connectors.files import FileRows, open_files
from headrace.core.config import parse
from headrace.core.errors import DataError, HeadraceError, NotFound
from headrace.sql.compile import compile_script

replay.register(app)
demo.register(app)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write(tmp_path / "project" / "headrace.toml", "[warehouse]\nenabled = false\n").parent


def refused(project: Path, *arguments: str) -> HeadraceError:
    result = CliRunner().invoke(app, ["replay", *arguments, "--project", str(project)])
    assert isinstance(result.exception, HeadraceError), result.output
    return result.exception


def test_a_missing_column_is_named_with_the_nearest(project: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "unit,cycle,s1\n1,1,2.5\n")
    error = refused(project, str(path), "--device", "unti")
    assert (error.message, error.hint) == ("there is no device column 'unti'", "did you mean 'unit'?")
    assert refused(project, str(path), "--time", "cicle").hint == "did you mean 'cycle'?"


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("empty.csv", "", "file.unreadable"),
        ("header.csv", "a,b\n", "file.empty"),
        ("empty.jsonl", "", "file.empty"),
        ("notes.docx", "x", "file.format"),
    ],
)
def test_a_file_with_nothing_to_send_says_so(project: Path, tmp_path: Path, name: str, text: str, code: str) -> None:
    error = refused(project, str(write(tmp_path / name, text)))
    assert error.code == code
    assert name in error.message
    assert error.hint


def test_a_folder_without_files_and_a_path_that_is_not_there_are_told_apart(project: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert "nothing to replay in" in refused(project, str(tmp_path / "nothing")).message
    assert "there is no file" in refused(project, str(tmp_path / "nowhere.csv")).message


def test_a_file_for_a_project_that_does_not_run_says_how_to_start_it(project: Path, tmp_path: Path) -> None:
    error = refused(project, str(write(tmp_path / "f.csv", "device,x\na,1\n")))
    assert "no gateway runs" in error.message
    assert "headrace up" in error.hint


@pytest.mark.parametrize("speed", ["fast", "0", "-2", "nan", "inf"])
def test_a_speed_that_is_none_is_wrong_use(project: Path, tmp_path: Path, speed: str) -> None:
    path = write(tmp_path / "f.csv", "device,x\na,1\n")
    result = CliRunner().invoke(app, ["replay", str(path), "--speed", speed, "--project", str(project)])
    assert result.exit_code == 2
    assert "--speed" in result.output


def test_a_bad_row_is_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "f.csv", "device,x\na,1\na,2,3\na,4\n")
    (file,) = replay.read(path)
    assert (file.total, file.skipped) == (2, 1)
    assert "f.csv: 1 rows cannot be read and are left out" in capsys.readouterr().err


def test_a_file_without_numbers_makes_no_demo_project(tmp_path: Path) -> None:
    files, _ = open_files(write(tmp_path / "f.csv", "device,state\n" + "a,on\nb,off\n" * 5))
    with pytest.raises(DataError, match="no numeric field that changes"):
        project_files(files, name="f.csv", play_s=60)


def test_one_bad_file_of_a_folder_does_not_keep_the_others(tmp_path: Path) -> None:
    write(tmp_path / "good.csv", "device,x\na,1\n")
    write(tmp_path / "bad.csv", "")
    files, problems = open_files(tmp_path)
    assert [file.path.name for file in files] == ["good.csv"]
    assert len(problems) == 1
    (tmp_path / "good.csv").unlink()
    with pytest.raises(DataError):
        open_files(tmp_path)


def test_files_that_number_their_devices_alike_get_their_names_in_front(tmp_path: Path) -> None:
    for name in ("train.csv", "a/0.csv", "b/0.csv"):
        write(tmp_path / name, "unit,x\n1,1\n2,2\n")
    write(tmp_path / "other.csv", "unit,x\n7,1\n")
    files, _ = open_files(tmp_path)
    assert [file.devices for file in files] == [
        ["a-0-csv-1", "a-0-csv-2"],
        ["b-0-csv-1", "b-0-csv-2"],
        ["7"],
        ["train-1", "train-2"],
    ]


def test_files_of_the_same_name_are_different_devices(tmp_path: Path) -> None:
    for name in ("one/run/0.csv", "two/run/0.csv"):
        write(tmp_path / name, "x\n1\n")
    files, _ = open_files(tmp_path)
    assert [file.devices for file in files] == [["one-run-0-csv"], ["two-run-0-csv"]]


def test_by_time_engines_that_a_file_lists_one_after_the_other_run_side_by_side(tmp_path: Path) -> None:
    rows = [f"{unit},{cycle},{unit * 10 + cycle}" for unit in (1, 2) for cycle in (1, 2, 3)]
    files, _ = open_files(write(tmp_path / "f.csv", "\n".join(["unit,cycle,x", *rows])))
    chunks = list(by_time(files, rows_max=4))
    assert [len(chunk.files) for chunk in chunks] == [4, 2]
    assert [device for chunk in chunks for device in chunk.rows.devices] == ["1", "2"] * 3
    assert [row for chunk in chunks for row in chunk.rows.rows] == [0, 3, 1, 4, 2, 5]


def test_rows_without_a_time_stay_with_the_one_before_them(tmp_path: Path) -> None:
    lines = ["device,ts,x", "a,2025-01-01T00:00:09Z,1", "a,,2", "a,2025-01-01T00:00:01Z,3"]
    files, _ = open_files(write(tmp_path / "f.csv", "\n".join(lines)))
    assert [chunk.rows.rows for chunk in by_time(files, rows_max=9)] == [[2, 0, 1]]


def test_a_pace_shows_the_whole_recording_in_the_time_given_and_shortens_nights(tmp_path: Path) -> None:
    times = [*range(100), *range(1_000_000, 1_000_100)]
    files, _ = open_files(write(tmp_path / "f.csv", "ts,x\n" + "\n".join(f"{t},{t}" for t in times)))
    pace = pace_for(files, play_s=60)
    assert pace is not None
    assert pace.speed == pytest.approx((99 + 20 + 99) / 60)
    assert pace.pause_max_s == pytest.approx(20 / pace.speed)
    assert pace_for(open_files(write(tmp_path / "g.csv", "x\n1\n2\n"))[0], play_s=60) is None


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([f"2025-01-01 00:00:{row:02}" for row in range(60)], "[at[s]]]"),
        ([1_700_000_000 + row for row in range(60)], "DATEADD(second, [at[s]]], '1970-01-01T00:00:00.0000000Z')"),
        ([1_700_000_000.5 + row for row in range(60)], "DATEADD(millisecond, CAST([at[s]]] * 1000 AS bigint), '1970"),
        ([1_700_000_000_000 + row * 1000 for row in range(60)], "DATEADD(millisecond, CAST([at[s]]] AS bigint), '1970"),
        (
            [1_700_000_000_000_000_000 + row * 10**9 for row in range(60)],
            "DATEADD(microsecond, CAST([at[s]]] / 1000 AS",
        ),
        (list(range(60)), "DATEADD(second, [at[s]]], '2025-01-01T00:00:00.0000000Z')"),
    ],
)
def test_the_job_of_a_demo_goes_by_the_rows_own_time(tmp_path: Path, column: list[object], expected: str) -> None:
    rows = [f"{time},{(row * 7) % 13}.5,{row % 2},{row}" for row, time in enumerate(column)]
    files = [FileRows(write(tmp_path / "f.csv", "\n".join(["at[s],temp [K],on,number", *rows])), time_column="at[s]")]
    made = project_files(files, name="f.csv", play_s=60)
    script = made["sql/explore.asaql"]
    assert f"TIMESTAMP BY {expected}" in script
    assert "AVG([temp [K]]]) AS [temp [K]]]" in script
    assert "[on]" not in script  # two values are a state, and what only counts rows is no measurement
    assert "[number]" not in script
    assert "TumblingWindow(second, 5)" in script
    compile_script(script)
    settings = parse(tomllib.loads(made["headrace.toml"]))
    assert settings.jobs["explore"].late_arrival_s == -1
    assert settings.jobs["explore"].out_of_order_s == 2.5


def test_without_times_the_job_of_a_demo_goes_by_arrival(tmp_path: Path) -> None:
    rows = "\n".join(f"{(row * 7) % 13}.5" for row in range(600))
    files, _ = open_files(write(tmp_path / "f.csv", f"temp\n{rows}"))
    made = project_files(files, name='odd "name".csv', play_s=60)
    assert "TIMESTAMP BY" not in made["sql/explore.asaql"]
    assert "TumblingWindow(second, 1)" in made["sql/explore.asaql"]
    compile_script(made["sql/explore.asaql"])
    assert parse(tomllib.loads(made["headrace.toml"])).project.title == 'Replay of odd "name".csv'


def test_a_path_that_is_not_there_has_no_devices(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_files(tmp_path / "none")


@pytest.mark.parametrize(
    ("rows", "devices", "window_s"), [(60, 1, 5), (400, 1, 10), (400, 2, 5), (10_000, 4, 10), (20_631, 100, 5)]
)
def test_windows_are_sized_so_that_a_device_has_enough_of_them(rows: int, devices: int, window_s: int) -> None:
    found = Profile(fields=(("x",),), time_sql="ts", spacing_s=1.0, devices=devices, rows=rows)
    assert window_of(found, play_s=60) == window_s
