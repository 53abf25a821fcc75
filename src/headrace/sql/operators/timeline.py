"""Event time: TIMESTAMP BY, lateness, disorder and the watermark, for one input and one choice of timestamp.

Everything is decided in order of arrival, on whole batches: a running maximum gives every row the watermark that held
when it arrived, so the outcome does not depend on where batches were cut. Rows wait until the watermark passes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from headrace.core.clock import TICKS_PER_S
from headrace.core.flow import MAX_WATERMARK, MIN_WATERMARK, Watermark
from headrace.core.schema import LOG_SCHEMA
from headrace.sql import values
from headrace.sql.decode import Decoder, Payload
from headrace.sql.evaluate import Eval, Frame
from headrace.sql.moments import parse_moments
from headrace.sql.rows import Rows
from headrace.sql.values import DATETIME, TEXT, Bools, Column, Ints

EARLY_MAX = 300 * TICKS_PER_S


class Policies(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to events outside their time. Only inputs with TIMESTAMP BY are concerned."""

    late_arrival_s: float = 5.0  # -1: unlimited
    out_of_order_s: float = 0.0
    action: Literal["adjust", "drop"] = "adjust"


class Dropped(NamedTuple):
    """Rows of a payload that the time policies refused, with their event times where they had one."""

    at: Ints
    reason: str
    details: list[str]
    times: Ints | None = None


def event_times(column: Column) -> tuple[Ints, Bools]:
    """Ticks from a datetime or ISO text column, and which rows gave one."""
    column = values.plain(column)
    ticks: Ints = np.zeros(column.rows, np.int64)
    good: Bools = np.zeros(column.rows, np.bool_)
    for kind, data, mask in column.parts:
        if kind == DATETIME:
            found, fits = data, np.ones(column.rows, np.bool_)
        elif kind == TEXT:
            found, fits = parse_moments(data)
        else:
            continue
        if mask is not None:
            fits = fits & mask
        ticks = np.where(fits, found, ticks)
        good = good | fits
    return ticks, good


