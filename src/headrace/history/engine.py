"""One DuckDB per question: in memory, read only, and shut in before a user's SQL is looked at.

Lake files are read by DuckDB's own Parquet reader, two to five times faster than through an Arrow dataset. It may open
files in the folders it is given and nowhere else; its settings are locked; a timer interrupts it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from headrace.core.errors import HeadraceError, Unavailable, UserError, nearest

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
}


class Session:
    """Not shared between threads. `folders` are where Parquet files may be read from; `known` are names for hints."""

    def __init__(
        self, folders: Sequence[str], known: Sequence[str], *, memory: str, threads: int, timeout_s: float
    ) -> None:
        self._known = known
        self._timeout_s = timeout_s
        settings = {**_SETTINGS, "memory_limit": memory, "threads": threads}
        self._database = duckdb.connect(":memory:", config=settings)
        self._database.execute("SET TimeZone = 'UTC'")
        self._database.execute(f"SET allowed_directories = {_list(folders)}")
        self._database.execute("SET enable_external_access = false")

    def add_arrow(self, name: str, rows: pa.Table | ds.Dataset) -> None:
        self._database.register(name, rows)

    def add_view(self, name: str, select: str) -> None:
        """`name` is SQL, quoted where needed, with or without a schema."""
        schema, dot, _ = name.rpartition(".")
        if dot:
            self._database.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        self._database.execute(f"CREATE VIEW {name} AS {select}")

    def lock(self) -> None:
        """From here on no statement changes a setting."""
        self._database.execute("SET lock_configuration = true")

    def answer(self, sql: str, params: Sequence[Any] | None = None, *, limit: int | None = None) -> pa.Table:
        timer = threading.Timer(self._timeout_s, self._database.interrupt)
        timer.start()
        try:
            with errors(sql, self._known, timeout_s=self._timeout_s):
                relation = self._relation(sql, params)
                return (relation if limit is None else relation.limit(limit)).to_arrow_table()
        finally:
            timer.cancel()

    def _relation(self, sql: str, params: Sequence[Any] | None) -> duckdb.DuckDBPyRelation:
        try:
            return self._database.sql(sql, params=params)
        except (duckdb.BinderException, duckdb.CatalogException):
            self._database.execute(sql, params)  # fails alike, and unlike sql() says where
            raise

    def close(self) -> None:
        self._database.close()


def check(sql: str) -> None:
    """Raises UserError unless `sql` is one statement that only reads."""
    with errors(sql, ()):
        statements = duckdb.extract_statements(sql)
    if len(statements) != 1:
        raise UserError(
            f"{len(statements)} statements given, a query is one", hint="ask one at a time", code="query.statements"
        )
    if statements[0].type != duckdb.StatementType.SELECT:
        raise UserError(
            f"a query reads, {statements[0].type.name} does not",
            hint="write SELECT, WITH, DESCRIBE, SHOW TABLES or SUMMARIZE",
            code="query.not_a_select",
        )


def can_name(path: str) -> bool:
    """Whether DuckDB takes a path for a file's name and not for a pattern."""
    return not re.search(r"[*?\[]", path)


def parquet(paths: Sequence[str]) -> str:
    """A SELECT of Parquet files that may have different columns; `_date` comes from their folders' names."""
    return (
        f"SELECT * FROM read_parquet({_list(paths)}, union_by_name = true,"
        " hive_partitioning = true, hive_types = {'_date': DATE})"
    )


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _list(texts: Iterable[str]) -> str:
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"


@contextmanager
def errors(sql: str, known: Sequence[str], *, timeout_s: float = 0.0) -> Iterator[None]:
    """Turn DuckDB's errors into ours, with line and column where it says them."""
    try:
        yield
    except duckdb.Error as exc:
        raise _ours(sql, known, exc, timeout_s) from exc


def _ours(sql: str, known: Sequence[str], exc: duckdb.Error, timeout_s: float) -> HeadraceError:
    text = str(exc)
    if isinstance(exc, duckdb.InterruptException):
        return Unavailable(
            f"the query took more than {timeout_s:g} s", hint="ask for less time or fewer columns", code="query.timeout"
        )
    if isinstance(exc, duckdb.OutOfMemoryException):
        return Unavailable("the query needs more memory than it may have", hint="ask for less", code="query.memory")
    if isinstance(exc, duckdb.PermissionException):
        return UserError("a query reads tables, not files", hint=_tables_hint(known), code="query.forbidden")
    said = f"{_first_line(text)}{_place(sql, text)}"
    if match := re.search(r"Table with name (\S+) does not exist|Schema with name (\S+) does not exist", text):
        name = match[1] or match[2]
        said = f"there is no table {name!r}{_place(sql, text)}"
        return UserError(said, hint=nearest(name, known) or _tables_hint(known), code="query.no_table")
    if isinstance(exc, duckdb.ParserException):
        return UserError(said, hint="the SQL is DuckDB's", code="query.syntax")
    if isinstance(exc, (duckdb.BinderException, duckdb.CatalogException)):
        return UserError(said, hint=_candidates(text), code="query.name")
    if isinstance(exc, duckdb.IOException):
        return Unavailable(said, hint="see `headrace status`; is the lake's disk there?", code="query.io")
    return UserError(said, hint="TRY_CAST gives NULL where CAST fails", code="query.failed")


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0].partition(": ")[2] or text.split("\n", 1)[0]


def _tables_hint(known: Sequence[str]) -> str:
    return f"tables: {', '.join(known) or 'none yet'}"


def _candidates(text: str) -> str:
    match = re.search(r"(Candidate (?:bindings|tables): .*|Did you mean .*)", text)
    dotted = 'a field inside an object is quoted whole: "data.temp"'
    return f"{match[1]}; {dotted}" if match else dotted


def _place(sql: str, text: str) -> str:
    """` at line 2, column 8`, from the line that DuckDB shows with marks under it; empty where it shows none."""
    match = re.search(r"^LINE (\d+): (.*)\n( *)\^", text, re.MULTILINE)
    if match is None:
        return ""
    number, shown = int(match[1]), match[2]
    column = len(match[3]) - len(f"LINE {number}: ")
    lines = sql.splitlines()
    if shown.startswith("...") and number <= len(lines):  # a long line, shown from somewhere in its middle
        start = lines[number - 1].find(shown.removeprefix("...").removesuffix("..."))
        column += max(start, 0) - len("...")
    return f" at line {number}, column {column + 1}"
