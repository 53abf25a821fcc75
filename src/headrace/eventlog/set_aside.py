"""Events that a stage could not use, as events of the stream `set_aside`: queryable, and replayable.

The body stays as received and the type becomes the reason, so one query over the stream tells what goes wrong where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from headrace.core.identity import derived_event_id
from headrace.core.schema import EVENT_SCHEMA, EventBatch

STREAM = "set_aside"
_DETAIL_CHARS_MAX = 500


def set_aside_events(
    events: EventBatch,
    reasons: Sequence[str],
    details: Sequence[str],
    *,
    stage: str,
    stream: str,
    ids: str,
    epoch: int,
    about: Sequence[Mapping[str, Any]] | None = None,
) -> EventBatch:
    """`events` (LOG_SCHEMA, of `stream`) as rows for the stream `set_aside`, one reason and detail each.

        `ids` names the producer that their event ids are derived from. `_properties` says stage, reason, detail and where the
        original stands: stream, partition, offset, event id and type, and the text of its properties; and what is `about` each row,
    its time and window, say.
    """
    where = events.select(["_partition", "_offset", "_event_id", "_type", "_properties"]).to_pylist()
    properties = [
        msgspec.json.encode(
            {
                "stage": stage,
                "reason": reason,
                "detail": detail[:_DETAIL_CHARS_MAX],
                "stream": stream,
                "partition": row["_partition"],
                "offset": row["_offset"],
                "event_id": row["_event_id"],
                "type": row["_type"],
                "properties": row["_properties"],
                **more,
            }
        ).decode()
        for row, reason, detail, more in zip(where, reasons, details, about or [{}] * len(where), strict=True)
    ]
    columns = {name: events.column(name) for name in EVENT_SCHEMA.names}
    columns["_event_id"] = pa.array([derived_event_id(ids, epoch, row) for row in range(len(where))], pa.string())
    columns["_type"] = pa.array(reasons, pa.string())
    columns["_properties"] = pa.array(properties, pa.string())
    return pa.RecordBatch.from_arrays([columns[name] for name in EVENT_SCHEMA.names], schema=EVENT_SCHEMA)
