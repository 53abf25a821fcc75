"""What a run refuses: events that cannot be used, each with its bytes, a stable reason and a detail.

Reasons are counted by callers, so a row that fails in two ways is set aside once, under the first reason found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from headrace.core.identity import derived_event_id
from headrace.core.schema import JSON_TYPE, LOG_SCHEMA, EventBatch
from headrace.sql.decode import Payload
from headrace.sql.errors import RowError
from headrace.sql.evaluate import Frame
from headrace.sql.missed import about
from headrace.sql.operators.timeline import Dropped
from headrace.sql.output import OutputRows, SetAsideRows
from headrace.sql.rows import Named, Rows
from headrace.sql.tree import Window


class SetAside:
    """Collects what was refused since `taken` was last called."""

    def __init__(self, on_error: Literal["stop", "set_aside"]) -> None:
        self.on_error = on_error
        self.input = ""  # the one whose events are being worked on
        self.derived = 0  # how often rows without an event of their own were set aside: part of their ids
        self._found: list[SetAsideRows] = []

    def add(
        self, events: EventBatch, reason: str, details: list[str], known: list[dict[str, Any]] | None = None
    ) -> None:
        self._found.append(SetAsideRows(self.input, events, reason, details, known))

    def refuse(self, payload: Payload, dropped: list[Dropped], windows: Sequence[Window]) -> None:
        """What a timeline did not take, of an input that these windows group."""
        for one in dropped:
            known = None if one.times is None else about(one.times, windows)
            self.add(payload.take(one.at).events(), one.reason, one.details, known)

    def taken(self) -> list[SetAsideRows]:
        found, self._found = self._found, []
        return found

    def on_faults(self, frame: Frame) -> Frame:
        """The rows of a frame that have no fault. Raises RowError for the first one that has, with `on_error="stop"`."""
        first = frame.faults[0]
        origin = frame.sources[0].origin if frame.sources else None
        if self.on_error == "stop":
            where = ""
            if origin is not None:
                where = " in event " + str(origin.take(np.array([first.row])).events().column("_event_id")[0].as_py())
            raise RowError(
                f"{first.detail}{where}",
                hint="correct the query (TRY_CAST gives null), or set on_error to set_aside",
                code="sql." + first.reason,
            )
        rows = sorted({fault.row for fault in frame.faults})
        details = {fault.row: fault for fault in reversed(frame.faults)}
        for reason in dict.fromkeys(details[row].reason for row in rows):
            mine = [row for row in rows if details[row].reason == reason]
            at = np.array(mine, np.int64)
            events = origin.take(at).events() if origin is not None else self._derived_events(frame.take(at))
            self.add(events, reason, [details[row].detail for row in mine], about(frame.times[at], ()))
        keep = np.ones(frame.rows, np.bool_)
        keep[rows] = False
        return frame.take(np.flatnonzero(keep))

    def _derived_events(self, frame: Frame) -> EventBatch:
        """Rows that no single event stands behind (a window's, say), as events that carry the row."""
        if frame.sources:
            rows = Rows(frame.times, frame.sources[0].items)
        else:
            rows = Rows(frame.times, [Named(f"column{at}", column) for at, column in enumerate(frame.extra)])
        bodies = OutputRows("", frame.times, rows).bodies()
        ids = [derived_event_id("sql", self.derived, index) for index in range(frame.rows)]
        self.derived += 1
        columns: dict[str, list[Any]] = {
            "_event_id": ids,
            "_entity_id": [""] * frame.rows,
            "_type": ["derived"] * frame.rows,
            "_device": [""] * frame.rows,
            "_enqueued": frame.times.tolist(),
            "_content_type": [JSON_TYPE] * frame.rows,
            "_body": bodies,
            "_partition": [0] * frame.rows,
            "_offset": [-1] * frame.rows,
        }
        arrays = [
            pa.array(columns[one.name], one.type) if one.name in columns else pa.nulls(frame.rows, one.type)
            for one in LOG_SCHEMA
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=LOG_SCHEMA)
