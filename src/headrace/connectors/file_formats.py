"""Reading CSV, JSONL and Parquet in pieces, as JSON objects.

A file is read twice, piece by piece: once for what only the whole of it tells (the kind of each CSV column, the number of
rows), once for the rows. Memory holds one piece of BLOCK_BYTES or PIECE_ROWS, never the file.
"""

from __future__ import annotations

import gzip
import json  # the one parser that takes NaN
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from headrace.core.errors import DataError, UserError

BLOCK_BYTES = 4 << 20
PIECE_ROWS = 10_000
SEPARATORS = ",;\t|"
_ABSENT = pa.array(["", "NaN", "nan", "NAN", "NA", "N/A", "null", "NULL", "None"])


class Piece(NamedTuple):
    """Consecutive rows. `devices` and `times` are the two columns asked for (empty names give None values); `bodies` are
    JSON objects, and empty when they were not asked for. A row that could not be read is not in it."""

    rows: list[int]
    devices: list[Any]
    times: list[Any]
    bodies: list[bytes]


class Format(Protocol):
    """One opened file. `skipped` counts the rows of the last pass that could not be read."""

    columns: list[str]
    skipped: int

    def pieces(self, device: str, time: str, *, bodies: bool) -> Iterator[Piece]: ...


def open_format(path: Path, *, separator: str = "") -> Format:
    """By the file's name. Raises UserError for a name of no known format, DataError for a file that is not what it says."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else (suffixes or [""])[-1]
    if kind in (".csv", ".tsv", ".txt"):
        return CsvFormat(path, separator=separator)
    if kind in (".jsonl", ".ndjson", ".json"):
        return JsonFormat(path)
    if kind in (".parquet", ".pq"):
        return ParquetFormat(path)
    raise UserError(
        f"{path.name} is no file that can be replayed",
        hint="give .csv, .jsonl (either with .gz) or .parquet",
        code="file.format",
    )


class CsvFormat:
    """A CSV file with a header. Numbers become numbers where the whole column is numeric; empty cells and NaN are left out."""

    def __init__(self, path: Path, *, separator: str) -> None:
        self._path = path
        self._separator = separator or _guess_separator(path)
        self.skipped = 0
        self.columns: list[str] = []
        with self._open() as reader:
            self.columns += reader.schema.names
        twice = {name for name in self.columns if self.columns.count(name) > 1}
        if twice:
            raise DataError(
                f"{path.name} names column {min(twice)!r} twice", hint="rename one of them", code="file.header"
            )
        self._kinds = self._find_kinds()

    def pieces(self, device: str, time: str, *, bodies: bool) -> Iterator[Piece]:
        position = 0
        for batch in self._batches():
            rows = list(range(position, position + batch.num_rows))
            position += batch.num_rows
            values = {
                name: _as_kind(column, self._kinds[name])
                for name, column in zip(self.columns, batch.columns, strict=True)
                if bodies or name == time
            }
            devices = batch.column(device).to_pylist() if device else [None] * len(rows)
            times = values[time].to_pylist() if time else [None] * len(rows)
            yield Piece(rows, devices, times, json_objects(list(values), list(values.values())) if bodies else [])

    def _find_kinds(self) -> dict[str, pa.DataType]:
        """The narrowest of integer, float, boolean, text that holds every cell of each column."""
        order = [pa.int64(), pa.float64(), pa.bool_(), pa.string()]
        level = dict.fromkeys(self.columns, 0)
        for batch in self._batches():
            for name, column in zip(self.columns, batch.columns, strict=True):
                while not _fits(column, order[level[name]]):
                    level[name] += 1
        return {name: order[index] for name, index in level.items()}

    def _batches(self) -> Iterator[pa.RecordBatch]:
        self.skipped = 0
        try:
            with self._open() as reader:
                yield from reader
        except (pa.ArrowInvalid, OSError, EOFError) as exc:
            raise _unreadable(self._path, exc) from exc

    def _open(self) -> Any:
        texts = {name: pa.string() for name in self.columns}
        try:
            return self._reader(pa.csv.ConvertOptions(column_types=texts, strings_can_be_null=False))
        except (pa.ArrowInvalid, OSError, EOFError) as exc:
            raise _unreadable(self._path, exc) from exc

    def _reader(self, convert: Any) -> Any:
        return pa.csv.open_csv(
            pa.input_stream(str(self._path), compression="detect"),
            read_options=pa.csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
            parse_options=pa.csv.ParseOptions(delimiter=self._separator, invalid_row_handler=self._skip),
            convert_options=convert,
        )

    def _skip(self, row: Any) -> str:
        self.skipped += 1
        return "skip"


class ParquetFormat:
    """A Parquet file. Times become ISO text, NaN and null are left out, nested values stay nested."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.skipped = 0
        try:
            self._file = pa.parquet.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as exc:
            raise _unreadable(path, exc) from exc
        self.columns = list(self._file.schema_arrow.names)

    def pieces(self, device: str, time: str, *, bodies: bool) -> Iterator[Piece]:
        wanted = self.columns if bodies else [name for name in (device, time) if name]
        position = 0
        for batch in self._batches(wanted or self.columns[:1]):
            rows = list(range(position, position + batch.num_rows))
            position += batch.num_rows
            devices = batch.column(device).to_pylist() if device else [None] * len(rows)
            times = _whole_us(batch.column(time)).to_pylist() if time else [None] * len(rows)
            columns = [_whole_us(column) for column in batch.columns] if bodies else []
            yield Piece(rows, devices, times, json_objects(self.columns, columns) if bodies else [])

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._file.iter_batches(batch_size=PIECE_ROWS, columns=list(columns), use_threads=False)
        except (pa.ArrowInvalid, OSError) as exc:
            raise _unreadable(self._path, exc) from exc


