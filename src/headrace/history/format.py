"""Answers as bytes: a plain table to read, JSON, CSV, or Arrow's stream format for programs."""

from __future__ import annotations

import base64
import datetime
import decimal
import io
from typing import Any, Literal, TypeAlias

import orjson
import pyarrow as pa
import pyarrow.csv

Format: TypeAlias = Literal["table", "json", "csv", "arrow"]

_WIDTH_MAX = 60


def render(rows: pa.Table, format: str = "table") -> bytes:
    """`format` is table, json, csv or arrow. Times are ISO 8601 in UTC, blobs base64. Text ends with a line feed."""
    match format:
        case "json":
            return _json(rows)
        case "csv":
            return _csv(rows)
        case "arrow":
            return _arrow(rows)
        case "table":
            return _table(rows)
    raise ValueError(f"{format!r} is no format")


def _json(rows: pa.Table) -> bytes:
    return orjson.dumps(rows.to_pylist(), default=_plain, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)


def _plain(value: Any) -> Any:
    """What JSON has no form for."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() and abs(value) < 2**53 else float(value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return str(value)


def _csv(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pyarrow.csv.write_csv(pa.table([_csv_column(column) for column in rows.columns], names=rows.column_names), sink)
    return sink.getvalue()


def _csv_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Columns that CSV cannot hold, and times, as text."""
    kind = column.type
    if pa.types.is_primitive(kind) and not pa.types.is_temporal(kind):
        return column
    return pa.chunked_array(
        [pa.array([None if value is None else _text(value) for value in column.to_pylist()], pa.string())]
    )


def _arrow(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue()


def _table(rows: pa.Table) -> bytes:
    """Columns side by side, numbers to the right, long texts cut; the last line counts the rows."""
    columns = [[_short(_text(value)) for value in column.to_pylist()] for column in rows.columns]
    names = [_short(name) for name in rows.column_names]
    widths = [max(map(len, [name, *values])) for name, values in zip(names, columns, strict=True)]
    right = [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in rows.schema.types]

    def line(cells: list[str]) -> str:
        padded = [
            cell.rjust(width) if aligned else cell.ljust(width)
            for cell, width, aligned in zip(cells, widths, right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    lines = [line(names), "  ".join("-" * width for width in widths)] if names else []
    lines += [line(list(cells)) for cells in zip(*columns, strict=True)]
    lines.append(f"({rows.num_rows:,} row{'' if rows.num_rows == 1 else 's'})")
    return ("\n".join(lines) + "\n").encode()


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (dict, list)):
        return orjson.dumps(value, default=_plain).decode()
    return str(value)


def _short(text: str) -> str:
    one_line = text.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")
    return one_line if len(one_line) <= _WIDTH_MAX else one_line[: _WIDTH_MAX - 1] + "…"
