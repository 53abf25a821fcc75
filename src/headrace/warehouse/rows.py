"""Events as rows of the entity tables.

PostgreSQL's jsonb refuses some JSON that is valid (a NUL in a text) and all that is not. Neither may stop a batch: such a
body is stored as `{"_raw": "<text>"}`, or `{"_raw_base64": "…"}` where it is not text, so that every event is a row.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from headrace.core.clock import from_iso
from headrace.core.errors import UserError
from headrace.core.schema import EventBatch
from headrace.warehouse.contract import BadRow

KEY_CHARACTERS_MAX = 300  # at four bytes each, two of them still fit an index entry of 2,704 bytes
TELEMETRY, AGGREGATE = "machine_telemetry", "maintenance_aggregate"

_PLACE = {"stream": pa.string(), "log_partition": pa.int32(), "log_offset": pa.int64()}
COLUMNS: Mapping[str, Mapping[str, pa.DataType]] = {
    TELEMETRY: {
        "machine_id": pa.string(),
        "event_id": pa.string(),
        "event_type": pa.string(),
        "site": pa.string(),
        "enqueued": pa.int64(),
        "event": pa.string(),
        **_PLACE,
    },
    AGGREGATE: {
        "window_end": pa.int64(),
        "requirement": pa.string(),
        "factory": pa.string(),
        "machine_id": pa.string(),
        "measures": pa.string(),
        "event_id": pa.string(),
        **_PLACE,
    },
}
"""What `load` takes for each entity table. Times are ticks, `event` and `measures` JSON text."""

_AGGREGATE_FIELDS = {name: name for name in ("window_end", "requirement", "factory", "machine_id")} | {
    "windowend": "window_end",
    "machineid": "machine_id",
}


def telemetry_rows(batch: EventBatch, stream: str) -> tuple[pa.Table, tuple[BadRow, ...]]:
    """Rows of `machine_telemetry` from a batch of the log. Every event has one; none is bad."""
    taken = {
        "machine_id": batch.column("_entity_id"),
        "event_id": batch.column("_event_id"),
        "event_type": batch.column("_type"),
        "site": batch.column("_site"),
        "enqueued": batch.column("_enqueued"),
        "event": pa.array([json_text(body) for body in batch.column("_body").to_pylist()], pa.string()),
    }
    return _table(TELEMETRY, {**taken, **_place(batch, stream)}), ()


def aggregate_rows(batch: EventBatch, stream: str) -> tuple[pa.Table, tuple[BadRow, ...]]:
    """Rows of `maintenance_aggregate` from a batch whose bodies are a job's output rows.

    `windowEnd`, `requirement`, `factory` and `machineId` (any case, with or without `_`) are columns, the rest goes to
    `measures`. Without a machine the event's entity is it. Bodies without a window end are bad rows; the table has the
    other rows, in order.
    """
    good: list[int] = []
    bad: list[BadRow] = []
    found: list[dict[str, Any]] = []
    entities = batch.column("_entity_id").to_pylist()
    for row, body in enumerate(batch.column("_body").to_pylist()):
        try:
            found.append(_aggregate(body, entities[row]))
            good.append(row)
        except ValueError as exc:
            bad.append(BadRow(row, "not_an_aggregate", str(exc)))
    kept = batch.take(pa.array(good, pa.int64()))
    columns: dict[str, Any] = {
        name: [row[name] for row in found]
        for name in ("window_end", "requirement", "factory", "machine_id", "measures")
    }
    columns["event_id"] = kept.column("_event_id")
    return _table(AGGREGATE, {**columns, **_place(kept, stream)}), tuple(bad)


def _aggregate(body: bytes, entity: str) -> dict[str, Any]:
    document = orjson.loads(body)
    if not isinstance(document, dict):
        raise ValueError("the body is not a JSON object")
    row: dict[str, Any] = dict.fromkeys(_AGGREGATE_FIELDS.values())
    measures: dict[str, Any] = {}
    for name, value in document.items():
        target = _AGGREGATE_FIELDS.get(name.lower())
        if target is None or row[target] is not None:
            measures[name] = value
        else:
            row[target] = value if value is None or isinstance(value, str) else str(value)
    if row["window_end"] is None:
        raise ValueError("the body has no windowEnd")
    try:
        row["window_end"] = from_iso(row["window_end"])
    except UserError as exc:
        raise ValueError(f"windowEnd: {exc.message}") from exc
    row["machine_id"] = row["machine_id"] or entity
    row["measures"] = json_text(orjson.dumps(measures))
    return row


def _place(batch: EventBatch, stream: str) -> dict[str, Any]:
    return {
        "stream": [stream] * batch.num_rows,
        "log_partition": batch.column("_partition"),
        "log_offset": batch.column("_offset"),
    }


def _table(table: str, columns: Mapping[str, Any]) -> pa.Table:
    schema = pa.schema(list(COLUMNS[table].items()))
    return pa.table({field.name: _array(columns[field.name], field.type) for field in schema}, schema=schema)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)


def json_text(body: bytes) -> str:
    """A body as JSON text that jsonb takes: itself where possible, else wrapped."""
    try:
        document = orjson.loads(body)
        if b"\\u0000" not in body or not _has_nul(document):
            return body.decode()
    except ValueError:
        pass
    return orjson.dumps(_wrapped(body)).decode()


def _wrapped(body: bytes) -> dict[str, str]:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return {"_raw_base64": base64.b64encode(body).decode()}
    return {"_raw": text}


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in name or _has_nul(inner) for name, inner in value.items())
    return isinstance(value, list) and any(_has_nul(inner) for inner in value)


def unstorable(rows: pa.Table, names: Sequence[str]) -> list[BadRow]:
    """Rows whose keys PostgreSQL cannot hold: none at all, a text with a NUL in it, or too long for an index."""
    bad: dict[int, BadRow] = {}
    for name in names:
        for row, value in enumerate(rows[name].to_pylist()):
            if value is None:
                bad.setdefault(row, BadRow(row, "no_key", f"{name} is null"))
            elif "\0" in value:
                bad.setdefault(row, BadRow(row, "nul_in_key", f"{name} holds a NUL character"))
            elif len(value) > KEY_CHARACTERS_MAX:
                bad.setdefault(row, BadRow(row, "key_too_long", f"{name} has {len(value):,} characters"))
    return [bad[row] for row in sorted(bad)]
