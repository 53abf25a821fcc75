"""Waiting rows as bytes: the rows of a source, or of several joined ones, with the events they were made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from headrace.core.schema import LOG_SCHEMA
from headrace.sql import values
from headrace.sql.decode import Decoder, Payload
from headrace.sql.rows import Named, Records, Rows, Spread
from headrace.sql.state import bytes_table, pack, table_bytes, unpack


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
