"""The epoch journal: where each epoch of one consumer (a job or a function) ends in its input streams.

An epoch's cut points are durable before any of its output is. After a crash the consumer restores its checkpoint and runs
every journaled epoch again over exactly the same rows, so a sink that ignores epochs it already has ends up with each row
once. A checkpoint's state is one whole part, or that and what changed since, part after part: the chain is bounded, and its
parts vouch for each other, so that a damaged one is never taken for a state. One file per consumer, one process per file. All
calls block: call them in a thread.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from headrace.core.errors import UserError
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
CREATE TABLE IF NOT EXISTS parts (number INTEGER PRIMARY KEY, crc INTEGER NOT NULL, state BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS chain (
    only INTEGER PRIMARY KEY CHECK (only = 1), parts INTEGER NOT NULL, crc INTEGER NOT NULL, bytes INTEGER NOT NULL,
    whole_bytes INTEGER NOT NULL
);
"""
_DELTAS_MAX = 16


class Cut(NamedTuple):
    """An epoch that began: it ends before `positions` (the next offsets, by stream)."""

    epoch: int
    positions: dict[str, Positions]
    extra: dict[str, Any]


class StateDamaged(UserError):
    """A part of a checkpoint's state is missing, or is not what was written."""

    code = "eventlog.state_damaged"


class Checkpoint(NamedTuple):
    """Everything up to `epoch` is durable in the sinks; `state` and the `deltas` after it are what the consumer knew then."""

    epoch: int
    positions: dict[str, Positions]
    extra: dict[str, Any]
    state: bytes
    deltas: tuple[bytes, ...] = ()


class _Chain(NamedTuple):
    """How many parts a state has, the check sum over all of them, and how many bytes they and the whole one are."""

    parts: int
    crc: int
    bytes: int
    whole_bytes: int


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

    def takes_delta(self) -> bool:
        """Whether the next checkpoint may say only what changed: while deltas are few, and together smaller than the whole."""
        with self._guard():
            chain = self._chain()
        return chain is not None and chain.parts <= _DELTAS_MAX and chain.bytes < 2 * chain.whole_bytes

    def checkpoint(
        self,
        epoch: int,
        positions: Mapping[str, Positions],
        state: bytes = b"",
        extra: Mapping[str, Any] | None = None,
        *,
        delta: bool = False,
    ) -> None:
        """Durably record that all up to `epoch` is done and what the consumer knows now; older epochs are forgotten.

        `state` is whole and replaces what was there, or with `delta` goes on from it.
        """
        row = (epoch, _encode(positions), _encode(extra or {}), b"")
        with self._guard(), transaction(self._connection):
            self._add_part(state, self._chain() if delta else None)
            self._connection.execute("INSERT OR REPLACE INTO checkpoint VALUES (1, ?, ?, ?, ?)", row)
            self._connection.execute("DELETE FROM epochs WHERE epoch <= ?", (epoch,))

    def _add_part(self, state: bytes, before: _Chain | None) -> None:
        """After the chain `before`; None: the state begins anew with this part."""
        if before is None:
            self._connection.execute("DELETE FROM parts")
        parts, crc, size, whole = before or _Chain(0, 0, 0, len(state))
        crc = zlib.crc32(state, crc)
        self._connection.execute("INSERT INTO parts VALUES (?, ?, ?)", (parts, crc, state))
        chain = _Chain(parts + 1, crc, size + len(state), whole)
        self._connection.execute("INSERT OR REPLACE INTO chain VALUES (1, ?, ?, ?, ?)", chain)

    def _chain(self) -> _Chain | None:
        row = self._connection.execute("SELECT parts, crc, bytes, whole_bytes FROM chain").fetchone()
        return _Chain(*row) if row else None

    def last_checkpoint(self) -> Checkpoint | None:
        """None when the consumer never wrote one: it has not started yet. Raises StateDamaged."""
        with self._guard():
            row = self._connection.execute("SELECT epoch, positions, extra, state FROM checkpoint").fetchone()
            chain = self._chain()
            parts = self._connection.execute("SELECT number, crc, state FROM parts ORDER BY number").fetchall()
        if not row:
            return None
        if chain is None:  # a file from before states had parts
            return Checkpoint(row[0], _positions(row[1]), msgspec.json.decode(row[2]), bytes(row[3]))
        states = self._sound(chain, parts)
        return Checkpoint(row[0], _positions(row[1]), msgspec.json.decode(row[2]), states[0], tuple(states[1:]))

    def _sound(self, chain: _Chain, parts: Sequence[tuple[int, int, bytes]]) -> list[bytes]:
        """The parts of a state, whole one first, once they are what was written."""
        crc = 0
        for at, (number, said, state) in enumerate(parts):
            crc = zlib.crc32(state, crc)
            if number != at or crc != said:
                raise self._damaged(
                    f"part {number} of {chain.parts} is not what was written, or one before it is missing"
                )
        if len(parts) != chain.parts or crc != chain.crc:
            raise self._damaged(f"it has {len(parts)} of {chain.parts} parts")
        return [bytes(state) for _, _, state in parts]

    def _damaged(self, how: str) -> StateDamaged:
        return StateDamaged(
            f"{self._path}: the checkpointed state is damaged: {how}",
            hint="bring the file back from a backup, or delete it to start the consumer afresh",
        )

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
