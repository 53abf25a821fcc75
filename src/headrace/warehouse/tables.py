"""The warehouse's tables, made and changed by numbered files that are applied once.

A file that was applied is never edited: its checksum is recorded with it, and another text under the same number is an
error rather than a schema that differs from one installation to the next.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any, NamedTuple

import psycopg

from headrace.core.errors import UserError

_LOCK = 4_720_230_127  # any number that nobody else takes as an advisory lock

ENTITY_TABLES = ("machine_telemetry", "maintenance_aggregate")
METADATA_COLUMNS = {
    "factory": ("id", "name", "location"),
    "machine": ("id", "factory", "kind"),
    "maintenance_criterion": ("id", "requirement", "field", "comparison", "threshold"),
}
"""Columns of the metadata tables, `attributes` apart."""


class Migration(NamedTuple):
    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.blake2b(self.text.encode(), digest_size=16).hexdigest()


def migrations() -> list[Migration]:
    """The files of `migrations/`, in order of their numbers."""
    folder = files("headrace.warehouse").joinpath("migrations")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [Migration(int(name[:4]), name, folder.joinpath(name).read_text(encoding="utf-8")) for name in names]


def migrate(connection: psycopg.Connection[Any], wanted: list[Migration] | None = None) -> list[str]:
    """Apply what was not applied yet, in one transaction, one process at a time. Returns the names of the files applied."""
    applied: list[str] = []
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(
            "CREATE TABLE IF NOT EXISTS headrace_migration (number integer PRIMARY KEY, name text NOT NULL,"
            " checksum text NOT NULL, applied timestamptz NOT NULL DEFAULT now())"
        )
        known = {row[0]: row[1] for row in connection.execute("SELECT number, checksum FROM headrace_migration")}
        for migration in migrations() if wanted is None else wanted:
            if migration.number in known:
                _check(migration, known[migration.number])
                continue
            connection.execute(migration.text.encode())
            connection.execute(
                "INSERT INTO headrace_migration (number, name, checksum) VALUES (%s, %s, %s)",
                (migration.number, migration.name, migration.checksum),
            )
            applied.append(migration.name)
    return applied


def _check(migration: Migration, checksum: str) -> None:
    if migration.checksum != checksum:
        raise UserError(
            f"{migration.name} was applied to this warehouse with another text",
            hint="give the change a file with the next number",
            code="warehouse.migration",
        )
