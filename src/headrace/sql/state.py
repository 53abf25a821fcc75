"""State as bytes: Arrow tables where it is arrays, msgpack for single values, both inside one message."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from headrace.sql.moments import Moment

_MOMENT = 1


def _enc(value: Any) -> Any:
    if isinstance(value, Moment):
        return msgspec.msgpack.Ext(_MOMENT, struct.pack("<q", value.ticks))
    raise TypeError(f"cannot store a {type(value).__name__} in a state")


def _ext(code: int, data: memoryview) -> Any:
    if code != _MOMENT:
        raise ValueError(f"unknown value code {code} in a state")
    return Moment(struct.unpack("<q", data)[0])


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_enc)
_DECODER = msgspec.msgpack.Decoder(ext_hook=_ext)


def pack(value: Any) -> bytes:
    """Values of the language (and lists and records of them) as bytes; types are kept."""
    return _ENCODER.encode(value)


def unpack(data: bytes) -> Any:
    return _DECODER.decode(data)


def table_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def bytes_table(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


def value_table(keys: Sequence[Any], rows: Sequence[Any]) -> pa.Table:
    """A state of one packed value per key, as the operator contract wants it (`_key` column)."""
    return pa.table(
        {
            "_key": pa.array([pack(key) for key in keys], pa.binary()),
            "value": pa.array([pack(row) for row in rows], pa.binary()),
        }
    )


def table_values(table: pa.Table) -> list[tuple[Any, Any]]:
    """What `value_table` stored."""
    keys = [unpack(key) for key in table.column("_key").to_pylist()]
    return list(zip(keys, [unpack(value) for value in table.column("value").to_pylist()], strict=True))


def hashable(value: Any) -> Any:
    """A value as a dictionary key. A whole float becomes the bigint it equals, so that the key shown for a group does not
    depend on which came first; a bit is no number here (Python would take True for 1).
    """
    kind = type(value)
    if kind is float and value.is_integer() and abs(value) < 9e18:
        return int(value)
    return Frozen(pack(value)) if kind is dict or kind is list or kind is bool else value


class Frozen:
    """A record or array as a key."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __hash__(self) -> int:
        return hash(self.data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frozen) and self.data == other.data


def thawed(value: Any) -> Any:
    return unpack(value.data) if isinstance(value, Frozen) else value


def thaw_all(key: Sequence[Any]) -> list[Any]:
    return [thawed(value) for value in key]


Tables = Mapping[str, pa.Table]
