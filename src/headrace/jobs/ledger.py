"""The ledger report: does what came in equal what went out and what was set aside, at every stage?

In and out are counted in different places. What came in is a range of log offsets; what went out the stage says itself, and
where its sink can be read (lake, warehouse, output streams) the sink is counted again and that number stands. A row deleted
from a sink is therefore a gap here, and stays one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from headrace.core.clock import Clock, SystemClock
from headrace.core.errors import NotFound
from headrace.core.flow import Ledger, LedgerEntry
from headrace.eventlog.contract import EventLog, StreamStats
from headrace.jobs.books import ALL
from headrace.lake.contract import Lake
from headrace.lake.layout import table_of
from headrace.warehouse.contract import Warehouse

Counts = dict[tuple[str, int], int]
"""Rows by (stream, partition)."""

_SETTLE_S = 0.2
_SETTLE_MAX_S = 2.0
_SETTLE_TRIES = 10


class Sink(NamedTuple):
    """A place whose rows can be counted: the stage that fills it, from which stream, its name, and how to count (blocking)."""

    stage: str
    stream: str
    where: str
    counts: Callable[[str], Counts]


class StageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One stage on one partition (ALL: the whole stream). `pending` rows are in the log and not consumed yet."""

    stage: str
    stream: str
    partition: int
    rows_in: int
    rows_out: int
    set_aside: dict[str, int]
    gap: int
    pending: int
    counted: str


class LedgerReport:
    """Builds the report of a project.

    `lake_streams` says which streams the lake projection writes; `entities` are warehouse tables and the stream of each.
    `shared` are streams that others than jobs write to, so their rows cannot be held against what jobs handed over.
    """

    def __init__(
        self,
        log: EventLog,
        ledger: Ledger,
        *,
        clock: Clock | None = None,
        lake: Lake | None = None,
        lake_streams: Callable[[str], bool] = lambda stream: True,
        warehouse: Warehouse | None = None,
        entities: Mapping[str, str] | None = None,
        shared: frozenset[str] = frozenset({"telemetry", "set_aside", "alerts"}),
    ) -> None:
        self._log = log
        self._ledger = ledger
        self._clock = clock or SystemClock()
        self._lake = lake
        self._lake_streams = lake_streams
        self._warehouse = warehouse
        self._entities = entities or {}
        self._shared = shared

    async def run(self, *, wait_s: float = 0.0) -> dict[str, Any]:
        """`{"balanced": bool, "pending": rows, "stages": [...]}`; see StageRow.

        Waits up to `wait_s` for the stages to catch up with the log. While rows flow, a sink may have rows that the books
        will have in a moment; such a look is repeated a few times, a gap that stays is reported.
        """
        end = self._clock.monotonic() + wait_s
        await self.drained(timeout_s=wait_s)
        pause_s = _SETTLE_S
        for look in range(1, _SETTLE_TRIES + 1):
            stages = await self._stages()
            balanced = all(row.gap == 0 for row in stages)
            if balanced or look == _SETTLE_TRIES:
                break
            if self._clock.monotonic() >= end and not await self._moves(stages):
                break
            await self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, _SETTLE_MAX_S)
        return {
            "balanced": balanced,
            "pending": sum(row.pending for row in stages),
            "stages": [msgspec.to_builtins(row) for row in stages],
        }

    async def drained(self, *, timeout_s: float) -> bool:
        """Wait until every stage has consumed all that is in the log; False when that took longer. Counts no sink."""
        end = self._clock.monotonic() + timeout_s
        while True:
            if sum(row.pending for row in await self._stages(counted=False)) == 0:
                return True
            if self._clock.monotonic() >= end:
                return False
            await self._clock.sleep(_SETTLE_S)

    async def _moves(self, stages: list[StageRow]) -> bool:
        """Whether anything is still under way: then a gap may be one of the moment."""
        await self._clock.sleep(_SETTLE_S)
        return await self._stages() != stages

    async def _stages(self, *, counted: bool = True) -> list[StageRow]:
        # The books first: what is stored while we count then shows as too many rows out, never as rows lost.
        totals = await self._ledger.totals()
        streams = {stream: await self._log.stats(stream) for stream in await self._log.streams()}
        sinks = {(sink.stage, sink.stream): sink for sink in self._sinks(streams)}
        rows = [row for stream, stats in streams.items() for row in _ingest(stream, stats)]
        handed: list[LedgerEntry] = []
        groups: dict[tuple[str, str], dict[int, LedgerEntry]] = {key: {} for key in sinks}
        for entry in totals:
            if entry.partition == ALL:
                handed.append(entry)
            else:
                groups.setdefault((entry.stage, entry.stream), {})[entry.partition] = entry
        for key in sorted(groups):
            counts = await _counted(sinks.get(key)) if counted else None
            rows += _consumed(*key, groups[key], streams.get(key[1]), counts, sinks.get(key))
        busy = {row.stage.removeprefix("job:") for row in rows if row.stage.startswith("job:") and row.pending}
        return rows + _outputs(handed, streams, self._shared, busy)

    def _sinks(self, streams: Iterable[str]) -> Iterator[Sink]:
        """Every sink that there is or ought to be: one that was never written to has its stream pending."""
        if self._lake is not None:
            for stream in filter(self._lake_streams, streams):
                yield Sink("function:lake", stream, table_of(stream), self._lake.counts)
        if self._warehouse is not None:
            for table, stream in self._entities.items():
                yield Sink(f"function:entities:{table}", stream, table, self._warehouse.counts)


