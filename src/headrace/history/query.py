"""Questions about the past, up to a moment ago: lake and recent log as one table per stream.

The lake's last append says at which log positions it ended. The same version of the lake that gives the rows gives those
positions, and the log is read from there on: so no row is missing and none is there twice, whatever is written meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import NamedTuple

import orjson
import pyarrow as pa
import structlog

from headrace.core.clock import Clock, to_datetime
from headrace.core.errors import NotFound, UserError, nearest
from headrace.core.schema import LOG_SCHEMA
from headrace.eventlog.contract import EventLog, Positions
from headrace.history.engine import Session, can_name, check, identifier, parquet
from headrace.history.recent import Recent, RecentRows
from headrace.history.thin import thin
from headrace.lake.contract import Lake, Snapshot
from headrace.lake.layout import table_of
from headrace.wire.payload import SYSTEM_COLUMNS

log = structlog.get_logger()

_HEAD = ("_time", *(name for name in LOG_SCHEMA.names if name != "_body"))
_TAIL = ("_rescued", "_error", "_body", "_body_encoding")
_HIDDEN = frozenset(["_date", "_stream"])
_POINT_COLUMNS = ("_enqueued", "_time", "_event_id", "_entity_id", "_device", "_partition", "_offset")
_LISTING = re.compile(r"\s*SHOW\s+(ALL\s+)?TABLES\s*;?\s*", re.IGNORECASE)


class _Rows(NamedTuple):
    """Where a stream's rows are: a version of its lake table, and what the log has since. One of them is there."""

    lake: Snapshot | None
    recent: Recent | None


class HistoryQuery:
    """All calls block: make them in threads, several at once where wanted. Make the object where the log's loop runs."""

    def __init__(
        self,
        lake: Lake,
        events: EventLog,
        clock: Clock,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        timeout_s: float = 60.0,
        memory: str = "1GB",
        threads: int = 2,
        recent_rows_max: int = 2_000_000,
        rows_max: int = 5_000_000,
    ) -> None:
        self._lake = lake
        self._recent = RecentRows(events, loop=loop, rows_max=recent_rows_max, timeout_s=timeout_s)
        self._clock = clock
        self._timeout_s = timeout_s
        self._memory = memory
        self._threads = threads
        self._rows_max = rows_max

    def tables(self) -> list[str]:
        """What a query can name: each stream (lake and recent log), then each lake table as `layer.name`."""
        return self._names(self._lake.names(), self._recent.streams())

    def run(self, sql: str, *, limit: int | None = None) -> pa.Table:
        """The answer to one SELECT (or WITH, DESCRIBE, SHOW TABLES, SUMMARIZE) of DuckDB's SQL; times are UTC.

        Raises UserError with line and column for a wrong statement, Unavailable when it takes too long or too much.
        """
        started = self._clock.monotonic()
        check(sql)
        tables, streams = self._lake.names(), self._recent.streams()
        known = self._names(tables, streams)
        if _LISTING.fullmatch(sql):
            return pa.table({"name": pa.array(known, pa.string())}).slice(0, limit)
        found = {name: self._rows(name, tables, streams) for name in known if _mentions(sql, name)}
        with closing(self._session(found.values(), known)) as session:
            for name, rows in found.items():
                _add_layer(session, name, rows) if "." in name else _add_stream(session, name, rows)
            session.lock()
            answer = session.answer(sql, limit=limit)
        took_ms = round((self._clock.monotonic() - started) * 1000, 1)
        log.debug("history.answered", rows=answer.num_rows, took_ms=took_ms)
        return answer

    def range(
        self,
        stream: str,
        since: int,
        until: int,
        fields: Sequence[str] | None = None,
        entity: str | None = None,
        points_max: int = 2000,
    ) -> tuple[pa.Table, Positions]:
        """Rows of a stream (or of one entity of it) enqueued from `since` to `until` (ticks, both included), oldest first.

        They have `_enqueued`, `_time`, `_event_id`, `_entity_id`, `_device`, `_partition`, `_offset` and the `fields` that
        exist (None for all). More than `points_max` are thinned; each field's extremes stay. The positions are the next
        offsets after what the answer covers: who goes on reading the log there misses no row enqueued after `until`, and
        sees none twice.
        """
        tables, streams = self._lake.names(), self._recent.streams()
        if stream not in streams and table_of(stream) not in tables:
            raise self._unknown(stream, tables, streams)
        rows = self._rows(stream, tables, streams, entity=entity)
        positions = self._covered(stream, rows, until)
        with closing(self._session([rows], [])) as session:
            days = f"_date BETWEEN DATE '{to_datetime(since).date()}' AND DATE '{to_datetime(until).date()}'"
            names = _add_stream(session, stream, rows, lake_filter=days)
            session.lock()
            wanted = [name for name in names if name not in SYSTEM_COLUMNS and (fields is None or name in fields)]
            answer = session.answer(
                f"SELECT {_select([*_POINT_COLUMNS, *wanted])} FROM {identifier(stream)} "
                f"WHERE _enqueued BETWEEN ? AND ?{'' if entity is None else ' AND _entity_id = ?'} "
                f"ORDER BY _enqueued, _partition, _offset LIMIT {self._rows_max + 1}",
                [since, until, *([] if entity is None else [entity])],
            )
        if answer.num_rows > self._rows_max:
            raise UserError(
                f"more than {self._rows_max:,} rows of {stream!r} lie in that range",
                hint="choose a shorter range or one entity",
                code="history.range",
            )
        return thin(answer, wanted, points_max), positions

    def _covered(self, stream: str, rows: _Rows, until: int) -> Positions:
        """The next offsets after the last row enqueued by `until` that was there when the log was asked."""
        if rows.recent is None:
            return ()
        return tuple(map(min, rows.recent.end, self._recent.positions_at(stream, until + 1)))

    def _rows(self, name: str, tables: Sequence[str], streams: Sequence[str], *, entity: str | None = None) -> _Rows:
        """First the lake's version, then the log from where that version ends: the order that leaves no gap."""
        if "." in name:
            return _Rows(self._lake.snapshot(name, ""), None)
        table = table_of(name)
        snapshot = self._lake.snapshot(table, f"lake:{name}") if table in tables else None
        if name not in streams:
            return _Rows(snapshot, None)
        said = snapshot.properties.get("positions") if snapshot is not None else None
        start = tuple(orjson.loads(said)) if said else ()
        schema = snapshot.schema if snapshot is not None else None
        return _Rows(snapshot, self._recent.since(name, start, schema, entity=entity))

    def _session(self, found: Iterable[_Rows], known: Sequence[str]) -> Session:
        paths = [rows.lake.files for rows in found if rows.lake is not None and rows.lake.files]
        folders = [os.path.commonpath([os.path.dirname(path) for path in files]) for files in paths]
        return Session(folders, known, memory=self._memory, threads=self._threads, timeout_s=self._timeout_s)

    def _names(self, tables: Sequence[str], streams: Sequence[str]) -> list[str]:
        in_lake = {table.partition(".")[2] for table in tables if table_of(table.partition(".")[2]) == table}
        return [*sorted(in_lake | set(streams)), *tables]

    def _unknown(self, stream: str, tables: Sequence[str], streams: Sequence[str]) -> NotFound:
        known = self._names(tables, streams)
        return NotFound(
            f"there is no stream {stream!r}",
            hint=nearest(stream, known) or f"known: {', '.join(known) or 'none yet'}",
            code="history.no_stream",
        )


