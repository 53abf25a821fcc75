"""Reads of the identity registry: single look-ups, and the directory that a gateway keeps in memory.

The directory is filled from the change feed alone, from its beginning, so there is no gap between loading and following.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import structlog

from headrace.core.clock import Clock, SystemClock
from headrace.core.errors import NotFound, Unavailable, nearest
from headrace.devices.model import COLLECTION, Device, Status, from_body
from headrace.docstore.contract import Change, DocStore

PAGE = 5000
WAIT_S = 10.0
RETRY_S = 1.0

OnChange = Callable[[str, Device | None], None]

log = structlog.get_logger()


class DeviceQueries:
    """Reads straight from the documents."""

    def __init__(self, docs: DocStore) -> None:
        self._docs = docs

    async def find(self, id: str) -> Device | None:
        found = await self._docs.get(COLLECTION, id)
        return None if found is None else from_body(found.id, found.body)

    async def get(self, id: str) -> Device:
        """Raises NotFound with the nearest id that exists."""
        device = await self.find(id)
        if device is None:
            like = await self._docs.query(COLLECTION, prefix=id[:2], limit=1000)
            hint = nearest(id, (document.id for document in like)) or "`headrace device list` shows them"
            raise NotFound(f"there is no device {id!r}", hint=hint, code="device.not_found")
        return device

    async def list(
        self,
        *,
        prefix: str = "",
        status: Status | None = None,
        site: str | None = None,
        after: str = "",
        limit: int = 1000,
    ) -> list[Device]:
        """Devices by id, after id `after`."""
        asked: dict[str, Any] = {"status": status, "site": site}
        where = {name: value for name, value in asked.items() if value is not None}
        found = await self._docs.query(COLLECTION, where=where, prefix=prefix, after=after, limit=limit)
        return [from_body(document.id, document.body) for document in found]

    async def count(self) -> int:
        return await self._docs.count(COLLECTION)


class DeviceDirectory:
    """Every device, in memory, as fresh as the change feed: what a gateway asks on each connect.

    `on_change` callbacks are told (id, device), with None for a deleted one; they must be quick and not raise.
    """

    def __init__(self, docs: DocStore, *, clock: Clock | None = None) -> None:
        self._docs = docs
        self._clock = clock or SystemClock()
        self._devices: dict[str, Device] = {}
        self._since = 0
        self._refreshing = asyncio.Lock()
        self.on_change: list[OnChange] = []

    def __len__(self) -> int:
        return len(self._devices)

    def __iter__(self) -> Iterator[Device]:
        return iter(list(self._devices.values()))

    def get(self, id: str) -> Device | None:
        return self._devices.get(id)

    async def open(self) -> None:
        """Load every device. Callbacks are not told. Raises Unavailable."""
        while await self._follow(wait_s=0.0, tell=False):
            pass
        log.info("directory.loaded", devices=len(self._devices))

    async def run(self) -> None:
        """Follow the feed until cancelled; while the store is unavailable, try again every RETRY_S."""
        while True:
            try:
                await self._follow(wait_s=WAIT_S, tell=True)
            except Unavailable as exc:
                log.warning("directory.interrupted", code=exc.code, error=exc.message)
                await self._clock.sleep(RETRY_S)

    async def refresh(self) -> None:
        """Learn of every device that exists by now: for one that nobody knows, who may have been made a moment ago. Raises
        Unavailable."""
        async with self._refreshing:  # a flood of unknown names asks the store one question at a time
            while await self._follow(wait_s=0.0, tell=True):
                pass

    async def _follow(self, *, wait_s: float, tell: bool) -> int:
        changes = await self._docs.changes(COLLECTION, self._since, limit=PAGE, wait_s=wait_s)
        for change in changes:
            if change.sequence > self._since:  # `run` and `refresh` may hear of the same one
                self._apply(change, tell=tell)
                self._since = change.sequence
        return len(changes)

    def _apply(self, change: Change, *, tell: bool) -> None:
        try:
            device = None if change.body is None else from_body(change.id, change.body)
        except msgspec.ValidationError:  # written by another version, or by hand: it must not lock the others out
            log.exception("directory.document_unreadable", device=change.id)
            return
        if device is None:
            self._devices.pop(change.id, None)
        else:
            self._devices[change.id] = device
        for callback in self.on_change if tell else ():
            try:
                callback(change.id, device)
            except Exception:
                log.exception("directory.callback_failed", device=change.id)