async def _counted(sink: Sink | None) -> Counts | None:
    if sink is None:
        return None
    try:
        return await asyncio.to_thread(sink.counts, sink.where)
    except NotFound:  # no such table (yet): it has no rows
        return {}


def _ingest(stream: str, stats: StreamStats) -> list[StageRow]:
    """What was handed to the log, against the offsets it gave out."""
    return [
        _row(
            "ingest",
            stream,
            partition,
            rows_in=stats.received[partition],
            rows_out=stats.next[partition],
            set_aside={"duplicate": stats.duplicates[partition]} if stats.duplicates[partition] else {},
            pending=0,
            counted="log offsets",
        )
        for partition in range(len(stats.next))
    ]


def _consumed(
    stage: str,
    stream: str,
    entries: Mapping[int, LedgerEntry],
    stats: StreamStats | None,
    counts: Counts | None,
    sink: Sink | None,
) -> list[StageRow]:
    """A stage that reads a stream. One that never began has all of it pending."""
    ends = stats.next if stats else ()
    rows: list[StageRow] = []
    for partition in sorted({*entries, *range(len(ends))}):
        end = ends[partition] if partition < len(ends) else 0
        entry = entries.get(partition) or LedgerEntry(stage, stream, partition, 0, *_untouched(stats, partition), 0, {})
        rows.append(
            _row(
                stage,
                stream,
                partition,
                rows_in=entry.rows_in,
                rows_out=entry.rows_out if counts is None else counts.get((stream, partition), 0),
                set_aside=entry.set_aside,
                pending=max(0, end - entry.offset_to),
                counted=f"rows of {sink.where}" if sink else "by the stage",
            )
        )
    return rows


def _untouched(stats: StreamStats | None, partition: int) -> tuple[int, int]:
    begin = stats.earliest[partition] if stats else 0
    return begin, begin


def _outputs(
    handed: Iterable[LedgerEntry], streams: Mapping[str, StreamStats], shared: frozenset[str], busy: set[str]
) -> list[StageRow]:
    """What jobs handed to their output streams, against the offsets that the log gave out there.

    A job books its rows at its next checkpoint. While one still has input to read, rows that are in the stream and not
    yet in its books are pending; rows that are in its books and not in the stream are a gap at any time.
    """
    by_stream: dict[str, list[LedgerEntry]] = {}
    for entry in handed:
        if entry.stream not in shared:
            by_stream.setdefault(entry.stream, []).append(entry)
    rows: list[StageRow] = []
    for stream, entries in sorted(by_stream.items()):
        rows_in = sum(entry.rows_in for entry in entries)
        stored = sum(streams[stream].next) if stream in streams else 0
        jobs = {entry.stage.removeprefix("output:") for entry in entries}
        pending = max(0, stored - rows_in) if jobs & busy else 0
        rows.append(
            _row(
                f"output:{'+'.join(sorted(jobs))}",
                stream,
                ALL,
                rows_in=rows_in,
                rows_out=stored - pending,
                set_aside={},
                pending=pending,
                counted="log offsets of the output stream",
            )
        )
    return rows


def _row(
    stage: str,
    stream: str,
    partition: int,
    *,
    rows_in: int,
    rows_out: int,
    set_aside: dict[str, int],
    pending: int,
    counted: str,
) -> StageRow:
    return StageRow(
        stage=stage,
        stream=stream,
        partition=partition,
        rows_in=rows_in,
        rows_out=rows_out,
        set_aside=set_aside,
        gap=rows_in - rows_out - sum(set_aside.values()),
        pending=pending,
        counted=counted,
    )
