"""The warehouse on PostgreSQL, any server of version 14 or later.

A few connections are kept and lent out, one to each call: a driver's connection is one conversation, and threads share
this object. One that broke is thrown away and the call fails as Unavailable; the next call opens a new one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pyarrow as pa
import structlog
from psycopg import conninfo, sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from headrace.core.clock import Clock
from headrace.core.errors import DataError, HeadraceError, Unavailable, UserError, nearest
from headrace.warehouse import load, tables
from headrace.warehouse.contract import Loaded

log = structlog.get_logger()

_IDLE_MAX = 4
_REFUSED = ("password authentication failed", "no password supplied", "no pg_hba.conf entry", "role", "database")
_NOT_YET = "the database system is"  # starting up, shutting down, in recovery mode, not yet accepting connections


class PostgresWarehouse:
    """`url` is postgresql://user:password@host:port/database, in the clear (`Secret.reveal()`).

    Nothing is opened before the first call.
    """

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        connect_timeout_s: int = 5,
        statement_timeout_s: float = 60.0,
    ) -> None:
        self._settings = _settings(url, connect_timeout_s, statement_timeout_s)
        self._clock = clock
        self._idle: list[psycopg.Connection[Any]] = []
        self._lock = threading.Lock()
        self._closed = False

    def prepare(self) -> None:
        with self._connection() as connection:
            applied = tables.migrate(connection)
        if applied:
            log.info("warehouse.migrated", applied=applied)

    def load(self, table: str, rows: pa.Table, *, producer: str, epoch: int, positions: Sequence[int] = ()) -> Loaded:
        started = self._clock.monotonic()
        with self._connection() as connection:
            loaded = load.load(connection, table, rows, producer=producer, epoch=epoch, positions=positions)
        took_ms = round((self._clock.monotonic() - started) * 1000, 1)
        log.debug("warehouse.loaded", table=table, new=loaded.new, known=loaded.known, epoch=epoch, took_ms=took_ms)
        return loaded

    def last_epoch(self, producer: str) -> int:
        found = self.query("SELECT epoch FROM consumer WHERE producer = %s", (producer,))
        return int(found[0]["epoch"]) if found else -1

    def counts(self, table: str) -> dict[tuple[str, int], int]:
        if table not in tables.ENTITY_TABLES:
            raise _no_table(table, tables.ENTITY_TABLES)
        statement = f"SELECT stream, log_partition, count(*) AS rows FROM {table} GROUP BY stream, log_partition"
        return {(row["stream"], row["log_partition"]): row["rows"] for row in self.query(statement)}

    def upsert(self, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
        if table not in tables.METADATA_COLUMNS:
            raise _no_table(table, tables.METADATA_COLUMNS)
        columns = tables.METADATA_COLUMNS[table]
        values = [_metadata(table, columns, row) for row in rows]
        names = [sql.Identifier(name) for name in (*columns, "attributes")]
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT (id) DO UPDATE SET {}").format(
            sql.Identifier(table),
            sql.SQL(", ").join(names),
            sql.SQL(", ").join([sql.Placeholder()] * len(names)),
            sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(name) for name in names[1:]),
        )
        with self._connection() as connection, connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(statement, values)
        return len(values)

    def query(self, sql: str, params: Mapping[str, Any] | Sequence[Any] | None = None) -> list[dict[str, Any]]:
        with self._connection() as connection, connection.transaction():
            connection.execute("SET TRANSACTION READ ONLY")
            with connection.cursor(row_factory=dict_row) as cursor:
                return cursor.execute(sql.encode(), params).fetchall()

    def close(self) -> None:
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for connection in idle:
            connection.close()

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Lend a connection (autocommit; use `transaction()`); the driver's errors come out as ours."""
        connection = self._take()
        try:
            with _errors():
                yield connection
        finally:
            self._give_back(connection)

    def _take(self) -> psycopg.Connection[Any]:
        with self._lock:
            if self._closed:
                raise Unavailable("the warehouse was closed", code="warehouse.closed")
            while self._idle:
                connection = self._idle.pop()
                if not connection.closed:
                    return connection
        try:
            return psycopg.connect(**self._settings, autocommit=True)
        except psycopg.OperationalError as exc:
            raise _not_connected(exc) from exc

    def _give_back(self, connection: psycopg.Connection[Any]) -> None:
        whole = not connection.closed and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with self._lock:
            if whole and not self._closed and len(self._idle) < _IDLE_MAX:
                self._idle.append(connection)
                return
        with suppress(psycopg.Error):
            connection.close()


