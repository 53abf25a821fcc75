"""The compiled parser as a file: `core.native` builds it, here is which source it has."""

from __future__ import annotations

from pathlib import Path

from headrace.core import native

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "json_columns.c"


def library_path(folder: Path = FOLDER) -> Path:
    """Where the library of this very source lies once it is built."""
    return native.library_path(SOURCE, folder)


def build(folder: Path = FOLDER) -> tuple[Path | None, str]:
    """Compile, unless that was done: the library, or None and why there is none."""
    return native.build(SOURCE, folder)
