"""The folder a lake lies in: which tables are there, and forcing what a commit wrote onto the disk.

Delta's writer leaves flushing to the operating system. A process may die at any moment without harm, a machine may not:
so `settle` flushes a commit's files before the caller is told that its rows are durable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import orjson

from headrace.core.errors import UserError

LOG_FOLDER = "_delta_log"
_UNUSABLE = re.compile(r"[%\\^|\[\]\x00-\x1f\x7f]")


def check_folder(folder: Path) -> None:
    """Raises UserError for a path with characters that Delta's library stumbles over (1.6 panics on some)."""
    if match := _UNUSABLE.search(str(folder)):
        raise UserError(
            f"a lake cannot lie in {str(folder)!r}: Delta tables refuse {match[0]!r} in a path",
            hint="rename the folder, or set [lake] path to another",
            code="lake.folder",
        )


def tables_in(folder: Path) -> list[str]:
    """Names (`layer.name`) of the Delta tables under the folder, sorted."""
    return sorted(
        f"{log.parent.parent.name}.{log.parent.name}" for log in folder.glob(f"*/*/{LOG_FOLDER}") if log.is_dir()
    )


def settle(table: Path, version: int) -> None:
    """Flush the data files that commit `version` added, its log entry, and the folders that name them."""
    entry = table / LOG_FOLDER / f"{version:020d}.json"
    files = [table / path for path in _added(entry)]
    folders = {parent for file in files for parent in file.parents if parent.is_relative_to(table)}
    for path in (*files, *sorted(folders), entry, entry.parent):
        _flush(path)


def settle_folders(table: Path, lake: Path) -> None:
    """Flush the names of a new table's folders, up to the lake's own."""
    for folder in (table.parent, *table.parent.parents):
        _flush(folder)
        if folder == lake:
            break


def _added(entry: Path) -> Iterable[str]:
    for line in entry.read_bytes().splitlines():
        action = orjson.loads(line)
        if "add" in action:
            yield unquote(action["add"]["path"])


def _flush(path: Path) -> None:
    with suppress(FileNotFoundError):  # joined into another file and vacuumed in the meantime
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
