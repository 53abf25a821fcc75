"""What a run gives back: rows of an output, written as JSON column by column, and events that were set aside."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from headrace.core.schema import EventBatch
from headrace.sql import values
from headrace.sql.moments import Moment, moments_text
from headrace.sql.rows import Named, Rows
from headrace.sql.values import DATETIME, Column, Ints


def _enc(value: Any) -> Any:
    if isinstance(value, Moment):
        return str(value)
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


_BREAK = 10
_FEW = 64  # rows; below, a list of texts is made faster than arrays of breaks
_ENCODER = msgspec.json.Encoder(enc_hook=_enc)


@lru_cache(maxsize=256)
def _shape(names: tuple[str, ...]) -> Any:
    """A struct type with these JSON names: msgspec writes it several times faster than a dict."""
    fields = [(f"f{index}", Any) for index in range(len(names))]
    rename = {f"f{index}": name for index, name in enumerate(names)}
    return msgspec.defstruct("Row", fields, rename=rename, gc=False)


def json_values(column: Column) -> list[Any]:
    """Python values ready for JSON: datetimes as ISO text."""
    only = values.plain(column).only(DATETIME)
    return moments_text(only) if only is not None else column.to_list()


class OutputRows(NamedTuple):
    """Rows of one output, in time order. `data` may hold columns that are only known per row (`SELECT *`)."""

    output: str
    times: Ints
    data: Rows

    @property
    def rows(self) -> int:
        return self.data.rows

    @property
    def names(self) -> list[str] | None:
        """Column names, or None where they vary from row to row."""
        return self.data.names

    def bodies(self) -> list[bytes]:
        """Each row as a JSON object; datetimes as ISO 8601 with seven decimals and Z."""
        return self._lines().split(b"\n")[:-1]

    def body_array(self) -> pa.BinaryArray:
        """The same as one Arrow array: nothing is made per row but what JSON needs."""
        if self.rows < _FEW:
            return pa.array(self.bodies(), pa.binary())
        text = np.frombuffer(self._lines(), np.uint8)
        breaks = text == _BREAK  # inside a value a line break is written as \\n
        ends = np.flatnonzero(breaks)
        offsets = np.zeros(len(ends) + 1, np.int32)
        np.subtract(ends, np.arange(len(ends)), out=offsets[1:], casting="unsafe")
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text[~breaks])]
        return pa.BinaryArray.from_buffers(pa.binary(), len(ends), buffers)

    def _lines(self) -> bytes:
        """A row a line, each with a line break at its end."""
        if self.rows == 0:
            return b""
        named = [item for item in self.data.items if isinstance(item, Named)]
        plain = all(item.name.isprintable() and not set(item.name) & {'"', "\\"} for item in named)
        if plain and len(named) == len(self.data.items) and named:
            row = _shape(tuple(item.name for item in named))
            lists = [json_values(item.column) for item in named]
            return _ENCODER.encode_lines(list(map(row, *lists)))
        return _ENCODER.encode_lines(self.data.records())

    def column(self, name: str) -> list[Any]:
        """The values of a column; datetimes are `moments.Moment`."""
        return self.data.column(name).to_list()

    def to_pylist(self) -> list[dict[str, Any]]:
        """Rows as dicts of Python values."""
        return self.data.records()


class SetAsideRows(NamedTuple):
    """Events that were not used: whose, which, why (a stable word), and a detail for each.

    `about` says of each its `time` and, where known, the `window` (start and end, one or several) that it was for.
    """

    input: str
    events: EventBatch
    reason: str
    details: list[str]
    about: list[dict[str, Any]] | None = None


class Results(NamedTuple):
    rows: list[OutputRows]
    set_aside: list[SetAsideRows]
