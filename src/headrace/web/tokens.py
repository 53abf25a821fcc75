"""Resume tokens: log positions of one or more streams as a short text, `telemetry:12,0,5,7;scored:3,1,0,9`.

History hands one out and the live feed starts exactly there; every live message carries one, so a browser that reconnects
goes on exactly where it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from headrace.core.errors import UserError
from headrace.eventlog.contract import Positions

LENGTH_MAX = 4096
_PART = re.compile(r"([\w.-]{1,100}):((?:\d{1,18}(?:,\d{1,18}){0,1023})?)", re.ASCII)


class BadToken(UserError):
    """A resume token that this console did not write."""

    code = "web.bad_token"


def encode(positions: Mapping[str, Positions]) -> str:
    return ";".join(f"{stream}:{','.join(map(str, offsets))}" for stream, offsets in positions.items())


def decode(text: str) -> dict[str, Positions]:
    """Positions by stream; empty for an empty text. Raises BadToken."""
    found: dict[str, Positions] = {}
    for part in filter(None, text[: LENGTH_MAX + 1].split(";")):
        match = _PART.fullmatch(part)
        if match is None or len(text) > LENGTH_MAX:
            raise BadToken(
                f"{text[:60]!r} is not a resume token", hint="use the `resume` value of an /api/history answer"
            )
        found[match[1]] = tuple(map(int, match[2].split(","))) if match[2] else ()
    return found
