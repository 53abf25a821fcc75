"""Payloads: the bodies of a batch, decoded once for all that read them, and only the fields that are wanted.

What a body means is `decoder.Decoder`'s affair; a payload holds on to its columns, and finds those that nobody foresaw.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.schema import LOG_SCHEMA, EventBatch
from headrace.sql import values
from headrace.sql.decoder import VIRTUAL, Decoder, Fields, decode_record, decode_records, get_field
from headrace.sql.values import DATETIME, TEXT, Bools, Column, Ints

__all__ = ["VIRTUAL", "Decoder", "Payload", "get_field", "mask_of"]


class Payload:
    """Events (LOG_SCHEMA, every body a JSON object) and their fields, each decoded once.

    Taking rows and joining payloads is lazy: a column is gathered when somebody asks for it.
    """

    rows: int

    def column(self, name: str) -> Column:
        """The values of a field by name; null where it is absent."""
        raise NotImplementedError

    def events(self) -> EventBatch:
        """The events as they came."""
        raise NotImplementedError

    def records(self) -> list[dict[str, Any]]:
        """Whole payloads as dicts. They are shared: never change one."""
        raise NotImplementedError

    def settle(self) -> Payload:
        """The same, holding on to nothing but its own rows: for what waits in a buffer."""
        raise NotImplementedError

    def places(self, of: Payload) -> Ints:
        """Where in `of` each of these rows stands: they were taken from it, or both from a third."""
        if self is of:
            return np.arange(self.rows)
        assert isinstance(self, _Taken), "made from other rows"
        if self._of is of:
            return self._at
        assert isinstance(of, _Taken), "made from other rows"
        assert self._of is of._of, "made from other rows"
        back = np.zeros(of._of.rows, np.int64)
        back[of._at] = np.arange(of.rows)
        return back[self._at]

    def arrivals(self) -> Ints:
        """When each event was enqueued, ticks."""
        found: Ints = self.events().column("_enqueued").to_numpy()
        return found

    def metadata(self, name: str) -> Column:
        """A system column of the events as text: `_event_id`, `_device`, ..."""
        raise NotImplementedError

    def take(self, at: Ints) -> Payload:
        return _Taken(self, at)

    @staticmethod
    def concat(payloads: Sequence[Payload]) -> Payload:
        return payloads[0] if len(payloads) == 1 else _Joined(payloads)

    @staticmethod
    def split(events: EventBatch, decoder: Decoder) -> tuple[Payload, Ints, list[str]]:
        """The payload of the events that can be decoded, the rows that cannot, and what is wrong with each."""
        fields = decoder.read(events.column("_body"))
        if not fields.bad:
            return _Decoded(events, decoder, fields), np.zeros(0, np.int64), []
        bad = np.fromiter(fields.bad, np.int64, len(fields.bad))
        good = np.flatnonzero(~mask_of(fields.rows, bad))
        return _Decoded(events.take(pa.array(good)), decoder, _take(fields, good)), bad, list(fields.bad.values())


def _take(fields: Fields, at: Ints) -> Fields:
    return Fields(
        len(at),
        {name: column.take(at) for name, column in fields.columns.items()},
        {name: absent[at] for name, absent in fields.absent.items()},
        None if fields.records is None else [fields.records[row] for row in at.tolist()],
        {},
    )


class _Decoded(Payload):
    def __init__(self, events: EventBatch, decoder: Decoder, fields: Fields) -> None:
        self._events = events
        self._decoder = decoder
        self.rows = events.num_rows
        self._records = fields.records
        self._arrivals: Ints | None = None
        self._spellings: dict[str, list[str]] | None = None  # of the fields that `_records` have, by their lower case
        self._columns = {name: self._filled(name, column, fields) for name, column in fields.columns.items()}

    def events(self) -> EventBatch:
        return self._events

    def arrivals(self) -> Ints:
        if self._arrivals is None:
            self._arrivals = super().arrivals()
        return self._arrivals

    def metadata(self, name: str) -> Column:
        return _metadata(self._events.column(name))

    def settle(self) -> Payload:
        return self

    def _filled(self, name: str, column: Column, fields: Fields) -> Column:
        """The column with the events' own values where the payload has no such field."""
        absent = fields.absent.get(name)
        if absent is None:
            return column
        return values.merge(self.rows, [(~absent, column), (absent, self._virtual(name.lower()))])

    def _virtual(self, name: str) -> Column:
        if name == "partitionid":
            return values.of(values.BIGINT, self._events.column("_partition").to_numpy().astype(np.int64))
        if name == "iothub":
            devices = self._events.column("_device").to_pylist()
            ids = self._events.column("_event_id").to_pylist()
            return values.from_values(
                [{"ConnectionDeviceId": device, "MessageId": id} for device, id in zip(devices, ids, strict=True)]
            )
        return values.of(DATETIME, self.arrivals())

    def column(self, name: str) -> Column:
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = self._find(name)
        return column

    def _find(self, name: str) -> Column:
        if self._records is None:  # a name that the plan did not foresee
            one = Decoder([name], compiled=self._decoder.library is not None)
            if one.whole:
                return values.from_values([get_field(record, name) for record in self.records()])
            fields = one.read(self._events.column("_body"))
            return self._filled(name, fields.columns[name], fields)
        column = self._field(self._records, name)
        if name.lower() not in VIRTUAL:
            return column
        present = column.valid()
        return values.merge(self.rows, [(present, column), (~present, self._virtual(name.lower()))])

    def _field(self, records: list[dict[str, Any]], name: str) -> Column:
        """A field of whole payloads. Its spellings are looked up in the batch, not in each row: most are absent or one."""
        if self._spellings is None:
            self._spellings = {}
            for key in set(chain.from_iterable(records)):
                self._spellings.setdefault(key.lower(), []).append(key)
        found = self._spellings.get(name.lower(), [])
        if not found:
            return Column(self.rows)
        if len(found) == 1:
            (key,) = found
            return values.from_values([record.get(key) for record in records])
        return values.from_values([get_field(record, name) for record in records])

    def records(self) -> list[dict[str, Any]]:
        if self._records is None:
            bodies = self._events.column("_body")
            self._records = decode_records(bodies) or [decode_record(body) for body in bodies.to_pylist()]
        return self._records