class Timeline:
    """`timestamp` is the bound TIMESTAMP BY, or None for arrival time."""

    def __init__(self, timestamp: Eval | None, policies: Policies, decoder: Decoder) -> None:
        self.timestamp = timestamp
        self.decoder = decoder
        self.late = -1 if policies.late_arrival_s < 0 else int(policies.late_arrival_s * TICKS_PER_S)
        self.disorder = int(policies.out_of_order_s * TICKS_PER_S)
        self.drop = policies.action == "drop"
        self.level: Watermark = MIN_WATERMARK  # W of the language: rows at W may still come
        self.waiting: list[Rows] = []

    @property
    def mark(self) -> Watermark:
        """No row at or before this time will come any more."""
        return max(self.level - 1, MIN_WATERMARK) if self.level != MAX_WATERMARK else MAX_WATERMARK

    def process(self, payload: Payload) -> tuple[Rows | None, list[Dropped]]:
        """Rows that the watermark has reached, in time order, and rows refused."""
        if payload.rows == 0:
            return None, []
        arrivals = payload.arrivals()
        if self.timestamp is None:
            self.level = max(self.level, int(arrivals.max()))
            return Rows(arrivals, [payload], payload), []
        frame = Frame(arrivals, [Rows(arrivals, [payload], payload)])
        times, good = event_times(self.timestamp(frame))
        dropped: list[Dropped] = []
        for fault in frame.faults:
            good[fault.row] = False
        if not good.all():
            bad = np.flatnonzero(~good)
            dropped.append(Dropped(bad, "bad_timestamp", ["the timestamp is missing or no ISO 8601 time"] * len(bad)))
        kept, times = self._judge(times, arrivals, good, dropped)
        if not len(kept):
            return None, dropped
        whole = len(kept) == payload.rows
        picked = payload if whole else payload.take(kept)
        return self._release(Rows(times, [picked], picked)), dropped

    def _judge(self, times: Ints, arrivals: Ints, good: Bools, dropped: list[Dropped]) -> tuple[Ints, Ints]:
        """The rows that stay and their adjusted times; moves the level."""
        if self._all_in_order(times, arrivals, good):
            self.level = max(self.level, int(times[-1]) - self.disorder)
            return np.arange(len(times)), times
        early = good & (times - arrivals > EARLY_MAX)
        self._drop(early, "early", times, arrivals, dropped)
        good = good & ~early
        if self.late >= 0:
            late = good & (arrivals - times > self.late)
            if self.drop:
                self._drop(late, "late", times, arrivals, dropped)
                good = good & ~late
            else:
                times = np.where(late, arrivals - self.late, times)
        at = np.flatnonzero(good)
        times = times[at]
        if not len(at):
            return at, times
        reached = np.maximum.accumulate(times) - self.disorder
        before = np.empty_like(reached)
        before[0] = self.level
        np.maximum(reached[:-1], self.level, out=before[1:])
        behind = times < before
        if self.drop and behind.any():
            mask = np.zeros(len(good), np.bool_)
            mask[at[behind]] = True
            full = np.zeros(len(good), np.int64)
            full[at] = times
            self._drop(mask, "out_of_order", full, arrivals, dropped)
            at, times = at[~behind], times[~behind]
        else:
            times = np.maximum(times, before)
        self.level = max(self.level, int(reached[-1]))
        return at, times

    def _all_in_order(self, times: Ints, arrivals: Ints, good: Bools) -> bool:
        """Whether no row of a batch is refused or adjusted: the usual case, and cheap to see."""
        if not good.all() or times[0] < self.level or (times[1:] < times[:-1]).any():
            return False
        ahead = times - arrivals
        return bool(ahead.max() <= EARLY_MAX and (self.late < 0 or -ahead.min() <= self.late))

    @staticmethod
    def _drop(mask: Bools, reason: str, times: Ints, arrivals: Ints, dropped: list[Dropped]) -> None:
        at = np.flatnonzero(mask)
        if len(at):
            apart = (arrivals[at] - times[at]) / TICKS_PER_S
            details = [f"event time {gap:.3f} s before arrival" for gap in apart.tolist()]
            dropped.append(Dropped(at, reason, details, times[at]))

    def _release(self, rows: Rows | None) -> Rows | None:
        """Rows up to the level, in (time, arrival) order; the rest waits."""
        if rows is not None and not self.waiting and self.disorder == 0:
            return rows  # without tolerance every row is at or above the one before, and at or below the level
        gathered = [*self.waiting, rows] if rows is not None else self.waiting
        if not gathered:
            return None
        together = Rows.concat(gathered)
        order = np.argsort(together.times, kind="stable")
        count = int(np.searchsorted(together.times[order], self.level, side="right"))
        rest = np.sort(order[count:])
        self.waiting = [together.take(rest).settle()] if len(rest) else []
        return together.take(order[:count]) if count else None

    def advance(self, arrival: int) -> Rows | None:
        """No event arrived up to `arrival`: idle time moves the watermark, as far as lateness allows."""
        if self.timestamp is None:
            self.level = max(self.level, arrival + 1)
        elif self.late >= 0:
            self.level = max(self.level, arrival - self.late + 1)
        return self._release(None)

    def finish(self) -> Rows | None:
        self.level = MAX_WATERMARK
        return self._release(None)

    def waiting_rows(self) -> int:
        return sum(rows.rows for rows in self.waiting)

    def snapshot(self, since: int | None = None) -> pa.Table:
        """The waiting events as they came, with their adjusted times; the level is in the metadata."""
        if self.waiting:
            rows = Rows.concat(self.waiting)
            assert rows.origin is not None
            events = pa.Table.from_batches([rows.origin.events()])
            table = events.append_column("_time", pa.array(rows.times)).append_column(
                "_key", events.column("_event_id")
            )
        else:
            table = LOG_SCHEMA.empty_table().append_column("_time", pa.array([], pa.int64()))
        return table.replace_schema_metadata({"level": str(self.level)})

    def restore(self, table: pa.Table) -> None:
        self.level = int(table.schema.metadata[b"level"])
        self.waiting = []
        if table.num_rows:
            events = table.select(LOG_SCHEMA.names).combine_chunks().to_batches()[0]
            payload, bad, _ = Payload.split(events, self.decoder)
            assert not len(bad), "what waits was decoded before"
            self.waiting = [Rows(table.column("_time").to_numpy(), [payload], payload)]


def refused(payload: Payload, dropped: Sequence[Dropped]) -> list[tuple[Any, str, list[str]]]:
    """(events, reason, details) of dropped rows."""
    return [(payload.take(one.at).events(), one.reason, one.details) for one in dropped]
