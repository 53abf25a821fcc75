"""Fields of JSON bodies as columns: only those that are wanted, and which bodies cannot be used.

What a body means is said once, by `Decoder.judge`, for one body. Two faster ways read whole batches and must agree with it:
the compiled parser (`sql.native`), which leaves rows to `judge` that it is not sure of, and msgspec, which reads all lines
into structs and leaves the batch to `judge` where anything fails. A body is refused where it is no JSON object in UTF-8
or where a *wanted* number does not fit 64 bits; numbers that nobody reads are only checked for their form, so refusing
does not depend on the other bodies of a batch. Field names match exactly first, then ignoring case.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.sql import native, values
from headrace.sql.native import Library, Names, Parsed
from headrace.sql.values import ARRAY, BIGINT, BIT, FLOAT, INT_MAX, INT_MIN, RECORD, TEXT, Bools, Column, Ints, Part

_UNSET = msgspec.UNSET
_UNSET_TYPE = type(_UNSET)
_RECORDS = msgspec.json.Decoder(dict[str, Any])
_SPANS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_REFUSED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_TOO_LARGE = "an integer does not fit 64 bits"
_KELVIN = "\u212a".encode()  # the one letter outside ASCII whose lower case is in it

VIRTUAL = ("eventenqueuedutctime", "eventprocessedutctime", "partitionid", "iothub")
"""Names that every event has beside its payload; never part of `*`. Fields of that name in the payload win."""

Values = list[Any]


class Fields(NamedTuple):
    """What a batch of bodies holds. Rows in `bad` are null in every column.

    `columns` by wanted name, or `records` where whole payloads are wanted. `absent`: rows without the field, kept for
    names of VIRTUAL.
    """

    rows: int
    columns: dict[str, Column]
    absent: dict[str, Bools]
    records: list[dict[str, Any]] | None
    bad: dict[int, str]


def fits(value: Any) -> bool:
    """Whether all integers in a value fit 64 bits."""
    kind = type(value)
    if kind is int:
        return bool(INT_MIN <= value <= INT_MAX)
    if kind is dict:
        return all(fits(part) for part in value.values())
    if kind is list:
        return all(fits(part) for part in value)
    return True


class Decoder:
    """Knows which fields a plan reads from one input."""

    def __init__(self, names: Sequence[str], *, whole: bool = False, compiled: bool = True) -> None:
        self.names = tuple(dict.fromkeys(names))
        # Somebody needs all fields, or a name that structs cannot have: read records, and columns from them.
        self.whole = whole or any(set(name) & {'"', "\\"} or not name.isprintable() for name in self.names)
        self.library: Library | None = native.library() if compiled and not self.whole else None
        names = () if self.whole else self.names
        fields = [(f"f{index}", Any, _UNSET) for index in range(len(names))]
        rename = {f"f{index}": name for index, name in enumerate(names)}
        struct = msgspec.defstruct("Fields", fields, rename=rename, gc=False)
        self._lines = msgspec.json.Decoder(struct)
        self._pick = [operator.attrgetter(field) for field, _, _ in fields]
        self._needles = [name.lower().encode() if name.isascii() else b"" for name in names]
        self._names = Names.of(names)

    @property
    def kind(self) -> str:
        """How bodies are read: `compiled` or `plain`."""
        return "plain" if self.library is None else "compiled"

    def read(self, bodies: pa.Array) -> Fields:
        """Every body's fields."""
        if self.whole:
            return self._read_records(bodies)
        if self.library is not None and len(bodies) and bodies.type == pa.binary() and not bodies.null_count:
            found = self._read_compiled(bodies, self.library)
            if found is not None:
                return found
        return self._read_plain(bodies)

    # -- one body

    def judge(self, body: bytes) -> Values | str:
        """The wanted fields of one body, UNSET where absent; or what is wrong with it."""
        try:
            if not body.isascii():
                str(body, "utf-8")  # skipped fields must be UTF-8 too
            one = self._lines.decode(body)
            found = [pick(one) for pick in self._pick]
            for index, value in enumerate(found):
                if value is _UNSET:
                    found[index] = self._other_spelling(index, body)
        except _REFUSED as exc:
            return str(exc)[:200]
        return found if all(map(fits, found)) else _TOO_LARGE

    def _other_spelling(self, index: int, body: bytes) -> Any:
        """The value of the first field whose name only differs in case; UNSET where there is none or it is null."""
        needle = self._needles[index]
        if not (needle in body.lower() or b"\\" in body or _KELVIN in body):
            return _UNSET  # the name stands nowhere in it
        wanted = self.names[index].lower()
        for key, span in _SPANS.decode(body).items():
            if key.lower() == wanted:
                value = _ANY.decode(span)
                return _UNSET if value is None else value
        return _UNSET

    def _judge_all(self, bodies: Iterable[bytes]) -> tuple[list[Values], dict[int, str]]:
        """The values per field of all bodies, and the bad ones by row; those have no values."""
        found: list[Values] = [[] for _ in self._pick]
        bad: dict[int, str] = {}
        for row, body in enumerate(bodies):
            one = self.judge(body)
            if isinstance(one, str):
                bad[row] = one
                one = [_UNSET] * len(found)
            for column, value in zip(found, one, strict=True):
                column.append(value)
        return found, bad

    # -- msgspec

    def _read_plain(self, bodies: pa.Array) -> Fields:
        lists = self._lists(bodies)
        if lists is not None:
            try:
                return self._fields(len(bodies), lists, {})
            except (OverflowError, *_REFUSED):
                pass  # some row's; which one, `judge` says
        lists, bad = self._judge_all(bodies.to_pylist())
        return self._fields(len(bodies), lists, bad)

    def _lists(self, bodies: pa.Array) -> list[Values] | None:
        """Values per field, other spellings included, or None where not every body is plainly an object of its own."""
        rows = len(bodies)
        if rows == 0:
            return [[] for _ in self._pick]
        joined = _joined(bodies)
        if joined is None:
            return None
        try:
            objects = self._lines.decode_lines(joined)
            if len(objects) != rows:
                return None
            lists = [list(map(pick, objects)) for pick in self._pick]
            for index, found in enumerate(lists):
                if _UNSET_TYPE in set(map(type, found)):
                    self._complete(index, found, bodies)
        except _REFUSED:
            return None
        return lists

    def _complete(self, index: int, found: Values, bodies: pa.Array) -> None:
        """Fill in fields that only differ in case."""
        missing = [row for row, value in enumerate(found) if value is _UNSET]
        for row, body in zip(missing, bodies.take(pa.array(missing)).to_pylist(), strict=True):
            found[row] = self._other_spelling(index, body)

    def _fields(self, rows: int, lists: list[Values], bad: dict[int, str]) -> Fields:
        """Raises OverflowError for integers beyond 64 bits."""
        columns: dict[str, Column] = {}
        absent: dict[str, Bools] = {}
        for name, found in zip(self.names, lists, strict=True):
            types = set(map(type, found))
            if not bad and (dict in types or list in types) and not all(map(fits, found)):
                raise OverflowError
            columns[name], missing = _column(found, types)
            if name.lower() in VIRTUAL and missing is not None:
                absent[name] = missing
        return Fields(rows, columns, absent, None, bad)

    # -- the compiled parser

    def _read_compiled(self, bodies: pa.Array, library: Library) -> Fields | None:
        """None where many rows are slow: then msgspec is faster."""
        rows = len(bodies)
        parsed = library.columns(bodies, self._names)
        if parsed.slow_rows * 3 > rows > 64:
            return None
        nested = self._nested(parsed)
        columns = {
            name: _parsed_column(parsed, index, library, nested.get(index)) for index, name in enumerate(self.names)
        }
        absent = {
            name: parsed.kinds[index] == native.ABSENT
            for index, name in enumerate(self.names)
            if name.lower() in VIRTUAL and parsed.counts[index, native.ABSENT]
        }
        found = Fields(rows, columns, absent, None, {})
        return self._with_slow(found, bodies, parsed.slow) if parsed.slow.any() else found

    def _with_slow(self, found: Fields, bodies: pa.Array, slow: Bools) -> Fields:
        """The same with the slow rows' values, which are null so far."""
        at = np.flatnonzero(slow)
        lists, bad = self._judge_all(bodies.take(pa.array(at)).to_pylist())
        judged = self._fields(len(at), lists, bad)
        back = np.full(found.rows, -1, np.int64)
        back[at] = np.arange(len(at))
        columns = {
            name: values.merge(found.rows, [(~slow, column), (slow, judged.columns[name].take(back))])
            for name, column in found.columns.items()
        }
        for name, absent in found.absent.items():  # slow rows count as absent so far: it is there
            absent[at] = judged.absent.get(name, False)
        return Fields(found.rows, columns, found.absent, None, {int(at[row]): why for row, why in bad.items()})

    def _nested(self, parsed: Parsed) -> dict[int, tuple[Ints, Values]]:
        """Records and arrays by field: their rows and values. Rows where one cannot be used become slow."""
        out: dict[int, tuple[Ints, Values]] = {}
        wanted = [index for index in range(len(self.names)) if parsed.counts[index, native.RECORD :].any()]
        refused: set[int] = set()
        for index in wanted:
            at = np.flatnonzero(parsed.kinds[index] >= native.RECORD)
            found: Values = []
            whole = memoryview(parsed.data)
            for row, span in zip(at.tolist(), parsed.values[index][at].tolist(), strict=True):
                start, size = span >> 32, span & 0xFFFFFFFF
                try:
                    found.append(_ANY.decode(whole[start : start + size]))
                except _REFUSED:
                    found.append(None)
                    refused.add(row)
                    continue
                if not fits(found[-1]):
                    refused.add(row)
            out[index] = (at, found)
        if refused:
            parsed.leave(sorted(refused))
            for index, (at, found) in out.items():
                kept = [row for row, one in enumerate(at.tolist()) if one not in refused]
                out[index] = (at[kept], [found[row] for row in kept])
        return out

    # -- whole payloads

    def _read_records(self, bodies: pa.Array) -> Fields:
        records = decode_records(bodies)
        if records is not None and all(map(fits, records)):
            return Fields(len(bodies), {}, {}, records, {})
        found: list[dict[str, Any]] = []
        bad: dict[int, str] = {}
        for row, body in enumerate(bodies.to_pylist()):
            try:
                record = _RECORDS.decode(body)
                if not fits(record):
                    bad[row] = _TOO_LARGE
            except _REFUSED as exc:
                record, bad[row] = {}, str(exc)[:200]
            found.append(record)
        return Fields(len(bodies), {}, {}, found, bad)


