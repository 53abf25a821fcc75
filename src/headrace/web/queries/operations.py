"""How the platform itself is doing: books, parts, what was set aside, streams, health, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pyarrow.compute as pc
from litestar import MediaType, Response, get
from litestar.datastructures import State
from litestar.params import FromQuery

from headrace.core.clock import TICKS_PER_MS
from headrace.core.observe.metrics import Metrics
from headrace.jobs import meters
from headrace.jobs.model import DETAILS
from headrace.web.queries.jobs import all_jobs, of_collection

SET_ASIDE = "set_aside"
BODY_MAX = 2000


@get("/api/ledger", summary="What came in, went out and was set aside, by stage", tags=["operations"])
async def ledger(state: State) -> dict[str, Any]:
    return dict(await state.ledger.get())


@get("/api/status", summary="Parts: state, process, CPU, memory, lag", tags=["operations"])
async def status(state: State) -> dict[str, Any]:
    found: Mapping[str, Any] = await state.status.get()
    problems = state.hub.problems()
    if state.room.alerts_problem:
        problems["alerts"] = state.room.alerts_problem
    return {**found, "console": {"problems": problems}}


class StreamInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One stream of the log. `events` counts all there ever were, `kept` those that retention kept."""

    name: str
    events: int
    kept: int
    duplicates: int
    bytes_on_disk: int


@get("/api/streams", summary="Streams of the log", tags=["operations"])
async def streams(state: State) -> list[StreamInfo]:
    source = state.services.log
    found: list[StreamInfo] = []
    for name in await source.streams():
        stats = await source.stats(name)
        found.append(
            StreamInfo(
                name=name,
                events=sum(stats.next),
                kept=sum(stats.next) - sum(stats.earliest),
                duplicates=sum(stats.duplicates),
                bytes_on_disk=stats.bytes_on_disk,
            )
        )
    return found


class SetAsideEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that some stage could not use: why, where, and what it held (its first 2,000 characters)."""

    t: float
    entity: str
    device: str
    reason: str
    stage: str
    detail: str
    body: str


@get("/api/set-aside", summary="The newest events that were set aside", tags=["operations"])
async def set_aside(state: State, limit: FromQuery[int] = 50) -> list[SetAsideEvent]:
    source = state.services.log
    if SET_ASIDE not in await source.streams():
        return []
    limit = min(max(limit, 1), 500)
    earliest, end = await source.bounds(SET_ASIDE)
    start = tuple(max(first, last - limit) for first, last in zip(earliest, end, strict=True))
    if start == end:
        return []
    piece = await source.read_merged(SET_ASIDE, start, rows_max=limit * len(start), wait_s=0.0)
    newest = piece.batch.take(pc.sort_indices(piece.batch.column("_enqueued"), sort_keys=[("", "descending")]))
    return [_event(row) for row in newest.slice(0, limit).to_pylist()]


def _event(row: dict[str, Any]) -> SetAsideEvent:
    try:
        properties = msgspec.json.decode(row["_properties"] or "{}", type=dict[str, Any])
    except msgspec.DecodeError:
        properties = {}
    return SetAsideEvent(
        t=row["_enqueued"] / TICKS_PER_MS,
        entity=row["_entity_id"],
        device=row["_device"],
        reason=str(properties.get("reason") or row["_type"]),
        stage=str(properties.get("stage", "")),
        detail=str(properties.get("detail", "")),
        body=row["_body"].decode("utf-8", "replace")[:BODY_MAX],
    )


@get("/health", summary="Whether the console works", tags=["operations"])
async def health(state: State) -> Response[dict[str, Any]]:
    problems = state.hub.problems()
    return Response({"healthy": not problems, "problems": problems}, status_code=503 if problems else 200)


@get("/metrics", summary="Prometheus text format", tags=["operations"], media_type=MediaType.TEXT)
async def metrics(state: State) -> Response[bytes]:
    docs = state.services.docs
    of_jobs = Metrics()  # made anew each time: what is gone is gone here too
    meters.tell(of_jobs, await all_jobs(docs), await of_collection(docs, DETAILS))
    kind = "text/plain; version=0.0.4; charset=utf-8"
    return Response(state.services.metrics.expose() + of_jobs.expose(), media_type=kind)
