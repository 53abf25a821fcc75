"""Rows that may still count for later ones: first in, first out, each with its key's number and some columns.

Batches are joined only when somebody looks, and what is too old is let go only once it is half of everything, so a row is
copied a few times in its life, however small the batches are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from headrace.sql import values
from headrace.sql.arrays import enlarged, numbered
from headrace.sql.changes import delta, numbered_rows
from headrace.sql.key_ids import KeyIds
from headrace.sql.operators.stored import arrow_columns, column_from
from headrace.sql.values import Column, Ints


class Some(NamedTuple):
    """Rows in time order."""

    times: Ints
    ids: Ints
    columns: list[Column]

    def take(self, at: Ints) -> Some:
        return Some(self.times[at], self.ids[at], [column.take(at) for column in self.columns])

    def after(self, start: int) -> Some:
        rows = len(self.times)
        return Some(self.times[start:], self.ids[start:], [column.slice(start, rows) for column in self.columns])


class Held:
    """The rows and the numbers of their keys. A key is forgotten with its last row."""

    def __init__(self) -> None:
        self.ids = KeyIds()
        self.live: Ints = np.empty(0, np.int64)  # how many rows each key has, by its number
        self._pieces: list[Some] = []
        self._rows = 0
        self._gone = 0  # rows so far: held row i has the number `_gone` + i
        self._told = 0  # the number after the last row of the last snapshot

    def __len__(self) -> int:
        return self._rows

    def append(self, times: Ints, ids: Ints, columns: Sequence[Column]) -> None:
        """Rows not older than those before. Their keys have got their numbers from `ids`."""
        if not len(times):
            return
        self.live = enlarged(self.live, self.ids.room)
        np.add.at(self.live, ids, 1)
        self._pieces.append(Some(times, ids, [values.plain(column) for column in columns]))
        self._rows += len(times)

    def together(self) -> Some | None:
        """All rows, or None."""
        if len(self._pieces) > 1:
            columns = [values.concat(same) for same in zip(*(piece.columns for piece in self._pieces), strict=True)]
            times = np.concatenate([piece.times for piece in self._pieces])
            self._pieces = [Some(times, np.concatenate([piece.ids for piece in self._pieces]), columns)]
        return self._pieces[0] if self._pieces else None

    def forget(self, upto: int, *, all: bool = False) -> None:
        """Let go of rows at or before a time, `all` of them or only if that is worth while."""
        while self._pieces and int(self._pieces[0].times[-1]) <= upto:
            self._drop(self._pieces.pop(0).ids)
        if self._pieces:
            first = self._pieces[0]
            gone = int(np.searchsorted(first.times, upto, side="right"))
            if gone and (all or gone * 2 > len(first.times)):
                self._drop(first.ids[:gone])
                self._pieces[0] = first.take(np.arange(gone, len(first.times)))

    def _drop(self, ids: Ints) -> None:
        self._rows -= len(ids)
        self._gone += len(ids)
        np.subtract.at(self.live, ids, 1)
        _, touched = numbered(ids, len(self.live))
        self.ids.forget(touched[self.live[touched] == 0])

    # -- state

    def snapshot(self, since: int | None = None) -> pa.Table:
        """One row per row: `_key`, `time`, and Arrow columns for each of the columns. Changes are the rows that came."""
        begin = 0 if since is None else max(self._told - self._gone, 0)
        numbers = np.arange(self._gone + begin, self._gone + self._rows)
        self._told = self._gone + self._rows
        some = self.together()
        columns: dict[str, Any] = {"_key": pa.array([], pa.binary()), "time": pa.array([], pa.int64())}
        if some is not None:
            some = some.after(begin)
            columns = {"_key": pa.array(self.ids.packed(some.ids), pa.binary()), "time": pa.array(some.times)}
            for at, column in enumerate(some.columns):
                columns |= arrow_columns(str(at), column)
        table = pa.table(columns)
        return numbered_rows(table, numbers) if since is None else delta(table, numbers, first=self._gone)

    def restore(self, state: pa.Table) -> None:
        self.__init__()  # type: ignore[misc]
        ids = self.ids.restore(state.column("_key").to_pylist())
        count = len({name.split(".")[0] for name in state.column_names if "." in name})
        self.append(state.column("time").to_numpy(), ids, [column_from(str(at), state) for at in range(count)])