def _joined(bodies: pa.Array) -> pa.Buffer | None:
    """All bodies as lines of UTF-8, or None where a line may not be one object.

    A body that begins with `{` cannot go on with the object that the line before left open (a comma would have to come
    first), and one that ends with `}` leaves no text open; so as many objects as lines means one in each.
    """
    rows = len(bodies)
    if bodies.type != pa.binary() or bodies.null_count:
        return None
    lines = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), bodies), b"\n")
    joined = lines[0].as_buffer()
    marks = np.frombuffer(joined, np.uint8)
    sizes = np.diff(np.frombuffer(bodies.buffers()[1], np.int32)[bodies.offset : bodies.offset + rows + 1])
    if not len(marks) or (sizes < 2).any():
        return None
    ends = np.cumsum(sizes + 1) - 1  # of the lines: where the line breaks stand
    if not ((marks[ends - sizes] == 123).all() and (marks[ends - 1] == 125).all()):
        return None
    if marks.max() > 127:
        try:
            str(joined, "utf-8")
        except UnicodeDecodeError:
            return None
    return joined if np.count_nonzero(marks == 10) == rows - 1 else None


def decode_records(bodies: pa.Array) -> list[dict[str, Any]] | None:
    """Whole payloads, or None where a body is not a JSON object."""
    if len(bodies) == 0:
        return []
    joined = _joined(bodies)
    try:
        if joined is not None:
            found = _RECORDS.decode_lines(joined)
            return found if len(found) == len(bodies) else None
        return [_RECORDS.decode(body) for body in bodies.to_pylist()]
    except _REFUSED:
        return None


