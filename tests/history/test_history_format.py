"""Answers as bytes."""

import datetime
import decimal
import io
import json

import pyarrow as pa
import pytest

from headrace.history.format import render

MOMENT = datetime.datetime(2025, 1, 31, 8, 0, 0, 250_000, tzinfo=datetime.UTC)
ROWS = pa.table(
    {
        "n": pa.array([1.5, None, float("nan")]),
        "text": ['a, "b"', None, "two\nlines"],
        "ok": [True, False, None],
        "at": pa.array([MOMENT, None, None], pa.timestamp("us", tz="UTC")),
        "blob": pa.array([b"\xff", None, b""]),
        "list": pa.array([[1, 2], None, []]),
    }
)


def test_json_is_a_list_of_objects_with_utc_times() -> None:
    assert json.loads(render(ROWS, "json"))[:2] == [
        {"n": 1.5, "text": 'a, "b"', "ok": True, "at": "2025-01-31T08:00:00.250000Z", "blob": "/w==", "list": [1, 2]},
        {"n": None, "text": None, "ok": False, "at": None, "blob": None, "list": None},
    ]


def test_json_keeps_whole_decimals_whole() -> None:
    rows = pa.table({"sum": pa.array([decimal.Decimal(12), decimal.Decimal("1.5")], pa.decimal128(38, 1))})
    assert render(rows, "json") == b'[{"sum":12},{"sum":1.5}]\n'


def test_csv_quotes_texts_and_leaves_nulls_bare() -> None:
    lines = render(ROWS, "csv").decode()
    assert lines.startswith(
        '"n","text","ok","at","blob","list"\n1.5,"a, ""b""",true,"2025-01-31T08:00:00.250000Z","/w==","[1,2]"\n,,false,,,\n'
    )


def test_arrow_is_a_stream_that_reads_back_equal() -> None:
    assert pa.ipc.open_stream(io.BytesIO(render(ROWS, "arrow"))).read_all().schema == ROWS.schema


def test_a_table_aligns_numbers_right_cuts_long_texts_and_counts() -> None:
    rows = pa.table({"name": ["x", "y" * 100, "a\nb"], "value": [1, 22, None]})
    assert render(rows, "table").decode().splitlines() == [
        "name" + " " * 56 + "  value",
        "-" * 60 + "  -----",
        "x" + " " * 59 + "      1",
        "y" * 59 + "…" + "     22",
        "a\\nb",
        "(3 rows)",
    ]


@pytest.mark.parametrize("format", ["table", "json", "csv", "arrow"])
def test_an_answer_without_rows_is_no_error(format: str) -> None:
    assert render(ROWS.slice(0, 0), format)


def test_a_format_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no format"):
        render(ROWS, "xml")
