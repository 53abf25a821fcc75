"""Files as devices: the rows of a CSV, JSONL or Parquet file as messages, in batches.

A message id is made of the file's fingerprint, the device and the row's number, so a file sent again after an interruption,
from another folder too, gives the same ids, and the log keeps each row once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from headrace.connectors.file_columns import (
    ID_LENGTH_MAX,
    RELATIVE_START,
    TimeUnit,
    device_ids,
    find_device,
    find_time,
    time_unit,
)
from headrace.connectors.file_formats import open_format
from headrace.core.errors import DataError, HeadraceError, NotFound, UserError

FILE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".ndjson.gz")
_PROBE_BYTES = 1 << 16

log = structlog.get_logger()


class Rows(NamedTuple):
    """Consecutive messages of a file, as lists of equal length."""

    devices: list[str]
    times: list[int | None]  # ticks
    bodies: list[bytes]  # JSON objects with the file's own names
    rows: list[int]  # row numbers in the file, from 0, the header not counted
    message_ids: list[str]


class FileRows:
    """A file's rows as messages of devices. Opening it reads it through once (blocking: seconds for millions of rows).

    The device is `device` where given, else what stands in `device_column` (made a legal id), else named after the file:
    `valve1/0.csv.gz` is `valve1-0`. Columns that are not named are looked for (`device_id`, `unit`, `ts`, `datetime`, …).
    Time is ISO text with or without `T` and zone (UTC without), Unix seconds to nanoseconds, or, where the column's numbers
    stay below 1e8, seconds after `start`: a turbine's `cycle` 3 is three seconds after it.
    `prefix` goes before the ids from a column, where several files number their devices alike.

    Raises NotFound, UserError (a column that is not there, with the nearest; a time column that holds no times), DataError.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "",
        device_column: str | None = None,
        time_column: str | None = None,
        prefix: str = "",
        start: int = RELATIVE_START,
        separator: str = "",
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise NotFound(f"there is no file {path}", hint="check the path", code="file.not_found")
        self.fingerprint = fingerprint(self.path)
        self._format = open_format(self.path, separator=separator)
        self.columns: list[str] = self._format.columns
        self.device_column = "" if device else find_device(self.columns, device_column)
        self.time_column = find_time(self.columns, time_column)
        self._named = device or _name_of(self.path)
        self._raw: dict[str, None] = {}
        self._scan(start, strict=bool(time_column))
        self.use_prefix(prefix)

    def batches(self, *, rows_max: int = 5000, after: int = -1) -> Iterator[Rows]:
        """All rows in the file's order, at most `rows_max` at a time, from the row after number `after` on."""
        for piece in self._format.pieces(self.device_column, self.time_column, bodies=True):
            if piece.rows[-1] <= after:
                continue
            first = next(index for index, row in enumerate(piece.rows) if row > after)
            for low in range(first, len(piece.rows), rows_max):
                part = slice(low, low + rows_max)
                devices = [self._ids[_text(value)] for value in piece.devices[part]]
                times = [self.unit.ticks(value) for value in piece.times[part]]
                rows = piece.rows[part]
                ids = [self._message_id(device, row) for device, row in zip(devices, rows, strict=True)]
                yield Rows(devices, times, piece.bodies[part], rows, ids)

    def use_prefix(self, prefix: str, *, named: str = "") -> None:
        """Put `prefix` before the ids that come from a column, and call the file's own device `named` (empty: as before).

        Message ids change with it.
        """
        self._named = named or self._named
        names = {text: f"{prefix}{text}" if text else self._named for text in self._raw}
        legal = device_ids(names.values())
        self.prefix = prefix
        self._ids = {text: legal[name] for text, name in names.items()}
        self.devices: list[str] = [self._ids[text] for text in self._raw]

    def _scan(self, start: int, *, strict: bool) -> None:
        """One pass for `total`, the devices' names, `skipped` and the unit of time."""
        largest, sample, readable = 0.0, None, False
        self.total = 0
        for piece in self._format.pieces(self.device_column, self.time_column, bodies=False):
            self.total += len(piece.rows)
            self._raw.update(dict.fromkeys(map(_text, piece.devices)))
            for value in piece.times:
                if isinstance(value, int | float) and not isinstance(value, bool):
                    largest, readable = max(largest, abs(value)), True
                elif value is not None and not readable:
                    sample, readable = value, TimeUnit().ticks(value) is not None
        self.unit = time_unit(largest, start=start)
        if self.time_column and not readable:
            if strict:
                raise UserError(
                    f"column {self.time_column!r} of {self.path.name} holds no times: {str(sample)[:40]!r}",
                    hint="use ISO 8601 (2025-01-31T08:00:00Z), Unix seconds, or a count of seconds",
                    code="file.time",
                )
            self.time_column = ""
        self.skipped = self._format.skipped
        if self.total == 0:
            raise DataError(
                f"{self.path.name} has no rows", hint="check that it has a header and rows", code="file.empty"
            )
        if self.skipped:
            log.warning("file.rows_skipped", file=self.path.name, rows=self.skipped)

    def _message_id(self, device: str, row: int) -> str:
        id = f"{self.fingerprint}-{device}-{row}"
        if len(id) <= ID_LENGTH_MAX:
            return id
        return f"{self.fingerprint}-{hashlib.blake2b(device.encode(), digest_size=8).hexdigest()}-{row}"