def decode_record(body: bytes) -> dict[str, Any]:
    """One whole payload; without fields where it cannot be read."""
    try:
        return _RECORDS.decode(body)
    except _REFUSED:
        return {}


def _column(found: Values, types: set[type]) -> tuple[Column, Bools | None]:
    """A column of values, and which were UNSET (null in the column)."""
    if _UNSET_TYPE not in types:
        return values.from_values(found, types), None
    missing = np.fromiter((value is _UNSET for value in found), np.bool_, len(found))
    plain = [None if value is _UNSET else value for value in found]
    return values.from_values(plain, types - {_UNSET_TYPE} | {type(None)}), missing


_PLAIN_KINDS = ((BIGINT, (native.INTEGER,)), (FLOAT, (native.REAL,)), (BIT, (native.FALSE, native.TRUE)))


def _parsed_column(parsed: Parsed, field: int, library: Library, nested: tuple[Ints, Values] | None) -> Column:
    """A field as parsed: its arrays are the parser's own where all rows are of one kind."""
    rows = parsed.kinds.shape[1]
    kinds, numbers, counts = parsed.kinds[field], parsed.values[field], parsed.counts[field].tolist()
    parts: list[Part] = []
    for kind, codes in _PLAIN_KINDS:
        count = sum(counts[code] for code in codes)
        if not count:
            continue
        data: Any = kinds == native.TRUE if kind == BIT else numbers.view(np.float64) if kind == FLOAT else numbers
        if count == rows:
            return Column(rows, [Part(kind, data, None)])
        mask = (kinds >= codes[0]) & (kinds <= codes[-1])
        parts.append(Part(kind, np.where(mask, data, data.dtype.type(0)), mask))
    texts = counts[native.TEXT] + counts[native.ESCAPED]
    if texts:
        mask = None if texts == rows else (kinds == native.TEXT) | (kinds == native.ESCAPED)
        parts.append(Part(TEXT, library.texts(parsed, field), mask))
    if nested is not None:
        at, found = nested
        of = kinds[at]
        for kind, code in ((RECORD, native.RECORD), (ARRAY, native.ARRAY)):
            some = np.flatnonzero(of == code)
            if len(some):
                data = values.typed(kind, [found[row] for row in some.tolist()])
                mask = None if len(some) == rows else kinds == code
                parts.append(Part(kind, values.spread_out(kind, data, at[some], rows), mask))
    return Column(rows, parts)


# -- names in whole payloads


def lookup(record: dict[str, Any], name: str) -> Any:
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
    return lookup(record, name) if type(record) is dict else None
