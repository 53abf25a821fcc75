"""The epoch journal: where each epoch of one consumer (a job or a function) ends in its input streams.

An epoch's cut points are durable before any of its output is. After a crash the consumer restores its checkpoint and runs
every journaled epoch again over exactly the same rows, so a sink that ignores epochs it already has ends up with each row
once. One file per consumer, one process per file. All calls block: call them in a thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from headrace.core.schema import EventBatch
from headrace.core.sqlite import open_shared, transaction, unavailable
from headrace.eventlog.contract import Positions

FIRST_EPOCH = 1
"""Epoch 0 is the checkpoint that says where the consumer started."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER PRIMARY KEY, positions TEXT NOT NULL, extra TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS checkpoint (
    only INTEGER PRIMARY KEY CHECK (only = 1), epoch INTEGER NOT NULL, positions TEXT NOT NULL, extra TEXT NOT NULL,
    state BLOB NOT NULL
);
"""


class Cut(NamedTuple):
    """An epoch that began: it ends before `positions` (the next offsets, by stream)."""

    epoch: int
    positions: dict[str, Positions]
    extra: dict[str, Any]


class Checkpoint(NamedTuple):
    """Everything up to `epoch` is durable in the sinks; `state` is what the consumer knew then."""

    epoch: int
    positions: dict[str, Positions]
    extra: dict[str, Any]
    state: bytes


class EpochJournal:
    """The journal of one consumer. Raises Unavailable when the file cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = open_shared(path, synchronous="FULL")
        with self._guard():
            self._connection.executescript(_SCHEMA)

    def begin(self, epoch: int, positions: Mapping[str, Positions], extra: Mapping[str, Any] | None = None) -> None:
        """Durably record where `epoch` ends, before its output is written. The same epoch again replaces its cut."""
        row = (epoch, _encode(positions), _encode(extra or {}))
        with self._guard():
            self._connection.execute("INSERT OR REPLACE INTO epochs VALUES (?, ?, ?)", row)

    def checkpoint(
        self,
        epoch: int,
        positions: Mapping[str, Positions],
        state: bytes = b"",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Durably record that all up to `epoch` is done and what the consumer knows now; older epochs are forgotten."""
        row = (epoch, _encode(positions), _encode(extra or {}), state)
        with self._guard(), transaction(self._connection):
            self._connection.execute("INSERT OR REPLACE INTO checkpoint VALUES (1, ?, ?, ?, ?)", row)
            self._connection.execute("DELETE FROM epochs WHERE epoch <= ?", (epoch,))

    def last_checkpoint(self) -> Checkpoint | None:
        """None when the consumer never wrote one: it has not started yet."""
        with self._guard():
            row = self._connection.execute("SELECT epoch, positions, extra, state FROM checkpoint").fetchone()
        return Checkpoint(row[0], _positions(row[1]), msgspec.json.decode(row[2]), bytes(row[3])) if row else None

    def pending(self) -> list[Cut]:
        """Epochs that began after the last checkpoint, oldest first: they may be in the sinks, wholly, in part or not."""
        with self._guard():
            rows = self._connection.execute("SELECT epoch, positions, extra FROM epochs ORDER BY epoch").fetchall()
        return [Cut(row[0], _positions(row[1]), msgspec.json.decode(row[2])) for row in rows]

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, msgspec.DecodeError) as exc:
            raise unavailable(self._path, exc) from exc


def positions_after(positions: Positions, batch: EventBatch) -> Positions:
    """Where to go on after `batch` (LOG_SCHEMA, in merged order) when `positions` is where it began."""
    partitions = batch.column("_partition").to_numpy()
    offsets = batch.column("_offset").to_numpy()
    after = np.array(positions, np.int64)
    np.maximum.at(after, partitions, offsets + 1)
    return tuple(after.tolist())


def _encode(value: Mapping[str, Any]) -> str:
    return msgspec.json.encode(value).decode()


def _positions(text: str) -> dict[str, Positions]:
    return msgspec.json.decode(text, type=dict[str, Positions])
