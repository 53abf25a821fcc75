"""A lake of Delta tables in a folder.

Exactly once comes from Delta itself: a commit carries the producer's epoch as an application transaction, and two commits
of one producer conflict. So an append that was interrupted is either in whole, epoch and properties included, or not at all.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, SchemaMismatchError, TableNotFoundError

from headrace.core.clock import TICKS_PER_S, Clock, to_datetime
from headrace.core.errors import DataError, NotFound, Unavailable, nearest
from headrace.lake import compact, files, layout, marks
from headrace.lake.contract import Snapshot, TableInfo

log = structlog.get_logger()

_TRIES = 5
_TICKS_PER_DAY = 86_400 * TICKS_PER_S
_SETTINGS = {
    "delta.checkpointInterval": "100",
    "delta.logRetentionDuration": "interval 1 days",  # at an append every two seconds, 43,200 entries
}


class DeltaLake:
    """`storage_options` are object_store's (for a URL in place of a folder). Safe to use from several threads and processes."""

    def __init__(self, folder: Path, clock: Clock, *, storage_options: Mapping[str, str] | None = None) -> None:
        if storage_options is None:
            files.check_folder(folder)
        self._folder = folder
        self._clock = clock
        self._options = dict(storage_options) if storage_options else None

    def append(
        self, table: str, rows: pa.Table, *, producer: str, epoch: int, properties: Mapping[str, str] | None = None
    ) -> bool:
        """See the contract. Rows with `_enqueued` are partitioned by its UTC day, in a column `_date`.

        Raises DataError when a column's type is not the table's: `flatten(batch, schema=lake.schema(table))` gives rows
        that always fit.
        """
        rows = _with_date(_plain(rows))
        notes = dict(properties or {})
        commit = CommitProperties(
            custom_metadata={"headrace.producer": producer, "headrace.epoch": str(epoch), **notes},
            app_transactions=marks.transactions(producer, epoch, notes),
        )
        started = self._clock.monotonic()
        for attempt in range(_TRIES):
            known = self._load(table) or self._create(table, rows.schema)
            if _epoch(known, producer) >= epoch:
                return False
            _check_types(table, _schema(known), rows.schema)
            try:
                version = self._write(table, known, rows, commit)
            except CommitFailedError as exc:  # another process committed first: look again
                log.debug("lake.contended", table=table, attempt=attempt, error=str(exc))
                continue
            if self._options is None:
                with _io(table):
                    files.settle(self._path(table), version)
            took_ms = round((self._clock.monotonic() - started) * 1000, 1)
            log.debug("lake.appended", table=table, rows=rows.num_rows, epoch=epoch, version=version, took_ms=took_ms)
            return True
        raise Unavailable(
            f"{table} had {_TRIES} conflicting commits in a row",
            hint="let one process write a table, or try again",
            code="lake.contended",
        )

    def last_epoch(self, table: str, producer: str) -> int:
        found = self._load(table)
        return -1 if found is None else _epoch(found, producer)

    def last_properties(self, table: str, producer: str) -> dict[str, str]:
        found = self._load(table)
        return {} if found is None else marks.properties(producer, found.transaction_version)

    def names(self) -> list[str]:
        return files.tables_in(self._folder)

    def snapshot(self, table: str, producer: str) -> Snapshot:
        found = self._get(table)
        with _io(table):
            plain = self._options is None and not found.protocol().reader_features
            paths = tuple(map(unquote, found.file_uris())) if plain else None
            said = marks.properties(producer, found.transaction_version)
            return Snapshot(_schema(found), paths, found.to_pyarrow_dataset, said)

    def scan(
        self, table: str, *, columns: Sequence[str] | None = None, since: int | None = None, until: int | None = None
    ) -> pa.Table:
        with _io(table):
            dataset = self._get(table).to_pyarrow_dataset()
            wanted = None if columns is None else {name: pc.field(name) for name in columns}
            return dataset.to_table(columns=wanted, filter=between(dataset.schema, since, until))

    def schema(self, table: str) -> pa.Schema:
        return _schema(self._get(table))

    def counts(self, table: str) -> dict[tuple[str, int], int]:
        rows = self.scan(table, columns=["_partition"])
        values, numbers = np.unique(rows["_partition"].to_numpy(), return_counts=True)
        stream = layout.stream_of(table)
        return {(stream, int(value)): int(number) for value, number in zip(values, numbers, strict=True)}

    def tables(self) -> list[TableInfo]:
        return [self._info(name) for name in files.tables_in(self._folder)]

    def compact(self, table: str, *, retention_h: int = compact.RETENTION_H) -> int:
        started = self._clock.monotonic()
        found = self._load(table)  # its own handle: joining may take long, and readers go on
        if found is None:
            raise self._missing(table)
        with _io(table):
            fewer = compact.join_files(found)
            removed = compact.remove_replaced(found, retention_h=retention_h)
        took_ms = round((self._clock.monotonic() - started) * 1000, 1)
        log.info("lake.compacted", table=table, files_fewer=fewer, files_removed=removed, took_ms=took_ms)
        return fewer

    def _create(self, table: str, schema: pa.Schema) -> DeltaTable:
        """An empty table of that schema; the one that is there when another process was faster."""
        path = self._path(table)
        with _io(table):
            try:
                made = DeltaTable.create(
                    str(path),
                    schema,
                    partition_by=["_date"] if "_date" in schema.names else None,
                    configuration=_SETTINGS,
                    storage_options=self._options,
                )
            except DeltaError:
                if (found := self._load(table)) is None:
                    raise
                return found
            if self._options is None:
                files.settle(path, made.version())
                files.settle_folders(path, self._folder)
            return made

    def _write(self, table: str, target: DeltaTable, rows: pa.Table, commit: CommitProperties) -> int:
        """Commit the rows; returns the version. CommitFailedError passes, everything else becomes ours."""
        with _io(table):
            write_deltalake(
                target,
                rows,
                mode="append",
                schema_mode="merge",
                partition_by=["_date"] if "_date" in rows.schema.names else None,
                writer_properties=compact.WRITER,
                commit_properties=commit,
                storage_options=self._options,
            )
            return int(target.version())

    def _info(self, table: str) -> TableInfo:
        found = self._get(table)
        with _io(table):
            actions = pa.table(found.get_add_actions(flatten=True))
            rows, size = (int(pc.sum(actions[name]).as_py() or 0) for name in ("num_records", "size_bytes"))
            return TableInfo(table, rows, actions.num_rows, size, found.version())

    def _path(self, table: str) -> Path:
        return self._folder / layout.parse_table(table).folder

    def _load(self, table: str) -> DeltaTable | None:
        """The table at its newest version, or None. The handle is the caller's own: it does not move under a reader."""
        path = self._path(table)
        with _io(table):
            if self._options is None and not (path / files.LOG_FOLDER).is_dir():
                return None
            try:
                return DeltaTable(str(path), storage_options=self._options)
            except TableNotFoundError:
                return None

    def _get(self, table: str) -> DeltaTable:
        found = self._load(table)
        if found is None:
            raise self._missing(table)
        return found

    def _missing(self, table: str) -> NotFound:
        known = files.tables_in(self._folder)
        return NotFound(
            f"the lake has no table {table!r}",
            hint=nearest(table, known) or f"tables: {', '.join(known) or 'none yet'}",
            code="lake.no_table",
        )