def _settings(url: str, connect_timeout_s: int, statement_timeout_s: float) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = dict(conninfo.conninfo_to_dict(url))
    except psycopg.ProgrammingError:
        # The driver's text would repeat the url, and with it the password.
        raise UserError(
            "the warehouse url is not a PostgreSQL url",
            hint="write postgresql://USER:PASSWORD@HOST:5432/DATABASE in [warehouse] url",
            code="warehouse.url",
        ) from None
    settings.setdefault("connect_timeout", connect_timeout_s)
    settings.setdefault("application_name", "headrace")
    timeout_ms = int(statement_timeout_s * 1000)
    settings["options"] = f"{settings.get('options', '')} -c statement_timeout={timeout_ms} -c timezone=UTC".strip()
    return settings


def _metadata(table: str, columns: Sequence[str], row: Mapping[str, Any]) -> list[Any]:
    if not row.get("id"):
        raise UserError(f"a row for {table} has no id", hint="every factory, machine and criterion needs an `id`")
    rest = {key: value for key, value in row.items() if key not in columns}
    return [*(row.get(name) for name in columns), Jsonb(rest)]


def _no_table(table: str, known: Iterable[str]) -> UserError:
    names = list(known)
    return UserError(
        f"{table!r} is no table for that",
        hint=nearest(table, names) or f"one of {', '.join(names)}",
        code="warehouse.no_table",
    )


def _not_connected(exc: psycopg.OperationalError) -> HeadraceError:
    text = " ".join(str(exc).split())
    if "FATAL" in text and any(reason in text for reason in _REFUSED) and _NOT_YET not in text:
        return UserError(
            f"PostgreSQL refused the connection: {text}",
            hint="check user, password and database in [warehouse] url",
            code="warehouse.refused",
        )
    return Unavailable(
        f"PostgreSQL cannot be reached: {text}",
        hint="see `headrace status`; without a [warehouse] url Headrace runs a server of its own",
        code="warehouse.unreachable",
    )


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except psycopg.errors.QueryCanceled as exc:
        raise Unavailable(
            "the statement took too long", hint="ask for less, or raise its timeout", code="warehouse.timeout"
        ) from exc
    except psycopg.errors.ReadOnlySqlTransaction as exc:
        raise UserError(f"PostgreSQL: {_say(exc)}", hint="query() only reads", code="warehouse.read_only") from exc
    except psycopg.errors.ProgramLimitExceeded as exc:  # its class says "operational", but trying again helps nobody
        raise DataError(f"PostgreSQL: {_say(exc)}", hint="a value is too big", code="warehouse.data") from exc
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError) as exc:
        raise Unavailable(
            f"PostgreSQL: {_say(exc)}", hint="it is tried again; see `headrace status`", code="warehouse.lost"
        ) from exc
    except (psycopg.DataError, psycopg.IntegrityError) as exc:
        raise DataError(
            f"PostgreSQL: {_say(exc)}", hint="a value does not fit its column", code="warehouse.data"
        ) from exc
    except psycopg.ProgrammingError as exc:
        raise UserError(
            f"PostgreSQL: {_say(exc)}", hint="check the names and the syntax; see `\\d` in psql", code="warehouse.sql"
        ) from exc


def _say(exc: psycopg.Error) -> str:
    """The driver's first line; where PostgreSQL gave a position, that too. Detail lines may hold values and are left out."""
    first = str(exc.diag.message_primary or exc).splitlines()[0] if str(exc) else type(exc).__name__
    return f"{first} at character {exc.diag.statement_position}" if exc.diag.statement_position else first
