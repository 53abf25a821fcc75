import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.connectors.file_columns import device_ids
from headrace.connectors.files import FileRows, Rows, find_files
from headrace.core.clock import TICKS_PER_S, from_iso
from headrace.core.errors import DataError, NotFound, UserError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(rows: FileRows, *, rows_max: int = 5000) -> Rows:
    """All batches as one."""
    joined = Rows([], [], [], [], [])
    for batch in rows.batches(rows_max=rows_max):
        assert 0 < len(batch.rows) <= rows_max
        for whole, part in zip(joined, batch, strict=True):
            whole.extend(part)  # type: ignore[arg-type]
    return joined


def bodies(rows: FileRows) -> list[Any]:
    return [json.loads(body) for body in read(rows).bodies]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_csv_of_any_separator_becomes_objects(tmp_path: Path, separator: str, suffix: str) -> None:
    lines = ["device,ts,temp,on,name", "a,2025-01-01 00:00:01,1.5,true,x", "b,2025-01-01T00:00:02Z,2,false,"]
    rows = FileRows(write(tmp_path / f"f{suffix}", "\n".join(lines).replace(",", separator)))
    assert (rows.total, rows.device_column, rows.time_column, rows.devices) == (2, "device", "ts", ["a", "b"])
    assert bodies(rows) == [
        {"device": "a", "ts": "2025-01-01 00:00:01", "temp": 1.5, "on": True, "name": "x"},
        {"device": "b", "ts": "2025-01-01T00:00:02Z", "temp": 2.0, "on": False},
    ]
    first = from_iso("2025-01-01T00:00:01Z")
    assert read(rows).times == [first, first + TICKS_PER_S]


def test_a_column_is_one_kind_for_the_whole_file(tmp_path: Path) -> None:
    rows = FileRows(write(tmp_path / "f.csv", "a,b,c,zip,big\n1,1,1,007,1\n2,2.5,x,123,9007199254740993\n"))
    assert bodies(rows) == [
        {"a": 1, "b": 1.0, "c": "1", "zip": "007", "big": 1},
        {"a": 2, "b": 2.5, "c": "x", "zip": "123", "big": 9007199254740993},
    ]


def test_nan_and_empty_cells_are_absent(tmp_path: Path) -> None:
    rows = FileRows(write(tmp_path / "f.csv", "x,y,z\n1,NaN,a\n,inf,NA\n3,2.5,\n"))
    assert bodies(rows) == [{"x": 1, "z": "a"}, {"z": "NA"}, {"x": 3, "y": 2.5}]


def test_rows_with_too_many_cells_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = FileRows(write(tmp_path / "f.csv", "x,y\n1,2\n1,2,3\n5,6\n"))
    assert (rows.total, rows.skipped) == (2, 1)
    assert bodies(rows) == [{"x": 1, "y": 2}, {"x": 5, "y": 6}]


def test_json_lines_are_sent_as_they_stand(tmp_path: Path) -> None:
    line = '{"data": {"t": 1.50, "list": [1,{"x":null}]}, "device_id":"0e:9c", "ts":1594598424.5023336}'
    rows = FileRows(write(tmp_path / "f.jsonl.gz", f"{line}\n\n{line}"))
    got = read(rows)
    assert got.bodies == [line.encode()] * 2
    assert (got.devices, got.rows) == (["0e:9c"] * 2, [0, 2])
    assert got.times == [15_945_984_245_023_336] * 2


def test_lines_that_are_no_object_are_skipped_and_nan_is_left_out(tmp_path: Path) -> None:
    text = '{"x": NaN, "n": {"y": Infinity, "z": [1, NaN]}}\n{"x": \n[1]\n"text"\n{"x": 2}\n'
    rows = FileRows(write(tmp_path / "f.jsonl", text))
    assert (rows.total, rows.skipped) == (2, 3)
    assert bodies(rows) == [{"n": {"z": [1, None]}}, {"x": 2}]
    assert read(rows).rows == [0, 4]


