"""A job's books between two checkpoints: rows in, admitted, set aside and handed to the outputs.

They are written right before each checkpoint, under its epoch. After a crash the runner repeats the same epochs and writes
a checkpoint where the last of them ended, so what was written twice has the same key and counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from headrace.core.flow import LedgerEntry
from headrace.core.schema import EventBatch
from headrace.eventlog.contract import Positions
from headrace.jobs.inputs import Portion

ALL = -1
"""The partition of an entry that is about a whole stream: which partition a row goes to is the log's own affair."""


def output_stage(job: str) -> str:
    """The ledger's name for what a job handed to its output streams."""
    return f"output:{job}"


class Books:
    """Counts since the last checkpoint. `kept` goes into the checkpoint and comes back with it."""

    def __init__(self, job: str, positions: Mapping[str, Positions], kept: Mapping[str, Any]) -> None:
        self._job = job
        self._begin = dict(positions)
        self._handed: Counter[str] = Counter(kept.get("handed", {}))
        self._handed_before = Counter(self._handed)
        self._rows: Counter[tuple[str, int]] = Counter()
        self._aside: dict[tuple[str, int], Counter[str]] = {
            (stream, partition): Counter(reasons) for stream, partition, reasons in kept.get("owed", [])
        }

    def count_in(self, portion: Portion) -> None:
        """Rows that the query was given, and rows that retention dropped before it could be."""
        for stream, batch in portion.runs:
            for partition, rows in _counts(batch):
                self._rows[stream, partition] += rows
        for (stream, partition), rows in portion.trimmed.items():
            self._rows[stream, partition] += rows
            self._set_aside(stream, partition, "trimmed", rows)

    def count_aside(self, stream: str, events: EventBatch, reason: str) -> None:
        """Rows that the query refused. Those that no single event stands behind (offset below 0) never came in."""
        for partition, rows in _counts(events.filter(pc.greater_equal(events.column("_offset"), 0))):
            self._set_aside(stream, partition, reason, rows)

    def count_out(self, stream: str, rows: int) -> None:
        """Rows handed to an output stream."""
        self._handed[stream] += rows

    def close(self, epoch: int, positions: Mapping[str, Positions], outputs: Mapping[str, str]) -> list[LedgerEntry]:
        """The entries up to `epoch`, and a clean page. `outputs` values are the streams that the job writes."""
        entries = [
            self._entry(stream, partition, epoch, self._begin[stream][partition], end)
            for stream, ends in positions.items()
            for partition, end in enumerate(ends)
        ]
        for stream in sorted(set(outputs.values())):
            before, after = self._handed_before[stream], self._handed[stream]
            entries.append(LedgerEntry(output_stage(self._job), stream, ALL, epoch, before, after, after - before, {}))
        self._begin = dict(positions)
        self._handed_before = Counter(self._handed)
        return [entry for entry in entries if entry.rows_in or epoch == 0]

    def kept(self) -> dict[str, Any]:
        """What the next page needs of this one."""
        owed = [(stream, partition, dict(reasons)) for (stream, partition), reasons in self._aside.items() if reasons]
        return {"handed": dict(self._handed), "owed": owed}

    def _set_aside(self, stream: str, partition: int, reason: str, rows: int) -> None:
        self._aside.setdefault((stream, partition), Counter())[reason] += rows

    def _entry(self, stream: str, partition: int, epoch: int, begin: int, end: int) -> LedgerEntry:
        """A row can be refused long after it was admitted. It is then booked with the next rows that come in: an entry's
        rows out cannot be below zero."""
        rows = self._rows.pop((stream, partition), 0)
        waiting = self._aside.pop((stream, partition), Counter[str]())
        booked: Counter[str] = Counter()
        for reason, count in waiting.items():
            booked[reason] = min(count, rows - booked.total())
        if left := waiting - booked:
            self._aside[stream, partition] = left
        return LedgerEntry(
            f"job:{self._job}", stream, partition, epoch, begin, end, rows - booked.total(), dict(+booked)
        )


def _counts(batch: EventBatch) -> list[tuple[int, int]]:
    partitions, counts = np.unique(batch.column("_partition").to_numpy(), return_counts=True)
    return list(zip(partitions.tolist(), counts.tolist(), strict=True))
