"""Where things lie in the lake: layers, table names and folders.

`raw.telemetry` is what devices sent, `served.<stream>` what jobs and functions made of it. A table is the folder
`<lake>/<layer>/<name>`, so that any Delta reader finds it by its path.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from headrace.core.errors import UserError

RAW, SERVED = "raw", "served"
RAW_STREAMS = frozenset(["telemetry"])

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,126}")


class TableName(NamedTuple):
    layer: str
    name: str

    @property
    def folder(self) -> str:
        """Relative to the lake's folder."""
        return f"{self.layer}/{self.name}"


def table_of(stream: str) -> str:
    """The lake table that holds a stream: `telemetry` -> `raw.telemetry`, `scored` -> `served.scored`."""
    name = f"{RAW if stream in RAW_STREAMS else SERVED}.{stream}"
    parse_table(name)
    return name


def stream_of(table: str) -> str:
    """The stream whose rows a lake table holds."""
    return parse_table(table).name


def parse_table(table: str) -> TableName:
    """Raises UserError unless `table` is `layer.name` of letters, digits, `-` and `_`."""
    layer, _, name = table.partition(".")
    if not _PART.fullmatch(layer) or not _PART.fullmatch(name):
        raise UserError(
            f"{table!r} is not a lake table's name",
            hint="write layer.name, like raw.telemetry, in letters, digits, - and _",
            code="lake.name",
        )
    return TableName(layer, name)
