"""History: one entity's points over a time range with the place where live goes on, and SQL over everything kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import pyarrow as pa
from litestar import get, post
from litestar.datastructures import State
from litestar.params import FromQuery, JSONBody, QueryParameter

from headrace.core.clock import TICKS_PER_MS, TICKS_PER_S, from_iso
from headrace.core.errors import NotFound, UserError
from headrace.web import tokens
from headrace.web.points import Points, points_of

POINTS_MAX = 20_000
ROWS_MAX = 10_000
_AGO = re.compile(r"-(\d{1,6})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def moment(text: str, now: int) -> int:
    """Ticks of `now`, `-15m` (s, m, h, d ago), ms since 1970, or ISO 8601. Raises UserError."""
    if text == "now":
        return now
    if match := _AGO.fullmatch(text):
        return now - int(match[1]) * _SECONDS[match[2]] * TICKS_PER_S
    if re.fullmatch(r"\d{10,15}(\.\d+)?", text):
        return int(float(text) * TICKS_PER_MS)
    return from_iso(text)


@get("/api/history", summary="One entity's points, and where live goes on", tags=["history"])
async def history(
    state: State,
    stream: FromQuery[str],
    entity: FromQuery[str] = "",
    fields: Annotated[str, QueryParameter(description="names, separated by commas; empty for all")] = "",
    since: Annotated[str, QueryParameter(description="ISO 8601, ms since 1970, or `-15m`")] = "-15m",
    until: Annotated[str, QueryParameter(description="as `since`, or `now`")] = "now",
    points: Annotated[int, QueryParameter(ge=10, le=POINTS_MAX, description="about how many a field")] = 1500,
) -> Points:
    services = state.services
    now = services.clock.now()
    start, end = moment(since, now), moment(until, now)
    if end < start:
        raise UserError(f"`until` ({until}) is before `since` ({since})", hint="swap them")
    names = [name for name in fields.split(",") if name] or None

    def ask() -> tuple[pa.Table, tuple[int, ...]]:
        return services.history.range(stream, start, end, names, entity or None, points)  # type: ignore[no-any-return]

    try:
        table, positions = await state.threads.run(ask)
    except NotFound:
        if stream not in state.known_streams:
            raise
        # Named by the settings but not written to yet: empty, and live goes on from its first event.
        return Points(stream=stream, t=[], fields={}, resume=tokens.encode({stream: ()}))
    return points_of(stream, table, resume=tokens.encode({stream: tuple(positions)}))


class Statement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A read-only SQL statement over the lake and what the log has since."""

    sql: str
    limit: Annotated[int, msgspec.Meta(ge=1, le=ROWS_MAX)] = 1000


class Column(msgspec.Struct, frozen=True):
    name: str
    type: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a statement. `truncated`: there are more than the limit. Times are ISO 8601 text, decimals and blobs text."""

    columns: list[Column]
    rows: list[list[Any]]
    truncated: bool
    took_ms: float


@post("/api/query", status_code=200, summary="Run SQL over lake and log", tags=["history"])
async def query(state: State, data: JSONBody[Statement]) -> Answer:
    clock = state.services.clock
    begun = clock.monotonic()
    table = await state.threads.run(lambda: state.services.history.run(data.sql, limit=data.limit + 1))
    rows = table.slice(0, data.limit)
    return Answer(
        columns=[Column(field.name, str(field.type)) for field in table.schema],
        rows=[list(row) for row in zip(*[_plain(column) for column in rows.columns], strict=True)],
        truncated=table.num_rows > data.limit,
        took_ms=round((clock.monotonic() - begun) * 1000, 1),
    )


def _plain(column: pa.ChunkedArray) -> Sequence[Any]:
    kind = column.type
    if pa.types.is_integer(kind) and kind.bit_width == 64:
        return [value if value is None or abs(value) < 1 << 53 else str(value) for value in column.to_pylist()]
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind):
        return [None if value is None else value.isoformat().replace("+00:00", "Z") for value in column.to_pylist()]
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_string(kind):
        return list(column.to_pylist())
    return [None if value is None else _text(value) for value in column.to_pylist()]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | dict):
        return msgspec.json.encode(value, enc_hook=str).decode()
    return str(value)
