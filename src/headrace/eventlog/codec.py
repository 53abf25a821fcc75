"""Stored bytes: positions as int64, rows as one Arrow record batch message without its schema.

The schema is fixed by the format byte in front, so a small batch does not carry a kilobyte that says what every other says.
"""

from __future__ import annotations

import struct

import pyarrow as pa

from headrace.core.errors import UserError
from headrace.eventlog.batches import STORED_SCHEMA
from headrace.eventlog.contract import Positions

FORMAT = 1
_HEADER = struct.Struct(
    "<BBHI"
)  # format, compressed or not, unused, bytes before compression; 8 bytes keep Arrow aligned
_COMPRESS_FROM = 2048
_BYTES_MAX = 512 << 20

NO_ROWS = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in STORED_SCHEMA], schema=STORED_SCHEMA)


def pack(positions: Positions) -> bytes:
    return struct.pack(f"<{len(positions)}q", *positions)


def unpack(data: bytes) -> Positions:
    return struct.unpack(f"<{len(data) // 8}q", data)


def encode(rows: pa.RecordBatch) -> bytes:
    """Rows of STORED_SCHEMA as bytes; LZ4 where it pays. Raises UserError above half a gigabyte."""
    if not rows.num_rows:
        return b""
    plain = rows.serialize()
    if plain.size > _BYTES_MAX:
        raise UserError(f"one append of {plain.size:,} bytes", hint="split the batch", code="eventlog.too_large")
    if plain.size >= _COMPRESS_FROM:
        small = _LZ4.compress(plain)
        if small.size < plain.size * 0.9:
            return _HEADER.pack(FORMAT, 1, 0, plain.size) + bytes(small)
    return _HEADER.pack(FORMAT, 0, 0, plain.size) + bytes(plain)


def decode(data: bytes) -> pa.RecordBatch:
    """The rows again. Raises ValueError where the bytes are not what `encode` wrote."""
    if not data:
        return NO_ROWS
    version, compressed, _, size = _HEADER.unpack_from(data)
    if version != FORMAT:
        raise ValueError(f"batch format {version}, this release reads {FORMAT}")
    body = pa.py_buffer(data).slice(_HEADER.size)
    return pa.ipc.read_record_batch(_LZ4.decompress(body, size) if compressed else body, STORED_SCHEMA)


def size_of(data: bytes) -> int:
    """Bytes that the decoded rows take in memory."""
    return int(_HEADER.unpack_from(data)[3]) if data else 0


_LZ4 = pa.Codec("lz4_raw")
