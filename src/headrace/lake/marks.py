"""What a producer said with its last append, kept where Delta itself keeps a producer's epoch.

Custom metadata of a commit vanish when old log entries are cleaned up, and a file beside the table is not written in the
same instant as the rows. Application transactions (app id -> int64) do both: they are part of the commit, carried through
every checkpoint and untouched by compaction. So the properties are JSON text cut into pieces of 7 bytes, one transaction
each; `<producer>#bytes` says how many bytes count, since pieces of an earlier, longer text stay behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import orjson
from deltalake import Transaction

from headrace.core.errors import UserError

_PIECE = 7  # bytes that always fit a positive int64
BYTES_MAX = 2048


def transactions(producer: str, epoch: int, properties: Mapping[str, str]) -> list[Transaction]:
    """The application transactions of one append. Raises UserError when the properties take more than BYTES_MAX."""
    text = orjson.dumps(dict(properties))
    if len(text) > BYTES_MAX:
        raise UserError(
            f"properties of {producer!r} take {len(text):,} bytes, at most {BYTES_MAX:,} are kept",
            hint="keep positions here and put the rest in columns",
            code="lake.properties",
        )
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    return [
        Transaction(producer, epoch),
        Transaction(f"{producer}#bytes", len(text)),
        *(Transaction(f"{producer}#{index}", int.from_bytes(piece)) for index, piece in enumerate(pieces)),
    ]


def properties(producer: str, version_of: Callable[[str], int | None]) -> dict[str, str]:
    """The properties back from the versions of the application transactions; empty when there are none."""
    left = version_of(f"{producer}#bytes") or 0
    text = bytearray()
    for index in range(-(-left // _PIECE)):
        size = min(_PIECE, left - len(text))
        text += (version_of(f"{producer}#{index}") or 0).to_bytes(size)
    found: dict[str, str] = orjson.loads(text) if text else {}
    return found
