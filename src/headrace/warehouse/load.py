"""Rows into an entity table: COPY to a temporary table, then one INSERT that skips what is known.

The consumer's epoch is updated in the same transaction as the rows, so after a crash both are there or neither; its row
is locked first, so two processes that bring one epoch store it once.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.csv
from psycopg import sql
from psycopg.types.json import Jsonb

from headrace.core.clock import TICKS_PER_US
from headrace.core.errors import UserError, nearest
from headrace.warehouse.contract import Loaded
from headrace.warehouse.rows import COLUMNS, unstorable

_TIMES = frozenset(["enqueued", "window_end"])
_TEXTS = ("machine_id", "event_id", "stream")
_LOOSE_TEXTS = ("event_type", "site", "requirement", "factory")
_JSON = frozenset(["event", "measures"])
_CSV = pyarrow.csv.WriteOptions(include_header=False, quoting_style="all_valid")


def load(
    connection: psycopg.Connection[Any],
    table: str,
    rows: pa.Table,
    *,
    producer: str,
    epoch: int,
    positions: Sequence[int] = (),
) -> Loaded:
    """See the contract. One transaction."""
    rows = _checked(table, rows)
    bad = unstorable(rows, _TEXTS)
    if bad:
        keep = np.ones(rows.num_rows, bool)
        keep[[problem.row for problem in bad]] = False
        rows = rows.filter(pa.array(keep))
    rows = _without_nul(rows)
    with connection.transaction():
        if _last_epoch(connection, producer) >= epoch:
            return Loaded(0, rows.num_rows, tuple(bad))
        new = _insert(connection, table, rows) if rows.num_rows else 0
        connection.execute(
            "UPDATE consumer SET epoch = %s, positions = %s, updated = now() WHERE producer = %s",
            (epoch, Jsonb(list(positions)), producer),
        )
    return Loaded(new, rows.num_rows - new, tuple(bad))


def _checked(table: str, rows: pa.Table) -> pa.Table:
    if table not in COLUMNS:
        raise UserError(
            f"{table!r} is no entity table",
            hint=nearest(table, COLUMNS) or f"entity tables: {', '.join(COLUMNS)}",
            code="warehouse.no_table",
        )
    missing = [name for name in COLUMNS[table] if name not in rows.schema.names]
    if missing:
        raise UserError(f"rows for {table} lack {', '.join(missing)}", hint="see warehouse.rows.COLUMNS")
    return rows.select(list(COLUMNS[table])).cast(pa.schema(list(COLUMNS[table].items())))


def _without_nul(rows: pa.Table) -> pa.Table:
    """Texts that are no keys lose a NUL character rather than their row."""
    for name in _LOOSE_TEXTS:
        if name in rows.schema.names and any("\0" in value for value in rows[name].to_pylist() if value):
            cleaned = [value and value.replace("\0", "\ufffd") for value in rows[name].to_pylist()]
            rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(cleaned, pa.string()))
    return rows


def _last_epoch(connection: psycopg.Connection[Any], producer: str) -> int:
    """The recorded epoch (-1 for none), its row locked to the end of the transaction."""
    connection.execute(
        "INSERT INTO consumer (producer, epoch) VALUES (%s, -1) ON CONFLICT (producer) DO NOTHING", (producer,)
    )
    found = connection.execute("SELECT epoch FROM consumer WHERE producer = %s FOR UPDATE", (producer,)).fetchone()
    return int(found[0]) if found else -1


def _insert(connection: psycopg.Connection[Any], table: str, rows: pa.Table) -> int:
    names = sql.SQL(", ").join(map(sql.Identifier, rows.schema.names))
    connection.execute(
        sql.SQL(
            "CREATE TEMPORARY TABLE IF NOT EXISTS {arriving} (LIKE {table} INCLUDING DEFAULTS) ON COMMIT DELETE ROWS"
        ).format(arriving=sql.Identifier(f"arriving_{table}"), table=sql.Identifier(table))
    )
    copy = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(sql.Identifier(f"arriving_{table}"), names)
    with connection.cursor() as cursor:
        with cursor.copy(copy) as stream:
            stream.write(_csv(rows))
        cursor.execute(
            sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT DO NOTHING").format(
                sql.Identifier(table), names, names, sql.Identifier(f"arriving_{table}")
            )
        )
        return cursor.rowcount


def _csv(rows: pa.Table) -> bytes:
    """Every value quoted and nulls bare, which is how COPY tells an empty text from a null."""
    for name in _TIMES & set(rows.schema.names):
        ticks = rows[name].combine_chunks().to_numpy(zero_copy_only=False)
        times = pa.array(np.floor_divide(ticks, TICKS_PER_US), pa.int64()).cast(pa.timestamp("us", tz="UTC"))
        rows = rows.set_column(rows.schema.get_field_index(name), name, times)
    sink = io.BytesIO()
    pyarrow.csv.write_csv(rows, sink, _CSV)
    return sink.getvalue()
