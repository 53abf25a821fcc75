"""A query's rows as events.

A row's event id is made from its producer, epoch and place, so that a job run again after a crash gives every row the id it
had before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.core.identity import derived_event_id
from headrace.core.schema import JSON_TYPE, EventBatch, event_batch
from headrace.sql.decode import Payload
from headrace.sql.run import OutputRows

_DEVICE = ("deviceId", "device_id", "device", "machineId", "machine_id")
_ENTITY = ("entityId", "entity_id", "machineId", "machine_id")
_SITE = ("factory", "site")


def output_events(pieces: Sequence[OutputRows], *, producer: str, epoch: int) -> EventBatch:
    """The rows of one output in one epoch, as one batch, in order.

    `_device` is the first of deviceId, device_id, device, machineId, machine_id that a row has (in any case), `_entity_id`
    the first of entityId, entity_id, machineId, machine_id, else the device; `_site` is factory or site. What a row lacks
    it has from the event it was made from, where there is exactly one.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("_device", "_entity_id", "_type", "_site", "_body")}
    for piece in pieces:
        origin = piece.data.origin
        devices = _filled(_named(piece, _DEVICE), origin, "_device")
        entities = _named(piece, _ENTITY)
        columns["_device"] += [found or "" for found in devices]
        columns["_entity_id"] += [found or other or "" for found, other in zip(entities, devices, strict=True)]
        columns["_site"] += _filled(_named(piece, _SITE), origin, "_site")
        columns["_type"] += [piece.output] * piece.rows
        columns["_body"] += piece.bodies()
    rows = len(columns["_body"])
    prefix = derived_event_id(producer, epoch, 0).removesuffix("0")
    columns["_event_id"] = [f"{prefix}{row}" for row in range(rows)]
    columns["_content_type"] = [JSON_TYPE] * rows
    return event_batch(columns)


def _named(piece: OutputRows, wanted: Sequence[str]) -> list[str | None]:
    """Per row, the first of the `wanted` columns that has a value, as text."""
    known = None if piece.names is None else {name.lower() for name in piece.names}
    found: list[str | None] = [None] * piece.rows
    for name in wanted:
        if known is not None and name.lower() not in known:
            continue
        values = piece.column(name)
        found = [old if old is not None or new is None else str(new) for old, new in zip(found, values, strict=True)]
        if None not in found:
            break
    return found


def _filled(found: list[str | None], origin: Payload | None, column: str) -> list[str | None]:
    """`found` with its gaps filled from the events that the rows were made from."""
    if origin is None or None not in found:
        return found
    given = origin.metadata(column).to_list()
    return [old if old is not None else new for old, new in zip(found, given, strict=True)]
