"""Events for SQL tests: rows as dicts become log batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa

from headrace.core.clock import TICKS_PER_S, from_iso
from headrace.core.schema import LOG_SCHEMA, EventBatch

START = from_iso("2025-01-01T00:00:00Z")


def at(seconds: float) -> int:
    return START + round(seconds * TICKS_PER_S)


def log_events(bodies: Sequence[Any], *, arrivals: Sequence[int] | None = None, first: int = 0) -> EventBatch:
    """Events whose bodies are given as dicts or raw bytes; by default one a second."""
    rows = len(bodies)
    raw = [body if isinstance(body, bytes) else orjson.dumps(body) for body in bodies]
    columns: dict[str, Any] = {
        "_event_id": [f"h{first + index}" for index in range(rows)],
        "_entity_id": [f"dev{index % 3}" for index in range(rows)],
        "_type": ["telemetry"] * rows,
        "_device": [f"dev{index % 3}" for index in range(rows)],
        "_enqueued": arrivals if arrivals is not None else [at(first + index) for index in range(rows)],
        "_properties": ['{"line": "L1"}'] * rows,
        "_body": raw,
        "_partition": [0] * rows,
        "_offset": list(range(first, first + rows)),
    }
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(rows, field.type)
        for field in LOG_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=LOG_SCHEMA)
