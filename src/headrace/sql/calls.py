"""Calls that reach beyond values: user functions over Arrow, and an event's metadata."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.errors import DataError, HeadraceError
from headrace.sql import tree, values
from headrace.sql.decode import Payload, get_field
from headrace.sql.evaluate import Eval, Frame, RowFault
from headrace.sql.functions.user import UserFunction
from headrace.sql.moments import Moment
from headrace.sql.reference import PackedValues, packed_values
from headrace.sql.rows import either
from headrace.sql.scope import Scope, fail
from headrace.sql.values import BIGINT, BIT, DATETIME, FLOAT, TEXT, Column

_FAILED = "sql.function_failed"


def user_call(function: UserFunction, args: list[Eval]) -> Eval:
    """A call of a user function. What it raises is a fault of the rows that make it raise: a batch that fails is halved until
    these are found. Errors of ours (a model that is not there now, say) are no fault of a row and pass through.
    """

    def run(frame: Frame) -> Column:
        given = [values.plain(arg(frame)).to_arrow() for arg in args]
        if frame.rows == 0 or not given:
            return _called(function, given, frame.rows)
        pieces = _halved(function, given, 0, frame.rows, frame)
        return pieces[0] if len(pieces) == 1 else values.concat(pieces)

    return run


def _halved(function: UserFunction, given: list[pa.Array], start: int, rows: int, frame: Frame) -> list[Column]:
    """Results for `rows` rows from `start` on, in order; a row that fails by itself is a fault and null."""
    try:
        return [_called(function, [arg.slice(start, rows) for arg in given], rows)]
    except DataError as exc:
        if exc.code != _FAILED:
            raise
        if rows == 1:
            frame.faults.append(RowFault(start, "function_failed", str(exc)))
            return [Column(1)]
        half = rows // 2
        first = _halved(function, given, start, half, frame)
        return first + _halved(function, given, start + half, rows - half, frame)


def _called(function: UserFunction, given: list[pa.Array], rows: int) -> Column:
    try:
        found = function.call(given)
        if len(found) != rows:
            raise ValueError(f"it returned {len(found)} values for {rows} rows")
        return from_arrow(found)
    except HeadraceError:
        raise
    except Exception as exc:
        raise DataError(f"{function.name} failed: {type(exc).__name__}: {exc}", code=_FAILED) from exc


def from_arrow(found: Any) -> Column:
    """A column from an Arrow array. Times become datetimes; NaN becomes null, as NaN is no value of this language."""
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    if isinstance(found, pa.ChunkedArray):
        found = pa.concat_arrays(found.chunks) if found.num_chunks else pa.nulls(0)
    kind = found.type
    if pa.types.is_dictionary(kind):
        found = found.dictionary_decode()
        kind = found.type
    if isinstance(kind, PackedValues):
        return values.from_values(packed_values(found))
    nulls = found.null_count > 0
    mask = np.asarray(pc.is_valid(found)) if nulls else None
    if pa.types.is_null(kind):
        return Column(len(found))
    if pa.types.is_boolean(kind):
        return values.of(BIT, np.asarray(pc.fill_null(found, False) if nulls else found), mask)
    if pa.types.is_integer(kind):
        return values.of(BIGINT, np.asarray(pc.fill_null(found, 0) if nulls else found).astype(np.int64), mask)
    if pa.types.is_floating(kind):
        data = np.asarray(pc.fill_null(found, 0.0) if nulls else found).astype(np.float64)
        finite = np.isfinite(data)
        if not finite.all():
            mask = finite if mask is None else mask & finite
        return values.of(FLOAT, data, mask)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return values.of(TEXT, pc.cast(found, pa.string()), mask)
    if pa.types.is_timestamp(kind):
        micros = np.asarray(pc.fill_null(pc.cast(found.cast(pa.timestamp("us", kind.tz)), pa.int64()), 0))
        return values.of(DATETIME, micros * 10, mask)
    return values.from_values([_plain_value(value) for value in found.to_pylist()])


def _plain_value(value: Any) -> Any:
    """A Python value of Arrow's as a value of ours."""
    if value is None or type(value) in (int, float, bool, str):
        return value
    if isinstance(value, dict):
        return {str(name): _plain_value(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(part) for part in value]
    if isinstance(value, Moment):
        return value
    return str(value)


_SYSTEM = {
    "eventid": "_event_id",
    "deviceid": "_device",
    "connectiondeviceid": "_device",
    "iothub.connectiondeviceid": "_device",
    "moduleid": "_module",
    "contenttype": "_content_type",
    "iothub.messageid": "_event_id",
}


def metadata(scope: Scope, node: tree.Call) -> Eval:
    """GetMetadataPropertyValue(source, 'path'): system columns and the properties a device sent along."""
    if len(node.args) != 2:
        fail(node.at, f"{node.at.text} takes a source and a path, not {len(node.args)} arguments", code="sql.arguments")
    source, path = node.args
    at = scope.named(source.parts[0]) if isinstance(source, tree.Name) and len(source.parts) == 1 else None
    if at is None:
        fail(source.at, f"{source.at.text!r} is not a source of this SELECT", hint="name the input or its alias")
    if not isinstance(path, tree.Literal) or not isinstance(path.value, str):
        fail(path.at, "the path must be a text constant", hint="'EventId', '[User].[name]'")
    segments = _segments(path.value)
    if not segments:
        fail(path.at, "the path names nothing", hint="'EventId', '[User].[name]'")
    name = ".".join(segments).lower()
    index = at

    def read(frame: Frame) -> Column:
        origin = frame.sources[index].origin
        if origin is None:
            return Column(frame.rows)
        given = [_record(text) for text in origin.metadata("_properties").to_list()]
        found = values.from_values([_nested(record, segments) for record in given])
        if name in _SYSTEM:
            return either(found, origin.metadata(_SYSTEM[name]))
        if name == "iothub":
            return either(found, _hub(origin))
        return either(found, values.from_values([_flat(record, segments) for record in given]))

    return read


_SEGMENT = re.compile(r"\[([^\]]*)\]|([^.\[\]]+)")


def _segments(path: str) -> list[str]:
    """`[User].[a.b]`, `User.a`: what is in brackets is one name."""
    return [(quoted or bare).strip() for quoted, bare in _SEGMENT.findall(path) if (quoted or bare).strip()]


def _record(text: str | None) -> dict[str, Any]:
    found = msgspec.json.decode(text) if text else {}
    return found if isinstance(found, dict) else {}


def _nested(record: dict[str, Any], segments: list[str]) -> Any:
    """What records within records hold. A device can only send texts, so nothing it sends can stand for the system's own."""
    found: Any = get_field(record, segments[0])
    if not isinstance(found, dict):
        return None
    for segment in segments[1:]:
        found = get_field(found, segment) if isinstance(found, dict) else None
    return found


def _flat(record: dict[str, Any], segments: list[str]) -> Any:
    """A property by its own name; `User.name` and `name` are the same."""
    user = segments[0].lower() == "user" and len(segments) > 1
    return get_field(record, ".".join(segments[1:] if user else segments))


def _hub(origin: Payload) -> Column:
    devices, ids = origin.metadata("_device").to_list(), origin.metadata("_event_id").to_list()
    return values.from_values(
        [{"ConnectionDeviceId": device, "MessageId": id} for device, id in zip(devices, ids, strict=True)]
    )