def _add_layer(session: Session, table: str, rows: _Rows) -> None:
    """A view of a lake table as it lies there, under `layer.name`."""
    assert rows.lake is not None
    layer, _, name = table.partition(".")
    _add_lake(session, f"{identifier(layer)}.{identifier(name)}", rows.lake, rows.lake.schema.names)


def _add_stream(session: Session, stream: str, rows: _Rows, *, lake_filter: str = "") -> list[str]:
    """A view of both parts; returns its columns: system, payload in order of appearance, then the body."""
    parts: list[str] = []
    names: list[str] = []
    if rows.lake is not None:
        names += [name for name in rows.lake.schema.names if name not in _HIDDEN]
        where = lake_filter if "_date" in rows.lake.schema.names else ""
        parts.append(identifier(f"__lake_{stream}"))
        _add_lake(session, parts[-1], rows.lake, names, where)
    if rows.recent is not None and rows.recent.rows.num_columns:
        session.add_arrow(f"__recent_{stream}", rows.recent.rows)
        parts.append(identifier(f"__recent_{stream}"))
        names += [name for name in rows.recent.rows.column_names if name not in names]
    if not parts:
        session.add_arrow(f"__none_{stream}", _nothing())
        parts, names = [identifier(f"__none_{stream}")], list(_nothing().column_names)
    union = " UNION ALL BY NAME ".join(f"SELECT * FROM {part}" for part in parts)
    ordered = _ordered(names)
    session.add_view(identifier(stream), f"SELECT {_select(ordered)} FROM ({union})")
    return ordered


def _add_lake(session: Session, name: str, snapshot: Snapshot, columns: Sequence[str], where: str = "") -> None:
    """A view `name` (SQL) of some columns of a lake table; columns that no file has yet are null."""
    condition = f" WHERE {where}" if where else ""
    source = f"__source_{name}"
    if snapshot.files and all(map(can_name, snapshot.files)):
        session.add_arrow(source, snapshot.schema.empty_table())
        everything = f"SELECT * FROM {identifier(source)} UNION ALL BY NAME ({parquet(snapshot.files)})"
        session.add_view(name, f"SELECT {_select(columns)} FROM ({everything}){condition}")
        return
    session.add_arrow(source, snapshot.schema.empty_table() if snapshot.files == () else snapshot.dataset())
    session.add_view(name, f"SELECT {_select(columns)} FROM {identifier(source)}{condition}")


def _nothing() -> pa.Table:
    fields = [*((field.name, field.type) for field in LOG_SCHEMA), ("_time", pa.timestamp("us", tz="UTC"))]
    return pa.schema(fields).empty_table()


def _ordered(names: Sequence[str]) -> list[str]:
    payload = [name for name in names if name not in _HEAD and name not in _TAIL]
    return [*(name for name in _HEAD if name in names), *payload, *(name for name in _TAIL if name in names)]


def _select(names: Sequence[str]) -> str:
    return ", ".join(identifier(name) for name in names)


def _mentions(sql: str, name: str) -> bool:
    """Whether the SQL may mean the table: its name stands there as a word. Too many cost time, too few an error."""
    layer, _, bare = name.rpartition(".")
    if re.search(r"\b(information_schema|duckdb_\w+|SHOW)\b", sql, re.IGNORECASE):
        return True
    prefix = rf'"?{re.escape(layer)}"?\s*\.\s*"?' if layer else ""
    return re.search(rf"(?<!\w){prefix}{re.escape(bare)}(?!\w)", sql, re.IGNORECASE) is not None