def test_parquet_keeps_nested_values_and_turns_times_to_text(tmp_path: Path) -> None:
    moment = datetime.datetime(2025, 1, 1, 0, 0, 1, 500_000)
    table = pa.table(
        {
            "machineId": pa.array(["m1", "m1", None]),
            "time": pa.array([moment, moment, None], pa.timestamp("ns")),
            "values": pa.array([{"a": 1, "b": [1, 2]}] * 3),
            "t": pa.array([1.5, float("nan"), None]),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "f.parquet")
    rows = FileRows(tmp_path / "f.parquet")
    got = read(rows, rows_max=2)
    assert got.devices == ["m1", "m1", f"{tmp_path.name}-f".replace("[", "-").replace("]", "-")]
    assert got.times == [from_iso("2025-01-01T00:00:01.5Z")] * 2 + [None]
    assert json.loads(got.bodies[0]) == {
        "machineId": "m1",
        "time": "2025-01-01T00:00:01.500000",
        "values": {"a": 1, "b": [1, 2]},
        "t": 1.5,
    }
    assert json.loads(got.bodies[2]) == {"values": {"a": 1, "b": [1, 2]}}


@pytest.mark.parametrize(
    ("value", "time"),
    [
        ("1735689601", "2025-01-01T00:00:01Z"),
        ("1735689601.5", "2025-01-01T00:00:01.5Z"),
        ("1735689601500", "2025-01-01T00:00:01.5Z"),
        ("1735689601500000", "2025-01-01T00:00:01.5Z"),
        ("1735689601500000000", "2025-01-01T00:00:01.5Z"),
        ("2025-01-01", "2025-01-01T00:00:00Z"),
        ("2025-01-01 00:00:01", "2025-01-01T00:00:01Z"),
        ("2025-01-01T01:00:01.1234567+01:00", "2025-01-01T00:00:01.1234567Z"),
        ("3", "2025-01-01T00:00:03Z"),
        ("0.25", "2025-01-01T00:00:00.25Z"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_times_are_understood(tmp_path: Path, value: str, time: str, form: str) -> None:
    number = value.replace(".", "").isdigit()
    text = f"ts,x\n{value},1\n" if form == "csv" else f'{{"ts": {value if number else json.dumps(value)}}}'
    assert read(FileRows(write(tmp_path / f"f.{form}", text))).times == [from_iso(time)]


def test_a_small_count_is_seconds_after_the_start(tmp_path: Path) -> None:
    start = from_iso("2026-05-01T00:00:00Z")
    rows = FileRows(write(tmp_path / "f.csv", "unit,cycle,s1\n1,1,5\n1,2,6\n2,1,7\n"), start=start)
    assert read(rows).times == [start + TICKS_PER_S, start + 2 * TICKS_PER_S, start + TICKS_PER_S]
    assert read(rows).devices == ["1", "1", "2"]


def test_a_file_without_a_device_column_is_one_device_named_after_it(tmp_path: Path) -> None:
    rows = FileRows(write(tmp_path / "valve1" / "0.csv.gz", "datetime;Pressure\n2025-01-01 00:00:00;1\n"))
    assert rows.devices == ["valve1-0"]
    assert FileRows(tmp_path / "valve1" / "0.csv.gz", device="bench").devices == ["bench"]


def test_a_prefix_tells_two_files_devices_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "unit,x\n1,1\n2,1\n,1\n")
    rows = FileRows(path, prefix="FD001-")
    assert rows.devices[:2] == ["FD001-1", "FD001-2"]
    assert read(rows).devices == rows.devices


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "unit_no,when,x\na,b,1\n")
    with pytest.raises(UserError, match=r"'unit_nr'.*did you mean 'unit_no'"):
        FileRows(path, device_column="unit_nr")
    with pytest.raises(UserError, match="the columns are unit_no, when, x"):
        FileRows(path, time_column="zzz")
    with pytest.raises(UserError, match="holds no times: 'b'"):
        FileRows(path, time_column="when")


def test_a_column_that_only_looks_like_time_is_not_used(tmp_path: Path) -> None:
    rows = FileRows(write(tmp_path / "f.csv", "time,x\nmorning,1\n"))
    assert (rows.time_column, read(rows).times) == ("", [None])


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        FileRows(tmp_path / "none.csv")
    with pytest.raises(UserError, match=r"\.csv, \.jsonl"):
        FileRows(write(tmp_path / "f.xls", "x"))
    with pytest.raises(DataError, match="no rows"):
        FileRows(write(tmp_path / "empty.csv", "a,b\n"))
    with pytest.raises(DataError, match="cannot be read"):
        FileRows(write(tmp_path / "nothing.csv", ""))
    with pytest.raises(DataError, match="twice"):
        FileRows(write(tmp_path / "twice.csv", "a,a\n1,2\n"))
    with pytest.raises(DataError, match="no JSON object"):
        FileRows(write(tmp_path / "f.jsonl", "nothing"))
    for name in ("cut.csv.gz", "cut.jsonl.gz"):
        whole = gzip.compress(b'{"x": 1}\n' * 10_000)
        (tmp_path / name).write_bytes(whole[:-20])
        with pytest.raises(DataError, match="cannot be read"):
            FileRows(tmp_path / name)
    (tmp_path / "f.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read"):
        FileRows(tmp_path / "f.parquet")


def test_message_ids_are_unique_stable_and_independent_of_place_and_batch(tmp_path: Path) -> None:
    text = "device,x\n" + "".join(f"d{n % 3},{n}\n" for n in range(1000))
    first = read(FileRows(write(tmp_path / "a" / "f.csv", text)))
    second = read(FileRows(write(tmp_path / "b" / "g.csv", text)), rows_max=7)
    other = read(FileRows(write(tmp_path / "c.csv", text.replace("d0,0\n", "d0,1\n"))))
    assert first == second
    assert len(set(first.message_ids)) == 1000
    assert not set(first.message_ids) & set(other.message_ids)


def test_message_ids_stay_within_the_hubs_128_characters(tmp_path: Path) -> None:
    rows = FileRows(write(tmp_path / "f.csv", f"device,x\n{'a' * 128},1\n{'b' * 128},1\n"))
    ids = read(rows).message_ids
    assert max(map(len, ids)) <= 128
    assert len(set(ids)) == 2


def test_reading_goes_on_after_a_row(tmp_path: Path) -> None:
    rows = FileRows(write(tmp_path / "f.csv", "x\n" + "\n".join(map(str, range(25_000)))))
    rest = [number for batch in rows.batches(rows_max=1000, after=23_456) for number in batch.rows]
    assert rest == list(range(23_457, 25_000))


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=200), max_size=20))
def test_different_names_give_different_legal_ids(names: list[str]) -> None:
    ids = device_ids(names)
    assert len(set(ids.values())) == len(set(names))
    assert all(1 <= len(id) <= 128 and id.isascii() and not set(id) & set("/+# \0") for id in ids.values())


def test_a_folder_is_searched_for_files(tmp_path: Path) -> None:
    for name in ("b/2.csv", "a/1.jsonl.gz", "README.md", "c.json"):
        write(tmp_path / name, "x")
    assert [path.name for path in find_files(tmp_path)] == ["1.jsonl.gz", "2.csv"]
    with pytest.raises(NotFound):
        find_files(tmp_path / "none")
