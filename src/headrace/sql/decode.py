"""Payloads: the bodies of a batch, decoded once for all that read them, and only the fields that are wanted.

One decoder serves any batch size: msgspec reads all lines into structs that hold only the wanted fields and skips the
rest. So a small and a large batch cannot differ. A body that is no JSON object fails alone, because lines are read again
one by one when reading them together failed. Field names match exactly first, then ignoring case.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.schema import LOG_SCHEMA, EventBatch
from headrace.sql import values
from headrace.sql.values import DATETIME, INT_MAX, INT_MIN, TEXT, Bools, Column, Ints

_UNSET = msgspec.UNSET
_UNSET_TYPE = type(_UNSET)
_RECORDS = msgspec.json.Decoder(dict[str, Any])
VIRTUAL = ("eventenqueuedutctime", "eventprocessedutctime", "partitionid", "iothub")
"""Names that every event has beside its payload; never part of `*`. Fields of that name in the payload win."""


def _fits(value: Any) -> bool:
    """Whether all integers in a value fit 64 bits."""
    kind = type(value)
    if kind is int:
        return bool(INT_MIN <= value <= INT_MAX)
    if kind is dict:
        return all(_fits(part) for part in value.values())
    if kind is list:
        return all(_fits(part) for part in value)
    return True


class Decoder:
    """Knows which fields a plan reads from one input, and under which spellings they have come so far."""

    def __init__(self, names: Sequence[str], *, whole: bool = False) -> None:
        self.names = tuple(dict.fromkeys(names))
        # Somebody needs all fields, or a name that structs cannot have: read records, and columns from them.
        self.whole = whole or any(set(name) & {'"', "\\"} or not name.isprintable() for name in self.names)
        self._compile()

    def _compile(self) -> None:
        names = () if self.whole else self.names
        fields = [(f"f{index}", Any, _UNSET) for index in range(len(names))]
        rename = {f"f{index}": name for index, name in enumerate(names)}
        struct = msgspec.defstruct("Fields", fields, rename=rename, gc=False)
        self._lines = msgspec.json.Decoder(struct)
        self._pick = [operator.attrgetter(field) for field, _, _ in fields]

    def bad_rows(self, bodies: pa.Array) -> dict[int, str]:
        """Rows that are no JSON object, with what is wrong. Called where reading all together failed."""
        bad: dict[int, str] = {}
        for row, body in enumerate(bodies.to_pylist()):
            try:
                record = _RECORDS.decode(body)
                if not _fits(record):
                    bad[row] = "an integer does not fit 64 bits"
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
                bad[row] = str(exc)[:200]
        return bad

    def records(self, bodies: pa.Array) -> list[dict[str, Any]] | None:
        """Whole payloads, or None where a body is not a JSON object."""
        return self._read(bodies, _RECORDS)

    def columns(self, bodies: pa.Array) -> dict[str, list[Any]] | None:
        """Lists of values (UNSET where the field is absent) per wanted name, or None where a body is not a JSON object."""
        objects = self._read(bodies, self._lines)
        if objects is None:
            return None
        return {name: list(map(pick, objects)) for name, pick in zip(self.names, self._pick, strict=True)}

    def _read(self, bodies: pa.Array, decoder: msgspec.json.Decoder[Any]) -> list[Any] | None:
        rows = len(bodies)
        if rows == 0:
            return []
        lines = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), bodies), b"\n")
        joined = lines[0].as_buffer()
        marks = np.frombuffer(joined, np.uint8)
        try:
            if len(marks) and marks.max() > 127:
                str(joined, "utf-8")  # skipped fields must be UTF-8 too, else the answer would depend on what is read
            if np.count_nonzero(marks == 10) == rows - 1:  # else a body holds a line break of its own
                found = decoder.decode_lines(joined)
                return found if len(found) == rows else None
            return [decoder.decode(body) if decoder is _RECORDS else self._one(body) for body in bodies.to_pylist()]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def _one(self, body: bytes) -> Any:
        return self._lines.decode(body)


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
        payload = _Decoded(events, decoder)
        if payload.decode():
            return payload, np.zeros(0, np.int64), []
        bad = decoder.bad_rows(events.column("_body"))
        keep = np.ones(events.num_rows, np.bool_)
        at = np.fromiter(bad, np.int64, len(bad))
        keep[at] = False
        payload = _Decoded(events.filter(pa.array(keep)), decoder)
        if not payload.decode():  # struct and record decoding judged differently: records win
            payload.decode_records()
        return payload, at, list(bad.values())


class _Decoded(Payload):
    def __init__(self, events: EventBatch, decoder: Decoder) -> None:
        self._events = events
        self._decoder = decoder
        self.rows = events.num_rows
        self._columns: dict[str, Column] = {}
        self._records: list[dict[str, Any]] | None = None
        self._spellings: dict[str, list[str]] | None = None  # of the fields that `_records` have, by their lower case

    def events(self) -> EventBatch:
        return self._events

    def metadata(self, name: str) -> Column:
        return _metadata(self._events.column(name))

    def settle(self) -> Payload:
        return self

    def decode(self) -> bool:
        bodies = self._events.column("_body")
        try:
            if self._decoder.whole:
                self._records = self._decoder.records(bodies)
                if self._records is not None and not all(map(_fits, self._records)):
                    self._records = None
                return self._records is not None
            columns = self._decoder.columns(bodies)
            if columns is None:
                return False
            for name, found in columns.items():
                self._columns[name] = self._finish(name, found)
        except OverflowError:
            self._columns.clear()
            return False
        return True

    def decode_records(self) -> None:
        self._records = [_RECORDS.decode(body) for body in self._events.column("_body").to_pylist()]

    def _finish(self, name: str, found: list[Any]) -> Column:
        types = set(map(type, found))
        if _UNSET_TYPE in types:
            found = self._other_spellings(name, found)
            types = set(map(type, found))
        if (dict in types or list in types) and not all(map(_fits, found)):
            raise OverflowError
        return values.from_values(found, types)

    def _other_spellings(self, name: str, found: list[Any]) -> list[Any]:
        """Fill in fields that only differ in case. Looks into a body again only where the name stands in it at all."""
        needle = name.lower().encode()
        missing = [row for row, value in enumerate(found) if value is _UNSET]
        bodies = self._events.column("_body").take(pa.array(missing)).to_pylist()
        for row, body in zip(missing, bodies, strict=True):
            found[row] = None
            if needle in body.lower() or b"\\" in body or not name.isascii():
                found[row] = _ignoring_case(_RECORDS.decode(body), name)
        if name.lower() in VIRTUAL:
            extra = self._virtual(name.lower()).to_list()
            for row in missing:
                found[row] = extra[row] if found[row] is None else found[row]
        return found

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
            if Decoder([name]).whole:
                return values.from_values([get_field(record, name) for record in self.records()])
            one = Decoder([name]).columns(self._events.column("_body"))
            assert one is not None, "the payload was decoded before"
            return self._finish(name, one.get(name, []))
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
            self._records = self._decoder.records(self._events.column("_body"))
        if self._records is None:
            self._records = [_record_or_nothing(body) for body in self._events.column("_body").to_pylist()]
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
        settled = _Decoded(self.events(), _decoder_of(self))
        for name in _decoder_of(self).names:
            settled._columns[name] = self.column(name)
        if _decoder_of(self).whole:
            settled._records = self.records()
        return settled


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


def _record_or_nothing(body: bytes) -> dict[str, Any]:
    try:
        return _RECORDS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def _lookup(record: dict[str, Any], name: str) -> Any:
    found = record.get(name, _UNSET)
    return _ignoring_case(record, name) if found is _UNSET else found


def _ignoring_case(record: dict[str, Any], name: str) -> Any:
    wanted = name.lower()
    for key, value in record.items():
        if key.lower() == wanted:
            return value
    return None


def get_field(record: Any, name: str) -> Any:
    """The field of a record by name, exact spelling first; None where it is absent or `record` is no record."""
    return _lookup(record, name) if type(record) is dict else None


def mask_of(rows: int, at: Ints) -> Bools:
    mask = np.zeros(rows, np.bool_)
    mask[at] = True
    return mask
