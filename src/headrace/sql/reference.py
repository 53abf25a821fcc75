"""Reference data as tables: every value keeps the type that it has in the file, as an event's values do.

A column of one type is an Arrow array. Any other (text beside numbers, whole numbers beside floats, records, arrays) is a
`PackedValues` array, which Arrow passes on and filters without looking into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from headrace.core.errors import UserError
from headrace.sql.state import pack, unpack

_DECODER = msgspec.json.Decoder(dict[str, Any])
_PLAIN = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


class PackedValues(pa.ExtensionType):  # type: ignore[misc]  # pyarrow has no types
    """Values of the language, each with its type."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "headrace.values")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> PackedValues:
        return cls()


def value_array(values: Sequence[Any]) -> pa.Array:
    """Values (None, int, float, bool, str, dict, list) as an array. Raises OverflowError for integers beyond 64 bits."""
    types = set(map(type, values)) - {type(None)}
    if not types:
        return pa.nulls(len(values))
    if len(types) == 1 and (kind := _PLAIN.get(next(iter(types)))) is not None:
        return pa.array(values, kind)
    packed = pa.array([None if value is None else pack(value) for value in values], pa.binary())
    return pa.ExtensionArray.from_storage(PackedValues(), packed)


def packed_values(found: pa.Array) -> list[Any]:
    """What `value_array` packed."""
    return [None if data is None else unpack(data) for data in found.storage.to_pylist()]


def rows_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table; a column that only some rows have is null in the others."""
    names = dict.fromkeys(key for row in rows for key in row)
    return pa.table({name: value_array([row.get(name) for row in rows]) for name in names})


def json_table(data: bytes) -> pa.Table:
    """A file of JSON objects: an array of them, or one after the other with line breaks between. Raises UserError."""
    try:
        if data.lstrip()[:1] == b"[":
            parts = [bytes(part) for part in msgspec.json.decode(data, type=list[msgspec.Raw])]
        else:
            parts = [line for line in data.splitlines() if line.strip()]
        return rows_table(list(map(_DECODER.decode, parts)))
    except (ValueError, OverflowError, RecursionError, msgspec.MsgspecError, pa.ArrowException) as exc:
        raise UserError(
            f"this is no list of JSON objects: {exc}",
            hint="write an array of objects, or one object a line",
            code="reference.invalid",
        ) from exc
