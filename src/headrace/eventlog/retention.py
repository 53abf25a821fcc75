"""Retention: one pass that drops what each stream no longer keeps."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.errors import HeadraceError
from headrace.eventlog.contract import EventLog

log = structlog.get_logger()


async def retain(event_log: EventLog, clock: Clock, retention_s: Callable[[str], float]) -> dict[str, int]:
    """Trim every stream to the seconds that `retention_s` allows it (0 keeps all). Returns the bytes given back by stream.

    A stream that cannot be trimmed is logged and left for the next pass; the others are still trimmed.
    """
    freed: dict[str, int] = {}
    for stream in await event_log.streams():
        keep_s = retention_s(stream)
        if keep_s <= 0:
            continue
        try:
            freed[stream] = await event_log.trim(stream, clock.now() - int(keep_s * TICKS_PER_S))
        except HeadraceError as exc:
            log.warning("stream.trim_failed", stream=stream, error=str(exc), code=exc.code)
            continue
        if freed[stream] > 0:
            log.info("stream.trimmed", stream=stream, bytes=freed[stream])
    return freed
