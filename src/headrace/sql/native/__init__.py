"""The compiled parser, where it was built: JSON columns and ISO times out of bytes, without the GIL. See json_columns.c.

It is optional, and it may say of any row that it does not know: what it does say is what the plain code would have said
(tests/sql/test_sql_native*.py). Where it is missing the plain code does all, and the log says so once: `decoder.plain`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog

from headrace.sql.native.build import library_path

log = structlog.get_logger(__name__)

ABSENT, NULL, FALSE, TRUE, INTEGER, REAL, TEXT, ESCAPED, RECORD, ARRAY = range(10)
"""What a value is. ESCAPED: a text with escapes in it."""
KINDS = 10

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_POINTER, _INT32, _INT64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "headrace_json_columns": (_INT64, [_POINTER, _POINTER, _INT64, _INT32, *[_POINTER] * 8]),
    "headrace_texts": (None, [_POINTER, _POINTER, _POINTER, _INT64, _POINTER, _POINTER]),
    "headrace_moments": (_INT64, [_POINTER, _POINTER, _INT64, _POINTER, _POINTER]),
}


class Names(NamedTuple):
    """Names of wanted fields as the parser takes them."""

    fields: int
    names: Bytes
    lowers: Bytes
    shapes: npt.NDArray[np.int32]

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """Distinct names; those that differ only in case are chained in their order."""
        lowers = [name.lower() for name in names]
        shapes = []
        for at, (name, lower) in enumerate(zip(names, lowers, strict=True)):
            following = next((later for later in range(at + 1, len(names)) if lowers[later] == lower), -1)
            size = len(lower) if lower.isascii() else -1
            shapes.append([len(name.encode()), size, following, int(lowers.index(lower) == at)])
        return cls(
            len(names),
            _bytes("".join(names)),
            _bytes("".join(lower for lower in lowers if lower.isascii())),
            np.array(shapes, np.int32).reshape(len(names), 4),
        )


def _bytes(text: str) -> Bytes:
    return np.frombuffer(text.encode() or b"\0", np.uint8)


class Parsed(NamedTuple):
    """The wanted fields of `rows` bodies, by field and row. A slow row's kinds are ABSENT: it was not judged.

    `values` are integers, the bits of doubles, or for texts and nested values where they begin in `data` << 32 | size.
    `counts`: how often each kind occurs in a field; `text_sizes`: bytes of its texts, escapes included.
    """

    data: Any
    kinds: npt.NDArray[np.uint8]
    values: Ints
    counts: Ints
    text_sizes: Ints
    slow: npt.NDArray[np.bool_]
    slow_rows: int

    def leave(self, rows: Sequence[int]) -> None:
        """Make rows slow after all."""
        for row in rows:
            self.slow[row] = True
            for field, kind in enumerate(self.kinds[:, row].tolist()):
                self.counts[field, kind] -= 1
                self.counts[field, ABSENT] += 1
        self.kinds[:, list(rows)] = ABSENT


class Library:
    """The functions of a built library. They keep no state: any thread may call them."""

    def __init__(self, path: str) -> None:
        loaded = ctypes.CDLL(path)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
        self._columns = loaded.headrace_json_columns
        self._texts = loaded.headrace_texts
        self._moments = loaded.headrace_moments

    def columns(self, bodies: pa.BinaryArray, names: Names) -> Parsed:
        """Parse bodies (no nulls among them). Raises MemoryError."""
        rows = len(bodies)
        _, marks, data = bodies.buffers()
        kinds = np.empty((names.fields, rows), np.uint8)
        numbers = np.empty((names.fields, rows), np.int64)
        counts = np.zeros((names.fields, KINDS), np.int64)
        sizes = np.zeros(names.fields, np.int64)
        slow = np.empty(rows, np.bool_)
        slow_rows = self._columns(
            data.address if data is not None else None,
            marks.address + 4 * bodies.offset,
            rows,
            names.fields,
            names.names.ctypes.data,
            names.lowers.ctypes.data,
            names.shapes.ctypes.data,
            kinds.ctypes.data,
            numbers.ctypes.data,
            counts.ctypes.data,
            sizes.ctypes.data,
            slow.ctypes.data,
        )
        if slow_rows < 0:
            raise MemoryError("no memory for the JSON parser's table of fields")
        return Parsed(data, kinds, numbers, counts, sizes, slow, slow_rows)

    def texts(self, parsed: Parsed, field: int) -> pa.StringArray:
        """The texts of a field; where it has none, an empty one."""
        rows = parsed.kinds.shape[1]
        marks = np.empty(rows + 1, np.int32)
        out = np.empty(max(int(parsed.text_sizes[field]), 1), np.uint8)
        self._texts(
            parsed.data.address if parsed.data is not None else None,
            parsed.kinds[field].ctypes.data,
            parsed.values[field].ctypes.data,
            rows,
            marks.ctypes.data,
            out.ctypes.data,
        )
        return pa.StringArray.from_buffers(rows, pa.py_buffer(marks), pa.py_buffer(out))

    def moments(self, texts: pa.StringArray) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """Ticks of texts (no nulls among them), and which had a usual shape of ISO 8601: the others may be times too."""
        rows = len(texts)
        _, marks, data = texts.buffers()
        ticks = np.empty(rows, np.int64)
        good = np.empty(rows, np.bool_)
        self._moments(
            data.address if data is not None else None,
            marks.address + 4 * texts.offset,
            rows,
            ticks.ctypes.data,
            good.ctypes.data,
        )
        return ticks, good


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The library that belongs to this source, or None where none was built or the system refuses it."""
    path = library_path()
    try:
        if path.exists():
            return Library(str(path))
        log.info("decoder.plain", reason="the compiled parser was not built (python -m headrace.sql.native)")
    except (OSError, AttributeError) as exc:
        log.warning("decoder.plain", reason=str(exc)[:200])
    return None
