"""What a lake promises. Table names are `layer.name`: `raw.telemetry`, `served.scored`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.dataset as ds


class TableInfo(NamedTuple):
    name: str
    rows: int
    files: int
    bytes: int
    version: int


class Snapshot(NamedTuple):
    """One version of a table: its rows, and what a producer said with the last append that is in it."""

    schema: pa.Schema
    files: tuple[str, ...] | None  # Parquet files on this machine (`_date` is in their paths); None: ask the dataset
    dataset: Callable[[], ds.Dataset]
    properties: dict[str, str]


class Lake(Protocol):
    """Append-mostly tables that grow new columns by themselves. All calls are blocking; call them in a thread."""

    def append(
        self, table: str, rows: pa.Table, *, producer: str, epoch: int, properties: Mapping[str, str] | None = None
    ) -> bool:
        """Durable when it returns. False when this or a later epoch of `producer` is in already (nothing written).

        A column the table lacks is added (null in older rows). Raises Unavailable when the folder cannot be written.
        """
        ...

    def last_epoch(self, table: str, producer: str) -> int:
        """-1 when the producer never wrote."""
        ...

    def last_properties(self, table: str, producer: str) -> dict[str, str]:
        """The `properties` of the producer's last append; empty when it never wrote. Survives compaction and clean-up."""
        ...

    def names(self) -> list[str]:
        """The tables' names, sorted. Cheaper than `tables`."""
        ...

    def snapshot(self, table: str, producer: str) -> Snapshot:
        """A version to query lazily. Its files stay for an hour at least. NotFound if there is no table."""
        ...

    def scan(
        self, table: str, *, columns: Sequence[str] | None = None, since: int | None = None, until: int | None = None
    ) -> pa.Table:
        """Rows, `_enqueued` between `since` and `until` (ticks, both included) where given. NotFound if there is no table."""
        ...

    def schema(self, table: str) -> pa.Schema: ...

    def counts(self, table: str) -> dict[tuple[str, int], int]:
        """Rows in the table by (`_stream`, `_partition`), read back from the files: the ledger's second count."""
        ...

    def tables(self) -> list[TableInfo]: ...

    def compact(self, table: str) -> int:
        """Join small files; returns how many files fewer."""
        ...
