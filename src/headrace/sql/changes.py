"""Snapshots that say only what changed: state as numbered rows, and the numbers that are gone.

Every row of such a table has a number in `_row`; rows of one number change together. A delta holds the rows of all numbers
that changed since the snapshot before, and names those that are gone: each of them, or all below a first one where rows
leave in the order in which they came. A table without that is whole and stands for itself, so an operator may answer whole
at any time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from headrace.sql.state import pack, unpack
from headrace.sql.values import Bools, Ints

_DELTA = b"delta"
_NONE = np.empty(0, np.int64)


class Touched:
    """The numbers whose state changed since somebody asked last."""

    def __init__(self) -> None:
        self._flags: Bools = np.empty(0, np.bool_)

    def mark(self, numbers: Ints) -> None:
        if not len(numbers):
            return
        more = int(numbers.max()) + 1 - len(self._flags)
        if more > 0:
            self._flags = np.concatenate([self._flags, np.zeros(max(more, len(self._flags), 64), np.bool_)])
        self._flags[numbers] = True

    def has(self, numbers: Ints) -> Bools:
        """Which of some numbers were marked."""
        known = numbers < len(self._flags)
        found: Bools = np.zeros(len(numbers), np.bool_)
        found[known] = self._flags[numbers[known]]
        return found

    def take(self) -> Ints:
        """All marked numbers, ascending; none is marked after that."""
        found = np.flatnonzero(self._flags)
        self._flags[found] = False
        return found


def numbered_rows(table: pa.Table, numbers: Ints) -> pa.Table:
    """A whole state. Numbers ascend."""
    return table.append_column("_row", pa.array(numbers, pa.int64()))


def delta(table: pa.Table, numbers: Ints, *, gone: Ints = _NONE, first: int = 0) -> pa.Table:
    """What changed: the rows of some numbers, those `gone`, and that all below `first` are gone too."""
    about = pack([first, gone.astype(np.int64).tobytes()])
    return numbered_rows(table, numbers).replace_schema_metadata({**(table.schema.metadata or {}), _DELTA: about})


def folded(tables: Sequence[pa.Table]) -> pa.Table:
    """The whole state that a snapshot and the deltas after it make, in that order; metadata is the last one's."""
    last = tables[-1]
    begin = max(at for at, table in enumerate(tables) if not at or not _is_delta(table))
    if begin == len(tables) - 1:
        return last
    pieces: list[pa.Table] = []
    first, later = 0, _NONE
    for table in reversed(tables[begin:]):
        rows = table.column("_row").to_numpy()
        keep = (rows >= first) & ~np.isin(rows, later)
        pieces.append(table if keep.all() else table.filter(pa.array(keep)))
        if _is_delta(table):
            lowest, gone = unpack(table.schema.metadata[_DELTA])
            first = max(first, lowest)
            later = np.concatenate([later, rows, np.frombuffer(gone, np.int64)])
    found = pa.concat_tables(pieces[::-1], promote_options="default").combine_chunks()
    rows = found.column("_row").to_numpy()
    if (np.diff(rows) < 0).any():
        found = found.take(pa.array(np.argsort(rows, kind="stable")))
    metadata = {key: value for key, value in (last.schema.metadata or {}).items() if key != _DELTA}
    return found.replace_schema_metadata(metadata)


def _is_delta(table: pa.Table) -> bool:
    return _DELTA in (table.schema.metadata or {})