class JsonFormat:
    """One JSON object a line. Lines are sent on as they stand, so no digit of a number changes; lines that are no object
    are skipped and counted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.skipped = 0
        self.columns: list[str] = []
        for _, _, record in islice(self._records(), PIECE_ROWS):
            self.columns += [name for name in record if name not in self.columns]
        if not self.columns:
            raise DataError(f"{path.name} holds no JSON object", hint="write one object a line", code="file.empty")

    def pieces(self, device: str, time: str, *, bodies: bool) -> Iterator[Piece]:
        piece = Piece([], [], [], [])
        for row, line, record in self._records():
            piece.rows.append(row)
            piece.devices.append(record.get(device) if device else None)
            piece.times.append(record.get(time) if time else None)
            if bodies:
                piece.bodies.append(line)
            if len(piece.rows) == PIECE_ROWS:
                yield piece
                piece = Piece([], [], [], [])
        if piece.rows:
            yield piece

    def _records(self) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
        decode = msgspec.json.Decoder().decode
        self.skipped = 0
        try:
            with _open_bytes(self._path) as file:
                for row, raw in enumerate(file):
                    line = raw.strip()
                    try:
                        record = decode(line) if line else None
                    except msgspec.DecodeError:
                        line, record = _lenient(line)
                    if isinstance(record, dict):
                        yield row, line, record
                    elif line:
                        self.skipped += 1
        except (OSError, EOFError) as exc:
            raise _unreadable(self._path, exc) from exc


def json_objects(names: Sequence[str], columns: Sequence[pa.Array]) -> list[bytes]:
    """One JSON object a row; nulls and numbers that are not finite are left out."""
    encode = msgspec.json.Encoder(decimal_format="number").encode
    lists = [_as_list(_finite(column)) for column in columns]
    return [
        encode({name: value for name, value in zip(names, values, strict=True) if value is not None})
        for values in zip(*lists, strict=True)
    ]


def _as_list(column: pa.Array) -> list[Any]:
    """As `to_pylist()`, but numbers go through NumPy: several times faster."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return list(column.to_pylist())
    values: list[Any] = column.fill_null(0).to_numpy(zero_copy_only=False).tolist()
    if column.null_count:
        for index in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)):
            values[index] = None
    return values


def _finite(column: pa.Array) -> pa.Array:
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))


def _whole_us(column: pa.Array) -> pa.Array:
    """Nanoseconds as microseconds: Python's times hold no more."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        return column.cast(pa.timestamp("us", column.type.tz), safe=False)
    return column


def _present(column: pa.Array) -> pa.Array:
    """Text cells, null where a cell says that there is no value."""
    text = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(text, value_set=_ABSENT), pa.scalar(None, pa.string()), text)


def _fits(column: pa.Array, kind: pa.DataType) -> bool:
    if pa.types.is_string(kind):
        return True
    present = _present(column)
    if not pa.types.is_boolean(kind) and pc.any(pc.match_substring_regex(present, r"^[+-]?0[0-9]")).as_py():
        return False  # 007 is a name, not seven
    try:
        present.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _as_kind(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    return _present(column).cast(kind)


def _guess_separator(path: Path) -> str:
    with _open_bytes(path) as file:
        try:
            header = file.readline(1 << 20).decode("utf-8-sig", "replace")
        except (OSError, EOFError) as exc:
            raise _unreadable(path, exc) from exc
    unquoted = "".join(header.split('"')[::2])
    return max(SEPARATORS, key=lambda separator: (unquoted.count(separator), -SEPARATORS.index(separator)))


def _open_bytes(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _lenient(line: bytes) -> tuple[bytes, Any]:
    """A line with NaN or Infinity, which JSON does not know but many programs write: these values are left out."""
    try:
        record = _without_null_numbers(json.loads(line))
    except ValueError:
        return line, None
    return msgspec.json.encode(record), record


def _without_null_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_null_numbers(inner) for name, inner in value.items() if not _odd(inner)}
    if isinstance(value, list):
        return [None if _odd(inner) else _without_null_numbers(inner) for inner in value]
    return value


def _odd(value: Any) -> bool:
    return isinstance(value, float) and (value != value or value in (float("inf"), float("-inf")))


def _unreadable(path: Path, exc: Exception) -> DataError:
    return DataError(
        f"{path.name} cannot be read: {exc}", hint="check that the file is whole and UTF-8", code="file.unreadable"
    )
