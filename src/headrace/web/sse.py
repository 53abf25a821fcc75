"""Server-sent events: how one message is written.

A comment every few seconds keeps proxies from closing a quiet connection and lets a browser notice a dead one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from litestar.response import Stream

HEARTBEAT = b": still here\n\n"
RETRY_MS = 2000
_ENCODER = msgspec.json.Encoder()


def message(event: str, data: object, *, id: str = "") -> bytes:
    """One message; `data` becomes one line of JSON, `id` must hold no line break."""
    head = f"id: {id}\nevent: {event}\ndata: " if id else f"event: {event}\ndata: "
    return b"".join((head.encode(), data if isinstance(data, bytes) else _ENCODER.encode(data), b"\n\n"))


def event_stream(messages: AsyncIterator[bytes]) -> Stream:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Stream(_with_retry(messages), media_type="text/event-stream", headers=headers)


async def _with_retry(messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield b"retry: %d\n\n" % RETRY_MS
    async for chunk in messages:
        yield chunk
