"""A query's rows as events.

A row's event id is made from its producer, epoch and place, so that a job run again after a crash gives every row the id it
had before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from headrace.core.identity import derived_event_id
from headrace.core.schema import JSON_TYPE, EventBatch, event_batch
from headrace.sql.run import OutputRows

_DEVICE = ("deviceid", "device_id", "device", "machineid", "machine_id")
_ENTITY = ("entityid", "entity_id", "machineid", "machine_id")
_SITE = ("factory", "site")


def output_events(pieces: Sequence[OutputRows], *, producer: str, epoch: int) -> EventBatch:
    """The rows of one output in one epoch, as one batch, in order.

    `_device` is the first of deviceId, device_id, device, machineId, machine_id that the rows have (in any case), else
    empty; `_entity_id` the first of entityId, entity_id, machineId, machine_id, else the device; `_site` factory or site.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("_device", "_entity_id", "_type", "_site", "_body")}
    for piece in pieces:
        rows = piece.rows
        devices = _texts(piece, _DEVICE) or [None] * rows
        entities = _texts(piece, _ENTITY) or devices
        columns["_device"] += [device or "" for device in devices]
        columns["_entity_id"] += [entity or device or "" for entity, device in zip(entities, devices, strict=True)]
        columns["_site"] += _texts(piece, _SITE) or [None] * rows
        columns["_type"] += [piece.output] * rows
        columns["_body"] += piece.bodies()
    rows = len(columns["_body"])
    prefix = derived_event_id(producer, epoch, 0).removesuffix("0")
    columns["_event_id"] = [f"{prefix}{row}" for row in range(rows)]
    columns["_content_type"] = [JSON_TYPE] * rows
    return event_batch(columns)


def _texts(piece: OutputRows, wanted: Sequence[str]) -> list[str | None] | None:
    """The first of the `wanted` columns that the rows have, as text."""
    names = {name.lower(): name for name in reversed(piece.names)}
    for name in wanted:
        if name in names:
            values = piece.column(names[name])
            listed = values.to_pylist() if isinstance(values, pa.Array | pa.ChunkedArray) else values
            return [None if value is None else str(value) for value in listed]
    return None