class _Taken(Payload):
    """Some rows of another payload."""

    def __init__(self, of: Payload, at: Ints) -> None:
        inner = of if isinstance(of, _Taken) else None
        self._of: Payload = inner._of if inner else of
        self._at: Ints = inner._at[at] if inner else at
        self.rows = len(at)
        self._columns: dict[str, Column] = {}

    def column(self, name: str) -> Column:
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = self._of.column(name).take(self._at)
        return column

    def events(self) -> EventBatch:
        return self._of.events().take(pa.array(self._at))

    def metadata(self, name: str) -> Column:
        return self._of.metadata(name).take(self._at)

    def arrivals(self) -> Ints:
        return self._of.arrivals()[self._at]

    def records(self) -> list[dict[str, Any]]:
        records = self._of.records()
        return [records[row] for row in self._at.tolist()]

    def settle(self) -> Payload:
        decoder = _decoder_of(self)
        columns = {} if decoder.whole else {name: self.column(name) for name in decoder.names}
        records = self.records() if decoder.whole else None
        return _Decoded(self.events(), decoder, Fields(self.rows, columns, {}, records, {}))


class _Joined(Payload):
    """Several payloads, one after the other."""

    def __init__(self, of: Sequence[Payload]) -> None:
        self._of = list(of)
        self.rows = sum(payload.rows for payload in of)
        self._columns: dict[str, Column] = {}

    def column(self, name: str) -> Column:
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = values.concat([payload.column(name) for payload in self._of])
        return column

    def events(self) -> EventBatch:
        batches = [payload.events().select(LOG_SCHEMA.names) for payload in self._of]
        return pa.Table.from_batches(batches).combine_chunks().to_batches(max_chunksize=None)[0]

    def metadata(self, name: str) -> Column:
        return values.concat([payload.metadata(name) for payload in self._of])

    def arrivals(self) -> Ints:
        return np.concatenate([payload.arrivals() for payload in self._of])

    def records(self) -> list[dict[str, Any]]:
        return [record for payload in self._of for record in payload.records()]

    def settle(self) -> Payload:
        return _Taken(self, np.arange(self.rows)).settle()


def _metadata(found: pa.Array) -> Column:
    return values.of(TEXT, found, np.asarray(pc.is_valid(found)) if found.null_count else None)


def _decoder_of(payload: Payload) -> Decoder:
    while not isinstance(payload, _Decoded):
        payload = payload._of if isinstance(payload, _Taken) else payload._of[0]  # type: ignore[attr-defined]
    return payload._decoder


def mask_of(rows: int, at: Ints) -> Bools:
    mask = np.zeros(rows, np.bool_)
    mask[at] = True
    return mask
