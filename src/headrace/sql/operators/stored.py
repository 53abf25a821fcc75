"""Rows and columns in a state: a column as Arrow columns; the rows of a source as bytes, with the events they were made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.schema import LOG_SCHEMA
from headrace.sql import values
from headrace.sql.decode import Decoder, Payload
from headrace.sql.rows import Named, Records, Rows, Spread
from headrace.sql.state import bytes_table, pack, table_bytes, unpack
from headrace.sql.values import ARRAY, BIGINT, BIT, DATETIME, FLOAT, RECORD, TEXT, Column, Part

_TYPES = {
    BIGINT: pa.int64(),
    FLOAT: pa.float64(),
    BIT: pa.bool_(),
    DATETIME: pa.int64(),
    TEXT: pa.string(),
    RECORD: pa.binary(),
    ARRAY: pa.binary(),
}


def arrow_columns(name: str, column: Column) -> dict[str, pa.Array]:
    """A column as Arrow columns `name.kind`, one per kind, null where the value is of another. There is always one: a
    column of nulls is `name.null`.
    """
    found: dict[str, pa.Array] = {}
    for kind, data, mask in values.plain(column).parts:
        if kind == TEXT:
            array = data if mask is None else pc.if_else(pa.array(mask), data, pa.scalar(None, pa.string()))
        elif kind in (RECORD, ARRAY):
            there = np.ones(column.rows, np.bool_) if mask is None else mask
            packed = [pack(value) if has else None for value, has in zip(data, there, strict=True)]
            array = pa.array(packed, pa.binary())
        else:
            array = pa.array(data, _TYPES[kind], mask=None if mask is None else ~mask)
        found[f"{name}.{kind}"] = array
    return found or {f"{name}.null": pa.nulls(column.rows, pa.bool_())}


def column_from(name: str, table: pa.Table) -> Column:
    """What `arrow_columns` stored."""
    parts: list[Part] = []
    for kind, type_ in _TYPES.items():
        if f"{name}.{kind}" not in table.column_names:
            continue
        array = table.column(f"{name}.{kind}").combine_chunks()
        array = array.cast(type_)
        mask = None if not array.null_count else np.asarray(array.is_valid())
        if mask is not None and not mask.any():
            continue
        if kind == TEXT:
            data = array
        elif kind in (RECORD, ARRAY):
            data = np.empty(len(array), object)
            for row, packed in enumerate(array.to_pylist()):
                data[row] = None if packed is None else unpack(packed)
        else:
            data = array.fill_null(False if kind == BIT else 0).to_numpy(zero_copy_only=False)
        if len(array):
            parts.append(Part(kind, data, mask))
    return Column(table.num_rows, parts)


def store_rows(rows: Rows) -> bytes:
    """One source's rows. A payload is stored as its events, so that nothing of it is lost."""
    events = None
    if rows.origin is not None:
        events = table_bytes(pa.Table.from_batches([rows.origin.events().select(LOG_SCHEMA.names)]))
    items: list[Any] = []
    for item in rows.items:
        if isinstance(item, Named):
            items.append([item.name, item.column.to_list()])
        elif item is rows.origin or (isinstance(item, Payload) and rows.origin is not None):
            items.append(None)
        else:
            items.append(["", item.records()])
    return pack([rows.times.tolist(), events, items])


def load_rows(data: bytes) -> Rows:
    times, events, items = unpack(data)
    origin: Payload | None = None
    if events is not None:
        batches = bytes_table(events).combine_chunks().to_batches()
        batch = batches[0] if batches else LOG_SCHEMA.empty_table().to_batches()[0]
        origin, bad, _ = Payload.split(batch, Decoder([], whole=True))
        assert not len(bad), "what waits was decoded before"
    made: list[Named | Spread] = []
    for item in items:
        if item is None:
            assert origin is not None
            made.append(origin)
        elif item[0] == "":
            made.append(Records(item[1]))
        else:
            made.append(Named(item[0], values.from_values(item[1])))
    return Rows(np.array(times, np.int64), made, origin)
