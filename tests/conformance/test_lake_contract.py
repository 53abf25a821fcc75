"""What every lake promises, whatever stores it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.core.clock import TICKS_PER_S, ManualClock, from_iso
from headrace.core.errors import DataError, NotFound
from headrace.lake.contract import Lake
from headrace.lake.delta import DeltaLake

START = from_iso("2025-01-31T23:59:58Z")


@pytest.fixture(params=["delta"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Lake]:
    """Gives the same lake to another process, as it were."""
    makers: dict[str, Callable[[], Lake]] = {"delta": lambda: DeltaLake(tmp_path, ManualClock())}
    return makers[request.param]


@pytest.fixture
def lake(reopen: Callable[[], Lake]) -> Lake:
    return reopen()


def rows(first: int, last: int, **columns: Any) -> pa.Table:
    numbers = range(first, last)
    system = {
        "_event_id": [f"e{number}" for number in numbers],
        "_enqueued": pa.array([START + number * TICKS_PER_S for number in numbers], pa.int64()),
        "_partition": pa.array([number % 2 for number in numbers], pa.int32()),
        "_offset": pa.array([number // 2 for number in numbers], pa.int64()),
    }
    return pa.table({**system, **columns})


def ids(table: pa.Table) -> list[str]:
    return sorted(table["_event_id"].to_pylist())


def test_appended_rows_come_back(lake: Lake) -> None:
    assert lake.append("raw.telemetry", rows(0, 3, t=[1.0, 2.0, None]), producer="p", epoch=0)
    found = lake.scan("raw.telemetry").sort_by("_enqueued")
    assert found["t"].to_pylist() == [1.0, 2.0, None]
    assert ids(found) == ["e0", "e1", "e2"]


def test_the_same_epoch_again_writes_nothing(lake: Lake, reopen: Callable[[], Lake]) -> None:
    assert lake.append("raw.telemetry", rows(0, 3), producer="p", epoch=4)
    assert not lake.append("raw.telemetry", rows(0, 3), producer="p", epoch=4)
    assert not reopen().append("raw.telemetry", rows(3, 5), producer="p", epoch=3)
    assert ids(lake.scan("raw.telemetry")) == ["e0", "e1", "e2"]
    assert lake.last_epoch("raw.telemetry", "p") == 4


def test_producers_have_epochs_of_their_own(lake: Lake) -> None:
    lake.append("raw.telemetry", rows(0, 1), producer="a", epoch=9)
    assert lake.append("raw.telemetry", rows(1, 2), producer="b", epoch=0)
    assert (lake.last_epoch("raw.telemetry", "a"), lake.last_epoch("raw.telemetry", "b")) == (9, 0)
    assert lake.last_epoch("raw.telemetry", "c") == lake.last_epoch("raw.nothing", "a") == -1


def test_the_last_properties_of_each_producer_are_kept(lake: Lake, reopen: Callable[[], Lake]) -> None:
    lake.append("raw.telemetry", rows(0, 1), producer="a", epoch=0, properties={"positions": "[100, 200, 300, 400]"})
    lake.append("raw.telemetry", rows(1, 2), producer="b", epoch=0, properties={"who": "bé"})
    lake.append("raw.telemetry", rows(2, 3), producer="a", epoch=1, properties={"positions": "[5]"})
    assert reopen().last_properties("raw.telemetry", "a") == {"positions": "[5]"}
    assert reopen().last_properties("raw.telemetry", "b") == {"who": "bé"}
    assert lake.last_properties("raw.telemetry", "c") == lake.last_properties("raw.nothing", "a") == {}


def test_a_column_that_the_table_lacks_is_added_and_null_in_older_rows(lake: Lake) -> None:
    lake.append("served.scored", rows(0, 1, **{"data.t": [1.0]}), producer="p", epoch=0)
    lake.append("served.scored", rows(1, 2, **{"data.u v": ["x"]}), producer="p", epoch=1)
    found = lake.scan("served.scored", columns=["_event_id", "data.t", "data.u v"]).sort_by("_event_id")
    assert found.to_pylist() == [
        {"_event_id": "e0", "data.t": 1.0, "data.u v": None},
        {"_event_id": "e1", "data.t": None, "data.u v": "x"},
    ]
    assert lake.schema("served.scored").field("data.t").type == pa.float64()
    assert lake.schema("served.scored").field("data.u v").type == pa.string()


@pytest.mark.parametrize("column", [{"t": ["7"]}, {"t": pa.array([7], pa.int64())}, {"T": [7.0]}])
def test_a_column_of_another_type_or_spelling_is_refused_and_changes_nothing(
    lake: Lake, column: dict[str, Any]
) -> None:
    lake.append("raw.telemetry", rows(0, 1, t=[1.0]), producer="p", epoch=0)
    with pytest.raises(DataError, match="column 't' of double"):
        lake.append("raw.telemetry", rows(1, 2, **column), producer="p", epoch=1)
    assert lake.scan("raw.telemetry")["t"].to_pylist() == [1.0]
    assert lake.last_epoch("raw.telemetry", "p") == 0


def test_a_scan_is_bounded_in_time_at_both_ends_across_midnight(lake: Lake) -> None:
    lake.append("raw.telemetry", rows(0, 6), producer="p", epoch=0)
    found = lake.scan("raw.telemetry", since=START + TICKS_PER_S, until=START + 3 * TICKS_PER_S)
    assert ids(found) == ["e1", "e2", "e3"]


def test_counts_are_rows_by_stream_and_partition(lake: Lake) -> None:
    lake.append("raw.telemetry", rows(0, 3), producer="p", epoch=0)
    lake.append("raw.telemetry", rows(3, 4), producer="p", epoch=1)
    assert lake.counts("raw.telemetry") == {("telemetry", 0): 2, ("telemetry", 1): 2}


def test_compacting_joins_files_and_keeps_rows_epochs_and_properties(lake: Lake, reopen: Callable[[], Lake]) -> None:
    for epoch in range(10):
        lake.append("raw.telemetry", rows(epoch, epoch + 1), producer="p", epoch=epoch, properties={"n": str(epoch)})
    (before,) = lake.tables()
    fewer = lake.compact("raw.telemetry")
    (after,) = reopen().tables()
    assert (before.files, after.files, fewer) == (10, 2, 8)  # two days
    assert (before.rows, after.rows) == (10, 10)
    assert ids(lake.scan("raw.telemetry")) == [f"e{number}" for number in range(10)]
    assert not reopen().append("raw.telemetry", rows(0, 1), producer="p", epoch=9)
    assert lake.last_properties("raw.telemetry", "p") == {"n": "9"}


def test_tables_are_listed_by_name(lake: Lake) -> None:
    assert lake.tables() == []
    lake.append("served.scored", rows(0, 2), producer="p", epoch=0)
    lake.append("raw.telemetry", rows(0, 3), producer="p", epoch=0)
    assert [(info.name, info.rows) for info in lake.tables()] == [("raw.telemetry", 3), ("served.scored", 2)]
    assert all(info.bytes > 0 for info in lake.tables())


def test_a_table_that_is_not_there_is_named_with_its_nearest(lake: Lake) -> None:
    lake.append("raw.telemetry", rows(0, 1), producer="p", epoch=0)
    with pytest.raises(NotFound) as caught:
        lake.scan("raw.telemetri")
    assert "raw.telemetry" in caught.value.hint
    with pytest.raises(NotFound):
        lake.compact("raw.nothing")