def between(schema: pa.Schema, since: int | None, until: int | None) -> pc.Expression | None:
    """Rows enqueued from `since` to `until` (ticks, both included); whole days are left out by `_date` where there is one."""
    terms: list[pc.Expression] = []
    dated = "_date" in schema.names
    if since is not None:
        terms += [pc.field("_enqueued") >= since, *([pc.field("_date") >= _day(since)] if dated else [])]
    if until is not None:
        terms += [pc.field("_enqueued") <= until, *([pc.field("_date") <= _day(until)] if dated else [])]
    expression = None
    for term in terms:
        expression = term if expression is None else expression & term
    return expression


def _day(ticks: int) -> datetime.date:
    return to_datetime(ticks).date()


def _with_date(rows: pa.Table) -> pa.Table:
    if "_enqueued" not in rows.schema.names or "_date" in rows.schema.names:
        return rows
    days = np.floor_divide(rows["_enqueued"].to_numpy(), _TICKS_PER_DAY).astype(np.int32)
    return rows.append_column("_date", pa.array(days, pa.int32()).cast(pa.date32()))


def _plain(rows: pa.Table) -> pa.Table:
    """Without columns of no type, and with text as plain text: what Delta can hold and gives back alike."""
    for index in reversed(range(rows.num_columns)):
        field = rows.schema.field(index)
        if pa.types.is_null(field.type):
            rows = rows.remove_column(index)
        elif (
            pa.types.is_large_string(field.type)
            or pa.types.is_string_view(field.type)
            or pa.types.is_dictionary(field.type)
        ):
            value = field.type.value_type if pa.types.is_dictionary(field.type) else pa.string()
            rows = rows.set_column(index, field.name, rows.column(index).cast(value))
    return rows


def _schema(table: DeltaTable) -> pa.Schema:
    return pa.schema(table.schema().to_arrow())


def _epoch(table: DeltaTable, producer: str) -> int:
    version = table.transaction_version(producer)
    return -1 if version is None else int(version)


def _check_types(table: str, known: pa.Schema, given: pa.Schema) -> None:
    """Delta would cast, and text that looks like a number would silently become one."""
    types = {field.name.casefold(): field for field in known}
    for field in given:
        there = types.get(field.name.casefold())
        if there is None:
            continue
        if there.name != field.name or there.type != field.type:
            raise DataError(
                f"{table} has column {there.name!r} of {there.type}, the rows bring {field.name!r} of {field.type}",
                hint="flatten the batch with schema=lake.schema(table)",
                code="lake.type",
            )


@contextmanager
def _io(what: str) -> Iterator[None]:
    """Turn the driver's errors into ours. A lost race (CommitFailedError) passes."""
    try:
        yield
    except CommitFailedError:
        raise
    except SchemaMismatchError as exc:
        raise DataError(
            f"{what}: {exc}", hint="flatten the batch with schema=lake.schema(table)", code="lake.type"
        ) from exc
    except (OSError, DeltaError) as exc:
        raise Unavailable(
            f"lake table {what}: {exc}",
            hint="check that the lake's disk is there, writable and not full",
            code="lake.io",
        ) from exc
