"""What a run tells about itself, operator by operator: the shape that metrics and the console rely on.

Everything is counted per batch. Times are event time in ticks; only `busy_s` comes from a timer, and is 0 without one.
"""

from __future__ import annotations

from typing import TypedDict

from headrace.core.clock import TICKS_PER_S
from headrace.core.flow import MAX_WATERMARK, MIN_WATERMARK, Watermark


class OperatorStats(TypedDict):
    """One operator of a plan. Counts are totals since the job began, kills included; `busy_s` since this start."""

    operator: str  # position and label, unique within the plan
    kind: str  # input, select, join, match, union, from
    output: str | None  # where a statement writes to
    rows_in: int
    rows_out: int
    filter_in: int  # rows that reached WHERE, and those that it let through
    filter_out: int
    having_in: int
    having_out: int
    state_rows: int
    state_bytes: int  # as of the last snapshot
    watermark: int | None  # nothing at or before it will come any more; None before the first and after the end
    watermark_delay_s: float | None  # how far it is behind the latest arrival
    busy_s: float


class ReferenceStats(TypedDict):
    """Reference data under CREATE TABLE: rows given, and those left out because they do not fit."""

    rows: int
    misfits: int


class RunStats(TypedDict):
    operators: list[OperatorStats]
    watermarks: dict[str, int | None]  # by input, the lowest of its timelines
    decoders: dict[str, str]  # by input: `compiled` or `plain`
    references: dict[str, ReferenceStats]
    substreams: int  # timelines of their own (TIMESTAMP BY … OVER)


def told(mark: Watermark) -> int | None:
    """A watermark as a number that means something."""
    return mark if MIN_WATERMARK < mark < MAX_WATERMARK else None


def delay_s(mark: Watermark, latest: int) -> float | None:
    if told(mark) is None or latest == MIN_WATERMARK:
        return None
    return max(0, latest - mark) / TICKS_PER_S
