"""Devices and modules with everything the hub knows of them, put together from their collections a page at a time.

The identity, its twin, its connection and its mailbox are documents of four collections in the same order of ids, so a page of
devices is joined by reading the same span of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import msgspec
import structlog

from headrace.devices.mailbox import COLLECTION as MAILBOX
from headrace.devices.model import COLLECTION, Device, Module, from_body, module_from_body
from headrace.devices.twins import COLLECTION as TWINS
from headrace.devices.twins import Connection, Twin, document, twin_from_body
from headrace.docstore.contract import DocStore, Document

PRESENCE = "presence"
"""Written by the gateway: who is connected."""
PAGE = 1000
LAST_CHARACTER = "\U0010ffff"
T = TypeVar("T")

log = structlog.get_logger()


def connection_of(body: dict[str, Any] | None) -> Connection:
    """What a document of PRESENCE says; of an identity that never connected there is none."""
    if body is None:
        return Connection()
    return Connection(bool(body["connected"]), body["since"], body.get("last_activity", body["since"]))


class View:
    """One identity. `json` is the twin as services see it, made when it is first asked for."""

    def __init__(
        self,
        device: Device,
        module: Module | None,
        twin: Document | None,
        presence: Document | None,
        *,
        etag: str = "",
        waiting: int = 0,
    ) -> None:
        self.device = device
        self.module = module
        self.etag = etag  # of the identity, not of its twin
        self.waiting = waiting
        self._twin = twin
        self._presence = presence

    @property
    def id(self) -> str:
        return self.device.id if self.module is None else self.module.client_id

    @property
    def connection(self) -> Connection:
        return connection_of(None if self._presence is None else self._presence.body)

    @cached_property
    def json(self) -> dict[str, Any]:
        twin = Twin() if self._twin is None else twin_from_body(self._twin.body)
        return document(twin, self.device, self.module, self.connection, messages_waiting=self.waiting)

    @property
    def tags(self) -> Any:
        return {} if self._twin is None else self._twin.body["tags"]

    def values(self, section: str) -> Any:
        """Of `desired` or `reported`, without metadata and version."""
        return {} if self._twin is None else self._twin.body[section]["values"]


class Views:
    """Reads them. All calls may raise Unavailable."""

    def __init__(self, docs: DocStore) -> None:
        self._docs = docs

    async def one(self, device: Device, module: Module | None = None, *, etag: str = "") -> View:
        id = device.id if module is None else module.client_id
        waiting = 0 if module is not None else len(await self._docs.query(MAILBOX, prefix=f"{id}/", limit=PAGE))
        twin, presence = await self._docs.get(TWINS, id), await self._docs.get(PRESENCE, id)
        return View(device, module, twin, presence, etag=etag, waiting=waiting)

    async def devices(self, *, after: str = "", limit: int = PAGE) -> list[View]:
        """Up to `limit` devices behind id `after`."""
        return await self._joined_devices(await self._docs.query(COLLECTION, after=after, limit=limit))

    async def every(self, kind: str, *, after: str = "") -> AsyncIterator[View]:
        """All `devices` or `modules` by id, read page by page."""
        joined = self._joined_devices if kind == COLLECTION else self._joined_modules
        while page := await self._docs.query(kind, after=after, limit=PAGE):
            for view in await joined(page):
                yield view
            after = page[-1].id

    async def _joined_devices(self, page: Sequence[Document]) -> list[View]:
        found = _readable(page, from_body)
        if not found:
            return []
        twins, presence = await self._span(TWINS, page), await self._span(PRESENCE, page)
        waiting = Counter(id.partition("/")[0] for id in await self._span(MAILBOX, page))
        return [
            View(device, None, twins.get(id), presence.get(id), etag=etag, waiting=waiting[id])
            for id, (device, etag) in found.items()
        ]

    async def _joined_modules(self, page: Sequence[Document]) -> list[View]:
        """Without those whose device is being deleted."""
        found = _readable(page, module_from_body)
        if not found:
            return []
        twins, presence = await self._span(TWINS, page), await self._span(PRESENCE, page)
        owners = [await self._docs.get(COLLECTION, id) for id in {module.device for module, _ in found.values()}]
        devices = _readable([owner for owner in owners if owner is not None], from_body)
        return [
            View(devices[module.device][0], module, twins.get(id), presence.get(id), etag=etag)
            for id, (module, etag) in found.items()
            if module.device in devices
        ]

    async def connected(self) -> int:
        """How many devices (not modules) are connected."""
        count, after = 0, ""
        while page := await self._docs.query(PRESENCE, where={"connected": True}, after=after, limit=PAGE):
            count += sum(document.body.get("module") is None for document in page)
            after = page[-1].id
        return count

    async def _span(self, collection: str, page: Sequence[Document]) -> dict[str, Document]:
        """The documents of a collection whose ids lie between the first and the last of `page`, and below the last."""
        last, after = page[-1].id + "/" + LAST_CHARACTER, just_before(page[0].id)
        spanned: dict[str, Document] = {}
        while found := await self._docs.query(collection, after=after, limit=PAGE):
            spanned |= {document.id: document for document in found if document.id <= last}
            after = found[-1].id
            if after > last or len(found) < PAGE:
                break
        return spanned


def just_before(id: str) -> str:
    """A text that sorts before `id` and behind every id that sorts before it."""
    return id[:-1] + chr(ord(id[-1]) - 1) + LAST_CHARACTER if id else ""


def _readable(documents: Sequence[Document], read: Callable[[str, Any], T]) -> dict[str, tuple[T, str]]:
    """(identity, etag) by id, without documents that another version or a hand wrote: one must not hide the others."""
    found: dict[str, tuple[T, str]] = {}
    for one in documents:
        try:
            found[one.id] = (read(one.id, one.body), one.etag)
        except msgspec.ValidationError:
            log.warning("registry.document_unreadable", document=one.id)
    return found
