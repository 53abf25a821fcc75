"""Bulk import of devices from a file, and export to one.

What exists already is kept as it is, twin and all, so an import that was interrupted is simply run again. A batch is one
transaction; twins are written before their devices, so a device that is there has its twin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import BinaryIO

import msgspec

from headrace.core.errors import Conflict, UserError
from headrace.devices.commands import DeviceCommands
from headrace.devices.model import COLLECTION, Draft
from headrace.devices.provisioning import patch_of
from headrace.devices.provisioning_files import BadLine, Entry, Format, read, writer
from headrace.devices.queries import DeviceQueries
from headrace.devices.twins import COLLECTION as TWINS
from headrace.devices.twins import TwinService, twin_from_body
from headrace.docstore.contract import DocStore
from headrace.wire.iothub.topics import Identity

BATCH = 1000
PROBLEMS_MAX = 10_000  # kept with their text; more are counted


class Imported(msgspec.Struct):
    """How far an import is. `problems` are (line, what is wrong), the first PROBLEMS_MAX; `position` is in bytes."""

    lines: int = 0
    created: int = 0
    kept: int = 0
    failed: int = 0
    position: int = 0
    problems: list[tuple[int, str]] = []

    def fail(self, line: int, problem: str) -> None:
        self.failed += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append((line, problem))


class DeviceImport:
    """All calls may raise Unavailable."""

    def __init__(
        self,
        docs: DocStore,
        commands: DeviceCommands,
        queries: DeviceQueries,
        twins: TwinService,
        *,
        batch: int = BATCH,
    ) -> None:
        self._docs = docs
        self._commands = commands
        self._queries = queries
        self._twins = twins
        self._batch = batch

    async def run(
        self, file: BinaryIO, format: Format, *, on_batch: Callable[[Imported], None] = lambda so_far: None
    ) -> Imported:
        """Read all devices of a file; `on_batch` is told how far it is. Raises UserError for a header that is none."""
        found, seen = Imported(problems=[]), dict[str, int]()
        lines = read(file, format)
        while batch := await asyncio.to_thread(_take, lines, self._batch):
            await self._take_in(batch, found, seen)
            found.lines += len(batch)
            found.position = batch[-1].position
            on_batch(found)
        return found

    async def export(
        self, file: BinaryIO, format: Format, *, on_batch: Callable[[int], None] = lambda done: None
    ) -> int:
        """Write all devices by id, with keys, tags and desired properties; returns how many."""
        write, after, done = writer(file, format), "", 0
        while page := await self._queries.list(after=after, limit=self._batch):
            documents = await asyncio.gather(*(self._docs.get(TWINS, device.id) for device in page))
            for device, document in zip(page, documents, strict=True):
                twin = None if document is None else twin_from_body(document.body)
                write(device, twin.tags if twin else {}, twin.desired.values if twin else {})
            after, done = page[-1].id, done + len(page)
            on_batch(done)
        return done

    async def _take_in(self, batch: Sequence[Entry | BadLine], found: Imported, seen: dict[str, int]) -> None:
        entries: list[Entry] = []
        for line in batch:
            if isinstance(line, BadLine):
                found.fail(line.line, line.problem)
            elif line.draft.id in seen:
                found.fail(line.line, f"device {line.draft.id!r} stands in line {seen[line.draft.id]} already")
            else:
                seen[line.draft.id] = line.line
                entries.append(line)
        there = await asyncio.gather(*(self._docs.get(COLLECTION, entry.draft.id) for entry in entries))
        new = [entry for entry, known in zip(entries, there, strict=True) if known is None]
        found.kept += len(entries) - len(new)
        try:
            await self._make(new)
            found.created += len(new)
        except UserError:
            for entry in new:  # one of them spoils the batch: find out which
                try:
                    await self._make([entry])
                    found.created += 1
                except UserError as exc:
                    found.fail(entry.line, exc.message)

    async def _make(self, entries: Sequence[Entry]) -> None:
        """Raises UserError, and then nothing of them is made."""
        patches = {Identity(entry.draft.id): patch_of(entry.tags, entry.desired) for entry in entries}
        try:
            await self._twins.create_many({identity: patch for identity, patch in patches.items() if patch})
        except Conflict:  # of an import that was interrupted, say
            await asyncio.gather(*(self._twins.update(who, patch) for who, patch in patches.items() if patch))
        drafts: list[Draft | str] = [entry.draft for entry in entries]
        await self._commands.create_many(drafts, if_exists="keep")


def _take(lines: Iterator[Entry | BadLine], count: int) -> list[Entry | BadLine]:
    return list(islice(lines, count))
