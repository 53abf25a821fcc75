"""Payloads as columns: the JSON bodies of a batch, flattened by path.

Every body is parsed on its own, never joined with its neighbours: a body that is two documents, or half of one, can then
not shift the rows of another device. Nothing is dropped: what does not fit a column is in `_rescued`, what does not parse
is in `_error`, and `_body` keeps what was received.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from types import NoneType
from typing import Any, TypeAlias

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.clock import TICKS_PER_US
from headrace.core.schema import LOG_SCHEMA, EventBatch

Types: TypeAlias = pa.Schema | Mapping[str, pa.DataType]

TIME_TYPE = pa.timestamp("us", tz="UTC")
SYSTEM_COLUMNS = frozenset([*LOG_SCHEMA.names, "_time", "_stream", "_date", "_rescued", "_error", "_body_encoding"])
"""Columns that a payload field cannot take, in any spelling; such a field is rescued."""

_EMPTY: dict[str, Any] = {}
_BOM = b"\xef\xbb\xbf"
_INT64_LIMIT = float(1 << 63)  # orjson turns integers beyond 64 bits into floats


def flatten(batch: EventBatch, *, schema: Types | None = None, depth_max: int = 8, fields_max: int = 2000) -> pa.Table:
    """The batch with its payload as columns, one row per row, in order.

    First the system columns that the batch has (`_body` apart) and `_time` (timestamp[us, UTC] of `_enqueued`), then a
    column per payload field in order of appearance, then `_rescued`, `_error`, `_body`, `_body_encoding` (all text).

    - A field inside an object is `outer.inner`; objects deeper than `depth_max`, and arrays, are JSON text.
    - Numbers are float64, the rest bool or text. A column's type is the one in `schema`, else the most frequent in the
      batch (the first seen on a tie). A value that does not fit, an integer that float64 cannot hold exactly, a field named
      like a system column and fields beyond `fields_max` are null and kept in `_rescued`: JSON text of {path: value}.
    - Spellings that differ only in case are one column: the spelling of `schema`, else the first seen.
    - A body that is no JSON object has nulls and says why in `_error`.
    - `_body` is the body as text; one that is not UTF-8 is base64, and `_body_encoding` then says `base64`.

    About 2 microseconds a row of 8 fields, all of it under the GIL.
    """
    bodies: list[bytes] = batch.column("_body").to_pylist()
    documents, errors = _parse(bodies)
    columns = _Columns(len(bodies), schema, depth_max, fields_max)
    columns.collect(documents)
    arrays, suspects = columns.arrays()
    if suspects:  # read again with a parser that keeps integers of any size
        for row in suspects:
            documents[row] = json.loads(bodies[row])
        columns = _Columns(len(bodies), schema, depth_max, fields_max)
        columns.collect(documents)
        arrays, _ = columns.arrays()
    text, encoding = _text(batch.column("_body"))
    return pa.table(
        {
            **_system(batch),
            **arrays,
            "_rescued": columns.rescued_json(),
            "_error": pa.array(errors, pa.string()),
            "_body": text,
            "_body_encoding": encoding,
        }
    )


def field_names(batch: EventBatch) -> list[str]:
    """Paths of the payload fields that hold a value somewhere in the batch, in order of appearance."""
    return [name for name in flatten(batch.select(["_body"])).column_names if name not in SYSTEM_COLUMNS]


def times(ticks: pa.Array) -> pa.Array:
    """Ticks (int64) as timestamp[us, UTC], rounded down."""
    microseconds = np.floor_divide(ticks.to_numpy(zero_copy_only=False), TICKS_PER_US)
    return pa.array(microseconds, pa.int64()).cast(TIME_TYPE)


def _system(batch: EventBatch) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {}
    for name in batch.schema.names:
        if name == "_body":
            continue
        columns[name] = batch.column(name)
        if name == "_enqueued":
            columns["_time"] = times(columns[name])
    return columns


def _parse(bodies: Sequence[bytes]) -> tuple[list[dict[str, Any]], list[str | None]]:
    """One document per body (an empty one where there is none) and what was wrong."""
    documents: list[dict[str, Any]] = []
    errors: list[str | None] = [None] * len(bodies)
    loads, keep = orjson.loads, documents.append
    for row, body in enumerate(bodies):
        try:
            document = loads(body)
        except orjson.JSONDecodeError as exc:
            document, errors[row] = _parse_again(body, exc)
        if type(document) is not dict:
            errors[row] = f"not a JSON object but {_KIND_NAMES[type(document)]}"
            document = _EMPTY
        keep(document)
    return documents, errors


def _parse_again(body: bytes, problem: orjson.JSONDecodeError) -> tuple[Any, str | None]:
    if not body:
        return _EMPTY, "empty body"
    if body.startswith(_BOM):
        try:
            return orjson.loads(body[len(_BOM) :]), None
        except orjson.JSONDecodeError as exc:
            problem = exc
    return _EMPTY, f"not JSON: {problem}"


_KIND_NAMES = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    NoneType: "null",
}


class _Columns:
    """The values of each path, while they are gathered."""

    def __init__(self, rows: int, schema: Types | None, depth_max: int, fields_max: int) -> None:
        self._rows = rows
        self._types = _payload_types(schema)
        self._spelling = {name.casefold(): name for name in self._types}
        self._depth_max = depth_max
        self._fields_max = fields_max
        self._values: dict[str, list[Any]] = {}
        self._kinds: dict[str, set[type]] = {}
        self._rescued: dict[int, dict[str, Any]] = {}

    def collect(self, documents: Sequence[dict[str, Any]], prefix: str = "", depth: int = 1) -> None:
        """Take the fields of all documents; `prefix` is the path that leads to them."""
        for name in dict.fromkeys(chain.from_iterable(documents)):
            values = [document.get(name) for document in documents]
            kinds = set(map(type, values))
            kinds.discard(NoneType)
            path = prefix + name
            if dict in kinds and depth < self._depth_max:
                self.collect([value if type(value) is dict else _EMPTY for value in values], path + ".", depth + 1)
                kinds.discard(dict)
                if kinds:
                    values = [None if type(value) is dict else value for value in values]
            if kinds & {dict, list}:
                values = [_json(value) if type(value) in (dict, list) else value for value in values]
                kinds = kinds - {dict, list} | {str}
            if kinds:
                self._add(path, values, kinds)

    def _add(self, path: str, values: list[Any], kinds: set[type]) -> None:
        folded = path.casefold()
        spelling = self._spelling.get(folded, path)
        if not path or folded in SYSTEM_COLUMNS:
            self._rescue(path, enumerate(values))
        elif spelling in self._values:
            self._merge(spelling, path, values, kinds)
        elif len(self._values) >= self._fields_max and spelling not in self._types:
            self._rescue(path, enumerate(values))
        else:
            self._spelling[folded] = spelling
            self._values[spelling] = values
            self._kinds[spelling] = kinds

    def _merge(self, spelling: str, path: str, values: list[Any], kinds: set[type]) -> None:
        """A second way to write a path that is known: fill its gaps, rescue what has no place."""
        first = self._values[spelling]
        taken = ((row, new) for row, (old, new) in enumerate(zip(first, values, strict=True)) if old is not None)
        self._rescue(path, taken)
        self._values[spelling] = [new if old is None else old for old, new in zip(first, values, strict=True)]
        self._kinds[spelling] = self._kinds[spelling] | kinds

    def _rescue(self, path: str, values: Any) -> None:
        for row, value in values:
            if value is None:
                continue
            kept = self._rescued.setdefault(row, {})
            kept[path if path not in kept else f"{path}#{len(kept)}"] = value

    def arrays(self) -> tuple[dict[str, pa.Array], list[int]]:
        """A column per path, and the rows whose integers may have lost digits in the parser."""
        made: dict[str, pa.Array] = {}
        suspects: set[int] = set()
        for name, values in self._values.items():
            kinds = self._kinds[name]
            target = self._types.get(name) or _majority(values, kinds)
            made[name] = self._array(name, values, kinds, target)
            if target == pa.float64() and float in kinds:
                suspects.update(_beyond_int64(made[name], values))
        return made, sorted(suspects)

    def _array(self, name: str, values: list[Any], kinds: set[type], target: pa.DataType) -> pa.Array:
        if kinds <= _KINDS_OF.get(target, frozenset()):
            try:
                return pa.array(values, target)
            except (pa.ArrowInvalid, OverflowError):
                pass  # an integer beyond 53 bits: look at each value
        fits = _FITS.get(target) or _fits_by_trying(target)
        kept = [value if value is None or fits(value) else None for value in values]
        misfits = ((row, value) for row, value in enumerate(values) if value is not None and kept[row] is None)
        self._rescue(name, misfits)
        if target == pa.float64():
            kept = [None if value is None else float(value) for value in kept]
        return pa.array(kept, target)

    def rescued_json(self) -> pa.Array:
        if not self._rescued:
            return pa.nulls(self._rows, pa.string())
        texts: list[str | None] = [None] * self._rows
        for row, fields in self._rescued.items():
            texts[row] = json.dumps(fields, ensure_ascii=False)  # unlike orjson, any integer
        return pa.array(texts, pa.string())


_KINDS_OF = {
    pa.float64(): frozenset([int, float]),
    pa.bool_(): frozenset([bool]),
    pa.string(): frozenset([str]),
}


def _is_exact(value: Any) -> bool:
    if type(value) is not int:
        return type(value) is float
    try:
        return int(float(value)) == value
    except OverflowError:
        return False


_FITS: dict[pa.DataType, Callable[[Any], bool]] = {
    pa.float64(): _is_exact,
    pa.bool_(): lambda value: type(value) is bool,
    pa.string(): lambda value: type(value) is str,
}


def _fits_by_trying(target: pa.DataType) -> Callable[[Any], bool]:
    """For a column of a type that payloads do not give by themselves: whatever Arrow converts."""

    def fits(value: Any) -> bool:
        try:
            pa.array([value], target)
        except (pa.ArrowException, OverflowError):
            return False
        return True

    return fits


def _payload_types(schema: Types | None) -> dict[str, pa.DataType]:
    if schema is None:
        return {}
    pairs = ((field.name, field.type) for field in schema) if isinstance(schema, pa.Schema) else schema.items()
    return {name: kind for name, kind in pairs if name not in SYSTEM_COLUMNS}


def _majority(values: Sequence[Any], kinds: set[type]) -> pa.DataType:
    for target, wanted in _KINDS_OF.items():
        if kinds <= wanted:
            return target
    votes = Counter(_target_of(type(value)) for value in values if value is not None)
    return votes.most_common(1)[0][0]  # the first seen wins a tie


def _target_of(kind: type) -> pa.DataType:
    return pa.bool_() if kind is bool else pa.string() if kind is str else pa.float64()


def _beyond_int64(column: pa.Array, values: Sequence[Any]) -> list[int]:
    bounds = pc.min_max(column)
    low, high = bounds["min"].as_py(), bounds["max"].as_py()
    if low is None or (low > -_INT64_LIMIT and high < _INT64_LIMIT):
        return []
    return [row for row, value in enumerate(values) if type(value) is float and abs(value) >= _INT64_LIMIT]


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # integers beyond 64 bits, on the exact second reading
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _text(bodies: pa.Array) -> tuple[pa.Array, pa.Array]:
    try:
        return bodies.cast(pa.string()), pa.nulls(len(bodies), pa.string())
    except pa.ArrowInvalid:
        pairs = [_text_of(body) for body in bodies.to_pylist()]
        return pa.array([text for text, _ in pairs], pa.string()), pa.array([mark for _, mark in pairs], pa.string())


def _text_of(body: bytes) -> tuple[str, str | None]:
    try:
        return body.decode(), None
    except UnicodeDecodeError:
        return base64.b64encode(body).decode(), "base64"
