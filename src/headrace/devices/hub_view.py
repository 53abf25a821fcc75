"""Devices and modules with everything the hub knows of them, put together from their collections a page at a time.

The identity, its twin, its connection and its mailbox are documents of four collections in the same order of ids, so a page of
devices is joined by reading the same span of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any

import msgspec

from headrace.devices.mailbox import COLLECTION as MAILBOX
from headrace.devices.model import COLLECTION, MODULES, Device, Module, from_body, module_from_body
from headrace.devices.twins import COLLECTION as TWINS
from headrace.devices.twins import Connection, Twin, document, twin_from_body
from headrace.docstore.contract import DocStore, Document

PRESENCE = "presence"
"""Written by the gateway: who is connected."""
PAGE = 1000
_AFTER = "\U0010ffff"


def connection_of(body: dict[str, Any] | None) -> Connection:
    """What a document of PRESENCE says; of an identity that never connected there is none."""
    if body is None:
        return Connection()
    return Connection(bool(body["connected"]), body["since"], body.get("last_activity", body["since"]))


class View:
    """One identity. `json` is the twin as services see it, made when it is first asked for."""

    def __init__(
        self, device: Device, module: Module | None, twin: Document | None, presence: Document | None, waiting: int = 0
    ) -> None:
        self.device = device
        self.module = module
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

    async def one(self, device: Device, module: Module | None = None) -> View:
        id = device.id if module is None else module.client_id
        waiting = 0 if module is not None else len(await self._docs.query(MAILBOX, prefix=f"{id}/", limit=PAGE))
        return View(device, module, await self._docs.get(TWINS, id), await self._docs.get(PRESENCE, id), waiting)

    async def devices(self, *, after: str = "", limit: int = PAGE) -> list[View]:
        """Up to `limit` devices behind id `after`."""
        found = _readable(await self._docs.query(COLLECTION, after=after, limit=limit), from_body)
        if not found:
            return []
        twins, presence = await self._span(TWINS, found), await self._span(PRESENCE, found)
        waiting = Counter(id.partition("/")[0] for id in await self._span(MAILBOX, found))
        return [View(device, None, twins.get(id), presence.get(id), waiting[id]) for id, device in found.items()]

    async def modules(self, *, after: str = "", limit: int = PAGE) -> list[View]:
        """Up to `limit` modules behind `{device}/{module}`."""
        found = _readable(await self._docs.query(MODULES, after=after, limit=limit), module_from_body)
        if not found:
            return []
        twins, presence = await self._span(TWINS, found), await self._span(PRESENCE, found)
        devices: dict[str, Device] = {}
        for name in {module.device for module in found.values()}:
            if (owner := await self._docs.get(COLLECTION, name)) is not None:
                devices[name] = from_body(name, owner.body)
        return [
            View(devices[module.device], module, twins.get(id), presence.get(id))
            for id, module in found.items()
            if module.device in devices
        ]

    async def every(self, kind: str, *, after: str = "") -> AsyncIterator[View]:
        """All `devices` or `modules` by id, read page by page."""
        read = self.devices if kind == COLLECTION else self.modules
        while page := await read(after=after):
            for view in page:
                yield view
            after = page[-1].id

    async def connected(self) -> int:
        """How many devices (not modules) are connected."""
        count, after = 0, ""
        while page := await self._docs.query(PRESENCE, where={"connected": True}, after=after, limit=PAGE):
            count += sum(document.body.get("module") is None for document in page)
            after = page[-1].id
        return count

    async def _span(self, collection: str, found: dict[str, Any]) -> dict[str, Document]:
        """The documents of a collection whose ids lie between the first and the last of `found`."""
        ids = list(found)
        last, after = ids[-1] + ("/" + _AFTER if "/" not in ids[-1] else ""), _just_before(ids[0])
        spanned: dict[str, Document] = {}
        while page := await self._docs.query(collection, after=after, limit=PAGE):
            spanned |= {document.id: document for document in page if document.id <= last}
            after = page[-1].id
            if after > last or len(page) < PAGE:
                break
        return spanned


def _just_before(id: str) -> str:
    """A text that sorts before `id` and behind every id that sorts before it."""
    return id[:-1] + chr(ord(id[-1]) - 1) + _AFTER


def _readable(documents: Any, read: Any) -> dict[str, Any]:
    """By id, without documents that another version or a hand wrote: one of them must not hide the others."""
    found: dict[str, Any] = {}
    for document_ in documents:
        try:
            found[document_.id] = read(document_.id, document_.body)
        except msgspec.ValidationError:
            continue
    return found
