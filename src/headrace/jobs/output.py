"""A query's rows as events.

A row's event id is made from its producer, epoch and place, so that a job run again after a crash gives every row the id it
had before. Columns are built as columns: a closing window of thousands of rows is on the way to its readers.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.identity import derived_event_id
from headrace.core.schema import EVENT_SCHEMA, JSON_TYPE, EventBatch
from headrace.sql.decode import Payload
from headrace.sql.moments import moments_text
from headrace.sql.run import OutputRows
from headrace.sql.values import DATETIME, TEXT, Column, plain

_DEVICE = ("deviceId", "device_id", "device", "machineId", "machine_id")
_ENTITY = ("entityId", "entity_id", "machineId", "machine_id")
_SITE = ("factory", "site")
_NAMES = EVENT_SCHEMA.names
_UNSTAMPED = pa.scalar(0, pa.int64())


def output_events(pieces: Sequence[OutputRows], *, producer: str, epoch: int) -> EventBatch:
    """The rows of one output in one epoch, as one batch, in order.

    `_device` is the first of deviceId, device_id, device, machineId, machine_id that a row has (in any case), `_entity_id`
    the first of entityId, entity_id, machineId, machine_id, else the device; `_site` is factory or site. What a row lacks
    it has from the event it was made from, where there is exactly one.
    """
    prefix = derived_event_id(producer, epoch, 0).removesuffix("0")
    batches: list[EventBatch] = []
    first = 0
    for piece in pieces:
        batches.append(_events(piece, prefix, first))
        first += piece.rows
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _events(piece: OutputRows, prefix: str, first: int) -> EventBatch:
    rows, origin = piece.rows, piece.data.origin
    found = _Found(piece)
    device = _filled(found.first(_DEVICE), origin, "_device")
    entity = _first_of(found.first(_ENTITY), device)
    columns: dict[str, pa.Array] = {
        "_event_id": pa.array([f"{prefix}{number}" for number in range(first, first + rows)], pa.string()),
        "_device": _known(device),
        "_entity_id": _known(entity),
        "_type": _same(piece.output, rows),
        "_site": _filled(found.first(_SITE), origin, "_site"),
        "_enqueued": pa.repeat(_UNSTAMPED, rows),
        "_content_type": _same(JSON_TYPE, rows),
        "_body": piece.body_array(),
    }
    arrays = [columns[name] if name in columns else pa.nulls(rows, pa.string()) for name in _NAMES]
    return pa.RecordBatch.from_arrays(arrays, schema=EVENT_SCHEMA)


def _same(text: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), rows)


class _Found:
    """Columns of rows by name, each as text, made once."""

    def __init__(self, piece: OutputRows) -> None:
        self._piece = piece
        names = piece.names
        self._known = None if names is None else {name.lower() for name in names}
        self._texts: dict[str, pa.Array] = {}

    def first(self, wanted: Sequence[str]) -> pa.Array:
        """Per row, the first of the `wanted` columns that has a value; null where none has."""
        found = pa.nulls(self._piece.rows, pa.string())
        for name in wanted:
            if found.null_count == 0:
                break
            if self._known is None or name.lower() in self._known:
                if name not in self._texts:
                    self._texts[name] = _text(self._piece.data.column(name))
                found = _first_of(found, self._texts[name])
        return found


def _text(column: Column) -> pa.Array:
    """The values of a column as Python would write them; most often they are text already."""
    column = plain(column)
    if (only := column.only(TEXT)) is not None:
        return only
    if (only := column.only(DATETIME)) is not None:
        return pa.array(moments_text(only), pa.string())
    return pa.array([None if value is None else str(value) for value in column.to_list()], pa.string())


def _filled(found: pa.Array, origin: Payload | None, column: str) -> pa.Array:
    """`found` with its gaps filled from the events that the rows were made from."""
    if origin is None or found.null_count == 0:
        return found
    metadata = origin.metadata(column)
    if not metadata.kinds():  # none of the events has it
        return found
    given = metadata.to_arrow()
    return _first_of(found, given if given.type == pa.string() else given.cast(pa.string()))


def _first_of(found: pa.Array, other: pa.Array) -> pa.Array:
    """`found`, and `other` where that is null."""
    if found.null_count == 0:
        return found
    return other if found.null_count == len(found) else pc.coalesce(found, other)


def _known(found: pa.Array) -> pa.Array:
    return found if found.null_count == 0 else pc.fill_null(found, "")
