"""The event: one row of an EventBatch, the shape that every stream has.

System columns begin with an underscore; the payload stays as received in `_body`. Readers of a log also get where the
row stands: `_partition` and `_offset`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

EventBatch: TypeAlias = pa.RecordBatch

EVENT_SCHEMA = pa.schema(
    [
        pa.field("_event_id", pa.string(), nullable=False),
        pa.field("_entity_id", pa.string(), nullable=False),
        pa.field("_type", pa.string(), nullable=False),
        pa.field("_device", pa.string(), nullable=False),
        pa.field("_module", pa.string()),
        pa.field("_site", pa.string()),
        pa.field("_enqueued", pa.int64(), nullable=False),  # ticks; stamped by the log, later in every batch
        pa.field("_properties", pa.string()),  # JSON object text, or null for none
        pa.field("_content_type", pa.string()),
        pa.field("_body", pa.binary(), nullable=False),
    ]
)
LOG_SCHEMA = EVENT_SCHEMA.append(pa.field("_partition", pa.int32(), nullable=False)).append(
    pa.field("_offset", pa.int64(), nullable=False)
)
JSON_TYPE = "application/json"


def event_batch(columns: Mapping[str, Sequence[Any]]) -> EventBatch:
    """An EventBatch from lists of equal length; columns not given are null, `_enqueued` 0 (the log stamps it).

    `_type` defaults to `telemetry`, `_entity_id` to the device.
    """
    rows = len(columns["_event_id"])
    filled: dict[str, Sequence[Any]] = dict(columns)
    filled.setdefault("_entity_id", filled["_device"])
    filled.setdefault("_type", ["telemetry"] * rows)
    filled.setdefault("_enqueued", [0] * rows)
    arrays = [
        pa.array(filled[field.name], field.type) if field.name in filled else pa.nulls(rows, field.type)
        for field in EVENT_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=EVENT_SCHEMA)
