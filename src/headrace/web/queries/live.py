"""Live: server-sent events of one entity, or of the whole fleet.

`/api/live` sends `points` messages (one per stream, the shape of /api/history); the id of each is a resume token, so a
browser that reconnects misses nothing. `thinned` says how many points were left out, `reset` that history must be loaded again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import pyarrow as pa
from litestar import Request, get
from litestar.datastructures import State
from litestar.params import FromQuery, QueryParameter
from litestar.response import Stream

from headrace.core.errors import HeadraceError
from headrace.eventlog.contract import Positions
from headrace.web import sse, tokens
from headrace.web.live import Behind, LiveHub
from headrace.web.points import points_of

HEARTBEAT_S = 10.0


@get("/api/live", summary="One entity's points as they come (SSE)", tags=["live"], media_type="text/event-stream")
async def live(
    request: Request[None, None, State],
    state: State,
    entity: FromQuery[str],
    streams: Annotated[str, QueryParameter(description="names, separated by commas; empty for telemetry")] = "",
    start: Annotated[str, QueryParameter(name="from", description="a resume token: starts exactly after it")] = "",
) -> Stream:
    names = [name for name in streams.split(",") if name] or [state.services.settings.web.telemetry]
    resume = tokens.decode(request.headers.get("last-event-id") or start)
    hub: LiveHub = state.hub
    await hub.check(names)
    return sse.event_stream(messages(hub, entity, names, resume))


async def messages(
    hub: LiveHub, entity: str, streams: list[str], resume: dict[str, Positions], *, heartbeat_s: float = HEARTBEAT_S
) -> AsyncIterator[bytes]:
    """Catch up, then follow until the hub closes. An error of ours becomes a last message that says so."""
    try:
        async with hub.watch(entity, streams, resume) as (watcher, starts, catch_up):
            given: dict[str, Positions] = dict(starts)
            async for piece in catch_up:
                given[piece.stream] = piece.positions
                if piece.rows is not None:
                    yield _points(piece.stream, piece.rows, tokens.encode(given))
            yield sse.message("following", {}, id=tokens.encode(given))
            while not watcher.closed:
                taken = await watcher.take(heartbeat_s)
                token = tokens.encode({stream: tuple(offsets) for stream, offsets in watcher.next.items()})
                if thinned := watcher.take_thinned():
                    yield sse.message("thinned", {"rows": thinned})
                for index, (stream, rows) in enumerate(taken):
                    yield _points(stream, rows, token if index == len(taken) - 1 else "")
                if not taken:
                    yield sse.message("still", {}, id=token)
    except Behind as error:
        yield sse.message("reset", {"message": error.message})
    except HeadraceError as error:
        yield sse.message("problem", {"message": error.message, "hint": error.hint, "code": error.code})


def _points(stream: str, rows: pa.Table, token: str) -> bytes:
    return sse.message("points", points_of(stream, rows), id=token)


@get("/api/live/fleet", summary="The fleet, second by second (SSE)", tags=["live"], media_type="text/event-stream")
async def live_fleet(state: State) -> Stream:
    return sse.event_stream(state.room.messages())
