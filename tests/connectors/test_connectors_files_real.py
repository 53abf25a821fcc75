"""Recorded data sets, read as they lie in the shared folder; skipped where that folder is absent."""

import json
from collections.abc import Iterator

import provided
import pytest

from headrace.connectors.files import FileRows, Rows, find_files
from headrace.core.clock import to_iso

DATA = provided.DATA
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no recorded data sets in {DATA}")


def first(rows: FileRows) -> Rows:
    return next(rows.batches(rows_max=10))


def counted(rows: FileRows) -> Iterator[int]:
    return (len(batch.bodies) for batch in rows.batches())


def test_skab_is_one_device_a_file_with_its_own_clock() -> None:
    rows = FileRows(DATA / "skab/valve1/0.csv.gz")
    got = first(rows)
    assert (rows.devices, rows.time_column, rows.skipped) == (["valve1-0"], "datetime", 0)
    body = json.loads(got.bodies[0])
    assert len(body) == 11
    assert isinstance(body["Volume Flow RateRMS"], float)
    assert to_iso(got.times[0] or 0)[:19] == body["datetime"].replace(" ", "T")
    assert sum(counted(rows)) == rows.total == 1147


def test_env_telemetry_is_three_devices_with_nested_data() -> None:
    rows = FileRows(DATA / "env_telemetry/messages.jsonl.gz")
    assert (rows.device_column, rows.time_column, rows.total) == ("device_id", "ts", 37_723)
    assert sorted(rows.devices) == ["0e:9c:00:4c:1c:51", "5e:44:3b:f3:79:c8", "f3:6b:f4:34:c0:17"]
    got = first(rows)
    assert to_iso(got.times[0] or 0).startswith("2020-07-13T00:00:24.50")
    assert isinstance(json.loads(got.bodies[0])["data"]["temp"], float)


def test_cmapss_is_a_device_an_engine_a_second_a_cycle() -> None:
    rows = FileRows(DATA / "cmapss/train_FD001.csv.gz", device_column="unit", time_column="cycle")
    assert (len(rows.devices), rows.total) == (100, 20_631)
    got = first(rows)
    assert to_iso(got.times[2] or 0) == "2025-01-01T00:00:03.0000000Z"
    assert json.loads(got.bodies[2])["cycle"] == 3


@pytest.mark.parametrize("name", ["skab", "cmapss", "bidmc/numerics_1hz.csv.gz", "nab/data/realTraffic"])
def test_every_row_of_a_set_is_read(name: str) -> None:
    for path in find_files(DATA / name)[:3]:
        rows = FileRows(path)
        assert sum(counted(rows)) == rows.total
        assert rows.skipped == 0
