"""What a warehouse promises: rows about machines, for applications to query.

Two kinds of tables. *Entity tables* (`machine_telemetry`, `maintenance_aggregate`) are loaded in epochs, exactly once, and
keep where in the log each row came from. *Metadata tables* (`factory`, `machine`, `maintenance_criterion`) are upserted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import pyarrow as pa


class BadRow(NamedTuple):
    """A row that cannot be stored: its index in the rows given, a stable word, and the detail."""

    row: int
    reason: str
    detail: str = ""


class Loaded(NamedTuple):
    """The answer to a load: `new` rows were stored, `known` ones were there already; with `bad` they add up."""

    new: int
    known: int
    bad: tuple[BadRow, ...] = ()


class Warehouse(Protocol):
    """All calls are blocking and safe from several threads; call them in a thread. All raise Unavailable when the server
    cannot be reached, and UserError when it refuses who asks or what is asked."""

    def prepare(self) -> None:
        """Make the tables, or bring them to this version's shape. Several processes may do it at once."""
        ...

    def load(self, table: str, rows: pa.Table, *, producer: str, epoch: int, positions: Sequence[int] = ()) -> Loaded:
        """Durable when it returns. The same `epoch` of `producer` again, or an older one, stores nothing (all rows known).

        `rows` have the columns of `warehouse.rows.COLUMNS[table]`: times as ticks (int64), JSON as text. A row whose
        machine and event id are stored already, under any epoch, is known.
        """
        ...

    def last_epoch(self, producer: str) -> int:
        """-1 when the producer never loaded."""
        ...

    def counts(self, table: str) -> dict[tuple[str, int], int]:
        """Rows of an entity table by (stream, partition), counted in the table: the ledger's second count."""
        ...

    def upsert(self, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Insert or replace metadata by `id`; keys that are no column are kept in `attributes`. Returns how many."""
        ...

    def query(self, sql: str, params: Mapping[str, Any] | Sequence[Any] | None = None) -> list[dict[str, Any]]:
        """Rows of a read-only statement; `%s` and `%(name)s` stand for parameters."""
        ...

    def close(self) -> None: ...
