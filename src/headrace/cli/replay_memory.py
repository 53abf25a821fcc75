"""Which rows of a file are in the log already: kept in the project, one small file a replayed file and stream.

It is written after rows were acknowledged, so a replay that is killed has sent a few more than it remembers. When it goes on
it looks for those in the log itself: a row is stored once however long the interruption was, not only while the log
still recognises its message id.
"""

from __future__ import annotations

import base64
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from headrace.connectors.files import FileRows
from headrace.core.clock import TICKS_PER_S
from headrace.core.identity import message_event_id
from headrace.eventlog.contract import EventLog, Trimmed

SLACK = 5 * TICKS_PER_S
SCAN_ROWS = 20_000


class _Kept(msgspec.Struct):
    """The file: a bit a row, packed, compressed, as text."""

    run: str
    written: int  # ticks; every row acknowledged before is among the bits
    rows: str


class Memory:
    """One file's rows on one stream. `run` goes into the message ids: another run of the same rows is other events."""

    def __init__(self, folder: Path, file: FileRows, stream: str) -> None:
        name = f"{file.prefix}{file.fingerprint}"
        self._path = folder / f"{stream}-{name}.json"
        self._file = file
        self.run = ""
        self.written = 0
        self.acknowledged = np.zeros(file.total, np.bool_)  # by row number; blank lines have one too, so it may grow
        self._read()

    @property
    def done(self) -> int:
        return int(self.acknowledged.sum())

    def start_again(self, run: str) -> None:
        """Forget all, and tell the events of this run from those before."""
        self.run, self.written = run, 0
        self.acknowledged[:] = False

    def message_ids(self, ids: Iterable[str]) -> list[str]:
        return [f"{self.run}.{id}" for id in ids] if self.run else list(ids)

    def missing(self, rows: Sequence[int]) -> list[bool]:
        """Which of these row numbers are still to be sent."""
        self._grow(rows)
        return [not known for known in self.acknowledged[rows].tolist()]

    def note(self, rows: Sequence[int]) -> None:
        self._grow(rows)
        self.acknowledged[rows] = True

    def write(self, now: int) -> None:
        """Make durable what was noted. No row may be on its way."""
        self.written = now
        bits = base64.b64encode(zlib.compress(np.packbits(self.acknowledged).tobytes())).decode()
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(_Kept(self.run, now, bits)))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)

    async def look_up(self, log: EventLog, stream: str) -> int:
        """Note the rows that are in the log although nobody remembers. Returns how many; reads no more than it must."""
        if not self.written or self.done >= self._file.total:
            return 0
        _, ends = await log.bounds(stream)
        positions = await log.positions_at(stream, self.written - SLACK)
        if all(at >= end for at, end in zip(positions, ends, strict=True)):
            return 0
        wanted = self._unknown()
        found: list[int] = []
        while any(at < end for at, end in zip(positions, ends, strict=True)):
            try:
                piece = await log.read_merged(stream, positions, rows_max=SCAN_ROWS, wait_s=0, columns=["_event_id"])
            except Trimmed:
                positions, _ = await log.bounds(stream)
                continue
            found += [row for id in piece.batch.column("_event_id").to_pylist() if (row := wanted.get(id)) is not None]
            positions = piece.positions
        self.note(found)
        return len(found)

    def _unknown(self) -> dict[str, int]:
        """Rows that nobody remembers, by the id that their event would have."""
        unknown: dict[str, int] = {}
        for batch in self._file.batches():
            ids = self.message_ids(batch.message_ids)
            for device, id, row, missing in zip(batch.devices, ids, batch.rows, self.missing(batch.rows), strict=True):
                if missing:
                    unknown[message_event_id(device, None, id)] = row
        return unknown

    def _grow(self, rows: Sequence[int]) -> None:
        if rows and max(rows) >= len(self.acknowledged):
            more = np.zeros(max(rows) + 1 - len(self.acknowledged), np.bool_)
            self.acknowledged = np.concatenate([self.acknowledged, more])

    def _read(self) -> None:
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
            packed = np.frombuffer(zlib.decompress(base64.b64decode(kept.rows)), np.uint8)
        except (FileNotFoundError, msgspec.MsgspecError, ValueError, zlib.error):
            return  # nothing, or nothing that can be read: then all is sent, and the log knows what it has
        bits = np.unpackbits(packed).astype(np.bool_)
        self.run, self.written = kept.run, kept.written
        size = max(len(self.acknowledged), int(np.flatnonzero(bits)[-1]) + 1 if bits.any() else 0)
        self.acknowledged = np.zeros(size, np.bool_)
        self.acknowledged[: len(bits)] = bits[:size]
