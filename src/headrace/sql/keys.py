"""Grouping: which rows of a batch have equal keys, and the keys themselves.

Columns are encoded one by one (Arrow's dictionary encoding for plain columns), then combined. Groups are numbered in the
order in which they first appear, so the numbering does not depend on where a stream is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa

from headrace.sql.moments import Moment
from headrace.sql.state import hashable
from headrace.sql.values import BIGINT, DATETIME, TEXT, Column, Constant, Ints

Key = tuple[Any, ...]


class Keys(Sequence[Key]):
    """Keys of groups, held as one list per key column: a tuple is made only when somebody asks for it.

    Ten thousand tuples a batch would cost more than the grouping itself, most of it in the garbage collector.
    """

    __slots__ = ("columns", "size")

    def __init__(self, columns: Sequence[list[Any]], size: int) -> None:
        self.columns = list(columns)
        self.size = size

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, at: int) -> Key: ...

    @overload
    def __getitem__(self, at: slice) -> Keys: ...

    def __getitem__(self, at: int | slice) -> Key | Keys:
        if isinstance(at, slice):
            return Keys([column[at] for column in self.columns], len(range(self.size)[at]))
        if not -self.size <= at < self.size:
            raise IndexError(at)
        return tuple(column[at] for column in self.columns)

    def pick(self, at: Ints) -> Keys:
        """The keys at some positions."""
        some = at.tolist()
        return Keys([[column[one] for one in some] for column in self.columns], len(some))

    def __iter__(self) -> Iterator[Key]:
        return zip(*self.columns, strict=True) if self.columns else iter([()] * self.size)


def encode(column: Column) -> tuple[Ints, list[Any]]:
    """A code per row and the distinct values behind the codes, in order of appearance."""
    if isinstance(column, Constant):
        return np.zeros(column.rows, np.int64), [hashable(column.value)]
    if len(column.parts) == 1 and column.parts[0].mask is None and column.parts[0].kind in (TEXT, BIGINT, DATETIME):
        kind, data, _ = column.parts[0]
        encoded = (data if kind == TEXT else pa.array(data)).dictionary_encode()
        distinct = encoded.dictionary.to_pylist()
        return encoded.indices.to_numpy().astype(np.int64), (
            [Moment(ticks) for ticks in distinct] if kind == DATETIME else distinct
        )
    codes: dict[Any, int] = {}
    simple = column.kinds() <= {TEXT, BIGINT, DATETIME}
    found = column.to_list() if simple else [hashable(value) for value in column.to_list()]
    out = np.fromiter((codes.setdefault(value, len(codes)) for value in found), np.int64, len(found))
    return out, list(codes)


def renumber(codes: Ints) -> tuple[Ints, Ints]:
    """Codes numbered by first appearance, and the row of each one's first appearance."""
    encoded = pa.array(codes).dictionary_encode()
    dense = encoded.indices.to_numpy().astype(np.int64)
    groups = len(encoded.dictionary)
    first = np.empty(groups, np.int64)
    first[dense[::-1]] = np.arange(len(dense) - 1, -1, -1)
    return dense, first


def group(columns: Sequence[Column], rows: int) -> tuple[Ints, Keys]:
    """A group number per row and each group's key, in order of appearance."""
    if not columns or rows == 0:
        return np.zeros(rows, np.int64), Keys([[] for _ in columns], 1 if rows else 0)
    codes, distinct = encode(columns[0])
    if len(columns) == 1:
        return codes, Keys([distinct], len(distinct))
    lists = [distinct]
    encoded = [codes]
    combined, size = codes, len(distinct)
    for column in columns[1:]:
        more, values = encode(column)
        encoded.append(more)
        lists.append(values)
        if size * len(values) >= 1 << 62:
            combined, first = renumber(combined)
            size = len(first)
        combined = combined * len(values) + more
        size *= len(values)
    dense, first = renumber(combined)
    picked = [[values[code] for code in codes[first].tolist()] for codes, values in zip(encoded, lists, strict=True)]
    return dense, Keys(picked, len(first))