def fingerprint(path: Path) -> str:
    """Twelve hexadecimal digits that tell files apart by size, beginning and end, wherever they are."""
    size = path.stat().st_size
    with path.open("rb") as file:
        beginning = file.read(_PROBE_BYTES)
        file.seek(max(0, size - _PROBE_BYTES))
        end = file.read(_PROBE_BYTES)
    return hashlib.blake2b(f"{size}\0".encode() + beginning + end, digest_size=6).hexdigest()


def find_files(path: Path) -> list[Path]:
    """`path` itself, or all files below a folder that can be replayed, by name. Raises NotFound when there is none."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise NotFound(f"there is no file {path}", hint="check the path", code="file.not_found")
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.name.lower().endswith(FILE_SUFFIXES))
    if not found:
        raise NotFound(
            f"nothing to replay in {path}", hint="give a .csv, .jsonl or .parquet file", code="file.not_found"
        )
    return found


def open_files(
    path: Path, *, device_column: str | None = None, time_column: str | None = None
) -> tuple[list[FileRows], list[HeadraceError]]:
    """A file, or all files of a folder, and what is wrong with those that cannot be sent.

    Where files number their devices alike (C-MAPSS' train and test both have a unit 1), the ids from their columns get the
    file's name in front. Raises the error itself where no file can be sent at all.
    """
    found: list[FileRows] = []
    problems: list[HeadraceError] = []
    for file in find_files(path):
        try:
            found.append(FileRows(file, device_column=device_column, time_column=time_column))
        except (UserError, DataError) as exc:
            problems.append(exc)
    if not found:
        raise problems[0]
    owners = Counter(device for rows in found for device in rows.devices)
    clashing = [rows for rows in found if any(owners[device] > 1 for device in rows.devices)]
    names = Counter(rows.path.name.split(".")[0] for rows in clashing)
    for rows in clashing:
        stem = rows.path.name.split(".")[0]
        name = stem if names[stem] == 1 else _name_below(path, rows.path)
        rows.use_prefix(f"{name}-", named=name)
    return found, problems


def _name_below(folder: Path, path: Path) -> str:
    return "-".join(path.relative_to(folder).parts).replace(".", "-")


def _name_of(path: Path) -> str:
    return f"{path.resolve().parent.name}-{path.name.split('.')[0]}".strip("-")


def _text(value: Any) -> str:
    """A device column's cell as text; empty where the row names none."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value).strip()
