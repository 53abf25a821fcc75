"""What one device sent last, as it came: body and properties, straight from the log.

A device's events lie in one partition among those of others, so the search goes back from the end and gives up after
ROWS_READ_MAX rows: a device that has been silent for long has its messages in history, not here.
"""

from __future__ import annotations

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.clock import TICKS_PER_MS
from headrace.core.identity import partition_of
from headrace.eventlog.contract import EventLog

CHUNK = 4000
ROWS_READ_MAX = 40_000
BODY_MAX = 4000


class RawMessage(msgspec.Struct, frozen=True, kw_only=True):
    """`t` is when the hub took it in, ms since 1970; `text` its first 4,000 characters, None where it is no text."""

    t: float
    type: str
    module: str
    properties: dict[str, str | None]
    system: dict[str, str | None]  # what IoT Hub knows of itself, by its names
    content_type: str
    size_bytes: int
    text: str | None
    offset: int


class _Bag(msgspec.Struct, frozen=True):
    """The column `_properties`."""

    application: dict[str, str | None] = {}
    system: dict[str, str | None] = {}


async def last_messages(log: EventLog, stream: str, device: str, *, limit: int) -> list[RawMessage]:
    """Newest first; empty where the stream does not exist."""
    if stream not in await log.streams():
        return []
    earliest, end = await log.bounds(stream)
    partition = partition_of(device, len(end))
    found: list[RawMessage] = []
    upper, lowest = end[partition], max(earliest[partition], end[partition] - ROWS_READ_MAX)
    while upper > lowest and len(found) < limit:
        lower = max(lowest, upper - CHUNK)
        rows = [row for piece in await _span(log, stream, partition, lower, upper) for row in _of(piece, device)]
        found += [_message(row) for row in reversed(rows)][: limit - len(found)]
        upper = lower
    return found


async def _span(log: EventLog, stream: str, partition: int, start: int, end: int) -> list[pa.RecordBatch]:
    pieces: list[pa.RecordBatch] = []
    while start < end:
        piece = await log.read(stream, partition, start, rows_max=end - start, wait_s=0.0)
        if not piece.num_rows:
            break
        pieces.append(piece)
        start = int(piece.column("_offset")[-1].as_py()) + 1
    return pieces


def _of(piece: pa.RecordBatch, device: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = piece.filter(pc.equal(piece.column("_device"), device)).to_pylist()
    return rows


def _message(row: dict[str, object]) -> RawMessage:
    body = row["_body"]
    assert isinstance(body, bytes)
    try:
        bag = msgspec.json.decode(str(row["_properties"] or "{}"), type=_Bag, strict=False)
    except msgspec.MsgspecError:
        bag = _Bag()
    try:
        text: str | None = body.decode()[:BODY_MAX]
    except UnicodeDecodeError:
        text = None
    return RawMessage(
        t=int(str(row["_enqueued"])) / TICKS_PER_MS,
        type=str(row["_type"] or ""),
        module=str(row["_module"] or ""),
        properties=bag.application,
        system={name: value for name, value in bag.system.items() if name not in ("content-type", "content-encoding")},
        content_type=str(row["_content_type"] or ""),
        size_bytes=len(body),
        text=text,
        offset=int(str(row["_offset"])),
    )
