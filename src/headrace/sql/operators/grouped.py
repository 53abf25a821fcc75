"""What the windows of a GROUP BY have in common: how rows come in and what a closed window reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa

from headrace.core.flow import Watermark
from headrace.sql import values
from headrace.sql.aggregate import Accumulator
from headrace.sql.keys import Key, Keys
from headrace.sql.state import Frozen, thawed
from headrace.sql.tree import Window
from headrace.sql.values import Column, Ints

Make = Callable[[], list[Accumulator]]
Parts = tuple[Ints, Sequence[Key]]
"""A number per row and the key behind each number."""


class Closed(NamedTuple):
    """Groups of windows that closed: their ends, keys and aggregates, in order of end and first appearance.

    `codes` gives the position of each group's key in `keys`; None: each has its own, in order.
    """

    ends: Ints
    keys: Sequence[Key]
    results: list[Column]
    codes: Ints | None = None

    def key_column(self, part: int) -> Column:
        """One part of the keys, a value per group."""
        found = self.keys.columns[part] if isinstance(self.keys, Keys) else [key[part] for key in self.keys]
        types = set(map(type, found))
        column = values.from_values(*(([thawed(value) for value in found],) if Frozen in types else (found, types)))
        return column if self.codes is None else column.take(self.codes)


class WindowState(Protocol):
    """One window of a GROUP BY: open groups in, closed groups out."""

    window: Window

    def add(
        self,
        times: Ints,
        codes: Ints,
        keys: Sequence[Key],
        args: Sequence[Sequence[Column]],
        parts: Parts | None = None,
    ) -> None:
        """Rows in time order: a group number per row, the groups' keys, each aggregate's arguments. `parts` are the keys of
        the window's own PARTITION BY.
        """

    def close(self, mark: Watermark) -> Closed | None:
        """Everything that ends at or before `mark` and was not reported yet."""

    def rows(self) -> int: ...

    def snapshot(self, since: int | None = None) -> pa.Table:
        """Everything, or what changed since the snapshot before, whose number `since` is (see `changes`)."""

    def restore(self, state: pa.Table) -> None: ...
